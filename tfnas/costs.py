"""What an architecture costs: parameters and multiply-adds exactly, without building it; latency as measured."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfnas.channels import Graph, Node
from tfnas.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one forward pass of one example.

    Attributes:
        parameters: trainable ones: kernels, biases, scales and offsets; not the moving statistics.
        multiply_adds: of convolutions and dense layers.
    """

    parameters: int
    multiply_adds: int


def cost(graph: Graph, keep: Mapping[str, np.ndarray] | None = None) -> Cost:
    """Cost of the subnet of `graph` that keeps the channels `keep`; of the whole network without them.

    Args:
        graph: of the network or of the supernet (`supernet.graph`).
        keep: an Architecture.

    Raises:
        UserError: if the network has no fixed image size.
    """
    flow = graph.flow(keep or {})
    parameters = multiply_adds = 0
    for i, node in enumerate(graph.nodes):
        channels = int(flow.live[i].sum())
        if not channels:
            continue
        if node.kind == "kernel":
            positions = _positions(node)
            explicit, has_constants = flow.kernel_inputs(node)
            size = math.prod(getattr(node.inner, "kernel_size", ()))
            weights = size * (int(explicit.sum()) + has_constants) * channels
            parameters += weights + (channels if node.inner.use_bias else 0)
            multiply_adds += weights * positions
        elif node.kind == "norm":
            parameters += channels * (node.inner.scale + node.inner.center)
    return Cost(parameters, multiply_adds)


def _positions(node: Node) -> int:
    sizes = [size for size in node.spatial if size is not None]
    if len(sizes) != len(node.spatial):
        raise UserError(f"cost: layer '{node.name}' has no fixed spatial size; give the model's input one")
    return math.prod(sizes)


def latency(model: keras.Model, batch_size: int = 1, repeats: int = 200) -> float:
    """Median seconds of one compiled forward pass on `batch_size` images of zeros, on this machine."""
    compiled = tf.function(lambda x: model(x, training=False))
    image = tf.zeros((batch_size, *model.inputs[0].shape[1:]), model.inputs[0].dtype)
    for _ in range(5):
        compiled(image)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        compiled(image).numpy()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
