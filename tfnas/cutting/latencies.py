"""Measured latencies of networks and layers on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.gating.supernet import Supernet


def latency(model: keras.Model, batch_size: int = 1, repeats: int = 200) -> float:
    """Measures the median seconds of one compiled forward pass on `batch_size` images of zeros, on this machine."""
    return statistics.median(_seconds(_warm_pass(model, batch_size), repeats))


def compared(models: Sequence[keras.Model], rounds: int = 10, repeats: int = 20) -> tuple[list[float], float]:
    """Measures latencies of networks on one image in turns, so that other load on the machine affects all alike.

    Args:
        models: the networks.
        rounds: in each round, every network has one turn.
        repeats: passes in a turn.

    Returns:
        For each network, the median over the rounds of its turns' median seconds; and the largest ratio of the longest
        to the shortest of these medians of one network: about 1 on a machine that does nothing else.
    """
    passes = [_warm_pass(model, 1) for model in models]
    turns = [[statistics.median(_seconds(call, repeats)) for call in passes] for _ in range(rounds)]
    by_model = list(zip(*turns, strict=True))
    return [statistics.median(times) for times in by_model], max(max(times) / min(times) for times in by_model)


def layer_latencies(supernet: Supernet, batch_size: int = 16, repeats: int = 20) -> dict[str, float]:
    """Measures the seconds per input channel and example of each gated layer, on this machine.

    Each inner layer is compiled and timed alone, on zeros, with all of its channels; the median is divided equally
    among channels and examples. The overhead of calling compiled code on the same input, several times the latency of a
    small layer, is measured as well and subtracted; a layer that is not slower than that has 0.

    Args:
        supernet: must have an input of fixed size.
        batch_size: examples in a pass.
        repeats: passes timed.

    Returns:
        Seconds by gated layer, in the order of the graph, as `Posterior.with_latency` takes them.

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
    """Returns the median seconds of the compiled `call` on `inputs`."""
    return statistics.median(_seconds(_warm(call, inputs), repeats))


def _warm_pass(model: keras.Model, batch_size: int) -> Callable[[], Any]:
    """A compiled forward pass on images of zeros."""
    image = [tf.zeros((batch_size, *i.shape[1:]), i.dtype) for i in model.inputs]
    return _warm(lambda x: model(x, training=False), image if len(image) > 1 else image[0])


def _warm(call: Callable[[Any], Any], inputs: Any) -> Callable[[], Any]:
    """A function that runs the compiled `call` on `inputs`, after five passes to warm up."""
    compiled = tf.function(call)
    for _ in range(5):
        compiled(inputs)
    return lambda: compiled(inputs)


def _seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        keras.tree.map_structure(np.asarray, call())  # waits for the result
        seconds.append(time.perf_counter() - start)
    return seconds
