"""A bound on the latency that holds as measured, not only as predicted from single layers."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfnas.common.errors import UserError
from tfnas.cutting.subnets import cut
from tfnas.graph.latencies import Device, compare_latency
from tfnas.graph.units import UnitGraph
from tfnas.search_space.unit_posterior import UnitPosterior

_TOLERANCE = 0.05  # the share by which a network may be faster than was asked for
_NETWORKS = 4  # measured at most
_ROUNDS = 5  # in which a network and the full one are measured in turns


@dataclasses.dataclass(frozen=True)
class LatencyBound:
    """A bound under which networks are as fast as was asked for, and the networks measured to find it.

    Attributes:
        asked: seconds of one example as a share of the full network's.
        predicted: bound on the predicted share under which the most probable network meets that.
        measured: share measured for that network.
        tried: predicted and measured share of every network that was measured, in order.
    """

    asked: float
    predicted: float
    measured: float
    tried: tuple[tuple[float, float], ...]

    @property
    def met(self) -> bool:
        """Whether the network measured is at most as slow as asked, and by at most 5 % faster."""
        return (1 - _TOLERANCE) * self.asked <= self.measured <= self.asked


def meet_latency(
    posterior: UnitPosterior, graph: UnitGraph, share: float, device: str | Device = "tensorflow"
) -> LatencyBound:
    """Finds the bound on the predicted latency under which networks have a latency as measured.

    The most probable network within a bound is cut and measured in turns with the full one; the next bound follows by
    the secant method, which aims at the middle of the tolerance. At most four networks are measured.

    Args:
        posterior: whose costs include the latency (`Latencies.terms`); its other bounds hold as well.
        graph: of the same supernet.
        share: of the full network's seconds, in (0, 1).
        device: as of `tfnas.graph.latencies.timer`.

    Raises:
        UserError: for a share out of range or out of reach, and as `timer`.
    """
    if not 0 < share < 1:
        raise UserError(f"latency: a share of the full network's in (0, 1) expected. Received: {share}")
    form = posterior.form
    full = form.full("latency")
    least = form.least("latency") / full
    others = {resource: bound / form.full(resource) for resource, bound in posterior.bounds.items()}
    aim = (1 - _TOLERANCE / 2) * share
    tried: list[tuple[float, float]] = []
    predicted = max(share, least)
    for _ in range(_NETWORKS):
        network = cut(graph, posterior.mode(**{**others, "latency": predicted}))
        measured = compare_latency([graph.model, network], device, _ROUNDS).ratios[1]
        tried.append((predicted, measured))
        bound = LatencyBound(share, *_best(tried, share), tuple(tried))
        if bound.met:
            return bound
        if len(tried) == 1:
            step = predicted * (aim / measured - 1)
        else:
            (x0, y0), (x1, y1) = tried[-2:]
            slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0
            step = (aim - y1) / slope if slope > 0 else predicted * (aim / measured - 1)
        predicted = float(np.clip(predicted + step, least, 1.0))
    return bound


def _best(tried: list[tuple[float, float]], share: float) -> tuple[float, float]:
    """The slowest network that is fast enough, or else the fastest."""
    enough = [pair for pair in tried if pair[1] <= share]
    return max(enough, key=lambda pair: pair[1]) if enough else min(tried, key=lambda pair: pair[1])
