"""The contests of a run: candidates of one kind that race each other, the posterior's first, then those to compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfnas.common.errors import SearchFailedError
from tfnas.common.resources import Resource
from tfnas.config import Config
from tfnas.gating.supernet import Supernet
from tfnas.graph import costs
from tfnas.ranking import reference_architectures
from tfnas.ranking.candidates import NO_PATH, Sized, shortfall
from tfnas.runs.sampled import RANDOM, Kind
from tfnas.search_space.architecture import Architecture, Packed
from tfnas.search_space.posterior import Posterior


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
        share: of the resource that it was tilted to for `sample.budgets`; None for the others.
        numbers: the candidates' numbers among all of their kind.
        candidates: the architectures.
        facts: of each.
        by: what they are ranked by, 'loss' or 'accuracy'.
        size: of the one that wins; None for any.
    """

    kind: Kind
    title: str
    posterior: Posterior | None
    share: float | None
    numbers: Sequence[int]
    candidates: Sequence[Architecture]
    facts: Sequence[Facts]
    by: str
    size: Sized | None = None

    @property
    def misfits(self) -> list[str | None]:
        """Why each may not win: of another size, or without a path to the output; None if it may."""
        return [
            (self.size.misfit(getattr(facts, self.size.resource)) if self.size else None)
            if facts.connected
            else NO_PATH
            for facts in self.facts
        ]

    @property
    def excluded(self) -> list[int]:
        """Those that may not win."""
        return [i for i, misfit in enumerate(self.misfits) if misfit]

    def able(self, order: Iterable[int]) -> list[int]:
        """Those of `order` that may win."""
        misfits = self.misfits
        return [i for i in order if not misfits[i]]

    @property
    def num_able(self) -> int:
        """Number of candidates that may win."""
        return len(self.candidates) - len(self.excluded)

    @property
    def drawn(self) -> list[int]:
        """Those that were drawn: all but the most probable network, which is the first of a size; if it is all, it."""
        return [i for i, number in enumerate(self.numbers) if number or not self.size] or [0]

    @property
    def distinct(self) -> int:
        """Number of distinct candidates among those that may win."""
        return len({self.facts[i].digest for i in self.able(range(len(self.facts)))})

    @property
    def shortfall(self) -> str:
        """Why fewer can be compared than were asked for; '' if all can, and differ."""
        return shortfall(self.misfits, self.distinct)

    def first(self, count: int) -> Contest:
        """The first `count` of those that may win, as a contest of their own."""
        chosen = self.able(range(len(self.facts)))[:count]
        return dataclasses.replace(
            self,
            numbers=[self.numbers[i] for i in chosen],
            candidates=[self.candidates[i] for i in chosen],
            facts=[self.facts[i] for i in chosen],
        )


