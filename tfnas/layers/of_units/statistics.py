"""Normalizations by statistics over channels: of the channels that are kept, in the supernet as in the cut network.

With gates g of the channels (1 for each that is kept and 0 for the others, anything between in training), the mean is
`sum(g x) / sum(g)`, and so on for squares. The cut network's layer computes the same over the channels that it has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfnas.layers.base import Computation, Fed, Node
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.records import Builder, Channels, Folded, State, Value

_WEIGHTS = ("gamma", "beta", "scale")  # by their names in Keras


class Statistics(Channelwise):
    """LayerNormalization, RMSNormalization or UnitNormalization over the channels of each position."""

    LAYERS: ClassVar[tuple[type, ...]] = (
        keras.layers.LayerNormalization,
        keras.layers.RMSNormalization,
        keras.layers.UnitNormalization,
    )
    weighs_channels = True
    carries = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return cls.is_of(layer) and _is_last(layer.axis, record) and not getattr(layer, "rms_scaling", False)

    @property
    def zero_to_zero(self) -> bool:
        return False  # of zeros in some channels it makes other numbers in the rest

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return State(x.explicit & x.depends.any(), x.explicit, np.zeros(self.num_channels, bool))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [np.full(self.num_channels, bool(live.any()))]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        return inputs * len(self.inner._trainable_variables), 0

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        channels, live = self.given(x, 0), np.flatnonzero(x.live)
        weights = [w[channels] for w in self.inner.get_weights()]
        output = self.rebuilt(build, [build.gather(sources[0], channels)], weights, **self.settings(channels.size))
        if np.array_equal(live, channels):
            return output
        return build.operation(keras.ops.take, output, np.searchsorted(channels, live).astype("int32"), axis=-1)

    @property
    def computation(self) -> type[Computation]:
        return _Computation


class GroupStatistics(Statistics):
    """GroupNormalization: of every group as many channels exist, or else whole groups, whichever makes more units."""

    LAYERS = (keras.layers.GroupNormalization,)

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        return isinstance(layer, cls.LAYERS)

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return cls.is_of(layer) and _is_last(layer.axis, record)

    @property
    def weighs_channels(self) -> bool:  # type: ignore[override]
        return not drops_groups(self.inner, self.num_channels)

    def together(self, j: int | None) -> np.ndarray | None:
        size = self.num_channels // self.inner.groups
        channels = np.arange(self.num_channels)
        return channels // size if drops_groups(self.inner, self.num_channels) else channels % size

    def settings(self, channels: int) -> dict[str, Any]:
        if not drops_groups(self.inner, self.num_channels):
            return {}
        return {"groups": channels * self.inner.groups // self.num_channels}


def drops_groups(layer: Any, channels: int) -> bool:
    """Whether of a GroupNormalization whole groups vanish, rather than as many channels of each."""
    return bool(layer.groups * layer.groups >= channels)


def normalized(layer: Any, x: tf.Tensor, gates: Any = None, weights: Mapping[str, Any] | None = None) -> tf.Tensor:
    """Returns what a normalization of one of these families makes of its input, float32 or wider.

    Args:
        layer: the normalization, with all of its channels.
        x: shape (batch, ..., K), of some of its channels.
        gates: of these channels, shape (batch or 1, 1, ..., K); None: ones.
        weights: of these channels, by name, shape (K,) each; None: the layer's, of all.
    """
    if weights is None:
        weights = {name: tf.convert_to_tensor(v) for name, v in _variables(layer).items()}
    shape = tf.shape(x)
    x = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    weights = {name: tf.cast(value, x.dtype) for name, value in weights.items()}
    gates = tf.ones([1] * (len(x.shape) - 1) + [shape[-1]], x.dtype) if gates is None else tf.cast(gates, x.dtype)
    axes = [-1]
    if isinstance(layer, keras.layers.GroupNormalization):
        size = layer.gamma.shape[0] if layer.scale else layer.input_spec.axes[layer.axis]
        parts = [-1, size // layer.groups] if drops_groups(layer, size) else [layer.groups, -1]
        axes = [*range(1, len(x.shape) - 1), -1]
        x = tf.reshape(x, tf.concat([shape[:-1], parts], 0))
        gates = tf.reshape(gates, tf.concat([tf.shape(gates)[:-1], parts], 0))

    def mean(values: tf.Tensor) -> tf.Tensor:
        weighed = tf.reduce_mean(gates * values, axes, keepdims=True)
        return tf.math.divide_no_nan(weighed, tf.reduce_mean(gates, axes, keepdims=True))

    if isinstance(layer, keras.layers.UnitNormalization):
        squares = tf.reduce_sum(gates * tf.square(x), axes, keepdims=True)
        return x * tf.minimum(tf.math.rsqrt(squares), 1e12)
    if isinstance(layer, keras.layers.RMSNormalization):
        return x * tf.math.rsqrt(mean(tf.square(x)) + layer.epsilon) * weights["scale"]
    centered = x - mean(x)
    y = tf.reshape(centered * tf.math.rsqrt(mean(tf.square(centered)) + layer.epsilon), shape)
    y = y * weights["gamma"] if "gamma" in weights else y
    return y + weights["beta"] if "beta" in weights else y


class _Computation(Computation):
    """The normalization of the channels that it is given, of which some may not be read."""

    node: Statistics

    def __init__(self, node: Node, *arguments: Any):
        super().__init__(node, *arguments)
        self._names = tuple(_variables(node.inner))

    def takes_held(self, source: Node) -> bool:
        return False

    def signature(self) -> Fed:
        return {"live": tf.TensorSpec((None,), tf.int32), **{name: tf.TensorSpec((None,)) for name in self._names}}

    def feed(self, x: Folded) -> Fed:
        channels = self.node.given(x, 0)
        live = np.searchsorted(channels, np.flatnonzero(x.live)).astype(np.int32)
        return {"live": live, **{name: x.weights[self.node.name][name][channels] for name in self._names}}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        (x,) = tensors
        y = normalized(self.node.inner, x, None, {name: fed[name] for name in self._names})
        return tf.cond(
            tf.equal(tf.size(fed["live"]), tf.shape(y)[-1]), lambda: y, lambda: tf.gather(y, fed["live"], axis=-1)
        )


def _variables(layer: Any) -> dict[str, Any]:
    return {name: v for name in _WEIGHTS if hasattr(v := getattr(layer, name, None), "assign")}


def _is_last(axis: int | Collection[int], record: Any) -> bool:
    axes = {axis} if isinstance(axis, int) else set(axis)
    return axes <= {-1, len(record.input_tensors[0].shape) - 1}
