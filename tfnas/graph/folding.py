"""What an architecture leaves of a network's weights: constants of dropped operations, and kernels with them folded in.

A channel that is constant (see `channels`) needs no tensor: its value is known from the weights, and is folded into
what reads it: the bias of a kernel that does not pad, a bias that depends on the position of one that does, the offset
of a sum. `subnets` builds a Keras model with it, `engine` feeds one program with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfnas.graph.channels import Flow, Graph, Node
from tfnas.layers.kinds import TRANSPOSED, channel_kernels

Weights = Mapping[str, Mapping[str, np.ndarray]]

_VARIABLES = (
    "kernel",
    "bias",
    "depthwise_kernel",
    "pointwise_kernel",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
)


def weights_of(graph: Graph, most: Any = np.float64) -> Weights:
    """Values of every layer's kernels, biases and normalisation, by node and by the variable's Keras name.

    In float32, or in float64 where a variable and `most` are so.
    """
    found = {}
    for node in graph.nodes:
        variables: dict[str, Any] = {name: getattr(node.inner, name, None) for name in _VARIABLES}
        found[node.name] = {
            name: np.asarray(v).astype(most if v.dtype == "float64" else np.float32)
            for name, v in variables.items()
            if hasattr(v, "assign")
        }
    return found


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A convolution's or dense layer's weights under an architecture.

    Attributes:
        weights: of the channels it is given and computes, shape (*spatial, inputs, outputs); the last two axes
            are in this order for a transposed convolution too.
        border: what constants contribute to each position of the kernel, shape (*spatial, 1, outputs), where
            it pads and so sees an edge; None where nothing is contributed.
        bias: shape (outputs,); constants of a kernel that does not pad included.
    """

    weights: np.ndarray
    border: np.ndarray | None
    bias: np.ndarray

    def scaled(self, scale: np.ndarray, offset: np.ndarray) -> Kernel:
        """The kernel whose outputs are this one's times `scale` plus `offset`, each of shape (outputs,)."""
        border = None if self.border is None else self.border * scale
        return Kernel(self.weights * scale, border, self.bias * scale + offset)


