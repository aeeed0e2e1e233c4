"""What networks and layers take on this machine, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.errors import UserError
from tfnas.supernet import Supernet


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
        Seconds for each gated layer, in the order of the graph, as `Posterior.with_latency` takes them.

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
                f"layer_latencies: layer '{name}': an input of fixed size expected. Received: {source.spatial}; give "
                "the model's input one, such as keras.Input((32, 32, 3))"
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
