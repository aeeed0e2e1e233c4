"""Architectures of a given size: the posterior's most probable one, and what the network found is compared with.

Sizes are counted exactly: every channel has a threshold, and the level above which it is kept is found by bisection, so
that channels are only ever added as the size grows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from tfnas.graph.channels import Graph
from tfnas.graph.costs import count
from tfnas.layers import BatchNormalization, Concatenation, Merge, Padding, Pointwise, Scale, Spatial
from tfnas.runs.sampled import Kind
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior

_DRAWS = {Kind.EVEN: 1, Kind.ALLOCATED: 2, Kind.SINGLE_PATH: 3}  # a kind's number in a draw's seed
# Through these an operation's output goes to where operations meet.
_PASSED = (BatchNormalization, Scale, Pointwise, Spatial, Padding)


def random_candidate(
    posterior: Posterior,
    graph: Graph,
    most: float,
    kind: Kind,
    seed: int,
    i: int,
    price: Callable[[Architecture], float] | None = None,
) -> Architecture:
    """Random candidate number `i`, as large as it may be.

    Args:
        posterior: gives the gated layers; its probabilities are not used.
        graph: of the supernet.
        most: what it may cost.
        kind: EVEN: every channel alike. ALLOCATED: every source of a layer's input first draws a keep rate, U(0, 1).
        seed: of the whole set of candidates.
        i: number of the candidate; the draw is a function of (seed, kind, i) alone.
        price: what an architecture costs, more with every channel; None: the subnet's parameters.
    """
    rng = np.random.default_rng([seed, _DRAWS[kind], i])
    thresholds = {}  # a channel is kept once the shift exceeds its threshold
    for gates in posterior.layers:
        sources = graph.group_sizes(gates.name) if kind == Kind.ALLOCATED else (gates.num_channels,)
        rate = rng.uniform(0.01, 0.99, len(sources)) if kind == Kind.ALLOCATED else np.full(1, 0.5)
        preference = np.repeat(np.log(rate) - np.log1p(-rate), sources)
        thresholds[gates.name] = rng.logistic(size=gates.num_channels) - preference

    return of_size(thresholds, most, price or counted(graph))


def magnitude_candidate(
    graph: Graph, scores: Mapping[str, np.ndarray], most: float, resource: str = "parameters"
) -> Architecture:
    """The channels of the largest scores over all layers, as many as there may be.

    Args:
        graph: of the supernet.
        scores: by gated layer, one number per input channel, shape (K,); infinite: kept at every size.
        most: what the subnet may cost.
        resource: 'parameters' or 'multiply_adds', counted exactly.
    """
    thresholds = {name: -np.asarray(score, np.float64) for name, score in scores.items()}
    return of_size(thresholds, most, counted(graph, resource))


def counted(graph: Graph, resource: str = "parameters") -> Callable[[Architecture], float]:
    """What a supernet's subnet costs, counted exactly, in 'parameters' or 'multiply_adds', as a function of it."""
    return lambda architecture: count(graph, resource, architecture)


def of_size(thresholds: Mapping[str, np.ndarray], most: float, price: Callable[[Architecture], float]) -> Architecture:
    """The architecture of the highest common level that costs at most `most`; of the lowest one if none does.

    Args:
        thresholds: by gated layer, float64, shape (K,): a channel is kept from that level on.
        most: what it may cost.
        price: what an architecture costs, more with every channel.
    """
    # Below the lowest threshold nothing is kept, but for what is kept at every level.
    levels = np.concatenate([[-np.inf], np.unique(np.concatenate(list(thresholds.values())))])
    over = _bisected(0, len(levels), lambda i: price(_up_to(thresholds, levels[i])) <= most)
    return _up_to(thresholds, levels[over - 1])


def within(posterior: Posterior, graph: Graph, resource: str, most: float) -> Architecture:
    """The most probable channels, as many as there may be: the posterior's mode, were its keep logits moved alike.

    Of equally probable ones the first of each layer come first, so that the size is met as nearly where channels share
    a gate.

    Args:
        posterior: of the supernet.
        graph: of the supernet.
        resource: 'parameters' or 'multiply_adds' of the subnet, counted exactly.
        most: what it may have of them; nothing is kept where that is too little for any channel.
    """
    drops = np.concatenate([g.channel_drop for g in posterior.layers])
    places = np.concatenate([np.arange(g.num_channels) for g in posterior.layers])
    ranks = np.empty(len(drops))
    ranks[np.lexsort((places, drops))] = np.arange(len(drops))
    ends = np.cumsum([g.num_channels for g in posterior.layers])[:-1]
    thresholds = dict(zip((g.name for g in posterior.layers), np.split(ranks, ends), strict=True))
    return of_size(thresholds, most, counted(graph, resource))


