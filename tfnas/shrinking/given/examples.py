"""A user's training examples in any form that Keras accepts, as endless batches for `fit`.

The batches of arrays and of a PyDataset are functions of (seed, epoch, position), so that a training that resumes sees
what it would have seen. Of a tf.data.Dataset they are what it gives, and of a generator what comes next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError, brief
from tfnas.data import inputs

_BATCH_SIZE = 128
_LEAST_BATCHES = 10  # of arrays, in an epoch


class Batches:
    """Endless training batches, (inputs, labels) or (inputs, labels, sample weights).

    Args:
        data: a tuple of arrays or of structures of arrays; a `tf.data.Dataset` of batches; a `keras.utils.PyDataset`; a
            list of batches; or a generator of batches.
        batch_size: of arrays; None: 128, or a tenth of the examples if that is less.
        steps_per_epoch: batches in an epoch; None: all. Needed where their number is not known.
        seed: of the order.

    Attributes:
        first: one batch, as NumPy arrays.
        steps: batches in an epoch.
        num_examples: examples in an epoch.

    Raises:
        UserError: for data of another form, without labels or without an example, or batches of unknown number.
    """

    def __init__(self, data: Any, batch_size: int | None, steps_per_epoch: int | None, seed: int):
        self._seed, self._workers, self._ended = seed, 1, lambda: None
        self._number: int | None = None  # batches that there are
        self._shuffles = True  # whole batches; of arrays, the examples are
        self._source: tf.data.Dataset | None = None
        self._endless: Iterator[Any] | None = None  # a generator
        if isinstance(data, tuple):
            self._of_arrays(data, batch_size)
        elif isinstance(data, tf.data.Dataset):
            self._of_dataset(data)
        elif isinstance(data, keras.utils.PyDataset):
            self._fetch: Callable[[Any], Any] = data.__getitem__
            self._workers, self._ended, self._number = max(1, data.workers), data.on_epoch_end, data.num_batches
            self.first = _batch(data[0])
        elif isinstance(data, list) and data:
            self._fetch, self._number, self.first = data.__getitem__, len(data), _batch(data[0])
        elif isinstance(data, Iterable) and not isinstance(data, str | dict | list | np.ndarray | tf.Tensor):
            endless = iter(data)
            self.first = _batch(next(endless, None))
            self._endless = itertools.chain([self.first], endless)
        else:
            raise UserError(
                "shrink: train must be a tuple of arrays (inputs, labels), or a data set, PyDataset or generator of "
                f"such batches. Received: {brief(data)}"
            )
        if self._number == 0:
            raise UserError("shrink: train has no batch")
        given = self._number if steps_per_epoch is None else steps_per_epoch
        if given is None or given < 1:
            raise UserError(
                "shrink: steps_per_epoch must be at least 1, and is needed for train that does not say how many "
                f"batches it has. Received: {steps_per_epoch}"
            )
        self.steps = int(given)
        size = len(keras.tree.flatten(self.first[0])[0])
        self.num_examples = self.steps * size
        if isinstance(data, tuple) and self.steps == self._number:
            self.num_examples = len(keras.tree.flatten(data)[0])

    def _of_arrays(self, data: tuple[Any, ...], batch_size: int | None) -> None:
        arrays = _labeled(inputs.arrays(data, "shrink: train"))
        count = len(keras.tree.flatten(arrays)[0])
        size = batch_size or max(1, min(_BATCH_SIZE, count // _LEAST_BATCHES))
        if not 0 < size <= count:
            raise UserError(f"shrink: batch_size must be from 1 to the {count} examples. Received: {batch_size}")
        self._number = count // size
        orders: dict[int, np.ndarray] = {}

        def fetch(place: Any) -> Any:
            epoch, position = divmod(int(place), self._number or 1)
            if epoch not in orders:
                orders.clear()
                orders[epoch] = np.random.default_rng([self._seed, epoch, 1]).permutation(count)
            rows = orders[epoch][position * size : (position + 1) * size]
            return keras.tree.map_structure(lambda x: x[rows], arrays)

        self._fetch, self._shuffles = fetch, False
        self.first = _batch(keras.tree.map_structure(lambda x: x[:size], arrays))

    def _of_dataset(self, data: tf.data.Dataset) -> None:
        cardinality = int(data.cardinality())
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            cardinality = sum(1 for _ in data)
        self._number = None if cardinality == tf.data.INFINITE_CARDINALITY else cardinality
        found = next(iter(data.take(1)), None)
        self.first = _batch(None if found is None else keras.tree.map_structure(lambda x: x.numpy(), found))
        self._source = data.repeat()

    def dataset(self, epoch: int = 0) -> tf.data.Dataset:
        """Endless batches from the beginning of an epoch, counted from 0, as tensors."""
        if self._source is not None:
            return self._source
        if (endless := self._endless) is not None:
            specs = keras.tree.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), self.first)
            return tf.data.Dataset.from_generator(lambda: _next(endless), output_signature=specs)
        places = tf.data.Dataset.from_generator(
            lambda: self._places(epoch), output_signature=tf.TensorSpec((), tf.int64)
        )
        load = loader(self.first, lambda place: _batch(self._fetch(place)))
        return places.map(load, num_parallel_calls=self._workers, deterministic=True).prefetch(2)

    def _places(self, epoch: int) -> Iterator[int]:
        number = self._number or 1
        if not self._shuffles:
            yield from itertools.count(epoch * self.steps)
        # An epoch may take fewer or more than all batches.
        place = epoch * self.steps
        while True:
            epochs, position = divmod(place, number)
            order = np.random.default_rng([self._seed, epochs, 1]).permutation(number)
            for i in order[position:]:
                yield int(i)
                place += 1
            self._ended()


def loader(like: Any, fetch: Callable[[Any], Any]) -> Callable[[tf.Tensor], Any]:
    """A function for `tf.data.Dataset.map` that calls a Python function.

    Args:
        like: a structure of arrays, without lists.
        fetch: from a number to such a structure, with any number of rows.
    """
    flat = [np.asarray(x) for x in keras.tree.flatten(like)]

    def arrays(place: Any) -> list[np.ndarray]:
        return [np.asarray(x, a.dtype) for x, a in zip(keras.tree.flatten(fetch(place)), flat, strict=True)]

    def load(place: tf.Tensor) -> Any:
        tensors = tf.numpy_function(arrays, [place], [x.dtype for x in flat])
        for tensor, x in zip(tensors, flat, strict=True):
            tensor.set_shape((None, *x.shape[1:]))
        return keras.tree.pack_sequence_as(like, tensors)

    return load


def _next(endless: Iterator[Any]) -> Iterator[Any]:
    """Yields what a generator gives next. Raises UserError once it has ended."""
    count = 0
    for item in endless:
        count += 1
        yield _batch(item)
    raise UserError(
        f"shrink: train ended after {count} more batches: a generator must give steps_per_epoch batches for "
        "every epoch, and some for statistics and gradients"
    )


def _batch(item: Any) -> Any:
    """A batch with its labels, as a tuple, without missing weights."""
    if not isinstance(item, tuple | list) or not item:
        raise UserError(f"shrink: train must give batches (inputs, labels). Received: {brief(item)}")
    return keras.tree.map_structure(np.asarray, tuples(_labeled(tuple(item))))


def tuples(nested: Any) -> Any:
    """The structure with tuples in place of lists, which tf.data would take for tensors."""
    if isinstance(nested, dict):
        return {name: tuples(part) for name, part in nested.items()}
    return tuple(map(tuples, nested)) if isinstance(nested, tuple | list) else nested


def _labeled(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    given = tuple(part for part in parts if part is not None)
    if not 2 <= len(given) <= 3:
        raise UserError(
            f"shrink: train must have inputs and labels, and may have sample weights. Received: {len(given)} of them"
        )
    return given
