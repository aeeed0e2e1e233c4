"""Sums, products, filters and the like of a tensor and an array of numbers, such as `x + sinusoids` of positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Computation, WholeComputation
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.merging import MERGES
from tfnas.layers.pointwise import is_zero_at_zero
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class WithArray(Channelwise):
    """Channels are those of the tensor; the array has a number for each of them, or one for all."""

    carries = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if isinstance(layer, keras.Layer) or type(layer).__name__ not in MERGES or len(record.input_tensors) != 1:
            return False
        (x,), (output,) = record.input_tensors, record.output_tensors
        array = _array(record)
        if array is None or len(output.shape) != len(x.shape) or output.shape[-1] != x.shape[-1]:
            return False
        if _may_be_taken_for_bias(layer, array):
            return False
        return array.ndim < len(x.shape) or array.shape[0] == 1  # the same for each example

    @functools.cached_property
    def zero_to_zero(self) -> bool:
        sizes = np.shape(_array(self.called.record))[:-1]
        zeros = np.zeros((*sizes, self.num_channels), "float32")
        return is_zero_at_zero(lambda _: self.call(self.inner, [zeros]))

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        zero = x.zero & self.zero_to_zero
        return State(x.depends, x.explicit | ~zero, zero)

    def constants(self, x: Folded) -> Any:
        return np.float32(0)  # what is not zero is explicit behind it

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.live)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        channels = np.flatnonzero(x.live)
        tensor = build.gather(sources[0], channels)

        def its_part(value: Any) -> Any:
            if isinstance(value, keras.KerasTensor):
                return tensor
            return value if np.ndim(value) == 0 else self._part(np.asarray(value), channels)

        arguments, keywords = self.called.record.arguments.convert(its_part)
        return self.inner(*arguments, **keywords)

    def _part(self, array: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """The numbers of some channels."""
        return array if array.shape[-1] == 1 else array[..., channels]

    @property
    def computation(self) -> type[Computation]:
        return WholeComputation


class Filtered(WithArray):
    """`keras.ops.depthwise_conv` with a kernel of numbers, one filter a channel: blurring before pooling, say."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if type(layer).__name__ != "DepthwiseConv" or len(record.input_tensors) != 1:
            return False
        array = _array(record)
        return layer.data_format != "channels_first" and array is not None and array.shape[-1] == 1

    @property
    def zero_to_zero(self) -> bool:
        return True

    def _part(self, array: np.ndarray, channels: np.ndarray) -> np.ndarray:
        return array[..., channels, :]


def _may_be_taken_for_bias(operation: Any, array: np.ndarray) -> bool:
    """Whether Keras may add an array along the channels that is for another axis.

    With TensorFlow, `add` does so where the channels are as many as the array's numbers, as they may be after a cut.
    """
    return type(operation).__name__ == "Add" and array.shape[-1] == 1 and sum(size > 1 for size in array.shape) == 1


def _array(record: Any) -> Any:
    """The only array that a call was given; None if there is none, or another argument besides."""
    flat = keras.tree.flatten((record.arguments.args, record.arguments.kwargs))
    others = [x for x in flat if not isinstance(x, keras.KerasTensor)]
    return np.asarray(others[0]) if len(others) == 1 and np.ndim(others[0]) else None
