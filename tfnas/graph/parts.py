"""Nested models and composite layers, and the calls that they consist of."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfnas.graph.models import calls_of, functional
from tfnas.graph.tracing import Made, UntraceableError, trace
from tfnas.layers import is_gate


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


def parts_of(record: Any, name: str, made: dict[int, Made], untraced: dict[str, str]) -> Parts | None:
    """Takes a nested model, a user's own layer or a Lambda apart; None for a layer that is a node by itself.

    Args:
        record: Keras's, of its call.
        name: of the layer.
        made: as for `trace`.
        untraced: is added the reason why a layer cannot be taken apart, by its name.
    """
    layer = record.operation
    if is_gate(layer) or not isinstance(layer, keras.Layer):
        return None
    if isinstance(layer, keras.Model) and (inner := functional(layer)) is not None:
        return Parts(inner.inputs, inner.outputs, calls_of(inner))
    if type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda):
        return None
    try:
        traced = trace(record, made)
    except UntraceableError as error:
        untraced[name] = str(error)
        return None
    return Parts(traced.inputs, traced.outputs, traced.records, traced.one)


def one_of(layer: Any) -> tuple[Any, Any]:
    """An input like that of an InputLayer, and a one for each example, shape (batch, 1), made of it."""
    image = keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype)
    corner = image[(slice(None), *[slice(0, 1)] * (len(image.shape) - 1))]
    return image, keras.ops.reshape(keras.ops.ones_like(keras.ops.cast(corner, "float32")), (-1, 1))