class Folding:
    """Constants and kernels of one architecture.

    Args:
        flow: its channels.
        weights: of `weights_of`, for `flow.graph`.

    Attributes:
        constants: for each node the value of every channel that is constant, shape (C,); elsewhere 0.
        dtype: of the constants: float64 if any of the weights is so, else float32.
    """

    def __init__(self, flow: Flow, weights: Weights):
        self.flow = flow
        self.weights = weights
        arrays = [array for values in weights.values() for array in values.values()]
        self.dtype = np.result_type(np.float32, *{array.dtype for array in arrays})
        self.constants: list[np.ndarray] = []
        for i, node in enumerate(flow.graph.nodes):
            explicit = flow.explicit[i]
            if explicit.all():
                self.constants.append(np.zeros(node.num_channels, self.dtype))
                continue
            values = _CONSTANTS[node.kind](self, node, [self.constants[j] for j in node.inputs])
            self.constants.append(np.where(explicit, 0.0, np.asarray(values, self.dtype)))

    def kernel(self, i: int) -> Kernel:
        """Of a node of kind 'kernel' that computes something."""
        node = self.flow.graph.nodes[i]
        outputs = np.flatnonzero(self.flow.live[i])
        inputs, constants = self.flow.kernel_inputs(node)
        kept = self.flow.kept(node)
        read = np.flatnonzero(inputs)
        weights = _kernel_of(node, self.weights)[..., read, :][..., outputs]
        if not kept[read].all():
            weights = np.where(kept[read][:, None], weights, np.float32(0))
        bias = self._bias(node)[outputs]
        if not constants:
            return Kernel(weights, None, bias)
        folded = self._folded(node, self.constants[node.inputs[0]])[..., outputs]
        if node.pads:
            return Kernel(weights, folded[..., None, :], bias)
        return Kernel(weights, None, bias + folded.reshape(-1, outputs.size).sum(0))

    def affine(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset that a normalisation is at inference, shape (C,) each."""
        values = self.weights[node.name]
        scale = values.get("gamma", np.float32(1)) / np.sqrt(values["moving_variance"] + node.inner.epsilon)
        return scale, values.get("beta", np.float32(0)) - values["moving_mean"] * scale

    def _bias(self, node: Node) -> np.ndarray:
        return self.weights[node.name].get("bias", np.zeros(node.num_channels, np.float32))

    def _folded(self, node: Node, constants: np.ndarray) -> np.ndarray:
        """What the source's constants that are kept give at each position of a kernel, shape (*spatial, H)."""
        kernel = _kernel_of(node, self.weights)
        return np.tensordot(np.where(self.flow.kept(node), constants, 0.0), kernel, (0, kernel.ndim - 2))

    def _kernel_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        folded = self._folded(node, sources[0])
        return _activated(node, folded.reshape(-1, node.num_channels).sum(0) + self._bias(node))

    def _separable_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        values = self.weights[node.name]
        depthwise, pointwise = values["depthwise_kernel"], values["pointwise_kernel"]
        kept = np.where(self.flow.kept(node), sources[0], 0.0)
        size = math.prod(depthwise.shape[:-2])
        middle = kept[:, None] * depthwise.reshape(size, *depthwise.shape[-2:]).sum(0)  # [K, m]
        return _activated(node, middle.reshape(-1) @ pointwise.reshape(-1, node.num_channels) + self._bias(node))

    def _depthwise_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        ((_, shape),) = channel_kernels(node.inner)
        sums = self.weights[node.name]["kernel"].reshape(shape).sum(0)  # [K, m]
        kept = np.where(self.flow.kept(node), sources[0], 0.0)
        return _activated(node, (kept[:, None] * sums).reshape(-1) + self._bias(node))

    def _norm_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        scale, offset = self.affine(node)
        return sources[0] * scale + offset

    def _scale_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return sources[0] * self.weights[node.name]["gamma"]

    def _pointwise_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return np.asarray(node.call(node.inner, [sources[0][None]]))[0]

    def _spatial_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return np.where(self.flow.kept(node), sources[0], 0.0)

    def _same_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return sources[0]

    def _no_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return np.zeros(node.num_channels, np.float32)

    def _flatten_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return np.tile(sources[0], node.num_channels // sources[0].size)

    def _merge_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return np.broadcast_to(_MERGE[node.merge]([s.astype("float64") for s in sources]), node.num_channels)

    def _concat_constants(self, node: Node, sources: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(sources)


_CONSTANTS: dict[str, Callable[[Folding, Node, list[np.ndarray]], np.ndarray]] = {
    "input": Folding._no_constants,
    "kernel": Folding._kernel_constants,
    "separable": Folding._separable_constants,
    "depthwise": Folding._depthwise_constants,
    "norm": Folding._norm_constants,
    "scale": Folding._scale_constants,
    "pointwise": Folding._pointwise_constants,
    "spatial": Folding._spatial_constants,
    "padding": Folding._no_constants,  # what is constant is zero, or else explicit behind it
    "reshape": Folding._same_constants,
    "flatten": Folding._flatten_constants,
    "merge": Folding._merge_constants,
    "concat": Folding._concat_constants,
    "opaque": Folding._no_constants,
}

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


def _kernel_of(node: Node, weights: Weights) -> np.ndarray:
    kernel = weights[node.name]["kernel"]
    # A transposed convolution's has its last two axes the other way round.
    return np.swapaxes(kernel, -1, -2) if isinstance(node.inner, TRANSPOSED) else kernel


def _activated(node: Node, constants: np.ndarray) -> np.ndarray:
    return np.asarray(node.inner.activation(constants[None]))[0]
