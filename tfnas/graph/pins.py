"""Limits of a search: the largest share that it can remove, and the layers that keep a whole stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from tfnas.graph.channels import Graph
from tfnas.graph.units import UnitGraph
from tfnas.layers import Merge
from tfnas.search_space.closed_form import ClosedForm


def removable(form: ClosedForm, multiple: int = 1) -> dict[str, float]:
    """Largest share of the full network's cost that an architecture can lack, by resource, in [0, 1).

    Args:
        form: costs of the network.
        multiple: `channel_multiple`.
    """
    return {resource: 1 - form.least(resource, multiple) / form.full(resource) for resource in form.terms}


def stream_pins(graph: UnitGraph) -> dict[str, list[str]]:
    """Layers that keep all channels of a stream, whether streams may vanish or not.

    Returns:
        By the first sum of each stream that they pin, the names of the layers that read it and need all of its
        channels, or that write it and always make all of theirs: inputs, outputs, layers that are left whole or that
        match `exclude`.
    """
    nodes = graph.nodes
    tied = [
        (i, source)
        for i, node in enumerate(nodes)
        for j, source in enumerate(node.inputs)
        if (ties := node.ties(j)) is not None and (ties >= 0).any()
    ]
    matrix = scipy.sparse.coo_array((np.ones(len(tied)), np.array(tied).reshape(-1, 2).T), shape=(len(nodes),) * 2)
    _, class_of = scipy.sparse.csgraph.connected_components(matrix, directed=False)
    pins: dict[int, dict[str, None]] = {}
    for i, node in enumerate(nodes):
        for j, source in enumerate(node.inputs):
            if node.pins(j):
                pins.setdefault(class_of[source], {})[node.name] = None
        if _keeps_own(graph, i) or i in graph.outputs or i in graph.excluded:
            pins.setdefault(class_of[i], {})[node.name] = None
    found: dict[int, str] = {}
    for i, node in enumerate(nodes):
        if isinstance(node, Merge) and node.additive and len(node.inputs) > 1 and class_of[i] in pins:
            found.setdefault(class_of[i], node.name)
    return {name: list(pins[number]) for number, name in found.items()}


def _keeps_own(graph: Graph, i: int) -> bool:
    """Whether a node always makes all of its channels."""
    node = graph.nodes[i]
    ties: Sequence[np.ndarray | None] = [node.ties(j) for j in range(len(node.inputs))]
    return node.full_output or (not node.mixes and all(tie is None for tie in ties))
