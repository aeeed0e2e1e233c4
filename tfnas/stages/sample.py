"""Sample: draw candidates from the posterior and at random, race them on the validation split, keep the winner.

With budgets, candidates are drawn and raced again within each of them, under the same weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.progress

from tfnas.common import digests, terminal
from tfnas.common.errors import UserError, add_filename, unwrap_user_errors
from tfnas.common.resources import Resource
from tfnas.config import Config
from tfnas.cutting import latency_bound
from tfnas.data import pipeline
from tfnas.gating.supernet import Supernet
from tfnas.ranking import ranking as ranking_lib
from tfnas.ranking.contests import Contest, Contests
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.fresh import Fresh, summary
from tfnas.ranking.ranking import Field, Ranking
from tfnas.reporting import pareto_front
from tfnas.runs import stage_table, workdir
from tfnas.runs.sampled import (
    Candidate,
    Comparison,
    Expected,
    Front,
    FrontPoint,
    Group,
    Kind,
    LatencyBound,
    Race,
    Ranked,
    Score,
)
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior, read_posterior
from tfnas.tasks.facts import Metric
from tfnas.training import building, distribution, networks

SHARDS = "shards of sample"  # that are evaluated side by side, perhaps in one working directory


@dataclasses.dataclass(frozen=True)
class Shard:
    """One part of the candidates: those whose number leaves `index - 1` when divided by `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses 'i/n'. Raises UserError unless 1 <= i <= n."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard: i/n with 1 <= i <= n expected, such as 1/3. Received: {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def file(self) -> str:
        """Path of its evaluations."""
        return f"{stage_table.SHARDS}/{self.index}-of-{self.count}.jsonl"


def run(config: Config, path: str | os.PathLike[str], shard: str = "") -> None:
    """Ranks the candidates of the search in `path`; what was evaluated there before is not evaluated again.

    Args:
        config: settings.
        path: the working directory.
        shard: 'i/n' evaluates part i of n, into sample/shards/ there, and ends. Once all parts' files are in one
            working directory, a run without a shard ranks all candidates, and evaluates what may still be missing.

    Raises:
        UserError: for bad settings or files, or if search has not run.
    """
    if not shard:
        distribution.run_stage("sample", config, path, _sample)
        return
    config = config.check()
    work = workdir.Workdir(path)
    part = Shard.parse(shard)
    with work.hold(SHARDS), unwrap_user_errors():
        work.check_upstream("sample", config)
        _Sampling(config, work).evaluate(part)


def measure(config: Config, path: str | os.PathLike[str], number: int) -> Score:
    """The score of a posterior's candidate on the fresh examples, as the winner's; on the race's if none are kept.

    Args:
        config: of the run in `path`, after its sample.
        path: the working directory.
        number: of the candidate.
    """
    with unwrap_user_errors():
        return _Sampling(config.check(), workdir.Workdir(path)).measure(number)


def _sample(config: Config, work: workdir.Workdir) -> Iterable[str]:
    sampling = _Sampling(config, work)
    cluster = distribution.cluster()
    if cluster.count > 1:
        sampling.evaluate(Shard(cluster.index + 1, cluster.count))
        distribution.wait_for_all(config.distribution)
    return sampling.rank() if cluster.is_chief else ()


class _Sampling:
    """Shared by the complete stage and its shards: the same candidates, evaluated by the same engine."""

    def __init__(self, config: Config, work: workdir.Workdir):
        self.config = config
        self.settings = config.sample
        self.work = work
        networks.set_seed(config.seed)
        splits = networks.load_data(config, work)
        self.facts = config.facts
        self.supernet: Supernet = building.load_supernet(config, work)
        self.resource = Resource(self.settings.resource)
        posterior = read_posterior((work.path / stage_table.POSTERIOR).read_bytes())
        self._latency: LatencyBound | None = None
        if isinstance(posterior, UnitPosterior):
            self.posterior: Posterior | UnitPosterior = self._within_bounds(posterior)
        else:
            self.posterior = posterior
        self.contests = Contests(config, self.supernet, self.posterior)
        batches = pipeline.evaluation_batches(splits.validation, config.data, self.settings.batch_size)
        recalibration = networks.recalibration(config, splits, self.supernet)
        self.engine = Engine(
            self.supernet,
            batches,
            self.settings.batch_size,
            config.seed,
            distribution.ranking_strategy(config.distribution),
            recalibration,
            self.facts.example.name,
        )

    def evaluate(self, shard: Shard) -> None:
        """Evaluates one part of the candidates, each kind raced by itself."""
        with add_filename(self.work.path / shard.file), self._evaluations(shard.file) as evaluations:
            for contest in self._contests(shard):
                if contest.num_able:
                    self._race(contest, evaluations)
        print(f"sample    shard {shard.index} of {shard.count}: {self.work.path / shard.file}")

    def measure(self, number: int) -> Score:
        """A candidate's score on the fresh examples; on the race's if none are kept from it."""
        contest = next(self._contests(Shard(1, 1)))
        with tempfile.TemporaryDirectory() as folder:
            with Evaluations(pathlib.Path(folder) / "one.jsonl", "one") as evaluations:
                field = self._field(contest, evaluations, [contest.candidates[number]])
                score = field.fresh(0)
                if score is None:
                    field.fill([0], field.num_examples)
                    score = field.score(0, field.num_examples)
        return Score(**score.figures())

    def rank(self) -> Iterable[str]:
        """Ranks all candidates and writes what was found; returns the files written besides the stage's own."""
        shards = sorted((self.work.path / stage_table.SHARDS).glob("*.jsonl"))
        groups: dict[Kind, Group] = {}
        points: list[FrontPoint] = []
        candidates: list[Candidate] = []
        comparisons: dict[Kind, Comparison] = {}
        kept = stage_table.EVALUATIONS
        fresh = Fresh(self.engine, self.config)
        with add_filename(self.work.path / kept), self._evaluations(kept, shards) as evaluations:
            if evaluations.count:
                print(f"sample    resumes: {evaluations.count:,} evaluations found")
            for contest in self._contests(Shard(1, 1)):
                group, records, ranking = self._ranked(contest, evaluations, fresh)
                candidates += records
                if contest.share is None:
                    groups[contest.kind] = group
                if contest.posterior is not None and group.race:
                    points.append(_point(contest.posterior, contest.share, self.resource, group, group.race))
                if contest.kind == Kind.POSTERIOR and contest.share is None and ranking:
                    found, winner, predictive = contest, ranking.best, fresh.predictive(contest, ranking)
                elif contest.posterior is None and ranking and ranking.fresh:
                    comparisons[contest.kind] = fresh.compared(found, contest, evaluations)
        self.work.write_lines(stage_table.CANDIDATES, candidates)
        bounds = self.posterior.bounds if isinstance(self.posterior, UnitPosterior) else {}
        widths, latency = self._widths(winner), self._latency
        ranked = Ranked(self.settings.rank_by, widths, groups, comparisons, predictive, bounds, latency)
        self.work.write_json(stage_table.RANKING, ranked)
        text = winner.to_json()
        self.work.write(stage_table.ARCHITECTURE, lambda file: file.write_text(text))
        if not self.settings.budgets:
            return ()
        points.sort(key=lambda point: (point.best.parameters, point.best.multiply_adds))
        pareto_front.write(self.work, Front(self.resource, tuple(points)), self.facts.example)
        return (stage_table.FRONT, stage_table.FRONT_PLOT)

    def _within_bounds(self, posterior: UnitPosterior) -> UnitPosterior:
        """The posterior with the bounds that its candidates obey, that on the latency as measured."""
        settings = self.settings
        bounds = posterior.form.absolute(settings.bounds) if settings.bounds else dict(posterior.bounds)
        posterior.form.check_reach(bounds, settings.channel_multiple, settings.bounds)
        posterior = dataclasses.replace(posterior, bounds=bounds, channel_multiple=settings.channel_multiple)
        if "latency" not in bounds:
            return posterior
        asked = bounds["latency"] / posterior.form.full("latency")
        with distribution.chief_first(self.config.distribution):
            if not (self.work.path / stage_table.LATENCY_BOUND).exists():
                device = self.config.search.latency_device
                graph: Any = self.supernet.graph
                found = latency_bound.meet_latency(posterior, graph, asked, device)
                record = LatencyBound(found.asked, found.predicted, found.measured)
                self.work.write_sealed(stage_table.LATENCY_BOUND, record, replace=False)
        self._latency = latency = self.work.read_sealed(stage_table.LATENCY_BOUND, LatencyBound)
        print(
            f"sample    latency: {latency.measured:.1%} measured for the most probable network, at most "
            f"{latency.asked:.1%} asked for, {latency.predicted:.1%} predicted from its layers"
        )
        seconds = latency.predicted * posterior.form.full("latency")
        return dataclasses.replace(posterior, bounds={**bounds, "latency": seconds})

    def _widths(self, winner: Architecture) -> dict[str, int | None]:
        """Number of channels of each mask in the network found; None for a layer or a group that is gone."""
        if self.supernet.bounds:
            return {name: int(mask.sum()) or None for name, mask in winner.items()}
        return self.supernet.graph.flow(winner).reads_of(winner)

    def _contests(self, shard: Shard) -> Iterator[Contest]:
        return self.contests.of(range(shard.index - 1, self.settings.num_candidates, shard.count))

    def _ranked(
        self, contest: Contest, evaluations: Evaluations, fresh: Fresh
    ) -> tuple[Group, list[Candidate], Ranking | None]:
        """Returns the result of a contest, every candidate's record, and the ranking if there is a winner."""
        if not contest.num_able and contest.posterior is not None:
            raise self.contests.cut_off(contest)
        ranking = self._race(contest, evaluations) if contest.num_able else None
        field = self._field(contest, evaluations)
        every = range(len(contest.candidates))
        # In full, as the winner is, whatever became of them in the race: what the others are like.
        first = contest.drawn[: self.settings.num_tested]
        field.fill(first, field.num_examples)
        if ranking:
            scores = ranking.scores
        else:
            field.fill(every, field.first_look())
            scores = [field.score(i, field.first_look()) for i in every]
        records = [
            Candidate(
                kind=contest.kind,
                share=contest.share,
                number=number,
                **vars(facts),
                **score.figures(),
            )
            for number, facts, score in zip(contest.numbers, contest.facts, scores, strict=True)
        ]
        group = Group(
            count=len(records),
            able=contest.num_able,
            distinct=contest.distinct,
            left_out=contest.shortfall,
            num_measured=len(first),
            num_examples=field.num_examples,
            **summary([field.score(i, field.num_examples) for i in first], self.facts.example.name),
            mean_parameters=float(np.mean([records[i].parameters for i in contest.drawn])),
            mean_multiply_adds=float(np.mean([records[i].multiply_adds for i in contest.drawn])),
            first=tuple(_as_json(contest.candidates[i]) for i in first),
            race=self._won(contest, ranking, records, fresh) if ranking else None,
        )
        return group, records, ranking

    def _won(self, contest: Contest, ranking: Ranking, records: Sequence[Candidate], fresh: Fresh) -> Race:
        """Returns the outcome of a race, and prints it."""
        outcome, leaders = ranking.outcome, []
        if contest.kind == Kind.POSTERIOR:
            leaders = contest.able(ranking.order)[: self.settings.num_tested]
        _print_outcome(contest, ranking, self.facts.example)
        return Race(
            best=records[outcome.winner],
            architecture=_as_json(ranking.best),
            fresh=Score(**ranking.fresh.figures()) if ranking.fresh else None,
            ties=tuple(contest.numbers[i] for i in outcome.ties),
            evaluations=outcome.evaluations,
            saved=outcome.saved,
            best_of=fresh.curve(contest, ranking),
            leaders=tuple(_as_json(contest.candidates[i]) for i in leaders),
        )

    def _race(self, contest: Contest, evaluations: Evaluations) -> Ranking:
        columns = (
            rich.progress.TextColumn("sample    {task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
        )
        with rich.progress.Progress(*columns, console=terminal.console) as progress:
            field = self._field(contest, evaluations)
            total = len(contest.candidates) * field.num_examples
            task = progress.add_task(contest.title, total=total, figures="")

            def update(alive: int, examples: int) -> None:
                # A candidate that is out of the race is done.
                done = total - alive * (field.num_examples - examples)
                figures = f"{alive:,} candidates on {examples:,} examples"
                progress.update(task, completed=done, figures=figures)

            field.progress = update
            settings = self.settings
            return field.race(settings.racing or None, settings.tolerance, settings.finalists or None, contest.excluded)

    def _field(
        self, contest: Contest, evaluations: Evaluations, candidates: Sequence[Architecture] | None = None
    ) -> Field:
        goal = "min" if contest.by == "loss" else self.facts.example.goal
        candidates = contest.candidates if candidates is None else candidates
        return Field(self.engine, evaluations, candidates, contest.by, self.settings.holdout, goal)

    def _evaluations(self, name: str, others: Sequence[pathlib.Path] = ()) -> Evaluations:
        """The store, whose key is all that an evaluation depends on: neither how many are ranked, nor how."""
        material = {
            "supernet": digests.of_file(self.work.path / stage_table.SUPERNET),
            **stage_table.settings(self.config, ("data", "seed", "task", "loss", "metric")),
            "batch_size": self.settings.batch_size,
            "recalibrate": self.settings.recalibrate,
        }
        key = hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()
        return Evaluations(self.work.file(name), key, others)


def _print_outcome(contest: Contest, ranking: Ranking, metric: Metric) -> None:
    def shown(score: ranking_lib.Score) -> str:
        if contest.by == "loss":
            return f"{score.loss:.3g}"
        top5 = "" if score.top5_accuracy is None else f" (top-5 {score.top5_accuracy:.1%})"
        return f"{score[contest.by]:.1%}{top5}" if metric.share else f"{score[contest.by]:.4g}"

    outcome, fresh = ranking.outcome, ranking.fresh
    unproven = f"; {outcome.unproven:,} dropped without proof (sample.finalists)" if outcome.unproven else ""
    again = f", {shown(fresh)} on {fresh.num_examples:,} fresh examples" if fresh else ""
    print(
        f"sample    {contest.title}: best of {contest.num_able:,} has {contest.by} "
        f"{shown(ranking.scores[outcome.winner])}{again}; {len(outcome.ties):,} tie; "
        f"{1 - outcome.saved:.0%} evaluated{unproven}"
    )
    if reason := contest.shortfall:
        terminal.warn(f"sample    {contest.title}: {reason}")


def _as_json(architecture: Architecture) -> dict[str, Any]:
    return json.loads(architecture.to_json())


def _point(
    posterior: Posterior | UnitPosterior, share: float | None, resource: Resource, group: Group, race: Race
) -> FrontPoint:
    expected = None
    if isinstance(posterior, Posterior):
        mean, deviation = posterior.expected_cost(resource), posterior.cost_deviation(resource)
        expected = Expected(mean, deviation, posterior.total_cost(resource))
    return FrontPoint(share, expected, group.mean_metric, race.best, race.fresh, race.architecture)
