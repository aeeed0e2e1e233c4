"""What an architecture costs: parameters and multiply-adds exactly, without building it; latency as measured."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.channels import Flow, Graph, Node
from tfnas.errors import UserError
from tfnas.supernet import Supernet


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one forward pass of one example.

    Attributes:
        parameters: trainable ones: kernels, biases, scales and offsets; not the moving statistics.
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
    costs = [_COSTS[node.kind](node, flow, int(flow.live[i].sum())) for i, node in enumerate(graph.nodes)]
    return Cost(sum(parameters for parameters, _ in costs), sum(multiply_adds for _, multiply_adds in costs))


def _kernel(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    if not channels:
        return 0, 0
    inputs, constants = flow.kernel_inputs(node)
    as_channel, as_bias = constants and node.pads, constants and not node.pads
    size = math.prod(getattr(node.inner, "kernel_size", ()))
    weights = size * (int(inputs.sum()) + as_channel) * channels
    return weights + (channels if node.inner.use_bias or as_bias else 0), weights * _positions(node, flow)


def _separable(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    if not channels:
        return 0, 0
    inputs = int(flow.kernel_inputs(node)[0].sum()) * node.multiplier
    weights = inputs * math.prod(node.inner.kernel_size) + inputs * channels
    return weights + (channels if node.inner.use_bias else 0), weights * _positions(node, flow)


def _depthwise(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    if not channels:
        return 0, 0
    # All outputs of an input channel that is there are computed, also where only one of them is read.
    outputs = int(flow.depthwise_inputs(node).sum()) * node.multiplier
    weights = outputs * math.prod(node.inner.kernel_size)
    return weights + (outputs if node.inner.use_bias else 0), weights * _positions(node, flow)


def _norm(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    return channels * (node.inner.scale + node.inner.center), 0


def _scale(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    return channels, 0


def _opaque(node: Node, flow: Flow, channels: int) -> tuple[int, int]:
    inner = node.inner
    if not channels or not isinstance(inner, keras.Layer):
        return 0, 0
    parameters = sum(math.prod(v.shape) for v in inner.trainable_variables)
    if not hasattr(inner, "kernel_size"):
        return parameters, 0
    return parameters, math.prod(inner.kernel.shape) * _positions(node, flow)


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
        raise UserError(f"cost: layer '{node.name}' has no fixed spatial size; give the model's input one")
    return positions


def latency(model: keras.Model, batch_size: int = 1, repeats: int = 200) -> float:
    """Median seconds of one compiled forward pass on `batch_size` images of zeros, on this machine."""
    image = [tf.zeros((batch_size, *i.shape[1:]), i.dtype) for i in model.inputs]
    return _median_seconds(lambda x: model(x, training=False), image if len(image) > 1 else image[0], repeats)


def layer_latencies(supernet: Supernet, batch_size: int = 16, repeats: int = 20) -> dict[str, float]:
    """Seconds that one input channel of each gated layer takes for one example, on this machine.

    Each inner layer is compiled and timed alone, on zeros, with all of its channels; the median is shared out equally
    to channels and examples. What calling anything compiled takes on the same input, several times as long as a small
    layer itself, is measured beside it and taken off; a layer that is not slower than that has 0.

    Args:
        supernet: its input has a fixed size.
        batch_size: examples in a pass.
        repeats: passes timed.

    Returns:
        For each gated layer, in the graph's order, seconds: what `Posterior.with_latency` takes.

    Raises:
        UserError: if the input has no fixed size, or for a number below 1.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"layer_latencies: {name} must be at least 1. Received: {value}")
    nodes = supernet.graph.nodes
    seconds = {}
    for name, gated in supernet.gated_layers.items():
        source = nodes[nodes[supernet.graph.index[name]].inputs[0]]
        if None in source.spatial:
            raise UserError(
                f"layer_latencies: the input of layer '{name}' has no fixed size; give the model's input one"
            )
        inputs = tf.zeros((batch_size, *source.spatial, source.num_channels), gated.layer.compute_dtype)
        alone = max(0.0, _median_seconds(gated.layer, inputs, repeats) - _median_seconds(tf.identity, inputs, repeats))
        seconds[name] = alone / source.num_channels / batch_size
    return seconds


def _median_seconds(call: Callable[[Any], Any], inputs: Any, repeats: int) -> float:
    """Of the compiled `call` on `inputs`, after five passes to warm up."""
    compiled = tf.function(call)
    for _ in range(5):
        compiled(inputs)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        keras.tree.map_structure(np.asarray, compiled(inputs))  # waits for the result
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
