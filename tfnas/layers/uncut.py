"""A model's inputs, and layers that read all channels and are left whole."""

from __future__ import annotations

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
