"""Reductions over channels, such as `keras.ops.mean(x, axis=-1, keepdims=True)`: of the channels that are kept.

Normalizations that users write by hand consist of them, and attention over positions reads them. With gates g of the
channels, a mean is `sum(g x) / sum(g)`, and a largest number that of `g x + (1 - g) min(x)`, so that a channel whose
gate is 0 does not count. Where no channel is left, the result is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas.layers.base import Computation, Node
from tfnas.layers.calls import Call
from tfnas.layers.records import Channels, State


class Reduction(Node):
    """A reduction over channels that leaves one channel."""

    full_output = False
    weighs_channels = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if type(layer).__name__ not in REDUCTIONS or len(record.input_tensors) != 1:
            return False
        (x,) = record.input_tensors
        axes = [axis % len(x.shape) for axis in np.atleast_1d(layer.axis).tolist() if axis is not None]
        return axes == [len(x.shape) - 1] and layer.keepdims and "float" in x.dtype

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return self.everywhere(x.depends.any(), x.explicit.any(), x.zero.all())

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available)

    def pins(self, j: int) -> bool:
        return False

    @property
    def computation(self) -> type[Computation]:
        return Computation


def reduced(kind: str, x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    """Returns a reduction over channels in which each counts as much as its gate says.

    Args:
        kind: a key of `REDUCTIONS`.
        x: float, shape (batch, ..., C).
        gates: in [0, 1], shape (batch or 1, 1, ..., C).

    Returns:
        Of the same dtype, shape (batch, ..., 1).
    """
    return REDUCTIONS[kind](x, tf.cast(gates, x.dtype))


def _sum(x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(gates * x, -1, keepdims=True)


def _mean(x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(_sum(x, gates), tf.reduce_sum(gates, -1, keepdims=True))


def _variance(x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    return _mean(tf.square(x - _mean(x, gates)), gates)


def _largest(x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    smallest = tf.stop_gradient(tf.reduce_min(x, -1, keepdims=True))
    found = tf.reduce_max(smallest + gates * (x - smallest), -1, keepdims=True)
    return tf.where(tf.reduce_any(gates > 0, -1, keepdims=True), found, tf.zeros_like(found))


def _smallest(x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    return -_largest(-x, gates)


# By the operation's class name in Keras.
REDUCTIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "Sum": _sum,
    "Mean": _mean,
    "Var": _variance,
    "Std": lambda x, gates: tf.sqrt(_variance(x, gates)),
    "Max": _largest,
    "Amax": _largest,
    "Min": _smallest,
    "Amin": _smallest,
}
