"""Nested models and composite layers, and the calls that they consist of."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
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
        inputs, outputs: symbolic tensors that stand for those of the call, in its order; None for an input whose
            numbers are known.
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


class Lengths:
    """Lengths of tensors' first axes as multiples of the batch's: several where windows of an image are examples."""

    def __init__(self) -> None:
        self._noted: dict[int, tuple[int, bool, Any]] = {}  # with the tensor, which so keeps its id

    def of(self, tensor: Any) -> int:
        """Returns the length of a tensor; 1 where none is noted."""
        return self._noted[id(tensor)][0] if id(tensor) in self._noted else 1

    def note(self, tensor: Any, length: int, seen: bool = False) -> None:
        """Notes a length; one that was `seen` in a trace stays."""
        if seen or not self._noted.get(id(tensor), (1, False))[1]:
            self._noted[id(tensor)] = length, seen, tensor

    def follow(self, record: Any) -> None:
        """Notes the lengths of a call's outputs: those of its first input, which a Reshape may change."""
        length = self.of(record.input_tensors[0]) if record.input_tensors else 1
        if type(record.operation).__name__ == "Reshape" and not isinstance(record.operation, keras.Layer):
            read, made = (x[0].shape[1:] for x in (record.input_tensors, record.output_tensors))
            if not {None, 0} & {*read, *made}:
                length = length * math.prod(read) // math.prod(made)
        for tensor in record.output_tensors:
            self.note(tensor, length)


@dataclasses.dataclass
class Known:
    """Facts that the calls of a model have shown so far.

    Attributes:
        made: as for `trace`.
        untraced: why a layer cannot be taken apart, by its name.
        lengths: of tensors.
        numbers: of tensors that are the same for any input, by the tensor's id; with the tensor, which so keeps its id.
    """

    made: dict[int, Made] = dataclasses.field(default_factory=dict)
    untraced: dict[str, str] = dataclasses.field(default_factory=dict)
    lengths: Lengths = dataclasses.field(default_factory=Lengths)
    numbers: dict[int, tuple[np.ndarray, Any]] = dataclasses.field(default_factory=dict)


def parts_of(record: Any, name: str, known: Known) -> Parts | None:
    """Takes a nested model, a user's own layer or a Lambda apart; None for a layer that is a node by itself.

    Args:
        record: Keras's, of its call.
        name: of the layer.
        known: what the call shows is added.
    """
    layer, made, untraced, lengths = record.operation, known.made, known.untraced, known.lengths
    given = [lengths.of(x) for x in record.input_tensors]
    if is_gate(layer) or not isinstance(layer, keras.Layer):
        return None
    if isinstance(layer, keras.Model) and (inner := functional(layer)) is not None:
        for x, length in zip(inner.inputs, given, strict=True):
            lengths.note(x, length)
        return Parts(inner.inputs, inner.outputs, calls_of(inner))
    if registered(layer) is not None:
        return None
    if isinstance(layer, keras.layers.TimeDistributed):
        return _over_time(record, name, given[0], untraced, lengths)
    if isinstance(layer, keras.layers.SpectralNormalization):
        untraced[name] = "in training it divides its kernel by a norm of the whole kernel, which a part does not have"
        return None
    if type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda):
        if is_of_keras(getattr(layer, "activation", None)):
            return None
        if hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel"):
            return _with_activation(record, made, given[0], lengths)
        if not isinstance(layer, keras.layers.Activation):
            return None
    in_numbers = [id(x) in known.numbers for x in record.input_tensors]
    if any(in_numbers):
        record = _with_numbers(record, known.numbers)
        given = [length for length, there in zip(given, in_numbers, strict=True) if not there]
    try:
        traced = trace(record, made, given)
    except UntraceableError as error:
        untraced[name] = str(error)
        return None
    if not any(isinstance(x, keras.KerasTensor) for x in traced.outputs):
        known.numbers |= {id(x): (y, x) for x, y in zip(record.output_tensors, traced.outputs, strict=True)}
        return None
    for x, length in (*zip(traced.inputs, given, strict=True), *traced.lengths):
        lengths.note(x, length, True)
    stand_ins = iter(traced.inputs)
    inputs = [None if there else next(stand_ins) for there in in_numbers]
    return Parts(inputs, traced.outputs, traced.records, traced.one)


def _with_numbers(record: Any, numbers: Mapping[int, tuple[np.ndarray, Any]]) -> Any:
    """A record like another, of a call that was given numbers in place of the tensors that are known to hold them."""
    arguments, keywords = record.arguments.convert(lambda x: numbers[id(x)][0] if id(x) in numbers else x)
    return types.SimpleNamespace(
        operation=record.operation,
        arguments=keras.src.ops.symbolic_arguments.SymbolicArguments(*arguments, **keywords),
        input_tensors=[x for x in record.input_tensors if id(x) not in numbers],
        output_tensors=record.output_tensors,
    )


def _with_activation(record: Any, made: dict[int, Made], length: int, lengths: Lengths) -> Parts:
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
    for tensor in (x, between, output):
        lengths.note(tensor, length, True)
    return Parts([x], [output], [t._keras_history.operation._inbound_nodes[-1] for t in (between, output)])


def _over_time(record: Any, name: str, length: int, untraced: dict[str, str], lengths: Lengths) -> Parts | None:
    """A TimeDistributed as the layer that it wraps, with all time steps as examples; a Dense layer takes them as such.

    Normalization by batches is not taken apart: it has statistics of each step by itself.
    """
    layer, given = record.operation.layer, record.input_tensors[0]
    if len(record.input_tensors) > 1 or record.arguments.kwargs.get("mask") is not None:
        untraced[name] = "it has a mask"
        return None
    if any(isinstance(part, keras.layers.BatchNormalization) and part.trainable for part in layer._flatten_layers()):
        untraced[name] = "in training it normalizes each time step by itself"
        return None
    x = keras.Input(batch_shape=given.shape, dtype=given.dtype)
    lengths.note(x, length)
    if isinstance(layer, keras.layers.Dense):
        output = layer(x)
    else:
        steps, sizes = given.shape[1], record.output_tensors[0].shape[2:]
        if None in (steps, *given.shape[2:], *sizes):
            untraced[name] = "the number of its time steps, or a size of one, is not known"
            return None
        output = keras.ops.reshape(layer(keras.ops.reshape(x, (-1, *given.shape[2:]))), (-1, steps, *sizes))
    return Parts([x], [output], calls_of(keras.Model(x, output)))


def one_of(layer: Any) -> tuple[Any, Any]:
    """An input like that of an InputLayer, and a one for each example, shape (batch, 1), made of it."""
    image = keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype)
    corner = image[(slice(None), *[slice(0, 1)] * (len(image.shape) - 1))]
    return image, keras.ops.reshape(keras.ops.ones_like(keras.ops.cast(corner, "float32")), (-1, 1))
