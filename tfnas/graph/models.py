"""Models of any kind as functional ones, whose structure can be read."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfnas.common.errors import UserError, add_filename, brief
from tfnas.layers import refuse_unit_gates
from tfnas.layers.of_units import known_sizes, says_less


def as_functional(model: Any, example: Any = None) -> Any:
    """The functional model that a model is; for a subclassed one, a model that calls it.

    Where layers of it say less of their output's shape than is known, a model of the same layers that says it.

    Args:
        model: a Keras model.
        example: inputs, as arrays in the structure that the model takes; needed if it is not built.

    Raises:
        UserError: for what is not a model of Keras 3, a supernet's network, or a model whose inputs' shapes are not
            known.
    """
    refuse_unit_gates(model)
    found = functional(model)
    if found is not None:
        return sized(found)
    if not isinstance(model, keras.Model):
        raise UserError(
            f"a Keras model expected. Received: {brief(model)}; of a file, keras.models.load_model gives it"
        )
    if example is not None:
        arguments = (keras.tree.map_structure(_input_like, example),)
        keywords = {}
    else:
        shapes = getattr(model, "_build_shapes_dict", None)
        if not shapes:
            raise UserError(
                f"model '{getattr(model, 'name', model)}': not built, so the shape of its inputs is not known: call it "
                "on data once, or pass inputs as gate(..., example=...)"
            )
        inputs = {name: _inputs_of(shape) for name, shape in shapes.items()}
        alone = len(inputs) == 1
        arguments = tuple(inputs.values()) if alone else ()
        keywords = {} if alone else {name.removesuffix("_shape"): x for name, x in inputs.items()}
    outputs = model(*arguments, **keywords)
    if (found := functional(model)) is not None:  # a Sequential model, which is built now
        return sized(found)
    return keras.Model(arguments[0] if arguments else keywords, outputs, name=model.name)


def sized(model: Any, shapes: Sequence[Sequence[int | None]] | None = None) -> Any:
    """A functional model, or one of the same layers, in which every size that is known is said.

    Args:
        model: the functional model.
        shapes: of the tensors that it is called on, in the order of its inputs, which may leave open what these have;
            None: those of its inputs.
    """
    own = [tuple(x.shape) for x in model.inputs]
    given = [_completed(*pair) for pair in zip(own, own if shapes is None else shapes, strict=True)]
    if given == own and not any(map(says_less, calls_of(model))):
        return model
    made = [keras.Input(batch_shape=shape, dtype=x.dtype) for shape, x in zip(given, model.inputs, strict=True)]
    inputs = keras.tree.pack_sequence_as(model._inputs_struct, made)
    with known_sizes(), deep():
        outputs = model._run_through_graph(inputs, operation_fn=lambda operation: operation)
        return keras.Model(inputs, outputs, name=model.name)


def _completed(own: Sequence[int | None], given: Sequence[int | None]) -> tuple[int | None, ...]:
    """The shape of an input, with the sizes that it leaves open, but for the batch's, as they are given."""
    if len(own) != len(given):
        return tuple(own)
    return (*own[:1], *(there if size is None else size for size, there in zip(own[1:], given[1:], strict=True)))


def functional(model: Any) -> Any:
    """The functional model that a model is, or None: for a subclassed model, or a Sequential one that is not built."""
    if any(base.__module__.split(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise UserError(
            f"model '{model.name}': a model of tf_keras (Keras 2), and one of Keras 3 is needed: build it again with "
            "Keras 3's layers (import keras), and take its weights: new.set_weights(old.get_weights())"
        )
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_nodes_by_depth") else None


def calls_of(model: Any) -> list[Any]:
    """Keras's records of the calls in a functional model, in topological order."""
    return [call for depth in sorted(model._nodes_by_depth, reverse=True) for call in model._nodes_by_depth[depth]]


def record_of(tensor: Any) -> Any:
    """Keras's record of the call that a symbolic tensor comes from."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def _input_like(array: Any) -> Any:
    array = keras.ops.convert_to_tensor(array)
    return keras.Input(batch_shape=(None, *array.shape[1:]), dtype=keras.backend.standardize_dtype(array.dtype))


def _inputs_of(shapes: Any) -> Any:
    """New inputs for a shape, or a structure of shapes."""
    if isinstance(shapes, dict):
        return {name: _inputs_of(shape) for name, shape in shapes.items()}
    if all(isinstance(size, int | None) for size in shapes):
        return keras.Input(batch_shape=(None, *shapes[1:]))
    return [_inputs_of(shape) for shape in shapes]


def without_optimizer(model: keras.Model) -> keras.Model:
    """The same functional or Sequential model, with the same layers, as it is before it is compiled."""
    network = functional(model)
    with deep():
        return keras.Model(network.input, network.output, name=model.name)


def file_bytes(model: keras.Model) -> int:
    """Bytes of a functional model's `.keras` file, without the optimizer's state."""
    with tempfile.TemporaryDirectory() as folder, add_filename(folder), deep():
        file = pathlib.Path(folder) / "model.keras"
        without_optimizer(model).save(file)
        return file.stat().st_size


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """Lets Keras traverse graphs thousands of layers deep, which it does with one recursive call per layer."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


_DEEPEST = 100_000
