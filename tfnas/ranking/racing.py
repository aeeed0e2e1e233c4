"""Racing: all candidates on the same examples in random order; who cannot win any more is not evaluated further."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from scipy import stats

from tfnas.common.errors import UserError

LARGEST_LOSS = -math.log(1e-7)  # nats, 16.1: the cross-entropy of a class of probability 1e-7, where Keras clips
_TIES = 0.95  # confidence of the ties of a race that was run without one


class Values(Protocol):
    """Where a race has its values from: who evaluates and who stores is not its concern.

    The examples are in random order, the same for all candidates.
    """

    def fill(self, candidates: Sequence[int], stop: int) -> None:
        """Evaluates these candidates on the examples from what each of them has up to `stop`."""

    def read(self, candidate: int, stop: int) -> np.ndarray:
        """Loss, or error of 0 or 1 (lower is better), of a candidate on examples [0, stop), float, shape (stop,)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a race ended.

    Attributes:
        winner: number of the candidate with the smallest mean over all examples, among the survivors.
        order: all candidates, best first. Those that got further come first; among those with equally many examples,
            whoever can win before those that cannot (excluded, or not finite), then by mean, then by number.
        num_examples: examples each candidate was evaluated on.
        survivors: evaluated in full and able to win, best first; the winner is the first.
        ties: survivors other than the winner that are not significantly worse, best first.
        evaluations: of one candidate on one example, in all.
    """

    winner: int
    order: list[int]
    num_examples: list[int]
    survivors: list[int]
    ties: list[int]
    evaluations: int

    @property
    def saved(self) -> float:
        """Share of all evaluations that were not made, in [0, 1]."""
        return 1 - self.evaluations / (len(self.num_examples) * self.num_examples[self.winner])


def looks(num_examples: int, least: int = 100, first: int = 32) -> list[int]:
    """After how many examples a race looks at its candidates: doubling, the last time at all of them.

    Args:
        num_examples: n, at least 1.
        least: no look at fewer, unless n itself is less: Student's t wants a sample that is not small.
        first: no look at fewer than n / first.

    >>> looks(5000)
    [157, 313, 625, 1250, 2500, 5000]
    """
    sizes = [num_examples]
    while sizes[0] > 1 and (half := math.ceil(sizes[0] / 2)) >= max(least, num_examples / first):
        sizes.insert(0, half)
    return sizes


def race(
    values: Values,
    num_candidates: int,
    num_examples: int,
    confidence: float | None = 0.95,
    tolerance: float = 0.5,
    excluded: Collection[int] = (),
    largest: float = LARGEST_LOSS,
) -> Outcome:
    """Finds the candidate with the smallest mean over all n examples without evaluating each on all of them.

    At each of the `looks`, after m < n examples, the leader is the candidate with the smallest mean so far. Another one
    is dropped where the lower confidence bound of its mean difference d to the leader, paired by example, says that it
    is not better than the leader by more than epsilon:

        mean(d) - sqrt((q^2 S + L^2 R^2) / (m - 1)) sqrt(1/m - 1/n) > -epsilon = -tolerance sd(leader) / sqrt(n)

    S is the sum of squares of d about its mean, but at least the median of those of all candidates in the race; q the
    quantile of Student's t, m - 1 degrees of freedom, at 1 - (1 - confidence) / (K (C - 1)) for K looks before the last
    and C candidates (Bonferroni); 1 - m/n the finite-population correction, because the m examples are drawn without
    replacement from the n that decide. Who has ever led is kept to the end.

    With S alone, of the candidate, what a sample does not show would count for nothing, and a candidate would be
    dropped for being a little worse on the many examples where the leader makes none of its rare, large mistakes:

    - Mistakes that all leaders make on the same examples. R is one imagined difference, as large as the losses allow:
      `largest`, or the range of what the two have lost on any example so far, whichever is more. It adds L R / m to
      what a lead must exceed. Examples that cost R each and would undo such a lead are all missing among the m with a
      probability of about exp(-L), so that L = max(q, log(K / (1 - confidence))) keeps the promise.
    - Mistakes that each makes on examples of its own. One of hundreds of candidates is lucky enough to show none, and
      it will lead; the median is that of candidates that are not.

    Guarantee, as far as Student's t holds for means of m examples whose variance is so taken: with at least this
    confidence, the winner's mean over all n examples is within `tolerance` standard errors of the best candidate's.
    Proof: with that probability all bounds of the best candidate hold at once. If it was dropped against a leader, that
    leader's mean over all n is less than epsilon above its own; and as leaders are never dropped, the winner is at
    least as good. Could they be, each drop might cost another epsilon. A leader whose later values are not finite
    leaves after all, and those that were dropped against it come back. `python -m benchmarks.racing_bounds` measures
    how often it holds for losses of many kinds, and what other bounds cost.

    Sources: Maron and Moore 1994 (Hoeffding races), Moore and Lee 1994 (blocking: paired comparisons), Cochran,
    Sampling Techniques, section 2.6 (finite-population correction).

    Args:
        values: evaluates and hands out; the order of the examples must be random. Of no more than two
            candidates are the values held at a time.
        num_candidates: C; they are numbered from 0.
        num_examples: n.
        confidence: of the guarantee, between 0 and 1; None evaluates everything in full.
        tolerance: in standard errors of a leader's mean over all n examples, at least 0.
        excluded: candidates that are evaluated up to the first look, so that their statistics exist, and cannot lead.
        largest: what a candidate may lose on one example at the most, known beforehand: 1 for errors. The guarantee
            holds only if no example costs more, or one that does is seen before anybody is dropped.

    Raises:
        UserError: if there is no candidate or example, an argument is out of its range, all candidates are excluded, or
            none that is not has finite values.
    """
    _check(num_candidates, num_examples, confidence, tolerance, excluded, largest)
    sizes = [num_examples] if confidence is None else looks(num_examples)
    num_looks = len(sizes) - 1
    means = [math.inf] * num_candidates
    seen = [0] * num_candidates
    barred = set(excluded)
    dropped: dict[int, list[int]] = {}  # by each that has led
    alive = list(range(num_candidates))
    for size in sizes:
        pending, alive = alive, []
        while pending:
            values.fill(pending, size)
            for i in pending:
                seen[i], means[i] = size, _mean(values.read(i, size))
            diverged = [i for i in pending if not math.isfinite(means[i])]
            barred.update(diverged)
            alive += [i for i in pending if i not in barred]
            pending = [i for leader in diverged for i in dropped.pop(leader, [])]  # for nothing, as it turns out
        if not alive:
            raise UserError(
                f"race: finite values expected of at least one candidate. Received: none on the first {size} examples"
            )
        leader = min(alive, key=lambda i: (means[i], i))
        dropped.setdefault(leader, [])
        if confidence is not None and size < num_examples and len(alive) > 1:
            best = _read(values, leader, size)
            epsilon = tolerance * best.std(ddof=1) / math.sqrt(num_examples)
            racing = [i for i in alive if i != leader]
            means_to, squares, ranges = np.transpose([_compared(_read(values, i, size), best, largest) for i in racing])
            risk = (1 - confidence) / num_looks
            lower = _lower(means_to, squares, ranges, size, num_examples, risk, num_candidates - 1)
            out = {i for i, low in zip(racing, lower, strict=True) if low > -epsilon and i not in dropped}
            dropped[leader] += sorted(out)
            alive = [i for i in alive if i not in out]
    survivors = sorted(alive, key=lambda i: (means[i], i))
    return Outcome(
        winner=survivors[0],
        order=sorted(range(num_candidates), key=lambda i: (-seen[i], i in barred, _not_finite_last(means[i]), i)),
        num_examples=seen,
        survivors=survivors,
        ties=_ties(values, survivors, num_examples, _TIES if confidence is None else confidence),
        evaluations=sum(seen),
    )


def _check(
    num_candidates: int,
    num_examples: int,
    confidence: float | None,
    tolerance: float,
    excluded: Collection[int],
    largest: float,
) -> None:
    if num_candidates < 1:
        raise UserError(f"race: at least one candidate expected. Received: {num_candidates}")
    if num_examples < 1:
        raise UserError(f"race: at least one example expected. Received: {num_examples}")
    if confidence is not None and not 0 < confidence < 1:
        raise UserError(f"race: confidence must lie between 0 and 1, or be None. Received: {confidence}")
    if not 0 <= tolerance < math.inf:
        raise UserError(f"race: tolerance must be a number of standard errors, at least 0. Received: {tolerance}")
    if not 0 <= largest < math.inf:
        raise UserError(f"race: largest must be the largest loss of one example, at least 0. Received: {largest}")
    unknown = sorted(set(excluded) - set(range(num_candidates)))
    if unknown:
        raise UserError(f"race: excluded candidates must be from 0 to {num_candidates - 1}. Received: {unknown}")
    if len(set(excluded)) == num_candidates:
        raise UserError(
            f"race: a candidate that can win expected. Received: all {num_candidates} candidates are excluded"
        )


def _read(values: Values, candidate: int, stop: int) -> np.ndarray:
    return np.asarray(values.read(candidate, stop), np.float64)


def _mean(values: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs: the mean is NaN, as it should be
        return float(np.mean(values, dtype=np.float64))


def _compared(values: np.ndarray, leader: np.ndarray, largest: float) -> tuple[float, float, float]:
    """Mean difference to the leader, sum of squares about it, and the largest difference that one example can make."""
    difference = values - leader
    mean = difference.mean()
    seen = max(values.max(), leader.max(), 0.0) - min(values.min(), leader.min(), 0.0)
    return mean, np.square(difference - mean).sum(), max(largest, seen)


def _lower(
    means: np.ndarray, squares: np.ndarray, ranges: np.ndarray, size: int, total: int, risk: float, others: int
) -> np.ndarray:
    """Lower bounds of the mean differences to a leader over all examples, see `race`.

    Args:
        means: of the differences on the examples seen, shape (A,).
        squares: sums of squares about the means, shape (A,).
        ranges: the largest difference that one example can make, shape (A,).
        size: m, the number of examples seen.
        total: n, the number of all.
        risk: that one of a candidate's bounds fails at this look.
        others: C - 1, the number of candidates that it may be compared with.
    """
    quantile = stats.t.isf(risk / others, size - 1)
    imagined = max(quantile, -math.log(risk))
    variances = (quantile**2 * np.maximum(squares, np.median(squares)) + (imagined * ranges) ** 2) / (size - 1)
    return means - np.sqrt(variances * (1 / size - 1 / total))


def _ties(values: Values, survivors: list[int], num_examples: int, confidence: float) -> list[int]:
    """Survivors that a one-sided paired t-test, Bonferroni over all of them, does not find worse than the winner.

    Without the finite-population correction, because the question is about new examples.
    """
    winner, *others = survivors
    if num_examples == 1:
        return others  # one example says nothing about the next
    best = _read(values, winner, num_examples)
    quantile = stats.t.isf((1 - confidence) / max(1, len(others)), num_examples - 1)
    ties = []
    for i in others:
        difference = _read(values, i, num_examples) - best
        if difference.mean() <= quantile * difference.std(ddof=1) / math.sqrt(num_examples):
            ties.append(i)
    return ties


def _not_finite_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
