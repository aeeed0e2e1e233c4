"""Detects a search whose posterior has dropped everything, or does not move."""

from __future__ import annotations

import math

import numpy as np

from tfnas.common.errors import SearchFailedError
from tfnas.common.terminal import warn
from tfnas.config import Search
from tfnas.gating.supernet import Supernet
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior

_SAMPLES = 20  # architectures sampled; one with a path to every output is enough
_NEARLY_EMPTY = 0.01  # expected share of the gated channels below which almost nothing is kept
_MOVED = 0.01  # a gate has moved if p changed by more than this share of p or of 1 - p
_FIRST_EPOCHS = 3  # a search is not called frozen before


class Guard:
    """Checks the posterior of a search before the first step and after every epoch, depending on `search.guard`.

    Collapsed: none of 20 samples has a path to every output, so there is nothing to rank. The mode is not used: if all
    p are 0.6, it drops everything although every sample has a path, as in the first epoch on the digits. The share kept
    is not used either, because a cheap gate may stay open when all others are closed.

    A search with bounds cannot collapse, because every candidate has a path, and is as large as its bounds allow.

    Almost empty: less than 1 % of the gated channels are expected to be kept, but samples still have a path, through
    layers without gates. This may be intended if few layers are gated, so it only causes a warning.

    Without gates, with another importance, there is nothing to check.

    Frozen: after a quarter of the epochs, at least 3, no p has moved from `initial_drop` by more than 1 % of it or of
    its complement. This only causes a warning too.

    Args:
        settings: settings of the search.
        supernet: the model being trained.
        seed: seed of the samples; that of the run, so that they are the first ones that the stage 'sample' ranks.
    """

    def __init__(self, settings: Search, supernet: Supernet, seed: int):
        self._settings, self._supernet, self._seed = settings, supernet, seed
        self._warned = False

    def begin(self) -> None:
        """Checks the initial gates. Raises SearchFailedError if they leave no path and `search.guard` is 'stop'."""
        settings = self._settings
        if settings.guard == "off" or not settings.published or self._connected(self._supernet.posterior()):
            return
        what = f"search.initial_drop ({self._settings.initial_drop:g}) leaves no path to the output (collapsed)"
        if self._settings.guard == "stop":
            raise SearchFailedError(
                f"search stopped before its first step: {what}; try --config.search.initial_drop=0.1, or "
                "--config.search.guard=off if this is intended"
            )
        self._warn_once(f"search: {what} before the first step")

    def check(self, epoch: int) -> None:
        """Checks the posterior at the end of an epoch, counted from 1; warns of each problem once.

        Raises:
            SearchFailedError: if the posterior has collapsed, and `search.guard` is 'stop'.
        """
        settings = self._settings
        if settings.guard == "off" or (not settings.published and settings.importance != "gates"):
            return
        posterior = self._supernet.posterior()
        if self._settings.published:
            self._check_collapse(epoch, posterior)
        if epoch == max(_FIRST_EPOCHS, math.ceil(self._settings.gated_epochs / 4)) and self._is_frozen(posterior):
            warn(
                f"search: no drop probability has moved by more than 1 % by epoch {epoch} (frozen). {self._too_small()}"
            )

    def _check_collapse(self, epoch: int, posterior: Posterior) -> None:
        kept = 1 - np.concatenate([gates.channel_drop for gates in posterior.layers]).mean()
        dropped = f"{1 - kept:.0%} of the gated channels are dropped".replace("%", " %")
        if not self._connected(posterior):
            what = f"{dropped} and no path to the output is left (collapsed). {self._too_much()}"
            if self._settings.guard == "stop":
                last = f"The last good checkpoint is epoch {epoch - 1}" if epoch > 1 else "There was no checkpoint yet"
                raise SearchFailedError(f"search stopped at epoch {epoch}: {what}. {last}")
            self._warn_once(f"search: at epoch {epoch}, {what}")
        elif kept < _NEARLY_EMPTY:
            self._warn_once(
                f"search: at epoch {epoch}, {dropped}; only layers without gates still have a path. {self._too_much()}"
            )

    def _connected(self, posterior: Posterior) -> bool:
        samples = (posterior.sample(1, self._seed, first=i)[0] for i in range(_SAMPLES))  # the first usually suffices
        return any(self._supernet.graph.flow(sample).reaches_outputs() for sample in samples)

    def _is_frozen(self, posterior: Posterior | UnitPosterior) -> bool:
        start = self._settings.initial_drop
        p = np.concatenate([gates.drop_probability for gates in posterior.layers])
        return bool((np.abs(p - start) <= _MOVED * min(start, 1 - start)).all())

    def _warn_once(self, warning: str) -> None:
        if not self._warned:
            warn(warning)
        self._warned = True

    def _too_much(self) -> str:
        settings = self._settings
        # Half, because the transition is sharp: far below it nothing is dropped. 1, the paper's rate, is not lowered.
        rate = settings.gate_learning_rate
        options = {"gate_learning_rate": max(1.0, rate / 2)} if rate > 1 else {}
        return self._published("high", {**options, "ell2": settings.ell2 / 2})

    def _too_small(self) -> str:
        settings = self._settings
        if not settings.published:
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
