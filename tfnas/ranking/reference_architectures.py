"""Reference architectures for the network found, of layers that choose their input channels, and of a given size.

Sizes are counted exactly: every channel has a threshold, and bisection finds the level above which channels are kept,
so that channels are only added as the size grows.
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

_DRAWS = {Kind.EVEN: 1, Kind.ALLOCATED: 2, Kind.SINGLE_PATH: 3}  # index of a kind in the seed of a sample
# Operations between a gated layer's output and the merge of a block.
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
    """Returns random candidate `i`, as large as allowed.

    Args:
        posterior: names the gated layers; its probabilities are not used.
        graph: graph of the supernet.
        most: largest cost.
        kind: EVEN keeps every channel with the same probability. ALLOCATED first draws a keep rate from U(0, 1) for
            every source of a layer's input.
        seed: seed of the set of candidates.
        i: index of the candidate; the sample is a function of (seed, kind, i) only.
        price: cost of an architecture, increasing with every channel; None means the subnet's parameters.
    """
    rng = np.random.default_rng([seed, _DRAWS[kind], i])
    thresholds = {}  # a channel is kept once the shift exceeds its threshold
    for gates in posterior.layers:
        sources = graph.group_sizes(gates.name) if kind == Kind.ALLOCATED else (gates.num_channels,)
        rate = rng.uniform(0.01, 0.99, len(sources)) if kind == Kind.ALLOCATED else np.full(1, 0.5)
        preference = np.repeat(np.log(rate) - np.log1p(-rate), sources)
        thresholds[gates.name] = rng.logistic(size=gates.num_channels) - preference

    return of_size(thresholds, most, price or counted(graph))


def magnitude_candidate(graph: Graph, scores: Mapping[str, np.ndarray], most: float) -> Architecture:
    """Keeps the channels with the largest scores over all layers, as many as allowed.

    Args:
        graph: graph of the supernet.
        scores: by gated layer, one number per input channel, shape (K,); infinite scores are always kept.
        most: largest number of parameters of the subnet, counted exactly.
    """
    thresholds = {name: -np.asarray(score, np.float64) for name, score in scores.items()}
    return of_size(thresholds, most, counted(graph))


def counted(graph: Graph) -> Callable[[Architecture], float]:
    """Returns a function from an architecture to the exact number of parameters of its subnet."""
    return lambda architecture: count(graph, "parameters", architecture)


def of_size(thresholds: Mapping[str, np.ndarray], most: float, price: Callable[[Architecture], float]) -> Architecture:
    """Returns the architecture with the highest common level that costs at most `most`; the lowest level if none does.

    Args:
        thresholds: by gated layer, float64, shape (K,): the level from which a channel is kept.
        most: largest cost.
        price: cost of an architecture, increasing with every channel.
    """
    # Below the lowest threshold, only channels are kept that are kept at every level.
    levels = np.concatenate([[-np.inf], np.unique(np.concatenate(list(thresholds.values())))])
    over = _bisected(0, len(levels), lambda i: price(_up_to(thresholds, levels[i])) <= most)
    return _up_to(thresholds, levels[over - 1])


def _up_to(thresholds: Mapping[str, np.ndarray], level: float) -> Architecture:
    return Architecture({name: threshold <= level for name, threshold in thresholds.items()})


def _bisected(low: int, high: int, below: Callable[[int], bool]) -> int:
    """Returns the first integer above `low` for which `below` is false, at most `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def even_drop(posterior: Posterior, architecture: Architecture) -> float:
    """Returns the common drop probability whose expected number of kernel weights kept equals that of `architecture`.

    Kernel weights of the gated layers, each with all of its outputs, as `Posterior.expected_cost` counts them.

    Returns:
        A number in [1e-6, 1 - 1e-6], because the gates of a supernet are never exactly certain.
    """
    kept = sum(int(architecture[g.name].sum()) * g.parameters_per_channel for g in posterior.layers)
    return float(np.clip(1 - kept / posterior.total_parameters(), 1e-6, 1 - 1e-6))


def choice_blocks(graph: Graph, gated: Collection[str]) -> list[list[str]]:
    """Finds the blocks of competing operations: gated layers of which a single-path network has one.

    Two or more operations of a block are inputs of the same merge or concatenation, with only normalizations,
    activations, pooling and padding in between, and are read by nothing else. A block does not include

    - a shortcut, which reads the origin of another operation that has further kernels: it is compatible with any;
    - equal layers that are concatenated (the two halves of the multi-branch ResNet's skip): parts of one operation.

    Args:
        graph: graph of the network or of the supernet.
        gated: names of the layers that may be dropped.

    Returns:
        Disjoint blocks in the order of the graph, each with the names of its layers in the order of the merge.
    """
    readers = [0] * len(graph.nodes)
    for node in graph.nodes:
        for i in node.inputs:
            readers[i] += 1
    above: list[set[int]] = []  # the ancestors of each node
    for node in graph.nodes:
        above.append({*node.inputs}.union(*(above[i] for i in node.inputs)))

    def operation(i: int) -> int | None:
        """Returns the gated layer whose output is node `i`, if nothing else reads it."""
        while readers[i] == 1:
            node = graph.nodes[i]
            if node.name in gated:
                return i
            if not isinstance(node, _PASSED):
                break
            i = node.inputs[0]
        return None

    def origin(i: int) -> int:
        """Returns the node that produces the input of layer `i`."""
        i = graph.nodes[i].inputs[0]
        while isinstance(graph.nodes[i], _PASSED) and graph.nodes[i].name not in gated:
            i = graph.nodes[i].inputs[0]
        return i

    def is_shortcut(one: int, other: int) -> bool:
        kernels = (k for k in above[other] if graph.nodes[k].kernel_is_cut)
        return any(origin(one) in above[k] for k in kernels)

    blocks = []
    for node in graph.nodes:
        if not isinstance(node, Merge | Concatenation):
            continue
        met = [i for i in map(operation, node.inputs) if i is not None]
        met = [i for i in met if not any(is_shortcut(i, other) for other in met)]
        equal_parts = isinstance(node, Concatenation) and len({_configuration(graph.nodes[i].inner) for i in met}) == 1
        if len(met) > 1 and not equal_parts:
            blocks.append([graph.nodes[i].name for i in met])
    return blocks


def _configuration(layer: object) -> str:
    """Returns the configuration of a layer without its name."""
    return repr({key: value for key, value in layer.get_config().items() if key != "name"})  # type: ignore[attr-defined]


def single_path(posterior: Posterior, blocks: Sequence[Sequence[str]], seed: int, i: int) -> Architecture:
    """Returns path `i`: one operation of each block, uniformly at random; all other gated layers are kept entirely.

    Args:
        posterior: names the gated layers; its probabilities are not used.
        blocks: blocks of `choice_blocks`.
        seed: seed of the set of paths.
        i: index of the path; the sample is a function of (seed, i) only.
    """
    rng = np.random.default_rng([seed, _DRAWS[Kind.SINGLE_PATH], i])
    dropped = {name for block in blocks for name in block} - {block[int(rng.integers(len(block)))] for block in blocks}
    return Architecture({g.name: np.full(g.num_channels, g.name not in dropped) for g in posterior.layers})
