"""The contests of a run: candidates of one kind that race each other, the posterior's first, then those to compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tfnas.common.errors import SearchFailedError
from tfnas.common.resources import Resource
from tfnas.config import Config
from tfnas.gating.supernet import Supernet
from tfnas.graph import costs
from tfnas.ranking import reference_architectures, reference_units
from tfnas.runs.sampled import RANDOM, Kind
from tfnas.search_space.architecture import Architecture, Packed
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior

_CHUNK = 256  # candidates of a posterior of units that are drawn together


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about a candidate before its evaluation, as in `tfnas.runs.sampled.Candidate`."""

    digest: str
    parameters: int
    multiply_adds: int
    connected: bool


@dataclasses.dataclass(frozen=True)
class Contest:
    """Candidates that race against each other.

    Attributes:
        kind: where they come from.
        title: what the terminal calls them.
        posterior: that they were drawn from; None for random ones.
        share: of the resource of `sample.budgets`; None for the others.
        numbers: the candidates' numbers among all of their kind.
        candidates: the architectures.
        facts: of each.
        by: what they are ranked by: 'loss', or the task's metric of an example.
        asked: how many were asked for.
        most_probable_first: whether number 0 is the most probable network within bounds, and not a sample.
    """

    kind: Kind
    title: str
    posterior: Posterior | UnitPosterior | None
    share: float | None
    numbers: Sequence[int]
    candidates: Sequence[Architecture]
    facts: Sequence[Facts]
    by: str
    asked: int
    most_probable_first: bool = False

    @property
    def excluded(self) -> list[int]:
        """Those that may not win: without a path to the output."""
        return [i for i, facts in enumerate(self.facts) if not facts.connected]

    def able(self, order: Iterable[int]) -> list[int]:
        """Those of `order` that may win."""
        return [i for i in order if self.facts[i].connected]

    @property
    def num_able(self) -> int:
        """Number of candidates that may win."""
        return len(self.candidates) - len(self.excluded)

    @property
    def drawn(self) -> list[int]:
        """Those that were drawn: all but the most probable network, which is number 0; if it is all, it."""
        return [i for i, number in enumerate(self.numbers) if number or not self.most_probable_first] or [0]

    @property
    def distinct(self) -> int:
        """Number of distinct candidates among those that may win."""
        return len({self.facts[i].digest for i in self.able(range(len(self.facts)))})

    @property
    def shortfall(self) -> str:
        """Why fewer can be compared than were asked for; '' if all can, and differ."""
        able, distinct = self.num_able, self.distinct
        if distinct == able == self.asked:
            return ""
        words = f"{able:,} of {self.asked:,} candidates can be compared"
        if distinct < able:
            words += f", {distinct:,} of them different"
        if excluded := len(self.excluded):
            words += f"; left out: {excluded:,} without a path to the output"
        if len(self.candidates) < self.asked:
            words += "; no more are found within the bounds"
        return words

    def first(self, count: int) -> Contest:
        """The first `count` of those that may win, as a contest of their own."""
        chosen = self.able(range(len(self.facts)))[:count]
        return dataclasses.replace(
            self,
            numbers=[self.numbers[i] for i in chosen],
            candidates=[self.candidates[i] for i in chosen],
            facts=[self.facts[i] for i in chosen],
            asked=len(chosen),
        )


