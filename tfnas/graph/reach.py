"""The smallest network that given gates can leave, and the layers that account for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from tfnas.common.errors import UserError
from tfnas.common.terminal import warn
from tfnas.graph.channels import Flow, Graph
from tfnas.graph.costs import by_node, count

Keep = dict[str, np.ndarray]
_HOLDERS = 3  # how many layers without a gate are named, the largest first
_WORTH_NAMING = 0.05  # the least share of the smallest network that such a layer has


@dataclasses.dataclass(frozen=True)
class Reach:
    """The smallest network with a path from input to output that some gates leave.

    Attributes:
        keep: its architecture.
        share: its share of the full network's cost; another network may cost less if `least` is smaller.
        least: a lower bound of that share over all such networks.
    """

    keep: Keep
    share: float
    least: float

    @classmethod
    def of(cls, graph: Graph, gated: Collection[str], resource: str, enough: float = 0.0) -> Reach:
        """Computes the reach of gates on the layers `gated`.

        The search begins with one channel of every source of every gated layer's input, and drops whole layers, then
        sources, in the order of what that saves, as long as every output depends on the input. If every remaining layer
        is on every path, nothing smaller is possible; otherwise the layers that are give the lower bound.

        Args:
            graph: of the network, gated or not.
            gated: names of the layers whose input channels may be dropped.
            resource: 'parameters' or 'multiply_adds'.
            enough: the search ends at a network of this share.

        Raises:
            UserError: as `costs.count`.
        """
        full = count(graph, resource)

        def share(keep: Mapping[str, np.ndarray]) -> float:
            return count(graph, resource, keep) / full

        def connected(keep: Mapping[str, np.ndarray]) -> bool:
            return graph.flow(keep).reaches_outputs()

        complete = graph.flow({})
        keep = {name: _first_of_sources(complete, name) for name in gated}
        least, reached = 0.0, share(keep)
        for parts in (_layers, _channels):
            if reached <= enough:
                return cls(keep, reached, least)
            keep = _narrowed(keep, parts(keep), share, connected)
            reached = share(keep)
        # What is on every path costs no less in any other network; what no gate can drop is there as well.
        counts = by_node(graph, resource, keep)
        needed = {name for name, part in counts.items() if part and not connected({name: _none(graph, name)})}
        least = sum(counts[name] for name in needed) / full
        alone = share({name: mask if name in needed else _none(graph, name) for name, mask in keep.items()})
        return cls(keep, reached, min(reached, max(least, alone)))


def check(
    graph: Graph, gated: Collection[str], resource: str, share: float, others: Mapping[str, Collection[str]]
) -> None:
    """Warns about a share that may be out of reach, and rejects one that is.

    Args:
        graph: of the network, gated or not.
        gated: names of the layers whose input channels may be dropped.
        resource: 'parameters' or 'multiply_adds'.
        share: the requested share of it, in (0, 1).
        others: names of the layers gated under other options, by the words that describe the option; the message names
            the first option that brings the share within reach.

    Raises:
        UserError: if no network of that share has a path to the output.
    """
    reach = Reach.of(graph, gated, resource, share)
    if reach.share <= share:
        return
    of = resource.replace("_", "-")
    full = count(graph, resource)
    shares = {name: part / full for name, part in by_node(graph, resource, reach.keep).items()}
    holders = sorted((name for name in shares if name not in gated), key=lambda name: -shares[name])
    held = [
        f"'{name}' ({shares[name]:.1%})" for name in holders[:_HOLDERS] if shares[name] >= _WORTH_NAMING * reach.share
    ]
    advice = next(
        (
            f"{words} brings it within reach"
            for words, more in others.items()
            if Reach.of(graph, more, resource, share).share <= share
        ),
        "ask for a larger share, or name more layers in include, or fewer in exclude",
    )
    smallest = (
        f"the smallest network with a path to the output that these gates leave has {reach.share:.1%} of the {of}"
        + (f", held by what has no gate: {', '.join(held)}" if held else "")
    )
    if share < reach.least:
        raise UserError(f"gate: {resource}={share:g} is out of reach: {smallest}; {advice}")
    warn(f"gate: {resource}={share:g} may be out of reach: {smallest}, of those found; {advice}")


def _none(graph: Graph, name: str) -> np.ndarray:
    """A mask that keeps no input channel of a node."""
    inputs = graph.nodes[graph.index[name]].inputs
    return np.zeros(graph.nodes[inputs[0]].num_channels, bool)


def _first_of_sources(flow: Flow, name: str) -> np.ndarray:
    """A mask of one channel of each source of a layer's input: the first that depends on the model's input."""
    graph = flow.graph
    depends = flow.depends[graph.nodes[graph.index[name]].inputs[0]]
    keep = np.zeros_like(depends)
    start = 0
    for size in graph.group_sizes(name):
        part = depends[start : start + size]
        if part.any():
            keep[start + int(part.argmax())] = True
        start += size
    return keep


def _layers(keep: Keep) -> list[tuple[str, np.ndarray]]:
    """Each layer with the channels that it would lose: all."""
    return [(name, mask) for name, mask in keep.items()]


def _channels(keep: Keep) -> list[tuple[str, np.ndarray]]:
    """Each kept channel of the layers that keep several."""
    numbers = [(name, mask, k) for name, mask in keep.items() if mask.sum() > 1 for k in np.flatnonzero(mask)]
    return [(name, np.arange(mask.size) == k) for name, mask, k in numbers]


def _narrowed(
    keep: Keep,
    parts: Sequence[tuple[str, np.ndarray]],
    share: Callable[[Keep], float],
    connected: Callable[[Keep], bool],
) -> Keep:
    """`keep` without the parts that it does not need; the most expensive are tried first."""

    def without(name: str, lost: np.ndarray) -> Keep:
        return {**keep, name: keep[name] & ~lost}

    left = [(share(less), i) for i, part in enumerate(parts) if connected(less := without(*part))]
    for _, i in sorted(left):
        less = without(*parts[i])
        if connected(less):
            keep = less
    return keep
