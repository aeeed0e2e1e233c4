"""Candidates of the size that a search was asked for."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from tfnas.common import terminal
from tfnas.common.errors import SearchFailedError
from tfnas.gating.supernet import Supernet, Target
from tfnas.graph.channels import Graph
from tfnas.graph.costs import count
from tfnas.ranking import reference_architectures
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior

NO_PATH, LARGER, SMALLER = "no path to the output", "larger", "smaller"  # why a candidate cannot win
_NEAR = 0.03  # candidates that are smaller than the most probable one by more than this share are of another size


@dataclasses.dataclass(frozen=True)
class Sized:
    """Where candidates of one size come from.

    The first is the most probable network of at most that size. The others are drawn from the posterior tilted to what
    the first one costs, and cost no more, as the posterior counts it: each gated layer with all of its outputs.

    Attributes:
        posterior: tilted to the first one's cost.
        first: the most probable one.
        limit: its cost as the posterior counts it; 0: it has no channel.
        resource: 'parameters' or 'multiply_adds'.
        least: what a candidate that is of this size costs at least, counted exactly.
        most: and at most.
    """

    posterior: Posterior
    first: Architecture
    limit: float
    resource: str
    least: float
    most: float

    @classmethod
    def of(cls, posterior: Posterior, graph: Graph, target: Target) -> Sized:
        """Of the size that `target` asks for.

        Args:
            posterior: of a supernet.
            graph: of the same.
            target: a share of the cost of the whole network.
        """
        resource = target.resource
        most = target.share * count(graph, resource)
        first = reference_architectures.within(posterior, graph, resource, most)
        limit = posterior.cost_of(first, resource)
        if 0 < limit < posterior.total_cost(resource):
            posterior = posterior.tilt(**{resource: limit})
        least = (1 - _NEAR) * count(graph, resource, first)
        return cls(posterior, first, limit, resource, least, most)

    def draw(self, i: int, seed: int) -> Architecture:
        """Candidate number `i`, a function of (seed, i) alone. Some are not of this size: `fits` tells."""
        return self.posterior.sample(1, seed, first=i, limit={self.resource: self.limit})[0] if i else self.first

    def misfit(self, price: float) -> str | None:
        """LARGER or SMALLER, if a candidate of this cost, counted exactly, is not of this size."""
        if price > self.most:
            return LARGER
        return SMALLER if price < self.least else None


def shortfall(misfits: Iterable[str | None], distinct: int) -> str:
    """Why fewer candidates can be compared than were asked for, as a sentence; '' if all can, and differ.

    Args:
        misfits: of each candidate, why it cannot win, or None.
        distinct: how many different ones there are among those that can.
    """
    counts = collections.Counter(misfits)
    able, asked = counts[None], counts.total()
    told = [f"{counts[why]:,} {words}" for why, words in _MISFITS.items() if counts[why]]
    if able == asked and distinct == able:
        return ""
    words = f"{able:,} of {asked:,} candidates can be compared"
    if distinct < able:
        words += f", {distinct:,} of them different"
    return words + (f"; left out: {', '.join(told)}" if told else "")


_MISFITS: Mapping[str, str] = {
    NO_PATH: "without a path to the output",
    LARGER: "larger than was asked for",
    SMALLER: f"more than {_NEAR:.0%} smaller than the most probable network of that size",
}


def sample(supernet: Supernet, num_candidates: int, seed: int) -> list[Architecture]:
    """Candidates for `rank`: of the size that `gate` was asked for; without one, the posterior's as they are drawn.

    Of a size, they have at most the share of the parameters, or multiply-adds, that `gate` was given, counted exactly,
    and are at most 3 % smaller than the first, which is the most probable network of that size and no sample of the
    posterior. So they can be compared with each other; and the size is met even where the search's own expectation has
    not arrived at it.

    If fewer are returned than were asked for, or some are equal, a warning on the terminal says how many and why.

    Args:
        supernet: after its training.
        num_candidates: how many to draw. Those of another size are left out, and without a size none is.
        seed: non-negative integer.

    Raises:
        SearchFailedError: if no network of that size has a path to the output.
    """
    posterior, graph, target = supernet.posterior(), supernet.graph, supernet.target
    if not target:
        found = posterior.sample(num_candidates, seed)
        misfits: list[str | None] = [None] * len(found)
    else:
        size = Sized.of(posterior, graph, target)
        drawn = [size.draw(i, seed) for i in range(num_candidates if size.limit else 0)]
        misfits = [_misfit(graph, size, candidate) for candidate in drawn]
        found = [candidate for candidate, misfit in zip(drawn, misfits, strict=True) if misfit is None]
        if not found:
            raise SearchFailedError(
                f"sample: no candidate of at most {target.share:.1%} of the {target.resource} has a path to the "
                f"output: gate with a larger share of the {target.resource}"
            )
    if told := shortfall(misfits, len({candidate.digest() for candidate in found})):
        terminal.warn(f"sample: {told}")
    return found


def _misfit(graph: Graph, size: Sized, candidate: Architecture) -> str | None:
    if not graph.flow(candidate).reaches_outputs():
        return NO_PATH
    return size.misfit(count(graph, size.resource, candidate))