class Contests:
    """Draws the candidates of a run.

    Args:
        config: of the run.
        supernet: after its search.
        posterior: of the same, with the latencies, bounds and multiples that the settings ask for.
    """

    def __init__(self, config: Config, supernet: Supernet, posterior: Posterior | UnitPosterior):
        self._config, self._settings = config, config.sample
        self._supernet, self._posterior = supernet, posterior

    def of(self, numbers: range) -> Iterator[Contest]:
        """Kind by kind; random candidates are no larger than those that were found.

        After a search with bounds, random candidates obey the same bounds; else each has at most the size of the
        candidate of the same number, in parameters or the resource that the posterior was tilted by.

        Args:
            numbers: of the candidates, which are functions of (seed, number).
        """
        if isinstance(self._posterior, UnitPosterior):
            return self._of_units(self._posterior, numbers)
        return self._of_layers(self._posterior, numbers)

    def cut_off(self, contest: Contest) -> SearchFailedError:
        """The error of a contest of the posterior's that no candidate may win."""
        if contest.share is not None:
            return SearchFailedError(
                f"sample.budgets: {contest.title}, every candidate drops every path to the output: leave "
                f"{contest.share:g} out, or take a larger budget"
            )
        search = self._config.search
        return SearchFailedError(
            "sample: every candidate drops every path to the output, so the posterior has collapsed: search again, in "
            f"another --workdir, with a smaller ell2 (now {search.ell2:g}) or gate_learning_rate (now "
            f"{search.gate_learning_rate:g})"
        )

    def _of_units(self, posterior: UnitPosterior, numbers: range) -> Iterator[Contest]:
        settings, seed = self._settings, self._config.seed
        shares = {Resource(name): most / posterior.form.full(name) for name, most in posterior.bounds.items()}
        parts = [
            f"{share:.1%} of the {'predicted ' if resource == Resource.LATENCY else ''}{resource.words}"
            for resource, share in shares.items()
        ]
        print(f"sample    of at most {' and '.join(parts)}")
        yield self._within(posterior, None, numbers, Kind.POSTERIOR, {})
        for kind in RANDOM:
            chosen = [i for i in numbers if i < settings.num_random]
            made = (reference_units.random_candidate(posterior, kind, seed, i) for i in chosen)
            yield self._random(kind, chosen, made)
        for share in settings.budgets:
            budget = {settings.resource: share}
            yield self._within(posterior, share, numbers, self._title(Resource(settings.resource), share), budget)

    def _within(
        self, posterior: UnitPosterior, share: float | None, numbers: range, title: str, bounds: dict[str, Any]
    ) -> Contest:
        """Candidates within bounds; the posterior's own if none are given."""
        settings, count = self._settings, numbers[-1] + 1 if numbers else 0
        drawn: list[int] = []

        def candidates() -> Iterator[Architecture]:
            for first in range(0, count, _CHUNK):
                found = posterior.sample(min(_CHUNK, count - first), self._config.seed, first, **bounds)
                for i, candidate in enumerate(found, first):
                    if i in numbers:
                        drawn.append(i)
                        yield candidate

        made = Packed(candidates())
        facts = [self._facts(candidate) for candidate in made]
        return Contest(
            Kind.POSTERIOR,
            title,
            posterior,
            share,
            drawn,
            made,
            facts,
            settings.rank_by,
            len(numbers),
            most_probable_first=True,
        )

    def _of_layers(self, posterior: Posterior, numbers: range) -> Iterator[Contest]:
        settings, graph = self._settings, self._supernet.graph
        budget = next(iter(settings.bounds.items()), None)
        found = self._drawn(posterior, budget, None, numbers)
        yield found
        price: Callable[[Architecture], float] = reference_architectures.counted(graph)
        if budget:  # which is counted otherwise
            price = functools.partial(posterior.cost_of, resource=budget[0])
        sizes = {i: price(candidate) for i, candidate in zip(found.numbers, found.candidates, strict=True)}
        for kind in RANDOM:
            chosen = [i for i in numbers if i < settings.num_random]
            made = (
                reference_architectures.random_candidate(posterior, graph, sizes[i], kind, self._config.seed, i, price)
                for i in chosen
            )
            yield self._random(kind, chosen, made)
        for share in settings.budgets:
            yield self._drawn(posterior, (settings.resource, share), share, numbers)

    def _drawn(
        self, posterior: Posterior, budget: tuple[str, float] | None, share: float | None, numbers: range
    ) -> Contest:
        """Samples of the posterior, tilted to a share of a resource if there is a budget."""
        title = str(Kind.POSTERIOR)
        if budget:
            resource, part = Resource(budget[0]), budget[1]
            total = posterior.total_cost(resource)
            learned = posterior.expected_cost(resource) / total
            posterior = posterior.tilt(**{resource: part * total})
            if share is not None:
                title = self._title(resource, share)
            print(f"sample    tilted from {learned:.1%} of the gated {resource.words} to {part:.1%}")
        drawn = Packed(posterior.sample(1, self._config.seed, first=i)[0] for i in numbers)
        facts = [self._facts(architecture) for architecture in drawn]
        by = self._settings.rank_by
        return Contest(Kind.POSTERIOR, title, posterior, share, numbers, drawn, facts, by, len(numbers))

    def _random(self, kind: Kind, numbers: Sequence[int], candidates: Iterable[Architecture]) -> Contest:
        made = Packed(candidates)
        facts = [self._facts(candidate) for candidate in made]
        # The best random one is chosen by what the table shows, whatever ranks the posterior's: their losses are
        # mostly those of confident mistakes, and the comparison is not to flatter the posterior.
        return Contest(kind, kind, None, None, numbers, made, facts, self._config.facts.example.name, len(numbers))

    @staticmethod
    def _title(resource: Resource, share: float) -> str:
        return f"{Kind.POSTERIOR} at {100 * share:g} % of the {resource.words}"

    def _facts(self, architecture: Architecture) -> Facts:
        if isinstance(self._posterior, UnitPosterior):  # closed: every one has a path, and a cost in closed form
            parameters, multiply_adds = (
                round(self._posterior.cost_of(architecture, name)) for name in ("parameters", "multiply_adds")
            )
            return Facts(architecture.digest(), parameters, multiply_adds, connected=True)
        graph = self._supernet.graph
        price = costs.cost(graph, architecture)
        connected = graph.flow(architecture).reaches_outputs()
        return Facts(architecture.digest(), price.parameters, price.multiply_adds, connected)
