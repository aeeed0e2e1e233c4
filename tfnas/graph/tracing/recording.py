"""Takes composite layers apart: a layer whose `call` is written with Keras layers and operations becomes what it calls.

`call` is run on symbolic tensors, so that Keras records each layer and operation in it. The layer's own variables are
symbolic tensors of their shape meanwhile. What was recorded is then called again on tensors of any batch size. What
depends on anything else cannot be followed: random numbers, values of the input, other behavior in training.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np

from tfnas.graph.tracing.emission import Emission, Made, Run, Traced
from tfnas.graph.tracing.masks import heeds_masks
from tfnas.graph.tracing.records import BATCH, UntraceableError, calls_before, has_batch, numbers_of
from tfnas.graph.tracing.simpler import consists_of
from tfnas.graph.tracing.tensorflow_calls import in_keras, unknown
from tfnas.graph.tracing.tensors import like_tensors
from tfnas.layers.merging import MERGES
from tfnas.layers.of_units import known_sizes

# Of what layers that drop or add at random make their output, for each number by itself.
_POINTWISE = frozenset((*MERGES, "Cast", "Where", "Floor", "Identity", "StopGradient"))


def trace(record: Any, made: dict[int, Made], lengths: Sequence[int]) -> Traced:
    """Takes a call of a layer apart.

    Args:
        record: Keras's, of a call of a built layer.
        made: layers that have been made of variables, by the variable's id; those made now are added, so that calls
            of one layer have them in common.
        lengths: of the inputs, as multiples of the batch's: several for windows of each image.

    Raises:
        UntraceableError: saying why it cannot be.
    """
    layer = record.operation
    if any(not t.shape for t in record.input_tensors):
        raise UntraceableError("an input has no axis of examples")
    if heeds_masks(record):
        raise UntraceableError("it heeds a mask that Keras gives it (mask_zero=True, Masking), or passes one on")
    try:
        first = _run(layer, record, None, lengths)
        if "training" in inspect.signature(layer.call).parameters:
            _check_same(first, _run(layer, record, True, lengths), "it does other things in training")
        # Numbers that are computed on the way are constants only if they do not come from a variable or a generator.
        others = [(v, np.asarray(v) + np.ones((), v.dtype)) for v in layer.variables if v.dtype != "bool"]
        with keras.StatelessScope(others):
            _check_same(
                first, _run(layer, record, None, lengths), "it computes with variables or random numbers by itself"
            )
        if first.is_constant:
            return Traced(tuple(first.inputs), None, tuple(first.outputs), [], [])
        with known_sizes():
            return Emission(record, first, made).traced()
    except UntraceableError:
        raise
    except Exception as error:  # whatever the layer's own code raises when it is given symbolic tensors
        if "input to a TensorFlow function" in str(error):
            raise UntraceableError(f"its `call` uses TensorFlow's '{unknown()}', which cannot be followed") from None
        if "KerasTensor is symbolic" in str(error):
            raise UntraceableError("its `call` looks at values, or uses NumPy") from None
        lines = str(error).strip().splitlines() or [""]
        raise UntraceableError(f"{type(error).__name__}: {lines[0][:120]}") from None


def drops_at_random(record: Any) -> bool:
    """Whether a layer is the identity at inference, and draws random numbers in training for each number by itself.

    So does stochastic depth as most people write it. Such a layer treats each channel by itself, and stays a layer.
    """
    layer = record.operation
    try:
        inference, training = _run(layer, record, None, (1,)), _run(layer, record, True, (1,))
    except Exception:
        return False
    if layer.weights or len(inference.inputs) != 1 or len(inference.outputs) != 1:
        return False
    shape = inference.inputs[0].shape
    is_identity = inference.outputs[0] is inference.inputs[0]

    def by_itself(call: Any) -> bool:
        drawn = [np.shape(number) for number in numbers_of(call) if np.ndim(number)]
        same = all(tensor.shape == shape for tensor in (*call.input_tensors, *call.output_tensors))
        return same and type(call.operation).__name__ in _POINTWISE and all(size[0] == BATCH for size in drawn)

    return is_identity and all(by_itself(call) for call in training.records)


def _run(layer: Any, record: Any, training: bool | None, lengths: Sequence[int]) -> Run:
    sizes = zip(record.input_tensors, lengths, strict=True)
    inputs = [keras.KerasTensor((BATCH * number, *t.shape[1:]), t.dtype) for t, number in sizes]
    stand_ins = iter(inputs)
    arguments, keywords = record.arguments.convert(lambda x: next(stand_ins) if isinstance(x, keras.KerasTensor) else x)
    names = list(inspect.signature(layer.call).parameters)
    given = {**dict(zip(names, arguments, strict=False)), **keywords}
    positional = len(arguments) > len(names)  # *args
    given.pop("training", None)  # Keras notes it even where `call` does not take it
    if "training" in names:
        given["training"] = training
    with (
        known_sizes(),
        in_keras(),
        like_tensors(),
        _own_variables(layer) as variables,
        _layers_need_tensors(variables),
    ):
        call = getattr(layer.call, "python_function", layer.call)  # what tf.function makes a graph of
        made = call(*arguments, **keywords) if positional else call(**given)
    made = [_fixed(x, variables) for x in keras.tree.flatten(made)]
    if made and all(_is_number(x) for x in made) and len(made) == len(record.output_tensors):
        return Run(inputs, [np.asarray(x) for x in made], [True for _ in made], {}, [])
    outputs = [x if isinstance(x, keras.KerasTensor) else None for x in made]
    read = {id(x) for call in layer._outbound_nodes for x in call.input_tensors}
    known = [x is not None or id(y) not in read for x, y in zip(outputs, record.output_tensors, strict=False)]
    if len(outputs) != len(record.output_tensors) or not all(known) or not any(x is not None for x in outputs):
        raise UntraceableError("what it returns is not computed from its inputs")
    records = [simpler for record in calls_before(outputs) for simpler in consists_of(record)]
    is_read = [id(x) in read for x in record.output_tensors]
    return Run(inputs, outputs, is_read, {key: v for key, (v, _) in variables.items()}, records)


def _fixed(value: Any, variables: dict[int, tuple[Any, Any]]) -> Any:
    """An output, or the numbers of the own variable that it is if that is not trained (tables of positions)."""
    own, _ = variables.get(id(value), (None, None))
    return value if own is None or own.trainable else own._value.numpy()


def _is_number(value: Any) -> bool:
    """Whether an output is an array of numbers that is the same for any batch."""
    is_array = isinstance(value, np.ndarray) or (
        keras.ops.is_tensor(value) and not isinstance(value, keras.KerasTensor)
    )
    return is_array and not has_batch(np.asarray(value))


@contextlib.contextmanager
def _own_variables(layer: Any, found: dict[int, tuple[Any, Any]] | None = None) -> Iterator[dict[int, tuple[Any, Any]]]:
    """Lets symbolic tensors stand for the variables that are a layer's attributes, also in lists and dictionaries.

    Args:
        layer: whose.
        found: those of a layer round it, to which its own are added.

    Yields:
        The variable and its tensor, by the id of the tensor.
    """
    found = {} if found is None else found
    tensors = {id(variable): tensor for variable, tensor in found.values()}

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
        if isinstance(layer, keras.layers.Embedding) and id(given[0]) in variables and not within:
            own, _ = variables[id(given[0])]  # such as a variable of positions
            given = given if own.trainable else [own._value.numpy()]
        if within or any(isinstance(x, keras.KerasTensor) for x in given) or not layer.weights:
            try:
                return call(layer, *arguments, **keywords)
            except UntraceableError:
                raise
            except Exception:
                if within or type(layer).__module__.startswith("keras."):
                    raise
                # Keras cannot record it: it returns None besides tensors, or is wrong about what it returns or takes.
                # What it calls is recorded instead.
                taken = inspect.signature(layer.call).parameters
                with _own_variables(layer, variables):
                    return layer.call(*arguments, **{key: x for key, x in keywords.items() if key in taken})
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


def _check_same(one: Run, other: Run, otherwise: str) -> None:
    """Raises UntraceableError unless two runs have recorded the same calls with the same numbers."""

    def calls(run: Run) -> list[tuple[Any, ...]]:
        number = {id(x): i for i, x in enumerate(run.inputs)}
        number |= {key: -i - 1 for i, key in enumerate(run.variables)}
        seen = []
        for record in run.records:
            operation = record.operation
            seen.append((_identity(operation), tuple(number[id(x)] for x in record.input_tensors)))
            number |= {id(x): len(number) + i for i, x in enumerate(record.output_tensors)}
        return [*seen, ("", tuple(number.get(id(x)) for x in run.outputs))]

    def numbers_in(run: Run) -> list[list[Any]]:
        return [run.outputs if run.is_constant else [], *map(numbers_of, run.records)]

    if calls(one) != calls(other):
        raise UntraceableError(otherwise)
    for first, second in zip(numbers_in(one), numbers_in(other), strict=True):
        numbers = zip(first, second, strict=True)
        if any(np.shape(a) != np.shape(b) or not np.array_equal(a, b) for a, b in numbers):
            raise UntraceableError(otherwise)


def _identity(operation: Any) -> Any:
    """Identifies an operation in several runs; a layer without weights may be made anew in each."""
    if not isinstance(operation, keras.Layer):
        return type(operation)
    with contextlib.suppress(NotImplementedError):  # a layer that has no config
        if not operation.weights and not isinstance(operation, keras.layers.Lambda):
            return type(operation), str({**operation.get_config(), "name": None})
    return id(operation)
