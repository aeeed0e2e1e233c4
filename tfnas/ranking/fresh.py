"""Comparisons of the winners of races with others on fresh examples, which no race has used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from tfnas.common import statistics
from tfnas.config import Config
from tfnas.ranking.contests import Contest
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.losses import ACCURACY, LOSS
from tfnas.ranking.ranking import Field, Ranking, Score
from tfnas.runs.sampled import BestOf, Comparison, Paired, Prediction
from tfnas.search_space.architecture import Architecture

_POINTS = 120  # of ranks, evenly on a logarithmic scale, at which the winners' metrics are measured for the curve
_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 1_500, 2_000, 5_000, 10_000)  # numbers of candidates


class Fresh:
    """Measures on the examples that races leave.

    Args:
        engine: evaluates, and computes the task's metric of an example.
        config: of the run.
    """

    def __init__(self, engine: Engine, config: Config):
        self._engine, self._settings = engine, config.sample
        self._metric, self._exact = config.facts.example, config.facts.exact

    def compared(self, found: Contest, other: Contest, evaluations: Evaluations) -> Comparison:
        """The best of equally many candidates of two kinds, on the same fresh examples.

        What the test compares is right or wrong, or where there is no such thing, losses.
        """
        settings, count = self._settings, min(found.num_able, other.num_able)
        chosen = [contest.first(count) for contest in (found, other)]
        fields = [
            Field(
                self._engine,
                evaluations,
                c.candidates,
                c.by,
                settings.holdout,
                "min" if c.by == LOSS else self._metric.goal,
            )
            for c in chosen
        ]
        winners = [
            field.race(settings.racing or None, settings.tolerance, settings.finalists or None).best for field in fields
        ]
        figures = self._figures(winners, fields[0].num_examples)
        values, others = figures[self._metric.name]
        errors = self._metric.errors(figures[self._metric.name]) if self._exact else figures[LOSS]
        paired = Paired(**statistics.Paired.of(*errors).record())
        mean, other_mean = (float(np.mean(part, dtype=np.float64)) for part in (values, others))
        return Comparison(count, len(values), mean, other_mean, paired)

    def curve(self, contest: Contest, ranking: Ranking) -> tuple[BestOf, ...]:
        """Fresh metric of the best among fewer candidates, by the race's order (Table 6's question); () without any.

        The race's own examples would flatter the best of many by what made it the best. Of many candidates some ranks
        are measured, each for those around it too, so that a race is not followed by an evaluation of all.
        """
        if not ranking.fresh:
            return ()
        order = contest.able(ranking.order)
        ranks = np.unique(np.geomspace(1, len(order), _POINTS).round().astype(int)) - 1
        start = ranking.scores[order[0]].num_examples
        figures = self._figures([contest.candidates[order[rank]] for rank in ranks], start)
        means = figures[self._metric.name].mean(1, dtype=np.float64)
        if not np.isfinite(means).all():
            return ()
        nearest = np.searchsorted((ranks[1:] + ranks[:-1]) / 2, np.arange(len(order)))
        counts = [count for count in _CURVE if count < len(order)] + [len(order)]
        return tuple(BestOf(**p) for p in statistics.best_of(np.arange(len(order)), means[nearest], counts))

    def predictive(self, contest: Contest, ranking: Ranking) -> dict[str, Prediction]:
        """The found network, an ensemble of the best and the posterior's average, on examples the race did not use."""
        size = self._settings.ensemble
        if not size:
            return {}
        best, samples = contest.able(ranking.order)[:size], contest.drawn[:size]
        start = ranking.scores[ranking.order[0]].num_examples if ranking.fresh else 0
        labels = self._engine.labels(start)

        def average(numbers: Iterable[int]) -> Prediction:
            outputs = [softmax(self._engine.outputs(ranking.candidates[i], start), axis=-1) for i in numbers]
            return Prediction(**statistics.predictive(np.mean(outputs, axis=0), labels))

        return {
            "found network": average(best[:1]),
            f"ensemble of the {len(best):,} best": average(best),
            f"average of {len(samples):,} posterior samples": average(samples),
        }

    def _figures(self, architectures: Sequence[Architecture], start: int) -> dict[str, np.ndarray]:
        """Losses and metrics by name of the examples from number `start` on: float32, (architectures, examples)."""
        shape = (len(architectures), self._engine.num_examples - start)
        found = {name: np.empty(shape, np.float32) for name in (LOSS, self._metric.name)}
        for e in self._engine.evaluate(architectures, start):
            part = slice(e.start - start, e.start - start + len(e.figures[LOSS]))
            for name, values in found.items():
                values[e.number, part] = e.figures[name]
        return found


def summary(scores: Iterable[Score], metric: str = ACCURACY) -> dict[str, Any]:
    """Returns mean and standard deviation of a metric and of the loss over candidates."""
    scores = list(scores)
    values = np.array([s[metric] for s in scores], np.float64)
    loss = np.array([s.loss for s in scores])
    return {
        "mean_metric": float(values.mean()),
        "std_metric": float(values.std()),
        "mean_loss": float(loss.mean()),
        "std_loss": float(loss.std()),
    }
