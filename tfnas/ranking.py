"""Many candidates compared fairly: raced on the same held-out examples with their inherited weights, and ranked."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas import figures
from tfnas.architecture import Architecture
from tfnas.engine import Engine
from tfnas.errors import UserError
from tfnas.evaluations import Evaluations
from tfnas.racing import LARGEST_LOSS, Outcome, looks, race
from tfnas.recalibration import Recalibration
from tfnas.supernet import Supernet

CRITERIA = ("loss", "accuracy")
_MOST_SHOWN = 10  # candidates in a notebook's table


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one candidate on held-out examples.

    Attributes:
        loss: mean, nats for a cross-entropy.
        accuracy: in [0, 1].
        num_examples: how many there were.
    """

    loss: float
    accuracy: float
    num_examples: int

    @classmethod
    def of(cls, losses: np.ndarray, hits: np.ndarray) -> Score:
        """From every example's loss and whether it was classified correctly."""
        return cls(float(np.mean(losses, dtype=np.float64)), float(np.mean(hits)), len(hits))


@dataclasses.dataclass(frozen=True, repr=False)
class Ranking:
    """Candidates and how they did.

    Attributes:
        candidates: the architectures, in the order given.
        scores: one each, on as many examples as it was evaluated on before it was dropped.
        by: 'loss' or 'accuracy'.
        outcome: of the race: order, ties with the winner, evaluations made and saved.
        fresh: the winner's score on examples that the race did not use: what it did in the race is flattered, because
            the best of many is partly the luckiest. None if no examples were held out.
    """

    candidates: Sequence[Architecture]
    scores: Sequence[Score]
    by: str
    outcome: Outcome
    fresh: Score | None

    def __repr__(self) -> str:
        best = self.scores[self.outcome.winner]
        return (
            f"<Ranking of {len(self.candidates):,} candidates by {self.by}: number {self.outcome.winner} is best, loss "
            f"{best.loss:.4g}, accuracy {best.accuracy:.1%}; {len(self.outcome.ties):,} tie with it; "
            f"{self.outcome.saved:.0%} of the evaluations saved>"
        )

    def _repr_html_(self) -> str:
        outcome, num = self.outcome, len(self.candidates)
        lead = f"{num:,} candidates by {self.by}; {100 * outcome.saved:.0f} % of the evaluations saved."
        if self.fresh:
            lead += (
                f" On {self.fresh.num_examples:,} fresh examples the winner has loss {self.fresh.loss:.3f}, accuracy "
                f"{100 * self.fresh.accuracy:.1f} %."
            )
        place = dict.fromkeys(outcome.ties, "ties") | {outcome.winner: "wins"}
        rows = [
            (
                i == outcome.winner,
                [
                    f"{i}",
                    f"{self.scores[i].loss:.3f}",
                    f"{100 * self.scores[i].accuracy:.1f} %",
                    f"{self.scores[i].num_examples:,}",
                    f"{self.candidates[i].kept:,} of {self.candidates[i].total:,}",
                    place.get(i, "-"),
                ],
            )
            for i in self.order[:_MOST_SHOWN]
        ]
        headings = ("candidate", "loss", "accuracy", "examples", "channels", "race")

        def histogram(axes: Any) -> None:
            axes.hist([100 * score.accuracy for score in self.scores], 40, color=figures.BLUE)
            axes.set(xlabel="accuracy, %", ylabel="candidates")

        caption = "Candidates by accuracy, each on the examples that it was evaluated on before it was out of the race"
        return f"<p>{lead}</p>" + figures.table(headings, rows, "numbers") + figures.plot(histogram, (8, 2.8), caption)

    @property
    def order(self) -> list[int]:
        """Numbers of the candidates, best first."""
        return self.outcome.order

    @property
    def best(self) -> Architecture:
        """The winner."""
        return self.candidates[self.outcome.winner]


def rank(
    supernet: Supernet,
    candidates: Sequence[Architecture],
    validation: tf.data.Dataset,
    *,
    by: str = "loss",
    racing: float | None = 0.95,
    tolerance: float = 0.5,
    holdout: float = 0.2,
    batch_size: int = 250,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    recalibration: Recalibration | None = None,
) -> Ranking:
    """Races the candidates with the supernet's weights, and ranks them.

    Args:
        supernet: trained and compiled; not changed.
        candidates: architectures, for example from `posterior.sample`. One that drops every path to the output is
            evaluated a little and never wins.
        validation: batches of (inputs, integer labels), never the test split.
        by: 'loss', by far the more reliable, or 'accuracy', the paper's.
        racing: confidence that the winner is within `tolerance` of the best, see `tfnas.racing`; None evaluates every
            candidate in full.
        tolerance: in standard errors of a candidate's mean over the race's examples.
        holdout: share of the examples, drawn at random, that the race does not see, to measure the winner on.
        batch_size: examples computed at a time.
        seed: of the random order of the examples.
        strategy: whose devices evaluate candidates side by side.
        recalibration: gives every candidate normalisation statistics of its own; call its `apply(ranking.best)` before
            that is cut out. None: the supernet's.

    Raises:
        UserError: if there is no candidate that reaches the output, no example, a setting is out of its range, or the
            supernet is not compiled.
    """
    if not candidates:
        raise UserError("rank: at least one candidate expected. Received: none")
    engine = Engine(supernet, validation, batch_size, seed, strategy, recalibration)
    cut_off = [i for i, a in enumerate(candidates) if not supernet.graph.flow(a).reaches_outputs()]
    with tempfile.TemporaryDirectory() as folder, Evaluations(pathlib.Path(folder) / "rank.jsonl", "rank") as kept:
        field = Field(engine, kept, candidates, by, holdout)
        return field.race(racing, tolerance, cut_off)


