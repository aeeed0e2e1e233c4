"""Converts examples in any form that Keras accepts to arrays in the order of the model's inputs.

Keras's own rules decide what fits a model: dictionaries are read by name, numbers are cast to the input's dtype, and a
missing last axis of size one is added. Single examples are distinguished from batches first, which Keras does not do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError, add_filename, brief, plain_message, unwrap_user_errors

BATCH_SIZE = 250  # examples read at a time if the data is not batched


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples as arrays.

    Attributes:
        inputs: one array for each of the model's inputs, in the order of `model.inputs`, shape (N, ...).
        labels: a structure of arrays, shape (N, ...) each.
        weights: sample weights, likewise, or None.
    """

    inputs: list[np.ndarray]
    labels: Any
    weights: Any = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: Any) -> Examples:
        """Selects examples by index, as NumPy indexes the first axis."""

        def taken(array: np.ndarray) -> np.ndarray:
            return array[indices]

        weights = None if self.weights is None else keras.tree.map_structure(taken, self.weights)
        return Examples([taken(x) for x in self.inputs], keras.tree.map_structure(taken, self.labels), weights)


def read(data: Any, model: keras.Model, caller: str) -> Examples:
    """Reads labeled examples once, into memory-mapped temporary files.

    Args:
        data: a tuple (inputs, labels) or (inputs, labels, sample weights) of arrays or structures of arrays; or a
            `tf.data.Dataset` of such tuples, batched or not, a `keras.utils.PyDataset`, or a generator or other
            finite iterable.
        model: functional model that takes the inputs.
        caller: prefix of error messages.

    Raises:
        UserError: if there are no examples or no labels, or they do not fit the model or differ in shape.
    """

    def labeled() -> Iterator[dict[str, Any]]:
        for inputs, labels, weights in _batches(data, model, caller):
            if labels is None:
                hint = (
                    ", from a list, which is read as a list of batches: pass a tuple" if isinstance(data, list) else ""
                )
                raise UserError(f"{caller}: expected (inputs, labels). Received: inputs only{hint}")
            batch = {"inputs": [x.numpy() for x in inputs], "labels": labels, "weights": weights}
            yield {key: part for key, part in batch.items() if part is not None}

    kept = _in_files(labeled(), caller)
    if kept is None:
        raise UserError(f"{caller}: expected at least one batch of validation data. Received: none")
    return Examples(**kept)


def read_some(data: Any, model: keras.Model, caller: str, most: int, seed: int) -> Examples:
    """Reads a part of labeled examples: random ones of a tuple of arrays, else the first.

    Args:
        data, model, caller: as of `read`.
        most: number of examples that are read at most.
        seed: of the choice.

    Raises:
        UserError: as `read`.
    """
    if not isinstance(data, tuple):
        return read(_first(_items(data, model, caller), model, most), model, caller)
    arrays = _arrays(data, caller)
    lengths = [len(x) for x in keras.tree.flatten(arrays) if x is not None]
    some = np.random.default_rng(seed).permutation(min(lengths, default=0))[:most]
    if len(set(lengths)) == 1:  # else `read` says so
        arrays = keras.tree.map_structure(lambda x: None if x is None else x[some], arrays)
    return read(arrays, model, caller)


def _first(items: Iterable[Any], model: keras.Model, most: int) -> Iterator[Any]:
    """The first examples of an iterable of batches, or of single examples."""
    left = most
    for item in items:
        parts = item if isinstance(item, tuple) else (item,)
        leaves = keras.tree.flatten(parts[0])
        if not leaves or _is_one(parts[0], model):
            left -= 1
            yield item
        else:
            size = left
            yield keras.tree.map_structure(lambda x, size=size: None if x is None else x[:size], parts)
            left -= len(leaves[0])
        if left <= 0:
            return


def read_inputs(data: Any, model: keras.Model, caller: str, most: int) -> list[np.ndarray]:
    """Reads the inputs of the first examples, into memory-mapped temporary files.

    Args:
        data: as for `one_batch`; of an iterable of batches as many are read as needed.
        model: functional model that takes the inputs.
        caller: prefix of error messages.
        most: number of examples that are read at most.

    Returns:
        One array for each of the model's inputs, in the order of `model.inputs`, shape (N, ...), N <= most.

    Raises:
        UserError: if there are no examples, or they do not fit the model or differ in shape.
    """

    def first() -> Iterator[dict[str, Any]]:
        left = most
        for inputs in _inputs(data, model, caller):
            yield {"inputs": [x.numpy()[:left] for x in inputs]}
            left -= len(inputs[0])
            if left <= 0:
                return

    kept = _in_files(first(), caller)
    if kept is None:
        raise _no_inputs(caller)
    return kept["inputs"]


