"""Arguments of the rules of families: channels under an architecture, constants, and tools to build a subnet."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError

Weights = Mapping[str, Mapping[str, np.ndarray]]  # by node, and by the variable's name in Keras


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a node's output channels under an architecture, bool, shape (C,) each; see `graph.channels`.

    Attributes:
        depends: which depend on the model's input; a subset of the explicit ones.
        explicit: which have to be computed.
        zero: which of the others are zero whatever the weights.
    """

    depends: np.ndarray
    explicit: np.ndarray
    zero: np.ndarray


@dataclasses.dataclass  # not frozen, which takes longer, and there is one for each node and architecture
class Channels:
    """The channels at one node under an architecture, bool; K of its first input, C of its output.

    Attributes:
        live: which output channels are computed because something reads them, shape (C,).
        kept: which input channels the architecture keeps, shape (K,).
        explicit, zero: as `State` has them, of the first input, shape (K,).
        available: which input channels are live, shape (K,).
        linked: whether kernels read all that their input holds, with zeros for what they do not keep.
    """

    live: np.ndarray
    kept: np.ndarray
    explicit: np.ndarray
    zero: np.ndarray
    available: np.ndarray
    linked: bool


@dataclasses.dataclass
class Folded(Channels):
    """The same with weights, and with the constants that dropped operations leave.

    Attributes:
        weights: of all nodes.
        constants: for each input the value of every channel that is constant, shape (its channels,); elsewhere 0.
    """

    weights: Weights
    constants: list[np.ndarray]

    @property
    def kept_constants(self) -> np.ndarray:
        """Constants of the first input, 0 where they are not kept, shape (K,)."""
        return np.where(self.kept, self.constants[0], 0.0)


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the supernet as the subnet holds it.

    Attributes:
        tensor: KerasTensor with the channels `channels` in that order; None if there are none.
        channels: indices into the supernet's channels, ascending.
        constants: value of every channel that is constant, shape (C,); elsewhere 0.
        spatial: the axes between batch and channels.
        dtype: of the supernet's tensor.
        examples: how many of its examples there are for each of the model's.
    """

    tensor: Any
    channels: np.ndarray
    constants: np.ndarray
    spatial: tuple[int | None, ...]
    dtype: str
    examples: int = 1


class Builder(abc.ABC):
    """Tools with which families cut themselves.

    Args:
        taken: names that operations must not have.
        dtype: of constants.

    Attributes:
        weights: pairs of a layer and its weights, to be set once the model, and so every layer, is built.
        shared: copies of layers that are called more than once, by the layer's id.
    """

    def __init__(self, taken: Collection[str], dtype: Any):
        self.weights: list[tuple[keras.Layer, Sequence[np.ndarray]]] = []
        self.shared: dict[int, keras.Layer] = {}
        self._taken = taken
        self._dtype = dtype
        self._num_operations = 0

    @abc.abstractmethod
    def image(self) -> Any:
        """A tensor with the batch's size: the subnet's first input."""

    def operation(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """The output of one of `keras.ops`, named so that it cannot be mistaken for a layer of the model."""
        output = function(*arguments, **keywords)
        self._num_operations += 1
        while f"cut_{self._num_operations}" in self._taken:  # a subnet that is cut again
            self._num_operations += 1
        output._keras_history.operation.name = f"cut_{self._num_operations}"
        return output

    def gather(self, value: Value, wanted: np.ndarray) -> Any:
        """A tensor with the channels `wanted`, in order; those that `value` holds as constants are written out."""
        if np.array_equal(wanted, value.channels):
            return value.tensor
        explicit = np.isin(wanted, value.channels)
        constants = value.constants[wanted]
        if not explicit.any():
            ones = self.ones(value)
            return self.cast(self.operation(keras.ops.multiply, ones, constants), value.dtype)
        if explicit.all():
            return self.take(value.tensor, value.channels, wanted)
        # Absent channels are taken from a channel of zeros behind the others.
        zero = self.operation(keras.ops.zeros_like, self.operation(lambda x: x[..., :1], value.tensor))
        tensor = self.operation(keras.ops.concatenate, [value.tensor, zero], axis=-1)
        position = np.where(explicit, np.searchsorted(value.channels, wanted), value.channels.size).astype("int32")
        tensor = self.operation(keras.ops.take, tensor, position, axis=-1)
        return self.cast(self.add(tensor, np.where(explicit, 0.0, constants)), value.dtype)

    def take(self, tensor: Any, held: np.ndarray, wanted: np.ndarray) -> Any:
        """The channels `wanted` of a tensor that has the channels `held`, among which they are; both ascending."""
        if np.array_equal(wanted, held):
            return tensor
        places = np.searchsorted(held, wanted).astype("int32")
        if np.array_equal(places, np.arange(places[0], places[0] + places.size)):  # a slice is copied much faster
            return self.operation(lambda x: x[..., int(places[0]) : int(places[-1]) + 1], tensor)
        return self.operation(keras.ops.take, tensor, places, axis=-1)

    def add(self, tensor: Any, constants: np.ndarray) -> Any:
        """`tensor` plus a constant for each channel."""
        return self.operation(keras.ops.add, tensor, constants.astype(self._dtype))

    def cast(self, tensor: Any, dtype: str) -> Any:
        """`tensor` in `dtype`, from which constants of more bits may have promoted it."""
        return tensor if tensor.dtype == dtype else self.operation(keras.ops.cast, tensor, dtype)

    def spread(self, tensor: Any, sizes: tuple[int | None, ...]) -> Any:
        """A sum, repeated along the axes of which only addends that are gone had more than one element."""
        repeats = tuple(size if have == 1 else 1 for have, size in zip(tensor.shape[1:], sizes, strict=True))
        if None in repeats:
            raise _unknown_size()
        return self.operation(keras.ops.tile, tensor, (1, *repeats)) if set(repeats) != {1} else tensor

    def ones(self, value: Value) -> Any:
        """Ones for each example and position of a tensor, shape (batch, *spatial, 1)."""
        spatial = value.spatial
        if None in spatial:
            raise _unknown_size()
        image = self.image()
        corner = (slice(None), *[slice(0, 1)] * (len(image.shape) - 1))
        one = self.operation(lambda x: x[corner], image)
        one = self.operation(keras.ops.ones_like, self.operation(keras.ops.cast, one, value.dtype))
        one = self.operation(keras.ops.reshape, one, (-1, *[1] * (len(spatial) + 1)))
        return self.operation(keras.ops.tile, one, (value.examples, *spatial, 1))


def _unknown_size() -> UserError:
    return UserError(
        "subnet: a dropped operation leaves a constant where the spatial size is not known: give the model's input a "
        "fixed size"
    )
