"""Ranks many candidates: races them on the same held-out examples with their inherited weights."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import markup, terminal
from tfnas.common.errors import UserError
from tfnas.gating.supernet import Supernet, check_supernet
from tfnas.graph.costs import count
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.losses import ACCURACY, LOSS, TOP5_ACCURACY
from tfnas.ranking.racing import FINALISTS, Outcome, looks, race
from tfnas.ranking.recalibration import Recalibration
from tfnas.search_space.architecture import Architecture, check_architecture

_MAX_ROWS = 10  # candidates in a notebook's table


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one candidate on held-out examples.

    Attributes:
        loss: mean of the compiled loss (see `tfnas.ranking.losses`), in nats for a cross-entropy.
        accuracy: share of correct positions (examples, or for example their pixels), in [0, 1]; None unless exactly one
            output is a classification.
        num_examples: number of examples.
        top5_accuracy: share whose label is among the five most probable classes; None with at most 20 classes.
        metrics: other figures of `Criterion` by name: the metric that candidates are ranked by, and the accuracies of
            each output if several are classifications.
    """

    loss: float
    accuracy: float | None
    num_examples: int
    top5_accuracy: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, figures: Mapping[str, np.ndarray]) -> Score:
        """Averages the figures of `Criterion` over examples."""
        means = {name: float(np.mean(values, dtype=np.float64)) for name, values in figures.items()}
        loss, accuracy, top5 = means.pop(LOSS), means.pop(ACCURACY, None), means.pop(TOP5_ACCURACY, None)
        return cls(loss, accuracy, len(figures[LOSS]), top5, means)

    def figures(self) -> dict[str, Any]:
        """Returns the fields of `tfnas.runs.sampled.Score`."""
        accuracies = {ACCURACY: self.accuracy, TOP5_ACCURACY: self.top5_accuracy, **self.metrics}
        metrics = {name: value for name, value in accuracies.items() if value is not None}
        return {"loss": self.loss, "num_examples": self.num_examples, "metrics": metrics}

    def __getitem__(self, name: str) -> float:
        """Returns a figure by its name: 'loss', 'accuracy', or another metric's."""
        return self.loss if name == LOSS else self.figures()["metrics"][name]


@dataclasses.dataclass(frozen=True, repr=False)
class Ranking:
    """Ranked candidates.

    Attributes:
        candidates: the architectures, in the given order.
        scores: score of each candidate, on the examples that it was evaluated on before it was dropped.
        by: 'loss', 'accuracy', or the name of another compiled metric.
        outcome: outcome of the race: order, ties with the winner, evaluations made and saved.
        fresh: the winner's score on examples that the race did not use. Its score in the race is biased, because the
            best of many is partly the luckiest. None if no examples were held out.
        parameters_of: number of parameters of an architecture's network.
    """

    candidates: Sequence[Architecture]
    scores: Sequence[Score]
    by: str
    outcome: Outcome
    fresh: Score | None
    parameters_of: Callable[[Architecture], int] = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        best = self.scores[self.outcome.winner]
        figures = [f"loss {best.loss:.4g}"]
        named = {"accuracy": best.accuracy, "top-5": best.top5_accuracy}
        figures += [f"{name} {share:.1%}" for name, share in named.items() if share is not None]
        figures += [f"{name} {value:.4g}" for name, value in best.metrics.items()]
        return (
            f"<Ranking of {len(self.candidates):,} candidates by {self.by}: number {self.outcome.winner} is best, "
            f"{', '.join(figures)}; {len(self.outcome.ties):,} tie with it; "
            f"{self.outcome.saved:.0%} of the evaluations saved, {self.outcome.unproven:,} candidates dropped unproven>"
        )

    def _repr_html_(self) -> str:
        outcome, num = self.outcome, len(self.candidates)
        lead = (
            f"{num:,} candidates by {self.by}; {100 * outcome.saved:.0f} % of the evaluations saved; "
            f"{outcome.unproven:,} dropped for the limit on finalists alone."
        )
        if self.fresh:
            lead += (
                f" On {self.fresh.num_examples:,} fresh examples the winner has loss {self.fresh.loss:.3f}, accuracy "
                f"{_percent(self.fresh.accuracy)}."
            )
        has_top5 = self.scores[outcome.winner].top5_accuracy is not None
        place = dict.fromkeys(outcome.ties, "ties") | {outcome.winner: "wins"}
        rows = [
            (
                i == outcome.winner,
                [
                    f"{i}",
                    f"{self.scores[i].loss:.3f}",
                    _percent(self.scores[i].accuracy),
                    *([_percent(self.scores[i].top5_accuracy)] if has_top5 else []),
                    f"{self.scores[i].num_examples:,}",
                    f"{self.parameters_of(self.candidates[i]):,}",
                    f"{self.candidates[i].kept:,} of {self.candidates[i].total:,}",
                    place.get(i, "-"),
                ],
            )
            for i in self.order[:_MAX_ROWS]
        ]
        headings = (
            "candidate",
            "loss",
            "accuracy",
            *(["top-5"] if has_top5 else []),
            "examples",
            "parameters",
            "channels",
            "race",
        )
        accuracies = [100 * score.accuracy for score in self.scores if score.accuracy is not None]
        shown, label = (accuracies, "accuracy, %") if accuracies else ([s.loss for s in self.scores], "loss")
        finite = [value for value in shown if math.isfinite(value)]

        def histogram(axes: Any) -> None:
            axes.hist(finite, 40, color=markup.BLUE)
            axes.set(xlabel=label, ylabel="candidates")

        caption = (
            f"Candidates by {label.partition(',')[0]}, each on the examples that it was evaluated on before it was out "
            "of the race"
        )
        return (
            markup.paragraph(lead) + markup.table(headings, rows, "numbers") + markup.plot(histogram, (8, 2.8), caption)
        )

    @property
    def order(self) -> list[int]:
        """Indices of the candidates, best first."""
        return self.outcome.order

    @property
    def best(self) -> Architecture:
        """The winner."""
        return self.candidates[self.outcome.winner]


