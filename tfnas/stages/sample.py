"""Sample: draw candidates from the posterior and at random, race them on the validation split, keep the winner.

With budgets, the posterior is tilted to each of them and sampled and raced again, under the same weights.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.progress
from scipy.special import softmax

from tfnas.common import digests, schema, statistics, terminal
from tfnas.common.errors import SearchFailedError, UserError, add_filename, unwrap_user_errors
from tfnas.config import Config
from tfnas.cutting import latencies
from tfnas.data import pipeline
from tfnas.gating import saving
from tfnas.gating.supernet import Supernet, Target
from tfnas.graph import costs
from tfnas.ranking import reference_architectures
from tfnas.ranking.candidates import NO_PATH, Sized, shortfall
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.losses import ACCURACY
from tfnas.ranking.ranking import Field, Ranking, Score, summary
from tfnas.reporting import pareto_front
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Architecture, Packed
from tfnas.search_space.posterior import PRICES, Posterior
from tfnas.training import distribution, networks

POSTERIOR = "posterior"
SHARDS = "shards of sample"  # that are evaluated side by side, perhaps in one working directory
KINDS = (POSTERIOR, reference_architectures.EVEN, reference_architectures.ALLOCATED)
_POINTS = 120  # of ranks, evenly on a logarithmic scale, at which the winners' accuracies are measured for the curve
_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 1_500, 2_000, 5_000, 10_000)  # numbers of candidates


@dataclasses.dataclass(frozen=True)
class Shard:
    """One part of the candidates: those whose number leaves `index - 1` when divided by `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From 'i/n'. Raises UserError for anything but two numbers, 1 <= i <= n."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard: i/n with 1 <= i <= n expected, such as 1/3. Received: {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def file(self) -> str:
        """Where its evaluations are kept."""
        return f"{stage_table.SHARDS}/{self.index}-of-{self.count}.jsonl"


@dataclasses.dataclass(frozen=True)
class _Contest:
    """Candidates that race against each other.

    Attributes:
        kind: what they are called.
        posterior: that they were drawn from; None for random ones.
        share: of the resource that it was tilted to for `sample.budgets`; None for the others.
        numbers: the candidates' numbers among all of their kind.
        candidates: the architectures.
        facts: for each its digest and costs, and whether it reaches the output.
        by: what they are ranked by.
        size: of the one that wins; None for any.
    """

    kind: str
    posterior: Posterior | None
    share: float | None
    numbers: Sequence[int]
    candidates: Sequence[Architecture]
    facts: Sequence[dict[str, Any]]
    by: str
    size: Sized | None = None

    @property
    def misfits(self) -> list[str | None]:
        """Of each, why it may not win: of another size, or without a path to the output; None if it may."""
        return [
            (self.size.misfit(facts[self.size.resource]) if self.size else None) if facts["connected"] else NO_PATH
            for facts in self.facts
        ]

    @property
    def excluded(self) -> list[int]:
        """Those that may not win."""
        return [i for i, misfit in enumerate(self.misfits) if misfit]

    def able(self, order: Sequence[int]) -> list[int]:
        """Those of `order` that may win."""
        misfits = self.misfits
        return [i for i in order if not misfits[i]]

    @property
    def drawn(self) -> list[int]:
        """Those that were drawn: all but the most probable network, which is the first of a size; if it is all, it."""
        return [i for i, number in enumerate(self.numbers) if number or not self.size] or [0]

    @property
    def distinct(self) -> int:
        """How many different ones there are among those that may win."""
        return len({self.facts[i]["digest"] for i in self.able(range(len(self.facts)))})

    def first(self, count: int) -> _Contest:
        """The first `count` of those that may win, as a contest of their own."""
        chosen = self.able(range(len(self.facts)))[:count]
        return dataclasses.replace(
            self,
            numbers=[self.numbers[i] for i in chosen],
            candidates=[self.candidates[i] for i in chosen],
            facts=[self.facts[i] for i in chosen],
        )

    @property
    def can_race(self) -> bool:
        """Whether there is one that may win."""
        return len(self.excluded) < len(self.candidates)


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


def measure(config: Config, path: str | os.PathLike[str], number: int) -> dict[str, Any]:
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
    """What the whole and its shards share: the same candidates, evaluated by the same engine."""

    def __init__(self, config: Config, work: workdir.Workdir):
        self.config = config
        self.settings = config.sample
        self.work = work
        networks.set_seed(config.seed)
        splits = networks.load_data(config, work)
        self.supernet: Supernet = saving.load(work.path / stage_table.SUPERNET)
        self.posterior = Posterior.from_json((work.path / stage_table.POSTERIOR).read_bytes())
        if self.settings.latency or (self.settings.budgets and self.settings.resource == "latency"):
            self.posterior = self.posterior.with_latency(self._latencies())
        batches = pipeline.evaluation_batches(splits.validation, config.data, self.settings.batch_size)
        recalibration = networks.recalibration(config, splits, self.supernet)
        self.engine = Engine(
            self.supernet,
            batches,
            self.settings.batch_size,
            config.seed,
            distribution.ranking_strategy(config.distribution),
            recalibration,
        )

    def evaluate(self, shard: Shard) -> None:
        """Evaluates one part of the candidates, each kind raced by itself."""
        with add_filename(self.work.path / shard.file), self._evaluations(shard.file) as evaluations:
            for contest in self._contests(shard):
                if contest.can_race:
                    self._race(contest, evaluations)
        print(f"sample    shard {shard.index} of {shard.count}: {self.work.path / shard.file}")

    def measure(self, number: int) -> dict[str, Any]:
        """A candidate's score on the fresh examples; on the race's if none are kept from it."""
        contest = next(self._contests(Shard(1, 1)))
        with tempfile.TemporaryDirectory() as folder:
            with Evaluations(pathlib.Path(folder) / "one.jsonl", "one") as evaluations:
                field = Field(self.engine, evaluations, [contest.candidates[number]], contest.by, self.settings.holdout)
                score = field.fresh(0)
                if score is None:
                    field.fill([0], field.num_examples)
                    score = field.score(0, field.num_examples)
        return score.record()

    def rank(self) -> Iterable[str]:
        """Ranks all candidates and writes what was found; returns the files written besides the stage's own."""
        shards = sorted((self.work.path / stage_table.SHARDS).glob("*.jsonl"))
        groups: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        records: list[dict[str, Any]] = []
        comparisons: dict[str, Any] = {}
        kept = stage_table.EVALUATIONS
        with add_filename(self.work.path / kept), self._evaluations(kept, shards) as evaluations:
            if evaluations.count:
                print(f"sample    goes on: {evaluations.count:,} evaluations are there")
            for contest in self._contests(Shard(1, 1)):
                group, theirs, ranking = self._ranked(contest, evaluations)
                records += theirs
                if contest.share is None:
                    groups[contest.kind] = group
                if contest.posterior is not None:
                    rows.append(_row(contest.posterior, contest.share, self.settings.resource, group))
                if contest.kind == POSTERIOR and ranking is not None:
                    found, winner, predictive = contest, ranking.best, self._predictive(contest, ranking)
                elif contest.posterior is None and ranking and ranking.fresh:
                    comparisons[contest.kind] = self._compared(found, contest, evaluations)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        self.work.write(stage_table.CANDIDATES, lambda file: file.write_text(lines))
        reads = self.supernet.graph.flow(winner).reads_of(winner)
        sampled = {"rank_by": self.settings.rank_by, "reads": reads, "kinds": groups}
        self.work.write_json(stage_table.RANKING, {**sampled, "comparisons": comparisons, "predictive": predictive})
        text = winner.to_json()
        self.work.write(stage_table.ARCHITECTURE, lambda file: file.write_text(text))
        if not self.settings.budgets:
            return ()
        pareto_front.write(self.work, rows, self.settings.resource)
        return (stage_table.FRONT, stage_table.FRONT_PLOT)

    def _contests(self, shard: Shard) -> Iterator[_Contest]:
        """Kind by kind; each random candidate has at most the size of one that was found, in the same resource."""
        mine = range(shard.index - 1, self.settings.num_candidates, shard.count)
        budget = {resource: share for resource in PRICES if (share := getattr(self.settings, resource))}
        target = None if budget else self.supernet.target
        drawn = self._within(target, mine) if target else self._drawn(POSTERIOR, budget, None, mine)
        yield drawn
        price, sizes = self._sizes(drawn, next(iter(budget), None))
        for kind in (reference_architectures.EVEN, reference_architectures.ALLOCATED):
            numbers = [i for i in mine if i < self.settings.num_random]
            made = Packed(
                reference_architectures.random_candidate(
                    self.posterior, self.supernet.graph, sizes[i], kind, self.config.seed, i, price
                )
                for i in numbers
            )
            # The best random one is chosen by what the table shows, whatever ranks the posterior's: their losses are
            # mostly those of confident mistakes, and the comparison is not to flatter the posterior.
            yield _Contest(kind, None, None, numbers, made, [self._facts(a) for a in made], "accuracy")
        resource = self.settings.resource
        for share in self.settings.budgets:
            kind = f"posterior at {100 * share:g} % of the {resource.replace('_', '-')}"
            yield self._drawn(kind, {resource: share}, share, mine)

    def _sizes(
        self, drawn: _Contest, budget: str | None
    ) -> tuple[Callable[[Architecture], float], Mapping[int, float]]:
        """What random candidates are sized by, and what each may cost, by number: what was found of that number costs.

        Where that one is of another size than it should be, what the most probable network of the size costs.
        """
        graph, size = self.supernet.graph, drawn.size
        price = reference_architectures.counted(graph, size.resource if size else "parameters")
        if budget:  # which is counted otherwise
            price = functools.partial(self.posterior.cost_of, resource=budget)
        instead = price(size.first) if size else 0.0
        misfits = drawn.misfits if size else [None] * len(drawn.numbers)
        return price, {
            number: instead if misfit else price(architecture)
            for number, architecture, misfit in zip(drawn.numbers, drawn.candidates, misfits, strict=True)
        }

    def _drawn(self, kind: str, budget: Mapping[str, float], share: float | None, numbers: Sequence[int]) -> _Contest:
        posterior, limit = self.posterior, None
        for resource, part in budget.items():
            total = posterior.total_cost(resource)
            learned = posterior.expected_cost(resource) / total
            posterior = posterior.tilt(**{resource: part * total})
            limit = {resource: part * total} if self.settings.hard_limit else None
            print(f"sample    tilted from {learned:.1%} of the gated {resource.replace('_', '-')} to {part:.1%}")
        drawn = Packed(posterior.sample(1, self.config.seed, first=i, limit=limit)[0] for i in numbers)
        facts = [self._facts(architecture) for architecture in drawn]
        return _Contest(kind, posterior, share, numbers, drawn, facts, self.settings.rank_by)

    def _within(self, target: Target, numbers: Sequence[int]) -> _Contest:
        """Candidates of the size that search was asked for; those that are of another size after all do not race."""
        size = Sized.of(self.posterior, self.supernet.graph, target)
        if not size.limit:
            raise self._all_cut_off(POSTERIOR, None)
        resource = size.resource
        print(
            f"sample    of at most {target.share:.1%} of the network's {resource.replace('_', '-')}: {size.most:,.0f}"
        )
        drawn = Packed(size.draw(i, self.config.seed) for i in numbers)
        facts = [self._facts(architecture) for architecture in drawn]
        return _Contest(POSTERIOR, size.posterior, None, numbers, drawn, facts, self.settings.rank_by, size)

    def _facts(self, architecture: Architecture) -> dict[str, Any]:
        price = costs.cost(self.supernet.graph, architecture)
        return {
            "digest": architecture.digest(),
            "parameters": price.parameters,
            "multiply_adds": price.multiply_adds,
            "connected": self.supernet.graph.flow(architecture).reaches_outputs(),
        }

    def _ranked(
        self, contest: _Contest, evaluations: Evaluations
    ) -> tuple[dict[str, Any], list[dict[str, Any]], Ranking | None]:
        """What ranking.json says of a contest, every candidate's record, and the ranking if there is a winner."""
        if not contest.can_race and contest.posterior is not None:
            raise self._all_cut_off(contest.kind, contest.share)
        ranking = self._race(contest, evaluations) if contest.can_race else None
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
            {"kind": contest.kind, "number": number, **facts, "able": misfit is None, **score.record()}
            for number, facts, misfit, score in zip(
                contest.numbers, contest.facts, contest.misfits, scores, strict=True
            )
        ]
        group = {
            **summary([field.score(i, field.num_examples) for i in first]),
            "num_measured": len(first),
            "num_examples": field.num_examples,
            "count": len(records),
            "able": len(records) - len(contest.excluded),
            "distinct": contest.distinct,
            "left_out": shortfall(contest.misfits, contest.distinct),
            **{
                f"mean_{resource}": float(np.mean([records[i][resource] for i in contest.drawn]))
                for resource in ("parameters", "multiply_adds")
            },
            "best": None,
            "architecture": None,
            # To be measured on test.
            "first": [json.loads(contest.candidates[i].to_json()) for i in first],
        }
        if ranking:
            outcome = ranking.outcome
            group |= {
                "best": records[outcome.winner],
                "architecture": json.loads(ranking.best.to_json()),
                "fresh": ranking.fresh and ranking.fresh.record(),
                "ties": [contest.numbers[i] for i in outcome.ties],
                "evaluations": outcome.evaluations,
                "saved": outcome.saved,
                "best_of": self._curve(contest, ranking),
            }
            if contest.kind == POSTERIOR:
                # In the race's order, for an ensemble of them.
                best = contest.able(ranking.order)[: self.settings.num_tested]
                group["leaders"] = [json.loads(contest.candidates[i].to_json()) for i in best]
            self._say(contest, ranking)
        return group, records, ranking

    def _say(self, contest: _Contest, ranking: Ranking) -> None:
        def shown(score: Score) -> str:
            if contest.by == "loss":
                return f"{score.loss:.3g}"
            top5 = "" if score.top5_accuracy is None else f" (top-5 {score.top5_accuracy:.1%})"
            return f"{score.accuracy:.1%}{top5}"

        outcome, fresh = ranking.outcome, ranking.fresh
        again = f", {shown(fresh)} on {fresh.num_examples:,} fresh images" if fresh else ""
        print(
            f"sample    {contest.kind}: best of {len(contest.candidates) - len(contest.excluded):,} has {contest.by} "
            f"{shown(ranking.scores[outcome.winner])}{again}; {len(outcome.ties):,} tie; "
            f"{1 - outcome.saved:.0%} evaluated"
        )
        if told := shortfall(contest.misfits, contest.distinct):
            terminal.warn(f"sample    {contest.kind}: {told}")

    def _race(self, contest: _Contest, evaluations: Evaluations) -> Ranking:
        columns = (
            rich.progress.TextColumn("sample    {task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
        )
        with rich.progress.Progress(*columns, console=terminal.console) as progress:
            field = self._field(contest, evaluations)
            total = len(contest.candidates) * field.num_examples
            task = progress.add_task(contest.kind, total=total, figures="")

            def update(alive: int, examples: int) -> None:
                # Whoever is out of the race is done.
                done = total - alive * (field.num_examples - examples)
                figures = f"{alive:,} candidates on {examples:,} examples"
                progress.update(task, completed=done, figures=figures)

            field.progress = update
            return field.race(self.settings.racing or None, self.settings.tolerance, contest.excluded)

    def _field(self, contest: _Contest, evaluations: Evaluations) -> Field:
        return Field(self.engine, evaluations, contest.candidates, contest.by, self.settings.holdout)

    def _evaluations(self, name: str, others: Sequence[pathlib.Path] = ()) -> Evaluations:
        """The store, whose key is all that an evaluation depends on: neither how many are ranked, nor how."""
        material = {
            "supernet": digests.of_file(self.work.path / stage_table.SUPERNET),
            **stage_table.settings(self.config, ("data", "seed")),
            "batch_size": self.settings.batch_size,
            "recalibrate": self.settings.recalibrate,
        }
        key = hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()
        return Evaluations(self.work.file(name), key, others)

    def _latencies(self) -> dict[str, float]:
        """Seconds per channel of every gated layer, measured once in a working directory, whoever is the first."""
        file = self.work.path / stage_table.LATENCIES
        with distribution.chief_first(self.config.distribution):
            if not file.exists():
                measured = {"seconds": latencies.layer_latencies(self.supernet)}
                self.work.write_sealed(stage_table.LATENCIES, measured, replace=False)
        shape = schema.record(seconds=schema.mapping_of(schema.number(0)))
        return self.work.read_sealed(stage_table.LATENCIES, shape)["seconds"]

    def _compared(self, found: _Contest, other: _Contest, evaluations: Evaluations) -> dict[str, Any]:
        """The best of equally many candidates of two kinds, on the same fresh examples (McNemar's test)."""
        count = min(len(contest.candidates) - len(contest.excluded) for contest in (found, other))
        fields = [self._field(contest.first(count), evaluations) for contest in (found, other)]
        racing, tolerance = self.settings.racing or None, self.settings.tolerance
        winners = [field.race(racing, tolerance).best for field in fields]
        ours, theirs = self._correct(winners, fields[0].num_examples)
        return {
            "count": count,
            "num_examples": len(ours),
            "accuracy": float(ours.mean()),
            "other_accuracy": float(theirs.mean()),
            **statistics.Paired.of(ours, theirs).record(),
        }

    def _correct(self, architectures: Sequence[Architecture], start: int) -> np.ndarray:
        """Which of the examples from number `start` on each has right: bool, shape (architectures, examples)."""
        correct = np.empty((len(architectures), self.engine.num_examples - start), bool)
        for e in self.engine.evaluate(architectures, start):
            found = e.figures[ACCURACY] == 1
            correct[e.number, e.start - start : e.start - start + len(found)] = found
        return correct

    def _curve(self, contest: _Contest, ranking: Ranking) -> list[dict[str, float]]:
        """Fresh accuracy of the best among fewer candidates, by the race's order (Table 6's question); [] without any.

        The race's own examples would flatter the best of many by what made it the best. Of many candidates some ranks
        are measured, each for those around it too, so that a race is not followed by an evaluation of all.
        """
        if not ranking.fresh:
            return []
        order = contest.able(ranking.order)
        ranks = np.unique(np.geomspace(1, len(order), _POINTS).round().astype(int)) - 1
        start = ranking.scores[order[0]].num_examples
        accuracy = self._correct([contest.candidates[order[rank]] for rank in ranks], start).mean(1)
        nearest = np.searchsorted((ranks[1:] + ranks[:-1]) / 2, np.arange(len(order)))
        counts = [count for count in _CURVE if count < len(order)] + [len(order)]
        return statistics.best_of(np.arange(len(order)), accuracy[nearest], counts)

    def _predictive(self, contest: _Contest, ranking: Ranking) -> dict[str, Any]:
        """The found network, an ensemble of the best and the posterior's average, on examples the race did not use."""
        best, samples = (which[: self.settings.ensemble] for which in (contest.able(ranking.order), contest.drawn))
        if not self.settings.ensemble:
            return {}
        start = ranking.scores[ranking.order[0]].num_examples if ranking.fresh else 0
        labels = self.engine.labels(start)

        def average(numbers: Iterable[int]) -> dict[str, Any]:
            outputs = [softmax(self.engine.outputs(ranking.candidates[i], start), axis=-1) for i in numbers]
            return statistics.predictive(np.mean(outputs, axis=0), labels)

        return {
            "found network": average(best[:1]),
            f"ensemble of the {len(best):,} best": average(best),
            f"average of {len(samples):,} posterior samples": average(samples),
        }

    def _all_cut_off(self, kind: str, share: float | None) -> SearchFailedError:
        if share is not None:
            return SearchFailedError(
                f"sample.budgets: {kind}, every candidate drops every path to the output: leave {share:g} out, or take "
                "a larger budget"
            )
        search, target = self.config.search, self.supernet.target
        if target:
            advice = f"a larger search.{target.resource} (now {target.share:g})"
        else:
            advice = f"a smaller ell2 (now {search.ell2:g}) or gate_learning_rate (now {search.gate_learning_rate:g})"
        return SearchFailedError(
            "sample: every candidate drops every path to the output, so the posterior has collapsed: search again, in "
            f"another --workdir, with {advice}"
        )


def _row(posterior: Posterior, share: float | None, resource: str, group: dict[str, Any]) -> dict[str, Any]:
    """A point of the front."""
    known = resource != "latency" or posterior.layers[0].latency_per_channel is not None
    return {
        "share": share,
        "expected": posterior.expected_cost(resource) if known else None,
        "deviation": posterior.cost_deviation(resource) if known else None,
        "total": posterior.total_cost(resource) if known else None,
        "mean_accuracy": group["mean_accuracy"],
        **{name: group["best"][name] for name in ("parameters", "multiply_adds", "loss", "accuracy", "num_examples")},
        "fresh": group["fresh"],
        "architecture": group["architecture"],
    }
