"""Bernoulli: what every posterior of independent gates has. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from tfnas.common import markup
from tfnas.common.errors import UserError
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.layer_gates import Gates

DECIDED = 0.05  # a gate below this, or above one minus this, counts as decided


class Bernoulli:
    """Independent Bernoulli gates: the base of both posteriors."""

    _masks, _channels = "layers", "input channels"  # in messages and headings: whose masks, and masks over these

    if TYPE_CHECKING:  # a field of one posterior, computed by the other

        @property
        def layers(self) -> Sequence[Gates]:
            """The gates of each mask of an architecture, in order."""
            ...

    def log_prob(self, architecture: Architecture) -> float:
        """Natural logarithm of an architecture's probability; -inf where p = 0 or 1 forbids it."""
        self._check_layers(architecture, "log_prob")
        total = 0.0
        with np.errstate(divide="ignore"):
            for g in self.layers:
                keep = architecture[g.name]
                total += float(np.sum(np.where(keep, np.log1p(-g.channel_drop), np.log(g.channel_drop))))
        return total

    def entropy(self) -> float:
        """Entropy of all gates in nats: -sum p log p + (1 - p) log(1 - p)."""
        total = 0.0
        for g in self.layers:
            # x log x -> 0 at 0: the clip moves no other value.
            p = np.clip(g.channel_drop, 1e-300, 1.0)
            keep = np.clip(1.0 - g.channel_drop, 1e-300, 1.0)
            total -= float(np.sum(p * np.log(p) + keep * np.log(keep)))
        return total

    def decided(self) -> tuple[int, int]:
        """Number of gates with p below 0.05 or above 0.95, and of all gates."""
        p = np.concatenate([g.drop_probability for g in self.layers])
        return int(((p < DECIDED) | (p > 1 - DECIDED)).sum()), p.size

    def undecided(self, num: int | None = None) -> list[tuple[str, int, float]]:
        """Lists the gates with 0.05 <= p <= 0.95, the most undecided (p nearest 1/2) first, ties in order.

        Args:
            num: at most this many; None: all.

        Returns:
            The mask's name, the gate's index in it, and p, of each.
        """
        gates = [(g.name, i, p) for g in self.layers for i, p in enumerate(g.drop_probability)]
        undecided = [gate for gate in gates if DECIDED <= gate[2] <= 1 - DECIDED]
        # Rounded, so that 0.3 and 0.7 are a tie, which in float64 they are not.
        return sorted(undecided, key=lambda gate: round(abs(gate[2] - 0.5), 12))[:num]

    def _check_layers(self, architecture: Architecture, title: str) -> None:
        """Raises UserError for another network's architecture."""
        differing = sorted(set(architecture) ^ {g.name for g in self.layers})
        if differing:
            first = differing[0]
            where = "the architecture" if first in architecture else "the posterior"
            raise UserError(
                f"{title}: the {self._masks} of this posterior expected. Received: others; '{first}' is only in {where}"
            )
        for g in self.layers:
            if (received := architecture[g.name].size) != g.num_channels:
                raise UserError(
                    f"{title}: '{g.name}': a mask of {g.num_channels} {self._channels} expected. Received: {received}"
                )

    def _drawn(self, lead: str) -> Markup:
        """The share that each mask is expected to keep, as bars below a paragraph."""
        shares = [float(1 - g.channel_drop.mean()) for g in self.layers]
        return markup.paragraph(lead) + markup.bars(
            [g.name for g in self.layers],
            shares,
            [markup.percent(share, 0) for share in shares],
            f"{self._channels} expected to be kept, %",
            f"Share of {self._channels} that a posterior is expected to keep",
        )