def _percent(share: float | None) -> str:
    return "-" if share is None else markup.percent(share)


def rank(
    supernet: Supernet,
    candidates: Sequence[Architecture],
    validation: Any,
    *,
    by: str = "loss",
    racing: float | None = 0.95,
    tolerance: float = 0.5,
    finalists: int | None = FINALISTS,
    holdout: float = 0.2,
    batch_size: int = 250,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    recalibration: Recalibration | None = None,
    largest_loss: float | None = None,
    goal: str | None = None,
) -> Ranking:
    """Races the candidates with the supernet's weights, and ranks them.

    Args:
        supernet: trained and compiled; not changed.
        candidates: architectures, for example from `posterior.sample`. One that drops every path to the output is
            evaluated on few examples and never wins.
        validation: held-out examples, never the test split: a tuple (inputs, labels) or (inputs, labels, sample
            weights) of arrays, or of structures of arrays as the model has them; or a `tf.data.Dataset` of such tuples,
            batched or not, a `keras.utils.PyDataset`, or a finite generator.
        by: 'loss', by far the more reliable; 'accuracy', as in the paper, if exactly one output is a classification; or
            the name of any compiled metric, of which the mean over examples counts, each by itself (see
            `tfnas.ranking.losses`); with several outputs that have it, 'OUTPUT_METRIC'.
        racing: confidence that the winner is within `tolerance` of the best, see `tfnas.ranking.racing`; None
            evaluates every candidate in full. With a loss without a known upper bound, candidates are dropped only for
            `finalists`, with a warning: see `largest_loss`.
        tolerance: tolerance in standard errors of a candidate's mean over the race's examples.
        finalists: number of candidates that are evaluated in full. The others leave the race earlier, more of them
            at every look, even where the bound cannot prove that they are worse; see `tfnas.ranking.racing.race`. None
            drops only those that are proven to be.
        holdout: share of the examples, drawn at random, that the race does not use, to measure the winner on.
        batch_size: number of examples computed at a time.
        seed: seed of the random order of the examples.
        strategy: strategy whose devices evaluate candidates in parallel.
        recalibration: recomputes normalization statistics for each candidate; call its `apply(ranking.best)` before
            cutting out the subnet. None keeps the supernet's statistics.
        largest_loss: upper bound of an example's loss, including its weights, on which the confidence of the race
            relies. None uses `tfnas.ranking.losses.Criterion.largest`, which knows only Keras's cross-entropies; for
            logits, it assumes that no class has a probability below 1e-7. For another metric, of its values.
        goal: 'max' or 'min', whether higher or lower is better, for a metric of which Keras does not say it.

    Raises:
        UserError: if no candidate reaches the output, there are no examples, the examples do not fit the model or its
            loss, a setting is out of range, or the supernet is not compiled.
    """
    check_supernet(supernet, "rank")
    for candidate in candidates:
        check_architecture(candidate, "rank")
    if not candidates:
        raise UserError("rank: expected at least one candidate. Received: none")
    engine = Engine(supernet, validation, batch_size, seed, strategy, recalibration, by)
    cut_off = [i for i, a in enumerate(candidates) if not supernet.graph.flow(a).reaches_outputs()]
    with tempfile.TemporaryDirectory() as folder, Evaluations(pathlib.Path(folder) / "rank.jsonl", "rank") as kept:
        field = Field(engine, kept, candidates, by, holdout, goal)
        return field.race(racing, tolerance, finalists, cut_off, largest_loss)


