"""Symbolic tensors of Keras with what TensorFlow's tensors have besides."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any
from unittest import mock

import keras
import tensorflow as tf


class _Shape(tuple[Any, ...]):
    """A shape with what TensorFlow's shapes have besides."""

    @property
    def rank(self) -> int:
        """Number of its axes."""
        return len(self)

    ndims = rank

    def as_list(self) -> list[Any]:
        """The sizes."""
        return list(self)


class _Type(str):
    """The name of a dtype, with what TensorFlow's dtypes have."""

    @property
    def base_dtype(self) -> tf.DType:
        """TensorFlow's dtype."""
        return tf.as_dtype(str(self))

    @property
    def is_floating(self) -> bool:
        """Whether it is of floating-point numbers."""
        return bool(self.base_dtype.is_floating)


@contextlib.contextmanager
def like_tensors() -> Iterator[None]:
    """Lets symbolic tensors be used as TensorFlow's are: `x[:n]`, numbers of any type, `x.shape.as_list()`.

    So does `keras.backend`, which calls functions of TensorFlow.
    """
    get, shape, dtype = keras.KerasTensor.__getitem__, keras.KerasTensor.shape, keras.KerasTensor.dtype

    def plain(part: Any) -> Any:
        if isinstance(part, slice):
            return slice(*(None if x is None else operator.index(x) for x in (part.start, part.stop, part.step)))
        return part if part is None or part is Ellipsis else operator.index(part)

    def taken(tensor: Any, key: Any) -> Any:
        return get(tensor, tuple(plain(part) for part in (key if isinstance(key, list | tuple) else (key,))))

    def sizes(tensor: Any) -> _Shape:
        return _Shape(tensor._shape)

    with (
        mock.patch.object(keras.KerasTensor, "__getitem__", taken),
        mock.patch.object(keras.KerasTensor, "shape", property(sizes, shape.fset)),
        mock.patch.object(keras.KerasTensor, "get_shape", sizes, create=True),
        mock.patch.object(keras.KerasTensor, "dtype", property(lambda x: _Type(x._dtype), dtype.fset)),
    ):
        yield
