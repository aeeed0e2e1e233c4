"""A trial: search and sample in a folder of their own, and what they found there within the budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import keras

from tfnas.common import digests, schema
from tfnas.common.errors import SearchFailedError
from tfnas.config import Config
from tfnas.runs import stage_table
from tfnas.runs.sampled import Candidate, Kind, Ranked, Score
from tfnas.runs.workdir import Workdir
from tfnas.stages import sample, search
from tfnas.tasks.facts import Metric

RUNNING, COMPLETE, TOO_LARGE, FAILED = "running", "complete", "over budget", "failed"
_FAILURE = "failure.json"  # in a trial's folder
_WITHIN = "within_budget.json"  # in a trial's folder


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Why a search led nowhere."""

    message: str


@dataclasses.dataclass(frozen=True)
class _Within:
    """The score of the best candidate within the budget: its number, and the digest of the ranking that it is from."""

    number: int
    ranking: str
    score: Score


@dataclasses.dataclass(frozen=True)
class Found:
    """The best candidate of a trial.

    Attributes:
        parameters: of the network.
        loss: on `num_examples` examples.
        metric: the task's, of an example, on the same.
        num_examples: how many there were.
        fresh: whether the race has not used them.
        mean_loss: of the posterior's first candidates.
        mean_metric: likewise.
        mean_parameters: of all of them.
    """

    parameters: int
    loss: float
    metric: float
    num_examples: int
    fresh: bool
    mean_loss: float
    mean_metric: float
    mean_parameters: float


@dataclasses.dataclass(frozen=True)
class Trial:
    """One search: what it was given, and the best of its candidates.

    Attributes:
        folder: its working directory, from `WORKDIR/tune` on.
        values: of the settings that are tuned.
        epochs: of the search; fewer than `search.epochs` in Hyperband's first rounds.
        state: 'running'; 'complete'; 'over budget': no candidate is within `tune.budget`, and `found` is the best that
            is not; or 'failed': the search led nowhere.
        message: why, unless it is complete.
        found: None if it failed.
    """

    folder: str
    values: Mapping[str, float]
    epochs: int
    state: str
    message: str = ""
    found: Found | None = None

    def score(self, objective: str, metric: Metric) -> float:
        """The objective, in [0, 1]: the metric if it is a share, or exp(-loss), which is in the losses' order.

        It is 0 if the trial is not complete. Of metrics that are not shares it is the logistic function, in their
        order.
        Bounded, because KerasTuner's Gaussian process takes an infinite loss for 0, which would be the best of all.
        """
        if self.state != COMPLETE or self.found is None:
            return 0.0
        if objective == metric.name:
            better = -float(metric.errors(self.found.metric))
            return self.found.metric if metric.share else 1 / (1 + math.exp(-min(max(better, -500.0), 500.0)))
        return 0.0 if math.isnan(self.found.loss) else math.exp(-max(0.0, self.found.loss))


def run(config: Config, work: Workdir, trial: Trial, full_parameters: int) -> Trial:
    """Runs a trial unless its folder has it already.

    Args:
        config: of the trial.
        work: its folder.
        trial: what is known of it before.
        full_parameters: of the full network, which the budget is a share of.

    Returns:
        The trial with its state, and what it found.

    Raises:
        UserError: for what is not a matter of the trial's values.
    """
    failure = work.path / _FAILURE
    if failure.exists() and config.search.guard == "stop":  # with another guard, the search may continue
        record = schema.read(failure.read_bytes(), _Failure, f"{failure}: altered: delete it")
        return dataclasses.replace(trial, state=FAILED, message=record.message)
    if work.is_current("search", config) and work.is_current("sample", config):
        print("tune      up to date")
    try:
        for name, stage in (("search", search), ("sample", sample)):
            if not work.is_current(name, config):
                keras.backend.clear_session()  # of earlier trials: their memory, and their layers' names
                stage.run(config, work.path)
    except SearchFailedError as error:
        if not work.is_current("search", config):  # else it depends on sample's settings too, and takes little time
            work.write_json(_FAILURE, _Failure(str(error)))
        return dataclasses.replace(trial, state=FAILED, message=str(error))
    work.remove(failure)
    ranked = work.read_json(stage_table.RANKING, "tune", Ranked)
    candidates = work.read_lines(stage_table.CANDIDATES, "tune", Candidate)
    able = [c for c in candidates if c.kind == Kind.POSTERIOR and c.share is None and c.connected]
    best, message = _best(config, ranked.race.best, able, full_parameters)
    score: Score = ranked.race.fresh or best
    if best is not ranked.race.best:
        score = _measured(config, work, best.number)
    found = Found(
        parameters=best.parameters,
        loss=score.loss,
        metric=config.facts.example.of(score.metrics),
        num_examples=score.num_examples,
        fresh=ranked.race.fresh is not None,
        mean_loss=ranked.posterior.mean_loss,
        mean_metric=ranked.posterior.mean_metric,
        mean_parameters=ranked.posterior.mean_parameters,
    )
    return dataclasses.replace(trial, state=TOO_LARGE if message else COMPLETE, message=message, found=found)


def _best(config: Config, winner: Candidate, able: Sequence[Candidate], full_parameters: int) -> tuple[Candidate, str]:
    """The best that may win and is within the budget, and ''; or the winner, and why none is within the budget."""
    most = config.tune.budget * full_parameters
    if winner.parameters <= most:
        return winner, ""
    within = [candidate for candidate in able if candidate.parameters <= most]
    if not within:
        smallest = min(candidate.parameters for candidate in able) / full_parameters
        return winner, (
            f"no candidate has at most {100 * config.tune.budget:g} % of the full network's parameters, the smallest "
            f"has {100 * smallest:.1f} %"
        )

    def rank(candidate: Candidate) -> tuple[float, float]:
        metric = config.facts.example
        by_loss = config.sample.rank_by == "loss"
        value = candidate.loss if by_loss else float(metric.errors(metric.of(candidate.metrics)))
        # First those that the race kept longest: a candidate that leaves it is worse than some that stay.
        return -candidate.num_examples, math.inf if math.isnan(value) else value

    return min(within, key=rank), ""


def _measured(config: Config, work: Workdir, number: int) -> Score:
    """The score of a candidate that did not win, on the examples that winners are scored on.

    What it has from its race is neither on the fresh examples, nor on as many.
    """
    ranking, file = digests.of_file(work.path / stage_table.RANKING), work.path / _WITHIN
    if file.exists():
        kept = schema.read(file.read_bytes(), _Within, f"{file}: altered: delete it")
        if (kept.number, kept.ranking) == (number, ranking):
            return kept.score
    keras.backend.clear_session()
    score = sample.measure(config, work.path, number)
    work.write_json(_WITHIN, _Within(number, ranking, score))
    return score
