"""Calls again, on tensors of any batch size, what a run of a composite layer's `call` has recorded.

An own variable of the layer becomes an EinsumDense that gives it for each example, or the weights of a layer that does
with them what an operation does (a Dense layer for `ops.matmul`, a Conv2D for `ops.conv`). One that is not trained is
an array of numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.graph.models import record_of
from tfnas.graph.tracing.records import (
    BATCH,
    UntraceableError,
    has_batch,
    key_of,
    numbers_of,
    of_any,
    of_one,
    plain,
    settings_of,
    with_numbers,
)
from tfnas.layers.merging import MERGES
from tfnas.layers.pointwise import OPERATIONS


@dataclasses.dataclass(frozen=True)
class Traced:
    """The calls that a call of a layer consists of.

    Attributes:
        inputs: symbolic tensors that stand for those of the call, in its order.
        one: stands for a tensor of ones, shape (batch, 1).
        outputs: in the order of the call's; None for one that is not computed from the inputs, and is not used; numbers
            if none of them is computed from the inputs' values.
        records: Keras's records of the calls inside, in topological order.
        lengths: of the tensors that the calls make, as multiples of the batch's.
    """

    inputs: tuple[Any, ...]
    one: Any
    outputs: tuple[Any, ...]
    records: list[Any]
    lengths: list[tuple[Any, int]]


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
class Run:
    """One run of `call` on symbolic tensors.

    Attributes:
        inputs, outputs: symbolic tensors; None for an output that is not computed from the inputs, and is not used; or
            all outputs are numbers.
        read: whether other calls read each output.
        variables: the layer's own variables by the id of the symbolic tensor that stood for each.
        records: in topological order.
    """

    inputs: list[Any]
    outputs: list[Any]
    read: list[bool]
    variables: dict[int, Any]
    records: list[Any]

    @property
    def is_constant(self) -> bool:
        """Whether the outputs are numbers."""
        return any(isinstance(x, np.ndarray) for x in self.outputs)


@dataclasses.dataclass(frozen=True)
class _Own:
    """A variable of the layer, with its axes in the order in which it is used.

    Attributes:
        variable: itself.
        value: its value, reshaped or transposed.
        steps: what else is done to it, on a tensor that has it for each example.
        shape: what comes of these steps, without the examples.
        computed: what comes of them, or of operations that are no such steps.
        why: why they are none; it is then of use as the weights of a layer alone.
    """

    variable: Any
    value: np.ndarray
    steps: tuple[Callable[[Any], Any], ...] = ()
    shape: tuple[int, ...] = ()
    computed: np.ndarray | None = None
    why: str = ""

    @property
    def weights(self) -> np.ndarray:
        """The numbers that it has where it is used as weights."""
        return self.value if self.computed is None else self.computed


class Emission:
    """Calls again what a run has recorded, on tensors of any batch size."""

    def __init__(self, record: Any, run: Run, made: dict[int, Made]):
        self._layer = record.operation
        self._run = run
        self._inputs = tuple(keras.Input(t.shape[1:], dtype=t.dtype) for t in record.input_tensors)
        self._one = keras.Input((1,))
        self._records: list[Any] = []
        self._made = made
        self._tensors: dict[tuple[int, int], Any] = {}  # by a variable's id and repeats, what its layer gives
        self._values: dict[int, Any] = {id(t): x for t, x in zip(run.inputs, self._inputs, strict=True)}
        not_trained = {id(v) for part in self._layer._flatten_layers() for v in part._non_trainable_variables}
        for key, variable in run.variables.items():
            value = np.asarray(variable)
            self._values[key] = value if id(variable) in not_trained else _Own(variable, value)

    def traced(self) -> Traced:
        """Calls everything again, and returns the calls."""
        lengths = []
        for record in self._run.records:
            made = self._again(record)
            for tensor, value in zip(record.output_tensors, made, strict=True):
                self._values[id(tensor)] = value
                lengths.append((value, (tensor.shape[0] if tensor.shape else 0) // BATCH))
        outputs = tuple(self._values.get(id(x)) for x in self._run.outputs)
        used = (x for x, is_read in zip(outputs, self._run.read, strict=True) if is_read)
        read = (*used, *(x for record in self._records for x in record.input_tensors))
        if any(isinstance(x, keras.KerasTensor) and (not x.shape or None in x.shape[1:][-1:]) for x in read):
            raise UntraceableError("inside it the size of an axis of channels is unknown")
        for traced, output in zip(self._run.outputs, outputs, strict=True):
            if traced is None or output is None:
                continue
            sizes = () if isinstance(output, _Own) else tuple(output.shape[1:])
            # A layer inside may no longer know a size, as behind `reshape(x, (ops.shape(x)[0], -1, 8))`; its parts do.
            fits = len(sizes) == len(traced.shape) - 1 and all(
                size in (None, found) for size, found in zip(sizes, traced.shape[1:], strict=True)
            )
            if isinstance(output, _Own) or not fits:
                raise UntraceableError("an output is not computed for each example")
        return Traced(self._inputs, self._one, outputs, self._records, lengths)

    def _called(self, operation: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        """Calls a layer, an operation or one of keras.ops; returns its outputs."""
        outputs = keras.tree.flatten(operation(*arguments, **keywords))
        self._records.append(record_of(outputs[0]))
        return outputs

    def _again(self, record: Any) -> list[Any]:
        given = {id(x): self._values[id(x)] for x in record.input_tensors}
        record = with_numbers(record, {key: value for key, value in given.items() if isinstance(value, np.ndarray)})
        if not record.input_tensors:
            made = record.operation(*record.arguments.args, **record.arguments.kwargs)
            return [np.asarray(x) for x in keras.tree.flatten(made)]
        operation, kind = record.operation, type(record.operation).__name__
        output = record.output_tensors[0]
        values = [self._values[id(x)] for x in record.input_tensors]
        is_layer = isinstance(operation, keras.Layer)
        own = [isinstance(x, _Own) for x in values]
        settings = () if is_layer else keras.tree.flatten(settings_of(operation))
        if any(isinstance(x, keras.KerasTensor) for x in settings):  # Keras records no tensor that is a bound of `clip`
            raise UntraceableError(f"{kind} has a tensor as its setting")
        if not is_layer and all(own):
            return self._of_variables(record, kind, values)
        if not is_layer and kind == "Reshape":
            return self._called(keras.ops.reshape, values[0], self._shape(output.shape))
        if not is_layer and kind == "Slice" and own == [False]:
            return self._called(lambda tensor: tensor[key_of(record)], values[0])
        if not is_layer and sorted(own) == [False, True] and (layer := self._with_weights(record, kind, own)):
            x, kernel = values if own[1] else reversed(values)
            return self._with_kernel(layer, x, kernel)
        if any(own):
            fits = not is_layer and (kind in MERGES or kind == "Concatenate")
            if not fits:
                raise UntraceableError(f"a variable of its own is given to {kind}")
            rank, size = len(output.shape), output.shape[0]
            if size % BATCH:
                raise UntraceableError("a variable of its own is joined with what is not computed for each example")
            values = [self._tensor(x, rank, size // BATCH) if isinstance(x, _Own) else x for x in values]
        broadcasts = kind in MERGES and any(
            len(x.shape) == len(output.shape) and x.shape[:1] == output.shape[:1] for x in record.input_tensors
        )
        if not is_layer and not broadcasts and any(has_batch(x) for x in numbers_of(record)):
            raise UntraceableError(f"{kind} is given the size of the batch")
        if kind == "DepthwiseConv" and not is_layer:  # Keras loads no model in which it has steps as a tuple
            settings = {key: _one(getattr(operation, key)) for key in ("strides", "padding", "dilation_rate")}
            operation = functools.partial(keras.ops.depthwise_conv, **settings)
        stand_ins = iter(values)
        given_as = functools.partial(of_one, rank=len(output.shape)) if broadcasts else of_any if is_layer else plain
        arguments, keywords = record.arguments.convert(
            lambda x: next(stand_ins) if isinstance(x, keras.KerasTensor) else given_as(x)
        )
        return self._called(operation, *arguments, **keywords)

    def _shape(self, traced: Sequence[int | None]) -> tuple[int, ...]:
        """A shape to which a tensor of any batch size is brought."""
        open_axes = [size is None or size % BATCH == 0 for size in traced]
        if sum(open_axes) != 1:
            raise UntraceableError("it reshapes to more than one unknown size")
        return tuple(-1 if is_open else int(size or 0) for size, is_open in zip(traced, open_axes, strict=True))

    def _of_variables(self, record: Any, kind: str, values: Sequence[Any]) -> list[Any]:
        """The outputs of an operation on variables alone."""
        if any(has_batch(x) for x in numbers_of(record)):
            return [self._followed(record, kind, values)]
        numbers = with_numbers(record, {id(x): y.weights for x, y in zip(record.input_tensors, values, strict=True)})
        made = record.operation(*numbers.arguments.args, **numbers.arguments.kwargs)
        computed = [np.asarray(x) for x in keras.tree.flatten(made)]
        largest = max(values, key=lambda x: x.value.size)
        try:
            found, why = [self._followed(record, kind, values)], ""
        except UntraceableError as error:
            found, why = [largest for _ in computed], next((x.why for x in values if x.why), str(error))
        if not all(isinstance(x, _Own) for x in found):
            return found
        return [dataclasses.replace(x, computed=y, why=why) for x, y in zip(found, computed, strict=True)]

    def _followed(self, record: Any, kind: str, values: Sequence[Any]) -> Any:
        """The output of an operation on variables, each of them for each example."""
        x, output = values[0], record.output_tensors[0]
        if len(values) > 1:
            raise UntraceableError(f"{kind} joins variables")
        if x.why:
            raise UntraceableError(x.why)
        if kind in MERGES or kind in OPERATIONS:
            return self._with_numbers(x, record)
        if kind in ("GetItem", "Slice"):
            return self._sliced(x, record)
        if kind == "BroadcastTo":
            shape, have = tuple(output.shape), x.shape if x.steps else x.value.shape
            if shape[0] == BATCH and (1,) * (len(shape) - len(have)) + have == (1, *shape[1:]):
                return self._tensor(x, len(shape))
        if x.steps or kind == "Take":
            return self._stepped(x, record, kind)
        if kind in ("Reshape", "ExpandDims", "Squeeze"):
            return _Own(x.variable, x.value.reshape(output.shape))
        if kind == "Transpose":
            axes = record.operation.axes
            return _Own(x.variable, x.value.transpose(axes))
        if kind == "Tile":
            repeats = tuple(record.operation.repeats)
            if repeats[0] == BATCH and set(repeats[1:]) <= {1} and x.value.shape[0] == 1:
                return self._tensor(x, x.value.ndim)
        if kind == "Repeat" and record.operation.repeats == BATCH and record.operation.axis == 0:
            if x.value.shape[0] == 1:
                return self._tensor(x, x.value.ndim)
        raise UntraceableError(f"{kind} of a variable of its own")

    def _sliced(self, own: _Own, record: Any) -> _Own:
        """A part of a variable, such as the embeddings of as many positions as there are."""
        key, shape = key_of(record), tuple(record.output_tensors[0].shape)
        numbers = np.arange(own.value.size)
        if not own.steps and np.array_equal(numbers.reshape(own.value.shape)[key].ravel(), numbers):  # all of it
            return _Own(own.variable, own.value.reshape(shape))
        step = functools.partial(self._called, lambda tensor: tensor[(slice(None), *key)])
        return dataclasses.replace(own, steps=(*own.steps, step), shape=shape)

    def _stepped(self, own: _Own, record: Any, kind: str) -> _Own:
        """A variable of which rows are taken (biases by relative position), or what is done to these."""
        shape, settings = tuple(record.output_tensors[0].shape), vars(record.operation)
        if kind == "Take" and settings["axis"] is not None:
            (rows,) = numbers_of(record)[:1]
            axis = settings["axis"] + (settings["axis"] >= 0)
            step = functools.partial(self._called, keras.ops.take, indices=np.asarray(rows), axis=axis)
        elif kind == "Transpose" and settings["axes"] is not None:
            axes = (0, *(axis % len(shape) + 1 for axis in settings["axes"]))
            step = functools.partial(self._called, keras.ops.transpose, axes=axes)
        elif kind in ("Reshape", "ExpandDims", "Squeeze"):
            step = functools.partial(self._called, keras.ops.reshape, newshape=(-1, *shape))
        else:
            raise UntraceableError(f"{kind} of a variable of its own")
        return dataclasses.replace(own, steps=(*own.steps, step), shape=shape)

    def _with_numbers(self, own: _Own, record: Any) -> Any:
        """A function of each number of a variable, or its sum, product and the like with numbers."""
        output = record.output_tensors[0]
        if type(record.operation).__name__ in ("Cast", "ConvertToTensor") and output.dtype == own.variable.dtype:
            return own
        shape = tuple(output.shape)
        if len(own.shape if own.steps else own.value.shape) != len(shape):
            raise UntraceableError("a variable of its own is joined with numbers of more axes")

        def step(tensor: Any) -> list[Any]:
            arguments, keywords = record.arguments.convert(
                lambda x: tensor if isinstance(x, keras.KerasTensor) else of_one(x, len(shape))
            )
            return self._called(record.operation, *arguments, **keywords)

        if not any(has_batch(x) for x in numbers_of(record)):
            return dataclasses.replace(own, steps=(*own.steps, step), shape=shape)
        (made,) = step(self._tensor(own, len(shape), shape[0] // BATCH))  # ones for each example, mostly
        return made

    def _with_weights(self, record: Any, kind: str, own: Sequence[bool]) -> keras.Layer | None:
        """A layer that does what an operation on a tensor and a variable does, with that as its weights, or None."""
        variable, x = (record.input_tensors[own.index(is_own)] for is_own in (True, False))
        settings, options = vars(record.operation), self._options(self._values[id(variable)].variable)
        if kind == "Einsum":
            read, _, made = settings["subscripts"].replace(" ", "").partition("->")
            rows, weights = (read.split(",")[own.index(is_own)] for is_own in (False, True))
            examples = "..." if rows.startswith("...") else rows[:1]
            if examples in weights or not made.startswith(examples):
                return None
            sizes = record.output_tensors[0].shape[-len(made.removeprefix(examples)) :]
            return keras.layers.EinsumDense(f"{rows},{weights}->{made}", sizes, **options)
        if own == [True, False]:
            by_rows = kind == "Take" and settings["axis"] == 0 and len(variable.shape) == 2
            return keras.layers.Embedding(*variable.shape, **_renamed(options, "embeddings")) if by_rows else None
        if kind in ("Matmul", "Dot", "Tensordot") and len(variable.shape) == 2:
            along = settings.get("axes", 1)
            if along == 1 or np.array_equal(along, [[len(x.shape) - 1], [0]]) or np.array_equal(along, [[-1], [0]]):
                return keras.layers.Dense(variable.shape[1], use_bias=False, **options)
        if kind in ("Conv", "DepthwiseConv"):
            return _convolution(record.operation, kind, variable.shape, options)
        return None

    def _options(self, variable: Any) -> dict[str, Any]:
        policy = self._layer.dtype_policy
        return {"name": variable.name, "kernel_regularizer": variable.regularizer, "dtype": policy}

    def _with_kernel(self, layer: keras.Layer, x: Any, own: _Own, value: np.ndarray | None = None) -> list[Any]:
        """The output of a layer whose weights are a variable; of the one made of it before, if it is the same."""
        variable, value = own.variable, own.weights if value is None else value
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

    def _tensor(self, own: _Own, rank: int, times: int = 1) -> Any:
        """The variable for each example, to be joined with tensors of this rank that have `times` as many."""
        if own.why:
            raise UntraceableError(own.why)
        if own.steps:
            tensor = self._tensor(_Own(own.variable, own.value[None]), own.value.ndim + 1, times)
            for step in own.steps:
                (tensor,) = step(tensor)
            shape = (1,) * (rank - len(own.shape)) + own.shape
            if len(shape) != rank or shape[0] != 1:
                raise UntraceableError("a variable of its own differs between examples")
            return self._called(keras.ops.reshape, tensor, (-1, *shape[1:]))[0] if own.shape != shape[1:] else tensor
        shape = (1,) * (rank - own.value.ndim) + own.value.shape
        if rank < 2 or len(shape) != rank or shape[0] != 1:
            raise UntraceableError("a variable of its own differs between examples")
        key = id(own.variable), times
        if key not in self._tensors or tuple(self._tensors[key].shape[1:]) != shape[1:]:
            one = self._called(keras.ops.repeat, self._one, times, axis=0)[0] if times > 1 else self._one
            value = own.value.reshape(shape[1:])
            made = self._made.get(id(own.variable))
            if made and made.value.shape[1:] != value.shape and _differ_in_ones(made.value, value):
                (tensor,) = self._called(made.layer, one)
                (self._tensors[key],) = self._called(keras.ops.reshape, tensor, (-1, *value.shape))
                return self._tensors[key]
            axes = "abcdefgh"[: value.ndim]
            layer = keras.layers.EinsumDense(f"zy,y{axes}->z{axes}", value.shape, **self._options(own.variable))
            (self._tensors[key],) = self._with_kernel(layer, one, own, value[None])
        return self._tensors[key]


def _convolution(operation: Any, kind: str, kernel: Sequence[int], options: dict[str, Any]) -> keras.Layer | None:
    """A layer that does what an operation of keras.ops does with a kernel of this shape."""
    if operation.data_format == "channels_first":
        return None
    *sizes, _, made = kernel
    windows = {key: getattr(operation, key) for key in ("strides", "padding", "dilation_rate")}
    made_as = getattr(keras.layers, f"{kind}{len(sizes)}D")
    if kind == "Conv":
        return made_as(made, sizes, use_bias=False, **windows, **options)
    return made_as(sizes, depth_multiplier=made, use_bias=False, **windows, **_renamed(options, "depthwise"))


def _differ_in_ones(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether arrays are the same but for axes of one number."""
    return np.array_equal(np.squeeze(one), np.squeeze(other))


def _one(sizes: Any) -> Any:
    """One number in place of equal ones."""
    return sizes[0] if isinstance(sizes, list | tuple) and len(set(sizes)) == 1 else sizes


def _renamed(options: dict[str, Any], weights: str) -> dict[str, Any]:
    """Options of a layer that has another name for its kernel."""
    return {key.replace("kernel", weights): value for key, value in options.items()}
