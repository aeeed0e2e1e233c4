"""Which channels exist or vanish as one: the classes of what layers tie (docs/method.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse

from tfnas.layers import Merge
from tfnas.layers.base import Node

PINNED = -1  # in place of the number of a unit


def partition(
    nodes: Sequence[Node],
    outputs: Iterable[int],
    excluded: set[int],
    streams: bool,
    depends: Sequence[np.ndarray],
    shared: Iterable[Sequence[int]],
) -> tuple[list[np.ndarray], list[int], list[str], list[bool]]:
    """Numbers the units, group by group.

    Args:
        nodes: of the graph.
        outputs: numbers of the nodes that are the model's outputs.
        excluded: numbers of the nodes whose output channels are pinned.
        streams: whether the units of streams may vanish too.
        depends: by node, which channels depend on the model's input, bool, shape (C,).
        shared: numbers of the calls of each layer that is called several times.

    Returns:
        For each node the unit of every output channel, int, shape (C,), `PINNED` for one that always exists; and by
        group its size, its name (that of its first writer), and whether it is a stream.
    """
    first = np.cumsum([0, *(node.num_channels for node in nodes)])  # number of each node's first channel
    rows, columns = [], []
    pinned = np.zeros(first[-1], bool)
    in_stream = np.zeros(first[-1], bool)
    writers: list[frozenset[int]] = []  # by node, those that write the channels that it has
    for i, node in enumerate(nodes):
        own = slice(first[i], first[i + 1])
        ties = [node.ties(j) for j in range(len(node.inputs))]
        for j, start in (*enumerate(first[list(node.inputs)].tolist()), (None, first[i])):
            labels = node.together(j)
            if labels is not None:  # each channel is tied to the first of its label
                _, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
                rows.append(start + np.arange(labels.size))
                columns.append(start + firsts[inverse])
        for j, (source, tied) in enumerate(zip(node.inputs, ties, strict=True)):
            if tied is not None:
                there = np.flatnonzero(tied >= 0)
                rows.append(first[i] + there)
                columns.append(first[source] + tied[there])
            if node.pins(j):
                pinned[first[source] : first[source + 1]] = True
        for a, b in itertools.pairwise(node.inputs[j] for j in node.meets):
            rows.append(np.arange(first[a], first[a + 1]))
            columns.append(np.arange(first[b], first[b + 1]))
        uncut = not node.mixes and all(tied is None for tied in ties)
        pinned[own] |= uncut or node.full_output or i in excluded
        joined = [source for source, tied in zip(node.inputs, ties, strict=True) if tied is not None]
        writers.append(frozenset().union(*(writers[source] for source in joined)) if joined else frozenset({i}))
        # A sum makes a stream of what several layers write: neither of an offset, nor of one number for all channels.
        added = {writers[source] for source in joined if depends[source].any()}
        in_stream[own] |= isinstance(node, Merge) and node.additive and len(added) > 1
    for i in outputs:
        pinned[first[i] : first[i + 1]] = True
    for one, *others in shared:
        for i in others:
            for a, b in zip((one, *nodes[one].inputs), (i, *nodes[i].inputs), strict=True):
                size = min(nodes[a].num_channels, nodes[b].num_channels)  # they differ between the outputs of one call
                rows.append(first[a] + np.arange(size))
                columns.append(first[b] + np.arange(size))
    pairs = (np.concatenate(rows), np.concatenate(columns)) if rows else (np.zeros(0, int), np.zeros(0, int))
    ties_matrix = scipy.sparse.coo_array((np.ones(pairs[0].size), pairs), shape=(first[-1], first[-1]))
    num_classes, class_of = scipy.sparse.csgraph.connected_components(ties_matrix, directed=False)
    is_pinned, is_stream = np.zeros(num_classes, bool), np.zeros(num_classes, bool)
    is_pinned[class_of[pinned]] = True
    is_stream[class_of[in_stream]] = True
    is_pinned |= is_stream & (not streams)
    by_node = [class_of[first[i] : first[i + 1]] for i in range(len(nodes))]
    # A class that nothing reads, or nothing writes, or that is the same for any input, is not chosen.
    varies = np.zeros(num_classes, bool)
    varies[class_of[np.concatenate(depends)]] = True
    read, written = np.zeros(num_classes, bool), np.zeros(num_classes, bool)
    for i, node in enumerate(nodes):
        if node.mixes:
            written[by_node[i]] = True
            read[by_node[node.inputs[0]]] = True
        for j in node.meets:
            read[by_node[node.inputs[j]]] = True
    free = np.flatnonzero(~is_pinned & read & written & varies)
    # In which tensors each class appears, and how often: the same for all units of a group.
    appearances: dict[int, list[tuple[int, int]]] = {int(c): [] for c in free}
    for i, classes in enumerate(by_node):
        for c, count in zip(*np.unique(classes, return_counts=True), strict=True):
            if int(c) in appearances:
                appearances[int(c)].append((i, int(count)))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for c, where in appearances.items():
        groups.setdefault(tuple(where), []).append(c)
    ordered = sorted(groups.items())
    unit_of = np.full(num_classes, PINNED)
    members = [c for _, classes in ordered for c in classes]
    unit_of[members] = np.arange(len(members))
    names: list[str] = []
    for places, _ in ordered:
        writer = next(nodes[i].name for i, _ in places if nodes[i].mixes)
        taken = sum(name.partition("#")[0] == writer for name in names)
        names.append(f"{writer}#{taken + 1}" if taken else writer)
    streams_of = [bool(is_stream[classes[0]]) for _, classes in ordered]
    return [unit_of[classes] for classes in by_node], [len(c) for _, c in ordered], names, streams_of
