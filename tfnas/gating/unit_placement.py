"""Places of the gates of channel units, one on every path from a writer to a reader, and the network with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.gating.unit_gates import GatedNormalization, KeptNormalization, KeptReduction, UnitDraw, UnitGate
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph
from tfnas.layers import BatchNormalization, Input, Merge
from tfnas.layers.base import Node
from tfnas.search_space.architecture import Architecture

Edge = tuple[int, int]  # a node, and which of its inputs
_OUTPUT = -1  # in place of a node: the model's outputs, which ask for no gate


@dataclasses.dataclass(frozen=True)
class Place:
    """One gate: it multiplies the tensor of a node, as some of the tensor's readers see it.

    Attributes:
        source: the node.
        edges: the inputs of other nodes that are given the gated tensor.
        channels: which channels it multiplies, bool, shape (C,).
        folds: whether it is in the scale and offset of `source`, a normalization, whose tensor nothing else reads.
    """

    source: int
    edges: tuple[Edge, ...]
    channels: np.ndarray
    folds: bool


@dataclasses.dataclass(frozen=True)
class _Demand:
    """A request to a tensor at one of its edges.

    Attributes:
        channels: which of its channels must be multiplied by their gates before they are read, bool, shape (C,).
        places: at this edge or behind it, where they are if nothing above does it.
    """

    channels: np.ndarray
    places: tuple[Place, ...]


def unit_places(nodes: Sequence[Node], outputs: Sequence[int], of: Sequence[np.ndarray], fold: bool) -> list[Place]:
    """The places of the gates.

    From the readers upwards: where edges of a tensor ask for the same gates, these stand at the tensor if that takes no
    more multiplications; where all its edges do, and its layer treats channels one by one and makes zero of zero, the
    layer's inputs are asked for them. Of the operands of a product one is. A gate never moves above a sum or another
    merge, nor above what makes a constant of zero. So no normalization stands between a gate and its reader.

    Args:
        nodes: of the plain graph, in topological order.
        outputs: numbers of the nodes that are the model's outputs.
        of: for each node the unit of every output channel, int, shape (C,); -1 for none.
        fold: whether a gate may be in the scale and offset of a normalization, where it takes no multiplications.

    Returns:
        The places, in the order of their sources.
    """
    return _Placement(nodes, of, fold).places(outputs)


def alive_edges(nodes: Sequence[Node], mortal: Sequence[bool]) -> list[Edge]:
    """Inputs of sums that inference multiplies by whether they depend on the model's input under an architecture.

    Of an absent operand nothing is added, not what the layers behind an absent unit make of zero.

    Args:
        nodes: as for `unit_places`.
        mortal: for each node whether some architecture leaves it no channel that depends on the input.
    """
    return [
        (i, j)
        for i, node in enumerate(nodes)
        if isinstance(node, Merge) and node.adds
        for j, source in enumerate(node.inputs)
        if mortal[source]
    ]


class _Placement:
    def __init__(self, nodes: Sequence[Node], of: Sequence[np.ndarray], fold: bool):
        self._nodes = nodes
        self._of = of
        self._fold = fold

    def places(self, outputs: Sequence[int]) -> list[Place]:
        demands: list[dict[Edge, _Demand]] = [{} for _ in self._nodes]
        for i in outputs:
            demands[i][_OUTPUT, 0] = self._nothing(i)
        found: list[Place] = []
        for i in reversed(range(len(self._nodes))):
            node = self._nodes[i]
            classes = _classes(demands[i])
            plans = [] if node.multiplies else [self._cheapest(i, edges, len(classes) == 1) for edges in classes]
            passed = self._passed(i, plans[0]) if len(plans) == 1 else {}
            if not passed:
                found += [place for plan in plans for place in plan.places]
            # Of channels that meet in a product, those of one operand are multiplied.
            one = min(node.meets, key=lambda j: _positions(node.input_spatial[j]), default=None)
            for j, source in enumerate(node.inputs):
                if node.mixes or node.multiplies or j == one:
                    wanted = self._of[source] != PINNED
                    places = (Place(source, ((i, j),), wanted, False),) if wanted.any() else ()
                    demands[source][i, j] = _Demand(wanted, places)
                else:
                    demands[source][i, j] = passed.get(j) or self._nothing(source)
        return _merged(found)

    def _nothing(self, i: int) -> _Demand:
        return _Demand(np.zeros(self._nodes[i].num_channels, bool), ())

    def _cost(self, places: Sequence[Place]) -> int:
        """Multiplications for one example; an axis of unknown size counts as one position."""
        return sum(0 if p.folds else _positions(self._nodes[p.source].spatial) * int(p.channels.sum()) for p in places)

    def _cheapest(self, i: int, edges: Mapping[Edge, _Demand], entire: bool) -> _Demand:
        """One gate at the tensor of node `i` for these edges, or what each has behind it.

        `entire` says that these are all that the tensor has.
        """
        node, channels = self._nodes[i], next(iter(edges.values())).channels
        behind = tuple(place for demand in edges.values() for place in demand.places)
        if not channels.any():
            return _Demand(channels, behind)
        folds = (
            self._fold
            and entire
            and isinstance(node, BatchNormalization)
            and node.inner.scale
            and node.inner.center
            and not node.shared  # the other calls have no gate of this one
        )
        here = (Place(i, tuple(edges), channels, folds),)
        return _Demand(channels, here if self._cost(here) <= self._cost(behind) else behind)

    def _passed(self, i: int, plan: _Demand) -> dict[int, _Demand]:
        """Requests of a node to its inputs instead of being multiplied itself, by input; none if it cannot."""
        node = self._nodes[i]
        # Noise makes no zero of zero in training; the derivative of a root at 0 is infinite, and times 0 not a number.
        unfit = isinstance(node.inner, keras.layers.GaussianNoise) or type(node.inner).__name__ in (
            "Sqrt",
            "Power",
            "Norm",
        )
        if not plan.channels.any() or node.mixes or not node.inputs or not node.zero_to_zero or unfit:
            return {}
        if isinstance(node, Merge):
            able = [j for j in range(len(node.inputs)) if node.ties(j) is not None]
            if node.operation != "Multiply" or not able:
                return {}
            return {min(able, key=lambda j: _positions(node.input_spatial[j])): plan}
        asked: dict[int, _Demand] = {}
        units: list[np.ndarray] = []
        for j, source in enumerate(node.inputs):
            ties = node.ties(j)
            if ties is None or node.together(j) is not None:
                return {}
            there = ties >= 0
            channels = np.zeros(node.input_channels[j], bool)
            channels[ties[there & plan.channels]] = True
            if (channels[ties[there]] != plan.channels[there]).any():
                return {}  # of the channels made of one, some are to be multiplied and some not
            units.append(np.unique(self._of[source][channels]))
            asked[j] = _Demand(channels, self._restricted(plan.places, units[-1]))
        if sum(map(len, units)) > len(np.unique(np.concatenate(units))):
            return {}  # a unit that two inputs have: `_restricted` could not tell them apart
        return asked

    def _restricted(self, places: Sequence[Place], units: np.ndarray) -> tuple[Place, ...]:
        """Their part that multiplies these units."""
        parts = [dataclasses.replace(p, channels=p.channels & np.isin(self._of[p.source], units)) for p in places]
        return tuple(part for part in parts if part.channels.any())


def _positions(spatial: Sequence[int | None]) -> int:
    return math.prod(size or 1 for size in spatial)


def _classes(demands: Mapping[Edge, _Demand]) -> list[dict[Edge, _Demand]]:
    """Edges that ask for the same."""
    classes: dict[bytes, dict[Edge, _Demand]] = {}
    for edge, demand in sorted(demands.items(), key=lambda item: item[0]):
        classes.setdefault(demand.channels.tobytes(), {})[edge] = demand
    return list(classes.values())


def _merged(places: Sequence[Place]) -> list[Place]:
    """One place for all that multiply the same tensor for the same edges, in the order of their sources."""
    merged: dict[tuple[int, tuple[Edge, ...]], Place] = {}
    for place in places:
        key = (place.source, place.edges)
        other = merged.get(key)
        merged[key] = dataclasses.replace(place, channels=place.channels | other.channels) if other else place
    return [merged[key] for key in sorted(merged)]


class GatedNetwork:
    """The network with gates.

    Attributes:
        network: the functional model.
    """

    def __init__(self, graph: UnitGraph, draw: UnitDraw):
        self._graph = graph
        self._draw = draw
        self._placed: list[tuple[Place, UnitGate | GatedNormalization]] = []
        # Gates of which channels there are at a node, whether or not their units are kept elsewhere; with its number.
        self._there: list[tuple[int, UnitGate | KeptNormalization | KeptReduction]] = []
        self._groups: list[tf.Tensor] = []  # the draw's output
        self._names = set(graph.index)
        at: dict[int, list[Place]] = {}
        for place in unit_places(graph.nodes, graph.outputs, graph.of, draw.noise != "example"):
            at.setdefault(place.source, []).append(place)
        alive = set(alive_edges(graph.nodes, graph.mortal))
        tensors: list[Any] = []
        instead: dict[Edge, Any] = {}  # gated tensors, by the edges that are given them
        for i, node in enumerate(graph.nodes):
            if isinstance(node, Input):
                tensor = node.tensor()
                self._groups = self._groups or draw(tensor)
            else:
                given = [instead.get((i, j), tensors[source]) for j, source in enumerate(node.inputs)]
                for j, source in enumerate(node.inputs):
                    if (i, j) in alive:
                        gate = UnitGate(name=self._name(f"{graph.nodes[source].name}_alive"), dtype="float32")
                        self._there.append((source, gate))
                        given[j] = gate([given[j]])
                tensor = None if self._folds(at.get(i)) else self._called(node, given)
            for place in at.get(i, ()):
                units, drawn = self._units(i, place.channels)
                if place.folds:
                    layer = GatedNormalization(node.layer, units, name=self._name(f"{node.name}_gated"))
                    more = {} if node.called.training is None else {"training": node.called.training}
                    tensor = gated = layer([*given, *drawn], **more)
                else:
                    layer = UnitGate(units, name=self._name(f"{node.name}_gate"), dtype="float32")
                    gated = layer([tensor, *drawn])
                self._placed.append((place, layer))
                instead |= dict.fromkeys(place.edges, gated)
            tensors.append(tensor)
        self.network = graph.model_of(dict(enumerate(tensors)), graph.model.name)

    def _called(self, node: Node, given: Sequence[Any]) -> Any:
        """The output of a node without gates, or with those that statistics over channels need."""
        if not (node.weighs_channels and (self._graph.of[node.inputs[0]] != PINNED).any()):
            return node.call(node.layer, given)
        source = node.inputs[0]
        units, drawn = self._units(source, np.ones(node.input_channels[0], bool))
        name = self._name(f"{node.name}_gated")
        layer: KeptNormalization | KeptReduction
        if isinstance(node.layer, keras.Layer):
            layer = KeptNormalization(node.layer, units, name=name)
        else:
            layer = KeptReduction(type(node.layer).__name__, units, name=name, dtype="float32")
        self._there.append((source, layer))
        return layer([*given, *drawn])

    @staticmethod
    def _folds(places: Sequence[Place] | None) -> bool:
        return any(place.folds for place in places or ())

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def _units(self, i: int, channels: np.ndarray) -> tuple[list[int], list[tf.Tensor]]:
        """Position of the unit of each of these channels in the groups that node `i` has units of, and these groups."""
        starts = self._graph.starts
        units = np.where(channels, self._graph.of[i], PINNED)
        group_of = np.searchsorted(starts, units, side="right") - 1
        there = list(dict.fromkeys(group_of[units != PINNED].tolist()))  # in the channels' order
        sizes = [self._graph.groups[g].size for g in there]
        shift = dict(zip(there, np.cumsum([0, *sizes]) - starts[there + there[:1]], strict=False))
        positions = [-1 if u == PINNED else int(u + shift[g]) for u, g in zip(units, group_of, strict=True)]
        return positions, [self._groups[g] for g in there]

    def set_masks(self, closed: Architecture, explicit: Sequence[np.ndarray]) -> None:
        """Assigns the hard masks.

        Args:
            closed: an architecture.
            explicit: its flow's, by node.
        """
        kept = np.concatenate([closed[group.name] for group in self._graph.groups] + [[True]])  # the last: pinned
        for place, gate in self._placed:
            units = np.where(place.channels, self._graph.of[place.source], PINNED)
            gate.mask.assign(kept[units].astype("float32"))
        for source, layer in self._there:
            layer.mask.assign(explicit[source].astype("float32"))

    def architecture(self) -> Architecture:
        """The architecture of the masks."""
        kept = np.ones(self._graph.num_units + 1, bool)
        for place, gate in self._placed:
            units = np.where(place.channels, self._graph.of[place.source], PINNED)
            kept[units] = np.asarray(gate.mask) > 0.5
        kept = kept[:-1]
        names = [group.name for group in self._graph.groups]
        return Architecture(dict(zip(names, np.split(kept, self._graph.starts[1:]), strict=True)))
