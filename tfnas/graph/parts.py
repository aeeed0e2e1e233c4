"""Nested models and composite layers, and the calls that they consist of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from tfnas.graph.emission import Made, UntraceableError
from tfnas.graph.models import calls_of, functional
from tfnas.graph.tracing import trace
from tfnas.layers import is_gate
from tfnas.layers.calls import copy_of
from tfnas.layers.of_units import registered
from tfnas.layers.pointwise import is_of_keras


@dataclasses.dataclass(frozen=True)
class Parts:
    """The calls that a call of a nested model or a composite layer consists of.

    Attributes:
        inputs, outputs: symbolic tensors that stand for those of the call, in its order.
        records: Keras's records of the calls between them, in topological order.
        one: one more tensor that they may read: stands for ones, shape (batch, 1).
    """

    inputs: Any
    outputs: Any
    records: list[Any]
    one: Any = None

    @property
    def read_one(self) -> bool:
        """Whether any call reads `one`."""
        return any(x is self.one for record in self.records for x in record.input_tensors)


def parts_of(
    record: Any, name: str, made: dict[int, Made], untraced: dict[str, str], times: dict[int, int]
) -> Parts | None:
    """Takes a nested model, a user's own layer or a Lambda apart; None for a layer that is a node by itself.

    Args:
        record: Keras's, of its call.
        name: of the layer.
        made: as for `trace`.
        untraced: is added the reason why a layer cannot be taken apart, by its name.
        times: by the id of a tensor, how many times as long as the batch it is; is added what is inside.
    """
    layer = record.operation
    lengths = [times.get(id(x), 1) for x in record.input_tensors]
    if is_gate(layer) or not isinstance(layer, keras.Layer):
        return None
    if isinstance(layer, keras.Model) and (inner := functional(layer)) is not None:
        times |= {id(x): length for x, length in zip(inner.inputs, lengths, strict=True)}
        return Parts(inner.inputs, inner.outputs, calls_of(inner))
    if registered(layer) is not None:
        return None
    if type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda):
        if is_of_keras(getattr(layer, "activation", None)):
            return None
        if hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel"):
            return _with_activation(record, made)
        if not isinstance(layer, keras.layers.Activation):
            return None
    try:
        traced = trace(record, made, lengths)
    except UntraceableError as error:
        untraced[name] = str(error)
        return None
    times |= traced.times
    return Parts(traced.inputs, traced.outputs, traced.records, traced.one)


def _with_activation(record: Any, made: dict[int, Made]) -> Parts:
    """A layer with a kernel and an activation of the user's own, as two layers."""
    layer = record.operation
    if id(layer) not in made:
        linear = copy_of(layer, layer.name, activation=None)
        linear.build(record.input_tensors[0].shape)
        linear.set_weights(layer.get_weights())
        linear.trainable = layer.trainable
        made[id(layer)] = Made(layer, linear, np.zeros(0))
    x = keras.Input(batch_shape=record.input_tensors[0].shape, dtype=record.input_tensors[0].dtype)
    between = made[id(layer)].layer(x)
    output = keras.layers.Activation(layer.activation, dtype=layer.dtype_policy, name="activation")(between)
    return Parts([x], [output], [t._keras_history.operation._inbound_nodes[-1] for t in (between, output)])


def one_of(layer: Any) -> tuple[Any, Any]:
    """An input like that of an InputLayer, and a one for each example, shape (batch, 1), made of it."""
    image = keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype)
    corner = image[(slice(None), *[slice(0, 1)] * (len(image.shape) - 1))]
    return image, keras.ops.reshape(keras.ops.ones_like(keras.ops.cast(corner, "float32")), (-1, 1))


def note_length(record: Any, times: dict[int, int]) -> None:
    """Notes how many times as long as the batch the outputs of a call are, which a Reshape may change."""
    length = times.get(id(record.input_tensors[0]), 1) if record.input_tensors else 1
    if type(record.operation).__name__ == "Reshape" and not isinstance(record.operation, keras.Layer):
        read, made = (x[0].shape[1:] for x in (record.input_tensors, record.output_tensors))
        if not {None, 0} & {*read, *made}:
            length = length * math.prod(read) // math.prod(made)
    for tensor in record.output_tensors:
        times.setdefault(id(tensor), length)
