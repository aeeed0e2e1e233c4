"""Packs all arrays that a program is given for one architecture into two tensors.

Given one by one, the hundreds of small arrays of a network would take longer to hand over than to compute with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_INTEGERS = (tf.bool, tf.int32)


class Packing:
    """Packs arrays of some signature, and unpacks them in a program.

    Args:
        signature: a structure of tf.TensorSpec: float32 of any shape, of which the unknown axes are taken from the
            arrays; bool or int32 scalars; int32 vectors.
    """

    def __init__(self, signature: Any):
        self._signature = signature
        specs = tf.nest.flatten(signature)
        self._numbers = [k for k, spec in enumerate(specs) if spec.dtype == tf.float32]
        self._vectors = [k for k, spec in enumerate(specs) if spec.dtype == tf.int32 and spec.shape.rank]
        self._scalars = [k for k, spec in enumerate(specs) if spec.dtype in _INTEGERS and not spec.shape.rank]
        self._axes = [(k, axis) for k in self._numbers for axis, size in enumerate(specs[k].shape) if size is None]
        self._specs = specs

    @property
    def signature(self) -> list[tf.TensorSpec]:
        """Returns the signature of the packed tensors: numbers, float32, and integers, int32."""
        return [tf.TensorSpec((None,)), tf.TensorSpec((None,), tf.int32)]

    def pack(self, arrays: Any) -> list[tf.Tensor]:
        """Returns the packed tensors of a structure of arrays like the signature."""
        flat = tf.nest.flatten(arrays)
        # Sizes come first, at places that do not depend on them.
        heads = [
            *[flat[k].size for k in self._numbers],
            *[flat[k].size for k in self._vectors],
            *[int(flat[k]) for k in self._scalars],
            *[flat[k].shape[axis] for k, axis in self._axes],
        ]
        integers = np.concatenate([np.array(heads, np.int32), *[flat[k] for k in self._vectors]])
        numbers = np.concatenate([np.zeros(0, np.float32), *[flat[k].ravel() for k in self._numbers]])
        return [tf.constant(numbers, tf.float32), tf.constant(integers, tf.int32)]

    def unpack(self, packed: Any) -> Any:
        """Returns the structure of tensors; may be traced."""
        numbers, integers = packed
        counts = [len(self._numbers), len(self._vectors), len(self._scalars), len(self._axes)]
        heads = sum(counts)
        sizes, lengths, scalars, axes = tf.split(integers[:heads], counts)
        flat: list[Any] = [None] * len(self._specs)
        unknown = dict(zip(self._axes, tf.unstack(axes), strict=True))
        for k, part in zip(self._numbers, _split(numbers, sizes, counts[0]), strict=True):
            shape = self._specs[k].shape
            if shape.rank != 1:
                part = tf.reshape(part, [unknown[k, axis] if n is None else n for axis, n in enumerate(shape)])
            flat[k] = tf.ensure_shape(part, shape)
        for k, part in zip(self._vectors, _split(integers[heads:], lengths, counts[1]), strict=True):
            flat[k] = part
        for k, scalar in zip(self._scalars, tf.unstack(scalars), strict=True):
            flat[k] = tf.cast(scalar, self._specs[k].dtype)
        return tf.nest.pack_sequence_as(self._signature, flat)


def _split(values: tf.Tensor, sizes: tf.Tensor, count: int) -> list[tf.Tensor]:
    return tf.split(values, sizes, num=count) if count else []
