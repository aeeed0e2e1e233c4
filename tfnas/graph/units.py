"""Channel units: the channels of a graph that exist or vanish as one (docs/method.md).

Every (tensor, channel) of the graph is one element of a relation. Layers that treat channels one by one, merges,
concatenations and Flatten tie their input channels to output channels (`Node.ties`). Convolutions and Dense tie
nothing: they read the units of their input and write those of their output. The classes of the relation are the units;
one that a model's input or output, or a layer that is left whole, takes part in is pinned: it always exists. A group is
all units that appear in the same tensors; its size is the width of a layer.

Under an architecture a channel is present if its unit is kept and it depends on the model's input; one that is not
present is absent: it counts as zero, and leaves no constant. So a branch that has lost a group is gone from the sum
that it was added to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.graph.channels import Flow, Graph
from tfnas.graph.costs import count
from tfnas.graph.partition import PINNED, partition
from tfnas.layers import Merge
from tfnas.layers.base import Node
from tfnas.layers.records import State
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.closed_form import ClosedForm, Group, Term, Width

_MOST_WALKS = 256  # over the graph, whose results are kept


class Extent(NamedTuple):
    """Numbers of the widths of a node's first input and of its output, and the groups that it needs."""

    inputs: int
    outputs: int
    needs: tuple[int, ...]


