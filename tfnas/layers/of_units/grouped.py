"""Grouped convolutions, which stay grouped: of every group the same channels exist, of inputs and of outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfnas.layers.calls import Call
from tfnas.layers.convolution import Convolution, WithKernel
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class Grouped(WithKernel):
    """A convolution of groups of several channels each."""

    mixes = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        grouped = isinstance(layer, Convolution.LAYERS) and getattr(layer, "groups", 1) > 1
        return grouped and layer.kernel.shape[-2] > 1

    def together(self, j: int | None) -> np.ndarray | None:
        size = self.num_channels if j is None else self.input_channels[j]
        return np.arange(size) % (size // self.inner.groups)

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return self.everywhere(x.depends.any(), x.explicit.any(), False)

    def held(self, live: np.ndarray) -> np.ndarray:
        number = np.arange(self.num_channels) % (self.num_channels // self.inner.groups)
        return np.flatnonzero(np.isin(number, number[live]))

    @property
    def holds_more(self) -> bool:
        return True

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available)

    def count(self, x: Channels) -> tuple[int, int]:
        return self.count_of(int(x.available.sum()), self.held(x.live).size)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        weights: Any = math.prod(self.inner.kernel_size) * inputs * outputs
        groups = self.inner.groups
        weights = weights // groups if weights % groups == 0 else weights / groups  # of one channel, a fraction
        return weights + (outputs if self.inner.use_bias else 0), weights

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        groups, size = self.inner.groups, self.inner.kernel.shape[-2]
        squares = np.square(np.asarray(self.inner.kernel, np.float64)).reshape(
            -1, size, groups, self.num_channels // groups
        )
        return squares.sum((0, 3)).T.reshape(-1), squares.sum((0, 1)).reshape(-1) + self._squared_bias()

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        inputs, outputs = self.given(x, 0), self.held(x.live)
        kernel = x.weights[self.name]["kernel"]
        read = np.unique(inputs % kernel.shape[-2])
        weights = [kernel[..., read, :][..., outputs]]
        if self.inner.use_bias:
            weights.append(self.bias(x.weights)[outputs])
        return self.rebuilt(build, [build.gather(sources[0], inputs)], weights, filters=int(outputs.size))
