"""A model's inputs, and layers that read all channels and are left whole."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Node
from tfnas.layers.calls import Call
from tfnas.layers.convolution import Convolution
from tfnas.layers.records import Builder, Folded, State, Value


class Input(Node):
    """An input of the model, which a subnet has with all its channels."""

    LAYERS = (keras.layers.InputLayer,)
    full_output = False

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return self.everywhere(True, True, False)

    def held(self, live: np.ndarray) -> np.ndarray:
        return np.arange(self.num_channels)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        return self.tensor()

    def tensor(self) -> Any:
        """A new input of the same name, shape and dtype."""
        return keras.Input(batch_shape=self.layer.batch_shape, dtype=self.layer.dtype, name=self.name)


class Uncut(Node):
    """A layer without a rule, which is not cut: it reads and computes all of its channels, at full cost."""

    takes_masks = True

    # Of what subnets are built with, so that a subnet can be gated in its turn: what looks at nothing but its input's
    # shape.
    _CONSTANT = frozenset(("OnesLike", "ZerosLike"))

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return True

    @property
    def has_kernel(self) -> bool:
        return isinstance(self.inner, Convolution.LAYERS)

    def state(self, sources: Sequence[State], kept: Any) -> State:
        constant = type(self.inner).__name__ in self._CONSTANT
        return self.everywhere(False, True, False) if constant else super().state(sources, kept)


class Variable(Node):
    """A trained tensor that is the same for each example, with channels: EinsumDense on a single channel of ones."""

    full_output = False
    mixes = True
    _EQUATION = re.compile(r"zy,y(\w+)->z\1")

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        if not isinstance(layer, keras.layers.EinsumDense) or layer.bias_axes or layer.kernel.shape[0] != 1:
            return False
        return bool(cls._EQUATION.fullmatch(layer.equation)) and layer.activation is keras.activations.linear

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return self.everywhere(sources[0].depends.any(), True, False)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        return outputs * math.prod(self.inner.kernel.shape[1:-1]), 0

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        squares = np.square(np.asarray(self.inner.kernel, np.float64))
        return np.zeros(1), squares.reshape(-1, self.num_channels).sum(0)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        kernel = x.weights[self.name]["kernel"][..., self.held(x.live)]
        return self.rebuilt(build, [build.gather(sources[0], np.arange(1))], [kernel], output_shape=kernel.shape[1:])