def _in_files(batches: Iterable[dict[str, Any]], caller: str) -> dict[str, Any] | None:
    """The batches joined, as memory-mapped temporary files; None if there are no examples."""
    count, structure, first = 0, None, []
    with add_filename(tempfile.gettempdir()), contextlib.ExitStack() as stack:
        files: list[Any] = []
        for given in batches:
            batch = _arrays(given, caller)
            arrays = keras.tree.flatten(batch)
            if not files:
                structure, first = batch, arrays
                files = [stack.enter_context(tempfile.TemporaryFile()) for _ in arrays]
            _check_batch(batch, structure, caller)
            count += len(arrays[0])
            for file, array, like in zip(files, arrays, first, strict=True):
                file.write(np.ascontiguousarray(array, like.dtype).data)
        if not count:
            return None
        kept = []
        for file, like in zip(files, first, strict=True):
            file.flush()
            kept.append(np.memmap(file, like.dtype, "r", shape=(count, *like.shape[1:])))
    return keras.tree.pack_sequence_as(structure, kept)


def one_batch(data: Any, model: keras.Model, caller: str) -> list[tf.Tensor]:
    """One batch of inputs, as a list in the order of `model.inputs`.

    Args:
        data: arrays in the structure of the model's inputs, or a tuple of them and labels, as one batch; or a
            `tf.data.Dataset`, batched or not, a `keras.utils.PyDataset`, or a list or other iterable of batches, of
            which the first is used. Labels and sample weights are ignored. A tuple or list of as many arrays as the
            model has inputs is read as the inputs.
        model: functional model that takes the inputs.
        caller: prefix of error messages.

    Raises:
        UserError: if there is no batch, or it does not fit the model.
    """
    for inputs in _inputs(data, model, caller):
        return inputs
    raise _no_inputs(caller)


def _no_inputs(caller: str) -> UserError:
    return UserError(f"{caller}: expected at least one batch of inputs. Received: none")


def _inputs(data: Any, model: keras.Model, caller: str) -> Iterator[list[tf.Tensor]]:
    """Yields the inputs batch by batch, in the model's order; see `one_batch`."""
    several = isinstance(data, tuple | list) and 1 < len(model.inputs) == len(keras.tree.flatten(data))
    if _is_batch(data) or several:
        yield _fitting(model, caller)(data)
    elif isinstance(data, tuple) and data:
        yield _fitting(model, caller)(data[0])
    else:
        for inputs, _, _ in _batches(data, model, caller):
            yield inputs


def _is_batch(data: Any) -> bool:
    """Returns whether data is a single batch of arrays rather than a tuple or an iterable."""
    return isinstance(data, dict | np.ndarray | tf.Tensor) or not isinstance(data, Iterable)


def _batches(data: Any, model: keras.Model, caller: str) -> Iterator[tuple[list[tf.Tensor], Any, Any]]:
    """Yields inputs in the model's order, labels and sample weights, batch by batch."""
    fitted = _fitting(model, caller)
    with unwrap_user_errors():
        for item in _items(data, model, caller):
            inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(item)
            if _is_one(inputs, model):
                inputs, labels, weights = (
                    None if part is None else keras.tree.map_structure(lambda x: np.asarray(x)[None], part)
                    for part in (inputs, labels, weights)
                )
            yield fitted(inputs), labels, weights


def _items(data: Any, model: keras.Model, caller: str) -> Iterable[Any]:
    """Returns an iterable of batches, or of single examples if an iterable is not batched."""
    if isinstance(data, tuple):
        return _slices(data, caller)
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise UserError(f"{caller}: expected finite data. Received: an infinite tf.data.Dataset; use take(n)")
        spec = data.element_spec
        return data.batch(BATCH_SIZE) if _is_one(spec[0] if isinstance(spec, tuple) else spec, model) else data
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise UserError(f"{caller}: expected finite data. Received: a PyDataset without __len__")
        return (data[i] for i in range(data.num_batches))
    if _is_batch(data):
        raise UserError(
            f"{caller}: expected a tuple of arrays (inputs, labels), or a data set of such batches. "
            f"Received: {type(data).__name__}"
        )
    return data


