"""Embedding and PReLU, which have weights for each channel and word or position; averages over words by their mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Computation, Node, WholeComputation
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class Embedding(Node):
    """An embedding, which writes channels and reads whole numbers."""

    full_output = False
    mixes = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return type(layer) is keras.layers.Embedding and len(layer.get_weights()) == 1

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return self.everywhere(sources[0].depends.any(), True, False)

    def pins(self, j: int) -> bool:
        return True

    def count(self, x: Channels) -> tuple[int, int]:
        return self.count_of(self.input_channels[0], int(x.live.sum()))

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        return self.inner.input_dim * outputs, 0

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        reads, makes = super().squared_norms()
        return reads, makes + np.square(self.inner.get_weights()[0].astype(np.float64)).sum(0)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        channels = np.flatnonzero(x.live)
        tensor = build.gather(sources[0], np.arange(self.input_channels[0]))
        weights = [self.inner.get_weights()[0][:, channels]]
        return self.rebuilt(build, [tensor], weights, output_dim=int(channels.size))


class MaskedAverage(Channelwise):
    """GlobalAveragePooling1D with a mask, its second input, of which it needs all."""

    takes_masks = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return type(layer) is keras.layers.GlobalAveragePooling1D and called.masked

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return sources[0]

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [live, np.full(self.input_channels[1], bool(live.any()))]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.arange(self.input_channels[1]) if j else np.flatnonzero(x.live)

    def ties(self, j: int) -> np.ndarray | None:
        return None if j else np.arange(self.num_channels)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        return self.rebuilt(build, [build.gather(sources[0], self.given(x, 0)), sources[1].tensor])

    @property
    def computation(self) -> type[Computation]:
        return WholeComputation


class Parametric(Channelwise):
    """PReLU, whose slopes may be shared over other axes but not over channels."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return isinstance(layer, keras.layers.PReLU) and layer.alpha.shape[-1] == record.output_tensors[0].shape[-1]

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        return math.prod(self.inner.alpha.shape[:-1]) * outputs, 0

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        slopes = np.square(self.inner.get_weights()[0].astype(np.float64)).reshape(-1, self.num_channels)
        return np.zeros(self.num_channels), slopes.sum(0)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        channels = self.given(x, 0)
        weights = [self.inner.get_weights()[0][..., channels]]
        return self.rebuilt(build, [build.gather(sources[0], channels)], weights)

    @property
    def computation(self) -> type[Computation]:
        return WholeComputation