class Field:
    """Candidates that race: evaluated by an engine, kept in a file; the `Values` of `tfnas.racing`.

    Args:
        engine: with its examples in random order; the first of them are raced on.
        evaluations: found ones are not made again.
        candidates: architectures; may be made anew on every access.
        by: 'loss' or 'accuracy'.
        holdout: share of the engine's examples, the last ones, that are not raced on.

    Attributes:
        num_examples: that are raced on.
        progress: is called with (candidates in the race, examples each has by now) as these change.

    Raises:
        UserError: if a setting is out of its range, or the race is left without an example.
    """

    def __init__(
        self,
        engine: Engine,
        evaluations: Evaluations,
        candidates: Sequence[Architecture],
        by: str,
        holdout: float = 0.0,
    ):
        if by not in CRITERIA:
            raise UserError(f"rank: by must be 'loss' or 'accuracy'. Received: {by!r}")
        if not 0 <= holdout < 1:
            raise UserError(f"rank: holdout must be a share of the examples in [0, 1). Received: {holdout}")
        self.engine = engine
        self.candidates = candidates
        self.by = by
        self.num_examples = engine.num_examples - int(holdout * engine.num_examples)
        self._evaluations = evaluations
        self._digests = [candidate.digest() for candidate in candidates]
        self.progress: Callable[[int, int], None] = lambda alive, examples: None

    def fill(self, candidates: Sequence[int], stop: int) -> None:
        """Evaluates candidates on the examples that they miss up to number `stop`."""
        missing: dict[int, dict[str, int]] = {}  # known examples -> one candidate for each digest
        for i in candidates:
            if (known := self._evaluations.known(self._digests[i])) < stop:
                missing.setdefault(known, {})[self._digests[i]] = i
        for start, chosen in sorted(missing.items()):
            numbers = list(chosen.values())
            done = 0
            for e in self.engine.evaluate(_Some(self.candidates, numbers), start, stop):
                self._evaluations.append(self._digests[numbers[e.number]], e.start, e.losses, e.hits)
                done += len(e.losses)
                self.progress(len(candidates), start + done // len(numbers))

    def read(self, candidate: int, stop: int) -> np.ndarray:
        """What is raced by, lower is better: losses, or errors of 0 and 1."""
        losses, hits = self._evaluations.read(self._digests[candidate], stop)
        return losses if self.by == "loss" else 1.0 - hits

    def score(self, candidate: int, stop: int) -> Score:
        """Of a candidate on its first `stop` examples."""
        return Score.of(*self._evaluations.read(self._digests[candidate], stop))

    def race(self, confidence: float | None, tolerance: float, excluded: Collection[int] = ()) -> Ranking:
        """Races all candidates; `excluded` ones cannot win. Raises UserError if a setting is out of its range."""
        largest = LARGEST_LOSS if self.by == "loss" else 1.0
        outcome = race(self, len(self.candidates), self.num_examples, confidence, tolerance, excluded, largest)
        scores = [self.score(i, seen) for i, seen in enumerate(outcome.num_examples)]
        return Ranking(self.candidates, scores, self.by, outcome, self.fresh(outcome.winner))

    def fresh(self, candidate: int) -> Score | None:
        """A candidate's score on the examples held out; None if there are none."""
        if self.num_examples == self.engine.num_examples:
            return None
        parts = list(self.engine.evaluate([self.candidates[candidate]], self.num_examples))
        return Score.of(np.concatenate([e.losses for e in parts]), np.concatenate([e.hits for e in parts]))

    def first_look(self) -> int:
        """Examples that every candidate is evaluated on in a race."""
        return looks(self.num_examples)[0]


class _Some(Sequence[Architecture]):
    """Some of a sequence's items, by number, none of them held."""

    def __init__(self, items: Sequence[Architecture], numbers: Sequence[int]):
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: Any) -> Any:
        return self._items[self._numbers[i]]


class Evaluator:
    """Scores single architectures of one supernet on one set of examples, in full.

    Args:
        supernet: compiled with the loss to rank by.
        validation: batches of (inputs, integer labels).
        recalibration: gives every architecture normalisation statistics of its own; None: the supernet's.

    Raises:
        UserError: if the supernet is not compiled or there are no examples.
    """

    def __init__(self, supernet: Supernet, validation: tf.data.Dataset, recalibration: Recalibration | None = None):
        self._engine = Engine(supernet, validation, recalibration=recalibration)

    def __call__(self, architecture: Architecture) -> Score:
        """The architecture's mean loss and accuracy over all examples."""
        parts = list(self._engine.evaluate([architecture]))
        return Score.of(np.concatenate([e.losses for e in parts]), np.concatenate([e.hits for e in parts]))


def summary(scores: Iterable[Score]) -> dict[str, Any]:
    """Mean and deviation over candidates of accuracy and loss."""
    scores = list(scores)
    accuracy = np.array([s.accuracy for s in scores])
    loss = np.array([s.loss for s in scores])
    return {
        "mean_accuracy": float(accuracy.mean()),
        "std_accuracy": float(accuracy.std()),
        "mean_loss": float(loss.mean()),
        "std_loss": float(loss.std()),
    }
