"""Simulates races with many bounds and losses: how often the guarantee holds, and what it costs.

    .venv/bin/python -m benchmarks.racing_bounds [--tables=10] [--orders=20] [--examples=2000] [--candidates=200]

A table of losses is drawn, candidates by examples, and raced in several random orders of the examples at 95 % and half
a standard error. For each kind of losses and each bound it prints the share of races whose winner misses that, of which
5 % are promised, and the share of evaluations made. NumPy and SciPy only; no network is trained.

The bounds, each Bonferroni over looks and candidates, and each with the finite-population correction:

- Student's t: of the paired differences as they were seen.
- imagined, seen: with one more difference, as large as any loss that one of the two has made so far.
- imagined, known: the same, at least 16.1 nats (or 1 error).
- clipped: Student's t and one imagined difference, of losses that are clipped at 4 nats.
- Bernstein, seen and known: Maurer and Pontil 2009, theorem 4, with that range.
- shipped: `tfnas.ranking.racing.race` as it is: a known range, and at least the median candidate's variance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from absl import app, flags
from scipy import stats

from benchmarks import records
from tfnas.ranking import racing

_CONFIDENCE, _TOLERANCE = 0.95, 0.5
_CLIP = 4.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """Losses of one kind.

    Attributes:
        draw: a table, shape (candidates, examples), from a generator and these two numbers.
        largest: upper bound of one example's loss that the race receives.
        few: number of candidates where the kind is about few; 0: any.
    """

    draw: Callable[[np.random.Generator, int, int], np.ndarray]
    largest: float = racing.LARGEST_LOSS
    few: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """The share of races whose winner violates the guarantee, and the share of evaluations made."""

    violations: float
    evaluated: float


def _normal(rng: np.random.Generator, candidates: int, examples: int) -> np.ndarray:
    return rng.normal(size=examples) + rng.normal(size=(candidates, 1)) * 0.05 + _noise(rng, candidates, examples)


def _heavy(rng: np.random.Generator, candidates: int, examples: int) -> np.ndarray:
    """Examples differ in difficulty, for all alike, and candidates in how they take the difficult ones."""
    effect = rng.normal(size=(candidates, 1)) * 0.1
    return rng.lognormal(size=examples) * np.exp(effect + _noise(rng, candidates, examples))


def _cross_entropy(mean_margin: float) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Losses of confident networks on two classes, with margins of `mean_margin` standard deviations on average."""

    def draw(rng: np.random.Generator, candidates: int, examples: int) -> np.ndarray:
        skill = mean_margin + rng.normal(size=(candidates, 1)) * 0.1
        margins = 4 * (skill + rng.normal(size=examples) + 0.8 * _noise(rng, candidates, examples))
        return np.logaddexp(0, -margins)

    return draw


def _errors(threshold: float) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """0 or 1: a latent normal of example, candidate and both above a threshold."""

    def draw(rng: np.random.Generator, candidates: int, examples: int) -> np.ndarray:
        latent = rng.normal(size=examples) + rng.normal(size=(candidates, 1)) * 0.2
        return (latent + _noise(rng, candidates, examples) > threshold).astype(float)

    return draw


def _noise(rng: np.random.Generator, candidates: int, examples: int) -> np.ndarray:
    return 0.5 * rng.normal(size=(candidates, examples))


def _mistakes(
    share: float, loss: float, shared: bool, base: float = 0.3, ahead: float = 1.6
) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """All but the first are slightly better nearly everywhere, and lose `loss` more on a share of the examples.

    So that the first is the best, by `ahead` times the tolerance. `base` is the mean loss elsewhere.
    """

    def draw(rng: np.random.Generator, candidates: int, examples: int) -> np.ndarray:
        number = round(share * examples)
        values = rng.exponential(base, examples) + 0.1 * base * rng.normal(size=(candidates, examples))
        tolerance = _TOLERANCE * loss * math.sqrt(number) / examples
        values[0] += number * loss / examples - ahead * tolerance
        where = rng.choice(examples, number, replace=False)
        for i in range(1, candidates):
            values[i, where if shared else rng.choice(examples, number, replace=False)] += loss
        return values

    return draw


KINDS = {
    "normal": Kind(_normal),
    "heavy": Kind(_heavy),
    "cross-entropy": Kind(_cross_entropy(1.3)),
    "cross-entropy, 3 % errors": Kind(_cross_entropy(2.2)),
    "errors": Kind(_errors(0.8), 1),
    "errors, 2 %": Kind(_errors(2.3), 1),
    # +12 on the same 0.3 % of the examples.
    "shared": Kind(_mistakes(0.003, 12, True, ahead=2.2)),
    "shared, faint": Kind(_mistakes(0.003, 12, True, base=0.01, ahead=2.2)),
    "shared, tuned": Kind(_mistakes(0.01, racing.LARGEST_LOSS, True)),
    "own": Kind(_mistakes(0.003, 12, False, ahead=2.2)),
    "own, tuned": Kind(_mistakes(0.03, racing.LARGEST_LOSS, False)),
    "two, tuned": Kind(_mistakes(0.01, racing.LARGEST_LOSS, True), few=2),
}

