"""The flow of channels through a Keras graph.

Under an architecture a channel of a tensor *depends* on the model's input if some path of kept channels leads to it.
It is *explicit* when it has to be computed: because it depends on the input, because it varies with the position (a
padded kernel on a constant), or because the layer that makes it is not cut. Otherwise it is *constant*: it has one
value everywhere, for every input, and that value may be known to be *zero* without looking at the weights. A channel is
*live* when it is explicit and some kept channel downstream reads it. A subnet computes what is live, and folds
constants into what follows; it is a network only if its outputs depend on the input, and a layer is in it only if it
*works*: if some of its output is live.

This file walks over the graph; each layer's family (`tfnas.layers`) defines what it makes of its inputs' channels.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.graph.models import as_functional, deep
from tfnas.graph.parts import Nodes
from tfnas.layers import Input, Uncut
from tfnas.layers.base import Node
from tfnas.layers.records import Channels, State


class Graph:
    """The nodes of a model, each after those it reads; nested models are flattened, and composite layers taken apart.

    Args:
        model: a Keras model of any kind, channels last.
        example: inputs of a model that is not built: arrays, in the structure that it takes.

    Attributes:
        nodes: in topological order.
        inputs, outputs: indices of the model's input and output nodes.
        untraced: reasons why layers could not be taken apart and are left whole, by name.
        model: the functional model that it is, or that is made of it.

    Raises:
        UserError: naming the layer and what to do, if it is unknown how channels pass through a part of the model.
    """

    of_units: ClassVar[bool] = False  # whether some layers have rules of channel units, and calls of one are tied

    def __init__(self, model: keras.Model, example: Any = None):
        self.model = as_functional(model, example)
        made = Nodes(self.of_units)
        self.inputs, self.outputs = made.add_model(self.model)
        self.nodes, self.untraced = made.nodes, made.untraced
        for numbers in self.shared:
            calls = [self.nodes[i] for i in numbers]
            several = len({(type(node), len(node.inputs)) for node in calls}) > 1
            if several and any(node.INSIDE is not None for node in calls):
                raise UserError(
                    f"layer '{calls[0].name}' is called in several ways, such as with a mask and without, and units "
                    "inside it cannot be cut for all: give each call a layer of its own"
                )
            for i, node in zip(numbers, calls, strict=True):
                family = type(node) if self.of_units or isinstance(node, Uncut) else Uncut
                fields = {field.name: getattr(node, field.name) for field in dataclasses.fields(Node)}
                self.nodes[i] = family(**{**fields, "shared": True})

    @functools.cached_property
    def shared(self) -> list[list[int]]:
        """Numbers of the nodes that are calls of one layer with weights, for each that is called more than once."""
        calls: dict[Any, list[int]] = {}
        for i, node in enumerate(self.nodes):
            if getattr(node.layer, "weights", None):
                calls.setdefault((id(node.layer), node.inside), []).append(i)
        return [numbers for numbers in calls.values() if len({id(self.nodes[i].called) for i in numbers}) > 1]

    def rebuild(self, make: Callable[[Node], Any]) -> keras.Model:
        """Builds a functional model of the same structure, with nested models flattened.

        Args:
            make: from a node to the layer that stands in for it; an operation that is not a layer is called directly.
        """
        tensors: list[Any] = []
        for node in self.nodes:
            if isinstance(node, Input):
                tensors.append(node.tensor())
            else:
                tensors.append(node.call(make(node), [tensors[i] for i in node.inputs]))
        return self.model_of(dict(enumerate(tensors)), self.model.name)

    def model_of(self, tensors: Mapping[int, Any], name: str) -> keras.Model:
        """A model from tensors that stand in for the inputs' and outputs' nodes, by number; nested as this model's."""

        def structure(nested: Any, numbers: Sequence[int]) -> Any:
            return keras.tree.pack_sequence_as(nested, [tensors[i] for i in numbers])

        with deep():
            return keras.Model(
                structure(self.model._inputs_struct, self.inputs),
                structure(self.model._outputs_struct, self.outputs),
                name=name,
            )

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Node number of each name."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    def matching(self, patterns: Iterable[str]) -> set[int]:
        """Returns the numbers of the nodes whose names match any of these glob patterns.

        Raises:
            UserError: for a pattern that matches none.
        """
        chosen = set()
        for pattern in patterns:
            found = {i for i, node in enumerate(self.nodes) if fnmatch.fnmatchcase(node.name, pattern)}
            if not found:
                names = ", ".join(node.name for node in self.nodes[:8])
                raise UserError(f"gate: no layer matches {pattern!r}; there are {names}, ...")
            chosen |= found
        return chosen

    @functools.cached_property
    def sees_kernel(self) -> list[bool]:
        """Returns for each node whether there is a kernel before it; the stem has none."""
        seen: list[bool] = []
        for node in self.nodes:
            seen.append(any(seen[i] or self.nodes[i].has_kernel for i in node.inputs))
        return seen

    @functools.cached_property
    def feeds_kernel(self) -> list[bool]:
        """Returns for each node whether there is a kernel after it; the classifier has none."""
        feeds = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            for source in self.nodes[i].inputs:
                feeds[source] |= feeds[i] or self.nodes[i].has_kernel
        return feeds

    def group_sizes(self, name: str) -> tuple[int, ...]:
        """Channels of each source that a layer's input concatenates, in order; one entry without a concatenation."""
        return self._sources(self.nodes[self.index[name]].inputs[0])

    def _sources(self, i: int) -> tuple[int, ...]:
        node = self.nodes[i]
        return tuple(size for j in node.inputs for size in self._sources(j)) if node.carries else (node.num_channels,)

    def flow(self, keep: Mapping[str, np.ndarray], linked: bool = False, read: Sequence[int] = ()) -> Flow:
        """Returns the flow if only the channels `keep` of the named layers' inputs are kept.

        Args:
            keep: an Architecture.
            linked: whether each reader of a tensor takes all that it holds, for any of its readers, and layers that
                treat each channel by itself compute all that theirs hold, as in the programs that rank candidates. A
                network that is cut has each reader gather its own.
            read: indices of nodes whose output is read in full, as the model's outputs are.

        Raises:
            UserError: if `keep` names an unknown layer or has a mask of another length.
        """
        for name, mask in keep.items():
            if name not in self.index:
                raise UserError(
                    f"architecture: one of the layers {', '.join(list(self.index)[:8])}, ... expected. "
                    f"Received: '{name}'; was it made for another supernet?"
                )
            expected = self.nodes[self.nodes[self.index[name]].inputs[0]].num_channels
            if mask.shape != (expected,):
                raise UserError(
                    f"architecture: '{name}': a mask of {expected} input channels expected. Received: {mask.size}"
                )
        states = self._states(keep)
        depends, explicit, zero = ([getattr(x, name) for x in states] for name in ("depends", "explicit", "zero"))
        live = self._live(keep, explicit, linked, read)
        return Flow(self, depends, explicit, zero, live, dict(keep), linked)

    def chooses(self, i: int) -> bool:
        """Whether architectures choose which channels node `i` reads or makes."""
        return self.nodes[i].gated

    @functools.cached_property
    def vanishing(self) -> list[np.ndarray]:
        """Channels of each node that are absent once they do not depend on the input; here they become constants."""
        return [np.zeros(node.num_channels, bool) for node in self.nodes]

    def _states(self, keep: Mapping[str, np.ndarray]) -> list[State]:
        """Returns the state of every node's channels, by node number."""
        found: list[State] = []
        for node in self.nodes:
            state = node.state([found[i] for i in node.inputs], keep.get(node.name, np.True_))
            found.append(State(state.depends, state.explicit, state.zero & ~state.explicit))
        return found

    def _live(
        self,
        keep: Mapping[str, np.ndarray],
        explicit: Sequence[np.ndarray],
        linked: bool,
        read: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """Which explicit channels are read.

        Args:
            keep: an Architecture.
            explicit: by node.
            linked: as of `flow`.
            read: indices of nodes whose output is read in full.
        """
        sizes = [node.num_channels for node in self.nodes]
        every = np.zeros(sum(sizes), bool)
        live = np.split(every, np.cumsum(sizes)[:-1])  # views, changed in place
        for i in (*self.outputs, *read):
            live[i][:] = True
        while True:
            before = np.count_nonzero(every)
            for i in reversed(range(len(self.nodes))):
                node = self.nodes[i]
                live[i] &= explicit[i]
                if live[i].any() and node.full_output:
                    live[i][:] = True
                kept = keep.get(node.name)
                for source, channels in zip(node.inputs, node.read(live[i]), strict=True):
                    live[source] |= channels if kept is None else channels & kept
            if linked:
                for i, node in enumerate(self.nodes):
                    live[i] &= explicit[i]
                    if keep.get(node.name) is None and live[i].any():
                        live[i] |= explicit[i] & node.linked([live[j] for j in node.inputs])
            if not linked or np.count_nonzero(every) == before:
                return live


@dataclasses.dataclass(frozen=True)
class Flow:
    """Channels under one architecture, by node number.

    Attributes:
        graph: whose nodes these are.
        depends: bool, shape (C,), which output channels depend on the model's input; a part of the explicit ones.
        explicit: bool, shape (C,), which output channels have to be computed.
        zero: bool, shape (C,), which of the others are zero whatever the weights.
        live: bool, shape (C,), which of the explicit ones are read; only these exist in the subnet.
        keep: the architecture's masks by layer name.
        linked: whether kernels read all that their input holds, with zeros for what they do not keep.
    """

    graph: Graph
    depends: list[np.ndarray]
    explicit: list[np.ndarray]
    zero: list[np.ndarray]
    live: list[np.ndarray]
    keep: dict[str, np.ndarray]
    linked: bool

    def kept(self, node: Node) -> np.ndarray:
        """Input channels that a layer keeps, bool, shape (K,)."""
        return self.keep.get(node.name, node.all_kept)

    def at(self, i: int) -> Channels:
        """The channels at node `i`, by which its family answers."""
        node = self.graph.nodes[i]
        source = node.inputs[0] if node.inputs else i
        return Channels(
            live=self.live[i],
            kept=self.kept(node),
            explicit=self.explicit[source],
            zero=self.zero[source],
            available=self.live[source],
            linked=self.linked,
        )

    def held(self, i: int) -> np.ndarray:
        """Channels of the tensor that node `i` computes, ascending: the live ones, and what comes with them."""
        return self.graph.nodes[i].held(self.live[i])

    def absent(self, i: int) -> np.ndarray:
        """Output channels that the architecture does not have, and that are no constants either, bool, shape (C,)."""
        return self.graph.vanishing[i] & ~self.depends[i]

    def works(self, i: int) -> bool:
        """Whether the subnet has node `i`: whether anything of its output must be computed, and is read.

        A gated layer may keep channels and yet do no work, because those channels have become constant or because
        nothing reads its output any more. Cost and cut follow this answer.
        """
        return bool(self.live[i].any())

    def reads(self, i: int) -> np.ndarray:
        """Input channels that a layer keeps and that the subnet computes for it, bool, shape (K,).

        None of them if the layer does not work; a padded kernel that is left with constants alone works without any.
        """
        source = self.graph.nodes[i].inputs[0]
        return self.kept(self.graph.nodes[i]) & self.live[source] & self.works(i)

    def reads_of(self, names: Iterable[str]) -> dict[str, int | None]:
        """Returns how many input channels each layer reads, for drawings; None for a layer that does not work."""
        numbers = {name: self.graph.index[name] for name in names}
        return {name: int(self.reads(i).sum()) if self.works(i) else None for name, i in numbers.items()}

    def shares_read(self, names: Iterable[str]) -> tuple[float, float]:
        """The share of these layers' input channels that are read, and of their operations that do any work.

        An operation is all that one source of a layer's input gives it, as the paper's Table 7 counts them.
        """
        channels = [self.reads(self.graph.index[name]) for name in names]
        ends = [np.cumsum(self.graph.group_sizes(name))[:-1] for name in names]
        operations = [part.any() for mask, end in zip(channels, ends, strict=True) for part in np.split(mask, end)]
        return float(np.concatenate(channels).mean()), float(np.mean(operations))

    def reaches_outputs(self) -> bool:
        """Whether every output still depends on the input: on one of them at least, where there are several."""
        return all(self.depends[i].any() for i in self.graph.outputs)
