"""How channels flow through a Keras graph: the one place that reads a model's structure.

Under an architecture a channel of a tensor *depends* on the model's input if some path of kept channels leads to it.
It is *explicit* when it has to be computed: because it depends on the input, because it varies with the position (a
padded kernel on a constant), or because the layer that makes it is not cut. Otherwise it is *constant*: it has one
value everywhere, for every input, and that value may be known to be *zero* without a look at the weights. A channel is
*live* when it is explicit and some kept channel downstream reads it. A subnet computes what is live, and folds
constants into what follows; it is a network only if its outputs depend on the input, and a layer is in it only if it
*works*: if some of its output is live.

What a layer does is of one kind (`kinds`); each kind has one rule here, and one in each of `costs`, `folding`,
`subnets` and `program`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.layers.calls import Call
from tfnas.layers.kinds import (
    CHOICES,
    CONSTANT_OPERATIONS,
    CUT_KINDS,
    DEPTHWISE,
    KERNELS,
    MERGES,
    SEPARABLE,
    TRANSPOSED,
    is_gate,
    is_pointwise,
    kind_of,
    zero_to_zero,
)

LAYOUTS = ("gather", "mask", "shared")


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a layer or operation in the graph.

    Attributes:
        name: unique in the graph; that of the layer, behind the names of the nested models it stands in.
        kind: see the module's list.
        layer: the Keras layer or operation; for a gated one, the wrapper.
        inputs: indices of the nodes it reads, in order.
        num_channels: size of the last axis of its output.
        spatial: the axes between batch and channels; () for a vector.
        zero_to_zero: whether zeros as input, without bias, give zeros (through activation or function).
        called: how it was called; `call` calls it so again.
        merge: for a merge, 'add', 'multiply', ...
    """

    name: str
    kind: str
    layer: Any
    inputs: tuple[int, ...]
    num_channels: int
    spatial: tuple[int | None, ...]
    zero_to_zero: bool
    called: Call
    merge: str = ""

    @property
    def inner(self) -> Any:
        """The layer itself, without a gate round it."""
        return self.layer.layer if is_gate(self.layer) else self.layer

    @property
    def gated(self) -> bool:
        """Whether the layer is wrapped in a gate."""
        return is_gate(self.layer)

    @property
    def mixes_outputs(self) -> bool:
        """Whether its activation looks at all output channels at once, so that none may be missing (softmax)."""
        return self.kind in CUT_KINDS and not is_pointwise(self.inner.activation)

    @property
    def pads(self) -> bool:
        """Whether this convolution sees zeros beyond the border, so that a constant input gives no constant output."""
        inner = self.inner
        if isinstance(inner, TRANSPOSED):
            return any(k > 1 for k in inner.kernel_size) or any(s > 1 for s in inner.strides)
        padding = getattr(inner, "padding", "valid")
        return padding != "valid" and any(k > 1 for k in getattr(inner, "kernel_size", ()))

    @property
    def multiplier(self) -> int:
        """Of a depthwise or separable convolution: outputs of the depthwise step for each input channel."""
        inner = self.inner
        if isinstance(inner, (*DEPTHWISE, *SEPARABLE)):
            return int(inner.depth_multiplier)
        return int(inner.filters // inner.groups)

    def call(self, layer: Any, tensors: Sequence[Any], training: bool | None = None) -> Any:
        """Calls `layer`, a stand-in for this node's, on tensors that stand in for its inputs, as it was called.

        Args:
            layer: of this node, or made for it.
            tensors: one for each input; fewer for a sum that has lost addends.
            training: what the model is called with, which comes before what the layer was called with. None: nothing.
        """
        return self.called.again(layer, tensors, training)


class Graph:
    """The nodes of a functional model, each after all it reads; nested models are taken apart.

    Args:
        model: a functional or Sequential Keras model, built, channels last.

    Attributes:
        nodes: in an order in which they can be computed.
        inputs, outputs: numbers of the model's input and output nodes.
        model: the model itself.

    Raises:
        UserError: naming the layer and what to do, if the model has something whose channels cannot be followed.
    """

    def __init__(self, model: keras.Model):
        self.model = _functional(model)
        self.nodes: list[Node] = []
        self._names: set[str] = set()
        self._called: dict[int, str] = {}  # id of a layer with weights -> its node
        index = self._add(self.model, "", {}, None)
        self.inputs = tuple(index[id(tensor)] for tensor in self.model.inputs)
        self.outputs = tuple(index[id(tensor)] for tensor in self.model.outputs)

    def _add(self, model: Any, prefix: str, index: dict[int, int], training: bool | None) -> dict[int, int]:
        """Adds a (nested) model's nodes; `index` maps its inputs' ids to nodes, and on return all its tensors'.

        `training` is what it was called with.
        """
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for call in model._nodes_by_depth[depth]:
                operation = call.operation
                if id(call.output_tensors[0]) in index:
                    continue  # the input of a nested model is what its caller gives it
                sources = tuple(index[id(tensor)] for tensor in call.input_tensors)
                if isinstance(operation, keras.Model) and not is_gate(operation):
                    inner = _functional(operation)
                    given = {id(tensor): source for tensor, source in zip(inner.inputs, sources, strict=True)}
                    if id(operation) in self._called:
                        raise _called_twice(prefix + operation.name)
                    self._called[id(operation)] = prefix + operation.name
                    named = Call(call, prefix + operation.name, training)
                    made = self._add(inner, f"{prefix}{operation.name}_", given, named.training)
                    for outer, tensor in zip(call.output_tensors, inner.outputs, strict=True):
                        index[id(outer)] = made[id(tensor)]
                    continue
                if len(call.output_tensors) != 1:
                    raise UserError(
                        f"layer '{operation.name}': one output tensor expected. Received: {len(call.output_tensors)}; "
                        "replace the layer, or put it before or behind the model"
                    )
                index[id(call.output_tensors[0])] = len(self.nodes)
                self.nodes.append(self._node(operation, call, prefix, sources, training))
        return index

    def _node(self, operation: Any, call: Any, prefix: str, sources: tuple[int, ...], training: bool | None) -> Node:
        name = prefix + operation.name
        if getattr(operation, "weights", None):
            if id(operation) in self._called:
                raise _called_twice(name)
            self._called[id(operation)] = name
        count = 1
        while name in self._names:  # a layer without weights may be shared, and operations have one name for all
            name = f"{prefix}{operation.name}_{count}"
            count += 1
        self._names.add(name)
        output = call.output_tensors[0]
        if not output.shape or output.shape[-1] is None:
            raise UserError(
                f"layer '{name}': the last axis of its output, which holds the channels, must have a fixed size. "
                f"Received: {tuple(output.shape)}; give the model's input one"
            )
        called = Call(call, name, training)
        kind = kind_of(operation, name, call, called)
        return Node(
            name=name,
            kind=kind,
            layer=operation,
            inputs=sources,
            num_channels=output.shape[-1],
            spatial=tuple(output.shape[1:-1]),
            zero_to_zero=zero_to_zero(operation, kind, called),
            called=called,
            merge=MERGES[type(operation).__name__] if kind == "merge" else "",
        )

    def rebuild(self, make: Callable[[Node], Any]) -> keras.Model:
        """A functional model of the same structure, nested models taken apart.

        Args:
            make: from a node to the layer that stands in for it; an operation that is no layer is called as it is.
        """
        tensors: list[Any] = []
        for node in self.nodes:
            if node.kind == "input":
                shape, dtype = node.layer.batch_shape, node.layer.dtype
                tensors.append(keras.Input(batch_shape=shape, dtype=dtype, name=node.name))
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

    @functools.cached_property
    def sees_kernel(self) -> list[bool]:
        """For each node, whether a kernel stands before it; the stem is what has none before it."""
        seen: list[bool] = []
        for node in self.nodes:
            seen.append(any(seen[i] or _has_kernel(self.nodes[i]) for i in node.inputs))
        return seen

    @functools.cached_property
    def feeds_kernel(self) -> list[bool]:
        """For each node, whether a kernel stands after it; the classifier is what has none after it."""
        feeds = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            for source in self.nodes[i].inputs:
                feeds[source] |= feeds[i] or _has_kernel(self.nodes[i])
        return feeds

    def group_sizes(self, name: str) -> tuple[int, ...]:
        """Channels of each source that a layer's input concatenates, in order; one entry if it is no concatenation."""
        return self._sources(self.nodes[self.index[name]].inputs[0])

    def _sources(self, i: int) -> tuple[int, ...]:
        node = self.nodes[i]
        if node.kind == "concat":
            return tuple(size for source in node.inputs for size in self._sources(source))
        if node.kind in ("norm", "scale", "pointwise", "spatial", "padding", "reshape"):
            return self._sources(node.inputs[0])
        return (node.num_channels,)

    def positions(self, node: Node) -> int | None:
        """How often a convolution's or dense layer's kernel is applied to one example; None without a fixed size."""
        # A transposed convolution's once for each position of its input.
        spatial = self.nodes[node.inputs[0]].spatial if isinstance(node.inner, TRANSPOSED) else node.spatial
        return None if None in spatial else math.prod(size or 0 for size in spatial)

    def flow(self, keep: Mapping[str, np.ndarray], layout: str = "gather", read: Sequence[int] = ()) -> Flow:
        """What each node computes when only the channels `keep` of the named layers' inputs are kept.

        Args:
            keep: an Architecture.
            layout: 'gather': a tensor holds what anybody reads and each reader gathers its own. 'mask': each reader
                takes what the tensor holds. 'shared': as 'gather', for `keep` widened by `shared`.
            read: numbers of nodes that are read whole, as the outputs are.

        Raises:
            UserError: if `keep` names a layer that is not here, or has a mask of another length; unknown layout.
        """
        if layout not in LAYOUTS:
            raise UserError(f"layout: one of {', '.join(map(repr, LAYOUTS))} expected. Received: {layout!r}")
        for name, mask in keep.items():
            if name not in self.index:
                raise UserError(
                    f"architecture: one of the layers {', '.join(list(self.index)[:8])}, ... expected. "
                    f"Received: '{name}'; was it made for another super-network?"
                )
            expected = self.nodes[self.nodes[self.index[name]].inputs[0]].num_channels
            if mask.shape != (expected,):
                raise UserError(
                    f"architecture: '{name}': a mask of {expected} input channels expected. Received: {mask.size}"
                )
        if layout == "shared":
            keep = self.shared(keep)
        states = self._states(keep)
        depends, explicit, zero = ([getattr(x, name) for x in states] for name in ("depends", "explicit", "zero"))
        live = self._live(keep, explicit, layout == "mask", read)
        return Flow(self, depends, explicit, zero, live, dict(keep), layout == "mask")

    def shared(self, keep: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`keep` widened until all readers of a tensor keep the same of its channels, so that nothing is gathered."""
        widened = {name: np.array(mask) for name, mask in keep.items()}
        while True:
            flow = self.flow(widened, "mask")
            before = sum(int(mask.sum()) for mask in widened.values())
            for name, mask in widened.items():
                i = self.index[name]
                if flow.works(i):  # a layer that is not in the subnet stays out of it
                    mask |= flow.live[self.nodes[i].inputs[0]]
            if sum(int(mask.sum()) for mask in widened.values()) == before:
                return widened

    def _states(self, keep: Mapping[str, np.ndarray]) -> list[_State]:
        """What every node's channels are, by node number."""
        found: list[_State] = []
        for node in self.nodes:
            state = _STATES[node.kind](node, [found[i] for i in node.inputs], keep.get(node.name, np.True_))
            found.append(dataclasses.replace(state, zero=state.zero & ~state.explicit))
        return found

    def _live(
        self,
        keep: Mapping[str, np.ndarray],
        explicit: Sequence[np.ndarray],
        linked: bool,
        read: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """Which explicit channels are read. `linked`: what is channel by channel is computed for all that is there."""
        live = [np.zeros(node.num_channels, bool) for node in self.nodes]
        for i in (*self.outputs, *read):
            live[i][:] = True
        while True:
            before = sum(int(channels.sum()) for channels in live)
            for i in reversed(range(len(self.nodes))):
                node = self.nodes[i]
                live[i] &= explicit[i]
                if live[i].any() and (node.mixes_outputs or node.kind == "opaque"):
                    live[i][:] = True
                for source, channels in zip(node.inputs, self._read(node, live[i], keep.get(node.name)), strict=True):
                    live[source] |= channels
            if linked:
                for i, node in enumerate(self.nodes):
                    live[i] &= explicit[i]
                    if node.kind in _LINKED and keep.get(node.name) is None and live[i].any():
                        # A source of one channel, broadcast in a merge, says nothing of the others.
                        whole = [s for s in node.inputs if node.kind != "merge" or live[s].size == node.num_channels]
                        live[i] |= explicit[i] & _joined(node, [live[s] for s in whole])
            if not linked or sum(int(channels.sum()) for channels in live) == before:
                return live

    def _read(self, node: Node, live: np.ndarray, kept: np.ndarray | None) -> list[np.ndarray]:
        """Which channels of each of its inputs a node reads for its live outputs; bool, shape (C of the input,)."""
        sizes = [self.nodes[i].num_channels for i in node.inputs]
        read: list[Any]
        if node.kind == "concat":
            return np.split(live, np.cumsum(sizes)[:-1])
        if node.kind in ("kernel", "separable", "opaque"):
            read = [np.full(size, bool(live.any())) for size in sizes]
        elif node.kind == "depthwise":
            read = [live.reshape(sizes[0], node.multiplier).any(1)]
        elif node.kind == "flatten":
            read = [live.reshape(-1, sizes[0]).any(0)]
        else:  # a source of one channel is broadcast over all channels of a merge
            read = [live if size == node.num_channels else np.full(size, bool(live.any())) for size in sizes]
        return read if kept is None else [read[0] & kept]


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
        masked: whether kernels read all that their input holds, with zeros for what they do not keep.
    """

    graph: Graph
    depends: list[np.ndarray]
    explicit: list[np.ndarray]
    zero: list[np.ndarray]
    live: list[np.ndarray]
    keep: dict[str, np.ndarray]
    masked: bool

    def kept(self, node: Node) -> np.ndarray:
        """Input channels that a layer keeps, bool, shape (K,)."""
        return self.keep.get(node.name, np.ones_like(self.explicit[node.inputs[0]]))

    def kernel_inputs(self, node: Node) -> tuple[np.ndarray, bool]:
        """For a kernel that exists: the input channels it is given, bool (K,), and whether constants add to them.

        In the subnet the constants become the bias of a kernel that does not pad, and one channel of ones for one that
        does. A separable convolution is given its constants written out, so that none are left to add.
        """
        source = node.inputs[0]
        kept = self.kept(node)
        constants = kept & ~self.explicit[source] & ~self.zero[source]
        inputs = kept & self.explicit[source]
        if self.masked and inputs.any():
            inputs = self.live[source]
        if node.kind == "separable":
            return inputs | constants, False
        return inputs, bool(constants.any())

    def depthwise_inputs(self, node: Node) -> np.ndarray:
        """Input channels that a depthwise convolution is given, bool, shape (K,)."""
        return np.any(self.live[self.graph.index[node.name]].reshape(-1, node.multiplier), axis=1)

    def held(self, i: int) -> np.ndarray:
        """Channels of the tensor that node `i` computes, ascending: the live ones, and what comes with them."""
        node = self.graph.nodes[i]
        if node.kind == "input":
            return np.arange(node.num_channels)
        if node.kind == "depthwise":
            return np.flatnonzero(np.repeat(self.depthwise_inputs(node), node.multiplier))
        if node.kind == "flatten":
            width = self.graph.nodes[node.inputs[0]].num_channels
            read = self.live[i].reshape(-1, width).any(0)
            return np.flatnonzero(np.tile(read, node.num_channels // width))
        return np.flatnonzero(self.live[i])

    def works(self, i: int) -> bool:
        """Whether the subnet has node `i`: whether anything of its output must be computed, and is read.

        A gated layer may keep channels and yet do no work, because those channels have become constant or because
        nothing reads its output any more. This is the one answer to the question; cost and cut agree with it.
        """
        return bool(self.live[i].any())

    def reads(self, i: int) -> np.ndarray:
        """Input channels that a layer keeps and that the subnet computes for it, bool, shape (K,).

        None of them if the layer does not work; a padded kernel that is left with constants alone works without any.
        """
        source = self.graph.nodes[i].inputs[0]
        return self.kept(self.graph.nodes[i]) & self.live[source] & self.works(i)

    def reads_of(self, names: Iterable[str]) -> dict[str, int | None]:
        """How many input channels each of these layers reads, for pictures; None for one that does not work."""
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


# Kinds whose output channels are their input's, one by one.
_LINKED = frozenset(("norm", "scale", "pointwise", "spatial", "padding", "reshape", "flatten", "merge", "concat"))


@dataclasses.dataclass(frozen=True)
class _State:
    """What one node's channels are, bool, shape (C,) each; for the names see `Flow`."""

    depends: np.ndarray
    explicit: np.ndarray
    zero: np.ndarray


def _joined(node: Node, sources: Sequence[np.ndarray]) -> Any:
    """A property of the sources' channels, carried to the output: true where it is for any channel that joins in."""
    if node.kind == "concat":
        return np.concatenate(sources)
    if node.kind == "flatten":
        return np.tile(sources[0], node.num_channels // sources[0].size)
    return np.any([np.broadcast_to(s, node.num_channels) for s in sources], axis=0)


def _everywhere(node: Node, depends: Any, explicit: Any, zero: Any) -> _State:
    """The same for all channels of a node's output."""
    return _State(*(np.full(node.num_channels, bool(value)) for value in (depends, explicit, zero)))


def _input_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    return _everywhere(node, True, True, False)


def _kernel_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    (x,) = sources
    constants = (kept & ~x.explicit & ~x.zero).any()
    explicit = (kept & x.explicit).any() or (node.pads and constants)
    return _everywhere(node, (kept & x.depends).any(), explicit, not constants and node.zero_to_zero)


def _depthwise_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    (x,) = sources
    constants = kept & ~x.explicit & ~x.zero
    explicit = (kept & x.explicit) | (constants & node.pads)
    zero = ~constants & node.zero_to_zero
    return _State(*(np.repeat(channels, node.multiplier) for channels in (kept & x.depends, explicit, zero)))


def _channelwise_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    (x,) = sources
    return _State(x.depends & kept, x.explicit & kept, (x.zero | ~kept) & node.zero_to_zero)


def _padding_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    (x,) = sources
    return _State(x.depends, ~x.zero, x.zero)


def _joined_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    depends, explicit = (_joined(node, [getattr(x, name) for x in sources]) for name in ("depends", "explicit"))
    return _State(depends, explicit, ~_joined(node, [~x.zero for x in sources]))


def _merge_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    state = _joined_state(node, sources, kept)
    if node.merge == "divide":
        return dataclasses.replace(state, zero=np.zeros_like(state.zero))
    if node.merge != "multiply":
        return state
    zero = _joined(node, [x.zero for x in sources])  # whatever the other factors are
    return _State(state.depends & ~zero, state.explicit & ~zero, zero)


def _opaque_state(node: Node, sources: Sequence[_State], kept: Any) -> _State:
    depends = any(x.depends.any() for x in sources) and type(node.inner).__name__ not in CONSTANT_OPERATIONS
    return _everywhere(node, depends, True, False)


_STATES: dict[str, Callable[[Node, Sequence[_State], Any], _State]] = {
    "input": _input_state,
    "kernel": _kernel_state,
    "separable": _kernel_state,
    "depthwise": _depthwise_state,
    "norm": _channelwise_state,
    "scale": _channelwise_state,
    "pointwise": _channelwise_state,
    "spatial": _channelwise_state,
    "reshape": _channelwise_state,
    "padding": _padding_state,
    "flatten": _joined_state,
    "concat": _joined_state,
    "merge": _merge_state,
    "opaque": _opaque_state,
}


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """While it lasts, Keras may follow graphs thousands of layers deep, which it does with one call a layer."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


_DEEPEST = 100_000


def is_gateable(node: Node) -> bool:
    """Whether `Gated` may wrap this node's layer."""
    return node.kind in CUT_KINDS or isinstance(node.inner, CHOICES)


def _has_kernel(node: Node) -> bool:
    return node.kind in CUT_KINDS or isinstance(node.inner, KERNELS)


def _functional(model: Any) -> Any:
    if any(base.__module__.split(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise UserError(
            f"model '{model.name}': a model of tf_keras (Keras 2), and one of Keras 3 is needed: build it again with "
            "Keras 3's layers (import keras), and take its weights: new.set_weights(old.get_weights())"
        )
    if isinstance(model, keras.Sequential):
        if model._functional is None:
            raise UserError(
                f"model '{model.name}': not built, so its channels are not known: give it a keras.Input first, or call "
                "model.build(input_shape)"
            )
        return model._functional
    if not hasattr(model, "_nodes_by_depth"):
        raise UserError(
            f"model '{getattr(model, 'name', model)}': a functional or Sequential Keras model is needed, because a "
            "subclassed one does not tell how its channels flow: build it with the functional API. "
            f"Received: {type(model).__name__}"
        )
    return model


def _called_twice(name: str) -> UserError:
    return UserError(
        f"layer '{name}' is called more than once, and its weights cannot be cut for two places at once: give each "
        "call a layer of its own"
    )
