"""Gates: the drop probabilities of one layer's channels, or of one group's units. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from tfnas.common.schema import Share, integer, list_of
from tfnas.search_space.architecture import MOST_CHANNELS


@dataclasses.dataclass(frozen=True)
class Gates:
    """The gates of one mask of an architecture.

    Attributes:
        name: of the mask.
        group_sizes: channels that share a probability, in order; they add up to the mask's K channels.
        drop_probability: one p per group, in [0, 1].
    """

    name: str
    group_sizes: Annotated[tuple[int, ...], list_of(integer(1, MOST_CHANNELS), 1)]
    drop_probability: Annotated[tuple[float, ...], list_of(Share, 1)]

    def __post_init__(self) -> None:
        if len(self.group_sizes) != len(self.drop_probability) or not self.group_sizes:
            raise ValueError(
                f"{type(self).__name__} '{self.name}': one drop probability per group expected. Received: "
                f"{len(self.group_sizes)} groups, {len(self.drop_probability)} probabilities"
            )
        if not all(0 <= p <= 1 for p in self.drop_probability):
            raise ValueError(
                f"{type(self).__name__} '{self.name}': drop probabilities must be in [0, 1]. Received: "
                f"{self.drop_probability}"
            )

    @property
    def num_channels(self) -> int:
        """K, the channels of the mask."""
        return sum(self.group_sizes)

    @property
    def channel_drop(self) -> np.ndarray:
        """Drop probability of each channel, float64, shape (K,)."""
        return np.repeat(np.asarray(self.drop_probability, np.float64), self.group_sizes)


@dataclasses.dataclass(frozen=True)
class LayerGates(Gates):
    """The gates of one layer's input channels, and what the channels cost.

    Attributes:
        parameters_per_channel: kernel weights that read one input channel.
        multiply_adds_per_channel: multiply-adds of one input channel; None if the image size is not fixed.
    """

    parameters_per_channel: int
    multiply_adds_per_channel: int | None = None

    def shifted(self, by: float) -> LayerGates:
        """Adds `by` to every drop logit. A certain gate is shifted as if its p were 1e-12 from 0 or 1."""
        p = np.clip(np.asarray(self.drop_probability, np.float64), 1e-12, 1 - 1e-12)
        logits = np.log(p) - np.log1p(-p) + by
        drop = np.exp(-np.logaddexp(0.0, -logits))  # a sigmoid that does not overflow
        return dataclasses.replace(self, drop_probability=tuple(drop.tolist()))
