"""Cuts an architecture out of its supernet: a plain Keras model with the dropped channels physically gone.

Exact: the subnet's output is the supernet's under the mask. What a dropped operation still contributes is a constant
per channel (batch normalisation of zeros), which is folded: into the next normalisation, a sum's offset, a kernel's
bias, or, where a kernel pads with zeros and so sees a border, one input channel of ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas import functions, supernets
from tfnas.architecture import Architecture
from tfnas.channels import Flow, Graph, Node
from tfnas.errors import UserError
from tfnas.kinds import TRANSPOSED, channel_kernels
from tfnas.supernet import Supernet, copy_weights


@dataclasses.dataclass(frozen=True)
class _Value:
    """A tensor of the supernet as the subnet holds it.

    Attributes:
        tensor: KerasTensor with the channels `channels` in that order; None if there are none.
        channels: indices into the supernet's channels, ascending.
        constants: value of every channel that is constant, float32, shape (C,); elsewhere 0.
        spatial: the axes between batch and channels.
    """

    tensor: Any
    channels: np.ndarray
    constants: np.ndarray
    spatial: tuple[int | None, ...]


def subnet(
    supernet: Supernet,
    architecture: Architecture,
    *,
    channel_multiple: int = 1,
    layout: str = "gather",
    name: str = "subnet",
) -> keras.Model:
    """The network that `architecture` keeps, with the supernet's weights.

    Args:
        supernet: trained or not; not changed.
        architecture: which input channels of which gated layer are kept.
        channel_multiple: if not 1, `architecture` is first widened by `adapt` to multiples of this many channels.
        layout: where readers of one tensor keep different channels of it: 'gather' lets each gather its own (fewest
            multiply-adds), 'mask' gives each all that the tensor holds, with zero weights for what it does not keep (no
            gathering), 'shared' first widens `architecture` by `adapt` until they agree. docs/your_model.md says which
            is fastest when.
        name: of the model returned.

    Returns:
        A functional model made of Keras's own layers and operations, same inputs and outputs as the supernet's network.
        Its outputs are the supernet's under `architecture`, or under `adapt`'s where that widens it.

    Raises:
        UserError: if the architecture is not one of this supernet, or drops every path to an output.
    """
    if channel_multiple != 1 or layout == "shared":
        architecture = adapt(supernet, architecture, channel_multiple=channel_multiple, layout=layout)
    flow = supernet.graph.flow(architecture, "gather" if layout == "shared" else layout)
    return _Cutter(supernet.graph, flow).cut(name)


def adapt(
    supernet: Supernet, architecture: Architecture, *, channel_multiple: int = 1, layout: str = "gather"
) -> Architecture:
    """`architecture` widened to what hardware likes; nothing that it keeps is dropped, no dropped operation comes back.

    Args:
        supernet: whose weights say which channels to add: those of the largest norm first.
        architecture: to be widened.
        channel_multiple: every gated layer keeps a multiple of this many input channels, or all it has.
        layout: 'shared' makes all readers of a tensor keep the same of its channels; others add nothing.

    Raises:
        UserError: for a multiple below 1, or an architecture of another supernet.
    """
    if channel_multiple < 1:
        raise UserError(f"channel_multiple: at least 1 expected. Received: {channel_multiple}")
    graph = supernet.graph
    graph.flow(architecture, layout)  # checks both
    norms = {name: np.asarray(layer.squared_norms()) for name, layer in supernet.gated_layers.items()}
    keep = {name: np.array(mask) for name, mask in architecture.items()}
    while True:
        before = sum(int(mask.sum()) for mask in keep.values())
        if layout == "shared":
            keep = graph.shared(keep)
        for name, mask in keep.items():
            missing = min(-int(mask.sum()) % channel_multiple, int((~mask).sum()))
            if mask.any() and missing:
                mask[np.argsort(np.where(mask, -np.inf, norms[name]), kind="stable")[-missing:]] = True
        if sum(int(mask.sum()) for mask in keep.values()) == before:
            return Architecture(keep)


def describe(architecture: Architecture, builder: str, layout: str = "gather", **arguments: Any) -> str:
    """JSON of an architecture together with the super-network it belongs to, from which `rebuild` makes the model.

    Args:
        architecture: which channels are kept.
        builder: name of a function in `tfnas.supernets`, or 'package.module:function'.
        layout: 'gather' or 'mask', as for `subnet`.
        arguments: of that function.
    """
    supernet = {"builder": builder, "arguments": arguments}
    return json.dumps({**json.loads(architecture.to_json()), "layout": layout, "supernet": supernet})


def rebuild(text: str, name: str = "subnet") -> keras.Model:
    """The network that `describe`'s JSON says, with fresh weights.

    Raises:
        UserError: if the text is not such JSON, or names a super-network that does not exist or a function that cannot
            be imported.
    """
    architecture = Architecture.from_json(text)
    try:
        described = json.loads(text)
        spec, layout = described["supernet"], described["layout"]
        build = builder(spec["builder"], "architecture")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"architecture: names no super-network of tfnas.supernets ({error})") from None
    graph = Graph(build(**spec["arguments"]))
    return _Cutter(graph, graph.flow(architecture, layout)).cut(name)


def builder(name: str, key: str) -> Callable[..., keras.Model]:
    """The function that builds a super-network: one of `tfnas.supernets`, or the user's 'package.module:function'.

    Raises:
        UserError: naming the setting `key`, if a function of the user's cannot be imported.
        AttributeError: if there is no such super-network.
    """
    return functions.resolve(key, name) if ":" in name else getattr(supernets, name)


class _Cutter:
    def __init__(self, graph: Graph, flow: Flow):
        self.graph = graph
        self.flow = flow
        self.weights: list[tuple[Any, list[np.ndarray]]] = []  # set once the model, and so every layer, is built
        self.values: list[_Value] = []
        self.num_operations = 0

    def cut(self, name: str) -> keras.Model:
        for i in self.graph.outputs:
            if not self.flow.explicit[i].any():
                raise UserError(
                    f"architecture: it drops every path to the output '{self.graph.nodes[i].name}', so there is no "
                    "network to cut out; choose another candidate"
                )
        for i, node in enumerate(self.graph.nodes):
            value = getattr(self, f"_{node.kind}")(i, node, [self.values[j] for j in node.inputs])
            # What is explicit has no constant; what is not has one, whether or not anybody reads it.
            constants = np.where(self.flow.explicit[i], 0.0, np.asarray(value.constants, np.float32))
            self.values.append(dataclasses.replace(value, constants=constants))
        ends = {i: self.values[i].tensor for i in self.graph.inputs}
        ends |= {
            i: self._gather(self.values[i], np.arange(self.graph.nodes[i].num_channels)) for i in self.graph.outputs
        }
        model = self.graph.model_of(ends, name)
        for layer, weights in self.weights:
            copy_weights(layer, weights)
        return model

    def _layer(self, node: Node, tensors: Sequence[Any], weights: Sequence[np.ndarray], **changes: Any) -> Any:
        """The output of a copy of a node's layer, with other settings and weights, on these tensors."""
        if not isinstance(node.inner, keras.Layer):
            return node.call(node.inner, tensors)
        layer = node.inner.__class__.from_config({**node.inner.get_config(), "name": node.name, **changes})
        output = node.call(layer, tensors)
        if weights:
            self.weights.append((layer, list(weights)))
        return output

    def _operation(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """One of `keras.ops` on tensors, named so that it cannot be taken for a layer of the model's."""
        output = function(*arguments, **keywords)
        self.num_operations += 1
        while f"cut_{self.num_operations}" in self.graph.index:  # a subnet that is cut again
            self.num_operations += 1
        output._keras_history.operation.name = f"cut_{self.num_operations}"
        return output

    def _live(self, i: int) -> np.ndarray:
        return np.flatnonzero(self.flow.live[i])

    def _input(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        tensor = keras.Input(batch_shape=node.layer.batch_shape, dtype=node.layer.dtype, name=node.name)
        return _Value(tensor, np.arange(node.num_channels), np.zeros(node.num_channels), node.spatial)

    def _kernel(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        channels = self._live(i)
        kept = self.flow.kept(node)
        transposed = isinstance(node.inner, TRANSPOSED)  # whose kernel has its last two axes the other way round
        kernel = np.asarray(node.inner.kernel)
        kernel = np.where(kept[:, None], np.swapaxes(kernel, -1, -2) if transposed else kernel, 0.0)
        bias = np.asarray(node.inner.bias) if node.inner.use_bias else np.zeros(node.num_channels, np.float32)
        folded = np.tensordot(source.constants, kernel, (0, kernel.ndim - 2))  # [..., H]
        summed = folded.reshape(-1, node.num_channels).sum(0) + bias
        if not channels.size:
            return _Value(None, channels, _activated(node, summed), node.spatial)

        inputs, constants = self.flow.kernel_inputs(node)
        tensors, kernels = [], []
        if inputs.any():
            tensors.append(self._gather(source, np.flatnonzero(inputs)))
            kernels.append(kernel[..., inputs, :])
        if constants and node.pads:
            tensors.append(self._ones(source.spatial))
            kernels.append(folded[..., None, :])
        tensor = self._operation(keras.ops.concatenate, tensors, axis=-1) if len(tensors) > 1 else tensors[0]
        new = np.concatenate(kernels, axis=-2)[..., channels]
        weights = [np.swapaxes(new, -1, -2) if transposed else new]
        use_bias = node.inner.use_bias or (constants and not node.pads)
        if use_bias:
            weights.append((bias if node.pads else summed)[channels])
        units = "units" if isinstance(node.inner, keras.layers.Dense) else "filters"
        output = self._layer(node, [tensor], weights, **{units: int(channels.size)}, use_bias=use_bias)
        return _Value(output, channels, np.zeros(node.num_channels), node.spatial)

    def _separable(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        channels = self._live(i)
        kept = self.flow.kept(node)
        depthwise = np.where(kept[:, None], np.asarray(node.inner.depthwise_kernel), 0.0)
        pointwise = np.asarray(node.inner.pointwise_kernel)
        bias = np.asarray(node.inner.bias) if node.inner.use_bias else np.zeros(node.num_channels, np.float32)
        if not channels.size:
            size = math.prod(depthwise.shape[:-2])
            middle = source.constants[:, None] * depthwise.reshape(size, *depthwise.shape[-2:]).sum(0)  # [K, m]
            summed = middle.reshape(-1) @ pointwise.reshape(-1, node.num_channels) + bias
            return _Value(None, channels, _activated(node, summed), node.spatial)
        inputs, _ = self.flow.kernel_inputs(node)
        rows = np.repeat(inputs, node.multiplier)
        weights = [depthwise[..., inputs, :], pointwise[..., rows, :][..., channels]]
        if node.inner.use_bias:
            weights.append(bias[channels])
        tensor = self._gather(source, np.flatnonzero(inputs))
        output = self._layer(node, [tensor], weights, filters=int(channels.size))
        return _Value(output, channels, np.zeros(node.num_channels), node.spatial)

    def _depthwise(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        inner, multiplier = node.inner, node.multiplier
        ((kernel, shape),) = channel_kernels(inner)
        bias = np.asarray(inner.bias) if inner.use_bias else np.zeros(node.num_channels, np.float32)
        sums = np.asarray(kernel).reshape(shape).sum(0)  # [K, m]
        kept = np.where(self.flow.kept(node), source.constants, 0.0)
        constants = _activated(node, (kept[:, None] * sums).reshape(-1) + bias)
        inputs = np.flatnonzero(self.flow.depthwise_inputs(node))
        if not inputs.size:
            return _Value(None, inputs, constants, node.spatial)
        channels = (inputs[:, None] * multiplier + np.arange(multiplier)).reshape(-1)
        if hasattr(inner, "depth_multiplier"):
            weights, changes = [np.asarray(kernel)[..., inputs, :]], {}
        else:
            weights = [np.asarray(kernel)[..., channels]]
            changes = {"groups": int(inputs.size), "filters": int(channels.size)}
        if inner.use_bias:
            weights.append(bias[channels])
        output = self._layer(node, [self._gather(source, inputs)], weights, **changes)
        return _Value(output, channels, constants, node.spatial)

    def _norm(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        layer = node.inner
        deviation = np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
        constants = (sources[0].constants - np.asarray(layer.moving_mean)) / deviation
        constants = constants * (np.asarray(layer.gamma) if layer.scale else 1.0)
        constants = constants + (np.asarray(layer.beta) if layer.center else 0.0)
        return self._channelwise(i, node, sources[0], constants, axis=-1)

    def _scale(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        constants = sources[0].constants * np.asarray(node.inner.gamma)
        return self._channelwise(i, node, sources[0], constants, projection_dim=self._live(i).size)

    def _pointwise(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        constants = np.asarray(node.call(node.inner, [sources[0].constants[None].astype("float32")]))[0]
        return self._channelwise(i, node, sources[0], constants)

    def _spatial(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        return self._channelwise(i, node, sources[0], np.where(self.flow.kept(node), sources[0].constants, 0.0))

    def _padding(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        return self._channelwise(i, node, sources[0], np.zeros(node.num_channels))

    def _reshape(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        shape = (*node.inner.target_shape[:-1], int(self._live(i).size))
        return self._channelwise(i, node, sources[0], sources[0].constants, target_shape=shape)

    def _channelwise(self, i: int, node: Node, source: _Value, constants: np.ndarray, **changes: Any) -> _Value:
        channels = self._live(i)
        if not channels.size:
            return _Value(None, channels, constants, node.spatial)
        weights = [w[channels] for w in node.inner.get_weights()] if getattr(node.inner, "weights", None) else []
        output = self._layer(node, [self._gather(source, channels)], weights, **changes)
        return _Value(output, channels, constants, node.spatial)

    def _flatten(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        width = source.constants.size
        positions = node.num_channels // width
        constants = np.tile(source.constants, positions)
        read = np.flatnonzero(self.flow.live[i].reshape(positions, width).any(0))
        if not read.size:
            return _Value(None, read, constants, ())
        channels = (np.arange(positions)[:, None] * width + read).reshape(-1)
        return _Value(self._layer(node, [self._gather(source, read)], []), channels, constants, ())

    def _merge(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        channels = self._live(i)
        constants = np.asarray(_MERGE[node.merge]([s.constants.astype("float64") for s in sources]))
        if not channels.size:
            return _Value(None, channels, constants, node.spatial)

        def part(source: _Value) -> Any:
            return self._gather(source, channels if source.constants.size == node.num_channels else np.arange(1))

        if node.merge != "add":
            return _Value(self._layer(node, [part(s) for s in sources], []), channels, constants, node.spatial)
        # What is constant in an addend is in `offset`, and 0 in the tensor; an addend that is all constant is gone.
        offset = np.sum([np.broadcast_to(s.constants, node.num_channels)[channels] for s in sources], axis=0)
        tensors = [
            part(dataclasses.replace(s, constants=np.zeros_like(s.constants)))
            for s in sources
            if np.isin(channels if s.constants.size == node.num_channels else [0], s.channels).any()
        ]
        output = self._layer(node, tensors, []) if len(tensors) > 1 else tensors[0]
        if offset.any():
            output = self._operation(keras.ops.add, output, offset.astype("float32"))
        return _Value(output, channels, constants, node.spatial)

    def _concat(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        starts = np.cumsum([0] + [s.constants.size for s in sources])
        channels = self._live(i)
        tensors = []
        for start, source in zip(starts, sources, strict=False):
            wanted = channels[(channels >= start) & (channels < start + source.constants.size)] - start
            if wanted.size:
                tensors.append(self._gather(source, wanted))
        constants = np.concatenate([s.constants for s in sources])
        if not tensors:
            return _Value(None, channels, constants, node.spatial)
        output = keras.layers.Concatenate(name=node.name)(tensors) if len(tensors) > 1 else tensors[0]
        return _Value(output, channels, constants, node.spatial)

    def _opaque(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        channels = self._live(i)
        if not channels.size:
            return _Value(None, channels, np.zeros(node.num_channels), node.spatial)
        tensors = [self._gather(s, np.arange(s.constants.size)) for s in sources]
        output = self._layer(node, tensors, getattr(node.inner, "weights", None) and node.inner.get_weights() or [])
        return _Value(output, channels, np.zeros(node.num_channels), node.spatial)

    def _gather(self, value: _Value, wanted: np.ndarray) -> Any:
        """A tensor with the channels `wanted`, in order; those that `value` holds as constants are written out."""
        if np.array_equal(wanted, value.channels):
            return value.tensor
        explicit = np.isin(wanted, value.channels)
        constants = value.constants[wanted].astype("float32")
        if not explicit.any():
            return self._operation(keras.ops.multiply, self._ones(value.spatial), constants)
        position = np.searchsorted(value.channels, wanted).astype("int32")
        if explicit.all():
            return self._operation(keras.ops.take, value.tensor, position, axis=-1)
        # Channels that are not there are taken from one of zeros behind the others.
        zero = self._operation(keras.ops.zeros_like, self._operation(lambda x: x[..., :1], value.tensor))
        tensor = self._operation(keras.ops.concatenate, [value.tensor, zero], axis=-1)
        position = np.where(explicit, position, value.channels.size).astype("int32")
        tensor = self._operation(keras.ops.take, tensor, position, axis=-1)
        return self._operation(keras.ops.add, tensor, np.where(explicit, 0.0, constants).astype("float32"))

    def _ones(self, spatial: tuple[int | None, ...]) -> Any:
        """Ones of shape (batch, *spatial, 1), for the batch at hand."""
        if None in spatial:
            raise UserError(
                "subnet: a dropped operation leaves a constant where the spatial size is not known: give the model's "
                "input a fixed size"
            )
        image = self.values[self.graph.inputs[0]].tensor
        corner = (slice(None), *[slice(0, 1)] * (len(image.shape) - 1))
        one = self._operation(lambda x: x[corner], image)
        one = self._operation(keras.ops.ones_like, self._operation(keras.ops.cast, one, "float32"))
        one = self._operation(keras.ops.reshape, one, (-1, *[1] * (len(spatial) + 1)))
        return self._operation(keras.ops.tile, one, (1, *spatial, 1))


# Of constants, shape (C,) or (1,) each.
_MERGE: Mapping[str, Any] = {
    "add": sum,
    "subtract": lambda values: values[0] - values[1],
    "multiply": math.prod,
    "average": lambda values: sum(values) / len(values),
    "maximum": lambda values: np.maximum.reduce(np.broadcast_arrays(*values)),
    "minimum": lambda values: np.minimum.reduce(np.broadcast_arrays(*values)),
    "divide": lambda values: values[0] / np.where(values[1], values[1], np.nan),
}


def _activated(node: Node, constants: np.ndarray) -> np.ndarray:
    return np.asarray(node.inner.activation(constants[None].astype("float32")))[0]
