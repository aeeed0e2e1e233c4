"""Whether a search still leads anywhere: a posterior that has dropped everything, and one that does not move."""

from __future__ import annotations

import math

import numpy as np

from tfnas.common.errors import SearchFailedError
from tfnas.common.terminal import warn
from tfnas.config import Search
from tfnas.gating.supernet import Supernet
from tfnas.search_space.posterior import Posterior

_SAMPLES = 20  # architectures drawn; one with a path to every output is enough
_LEFT = 0.01  # below this expected share of the gated channels, nearly nothing is kept
_MOVED = 0.01  # a change of p by more than this share, of p or of 1 - p, is a move
_FIRST_EPOCHS = 3  # none of fewer epochs is called frozen


class Guard:
    """Judges the posterior of a search before its first step and at every epoch's end, as `search.guard` says.

    Collapsed: none of 20 samples has a path to every output, so there is nothing to rank. Samples, because the mode is
    no sign: where all p are 0.6 it drops everything, and every sample still has its path, as in the digits' first
    epoch. Nor is the share kept, because a gate that costs little may stay open where all others have closed.

    Nearly nothing left: below 1 % of the gated channels are expected to be kept, and samples still have a path, through
    layers without gates. That may be what was asked, where few layers are gated; so it is told, and never stops.

    Frozen: after a quarter of the epochs, at least 3, no p has moved from `initial_drop` by more than 1 % of it or of
    its complement. It never stops either.

    Args:
        settings: of the search.
        supernet: the model trained.
        seed: of the samples; the run's, so that they are the first that the stage 'sample' would rank.
    """

    def __init__(self, settings: Search, supernet: Supernet, seed: int):
        self._settings, self._supernet, self._seed = settings, supernet, seed
        self._told = False

    def begin(self) -> None:
        """Judges the gates that the supernet was made with. Raises SearchFailedError if they leave no path, and may."""
        if self._settings.guard == "off" or self._connected(self._supernet.posterior()):
            return
        what = f"search.initial_drop ({self._settings.initial_drop:g}) leaves no path to the output (collapsed)"
        if self._settings.guard == "stop":
            raise SearchFailedError(
                f"search stopped before its first step: {what}; try --config.search.initial_drop=0.1, or "
                "--config.search.guard=off if that is meant"
            )
        self._tell(f"search: {what} before the first step")

    def check(self, epoch: int) -> None:
        """Judges the posterior at the end of an epoch, counted from 1; warns of each thing once.

        Raises:
            SearchFailedError: if the posterior has collapsed, and `search.guard` is 'stop'.
        """
        if self._settings.guard == "off":
            return
        posterior = self._supernet.posterior()
        kept = 1 - np.concatenate([gates.channel_drop for gates in posterior.layers]).mean()
        dropped = f"{1 - kept:.0%} of the gated channels are dropped".replace("%", " %")
        if not self._connected(posterior):
            what = f"{dropped} and no path to the output is left (collapsed). {self._too_much()}"
            if self._settings.guard == "stop":
                last = f"The last good checkpoint is epoch {epoch - 1}" if epoch > 1 else "There was no checkpoint yet"
                raise SearchFailedError(f"search stopped at epoch {epoch}: {what}. {last}")
            self._tell(f"search: at epoch {epoch}, {what}")
        elif kept < _LEFT:
            self._tell(f"search: at epoch {epoch}, {dropped}; layers without gates still lead on. {self._too_much()}")
        if epoch == max(_FIRST_EPOCHS, math.ceil(self._settings.gated_epochs / 4)) and self._is_frozen(posterior):
            warn(
                f"search: no drop probability has moved by more than 1 % by epoch {epoch} (frozen). {self._too_small()}"
            )

    def _connected(self, posterior: Posterior) -> bool:
        samples = (posterior.sample(1, self._seed, first=i)[0] for i in range(_SAMPLES))  # the first mostly will do
        return any(self._supernet.graph.flow(sample).reaches_outputs() for sample in samples)

    def _is_frozen(self, posterior: Posterior) -> bool:
        start = self._settings.initial_drop
        p = np.concatenate([gates.drop_probability for gates in posterior.layers])
        return bool((np.abs(p - start) <= _MOVED * min(start, 1 - start)).all())

    def _tell(self, warning: str) -> None:
        if not self._told:
            warn(warning)
        self._told = True

    def _too_much(self) -> str:
        settings = self._settings
        if settings.recipe == "target":
            ((resource, share),) = settings.target.items()
            return self._advice(
                f"the gates' steps ({settings.gate_step:g}) are too long or search.{resource} ({share:g}) too small",
                {"gate_step": settings.gate_step / 2, resource: (1 + share) / 2},
            )
        # Half, because the border is sharp: far below it nothing is dropped. 1 is the paper's, and too slow to lower.
        rate = settings.gate_learning_rate
        options = {"gate_learning_rate": max(1.0, rate / 2)} if rate > 1 else {}
        return self._published("high", {**options, "ell2": settings.ell2 / 2})

    def _too_small(self) -> str:
        settings = self._settings
        if settings.recipe == "target":
            return self._advice(
                f"the gates' steps (now {settings.gate_step:g}) are too short for so few epochs",
                {"gate_step": 10 * settings.gate_step},
            )
        # Above 10, the gates' learning rate is beyond what docs/choosing.md recommends.
        options = {"gate_learning_rate": 10.0} if settings.gate_learning_rate < 10 else {}
        return self._published("small for so few epochs", {**options, "ell2": settings.ell2 * 10})

    def _published(self, what: str, options: dict[str, float]) -> str:
        settings = self._settings
        return self._advice(
            f"the gates' learning rate (now {settings.gate_learning_rate:g} x the weights') or ell2 "
            f"({settings.ell2:g}) is too {what}",
            options,
        )

    def _advice(self, cause: str, options: dict[str, float]) -> str:
        flags = " or ".join(f"--config.search.{name}={value:g}" for name, value in options.items())
        return f"Usually {cause}; try {flags}, in another --workdir"