class UnitGraph(Graph):
    """A graph whose architectures say which units of which group are kept.

    Args:
        model: as for `Graph`.
        exclude: glob patterns of names of layers whose output channels are pinned.
        streams: whether the units of streams, which a sum ties (such as residual streams), may vanish too.

    Attributes:
        exclude, streams: as given.
        excluded: numbers of the nodes that they match, and of those whose output a user's own regularizer reads.
        of: for each node the unit of every output channel, int, shape (C,); `PINNED` for one that always exists.
        groups: in the graph's order. The units of a group have consecutive numbers, those of the first group first.
        starts: number of each group's first unit.

    Raises:
        UserError: as `Graph`; for a pattern that matches no layer, or if nothing may vanish.
    """

    of_units = True

    def __init__(self, model: keras.Model, exclude: Iterable[str] = (), streams: bool = False):
        super().__init__(model)
        self.exclude = tuple(exclude)
        self.streams = streams
        self.excluded = self.matching(self.exclude) | {i for i, x in enumerate(self.nodes) if _regularizes(x.inner)}
        self.of, sizes, names, is_stream = partition(
            self.nodes, self.outputs, self.excluded, streams, self._depends, self.shared
        )
        if not sizes:
            raise UserError(
                f"gate: model '{self.model.name}' has no channels that may vanish: every one is tied to an input, an "
                "output or a layer that is left whole"
                + "".join(f"; left whole: '{name}', because {why}" for name, why in self.untraced.items())
                + ("" if streams else "; streams=True releases sums")
            )
        self.starts = np.cumsum([0, *sizes])[:-1]
        self._sizes = dict(zip(names, sizes, strict=True))
        self._walks: dict[tuple[int, ...], tuple[np.ndarray, ...]] = {}  # by empty groups
        may_empty = self._may_empty([name for name, stream in zip(names, is_stream, strict=True) if not stream])
        self.groups = tuple(
            Group(name, size, name in may_empty, stream)
            for name, size, stream in zip(names, sizes, is_stream, strict=True)
        )

    @property
    def num_units(self) -> int:
        """U, the number of units that may vanish."""
        return sum(self._sizes.values())

    @property
    def full(self) -> Architecture:
        """The architecture that has all units."""
        return Architecture({name: np.ones(size, bool) for name, size in self._sizes.items()})

    def group_sizes(self, name: str) -> tuple[int, ...]:
        """Number of units of a group, as its only source."""
        return (self._sizes[name],)

    # Architectures.

    def flow(self, keep: Mapping[str, np.ndarray], linked: bool = False, read: Sequence[int] = ()) -> Flow:
        """Returns the flow if only the units `keep` of every group are kept.

        Args:
            keep: an Architecture, closed or not; or nothing, for the full network.
            linked: as of `Graph.flow`; makes no difference, as all readers of a tensor read the same channels.
            read: ignored: what an architecture does not have is not computed, whoever might read it.

        Raises:
            UserError: if the architecture's groups are not this graph's, or a mask has another length.
        """
        return self._flow(self._held(keep) if keep else {})

    def closed(self, architecture: Mapping[str, np.ndarray]) -> Architecture:
        """The same network with one mask for all architectures that make it.

        A group that may not empty keeps its first unit. Units that only absent units write, or only absent ones read,
        are dropped.
        """
        held = self._held(architecture)
        alive = self._alive(self._flow(held))
        return Architecture({name: mask & alive[g] for g, (name, mask) in enumerate(held.items())})

    def _held(self, architecture: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Checked masks in the groups' order; one that would be empty and may not has its first unit."""
        differing = sorted(set(architecture) ^ set(self._sizes))
        if differing:
            where = "the architecture" if differing[0] in architecture else "the supernet"
            raise UserError(
                "architecture: the groups of this supernet expected. Received: others; "
                f"'{differing[0]}' is only in {where}"
            )
        held = {}
        for group in self.groups:
            mask = np.asarray(architecture[group.name])
            if mask.shape != (group.size,):
                raise UserError(
                    f"architecture: '{group.name}': a mask of {group.size} units expected. Received: {mask.size}"
                )
            held[group.name] = mask if group.may_empty or mask.any() else np.arange(group.size) == 0
        return held

    def _flow(self, kept: Mapping[str, np.ndarray]) -> Flow:
        """The flow for masks of some groups, as they are.

        Which nodes have channels follows from the empty groups, for each set of which the graph is walked once.
        """
        masks = [kept.get(name, np.ones(size, bool)) for name, size in self._sizes.items()]
        units, ends = self._flattened
        there = np.concatenate([*masks, [True]])[units]  # the last is `PINNED`
        empty = tuple(g for g, mask in enumerate(masks) if not mask.any())
        if (walk := self._walks.get(empty)) is None:
            if len(self._walks) >= _MOST_WALKS:
                self._walks.pop(next(iter(self._walks)), None)  # another thread may have
            full = np.concatenate([*(np.full(mask.size, mask.any()) for mask in masks), [True]])[units]
            walk = tuple(np.concatenate(parts) for parts in self._walked(np.split(full, ends)))
            self._walks[empty] = walk
        depends, explicit, zero, live = walk
        d, e, z, r = (np.split(a, ends) for a in (depends & there, explicit & there, zero | ~there, live & there))
        return Flow(self, d, e, z, r, {}, False)

    @functools.cached_property
    def _flattened(self) -> tuple[np.ndarray, np.ndarray]:
        """The units of all nodes' channels, and where each node's end."""
        return np.concatenate(self.of), np.cumsum([of.size for of in self.of])[:-1]

    def _walked(self, there: Sequence[np.ndarray]) -> tuple[Any, Any, Any, Any]:
        """Returns depends, explicit, zero and live of a `Flow`; `there`: whether each channel's unit is kept."""
        states: list[State] = []
        for i, node in enumerate(self.nodes):
            state = node.state([states[j] for j in node.inputs], np.True_)
            present = state.depends & there[i]
            constant = ~self._depends[i]  # whatever the architecture; as in a subnet that is cut again
            explicit = (present | (state.explicit & constant)) & there[i]
            states.append(State(present, explicit, ~explicit & (state.zero | ~constant | ~there[i])))
        depends, explicit, zero = ([getattr(x, name) for x in states] for name in ("depends", "explicit", "zero"))
        return depends, explicit, zero, self._live({}, explicit, False)

    def chooses(self, i: int) -> bool:
        """Whether node `i` mixes channels some of which, read or made, are units."""
        node = self.nodes[i]
        return node.mixes and any((self.of[j] != PINNED).any() for j in (i, *node.inputs))

    @property
    def vanishing(self) -> list[np.ndarray]:
        """All channels that depend on the input at first, by node; they are absent once they no longer do."""
        return self._depends

    @functools.cached_property
    def _depends(self) -> list[np.ndarray]:
        """Channels of each node that depend on the model's input in the full network."""
        return [state.depends for state in self._states({})]

    def _alive(self, flow: Flow) -> list[bool]:
        """Whether each group has a unit that is written and read."""
        alive = np.zeros(self.num_units + 1, bool)
        for i, node in enumerate(self.nodes):
            if node.mixes:
                alive[self.of[i][flow.live[i]]] = True
        return [bool(alive[s : s + n].any()) for s, n in zip(self.starts, self._sizes.values(), strict=True)]

    # Emptiness.

    def _emptied(self, names: Iterable[str]) -> Flow:
        return self._flow({name: np.zeros(self._sizes[name], bool) for name in names})

    def _may_empty(self, names: Sequence[str]) -> set[str]:
        """Groups of which any number may be empty at once: what is left is a network, without new constants.

        None of them empties a node that none of them empties alone, whichever others are empty, so that what an
        architecture leaves follows from each empty group by itself. Of groups that would, the smallest are excluded.
        """
        alone = {name: flow for name in names if self._is_sound(flow := self._emptied([name]))}
        full = self._flow({})
        nodes_by_killers: dict[frozenset[str], list[int]] = {}
        for i in range(len(self.nodes)):
            if full.works(i):
                killers = frozenset(name for name, flow in alone.items() if not flow.works(i))
                nodes_by_killers.setdefault(killers, []).append(i)
        may_empty = set(alone)

        def survive(nodes: Sequence[int], empty: Iterable[str]) -> bool:
            flow = self._emptied(empty)
            return all(flow.works(i) for i in nodes)

        for killers, nodes in sorted(nodes_by_killers.items(), key=lambda item: len(item[0])):
            others = may_empty - killers
            if survive(nodes, others):
                continue
            together: list[str] = []
            for name in sorted(others, key=lambda name: (-self._sizes[name], names.index(name))):
                if survive(nodes, [*together, name]):
                    together.append(name)
            may_empty = {*together, *(may_empty & killers)}
        return may_empty

    def _is_sound(self, flow: Flow) -> bool:
        """Whether absent channels leave nothing but absent units, and absent operands of sums."""
        if not all(flow.depends[i].all() for i in self.outputs if self._depends[i].all()):
            return False
        for one, *others in self.shared:
            for i in others:
                pairs = zip((one, *self.nodes[one].inputs), (i, *self.nodes[i].inputs), strict=True)
                if not all(np.array_equal(flow.explicit[a], flow.explicit[b]) for a, b in pairs):
                    return False  # the layer would have other channels in one call than in another
        present = np.zeros(self.num_units + 1, bool)
        for units, depends in zip(self.of, flow.depends, strict=True):
            present[units[depends]] = True
        present[PINNED] = True
        for i, (full, live) in enumerate(zip(self._flow({}).live, flow.live, strict=True)):
            if live.any() and not np.array_equal(live, full & present[self.of[i]]):
                return False  # of a layer only some channels are read any more, which costs in closed form do not know
        return not any(
            self._is_broken(flow, i, node, present) for i, node in enumerate(self.nodes) if flow.depends[i].any()
        )

    def _is_broken(self, flow: Flow, i: int, node: Node, present: np.ndarray) -> bool:
        """Whether a node would see the constant that an absent channel is in the supernet.

        Args:
            flow: of some empty groups.
            i: number of a node that depends on the model's input.
            node: that node.
            present: whether each unit is still present somewhere, bool, shape (U + 1,); the last is `PINNED`.
        """
        for j, source in enumerate(node.inputs):
            lost = self._depends[source] & ~flow.depends[source]
            if not lost.any():
                continue
            tied = node.ties(j)
            if node.together(j) is not None or (tied is None and not node.pins(j)):
                broken = (lost & present[self.of[source]]).any()  # of other units the gate is closed
            elif tied is None:
                broken = True
            else:
                # Of a sum an operand may be absent, but only as a whole.
                joined = tied >= 0
                broken = (lost[tied[joined]] & flow.depends[i][joined]).any()
                broken &= not (isinstance(node, Merge) and node.adds and not flow.depends[source].any())
            if broken:
                return True
        return False

    @functools.cached_property
    def mortal(self) -> list[bool]:
        """Whether some architecture leaves a node no channel that depends on the input, by node."""
        flow = self._emptied(group.name for group in self.groups if group.may_empty)
        return [bool(full.any() and not d.any()) for full, d in zip(self._depends, flow.depends, strict=True)]

    # Costs.

    @functools.cached_property
    def _extents(self) -> tuple[dict[int, Extent], tuple[Width, ...], tuple[tuple[int, ...], ...]]:
        """The extent of each node that works, by its number; all widths; and `ClosedForm.dead`."""
        full = self._flow({})
        needs: list[list[int]] = [[] for _ in self.nodes]
        dead: list[list[int]] = [[] for _ in self.groups]
        for g, group in enumerate(self.groups):
            if not group.may_empty:
                continue
            flow = self._emptied([group.name])
            for i in range(len(self.nodes)):
                if full.works(i) and not flow.works(i):
                    needs[i].append(g)
            for other, alive in enumerate(self._alive(flow)):
                if other != g and not alive:
                    dead[other].append(g)
        widths = _Widths(self, full)
        extents = {
            i: Extent(widths.of(node.inputs[0]), widths.of(node.inputs[0] if node.multiplies else i), tuple(needs[i]))
            for i, node in enumerate(self.nodes)
            if full.works(i) and node.inputs
        }
        return extents, tuple(widths.found), tuple(map(tuple, dead))

    @property
    def extents(self) -> dict[int, Extent]:
        """The extent of each node that works, by its number, in widths of `form`."""
        return self._extents[0]

    @functools.cached_property
    def form(self) -> ClosedForm:
        """Parameters, and multiply-adds where the image's size is fixed, in closed form."""
        extents, widths, dead = self._extents
        counted: set[Any] = set()
        terms: dict[str, list[Term]] = {"parameters": [], "multiply_adds": []}
        for i, (inputs, outputs, needs) in extents.items():
            node = self.nodes[i]
            once = np.array((node.has_weights_of not in counted, True))  # parameters of a layer that is called again
            if node.shared:
                counted.add(node.has_weights_of)
            corners = {(a, b): np.array(node.count_of(a, b)) * once for a in (0, 1) for b in (0, 1)}
            # Linear in each of the two numbers, so that these four say it all.
            products = [
                (0, 0, corners[0, 0]),
                (inputs, 0, corners[1, 0] - corners[0, 0]),
                (0, outputs, corners[0, 1] - corners[0, 0]),
                (inputs, outputs, corners[1, 1] - corners[1, 0] - corners[0, 1] + corners[0, 0]),
            ]
            for first, second, (parameters, weights) in products:
                if parameters:
                    terms["parameters"].append(Term(node.name, float(parameters), first, second, needs))
                if weights:
                    positions = np.nan if node.positions is None else node.positions * node.examples
                    terms["multiply_adds"].append(Term(node.name, float(weights * positions), first, second, needs))
        if any(np.isnan(term.coefficient) for term in terms["multiply_adds"]):
            del terms["multiply_adds"]
        form = ClosedForm(self.groups, widths, {resource: tuple(found) for resource, found in terms.items()}, dead)
        unread = {resource: count(self, resource) - form.full(resource) for resource in terms}
        return dataclasses.replace(form, unread={resource: most for resource, most in unread.items() if most})


class _Widths:
    """Numbers the widths of tensors, equal ones once; number 0 is the constant 1.

    Channels that nothing reads in the full network are not counted: no network that is cut has them.
    """

    def __init__(self, graph: UnitGraph, full: Flow):
        self._graph = graph
        self._live = full.live
        self._group_of = np.repeat(np.arange(len(graph.groups)), [group.size for group in graph.groups])
        self.found = [Width(1, ())]
        self._numbers: dict[Width, int] = {self.found[0]: 0}

    def of(self, i: int) -> int:
        units = self._graph.of[i][self._live[i]]
        kept = units[units != PINNED]
        groups, counts = np.unique(self._group_of[kept], return_counts=True)
        members = tuple(
            (int(g), int(count) // self._graph.groups[g].size) for g, count in zip(groups, counts, strict=True)
        )
        width = Width(int(units.size - kept.size), members)
        if width not in self._numbers:
            self._numbers[width] = len(self.found)
            self.found.append(width)
        return self._numbers[width]


def _regularizes(layer: Any) -> bool:
    """Whether a user's own regularizer reads a layer's output, which it may take for a matrix of a fixed size."""
    regularizer = getattr(layer, "activity_regularizer", None)
    return regularizer is not None and not type(regularizer).__module__.startswith("keras.")
