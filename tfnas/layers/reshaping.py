"""Reshape and Flatten: other axes, the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import WholeComputation
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.records import Channels, Folded, State


class Reshape(Channelwise):
    """A Reshape that leaves the channels as they are."""

    computation = WholeComputation

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        same = record.input_tensors[0].shape[-1] == record.output_tensors[0].shape[-1]
        return isinstance(layer, keras.layers.Reshape) and same

    def settings(self, channels: int) -> dict[str, Any]:
        return {"target_shape": (*self.inner.target_shape[:-1], channels)}


class Flatten(Channelwise):
    """Spatial axes and channels become one axis; a channel comes back at every position."""

    LAYERS = (keras.layers.Flatten,)
    computation = WholeComputation
    carries = False
    holds_more = True

    def _tiled(self, channels: np.ndarray) -> np.ndarray:
        return np.tile(channels, self.num_channels // self.input_channels[0])

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return State(self._tiled(x.depends), self._tiled(x.explicit), self._tiled(x.zero))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [np.any(live.reshape(-1, self.input_channels[0]), axis=0)]

    def ties(self, j: int) -> np.ndarray | None:
        return self._tiled(np.arange(self.input_channels[0]))

    def linked(self, available: Sequence[np.ndarray]) -> Any:
        return self._tiled(available[0])

    def held(self, live: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self._tiled(*self.read(live)))

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(*self.read(x.live))

    def constants(self, x: Folded) -> Any:
        return self._tiled(x.constants[0])
