"""The nodes of a model; nested models and composite layers, and the calls that they consist of."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.graph.models import calls_of, functional, record_of, sized
from tfnas.graph.tracing import (
    Made,
    UntraceableError,
    calls_before,
    consists_of,
    drops_at_random,
    trace,
    with_attention_mask,
    with_numbers,
    with_shuffles,
)
from tfnas.layers import Contraction, family_of_call, is_gate, layout
from tfnas.layers.base import Node
from tfnas.layers.calls import Call, copy_of
from tfnas.layers.channelwise import Spatial
from tfnas.layers.of_units import registered
from tfnas.layers.pointwise import is_of_keras, takes_each_number
from tfnas.layers.uncut import Uncut

_TAKEN_APART = (keras.layers.Lambda, keras.layers.Attention)  # of Keras's own, as if a user had written them


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
    if not isinstance(layer, keras.Layer):
        return _simpler(record, given[0], lengths)
    if is_gate(layer):
        return None
    if isinstance(layer, keras.Model) and (inner := functional(layer)) is not None:
        inner = sized(inner, [x.shape for x in record.input_tensors])
        for x, length in zip(inner.inputs, given, strict=True):
            lengths.note(x, length)
        return Parts(inner.inputs, inner.outputs, calls_of(inner))
    if registered(layer) is not None:
        return None
    if isinstance(layer, keras.layers.TimeDistributed):
        return _over_time(record, name, given[0], untraced, lengths)
    if isinstance(layer, keras.layers.Bidirectional):
        return _both_ways(record, given[0], lengths)
    if isinstance(layer, keras.layers.SpectralNormalization):
        untraced[name] = "in training it divides its kernel by a norm of the whole kernel, which a part does not have"
        return None
    if type(layer).__module__.startswith("keras.") and not isinstance(layer, _TAKEN_APART):
        if is_of_keras(getattr(layer, "activation", None)):
            return None
        if hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel"):
            return _with_activation(record, made, given[0], lengths)
        if not isinstance(layer, keras.layers.Activation):
            return None
    in_numbers = [id(x) in known.numbers for x in record.input_tensors]
    if any(in_numbers):
        record = with_numbers(record, {key: value for key, (value, _) in known.numbers.items()})
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
    return Parts([x], [output], [record_of(between), record_of(output)])


def _simpler(record: Any, length: int, lengths: Lengths) -> Parts | None:
    """An operation as the simpler ones that it consists of; None if it consists of none."""
    records = consists_of(record)
    if records == [record]:
        return None
    for tensor in (made for call in records for made in call.output_tensors):
        lengths.note(tensor, length, True)
    return Parts(record.input_tensors, record.output_tensors, records)


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


_WAYS = {  # to merge what a Bidirectional has read forwards and backwards
    "concat": lambda one, other: keras.ops.concatenate([one, other], axis=-1),
    "sum": keras.ops.add,
    "ave": lambda one, other: (one + other) / 2,
    "mul": keras.ops.multiply,
}


def _both_ways(record: Any, length: int, lengths: Lengths) -> Parts | None:
    """A Bidirectional as the two layers that it calls; None with states that are given or returned."""
    layer, (given, *masks) = record.operation, record.input_tensors
    several = len(masks) > (record.arguments.kwargs.get("mask") is not None)
    if several or layer.return_state or layer.stateful or layer.merge_mode not in _WAYS:
        return None
    x, *masks = inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in (given, *masks)]
    more = {"mask": masks[0]} if masks else {}
    there, back = layer.forward_layer(x, **more), layer.backward_layer(x, **more)
    output = _WAYS[layer.merge_mode](there, keras.ops.flip(back, axis=1) if layer.return_sequences else back)
    calls = calls_of(keras.Model(inputs, output))
    for tensor in (*inputs, *(made for call in calls for made in call.output_tensors)):
        lengths.note(tensor, length, True)
    return Parts(inputs, [output], calls)


def one_of(layer: Any) -> tuple[Any, Any]:
    """An input like that of an InputLayer, and a one for each example, shape (batch, 1), made of it."""
    image = keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype)
    corner = image[(slice(None), *[slice(0, 1)] * (len(image.shape) - 1))]
    return image, keras.ops.reshape(keras.ops.ones_like(keras.ops.cast(corner, "float32")), (-1, 1))


class Nodes:
    """Makes the nodes of a model.

    Args:
        of_units: whether what vanishes are channel units.

    Attributes:
        nodes: in topological order.
    """

    def __init__(self, of_units: bool):
        self.nodes: list[Node] = []
        self._of_units = of_units
        self._known = Known()
        self._names: set[str] = set()
        self._aside: dict[int, tuple[int, Call]] = {}  # by a tensor's id, the node and the call that it is made by

    @property
    def untraced(self) -> dict[str, str]:
        """Reasons why layers could not be taken apart and are left whole, by name."""
        return self._known.untraced

    def add_model(self, model: keras.Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Adds the nodes of a functional model; returns the numbers of its inputs and of its outputs."""
        index = self._add(calls_of(model), model.outputs, "", {}, None)
        outputs = tuple(self._number(tensor, index, "", None) for tensor in model.outputs)
        return tuple(index[id(tensor)] for tensor in model.inputs), outputs

    def _add(
        self, records: Sequence[Any], outputs: Sequence[Any], prefix: str, index: dict[int, int], training: bool | None
    ) -> dict[int, int]:
        """Adds the nodes of calls; `index` maps the ids of what they are given to nodes, on return of all tensors.

        `outputs` are what others read; `training` is what the model that they are of was called with.
        """
        for call in with_shuffles(records, outputs) if self._of_units else records:
            operation = call.operation
            if id(call.output_tensors[0]) in index:
                continue  # the input of a nested model is what its caller gives it
            name = prefix + operation.name
            if self._of_units and self._set_aside(call, prefix, index, training):
                continue
            call = with_attention_mask(call)
            for tensor in call.input_tensors:
                if id(tensor) not in index and id(tensor) not in self._aside:  # a mask that Keras passes beside tensors
                    index |= self._add(calls_before([tensor], index), [tensor], prefix, index, training)
            sources = tuple(self._number(tensor, index, prefix, training) for tensor in call.input_tensors)
            parts = parts_of(call, name, self._known)
            if parts is not None:
                inside = {id(x): j for x, j in zip(parts.inputs, sources, strict=True) if x is not None}
                inside |= {id(parts.one): self._ones} if parts.read_one else {}
                given = Call(call, name, training).training
                made = self._add(parts.records, parts.outputs, f"{name}_", inside, given)
                for x, y in zip(call.output_tensors, parts.outputs, strict=True):
                    index |= {} if y is None else {id(x): self._number(y, made, f"{name}_", training)}
                    self._known.lengths.note(x, self._known.lengths.of(y))
                continue
            self._known.lengths.follow(call)
            drops = name in self.untraced and not Call(call, name, training).training and drops_at_random(call)
            self.untraced.pop(name if drops else "", None)
            for number, tensor in enumerate(call.output_tensors):
                index[id(tensor)] = self._add_node(call, prefix, sources, training, number, drops)
        return index

    def _set_aside(self, call: Any, prefix: str, index: dict[int, int], training: bool | None) -> bool:
        """Whether a call is one that only puts examples or channels in another axis than usual, or reads its output.

        No node stands for such a call: those that read its output repeat it, if they bring the axes back (`qkv[0]`
        behind `qkv = transpose(qkv, (2, 0, 3, 1, 4))`) or sum over channels wherever these are
        (`matmul(query, transpose(key, (0, 1, 3, 2)))`). For any other `_number` adds a node.
        """
        operation, name = call.operation, prefix + call.operation.name
        if isinstance(operation, keras.Layer) and type(operation) not in (keras.layers.Permute, keras.layers.Dot):
            return False  # a user's own may have the name of an operation
        aside = {j: self._aside[id(x)] for j, x in enumerate(call.input_tensors) if id(x) in self._aside}
        before = {j: made for j, (_, made) in aside.items()}
        self._known.lengths.follow(call)
        sources = tuple(aside[j][0] if j in aside else index[id(x)] for j, x in enumerate(call.input_tensors))
        for number, tensor in enumerate(call.output_tensors):
            called = Call(call, name, training, number, before)
            axes = layout(called)
            same_dtype = tensor.dtype == call.input_tensors[0].dtype
            if aside and same_dtype and takes_each_number(operation, call):  # so that it may as well come first
                record = record_of(Call(call, name, training).again(operation, called.inputs))
                self._known.lengths.note(record.output_tensors[0], self._known.lengths.of(tensor))
                self._aside[id(tensor)] = self._add_node(record, prefix, sources, training, 0), before[0]
            elif axes and axes != (0, len(tensor.shape) - 1):
                self._aside[id(tensor)] = sources[0], called
            elif aside and (axes or Contraction.takes(operation, call, called)):
                index[id(tensor)] = self._add_node(call, prefix, sources, training, number, before=before)
            else:
                return False
        return True

    def _number(self, tensor: Any, index: dict[int, int], prefix: str, training: bool | None) -> int:
        """The number of a tensor's node, which is added if the tensor has been set aside."""
        if id(tensor) not in index:
            number, called = self._aside[id(tensor)]
            calls = [called]
            while calls[0].before:
                calls.insert(0, calls[0].before[0])
            for call in calls:
                number = self._add_node(call.record, prefix, (number,), training, call.output)
            index[id(tensor)] = number
        return index[id(tensor)]

    @functools.cached_property
    def _ones(self) -> int:
        """Number of a node that gives a one for each example, shape (batch, 1), which it makes of the first input."""
        image, one = one_of(self.nodes[0].layer)
        return self._add(calls_of(keras.Model(image, one)), [one], "", {id(image): 0}, None)[id(one)]

    def _add_node(
        self,
        call: Any,
        prefix: str,
        sources: tuple[int, ...],
        training: bool | None,
        number: int,
        drops: bool = False,
        before: Mapping[int, Call] | None = None,
    ) -> int:
        """Adds the node of one output of a call; behind a node for the units inside the layer, if it has such."""
        operation = call.operation
        name = prefix + operation.name
        count = 1
        while name in self._names:  # a layer may be shared, and operations have one name for all
            name = f"{prefix}{operation.name}_{count}"
            count += 1
        self._names.add(name)
        output = call.output_tensors[number]
        if not output.shape:
            raise UserError(f"layer '{name}': its output must have an axis of examples. Received: shape ()")
        called = Call(call, name, training, number, before)
        family = Spatial if drops else family_of_call(operation, name, call, called, self._of_units)

        def made(family: type[Node], name: str, sources: tuple[int, ...], shape: Sequence[Any]) -> Node:
            read = [self.nodes[i] for i in sources]
            return family(
                name=name,
                layer=operation,
                inputs=sources,
                input_channels=tuple(node.num_channels for node in read),
                input_spatial=tuple(node.spatial for node in read),
                num_channels=1 if shape[-1] is None else shape[-1],
                spatial=tuple(shape[1:-1]),
                called=called,
                examples=self._known.lengths.of(output),
                is_open=shape[-1] is None,
                open_inputs=tuple(node.is_open for node in read),
            )

        if family.INSIDE is not None:
            units = family.INSIDE.num_units(operation)
            inside = family.INSIDE.sources(call, sources)
            self.nodes.append(made(family.INSIDE, f"{name}_{family.INSIDE.NAME}", inside, (None, units)))
            self._names.add(self.nodes[-1].name)
            sources = (len(self.nodes) - 1, *sources)
        node = made(family, name, sources, output.shape)
        self.nodes.append(node if node.reads_open_axes else made(Uncut, name, sources, output.shape))
        return len(self.nodes) - 1
