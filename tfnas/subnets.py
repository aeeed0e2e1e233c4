"""Cuts an architecture out of its supernet: a plain Keras model with the dropped channels physically gone.

Exact: the subnet's output is the supernet's under the mask. What a dropped operation still contributes is a constant
per channel (batch normalisation of zeros), which is folded: into the next batch normalisation, a sum's offset, or one
input channel of ones in a kernel that reads it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfnas import functions, supernets
from tfnas.architecture import Architecture
from tfnas.channels import Flow, Graph, Node
from tfnas.errors import UserError
from tfnas.gates import Gated
from tfnas.supernet import Supernet


@dataclasses.dataclass(frozen=True)
class _Value:
    """A tensor of the supernet as the subnet holds it.

    Attributes:
        tensor: KerasTensor with the channels `channels` in that order; None if there are none.
        channels: indices into the supernet's channels, ascending.
        constants: value of every channel that is not explicit, float32, shape (C,); elsewhere 0.
        spatial: the axes between batch and channels.
    """

    tensor: Any
    channels: np.ndarray
    constants: np.ndarray
    spatial: tuple[int | None, ...]


def subnet(supernet: Supernet, architecture: Architecture, name: str = "subnet") -> keras.Model:
    """The network that `architecture` keeps, with the supernet's weights.

    Args:
        supernet: trained or not; not changed.
        architecture: which input channels of which gated layer are kept.
        name: of the model returned.

    Returns:
        A functional model made of Keras's own layers and operations, same input and output as the supernet's network.

    Raises:
        UserError: if the architecture is not one of this supernet.
    """
    return _Cutter(supernet.graph, supernet.graph.flow(architecture)).cut(name)


def describe(architecture: Architecture, builder: str, **arguments: Any) -> str:
    """JSON of an architecture together with the super-network it belongs to, from which `rebuild` makes the model.

    Args:
        architecture: which channels are kept.
        builder: name of a function in `tfnas.supernets`, or 'package.module:function'.
        arguments: of that function.
    """
    return json.dumps({**json.loads(architecture.to_json()), "supernet": {"builder": builder, "arguments": arguments}})


def rebuild(text: str, name: str = "subnet") -> keras.Model:
    """The network that `describe`'s JSON says, with fresh weights.

    Raises:
        UserError: if the text is not such JSON, or names a super-network that does not exist or a function that cannot
            be imported.
    """
    architecture = Architecture.from_json(text)
    try:
        spec = json.loads(text)["supernet"]
        build = builder(spec["builder"], "architecture")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"architecture: names no super-network of tfnas.supernets ({error})") from None
    graph = Graph(build(**spec["arguments"]))
    return _Cutter(graph, graph.flow(architecture)).cut(name)


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
        self.image: Any = None

    def cut(self, name: str) -> keras.Model:
        values: list[_Value] = []
        for i, node in enumerate(self.graph.nodes):
            values.append(getattr(self, f"_{node.kind}")(i, node, [values[j] for j in node.inputs]))
        output = values[self.graph.output]
        model = keras.Model(self.image, self._gather(output, np.arange(output.constants.size)), name=name)
        for layer, weights in self.weights:
            layer.set_weights(weights)
        return model

    def _input(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        self.image = keras.Input(node.layer.batch_shape[1:], dtype=node.layer.dtype, name=node.name)
        return self._value(node, self.image, np.arange(node.num_channels), np.zeros(node.num_channels))

    def _kernel(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        kept = self.flow.kept(node)
        explicit, has_constants = self.flow.kernel_inputs(node)
        weights = (node.layer.layer if isinstance(node.layer, Gated) else node.layer).get_weights()
        kernel = weights[0]
        bias = weights[1] if node.inner.use_bias else np.zeros(node.num_channels, np.float32)
        folded = np.tensordot(np.where(kept, source.constants, 0.0), kernel, (0, kernel.ndim - 2))  # [..., H]
        if not self.flow.explicit[i].any():
            constants = folded.reshape(-1, node.num_channels).sum(0) + bias
            return self._value(node, None, _indices(i, self.flow), self._activated(node, constants))
        channels = _indices(i, self.flow)
        if not channels.size:
            return self._value(node, None, channels, np.zeros(node.num_channels))

        inputs, kernels = [], []
        if explicit.any():
            inputs.append(self._gather(source, np.flatnonzero(explicit)))
            kernels.append(kernel[..., explicit, :])
        if has_constants:
            inputs.append(self._ones(source.spatial))
            kernels.append(folded[..., None, :])
        tensor = keras.ops.concatenate(inputs, axis=-1) if len(inputs) > 1 else inputs[0]
        units = "units" if isinstance(node.inner, keras.layers.Dense) else "filters"
        layer = _clone(node, **{units: int(channels.size)})
        new = [np.concatenate(kernels, axis=-2)[..., channels]]
        self.weights.append((layer, new + ([bias[channels]] if node.inner.use_bias else [])))
        return self._value(node, layer(tensor), channels, np.zeros(node.num_channels))

    def _norm(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        layer = node.layer
        normalised = (source.constants - np.asarray(layer.moving_mean)) / np.sqrt(
            np.asarray(layer.moving_variance) + layer.epsilon
        )
        constants = normalised * (np.asarray(layer.gamma) if layer.scale else 1.0)
        constants = constants + (np.asarray(layer.beta) if layer.center else 0.0)
        channels = _indices(i, self.flow)
        if not channels.size:
            return self._value(node, None, channels, self._constants(i, constants))
        clone = _clone(node)
        self.weights.append((clone, [w[channels] for w in layer.get_weights()]))
        return self._value(node, clone(self._gather(source, channels)), channels, self._constants(i, constants))

    def _pointwise(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        (source,) = sources
        constants = np.asarray(node.layer(source.constants[None].astype("float32")))[0]
        return self._channelwise(i, node, source, constants)

    def _spatial(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        return self._channelwise(i, node, sources[0], sources[0].constants)

    def _channelwise(self, i: int, node: Node, source: _Value, constants: np.ndarray) -> _Value:
        channels = _indices(i, self.flow)
        tensor = _clone(node)(self._gather(source, channels)) if channels.size else None
        return self._value(node, tensor, channels, self._constants(i, constants))

    def _add(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        channels = _indices(i, self.flow)
        total = np.sum([s.constants for s in sources], axis=0)
        # Channels explicit in one addend may be constant in another: those are in `total`, and 0 in the tensor.
        tensors = [
            self._gather(dataclasses.replace(s, constants=np.zeros_like(s.constants)), channels)
            for s in sources
            if np.isin(channels, s.channels).any()
        ]
        tensor = None
        if tensors:
            tensor = _clone(node)(tensors) if len(tensors) > 1 else tensors[0]
            offset = total[channels]
            if offset.any():
                tensor = keras.ops.add(tensor, offset.astype("float32"))
        return self._value(node, tensor, channels, self._constants(i, total))

    def _concat(self, i: int, node: Node, sources: list[_Value]) -> _Value:
        starts = np.cumsum([0] + [s.constants.size for s in sources])
        channels = _indices(i, self.flow)
        tensors = []
        for start, source in zip(starts, sources, strict=False):
            wanted = channels[(channels >= start) & (channels < start + source.constants.size)] - start
            if wanted.size:
                tensors.append(self._gather(source, wanted))
        tensor = None
        if tensors:
            tensor = _clone(node)(tensors) if len(tensors) > 1 else tensors[0]
        return self._value(node, tensor, channels, self._constants(i, np.concatenate([s.constants for s in sources])))

    def _gather(self, value: _Value, wanted: np.ndarray) -> Any:
        """A tensor with the channels `wanted`, in order; those that `value` holds as constants are written out."""
        if np.array_equal(wanted, value.channels):
            return value.tensor
        explicit = np.isin(wanted, value.channels)
        if explicit.all():
            return keras.ops.take(value.tensor, np.searchsorted(value.channels, wanted).astype("int32"), axis=-1)
        constants = value.constants[wanted].astype("float32")
        if not explicit.any():
            return keras.ops.multiply(self._ones(value.spatial), constants)
        zero = keras.ops.zeros_like(value.tensor[..., :1])
        position = np.where(explicit, np.searchsorted(value.channels, wanted), value.channels.size).astype("int32")
        tensor = keras.ops.take(keras.ops.concatenate([value.tensor, zero], axis=-1), position, axis=-1)
        return keras.ops.add(tensor, np.where(explicit, 0.0, constants).astype("float32"))

    def _ones(self, spatial: tuple[int | None, ...]) -> Any:
        """Ones of shape (batch, *spatial, 1), for the batch at hand."""
        corner = self.image[(slice(None), *[slice(0, size) for size in spatial], ..., slice(0, 1))]
        while len(corner.shape) > len(spatial) + 2:
            corner = corner[:, 0]
        return keras.ops.ones_like(corner)

    def _constants(self, i: int, constants: np.ndarray) -> np.ndarray:
        return np.where(self.flow.explicit[i], 0.0, constants)

    @staticmethod
    def _activated(node: Node, constants: np.ndarray) -> np.ndarray:
        return np.asarray(node.inner.activation(constants[None].astype("float32")))[0]

    @staticmethod
    def _value(node: Node, tensor: Any, channels: np.ndarray, constants: np.ndarray) -> _Value:
        return _Value(tensor, channels, np.asarray(constants, np.float32), node.spatial)


def _indices(i: int, flow: Flow) -> np.ndarray:
    return np.flatnonzero(flow.live[i])


def _clone(node: Node, **changes: Any) -> keras.Layer:
    return node.inner.__class__.from_config({**node.inner.get_config(), **changes})