class Field:
    """The candidates of a race, evaluated by an engine and logged; the `Values` of `tfnas.ranking.racing`.

    Args:
        engine: engine with its examples in random order; the race uses the first ones.
        evaluations: log of evaluations, which are not repeated.
        candidates: architectures; may be created on every access.
        by: 'loss', or the name of a metric that the engine computes.
        holdout: share of the engine's examples, the last ones, that the race does not use.
        goal: 'max' or 'min', whether higher or lower is better; None: as Keras says it of the metric.

    Attributes:
        num_examples: number of examples of the race.
        progress: called with (candidates in the race, examples evaluated so far) when these change.

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
        goal: str | None = None,
    ):
        if by not in engine.names:
            needs = "a compiled accuracy or a cross-entropy" if by == ACCURACY else "a compiled metric of that name"
            raise UserError(
                f"rank: by={by!r} needs exactly one output with {needs}. Received: a supernet with "
                f"{', '.join(engine.names)}; rank by='loss', or compile with metrics=[...]"
            )
        if goal not in (None, "max", "min"):
            raise UserError(f"rank: goal must be 'max' or 'min', or None. Received: {goal!r}")
        goal = goal or {"up": "max", "down": "min"}.get(engine.directions.get(by, "down" if by == LOSS else ""))
        if goal is None:
            raise UserError(f"rank: by={by!r} needs goal='max' or 'min', as Keras does not say it of this metric")
        self._highest = goal == "max"
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
        """Evaluates candidates on the examples that they lack up to `stop`."""
        missing: dict[int, dict[str, int]] = {}  # known examples -> one candidate for each digest
        for i in candidates:
            if (known := self._evaluations.known(self._digests[i])) < stop:
                missing.setdefault(known, {})[self._digests[i]] = i
        for start, chosen in sorted(missing.items()):
            numbers = list(chosen.values())
            done = 0
            for e in self.engine.evaluate(_Subset(self.candidates, numbers), start, stop):
                self._evaluations.append(self._digests[numbers[e.number]], e.start, e.figures)
                done += len(e.figures[LOSS])
                self.progress(len(candidates), start + done // len(numbers))

    def read(self, candidate: int, stop: int) -> np.ndarray:
        """Returns the values of the race, lower is better: losses, or errors; an accuracy's are in [0, 1]."""
        values = self._evaluations.read(self._digests[candidate], stop)[self.by]
        if self.by == ACCURACY:
            return 1.0 - values
        return -values if self._highest else values

    def score(self, candidate: int, stop: int) -> Score:
        """Scores a candidate on its first `stop` examples."""
        return Score.of(self._evaluations.read(self._digests[candidate], stop))

    def race(
        self,
        confidence: float | None,
        tolerance: float,
        finalists: int | None = None,
        excluded: Collection[int] = (),
        largest_loss: float | None = None,
    ) -> Ranking:
        """Races all candidates; `excluded` ones cannot win.

        If the loss has no known bound, no candidate is proven to be worse, because the leader may still have a large
        loss ahead.

        Args:
            confidence: as for `tfnas.ranking.racing.race`; None evaluates every candidate in full.
            tolerance, finalists: likewise.
            excluded: indices of candidates.
            largest_loss: upper bound of the loss of an example; None uses the engine's.

        Raises:
            UserError: if a setting is out of its range.
        """
        largest = {LOSS: self.engine.largest, ACCURACY: 1.0}.get(self.by)
        if largest_loss is not None and self.by != ACCURACY:
            largest = largest_loss
        finalists = None if confidence is None else finalists
        if largest is None:
            if confidence is not None:
                what = "the compiled loss" if self.by == LOSS else f"'{self.by}'"
                terminal.warn(
                    f"rank: no candidate is proven to be worse than another, because {what} has no known "
                    "upper bound; tfnas.rank can be given one as largest_loss"
                )
            confidence, largest = None, 0.0
        num_candidates = len(self.candidates)
        outcome = race(self, num_candidates, self.num_examples, confidence, tolerance, finalists, excluded, largest)
        scores = [self.score(i, seen) for i, seen in enumerate(outcome.num_examples)]
        parameters_of = functools.partial(count, self.engine.graph, "parameters")
        return Ranking(self.candidates, scores, self.by, outcome, self.fresh(outcome.winner), parameters_of)

    def fresh(self, candidate: int) -> Score | None:
        """Scores a candidate on the held-out examples; None if there are none."""
        if self.num_examples == self.engine.num_examples:
            return None
        return _score(self.engine, self.candidates[candidate], self.num_examples)

    def first_look(self) -> int:
        """Number of examples that every candidate is evaluated on in a race."""
        return looks(self.num_examples)[0]


class _Subset(Sequence[Architecture]):
    """A view of some items of a sequence, by index."""

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
        validation: as for `rank`.
        recalibration: recomputes normalization statistics for each architecture; None keeps the supernet's.
        metric: name of a compiled metric to compute besides losses and accuracies.

    Raises:
        UserError: if the supernet is not compiled or there are no examples.
    """

    def __init__(
        self, supernet: Supernet, validation: Any, recalibration: Recalibration | None = None, metric: str = LOSS
    ):
        self._engine = Engine(supernet, validation, recalibration=recalibration, metric=metric)

    def __call__(self, architecture: Architecture) -> Score:
        """Returns the architecture's mean loss and metrics over all examples."""
        return _score(self._engine, architecture, 0)


def _score(engine: Engine, architecture: Architecture, start: int) -> Score:
    """Scores an architecture on the examples from `start` on."""
    parts = [e.figures for e in engine.evaluate([architecture], start)]
    return Score.of(keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts))
