"""A supernet's network as steps of a program that takes any architecture's channels, without being traced again.

Each kind of node has one rule here (`kinds` lists them): what it is fed for an architecture, and what it computes from
that. What is dropped is stepped over; tensors hold the channels that `Flow.held` says, in layout 'mask'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.graph.channels import Flow, Graph, Node
from tfnas.graph.folding import Folding
from tfnas.layers.kinds import TRANSPOSED

Fed = dict[str, Any]  # what one unit is given for one candidate
OUTPUT = -1  # number of what the unit makes that writes the first output's constants out; the next one's is one less


def segments(graph: Graph, example: Sequence[np.ndarray]) -> list[list[Unit]]:
    """All steps in order, cut where one tensor is all that flows on.

    Args:
        graph: of a supernet.
        example: one array for each of its inputs, of the shape that all will have, shape (1, ..., channels).

    Returns:
        Lists of units. The first is what comes before any gate, and reads the inputs; each of the others begins with
        the gates it has, and reads nothing but the output of the one before. The last ends with the model's outputs.
    """
    return _segments(graph, _units(graph, _shapes(graph, example)))


def _shapes(graph: Graph, example: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """Spatial shape of every node's output, from an example (the model's own may leave the image's size open)."""
    given = dict(zip(graph.inputs, example, strict=True))
    values: list[tf.Tensor] = []
    for i, node in enumerate(graph.nodes):
        tensors = [values[j] for j in node.inputs]
        values.append(tf.convert_to_tensor(given[i]) if i in given else _called(node, tensors))
    return [tuple(value.shape[1:-1]) for value in values]


