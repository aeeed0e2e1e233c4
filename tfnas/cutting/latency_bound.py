"""A bound on the latency that holds as measured, not only as predicted from single layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import keras

from tfnas.common.errors import UserError
from tfnas.cutting.subnets import cut
from tfnas.graph.latencies import Device, Timer, Turns, take_turns, timer
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import UnitPosterior

_TOLERANCE = 0.05  # the share by which a network may be faster than was asked for
_NETWORKS = 10  # measured at most
_BY_SECANT = 3  # of these, before bisection
_ROUNDS = 5  # in which a network and the full one are measured in turns
_REPEATS = 3  # of these rounds, with networks compiled anew, for a network that may be the one
_NARROWEST = 1.001  # ratio of two bounds between which no other is tried
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

    The most probable network within a bound is cut and measured in turns with the full one. The next bound follows by
    the secant method on logarithms, which aims at the middle of the tolerance. After three networks it is the middle
    between the bounds of one that is too fast and one that is too slow, whatever order measurements have between them.
    A network whose latency seems about right is compiled and measured twice more before it is accepted. At most ten
    networks are measured, none twice. If even the smallest network is too slow, that is the one returned.

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

    most = max(1.0, least)
    slowest = most_probable(most)
    aim = (1 - _TOLERANCE / 2) * share
    bracket = _Bracket(least, most)
    reference = timer(graph.model, device)
    trials: list[_Trial] = []
    bound: float | None = max(share, least)
    while bound is not None:
        architecture = most_probable(bound)
        known = [trial for trial in trials if trial.architecture == architecture]
        if known:
            bracket.add(bound, known[0].measured > aim)
            bound = bracket.next(None)
            continue
        measured = _measured(reference, cut(graph, architecture), aim, device)
        predicted = posterior.cost_of(architecture, "latency") / full
        trials.append(_Trial(architecture, bound, predicted, measured))
        best = _best(trials, share)
        tried = tuple((trial.predicted, trial.measured) for trial in trials)
        found = LatencyBound(share, best.bound, best.measured, tried, best.architecture == slowest)
        if found.met or len(trials) == _NETWORKS:
            break
        # Below what is predicted for a network, and above its bound, is another network.
        bracket.add(predicted if measured > aim else bound, measured > aim)
        ratio = _ratio(trials, aim)
        secant = ratio * (bound if ratio > 1 else predicted)
        bound = bracket.next(secant if len(trials) < _BY_SECANT or not bracket.closed else None)
    return found


class _Bracket:
    """The bounds between which the one that is looked for lies: of a network that is too fast, and one too slow.

    Args:
        low: the smallest bound, of a network that is not measured yet.
        high: likewise the largest.
    """

    def __init__(self, low: float, high: float):
        self._ends = [low, high]
        self._measured = [False, False]

    @property
    def closed(self) -> bool:
        """Whether the networks of both ends are measured."""
        return all(self._measured)

    def add(self, bound: float, slow: bool) -> None:
        """Moves an end to the bound of a network that was measured to be too slow, or too fast."""
        self._ends[slow], self._measured[slow] = bound, True

    def next(self, proposed: float | None) -> float | None:
        """The bound of the next network, or None if there is no other one between the ends.

        Args:
            proposed: bound that is taken if it lies between the ends, or is nearest to one that is not measured; None:
                the middle.
        """
        low, high = self._ends
        if high <= _NARROWEST * low:
            return None
        middle = math.sqrt(low * high)
        if proposed is None:
            return middle
        if proposed <= low:
            return middle if self._measured[0] else low
        if proposed >= high:
            return middle if self._measured[1] else high
        return proposed


def _measured(reference: Timer, network: keras.Model, aim: float, device: str | Device) -> float:
    """A network's seconds as a share of the full one's, repeated if it may be the one that is looked for.

    A network that is compiled anew has its tensors elsewhere in memory, which can change its latency by a few percent.
    """
    turns = Turns(())
    for _ in range(_REPEATS):
        turns = Turns(turns.rounds + take_turns([reference, timer(network, device)], _ROUNDS).rounds)
        if abs(turns.ratios[1] / aim - 1) > _TOLERANCE:
            break
    return turns.ratios[1]


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
