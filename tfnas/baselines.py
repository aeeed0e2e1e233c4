"""Architectures of a given size: the posterior's most probable one, and what the network found is compared with.

Sizes are counted exactly: every channel has a threshold, and the level above which it is kept is found by bisection, so
that channels are only ever added as the size grows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from tfnas.architecture import Architecture
from tfnas.channels import Graph
from tfnas.costs import cost
from tfnas.kinds import CUT_KINDS
from tfnas.posterior import Posterior

EVEN = "random, spread evenly"
ALLOCATED = "random, allocated per layer"
_SINGLE_PATH = 3  # its place among the kinds in a draw's seed, after those two
# Through these an operation's output goes to where operations meet.
_PASSED = frozenset(("norm", "scale", "pointwise", "spatial", "padding"))


def random_candidate(posterior: Posterior, graph: Graph, parameters: int, kind: str, seed: int, i: int) -> Architecture:
    """Random candidate number `i` with the nearest size to `parameters` at or above it.

    Args:
        posterior: gives the gated layers; its probabilities are not used.
        graph: of the supernet.
        parameters: trainable parameters of the subnet wanted.
        kind: EVEN: every channel alike. ALLOCATED: every source of a layer's input first draws a keep rate, U(0, 1).
        seed: of the whole set of candidates.
        i: number of the candidate; the draw is a function of (seed, kind, i) alone.
    """
    rng = np.random.default_rng([seed, (EVEN, ALLOCATED).index(kind) + 1, i])
    thresholds = {}  # a channel is kept once the shift exceeds its threshold
    for gates in posterior.layers:
        sources = graph.group_sizes(gates.name) if kind == ALLOCATED else (gates.num_channels,)
        rate = rng.uniform(0.01, 0.99, len(sources)) if kind == ALLOCATED else np.full(1, 0.5)
        preference = np.repeat(np.log(rate) - np.log1p(-rate), sources)
        thresholds[gates.name] = rng.logistic(size=gates.num_channels) - preference

    return of_size(graph, thresholds, parameters)


def magnitude_candidate(graph: Graph, scores: Mapping[str, np.ndarray], parameters: int) -> Architecture:
    """The channels of the largest scores over all layers, of the nearest size to `parameters` at or above it.

    Args:
        graph: of the supernet.
        scores: by gated layer, one number per input channel, shape (K,); infinite: kept at every size.
        parameters: trainable parameters of the subnet wanted.
    """
    return of_size(graph, {name: -np.asarray(score, np.float64) for name, score in scores.items()}, parameters)


def of_size(graph: Graph, thresholds: Mapping[str, np.ndarray], parameters: int) -> Architecture:
    """The architecture of the lowest common level that has `parameters` or more; all channels if none has.

    Args:
        graph: of the supernet.
        thresholds: by gated layer, float64, shape (K,): a channel is kept once the level exceeds its threshold.
        parameters: trainable parameters of the subnet wanted.
    """

    levels = np.sort(np.concatenate(list(thresholds.values())))
    # Nothing at all is too small, all is the largest there is.
    first = _bisected(-1, len(levels) - 1, lambda i: cost(graph, _up_to(thresholds, levels[i])).parameters < parameters)
    return _up_to(thresholds, levels[first])


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
    last = _bisected(-1, len(drops), lambda i: getattr(cost(graph, _up_to(thresholds, float(i))), resource) <= most)
    return _up_to(thresholds, last - 1.0)


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
            if node.kind not in _PASSED:
                break
            i = node.inputs[0]
        return None

    def origin(i: int) -> int:
        """The node that made what layer `i` reads."""
        i = graph.nodes[i].inputs[0]
        while graph.nodes[i].kind in _PASSED and graph.nodes[i].name not in gated:
            i = graph.nodes[i].inputs[0]
        return i

    def goes_round(one: int, other: int) -> bool:
        kernels = (k for k in above[other] if graph.nodes[k].kind in CUT_KINDS)
        return any(origin(one) in above[k] for k in kernels)

    blocks = []
    for node in graph.nodes:
        if node.kind not in ("merge", "concat"):
            continue
        met = [i for i in map(operation, node.inputs) if i is not None]
        met = [i for i in met if not any(goes_round(i, other) for other in met)]
        alike = node.kind == "concat" and len({_configuration(graph.nodes[i].inner) for i in met}) == 1
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
    rng = np.random.default_rng([seed, _SINGLE_PATH, i])
    dropped = {name for block in blocks for name in block} - {block[int(rng.integers(len(block)))] for block in blocks}
    return Architecture({g.name: np.full(g.num_channels, g.name not in dropped) for g in posterior.layers})