def _units(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> list[Unit]:
    """The program's steps, in order: a kernel together with the normalisation and activation that only it feeds."""
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for i, node in enumerate(graph.nodes):
        for j in node.inputs:
            readers[j].append(i)
    units: list[Unit] = []
    taken: set[int] = set()

    def follower(i: int, kind: str) -> int | None:
        one = readers[i][0] if len(readers[i]) == 1 and i not in graph.outputs else None
        return one if one is not None and graph.nodes[one].kind == kind and not graph.nodes[one].gated else None

    for i, node in enumerate(graph.nodes):
        if node.kind == "input" or i in taken:
            continue
        make: Callable[..., Unit] = _RULES.get(node.kind, _Whole) if _is_narrowed(node) else _Whole
        if make is not _Kernel:
            units.append(make(graph, i, shapes))
            continue
        linear = node.inner.activation is keras.activations.linear
        norm = follower(i, "norm") if linear else None
        activation = follower(i if norm is None else norm, "pointwise")
        taken |= {j for j in (norm, activation) if j is not None}
        units.append(_Kernel(graph, i, shapes, norm, activation))
    return [*units, *(_Output(graph, i, shapes, number) for number, i in enumerate(graph.outputs))]


def _segments(graph: Graph, units: Sequence[Unit]) -> list[list[Unit]]:
    """Units between tensors that everything flows through; each segment but the first begins with the gates it has."""
    steps, outputs = units[: -len(graph.outputs)], units[-len(graph.outputs) :]
    chunks: list[list[Unit]] = [[]]
    for u, unit in enumerate(steps):
        chunks[-1].append(unit)
        made = {earlier.last for earlier in steps[: u + 1]} | set(graph.inputs)
        read = {i for later in (*steps[u + 1 :], *outputs) for i in later.reads}
        if read & made == {unit.last}:
            chunks.append([])
    segments = [[*chunks[0]]]
    for chunk in chunks[1:]:
        if any(unit.node.gated for unit in chunk):
            segments.append([])
        segments[-1].extend(chunk)
    segments[-1].extend(outputs)
    return segments


def _is_narrowed(node: Node) -> bool:
    """Whether a layer's work can be cut by giving it other kernels; else it is computed whole, and then cut."""
    if isinstance(node.inner, TRANSPOSED):
        return False
    if node.kind in ("depthwise", "separable"):
        strides, dilations = (getattr(node.inner, name) for name in ("strides", "dilation_rate"))
        plain = max(strides) == 1 or max(dilations) == 1
        return plain and len(node.spatial) == 2 and len(set(strides)) == 1 and hasattr(node.inner, "depth_multiplier")
    return True


class Unit:
    """One step of the program: a node, or several that are computed together.

    Attributes:
        name: of its node.
        last: number of the node whose output it makes.
    """

    def __init__(self, graph: Graph, i: int, shapes: Sequence[tuple[int, ...]]):
        self.graph = graph
        self.i = self.last = i
        self.node = graph.nodes[i]
        self.name = self.node.name
        self.shape = shapes[i]
        self.source_shape = shapes[self.node.inputs[0]]
        self.edges = [_Edge(self.source(j)) for j in range(len(self.node.inputs))]

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the nodes whose outputs it takes."""
        return self.node.inputs

    def source(self, j: int) -> Node:
        """The node that it reads as its input number j."""
        return self.graph.nodes[self.node.inputs[j]]

    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        """Which channels of input j it is given."""
        return flow.held(self.i)

    def signature(self) -> Fed:
        """What `feed` gives."""
        edges = {f"edge{j}": edge.signature() for j, edge in enumerate(self.edges)}
        return {"exists": tf.TensorSpec((), tf.bool), **edges, **self.more()}

    def feed(self, flow: Flow, folding: Folding) -> Fed:
        """For one candidate; what does not exist is fed with nothing."""
        exists = flow.works(self.i)
        if not exists:
            return {**_nothing(self.signature()), "exists": np.array(False)}
        edges = {
            f"edge{j}": edge.feed(flow, folding, self.node.inputs[j], self.wanted(flow, j))
            for j, edge in enumerate(self.edges)
        }
        return {"exists": np.array(True), **edges, **self.weigh(flow, folding)}

    def __call__(self, values: Mapping[int, tf.Tensor], fed: Fed) -> tf.Tensor:
        """Its output, with no channels if it does not exist."""
        given = [values[i] for i in self.node.inputs]

        def compute() -> tf.Tensor:
            edges = enumerate(zip(self.edges, given, strict=True))
            return self.compute([edge(x, fed[f"edge{j}"]) for j, (edge, x) in edges], fed)

        return tf.cond(fed["exists"], compute, lambda: tf.zeros((tf.shape(given[0])[0], *self.shape, 0)))

    def more(self) -> Fed:
        """Signature of what `weigh` gives."""
        return {}

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        """Its weights, for a candidate in which it exists."""
        return {}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        """Its output."""
        return _called(self.node, tensors)


class _Edge:
    """From what a tensor holds to what a reader wants: mostly the same; else gathered, with constants written out."""

    def __init__(self, source: Node):
        self.source = source

    def signature(self) -> Fed:
        channels = tf.TensorSpec((None,), tf.int32)
        return {"same": tf.TensorSpec((), tf.bool), "channels": channels, "constants": tf.TensorSpec((None,))}

    def feed(self, flow: Flow, folding: Folding, i: int, wanted: np.ndarray) -> Fed:
        held = flow.held(i)
        if np.array_equal(held, wanted):
            return {**_nothing(self.signature()), "same": np.array(True)}
        there = np.isin(wanted, held)
        # Channels that are not there are taken from one of zeros behind the others.
        channels = np.where(there, np.searchsorted(held, wanted), held.size).astype(np.int32)
        constants = np.where(there, 0.0, folding.constants[i][wanted]).astype(np.float32)
        return {"same": np.array(False), "channels": channels, "constants": constants}

    def __call__(self, x: tf.Tensor, fed: Fed) -> tf.Tensor:
        def gather() -> tf.Tensor:
            padded = tf.concat([x, tf.zeros((*tf.unstack(tf.shape(x))[:-1], 1), x.dtype)], -1)
            return tf.gather(padded, fed["channels"], axis=-1) + tf.cast(fed["constants"], x.dtype)

        return tf.cond(fed["same"], lambda: x, gather)


class _Direct(_Edge):
    """Where a reader always wants just what the tensor holds."""

    def signature(self) -> Fed:
        return {}

    def feed(self, flow: Flow, folding: Folding, i: int, wanted: np.ndarray) -> Fed:
        if not np.array_equal(flow.held(i), wanted):
            raise AssertionError(f"engine: a reader of '{self.source.name}' wants other channels than it holds")
        return {}

    def __call__(self, x: tf.Tensor, fed: Fed) -> tf.Tensor:
        return x


def _edge_to_reader_of_all(source: Node) -> _Edge:
    """What reads every channel that is live: others are held only where a layer cannot leave them out."""
    extra = source.kind == "flatten" or (source.kind == "depthwise" and source.multiplier > 1)
    return _Edge(source) if extra else _Direct(source)


class _Channelwise(Unit):
    """Kinds that treat each channel by itself, and are called as they are."""

    def __init__(self, graph: Graph, i: int, shapes: Sequence[tuple[int, ...]]):
        super().__init__(graph, i, shapes)
        if not self.node.gated and self.node.kind != "padding":
            self.edges = [_edge_to_reader_of_all(self.source(0))]


class _Norm(_Channelwise):
    def more(self) -> Fed:
        return {"scale": tf.TensorSpec((None,)), "offset": tf.TensorSpec((None,))}

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        scale, offset = folding.affine(self.node)
        held = flow.held(self.i)
        return {"scale": scale[held], "offset": offset[held]}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        return tensors[0] * fed["scale"] + fed["offset"]


class _Scale(_Channelwise):
    def more(self) -> Fed:
        return {"gamma": tf.TensorSpec((None,))}

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        return {"gamma": folding.weights[self.name]["gamma"][flow.held(self.i)]}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        return tensors[0] * fed["gamma"]


_PLAIN, _WITH_BORDER, _BORDER_ONLY = range(3)


class _Kernel(Unit):
    """A convolution or dense layer, the normalisation behind it folded in, and the activation behind that."""

    def __init__(
        self, graph: Graph, i: int, shapes: Sequence[tuple[int, ...]], norm: int | None, activation: int | None
    ):
        super().__init__(graph, i, shapes)
        self.edges = [_edge_to_reader_of_all(self.source(0))]
        self.norm = None if norm is None else graph.nodes[norm]
        self.activation = None if activation is None else graph.nodes[activation]
        self.last = next(j for j in (activation, norm, i) if j is not None)
        self.sees_border = self.node.pads

    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        inputs = np.flatnonzero(flow.kernel_inputs(self.node)[0])
        # One that sees nothing but its border does not look at its input.
        return inputs if inputs.size else flow.held(self.node.inputs[0])

    def more(self) -> Fed:
        size = tuple(getattr(self.node.inner, "kernel_size", ()))
        kernel = tf.TensorSpec((*size, None, None))
        more = {"kernel": kernel, "bias": tf.TensorSpec((None,))}
        if self.sees_border:
            more |= {"case": tf.TensorSpec((), tf.int32), "border": kernel}
        return more

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        kernel = folding.kernel(self.i)
        if self.norm is not None:
            scale, offset = (part[flow.held(self.i)] for part in folding.affine(self.norm))
            kernel = kernel.scaled(scale, offset)
        fed = {"kernel": kernel.weights, "bias": kernel.bias}
        if self.sees_border:
            case = _PLAIN if kernel.border is None else _WITH_BORDER if kernel.weights.size else _BORDER_ONLY
            border = kernel.weights[..., :0, :] if kernel.border is None else kernel.border
            fed |= {"case": np.array(case, np.int32), "border": border}
        return fed

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        (x,) = tensors

        def plain() -> tf.Tensor:
            return self._finished(tf.nn.bias_add(self._applied(x, fed["kernel"]), fed["bias"]))

        def border() -> tf.Tensor:
            ones = tf.ones((1, *self.source_shape, 1))
            return tf.nn.bias_add(self._applied(ones, fed["border"]), fed["bias"])

        def with_border() -> tf.Tensor:
            return self._finished(self._applied(x, fed["kernel"]) + border())

        def border_only() -> tf.Tensor:
            return tf.repeat(self._finished(border()), tf.shape(x)[0], axis=0)

        return tf.switch_case(fed["case"], [plain, with_border, border_only]) if self.sees_border else plain()

    def _applied(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        inner = self.node.inner
        if isinstance(inner, keras.layers.Dense):
            return tf.matmul(x, kernel) if len(x.shape) == 2 else tf.tensordot(x, kernel, 1)
        if len(inner.strides) == 2:
            return tf.nn.conv2d(x, kernel, inner.strides, inner.padding.upper(), dilations=inner.dilation_rate)
        if max(inner.dilation_rate) > 1:
            return _dilated(inner, x, self.source_shape, lambda x: tf.nn.convolution(x, kernel, 1, "VALID"))
        padding = inner.padding
        if padding == "causal":
            x = tf.pad(x, [[0, 0], [inner.kernel_size[0] - 1, 0], [0, 0]])
            padding = "valid"
        return tf.nn.convolution(x, kernel, inner.strides, padding.upper())

    def _finished(self, y: tf.Tensor) -> tf.Tensor:
        y = self.node.inner.activation(y)
        return y if self.activation is None else _called(self.activation, [y])


class _Depthwise(Unit):
    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        return np.flatnonzero(flow.depthwise_inputs(self.node))

    def more(self) -> Fed:
        return {
            "kernel": tf.TensorSpec((*self.node.inner.kernel_size, None, self.node.multiplier)),
            "bias": tf.TensorSpec((None,)),
        }

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        values = folding.weights[self.name]
        bias = values.get("bias", np.zeros(self.node.num_channels, np.float32))
        return {"kernel": values["kernel"][..., self.wanted(flow, 0), :], "bias": bias[flow.held(self.i)]}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        filtered = _filtered(self.node.inner, tensors[0], fed["kernel"], self.source_shape)
        return self.node.inner.activation(tf.nn.bias_add(filtered, fed["bias"]))


class _Separable(Unit):
    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        return np.flatnonzero(flow.kernel_inputs(self.node)[0])

    def more(self) -> Fed:
        return {
            "depthwise": tf.TensorSpec((*self.node.inner.kernel_size, None, self.node.multiplier)),
            "pointwise": tf.TensorSpec((1, 1, None, None)),
            "bias": tf.TensorSpec((None,)),
        }

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        values = folding.weights[self.name]
        inputs, outputs = self.wanted(flow, 0), flow.held(self.i)
        kept = flow.kept(self.node)[inputs][:, None]
        rows = (inputs[:, None] * self.node.multiplier + np.arange(self.node.multiplier)).reshape(-1)
        return {
            "depthwise": np.where(kept, values["depthwise_kernel"][..., inputs, :], np.float32(0)),
            "pointwise": values["pointwise_kernel"][..., rows, :][..., outputs],
            "bias": values.get("bias", np.zeros(self.node.num_channels, np.float32))[outputs],
        }

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        middle = _filtered(self.node.inner, tensors[0], fed["depthwise"], self.source_shape)
        return self.node.inner.activation(
            tf.nn.bias_add(tf.nn.convolution(middle, fed["pointwise"], 1, "VALID"), fed["bias"])
        )


def _called(node: Node, tensors: list[tf.Tensor]) -> tf.Tensor:
    # At inference, as `evaluate` and `predict` call the model, whatever the layer was called with. A layer with a
    # policy of mixed precision computes, and answers, in another type.
    return tf.cast(node.call(node.inner, tensors, training=False), tf.float32)


def _filtered(inner: Any, x: tf.Tensor, kernel: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """The depthwise step of a layer, on channels of this spatial shape."""
    if max(inner.dilation_rate) > 1:
        return _dilated(inner, x, shape, lambda x: tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID"))
    return tf.nn.depthwise_conv2d(x, kernel, (1, *inner.strides, 1), inner.padding.upper())


def _dilated(inner: Any, x: tf.Tensor, shape: tuple[int, ...], convolve: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A layer's dilated convolution, as `convolve`, which is not dilated, on every d-th position by itself.

    TensorFlow's own wants to know the number of channels when it is traced, but in two dimensions.

    Args:
        inner: the layer, with strides of 1.
        x: shape (batch, *shape, channels).
        shape: the spatial axes.
        convolve: without padding.
    """
    paddings, crops = [], []
    for length, size, rate in zip(shape, inner.kernel_size, inner.dilation_rate, strict=True):
        reach = rate * (size - 1)
        padded = 0 if inner.padding == "valid" else reach
        before = reach if inner.padding == "causal" else padded // 2
        fill = -(length + padded) % rate  # until the rate divides the length
        paddings.append((before, padded - before + fill))
        crops.append((0, fill))
    parts = tf.space_to_batch(x, inner.dilation_rate, paddings)
    return tf.batch_to_space(convolve(parts), inner.dilation_rate, crops)


class _Merge(Unit):
    """Add, Multiply, ...; a source that is all constant is joined as its constants, without a tensor of its own."""

    def __init__(self, graph: Graph, i: int, shapes: Sequence[tuple[int, ...]]):
        super().__init__(graph, i, shapes)
        self.broadcasts = any(shapes[j] != self.shape for j in self.node.inputs)

    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        return flow.held(self.i) if self.source(j).num_channels == self.node.num_channels else np.arange(1)

    def __call__(self, values: Mapping[int, tf.Tensor], fed: Fed) -> tf.Tensor:
        given = [values[i] for i in self.node.inputs]
        join = _MERGES[self.node.merge]

        def compute() -> tf.Tensor:
            total = self.edges[0](given[0], fed["edge0"])
            for j, x in enumerate(given[1:], 1):
                total = self._joined(join, total, x, fed[f"edge{j}"], j)
            total = total / len(given) if self.node.merge == "average" else total
            if not self.broadcasts:
                return total
            # A source that is all constant brings no tensor, and so not its size either.
            return tf.broadcast_to(total, (tf.shape(total)[0], *self.shape, tf.shape(total)[-1]))

        return tf.cond(fed["exists"], compute, lambda: tf.zeros((tf.shape(given[0])[0], *self.shape, 0)))

    def _joined(self, join: Callable[..., tf.Tensor], total: tf.Tensor, x: tf.Tensor, edge: Fed, j: int) -> tf.Tensor:
        absent = tf.logical_and(tf.equal(tf.shape(x)[-1], 0), tf.logical_not(edge["same"]))
        return tf.cond(absent, lambda: join(total, edge["constants"]), lambda: join(total, self.edges[j](x, edge)))


class _Concat(Unit):
    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        sizes = [self.source(k).num_channels for k in range(len(self.node.inputs))]
        start = sum(sizes[:j])
        held = flow.held(self.i)
        return held[(held >= start) & (held < start + sizes[j])] - start

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        return tf.concat(tensors, -1)


class _Whole(Unit):
    """A layer that is computed with all its channels, as the supernet does, and then cut to those that are read."""

    def __init__(self, graph: Graph, i: int, shapes: Sequence[tuple[int, ...]]):
        super().__init__(graph, i, shapes)
        # The model's inputs are there with all their channels, and may be no numbers to be gathered: a mask's.
        for j, edge in enumerate(self.edges):
            if edge.source.kind == "input":
                self.edges[j] = _Direct(edge.source)

    def wanted(self, flow: Flow, j: int) -> np.ndarray:
        return np.arange(self.source(j).num_channels)

    def more(self) -> Fed:
        more = {"held": tf.TensorSpec((None,), tf.int32)}
        return {**more, "mask": tf.TensorSpec((self.source(0).num_channels,))} if self.node.gated else more

    def weigh(self, flow: Flow, folding: Folding) -> Fed:
        fed = {"held": flow.held(self.i).astype(np.int32)}
        return {**fed, "mask": flow.kept(self.node).astype(np.float32)} if self.node.gated else fed

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        whole = [tf.ensure_shape(x, (*x.shape[:-1], self.source(j).num_channels)) for j, x in enumerate(tensors)]
        if self.node.gated:
            whole = [whole[0] * fed["mask"]]
        output = _called(self.node, whole)
        return tf.cond(
            tf.equal(tf.size(fed["held"]), self.node.num_channels),
            lambda: output,
            lambda: tf.gather(output, fed["held"], axis=-1),
        )


class _Output(Unit):
    """One of the model's outputs with all its channels, those that are constant included."""

    def __init__(self, graph: Graph, i: int, shapes: Sequence[tuple[int, ...]], number: int):
        self.graph, self.i, self.node, self.shape = graph, i, graph.nodes[i], shapes[i]
        self.last = OUTPUT - number
        self.name = f"output/{number}"  # no layer's: Keras allows none with a slash
        self.edges = [_Edge(self.node)]

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.i,)

    def feed(self, flow: Flow, folding: Folding) -> Fed:
        wanted = np.arange(self.node.num_channels)
        return {"exists": np.array(True), "edge0": self.edges[0].feed(flow, folding, self.i, wanted)}

    def __call__(self, values: Mapping[int, tf.Tensor], fed: Fed) -> tf.Tensor:
        output = self.edges[0](values[self.i], fed["edge0"])
        # Keras finds out by the shape what 'accuracy' means.
        return tf.ensure_shape(output, (None, *self.shape, self.node.num_channels))


# Kinds with a rule of their own; any other is computed whole.
_RULES: dict[str, Callable[..., Unit]] = {
    "kernel": _Kernel,
    "depthwise": _Depthwise,
    "separable": _Separable,
    "norm": _Norm,
    "scale": _Scale,
    "pointwise": _Channelwise,
    "spatial": _Channelwise,
    "padding": _Channelwise,
    "merge": _Merge,
    "concat": _Concat,
}

_MERGES: dict[str, Callable[..., tf.Tensor]] = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "average": tf.add,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
    "divide": tf.divide,
}


def _nothing(signature: Fed) -> Fed:
    """Empty values for a signature."""
    return tf.nest.map_structure(
        lambda spec: np.zeros([size or 0 for size in spec.shape], spec.dtype.as_numpy_dtype), signature
    )
