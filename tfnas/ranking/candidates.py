"""Candidates of the target size of a search."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tfnas.common import terminal
from tfnas.common.errors import SearchFailedError
from tfnas.gating.supernet import Supernet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import count
from tfnas.ranking import reference_architectures
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior

NO_PATH, LARGER, SMALLER = "no path to the output", "larger", "smaller"  # why a candidate cannot win
_NEAR = 0.03  # candidates smaller than the most probable one by more than this share are not of the target size


@dataclasses.dataclass(frozen=True)
class Sized:
    """Samples candidates of one size.

    The first is the most probable network of at most that size. The others are sampled from the posterior tilted to the
    cost of the first, and cost no more as the posterior counts it: each gated layer with all of its outputs.

    Attributes:
        posterior: tilted to the first one's cost.
        first: the most probable one.
        limit: its cost as the posterior counts it; 0 if it has no channel.
        resource: 'parameters' or 'multiply_adds'.
        least: smallest exact cost of a candidate of this size.
        most: largest exact cost.
    """

    posterior: Posterior
    first: Architecture
    limit: float
    resource: str
    least: float
    most: float

    @classmethod
    def of(cls, posterior: Posterior, graph: Graph, target: Any) -> Sized:
        """Creates the sampler for the size of `target`.

        Args:
            posterior: posterior of a supernet.
            graph: graph of the same supernet.
            target: share of the cost of the full network.
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
        """Returns candidate `i`, a function of (seed, i) only. It may not have the size: see `misfit`."""
        return self.posterior.sample(1, seed, first=i, limit={self.resource: self.limit})[0] if i else self.first

    def misfit(self, price: float) -> str | None:
        """Returns LARGER or SMALLER if a candidate with this exact cost does not have the size, else None."""
        if price > self.most:
            return LARGER
        return SMALLER if price < self.least else None


def shortfall(misfits: Iterable[str | None], distinct: int) -> str:
    """Describes why fewer candidates can be compared than requested; '' if all can be, and are distinct.

    Args:
        misfits: for each candidate, why it cannot win, or None.
        distinct: number of distinct candidates among those that can.
    """
    counts = collections.Counter(misfits)
    able, asked = counts[None], counts.total()
    reason = [f"{counts[why]:,} {words}" for why, words in _MISFITS.items() if counts[why]]
    if able == asked and distinct == able:
        return ""
    words = f"{able:,} of {asked:,} candidates can be compared"
    if distinct < able:
        words += f", {distinct:,} of them different"
    return words + (f"; left out: {', '.join(reason)}" if reason else "")


_MISFITS: Mapping[str, str] = {
    NO_PATH: "without a path to the output",
    LARGER: "larger than was asked for",
    SMALLER: f"more than {_NEAR:.0%} smaller than the most probable network of that size",
}


def sample(supernet: Supernet, num_candidates: int, seed: int) -> list[Architecture]:
    """Samples candidates for `rank`: of the target size of `gate`, or without one, directly from the posterior.

    With a target, candidates have at most the target share of the parameters or multiply-adds, counted exactly, and are
    at most 3 % smaller than the first, which is the most probable network of the target size and not a sample. This
    makes them comparable, and they meet the target even if the expected size of the search has not reached it.

    If fewer candidates are returned than requested, or some are equal, a warning states how many and why.

    Args:
        supernet: trained supernet.
        num_candidates: number of candidates to sample. With a target, those of another size are omitted.
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
    if reason := shortfall(misfits, len({candidate.digest() for candidate in found})):
        terminal.warn(f"sample: {reason}")
    return found


def _misfit(graph: Graph, size: Sized, candidate: Architecture) -> str | None:
    if not graph.flow(candidate).reaches_outputs():
        return NO_PATH
    return size.misfit(count(graph, size.resource, candidate))
