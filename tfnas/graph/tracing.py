"""Takes composite layers apart: a layer whose `call` is written with Keras layers and keras.ops becomes what it calls.

`call` is run on symbolic tensors, so that Keras records each layer and operation in it. The layer's own variables are
symbolic tensors of their shape meanwhile. What was recorded is then called again on tensors of any batch size: an own
variable becomes an EinsumDense that gives it for each example, or the kernel of a Dense layer
where it is what an input is multiplied by. What depends on anything else cannot be followed: random numbers, values
of the input, other behavior in training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np

from tfnas.layers.merging import MERGES

_BATCH = 397  # stands for the size of the batch, and is recognized in shapes; a prime that no layer has as its width


class UntraceableError(Exception):
    """A layer cannot be taken apart, for the reason that is the message."""


@dataclasses.dataclass(frozen=True)
class Traced:
    """The calls that a call of a layer consists of.

    Attributes:
        inputs: symbolic tensors that stand for those of the call, in its order.
        one: stands for a tensor of ones, shape (batch, 1).
        outputs: in the order of the call's.
        records: Keras's records of the calls inside, in topological order.
    """

    inputs: tuple[Any, ...]
    one: Any
    outputs: tuple[Any, ...]
    records: list[Any]


def trace(record: Any, made: dict[int, Made]) -> Traced:
    """Takes a call of a layer apart.

    Args:
        record: Keras's, of a call of a built layer.
        made: layers that have been made of variables, by the variable's id; those made now are added, so that calls
            of one layer have them in common.

    Raises:
        UntraceableError: saying why it cannot be.
    """
    layer = record.operation
    if any(not t.shape or t.shape[0] is not None for t in record.input_tensors):
        raise UntraceableError("an input's batch size is fixed")
    try:
        first = _run(layer, record, None)
        if "training" in inspect.signature(layer.call).parameters:
            _check_same(first, _run(layer, record, True), "it does other things in training")
        # Numbers that are computed on the way are constants only if they do not come from a variable or a generator.
        others = [(v, np.asarray(v) + np.ones((), v.dtype)) for v in layer.variables if v.dtype != "bool"]
        with keras.StatelessScope(others):
            _check_same(first, _run(layer, record, None), "it computes with variables or random numbers by itself")
        return _Emission(record, first, made).traced()
    except UntraceableError:
        raise
    except Exception as error:  # whatever the layer's own code raises when it is given symbolic tensors
        lines = str(error).strip().splitlines() or [""]
        raise UntraceableError(f"{type(error).__name__}: {lines[0][:120]}") from None


@dataclasses.dataclass(frozen=True)
class Made:
    """A layer that stands for a variable.

    Attributes:
        variable: itself, which so keeps its id.
        layer: the layer.
        value: the layer's kernel as it was at first.
    """

    variable: Any
    layer: keras.layers.Layer
    value: np.ndarray


@dataclasses.dataclass
class _Run:
    """One run of `call` on symbolic tensors.

    Attributes:
        inputs, outputs: symbolic tensors.
        variables: the layer's own variables by the id of the symbolic tensor that stood for each.
        records: in topological order.
    """

    inputs: list[Any]
    outputs: list[Any]
    variables: dict[int, Any]
    records: list[Any]


def _run(layer: Any, record: Any, training: bool | None) -> _Run:
    inputs = [keras.KerasTensor((_BATCH, *t.shape[1:]), t.dtype) for t in record.input_tensors]
    stand_ins = iter(inputs)
    arguments, keywords = record.arguments.convert(lambda x: next(stand_ins) if isinstance(x, keras.KerasTensor) else x)
    names = list(inspect.signature(layer.call).parameters)
    given = {**dict(zip(names, arguments, strict=False)), **keywords}
    positional = len(arguments) > len(names)  # *args
    if "training" in names:
        given["training"] = training
    with _own_variables(layer) as variables, _layers_need_tensors(variables):
        made = layer.call(*arguments, **keywords) if positional else layer.call(**given)
    outputs = keras.tree.flatten(made)
    if len(outputs) != len(record.output_tensors) or not all(isinstance(x, keras.KerasTensor) for x in outputs):
        raise UntraceableError("what it returns is not computed from its inputs")
    return _Run(inputs, outputs, {key: v for key, (v, _) in variables.items()}, _ordered(outputs))


def _ordered(outputs: Sequence[Any]) -> list[Any]:
    """Records of the calls that the tensors come from, each behind those it reads."""
    found: dict[int, Any] = {}
    waiting = [(x, False) for x in reversed(outputs)]
    while waiting:
        tensor, done = waiting.pop()
        history = getattr(tensor, "_keras_history", None)
        if history is None or history.operation is None:
            continue
        record = history.operation._inbound_nodes[history.node_index]
        if id(record) in found:
            continue
        if done:
            found[id(record)] = record
        else:
            waiting.append((tensor, True))
            waiting += [(x, False) for x in reversed(record.input_tensors)]
    return list(found.values())


@contextlib.contextmanager
def _own_variables(layer: Any) -> Iterator[dict[int, tuple[Any, Any]]]:
    """Lets symbolic tensors stand for the variables that are a layer's attributes, also in lists and dictionaries.

    Yields:
        The variable and its tensor, by the id of the tensor.
    """
    tensors: dict[int, Any] = {}
    found: dict[int, tuple[Any, Any]] = {}

    def instead(value: Any) -> Any:
        if isinstance(value, keras.Variable):
            if id(value) not in tensors:
                tensors[id(value)] = tensor = keras.KerasTensor(value.shape, value.dtype)
                found[id(tensor)] = value, tensor
            return tensors[id(value)]
        if isinstance(value, list | tuple) and any(isinstance(x, keras.Variable) for x in value):
            return [instead(x) for x in value]
        if isinstance(value, dict) and any(isinstance(x, keras.Variable) for x in value.values()):
            return {key: instead(x) for key, x in value.items()}
        return value

    bookkeeping = ("_trainable_variables", "_non_trainable_variables", "_tracker", "_layers", "_metrics")
    attributes = {key: value for key, value in vars(layer).items() if key not in bookkeeping}
    changed = {key: value for key, value in attributes.items() if instead(value) is not value}
    try:
        for key, value in changed.items():
            vars(layer)[key] = instead(value)
        yield found
    finally:
        vars(layer).update(changed)


@contextlib.contextmanager
def _layers_need_tensors(variables: dict[int, tuple[Any, Any]]) -> Iterator[None]:
    """Refuses layers with weights that are called on numbers: what they give would pass for a constant.

    An embedding of all positions in order is a variable like the layer's own, and is added to these.
    """
    call = keras.Layer.__call__

    def checked(layer: Any, *arguments: Any, **keywords: Any) -> Any:
        given = keras.tree.flatten((arguments, keywords))
        within = keras.src.backend.common.symbolic_scope.in_symbolic_scope()  # inside another layer
        if within or any(isinstance(x, keras.KerasTensor) for x in given) or not layer.weights:
            return call(layer, *arguments, **keywords)
        if isinstance(layer, keras.layers.Embedding) and len(given) == 1:
            positions = np.asarray(given[0])
            rows = np.arange(layer.input_dim)
            if positions.size == rows.size and positions.shape in ((rows.size,), (1, rows.size)):
                if (positions.reshape(-1) == rows).all():
                    tensor = next((t for v, t in variables.values() if v is layer.embeddings), None)
                    if tensor is None:
                        tensor = keras.KerasTensor(layer.embeddings.shape, layer.embeddings.dtype)
                        variables[id(tensor)] = layer.embeddings, tensor
                    return tensor if positions.ndim == 1 else keras.ops.expand_dims(tensor, 0)
        raise UntraceableError(f"its layer '{layer.name}' is called on numbers that do not come from its inputs")

    with mock.patch.object(keras.Layer, "__call__", checked):
        yield


def _check_same(one: _Run, other: _Run, otherwise: str) -> None:
    """Raises UntraceableError unless two runs have recorded the same calls with the same numbers."""

    def calls(run: _Run) -> list[tuple[Any, ...]]:
        number = {id(x): i for i, x in enumerate(run.inputs)}
        number |= {key: -i - 1 for i, key in enumerate(run.variables)}
        seen = []
        for record in run.records:
            operation = record.operation
            what = id(operation) if isinstance(operation, keras.Layer) else type(operation).__name__
            seen.append((what, tuple(number[id(x)] for x in record.input_tensors)))
            number |= {id(x): len(number) + i for i, x in enumerate(record.output_tensors)}
        return [*seen, ("", tuple(number[id(x)] for x in run.outputs))]

    if calls(one) != calls(other):
        raise UntraceableError(otherwise)
    for first, second in zip(one.records, other.records, strict=True):
        numbers = zip(_numbers(first), _numbers(second), strict=True)
        if any(np.shape(a) != np.shape(b) or not np.array_equal(a, b) for a, b in numbers):
            raise UntraceableError(otherwise)


def _numbers(record: Any) -> list[Any]:
    """Returns what a call was given that is neither a tensor of the graph nor its `training`."""
    keywords = {key: value for key, value in record.arguments.kwargs.items() if key != "training"}
    settings = {} if isinstance(record.operation, keras.Layer) else _settings(record.operation)
    flat = keras.tree.flatten((record.arguments.args, keywords, settings))
    return [np.asarray(x) if keras.ops.is_tensor(x) else x for x in flat if not isinstance(x, keras.KerasTensor)]


def _settings(operation: Any) -> dict[str, Any]:
    """An operation's own arguments."""
    return {key: value for key, value in vars(operation).items() if not key.startswith("_") and key != "name"}


