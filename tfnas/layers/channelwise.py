"""Layers that treat each channel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfnas.layers.base import Computation, Node
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class Channelwise(Node):
    """Treats each channel by itself."""

    carries = True
    full_output = False

    @property
    def zero_to_zero(self) -> bool:
        return True

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return State(x.depends & kept, x.explicit & kept, (x.zero | ~kept) & self.zero_to_zero)

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [live]

    def linked(self, available: Sequence[np.ndarray]) -> Any:
        return available[0]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return self.held(x.live)

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        # Each variable has one number a channel.
        return outputs * len(getattr(self.inner, "_trainable_variables", ())), 0

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        reads, makes = super().squared_norms()
        variables = getattr(self.inner, "_trainable_variables", ())  # frozen or not
        return reads, makes + sum(np.square(np.asarray(variable, np.float64)) for variable in variables)

    def settings(self, channels: int) -> dict[str, Any]:
        """Settings of its layer that differ where it has so many channels."""
        return {}

    def constants(self, x: Folded) -> Any:
        return x.kept_constants

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        channels = self.held(x.live)
        weights = [w[channels] for w in self.inner.get_weights()] if getattr(self.inner, "weights", None) else []
        tensor = build.gather(sources[0], self.given(x, 0))
        return self.rebuilt(build, [tensor], weights, **self.settings(channels.size))

    @property
    def computation(self) -> type[Computation]:
        return ChannelwiseComputation


class ChannelwiseComputation(Computation):
    """A layer on the channels that are live, which are all that its input holds."""

    def takes_held(self, source: Node) -> bool:
        return not (self.node.gated or source.holds_more)
