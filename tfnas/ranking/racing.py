"""Racing: evaluates all candidates on the same examples in random order, and drops those that can no longer win."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from scipy import stats

from tfnas.common.errors import UserError

LARGEST_LOSS = -math.log(1e-7)  # 16.1 nats, the cross-entropy of a class of probability 1e-7, at which Keras clips
FINALISTS = 20  # of a ranking, unless another number is asked for
_TIES = 0.95  # confidence for ties in a race without a confidence


class Values(Protocol):
    """The values of a race, on examples in a random order that is the same for all candidates."""

    def fill(self, candidates: Sequence[int], stop: int) -> None:
        """Evaluates these candidates on the examples that each of them lacks, up to `stop`."""

    def read(self, candidate: int, stop: int) -> np.ndarray:
        """Returns a candidate's losses, or errors of 0 or 1 (lower is better), on examples [0, stop), shape (stop,)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a race.

    Attributes:
        winner: index of the survivor with the smallest mean over all examples.
        order: all candidates, best first. Candidates evaluated on more examples come first; among equals, those that
            can win before those that cannot (excluded, or not finite), then by mean, then by index.
        num_examples: number of examples that each candidate was evaluated on.
        survivors: candidates that were evaluated in full and can win, best first, starting with the winner.
        ties: survivors other than the winner that are not significantly worse, best first.
        evaluations: total number of evaluations of one candidate on one example.
        unproven: number of candidates that were dropped for `finalists` alone, which the guarantee does not cover.
    """

    winner: int
    order: list[int]
    num_examples: list[int]
    survivors: list[int]
    ties: list[int]
    evaluations: int
    unproven: int

    @property
    def saved(self) -> float:
        """Share of all evaluations that were saved, in [0, 1]."""
        return 1 - self.evaluations / (len(self.num_examples) * self.num_examples[self.winner])


def looks(num_examples: int, least: int = 100, first: int = 32) -> list[int]:
    """Returns after how many examples a race compares its candidates: doubling, up to all examples.

    Args:
        num_examples: n, at least 1.
        least: no comparison on fewer examples, unless n is smaller: Student's t requires a sufficient sample.
        first: no comparison on fewer than n / first examples.

    >>> looks(5000)
    [157, 313, 625, 1250, 2500, 5000]
    """
    sizes = [num_examples]
    while sizes[0] > 1 and (half := math.ceil(sizes[0] / 2)) >= max(least, num_examples / first):
        sizes.insert(0, half)
    return sizes


def allowed(num_candidates: int, num_looks: int, finalists: int | None) -> list[int]:
    """Returns how many candidates remain after each look but the last: a geometric sequence to `finalists`.

    >>> allowed(1500, 5, 20)
    [510, 173, 59, 20]
    """
    steps = num_looks - 1
    if finalists is None or finalists >= num_candidates:
        return [num_candidates] * steps
    return [round(num_candidates * (finalists / num_candidates) ** (k / steps)) for k in range(1, num_looks)]


def race(
    values: Values,
    num_candidates: int,
    num_examples: int,
    confidence: float | None = 0.95,
    tolerance: float = 0.5,
    finalists: int | None = None,
    excluded: Collection[int] = (),
    largest: float = LARGEST_LOSS,
) -> Outcome:
    """Finds the candidate with the smallest mean over all n examples without evaluating each on all of them.

    At each of the `looks`, after m < n examples, the leader is the candidate with the smallest mean so far. Another
    candidate is dropped if the lower confidence bound of its mean difference d to the leader, paired by example, shows
    that it is not better than the leader by more than epsilon:

        mean(d) - sqrt((q^2 S + L^2 R^2) / (m - 1)) sqrt(1/m - 1/n) > -epsilon = -tolerance sd(leader) / sqrt(n)

    S is the sum of squares of d about its mean, but at least the median of those of all candidates in the race; q the
    quantile of Student's t, m - 1 degrees of freedom, at 1 - (1 - confidence) / (K (C - 1)) for K looks before the last
    and C candidates (Bonferroni); 1 - m/n the finite-population correction, because the m examples are drawn without
    replacement from the n that decide. Every candidate that was ever the leader is kept to the end.

    With the candidate's S alone, events that are missing from the sample would be ignored, and a candidate would be
    dropped for being slightly worse on the many examples where the leader makes none of its rare, large mistakes:

    - Mistakes that all leaders make on the same examples. R is one hypothetical difference, as large as the losses
      allow: `largest`, or the range of the losses of the two on any example so far, whichever is larger. It adds L R /
      m to the lead that is required. Examples that cost R each and would undo such a lead are all missing among the m
      with a probability of about exp(-L), so L = max(q, log(K / (1 - confidence))) preserves the guarantee.
    - Mistakes that each candidate makes on different examples. One of hundreds of candidates will by chance show none,
      and become the leader; the median S is that of more typical candidates.

    Guarantee, if Student's t holds for means of m examples with this variance: with at least this confidence, the
    winner's mean over all n examples is within `tolerance` standard errors of the best candidate's.
    Proof: with that probability all bounds of the best candidate hold at once. If it was dropped against a leader, that
    leader's mean over all n is less than epsilon above its own; and as leaders are never dropped, the winner is at
    least as good. If they could be, each drop might cost another epsilon. A leader whose later values are not finite is
    dropped nevertheless, and those that were dropped against it return. `python -m benchmarks.racing_bounds` measures
    how often it holds for losses of many kinds, and what other bounds cost.

    Candidates of a decided posterior that all fill the same bounds differ by less than any bound can show on n
    examples, and would all be evaluated in full. With `finalists`, the number of candidates falls from look to look
    nevertheless, in proportion, to so many (successive halving, with a factor that follows): of those that the bound
    leaves, the best by their means so far remain, and all that ever led. The guarantee then covers all candidates but
    the `unproven`.

    Sources: Maron and Moore 1994 (Hoeffding races), Moore and Lee 1994 (blocking: paired comparisons), Cochran,
    Sampling Techniques, section 2.6 (finite-population correction), Karnin et al. 2013 (sequential halving).

    Args:
        values: source of the values; the order of the examples must be random. Values of at most two candidates are in
            memory at a time.
        num_candidates: C.
        num_examples: n.
        confidence: confidence of the guarantee, between 0 and 1; None drops no candidate by the bound.
        tolerance: tolerance in standard errors of a leader's mean over all n examples, at least 0.
        finalists: number of candidates, at least 1, that are evaluated on all examples, apart from those that led; None
            evaluates all that the bound leaves.
        excluded: candidates that are evaluated up to the first look, so that their statistics exist, but cannot lead.
        largest: upper bound of a candidate's loss on one example, known in advance: 1 for errors. The guarantee holds
            only if no example costs more, or one that does is seen before any candidate is dropped.

    Raises:
        UserError: if there is no candidate or example, an argument is out of range, all candidates are excluded, or
            none of the others has finite values.
    """
    _check(num_candidates, num_examples, confidence, tolerance, finalists, excluded, largest)
    sizes = [num_examples] if confidence is None and finalists is None else looks(num_examples)
    num_looks = len(sizes) - 1
    limits = [*allowed(num_candidates, len(sizes), finalists), num_candidates]
    unproven: set[int] = set()
    means = [math.inf] * num_candidates
    seen = [0] * num_candidates
    barred = set(excluded)
    dropped: dict[int, list[int]] = {}  # by leader
    alive = list(range(num_candidates))
    for size, limit in zip(sizes, limits, strict=True):
        pending, alive = alive, []
        while pending:
            values.fill(pending, size)
            for i in pending:
                seen[i], means[i] = size, _mean(values.read(i, size))
            diverged = [i for i in pending if not math.isfinite(means[i])]
            barred.update(diverged)
            alive += [i for i in pending if i not in barred]
            # Candidates that were dropped against a leader that has diverged return.
            pending = [i for leader in diverged for i in dropped.pop(leader, [])]
        if not alive:
            raise UserError(f"race: no candidate has finite values on the first {size} examples")
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
        surplus = [i for i in sorted(alive, key=lambda i: (means[i], i))[limit:] if i not in dropped]
        dropped[leader] += sorted(surplus)
        alive = [i for i in alive if i not in surplus]
        unproven.update(surplus)
    survivors = sorted(alive, key=lambda i: (means[i], i))
    return Outcome(
        winner=survivors[0],
        order=sorted(range(num_candidates), key=lambda i: (-seen[i], i in barred, _not_finite_last(means[i]), i)),
        num_examples=seen,
        survivors=survivors,
        ties=_ties(values, survivors, num_examples, _TIES if confidence is None else confidence),
        evaluations=sum(seen),
        unproven=sum(seen[i] < num_examples for i in unproven),
    )


def _check(
    num_candidates: int,
    num_examples: int,
    confidence: float | None,
    tolerance: float,
    finalists: int | None,
    excluded: Collection[int],
    largest: float,
) -> None:
    if num_candidates < 1:
        raise UserError(f"race: expected at least one candidate. Received: {num_candidates}")
    if num_examples < 1:
        raise UserError(f"race: expected at least one example. Received: {num_examples}")
    if confidence is not None and not 0 < confidence < 1:
        raise UserError(f"race: confidence must lie between 0 and 1, or be None. Received: {confidence}")
    if not 0 <= tolerance < math.inf:
        raise UserError(f"race: tolerance must be a number of standard errors, at least 0. Received: {tolerance}")
    if finalists is not None and finalists < 1:
        raise UserError(f"race: finalists must be at least 1, or None. Received: {finalists}")
    if not 0 <= largest < math.inf:
        raise UserError(f"race: largest must be the largest loss of one example, at least 0. Received: {largest}")
    unknown = sorted(set(excluded) - set(range(num_candidates)))
    if unknown:
        raise UserError(f"race: excluded candidates must be from 0 to {num_candidates - 1}. Received: {unknown}")
    if len(set(excluded)) == num_candidates:
        raise UserError(
            f"race: at least one candidate must not be excluded. Received: all {num_candidates} are excluded"
        )


def _read(values: Values, candidate: int, stop: int) -> np.ndarray:
    return np.asarray(values.read(candidate, stop), np.float64)


def _mean(values: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs correctly give NaN
        return float(np.mean(values, dtype=np.float64))


def _compared(values: np.ndarray, leader: np.ndarray, largest: float) -> tuple[float, float, float]:
    """Returns the mean difference to the leader, its sum of squares, and the largest difference of one example."""
    difference = values - leader
    mean = difference.mean()
    seen = max(values.max(), leader.max(), 0.0) - min(values.min(), leader.min(), 0.0)
    return mean, np.square(difference - mean).sum(), max(largest, seen)


def _lower(
    means: np.ndarray, squares: np.ndarray, ranges: np.ndarray, size: int, total: int, risk: float, others: int
) -> np.ndarray:
    """Returns lower bounds of the mean differences to a leader over all examples, see `race`.

    Args:
        means: mean differences on the examples seen, shape (A,).
        squares: sums of squares about the means, shape (A,).
        ranges: largest possible difference on one example, shape (A,).
        size: m, the number of examples seen.
        total: n, the total number of examples.
        risk: probability that one of a candidate's bounds fails at this look.
        others: C - 1, the number of candidates that it may be compared with.
    """
    quantile = stats.t.isf(risk / others, size - 1)
    imagined = max(quantile, -math.log(risk))
    variances = (quantile**2 * np.maximum(squares, np.median(squares)) + (imagined * ranges) ** 2) / (size - 1)
    return means - np.sqrt(variances * (1 / size - 1 / total))


def _ties(values: Values, survivors: list[int], num_examples: int, confidence: float) -> list[int]:
    """Returns survivors that are not significantly worse than the winner (one-sided paired t-test, Bonferroni).

    Without the finite-population correction, because it generalizes to new examples.
    """
    winner, *others = survivors
    if num_examples == 1:
        return others  # no variance from one example
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