@dataclasses.dataclass(frozen=True)
class _Own:
    """A variable of the layer, with its axes in the order in which it is used.

    Attributes:
        variable: itself.
        value: its value, reshaped or transposed.
    """

    variable: Any
    value: np.ndarray


class _Emission:
    """Calls again what a run has recorded, on tensors of any batch size."""

    def __init__(self, record: Any, run: _Run, made: dict[int, Made]):
        self._layer = record.operation
        self._run = run
        self._inputs = tuple(keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in record.input_tensors)
        self._one = keras.Input((1,))
        self._records: list[Any] = []
        self._made = made
        self._tensors: dict[int, Any] = {}  # by a variable's id, what its layer gives
        self._values: dict[int, Any] = {id(t): x for t, x in zip(run.inputs, self._inputs, strict=True)}
        self._values |= {key: _Own(v, np.asarray(v)) for key, v in run.variables.items()}

    def traced(self) -> Traced:
        for record in self._run.records:
            made = self._again(record)
            for tensor, value in zip(record.output_tensors, made, strict=True):
                self._values[id(tensor)] = value
        outputs = tuple(self._values[id(x)] for x in self._run.outputs)
        for traced, output in zip(self._run.outputs, outputs, strict=True):
            if isinstance(output, _Own) or tuple(output.shape[1:]) != tuple(traced.shape[1:]):
                raise UntraceableError("an output is not computed for each example")
        return Traced(self._inputs, self._one, outputs, self._records)

    def _called(self, operation: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        """Calls a layer, an operation or one of keras.ops; returns its outputs."""
        outputs = keras.tree.flatten(operation(*arguments, **keywords))
        history = outputs[0]._keras_history
        self._records.append(history.operation._inbound_nodes[history.node_index])
        return outputs

    def _again(self, record: Any) -> list[Any]:
        operation, kind = record.operation, type(record.operation).__name__
        values = [self._values[id(x)] for x in record.input_tensors]
        is_layer = isinstance(operation, keras.Layer)
        own = [isinstance(x, _Own) for x in values]
        if not is_layer and all(own):
            return [self._of_variables(record, kind, values)]
        if not is_layer and kind == "Reshape":
            return self._called(keras.ops.reshape, values[0], self._shape(record.output_tensors[0].shape))
        if not is_layer and kind in ("Matmul", "Dot") and own == [False, True] and values[1].value.ndim == 2:
            return self._multiplied(*values)
        if any(own):
            fits = not is_layer and (kind in MERGES or kind == "Concatenate")
            if not fits:
                raise UntraceableError(f"a variable of its own is given to {kind}")
            rank = len(record.output_tensors[0].shape)
            values = [self._tensor(x, rank) if isinstance(x, _Own) else x for x in values]
        if not is_layer and any(_has_batch(x) for x in _numbers(record)):
            raise UntraceableError(f"{kind} is given the size of the batch")
        stand_ins = iter(values)
        arguments, keywords = record.arguments.convert(
            lambda x: next(stand_ins) if isinstance(x, keras.KerasTensor) else _plain(x)
        )
        return self._called(operation, *arguments, **keywords)

    def _shape(self, traced: Sequence[int | None]) -> tuple[int, ...]:
        """A shape to which a tensor of any batch size is brought."""
        open_axes = [size is None or size % _BATCH == 0 for size in traced]
        if sum(open_axes) != 1:
            raise UntraceableError("it reshapes to more than one unknown size")
        return tuple(-1 if is_open else int(size or 0) for size, is_open in zip(traced, open_axes, strict=True))

    def _of_variables(self, record: Any, kind: str, values: Sequence[Any]) -> Any:
        """The output of an operation on variables alone."""
        (x,) = values if len(values) == 1 else (None,)
        output = record.output_tensors[0]
        if x is None:
            raise UntraceableError(f"{kind} joins variables")
        if kind in ("Reshape", "ExpandDims", "Squeeze"):
            return _Own(x.variable, x.value.reshape(output.shape))
        if kind == "Transpose":
            axes = record.operation.axes
            return _Own(x.variable, x.value.transpose(axes))
        if kind in ("Cast", "ConvertToTensor") and output.dtype == x.variable.dtype:
            return x
        if kind == "BroadcastTo":
            shape = tuple(output.shape)
            have = (1,) * (len(shape) - x.value.ndim) + x.value.shape
            if shape[0] == _BATCH and have == (1, *shape[1:]):
                return self._tensor(x, len(shape))
        if kind == "Tile":
            repeats = tuple(record.operation.repeats)
            if repeats[0] == _BATCH and set(repeats[1:]) <= {1} and x.value.shape[0] == 1:
                return self._tensor(x, x.value.ndim)
        if kind == "Repeat" and record.operation.repeats == _BATCH and record.operation.axis == 0:
            if x.value.shape[0] == 1:
                return self._tensor(x, x.value.ndim)
        raise UntraceableError(f"{kind} of a variable of its own")

    def _multiplied(self, x: Any, own: _Own) -> list[Any]:
        """A matrix product with a variable, as a Dense layer."""
        layer = keras.layers.Dense(own.value.shape[1], use_bias=False, **self._options(own.variable))
        return self._with_kernel(layer, x, own, own.value)

    def _options(self, variable: Any) -> dict[str, Any]:
        policy = self._layer.dtype_policy
        return {"name": variable.name, "kernel_regularizer": variable.regularizer, "dtype": policy}

    def _with_kernel(self, layer: keras.Layer, x: Any, own: _Own, value: np.ndarray) -> list[Any]:
        """The output of a layer whose kernel is a variable; of the one made of it before, if it is the same."""
        variable = own.variable
        if variable.constraint is not None:
            raise UntraceableError("a variable of its own has a constraint")
        made = self._made.get(id(variable))
        if made is None:
            outputs = self._called(layer, x)
            layer.set_weights([value])
            layer.trainable = variable.trainable and self._layer.trainable
            self._made[id(variable)] = Made(variable, layer, value)
            return outputs
        if type(made.layer) is not type(layer) or not np.array_equal(made.value, value):
            raise UntraceableError("a variable of its own is used in more than one way")
        return self._called(made.layer, x)

    def _tensor(self, own: _Own, rank: int) -> Any:
        """The variable for each example, to be joined with tensors of this rank."""
        shape = (1,) * (rank - own.value.ndim) + own.value.shape
        if rank < 2 or len(shape) != rank or shape[0] != 1:
            raise UntraceableError("a variable of its own differs between examples")
        key = id(own.variable)
        if key not in self._tensors or tuple(self._tensors[key].shape[1:]) != shape[1:]:
            value = own.value.reshape(shape[1:])
            axes = "abcdefgh"[: value.ndim]
            layer = keras.layers.EinsumDense(f"zy,y{axes}->z{axes}", value.shape, **self._options(own.variable))
            (self._tensors[key],) = self._with_kernel(layer, self._one, own, value[None])
        return self._tensors[key]


def _has_batch(value: Any) -> bool:
    """Whether the size of the batch has entered a number or the shape of an array."""
    sizes = np.shape(value) if np.ndim(value) else (value,)
    return any(isinstance(s, int | np.integer) and not isinstance(s, bool) and s and s % _BATCH == 0 for s in sizes)


def _plain(value: Any) -> Any:
    """An array for an eager tensor, which Keras can save."""
    return np.asarray(value) if keras.ops.is_tensor(value) and not isinstance(value, keras.KerasTensor) else value
