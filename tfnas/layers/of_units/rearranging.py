"""Layers and operations that put numbers elsewhere, or reduce other axes: which channel goes where is found by trying.

Every number of an array is its channel; what the call makes of it shows which channel of the input each output channel
holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Computation, Node, WholeComputation
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.records import Builder, Channels, Folded, State, Value

_MOVES = frozenset(
    "Transpose Permute Squeeze ExpandDims Swapaxes Moveaxis Flip Roll Repeat RepeatVector Tile Pad Stack Unstack "
    "Concatenate Split GetItem Take Copy Reshape".split()
)
_REDUCTIONS = frozenset("Mean Sum Max Min Amax Amin Std Var Norm".split())
_OVER_SPACE = frozenset("AdaptiveAveragePool AdaptiveMaxPool AveragePool MaxPool Resize CropImages PadImages".split())
_MOST_NUMBERS = 2**26  # of an array that is tried
_UNKNOWN = 3  # stands for an axis of unknown size


class Rearranged(Node):
    """Channels stay channels in their order, in each of its inputs; other axes change."""

    full_output = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        kind = type(layer).__name__
        if kind in _REDUCTIONS and len(record.input_tensors) == 1:
            rank = len(record.input_tensors[0].shape)
            axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
            return None not in axes and not {axis % rank for axis in axes} & {0, rank - 1}
        if isinstance(layer, keras.layers.Softmax | keras.layers.Resizing):
            over = np.atleast_1d(getattr(layer, "axis", 1)).tolist()
            rank = len(record.input_tensors[0].shape)
            return not called.masked and not {axis % rank for axis in over} & {0, rank - 1}
        if kind in _OVER_SPACE and not isinstance(layer, keras.Layer):
            return layer.data_format != "channels_first" and getattr(layer, "fill_value", 0) == 0
        if kind not in _MOVES:
            return False
        channels = moves(called)
        size = record.output_tensors[called.output].shape[-1]
        as_wide = all(tensor.shape[-1] == size for tensor in called.inputs)
        return as_wide and channels is not None and all(np.array_equal(found, np.arange(size)) for found in channels)

    @property
    def zero_to_zero(self) -> bool:
        return not isinstance(self.inner, keras.layers.Softmax)

    def state(self, sources: Sequence[State], kept: Any) -> State:
        depends, explicit = (np.any([getattr(x, name) for x in sources], axis=0) for name in ("depends", "explicit"))
        return State(depends, explicit, np.zeros(self.num_channels, bool))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [live for _ in self.inputs]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.live)

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        tensors = [build.gather(source, self.given(x, j)) for j, source in enumerate(sources)]
        if type(self.inner).__name__ != "Reshape":
            return self.rebuilt(build, tensors)
        channels = tensors[0].shape[-1]
        if isinstance(self.inner, keras.Layer):
            return self.rebuilt(build, tensors, target_shape=(*self.inner.target_shape[:-1], channels))
        return build.operation(keras.ops.reshape, tensors[0], (*self.inner.newshape[:-1], channels))


class Selected(Channelwise):
    """Some channels: a slice along channels, one of the parts of a split, or those that an array names."""

    carries = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        kind = type(layer).__name__
        found = moves(called) if kind in ("GetItem", "Split", "Take") else None
        if found is None:
            return False
        rank = len(record.input_tensors[0].shape)
        if len(record.output_tensors[0].shape) != rank:
            return False
        along = isinstance(_last(_key(called), rank), slice) if kind == "GetItem" else layer.axis in (-1, rank - 1)
        return along and bool((found[0] >= 0).all()) and np.unique(found[0]).size == found[0].size

    @property
    def _channels(self) -> np.ndarray:
        found = moves(self.called)
        return found[0] if found else np.zeros(0, int)

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return State(*(part[self._channels] for part in (x.depends, x.explicit, x.zero)))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        read = np.zeros(self.input_channels[0], bool)
        read[self._channels[live]] = True
        return [read]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return self._channels[x.live]

    def ties(self, j: int) -> np.ndarray | None:
        return self._channels

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        tensor = build.gather(sources[0], self.given(x, 0))
        if type(self.inner).__name__ != "GetItem":
            return tensor
        key = _key(self.called)
        key = (*key[:-1], slice(None)) if _last(key, len(tensor.shape)) is key[-1] else key
        return build.operation(lambda tensor: tensor[key], tensor)

    @property
    def computation(self) -> type[Computation]:
        return WholeComputation


class Regrouped(Node):
    """A Reshape to other channels: with a common divisor g of both numbers, those of one remainder by g are a unit."""

    full_output = False
    holds_more = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if type(layer).__name__ != "Reshape":
            return False
        before, after = (x[0].shape[1:] for x in (record.input_tensors, record.output_tensors))
        fixed = len(before) and None not in before and None not in after and math.prod(before) == math.prod(after)
        return bool(fixed) and math.gcd(before[-1], after[-1]) > 1

    @property
    def zero_to_zero(self) -> bool:
        return True

    @property
    def _divisor(self) -> int:
        return math.gcd(self.num_channels, self.input_channels[0])

    def _spread(self, channels: np.ndarray, size: int) -> np.ndarray:
        """Returns which of `size` channels have a remainder that any of these has, bool."""
        there = channels.reshape(-1, self._divisor).any(axis=0)
        return np.tile(there, size // self._divisor)

    def together(self, j: int | None) -> np.ndarray | None:
        size = self.num_channels if j is None else self.input_channels[j]
        return np.arange(size) % self._divisor if size > self._divisor else None

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels) % self._divisor

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        depends, explicit = (self._spread(part, self.num_channels) for part in (x.depends, x.explicit))
        return State(depends, explicit, np.zeros(self.num_channels, bool))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [self._spread(live, self.input_channels[0])]

    def held(self, live: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self._spread(live, self.num_channels))

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(*self.read(x.live))

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        tensor, channels = build.gather(sources[0], self.given(x, 0)), int(self.held(x.live).size)
        if isinstance(self.inner, keras.Layer):
            return self.rebuilt(build, [tensor], target_shape=(*self.spatial, channels))
        return build.operation(keras.ops.reshape, tensor, (-1, *self.spatial, channels))


class Shuffle:
    """Channels of several groups that change places: the first of each group, then the second of each, and so on.

    Called like an operation of Keras, on a tensor of shape (N, ..., C) of known sizes. It is a Reshape, a Transpose and
    a Reshape, and fast because of that: channels that are taken one by one cost more than what reads them.

    Args:
        groups: their number; divides C.
        name: of the operation.
    """

    def __init__(self, groups: int, name: str):
        self.groups, self.name = groups, name

    def __call__(self, x: Any) -> Any:
        """The same channels in another order, shape (N, ..., C)."""
        *sizes, channels = x.shape[1:]
        axes = range(len(sizes) + 1)
        x = keras.ops.reshape(x, (-1, *sizes, self.groups, channels // self.groups))
        x = keras.ops.transpose(x, (*axes, len(axes) + 1, len(axes)))
        return keras.ops.reshape(x, (-1, *sizes, channels))


class Shuffled(Node):
    """A `Shuffle`: channels that have the same place in every group are a unit, so that groups stay equally large."""

    full_output = False
    holds_more = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return isinstance(layer, Shuffle)

    @property
    def zero_to_zero(self) -> bool:
        return True

    @property
    def _size(self) -> int:
        """Number of channels in a group."""
        return self.num_channels // int(self.inner.groups)

    def _order(self) -> np.ndarray:
        """The input channel that each output channel holds."""
        return np.arange(self.num_channels).reshape(self.inner.groups, self._size).T.reshape(-1)

    def _in_all(self, channels: np.ndarray) -> np.ndarray:
        """Which input channels have a place that any of these has in its group, bool."""
        return np.tile(channels.reshape(self.inner.groups, self._size).any(axis=0), self.inner.groups)

    def together(self, j: int | None) -> np.ndarray | None:
        places = np.arange(self.num_channels) % self._size
        return places if j is not None else places[self._order()]

    def ties(self, j: int) -> np.ndarray | None:
        return self._order()

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        depends, explicit = (self._in_all(part)[self._order()] for part in (x.depends, x.explicit))
        return State(depends, explicit, np.zeros(self.num_channels, bool))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        read = np.zeros(self.num_channels, bool)
        read[self._order()[live]] = True
        return [self._in_all(read)]

    def held(self, live: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self.read(live)[0][self._order()])

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(self.read(x.live)[0])

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        return self.inner(build.gather(sources[0], self.given(x, 0)))


def moves(called: Call) -> list[np.ndarray] | None:
    """Channels of each input that the output channels of a call hold, int, shape (C,) each; -1 for none.

    None where an output channel holds several, where examples of the batch are mixed, or where zeros give other
    numbers.
    """
    if "moves" not in called.found:
        called.found["moves"] = _moves(called)
    moved: list[np.ndarray] | None = called.found["moves"]
    return moved


def _moves(called: Call) -> list[np.ndarray] | None:
    record = called.record
    found: list[np.ndarray] = []
    if type(record.operation).__name__ == "Reshape":
        channels, after = (x[0].shape[-1] for x in (record.input_tensors, record.output_tensors))
        if channels == after:  # whatever becomes of the other axes: frames may become examples
            return [np.arange(channels)]
    shapes = [[2, *(size or _UNKNOWN for size in tensor.shape[1:])] for tensor in called.inputs]
    if not shapes or any(len(shape) < 2 or math.prod(shape) > _MOST_NUMBERS for shape in shapes):
        return None
    zeros = [np.zeros(shape, "float32") for shape in shapes]
    for j, shape in enumerate(shapes):
        channels = shape[-1]
        given = [*zeros[:j], _numbered(shape), *zeros[j + 1 :]]
        try:
            output = np.asarray(called.again(record.operation, given))
        except Exception:  # sizes that stand for unknown ones do not fit
            return None
        if output.ndim < 2 or len(output) != 2 or output.shape[-1] != record.output_tensors[called.output].shape[-1]:
            return None
        if not output.size:  # an empty part of a split
            found.append(np.zeros(0, int))
            continue
        one, other = output.reshape(2, -1, output.shape[-1])
        if not np.array_equal(np.where(one > 0, one + channels, 0), other) or (one > channels).any():
            return None
        most = one.max(axis=0, initial=0)
        if not ((one == most) | (one == 0)).all():
            return None
        found.append(most.astype(int) - 1)
    return found


def layout(called: Call) -> tuple[int, int] | None:
    """The axes in which a call's output has the examples and the channels of its only input; (0, the last) for most.

    None where one of them is not an axis of its own, or the call does more than to put numbers elsewhere.
    """
    if "layout" not in called.found:
        called.found["layout"] = _layout(called)
    axes: tuple[int, int] | None = called.found["layout"]
    return axes


def _layout(called: Call) -> tuple[int, int] | None:
    if len(called.inputs) != 1 or type(called.record.operation).__name__ not in _MOVES - {"Reshape", "Pad"}:
        return None
    shape = [2, *(size or _UNKNOWN for size in called.inputs[0].shape[1:])]
    if len(shape) < 2 or math.prod(shape) > _MOST_NUMBERS or shape[-1] < 2:
        return None
    try:
        output = np.asarray(called.again(called.record.operation, [_numbered(shape)]))
    except Exception:  # sizes that stand for unknown ones do not fit
        return None
    examples, channels = np.divmod(output.astype(int) - 1, shape[-1])

    def axis_of(numbers: np.ndarray, size: int) -> list[int]:
        axes = [axis for axis in range(numbers.ndim) if numbers.shape[axis] == size]
        return [axis for axis in axes if (np.moveaxis(numbers, axis, -1) == np.arange(size)).all()]

    found = axis_of(examples, 2), axis_of(channels, shape[-1])
    return (found[0][0], found[1][0]) if all(found) else None


def _numbered(shape: Sequence[int]) -> np.ndarray:
    """Two examples whose numbers are those of their channels, from 1 on in the first and further on in the second."""
    first = np.broadcast_to(np.arange(1, shape[-1] + 1, dtype="float32"), shape[1:])
    return np.stack([first, first + shape[-1]])


def _key(called: Call) -> tuple[Any, ...]:
    """The key of `x[key]`."""
    arguments = called.record.arguments
    key = arguments.kwargs["key"] if "key" in arguments.kwargs else arguments.args[1]
    return tuple(key) if isinstance(key, list | tuple) else (key,)


def _last(key: Any, rank: int) -> Any:
    """Returns what a key of `x[key]` has for the last axis of a tensor of this rank, or a slice of all of it."""
    taken = [part for part in key if part is not None and part is not Ellipsis]
    to_last = len(taken) == rank or (any(part is Ellipsis for part in key) and key[-1] is not Ellipsis)
    return key[-1] if to_last else slice(None)