class Contests:
    """Draws the candidates of a run.

    Args:
        config: of the run.
        supernet: after its search.
        posterior: of the same, with latencies where the settings ask for them.
    """

    def __init__(self, config: Config, supernet: Supernet, posterior: Posterior):
        self._config, self._settings = config, config.sample
        self._supernet, self._posterior = supernet, posterior

    def of(self, numbers: Sequence[int]) -> Iterator[Contest]:
        """Kind by kind; each random candidate has at most the size of one that was found, in the same resource.

        Args:
            numbers: of the candidates, which are functions of (seed, number).
        """
        settings = self._settings
        budget = {resource: share for resource in Resource if (share := getattr(settings, resource))}
        target = None if budget else self._supernet.target
        found = self._within(target, numbers) if target else self._drawn(budget, None, numbers)
        yield found
        price, sizes = self._sizes(found, next(iter(budget), None))
        for kind in RANDOM:
            chosen = [i for i in numbers if i < settings.num_random]
            made = Packed(
                reference_architectures.random_candidate(
                    self._posterior, self._supernet.graph, sizes[i], kind, self._config.seed, i, price
                )
                for i in chosen
            )
            # The best random one is chosen by what the table shows, whatever ranks the posterior's: their losses are
            # mostly those of confident mistakes, and the comparison is not to flatter the posterior.
            yield Contest(kind, kind, None, None, chosen, made, [self._facts(a) for a in made], "accuracy")
        for share in settings.budgets:
            yield self._drawn({Resource(settings.resource): share}, share, numbers)

    def cut_off(self, contest: Contest) -> SearchFailedError:
        """The error of a contest of the posterior's that no candidate may win."""
        if contest.share is not None:
            return SearchFailedError(
                f"sample.budgets: {contest.title}, every candidate drops every path to the output: leave "
                f"{contest.share:g} out, or take a larger budget"
            )
        return self._collapsed()

    def _sizes(
        self, drawn: Contest, budget: Resource | None
    ) -> tuple[Callable[[Architecture], float], Mapping[int, float]]:
        """Returns how random candidates are counted, and the largest cost of each, by number: that of the same sample.

        Where that one is of another size than it should be, what the most probable network of the size costs.
        """
        graph, size = self._supernet.graph, drawn.size
        price = reference_architectures.counted(graph, size.resource if size else Resource.PARAMETERS)
        if budget:  # which is counted otherwise
            price = functools.partial(self._posterior.cost_of, resource=budget)
        instead = price(size.first) if size else 0.0
        misfits = drawn.misfits if size else [None] * len(drawn.numbers)
        return price, {
            number: instead if misfit else price(architecture)
            for number, architecture, misfit in zip(drawn.numbers, drawn.candidates, misfits, strict=True)
        }

    def _drawn(self, budget: Mapping[Resource, float], share: float | None, numbers: Sequence[int]) -> Contest:
        posterior, title = self._posterior, str(Kind.POSTERIOR)
        limit: dict[str, float] | None = None
        for resource, part in budget.items():
            total = posterior.total_cost(resource)
            learned = posterior.expected_cost(resource) / total
            posterior = posterior.tilt(**{resource: part * total})
            limit = {resource: part * total} if self._settings.hard_limit else None
            if share is not None:
                title = f"{Kind.POSTERIOR} at {100 * share:g} % of the {resource.words}"
            print(f"sample    tilted from {learned:.1%} of the gated {resource.words} to {part:.1%}")
        seed = self._config.seed
        drawn = Packed(posterior.sample(1, seed, first=i, limit=limit)[0] for i in numbers)
        facts = [self._facts(architecture) for architecture in drawn]
        by = self._settings.rank_by
        return Contest(Kind.POSTERIOR, title, posterior, share, numbers, drawn, facts, by)

    def _within(self, target: Any, numbers: Sequence[int]) -> Contest:
        """Candidates of the size that search was asked for; those that are of another size after all do not race."""
        size = Sized.of(self._posterior, self._supernet.graph, target)
        if not size.limit:
            raise self._collapsed()
        resource = Resource(size.resource)
        print(f"sample    of at most {target.share:.1%} of the network's {resource.words}: {size.most:,.0f}")
        drawn = Packed(size.draw(i, self._config.seed) for i in numbers)
        facts = [self._facts(architecture) for architecture in drawn]
        by, kind = self._settings.rank_by, Kind.POSTERIOR
        return Contest(kind, kind, size.posterior, None, numbers, drawn, facts, by, size)

    def _facts(self, architecture: Architecture) -> Facts:
        graph = self._supernet.graph
        price = costs.cost(graph, architecture)
        connected = graph.flow(architecture).reaches_outputs()
        return Facts(architecture.digest(), price.parameters, price.multiply_adds, connected)

    def _collapsed(self) -> SearchFailedError:
        search, target = self._config.search, self._supernet.target
        if target:
            advice = f"a larger search.{target.resource} (now {target.share:g})"
        else:
            advice = f"a smaller ell2 (now {search.ell2:g}) or gate_learning_rate (now {search.gate_learning_rate:g})"
        return SearchFailedError(
            "sample: every candidate drops every path to the output, so the posterior has collapsed: search again, in "
            f"another --workdir, with {advice}"
        )
