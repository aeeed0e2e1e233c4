"""A bound on the latency that holds as measured, not only as predicted from single layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfnas.common.errors import UserError
from tfnas.cutting.subnets import cut
from tfnas.graph.latencies import Device, compare_latency
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import UnitPosterior

_TOLERANCE = 0.05  # the share by which a network may be faster than was asked for
_NETWORKS = 4  # measured at most
_ROUNDS = 5  # in which a network and the full one are measured in turns
_MARGIN = 1 + 1e-9  # of the smallest bound, so that its product with the full seconds is not rounded out of reach


@dataclasses.dataclass(frozen=True)
class LatencyBound:
    """A bound under which networks are as fast as was asked for, and the networks measured to find it.

    Attributes:
        asked: seconds of one example as a share of the full network's.
        predicted: bound on the predicted share under which the most probable network is the one that was chosen: the
            slowest that is fast enough, or else the fastest.
        measured: share measured for that network.
        tried: predicted and measured share of every network that was measured, in order.
        others_bind: whether that network is no slower without a bound on the latency, because of the other bounds.
    """

    asked: float
    predicted: float
    measured: float
    tried: tuple[tuple[float, float], ...]
    others_bind: bool

    @property
    def met(self) -> bool:
        """Whether the network is at most as slow as asked, and by at most 5 % faster unless another bound binds."""
        return self.measured <= self.asked and (self.others_bind or (1 - _TOLERANCE) * self.asked <= self.measured)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A network that was measured; all but the architecture are seconds' shares of the full network's."""

    architecture: Architecture
    bound: float
    predicted: float
    measured: float


def meet_latency(
    posterior: UnitPosterior, graph: UnitGraph, share: float, device: str | Device = "tensorflow"
) -> LatencyBound:
    """Finds the bound on the predicted latency under which networks have a latency as measured.

    The most probable network within a bound is cut and measured in turns with the full one; the next bound follows by
    the secant method on logarithms, which aims at the middle of the tolerance. At most four networks are measured, none
    twice. If even the smallest network is too slow, that is the one returned.

    Args:
        posterior: whose costs include the latency (`Latencies.terms`); its other bounds hold as well.
        graph: of the same supernet.
        share: of the full network's seconds, in (0, 1).
        device: as of `tfnas.graph.latencies.timer`.

    Raises:
        UserError: for a share out of range, another bound that is out of reach, and as `timer`.
    """
    if not 0 < share < 1:
        raise UserError(f"latency: a share of the full network's in (0, 1) expected. Received: {share}")
    full = posterior.form.full("latency")
    least = _MARGIN * posterior.form.least("latency", posterior.channel_multiple) / full

    def most_probable(bound: float) -> Architecture:
        return dataclasses.replace(posterior, bounds={**posterior.bounds, "latency": bound * full}).mode()

    slowest = most_probable(max(1.0, least))
    aim = (1 - _TOLERANCE / 2) * share
    trials: list[_Trial] = []
    bound = max(share, least)
    while len(trials) < _NETWORKS:
        architecture = most_probable(bound)
        if any(trial.architecture == architecture for trial in trials):
            break
        measured = compare_latency([graph.model, cut(graph, architecture)], device, _ROUNDS).ratios[1]
        trials.append(_Trial(architecture, bound, posterior.cost_of(architecture, "latency") / full, measured))
        best = _best(trials, share)
        tried = tuple((trial.bound, trial.measured) for trial in trials)
        found = LatencyBound(share, best.bound, best.measured, tried, best.architecture == slowest)
        if found.met:
            break
        # Downwards from what is predicted for the network, not from its bound, so that another network follows.
        ratio = _ratio(trials, aim)
        bound = float(np.clip(ratio * (bound if ratio > 1 else trials[-1].predicted), least, max(1.0, least)))
    return found


def _ratio(trials: Sequence[_Trial], aim: float) -> float:
    """The factor by which the share predicted for the last network is to change: what is measured is a power of it."""
    # The full network's shares are known.
    (x0, y0), (x1, y1) = [(1.0, 1.0), *((trial.predicted, trial.measured) for trial in trials)][-2:]
    rise, run = math.log(y1 / y0), math.log(x1 / x0)
    exponent = rise / run if rise * run > 0 else 1.0
    return (aim / y1) ** (1 / exponent)


def _best(trials: Sequence[_Trial], share: float) -> _Trial:
    """The slowest network that is fast enough, or else the fastest."""
    enough = [trial for trial in trials if trial.measured <= share]
    if enough:
        return max(enough, key=lambda trial: trial.measured)
    return min(trials, key=lambda trial: trial.measured)
