"""How channels flow through a Keras graph: the one place that reads a model's structure.

A channel of a tensor is *constant* when, under an architecture, it no longer depends on the model's input and has one
value at all positions (every input channel of the convolution that made it is dropped); otherwise it is *explicit*. A
channel is *live* when some kept channel downstream reads it. A subnet computes what is explicit and live; constants
are folded into what follows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.errors import UserError

_POINTWISE = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
_SPATIAL = (
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Dropout,
    keras.layers.Identity,
)
CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Subclasses whose kernels are laid out, or connected, in another way.
_NOT_PLAIN = (
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


@dataclasses.dataclass(frozen=True)
class Node:
    """One layer's call in the graph.

    Attributes:
        name: the layer's name, unique in the graph.
        kind: 'input', 'kernel' (convolution or dense), 'norm', 'pointwise', 'spatial', 'add' or 'concat'.
        layer: the Keras layer; for a wrapped one, the wrapper.
        inputs: indices of the nodes it reads, in order.
        num_channels: size of the last axis of its output.
        spatial: the axes between batch and channels; () for a vector.
    """

    name: str
    kind: str
    layer: Any
    inputs: tuple[int, ...]
    num_channels: int
    spatial: tuple[int | None, ...]

    @property
    def inner(self) -> Any:
        """The layer itself, without a wrapper round it."""
        return self.layer.layer if isinstance(self.layer, keras.layers.Wrapper) else self.layer

    @property
    def pads(self) -> bool:
        """Whether this kernel sees zeros beyond the border, so that a constant input gives no constant output."""
        inner = self.inner
        return isinstance(inner, CONVOLUTIONS) and inner.padding != "valid" and any(k > 1 for k in inner.kernel_size)


class Graph:
    """The nodes of a functional model, inputs first, each after all it reads.

    Args:
        model: a functional Keras model with one input and one output, channels last.

    Raises:
        UserError: naming the layer, if the model has something whose channels this module cannot follow.
    """

    def __init__(self, model: keras.Model):
        if not hasattr(model, "_nodes_by_depth"):
            raise UserError(
                f"model '{getattr(model, 'name', model)}': a functional or Sequential Keras model is needed. "
                f"Received: {type(model).__name__}"
            )
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise UserError(
                f"model '{model.name}': one input and one output expected. "
                f"Received: {len(model.inputs)} inputs, {len(model.outputs)} outputs"
            )
        self.nodes: list[Node] = []
        index: dict[int, int] = {}  # id of a KerasTensor -> the node that makes it
        seen: set[str] = set()
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for call in model._nodes_by_depth[depth]:
                layer = call.operation
                if layer.name in seen:
                    raise UserError(f"layer '{layer.name}' is called more than once: give each call a layer of its own")
                seen.add(layer.name)
                output = call.output_tensors[0]
                index[id(output)] = len(self.nodes)
                self.nodes.append(
                    Node(
                        layer.name,
                        _kind(layer),
                        layer,
                        tuple(index[id(tensor)] for tensor in call.input_tensors),
                        output.shape[-1],
                        tuple(output.shape[1:-1]),
                    )
                )
        self.output = index[id(model.outputs[0])]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Node number of each name."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    def group_sizes(self, name: str) -> tuple[int, ...]:
        """Channels of each source that a layer's input concatenates, in order; one entry if it is no concatenation."""
        return self._sources(self.nodes[self.index[name]].inputs[0])

    def _sources(self, i: int) -> tuple[int, ...]:
        node = self.nodes[i]
        if node.kind == "concat":
            return tuple(size for source in node.inputs for size in self._sources(source))
        if node.kind in ("norm", "pointwise", "spatial"):
            return self._sources(node.inputs[0])
        return (node.num_channels,)

    def flow(self, keep: Mapping[str, np.ndarray]) -> Flow:
        """What each node computes when only the channels `keep` of the named layers' inputs are kept.

        Raises:
            UserError: if `keep` names a layer that is not here, or has a mask of another length.
        """
        for name, mask in keep.items():
            if name not in self.index:
                raise UserError(f"architecture: this model has no layer '{name}'")
            expected = self.nodes[self.nodes[self.index[name]].inputs[0]].num_channels
            if mask.shape != (expected,):
                raise UserError(f"architecture: '{name}' has {expected} input channels. Received: {mask.size}")
        explicit = self._explicit(keep)
        # A model must have an output tensor, even one that is constant.
        explicit[self.output] = np.ones_like(explicit[self.output])
        return Flow(explicit, self._live(keep, explicit), {n: np.asarray(m) for n, m in keep.items()})

    def _explicit(self, keep: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        explicit: list[np.ndarray] = []
        for node in self.nodes:
            sources = [explicit[i] for i in node.inputs]
            if node.kind == "input":
                value = np.ones(node.num_channels, bool)
            elif node.kind == "kernel":
                kept = keep.get(node.name, np.ones_like(sources[0]))
                read = kept if node.pads else kept & sources[0]
                value = np.full(node.num_channels, bool(read.any()))
            elif node.kind == "add":
                value = functools.reduce(np.logical_or, sources)
            elif node.kind == "concat":
                value = np.concatenate(sources)
            else:
                value = sources[0]
            explicit.append(value)
        return explicit

    def _live(self, keep: Mapping[str, np.ndarray], explicit: Sequence[np.ndarray]) -> list[np.ndarray]:
        live = [np.zeros(node.num_channels, bool) for node in self.nodes]
        live[self.output][:] = True
        for i in reversed(range(len(self.nodes))):
            node = self.nodes[i]
            live[i] &= explicit[i]
            if node.kind == "kernel":
                if live[i].any():
                    source = node.inputs[0]
                    live[source] |= keep.get(node.name, np.ones(self.nodes[source].num_channels, bool))
            elif node.kind == "concat":
                start = 0
                for source in node.inputs:
                    size = self.nodes[source].num_channels
                    live[source] |= live[i][start : start + size]
                    start += size
            else:
                for source in node.inputs:
                    live[source] |= live[i]
        return live


@dataclasses.dataclass(frozen=True)
class Flow:
    """Channels under one architecture, by node number.

    Attributes:
        explicit: bool, shape (C,), which output channels depend on the model's input or on the position.
        live: bool, shape (C,), which of the explicit ones are read; only these exist in the subnet.
        keep: the architecture's masks by layer name.
    """

    explicit: list[np.ndarray]
    live: list[np.ndarray]
    keep: dict[str, np.ndarray]

    def kept(self, node: Node) -> np.ndarray:
        """Input channels that a kernel keeps, bool, shape (K,)."""
        return self.keep.get(node.name, np.ones_like(self.explicit[node.inputs[0]]))

    def kernel_inputs(self, node: Node) -> tuple[np.ndarray, bool]:
        """For a kernel that exists: its explicit kept input channels, bool (K,), and whether it reads ones besides.

        All constant inputs of a kernel act as one: in the subnet a single channel of ones stands for them, and for the
        inputs of a kernel that has no others.
        """
        kept = self.kept(node)
        explicit = self.explicit[node.inputs[0]]
        inputs = kept & explicit
        return inputs, bool((kept & ~explicit).any() or not inputs.any())


def _kind(layer: Any) -> str:
    inner = layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
    if getattr(inner, "data_format", "channels_last") != "channels_last":
        raise UserError(f"layer '{layer.name}': data_format must be 'channels_last'. Received: {inner.data_format!r}")
    if isinstance(inner, keras.layers.InputLayer):
        return "input"
    if isinstance(inner, (keras.layers.Dense, *CONVOLUTIONS)) and not isinstance(inner, _NOT_PLAIN):
        if getattr(inner, "groups", 1) != 1:
            raise UserError(f"layer '{layer.name}': groups must be 1. Received: {inner.groups}")
        return "kernel"
    if isinstance(inner, keras.layers.BatchNormalization):
        return "norm"
    if isinstance(inner, _POINTWISE):
        return "pointwise"
    if isinstance(inner, _SPATIAL):
        return "spatial"
    if isinstance(inner, keras.layers.Add):
        return "add"
    if isinstance(inner, keras.layers.Concatenate):
        if inner.axis not in (-1, len(inner.output.shape) - 1):
            raise UserError(f"layer '{layer.name}': axis must be the channels' (-1). Received: {inner.axis}")
        return "concat"
    raise UserError(
        f"layer '{layer.name}': {type(inner).__name__} is not supported yet; convolutions, Dense, BatchNormalization, "
        "activations, pooling, cropping, Add and Concatenate are"
    )
