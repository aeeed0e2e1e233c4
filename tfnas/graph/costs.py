"""What an architecture costs: parameters and multiply-adds, exactly, without building it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.graph.channels import Flow, Graph, Node


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one forward pass of one example.

    Attributes:
        parameters: kernels, biases, scales and offsets, of frozen layers too; not the moving statistics. So all that
            would be trained if nothing were frozen.
        multiply_adds: of convolutions and dense layers.
    """

    parameters: int
    multiply_adds: int


def cost(graph: Graph, keep: Mapping[str, np.ndarray] | None = None, layout: str = "gather") -> Cost:
    """Cost of the subnet of `graph` that keeps the channels `keep`; of the whole network without them.

    Args:
        graph: of the network or of the supernet (`supernet.graph`).
        keep: an Architecture.
        layout: as for `subnet`.

    Raises:
        UserError: if the network has no fixed image size, or a layer whose multiply-adds are not known.
    """
    flow = graph.flow(keep or {}, layout)
    return Cost(*(sum(_of(resource, flow).values()) for resource in ("parameters", "multiply_adds")))


def count(graph: Graph, resource: str, keep: Mapping[str, np.ndarray] | None = None) -> int:
    """One part of `cost`: parameters are known also where the image has no fixed size.

    Args:
        graph: as of `cost`.
        resource: 'parameters' or 'multiply_adds'.
        keep: as of `cost`.

    Raises:
        UserError: as `cost`, with 'multiply_adds'.
    """
    return sum(by_node(graph, resource, keep).values())


def by_node(graph: Graph, resource: str, keep: Mapping[str, np.ndarray] | None = None) -> dict[str, int]:
    """What each node has of that count, by its name; those that do not work (`Flow.works`) have none.

    Args and Raises as of `count`.
    """
    return _of(resource, graph.flow(keep or {}))


def _of(resource: str, flow: Flow) -> dict[str, int]:
    counts = {}
    for i, node in enumerate(flow.graph.nodes):
        parameters, weights = _COSTS[node.kind](node, flow, int(flow.live[i].sum())) if flow.works(i) else (0, 0)
        counts[node.name] = parameters if resource == "parameters" else weights and weights * _positions(node, flow)
    return counts


# Each of a node that works, `channels` of whose output are live: its parameters, and those of them that are
# multiplied at every position.
def _kernel(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    inputs, constants = flow.kernel_inputs(node)
    as_channel, as_bias = constants and node.pads, constants and not node.pads
    size = math.prod(getattr(node.inner, "kernel_size", ()))
    weights = size * (int(inputs.sum()) + as_channel) * channels
    return weights + (channels if node.inner.use_bias or as_bias else 0), weights


def _separable(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    inputs = int(flow.kernel_inputs(node)[0].sum()) * node.multiplier
    weights = inputs * math.prod(node.inner.kernel_size) + inputs * channels
    return weights + (channels if node.inner.use_bias else 0), weights


def _depthwise(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    # All outputs of an input channel that is there are computed, also where only one of them is read.
    outputs = int(flow.depthwise_inputs(node).sum()) * node.multiplier
    weights = outputs * math.prod(node.inner.kernel_size)
    return weights + (outputs if node.inner.use_bias else 0), weights


def _norm(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    return channels * (node.inner.scale + node.inner.center), 0


def _scale(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    return channels, 0


def _opaque(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    inner = node.inner
    if not isinstance(inner, keras.Layer):
        return 0, 0
    parameters = sum(math.prod(v.shape) for v in inner._trainable_variables)  # frozen or not
    if not hasattr(inner, "kernel_size"):
        return parameters, 0
    return parameters, math.prod(inner.kernel.shape)


def _nothing(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    return 0, 0


_COSTS: dict[str, Callable[[Node, Flow, int], tuple[int, int]]] = {
    "kernel": _kernel,
    "separable": _separable,
    "depthwise": _depthwise,
    "norm": _norm,
    "scale": _scale,
    "opaque": _opaque,
    **dict.fromkeys(
        ("input", "pointwise", "spatial", "padding", "reshape", "flatten", "merge", "concat"),
        _nothing,
    ),
}


def _positions(node: Node, flow: Flow) -> int:
    positions = flow.graph.positions(node)
    if positions is None:
        raise UserError(
            f"cost: layer '{node.name}': a fixed spatial size expected. Received: {node.spatial}; give the model's "
            "input one, such as keras.Input((32, 32, 3))"
        )
    return positions
