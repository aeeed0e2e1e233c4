"""Comparisons of the winners of races with others on fresh examples, which no race has used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import softmax

from tfnas.common import statistics
from tfnas.config import Sample
from tfnas.ranking.contests import Contest
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.losses import ACCURACY
from tfnas.ranking.ranking import Field, Ranking
from tfnas.runs.sampled import BestOf, Comparison, Paired, Prediction
from tfnas.search_space.architecture import Architecture

_POINTS = 120  # of ranks, evenly on a logarithmic scale, at which the winners' accuracies are measured for the curve
_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 1_500, 2_000, 5_000, 10_000)  # numbers of candidates


class Fresh:
    """Measures on the examples that races leave.

    Args:
        engine: evaluates.
        settings: of the races.
    """

    def __init__(self, engine: Engine, settings: Sample):
        self._engine, self._settings = engine, settings

    def compared(self, found: Contest, other: Contest, evaluations: Evaluations) -> Comparison:
        """The best of equally many candidates of two kinds, on the same fresh examples (McNemar's test)."""
        settings, count = self._settings, min(found.num_able, other.num_able)
        chosen = [contest.first(count) for contest in (found, other)]
        fields = [Field(self._engine, evaluations, c.candidates, c.by, settings.holdout) for c in chosen]
        winners = [
            field.race(settings.racing or None, settings.tolerance, settings.finalists or None).best for field in fields
        ]
        correct, other_correct = self._correct(winners, fields[0].num_examples)
        paired = Paired(**statistics.Paired.of(correct, other_correct).record())
        accuracies = float(correct.mean()), float(other_correct.mean())
        return Comparison(count, len(correct), *accuracies, paired)

    def curve(self, contest: Contest, ranking: Ranking) -> tuple[BestOf, ...]:
        """Fresh accuracy of the best among fewer candidates, by the race's order (Table 6's question); () without any.

        The race's own examples would flatter the best of many by what made it the best. Of many candidates some ranks
        are measured, each for those around it too, so that a race is not followed by an evaluation of all.
        """
        if not ranking.fresh:
            return ()
        order = contest.able(ranking.order)
        ranks = np.unique(np.geomspace(1, len(order), _POINTS).round().astype(int)) - 1
        start = ranking.scores[order[0]].num_examples
        accuracy = self._correct([contest.candidates[order[rank]] for rank in ranks], start).mean(1)
        nearest = np.searchsorted((ranks[1:] + ranks[:-1]) / 2, np.arange(len(order)))
        counts = [count for count in _CURVE if count < len(order)] + [len(order)]
        return tuple(BestOf(**p) for p in statistics.best_of(np.arange(len(order)), accuracy[nearest], counts))

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

    def _correct(self, architectures: Sequence[Architecture], start: int) -> np.ndarray:
        """Which of the examples from number `start` on each has right: bool, shape (architectures, examples)."""
        correct = np.empty((len(architectures), self._engine.num_examples - start), bool)
        for e in self._engine.evaluate(architectures, start):
            found = e.figures[ACCURACY] == 1
            correct[e.number, e.start - start : e.start - start + len(found)] = found
        return correct