def arrays(data: tuple[Any, ...], caller: str) -> Any:
    """The same structure of dense arrays. Raises UserError unless all have one row per example."""
    found = _arrays(data, caller)
    lengths = {len(x) for x in keras.tree.flatten(found) if x is not None}
    if len(lengths) != 1:
        raise UserError(
            f"{caller}: expected arrays with the same number of examples. Received: {sorted(lengths) or 'none'} "
            "examples"
        )
    return found


def check_batch(inputs: Any, model: keras.Model, caller: str) -> None:
    """Raises UserError unless these are inputs of a batch of examples that fit the model.

    Args:
        inputs: a structure of arrays.
        model: functional model that takes them.
        caller: prefix of error messages.
    """
    if _is_one(inputs, model):
        raise UserError(
            f"{caller}: expected batches. Received: single examples, with inputs of shape {_shapes(inputs)}; batch "
            "them, such as by dataset.batch(32)"
        )
    _fitting(model, caller)(inputs)


def _slices(data: tuple[Any, ...], caller: str) -> Iterator[Any]:
    rows = arrays(data, caller)
    for start in range(0, len(next(x for x in keras.tree.flatten(rows) if x is not None)), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        yield keras.tree.map_structure(lambda x, part=part: None if x is None else x[part], rows)


def _is_one(inputs: Any, model: keras.Model) -> bool:
    """Returns whether these inputs, or their specs, are a single example instead of a batch."""
    given = [getattr(x, "shape", None) for x in keras.tree.flatten(inputs)]
    if len(given) != len(model.inputs) or any(shape is None or shape == tf.TensorShape(None) for shape in given):
        return False

    def is_one(shape: Any, expected: Any) -> bool:
        return len(shape) == len(expected) - 1 and all(
            b is None or a == b for a, b in zip(shape, expected[1:], strict=True)
        )

    return all(any(is_one(tuple(shape), tuple(x.shape)) for x in model.inputs) for shape in given if shape is not None)


def _fitting(model: keras.Model, caller: str) -> Callable[[Any], list[tf.Tensor]]:
    """Returns a function that converts a user's inputs to the model's inputs by Keras's rules."""
    same = keras.Model(model.input, list(model.inputs))

    def fitted(inputs: Any) -> list[tf.Tensor]:
        arrays = _arrays(inputs, caller)
        try:
            found = keras.tree.flatten(same(arrays))
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            expected = keras.tree.map_structure(lambda x: tuple(x.shape), model.input)
            raise UserError(
                f"{caller}: expected inputs of shape {brief(expected)}. Received: {_shapes(arrays)} "
                f"({plain_message(error)})"
            ) from None
        return [tf.cast(x, tf.float32) if x.dtype.is_floating else x for x in found]

    return fitted


def _arrays(nested: Any, caller: str) -> Any:
    return keras.tree.map_structure(lambda x: None if x is None else _array(x, caller), nested)


def _array(value: Any, caller: str) -> np.ndarray:
    """Converts to a dense array of numbers with an axis of examples."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf" and array.dtype != tf.bfloat16.as_numpy_dtype or not array.ndim:
        raise UserError(f"{caller}: expected arrays of numbers with one row per example. Received: {brief(value)}")
    return array


def _check_batch(batch: Any, first: Any, caller: str) -> None:
    """Raises UserError unless a batch has the structure of the first one, and one row per example in every array."""
    try:
        keras.tree.assert_same_structure(batch, first)
    except (ValueError, TypeError):
        raise UserError(
            f"{caller}: expected batches with the same structure. Received: {_shapes(first)}, then {_shapes(batch)}"
        ) from None
    arrays = keras.tree.flatten(batch)
    if len({len(array) for array in arrays}) > 1:
        raise UserError(
            f"{caller}: expected one row per example in every array. Received: arrays of shape {_shapes(batch)}"
        )
    for array, like in zip(arrays, keras.tree.flatten(first), strict=True):
        if array.shape[1:] != like.shape[1:]:
            raise UserError(
                f"{caller}: expected examples of the same shape. Received: {like.shape[1:]}, then {array.shape[1:]}; "
                "resize or pad them"
            )


def _shapes(nested: Any) -> str:
    return brief(keras.tree.map_structure(lambda x: tuple(x.shape), nested))