# Lower bounds of mean differences to a leader, from the differences seen, shape (A, m), the number of all examples, the
# risk of each, and the largest loss; shape (A,).
Bound = Callable[[np.ndarray, int, float, np.ndarray], np.ndarray]


def _student(imagined: float) -> Bound:
    def bound(differences: np.ndarray, total: int, risk: float, largest: np.ndarray) -> np.ndarray:
        size = differences.shape[1]
        squares = differences.var(1) * size + imagined * largest**2
        return differences.mean(1) - stats.t.isf(risk, size - 1) * np.sqrt(squares / (size - 1) * _left(size, total))

    return bound


def _bernstein(differences: np.ndarray, total: int, risk: float, largest: np.ndarray) -> np.ndarray:
    size, log = differences.shape[1], math.log(2 / risk)
    deviation = np.sqrt(2 * log * differences.var(1, ddof=1) * _left(size, total))
    return differences.mean(1) - deviation - 7 * 2 * largest * log / (3 * (size - 1))  # differences range over 2 R


def _left(size: int, total: int) -> float:
    return 1 / size - 1 / total


def _racer(bound: Bound, known: bool, clip: float = math.inf) -> Callable[[np.ndarray, float], tuple[int, float]]:
    """A race by another bound: a candidate that was ever the leader stays, as in `tfnas.ranking.racing.race`."""

    def run(table: np.ndarray, largest: float) -> tuple[int, float]:
        values, (candidates, examples) = np.minimum(table, clip), table.shape
        sizes = racing.looks(examples)
        risk = (1 - _CONFIDENCE) / (len(sizes) - 1) / (candidates - 1)
        alive, led, made, seen = np.arange(candidates), set(), 0, 0
        for size in sizes:
            made, seen = made + len(alive) * (size - seen), size
            leader = alive[values[alive, :size].mean(1).argmin()]
            led.add(leader)
            if size < examples:
                part, best = values[alive, :size], values[leader, :size]
                reach = np.maximum(part.max(1), best.max()) - np.minimum(0, np.minimum(part.min(1), best.min()))
                lower = bound(part - best, examples, risk, np.maximum(reach, min(largest, clip) * known))
                epsilon = _TOLERANCE * best.std(ddof=1) / math.sqrt(examples)
                alive = np.array([i for i, low in zip(alive, lower, strict=True) if low <= -epsilon or i in led])
        return int(alive[values[alive].mean(1).argmin()]), made / values.size

    return run


class _Table:
    """A table's values, for `tfnas.ranking.racing.race`."""

    def __init__(self, values: np.ndarray):
        self._values = values

    def fill(self, candidates: object, stop: int) -> None:
        """All is there."""

    def read(self, candidate: int, stop: int) -> np.ndarray:
        """The first values of a candidate."""
        return self._values[candidate, :stop]


def shipped(table: np.ndarray, largest: float) -> tuple[int, float]:
    """The winner of `tfnas.ranking.racing.race`, and the share of evaluations that it made."""
    outcome = racing.race(_Table(table), *table.shape, _CONFIDENCE, _TOLERANCE, largest=largest)
    return outcome.winner, 1 - outcome.saved


student = _racer(_student(0), known=False)
RACES = {
    "Student's t": student,
    "imagined, seen": _racer(_student(1), known=False),
    "imagined, known": _racer(_student(1), known=True),
    "clipped": _racer(_student(1), known=True, clip=_CLIP),
    "Bernstein, seen": _racer(_bernstein, known=False),
    "Bernstein, known": _racer(_bernstein, known=True),
    "shipped": shipped,
}


def simulated(
    kind: Kind,
    run: Callable[[np.ndarray, float], tuple[int, float]],
    tables: int,
    orders: int,
    candidates: int = 200,
    examples: int = 2000,
    seed: int = 0,
) -> Found:
    """Races of one kind of losses by one bound: `orders` of the examples for each of `tables` that are drawn."""
    rng = np.random.default_rng(seed)
    missed, made = [], []
    for _ in range(tables):
        table = kind.draw(rng, kind.few or candidates, examples)
        means, errors = table.mean(1), table.std(1, ddof=1) / math.sqrt(examples)
        for _ in range(orders):
            winner, share = run(table[:, rng.permutation(examples)], kind.largest)
            missed.append(means[winner] - means.min() > _TOLERANCE * errors[winner])
            made.append(share)
    return Found(float(np.mean(missed)), float(np.mean(made)))


def main(_):
    """Prints the table."""
    settings = flags.FLAGS
    record = records.Record(settings.record)
    record.heading("losses", *RACES)
    for name, kind in KINDS.items():
        cells = []
        for run in RACES.values():
            found = simulated(kind, run, settings.tables, settings.orders, settings.candidates, settings.examples)
            cells.append(f"{100 * found.violations:.1f} / {100 * found.evaluated:.0f}")
        record.row(name, *cells)
    record.keep()


if __name__ == "__main__":
    records.flag()
    flags.DEFINE_integer("tables", 10, "Tables of losses that are drawn of each kind.", lower_bound=1)
    flags.DEFINE_integer("orders", 20, "Races in each.", lower_bound=1)
    flags.DEFINE_integer("candidates", 200, "In a race.", lower_bound=2)
    flags.DEFINE_integer("examples", 2000, "In a race.", lower_bound=200)
    app.run(main)
