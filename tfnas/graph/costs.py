"""The exact cost of an architecture, in parameters and multiply-adds, without building it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfnas.common.errors import UserError
from tfnas.graph.channels import Flow, Graph
from tfnas.layers.base import Node


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a forward pass of one example.

    Attributes:
        parameters: number of kernel weights, biases, scales and offsets, including those of frozen layers, without
            moving statistics: what would be trained if nothing were frozen.
        multiply_adds: of convolutions and dense layers.
    """

    parameters: int
    multiply_adds: int


def cost(network: Any, keep: Mapping[str, np.ndarray] | None = None) -> Cost:
    """Returns the cost of a network, or of what an architecture keeps of it.

    A network itself costs what Keras counts, including channels that nothing reads, such as an unused half of a split.
    No architecture has those.

    Args:
        network: any Keras model that tfnas knows the layers of, a supernet, or a `Graph`.
        keep: an Architecture.

    Raises:
        UserError: if the network has no fixed image size, or a layer whose multiply-adds are not known.
    """
    graph = network if isinstance(network, Graph) else getattr(network, "graph", None) or Graph(network)
    flow = graph.flow(keep) if keep else None
    return Cost(*(sum(_of(resource, graph, flow).values()) for resource in ("parameters", "multiply_adds")))


def count(graph: Graph, resource: str, keep: Mapping[str, np.ndarray] | None = None) -> int:
    """Returns one part of `cost`; parameters are known even if the image has no fixed size.

    Args:
        graph: as of `cost`.
        resource: 'parameters' or 'multiply_adds'.
        keep: as of `cost`.

    Raises:
        UserError: as `cost`, with 'multiply_adds'.
    """
    return sum(by_node(graph, resource, keep).values())


def by_node(graph: Graph, resource: str, keep: Mapping[str, np.ndarray] | None = None) -> dict[str, int]:
    """Returns each node's share of that count, by name; nodes that do not work (`Flow.works`) have none.

    Takes and raises what `count` does.
    """
    return _of(resource, graph, graph.flow(keep) if keep else None)


def _of(resource: str, graph: Graph, flow: Flow | None) -> dict[str, int]:
    """Each node's share of the count under an architecture; without one, of the network as it is."""
    counts = {}
    counted: set[Any] = set()  # layers whose parameters are counted, which may be called again
    for i, node in enumerate(graph.nodes):
        if flow is None:
            parameters, weights = node.count_of(node.all_kept.size, node.num_channels)
        else:
            parameters, weights = node.count(flow.at(i)) if flow.works(i) else (0, 0)
        if resource != "parameters":
            counts[node.name] = weights and weights * _positions(node)
            continue
        counts[node.name] = 0 if node.has_weights_of in counted else parameters
        if node.shared and (flow is None or flow.works(i)):
            counted.add(node.has_weights_of)
    return counts


def _positions(node: Node) -> int:
    positions = node.positions
    if positions is None:
        raise UserError(
            f"cost: layer '{node.name}': a fixed spatial size expected. Received: {node.spatial}; give the model's "
            "input one, such as keras.Input((32, 32, 3))"
        )
    return positions * node.examples