def _up_to(thresholds: Mapping[str, np.ndarray], level: float) -> Architecture:
    return Architecture({name: threshold <= level for name, threshold in thresholds.items()})


def _bisected(low: int, high: int, below: Callable[[int], bool]) -> int:
    """The first number above `low` for which `below` no longer holds; `high` if there is none before it."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def even_drop(posterior: Posterior, architecture: Architecture) -> float:
    """The drop probability that, the same in every gate, is expected to keep as many kernel weights as `architecture`.

    Kernel weights of the gated layers, each with all of its outputs, as `Posterior.expected_cost` counts them.

    Returns:
        A number in [1e-6, 1 - 1e-6], because the gates of a supernet are never quite certain.
    """
    kept = sum(int(architecture[g.name].sum()) * g.parameters_per_channel for g in posterior.layers)
    return float(np.clip(1 - kept / posterior.total_parameters(), 1e-6, 1 - 1e-6))


def choice_blocks(graph: Graph, gated: Collection[str]) -> list[list[str]]:
    """Where operations compete: each block lists gated layers of which a single-path network has one.

    The operations of a block meet in one merge or concatenation, two or more of them, each directly but for
    normalisations, activations, pooling and padding, and feed nothing else. Not among them are

    - a shortcut, which reads what another of them is computed from through further kernels: it stays beside any;
    - equal layers that are concatenated (the two halves of the multi-branch ResNet's skip): parts of one operation.

    Args:
        graph: of the network or of the supernet.
        gated: names of the layers that may be dropped.

    Returns:
        Blocks in the graph's order, disjoint, each with its layers' names in the order in which they are joined.
    """
    readers = [0] * len(graph.nodes)
    for node in graph.nodes:
        for i in node.inputs:
            readers[i] += 1
    above: list[set[int]] = []  # of each node, all that it is computed from
    for node in graph.nodes:
        above.append({*node.inputs}.union(*(above[i] for i in node.inputs)))

    def operation(i: int) -> int | None:
        """The gated layer whose output node `i` is and nobody else reads."""
        while readers[i] == 1:
            node = graph.nodes[i]
            if node.name in gated:
                return i
            if not isinstance(node, _PASSED):
                break
            i = node.inputs[0]
        return None

    def origin(i: int) -> int:
        """The node that made what layer `i` reads."""
        i = graph.nodes[i].inputs[0]
        while isinstance(graph.nodes[i], _PASSED) and graph.nodes[i].name not in gated:
            i = graph.nodes[i].inputs[0]
        return i

    def goes_round(one: int, other: int) -> bool:
        kernels = (k for k in above[other] if graph.nodes[k].kernel_is_cut)
        return any(origin(one) in above[k] for k in kernels)

    blocks = []
    for node in graph.nodes:
        if not isinstance(node, Merge | Concatenation):
            continue
        met = [i for i in map(operation, node.inputs) if i is not None]
        met = [i for i in met if not any(goes_round(i, other) for other in met)]
        alike = isinstance(node, Concatenation) and len({_configuration(graph.nodes[i].inner) for i in met}) == 1
        if len(met) > 1 and not alike:
            blocks.append([graph.nodes[i].name for i in met])
    return blocks


def _configuration(layer: object) -> str:
    """All that says what a layer does, but for its name."""
    return repr({key: value for key, value in layer.get_config().items() if key != "name"})  # type: ignore[attr-defined]


def single_path(posterior: Posterior, blocks: Sequence[Sequence[str]], seed: int, i: int) -> Architecture:
    """Path number `i`: of each block one operation, uniformly at random and whole; all other gated layers whole.

    Args:
        posterior: gives the gated layers; its probabilities are not used.
        blocks: of `choice_blocks`.
        seed: of the whole set of paths.
        i: number of the path; the draw is a function of (seed, i) alone.
    """
    rng = np.random.default_rng([seed, _DRAWS[Kind.SINGLE_PATH], i])
    dropped = {name for block in blocks for name in block} - {block[int(rng.integers(len(block)))] for block in blocks}
    return Architecture({g.name: np.full(g.num_channels, g.name not in dropped) for g in posterior.layers})
