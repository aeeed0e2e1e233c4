"""EinsumDense: its equation says which axes are channels, and whether it mixes them.

The last axes of input and output are channels. An equation that sums over those of the input reads them, and one that
takes those of the output from its kernel writes them: `btd,dnh->btnh` does both, so that of every head the same
channels exist. One that has the same last axis on both sides treats each channel by itself.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import keras
import numpy as np

from tfnas.layers.base import Node
from tfnas.layers.calls import Call
from tfnas.layers.pointwise import is_pointwise, is_zero_at_zero
from tfnas.layers.records import Builder, Channels, Folded, State, Value
from tfnas.layers.uncut import Uncut, Variable


class _Equation(NamedTuple):
    """An equation, with one letter for each axis, also for those of an ellipsis.

    Attributes:
        read: of the input.
        kernel: of the kernel.
        made: of the output.
    """

    read: str
    kernel: str
    made: str

    @classmethod
    def of(cls, layer: Any, rank: int) -> _Equation:
        """Returns that of a layer whose input has so many axes."""
        parts = re.split(",|->", layer.equation)
        named = len(parts[0].replace("...", ""))
        others = "".join(chr(ord("α") + i) for i in range(rank - named))
        return cls(*(part.replace("...", others) for part in parts))

    @property
    def reads(self) -> bool:
        """Whether it sums over the input's channels."""
        return self.read[-1] in self.kernel and self.read[-1] not in self.made

    @property
    def writes(self) -> bool:
        """Whether the output's channels are the kernel's alone."""
        return self.made[-1] in self.kernel and self.made[-1] not in self.read

    @property
    def ties(self) -> bool:
        """Whether each channel stays by itself."""
        return self.read[-1] == self.made[-1]

    def multiplied(self, shape: Sequence[int], inputs: int, outputs: int) -> int:
        """Weights of a kernel of this shape, each as often as the input's channels make it be multiplied by."""
        sizes = dict(zip(self.kernel, shape, strict=True))
        others = math.prod(size for axis, size in sizes.items() if axis not in (self.read[-1], self.made[-1]))
        return others * inputs * (outputs if self.made[-1] in self.kernel and not self.ties else 1)

    def positions(self, spatial: Sequence[int | None]) -> int | None:
        """Number of times that is done, by the input's axes between batch and channels; None without a fixed size."""
        axes = zip(self.read[1:-1], spatial, strict=True)
        sizes = [size for axis, size in axes if axis not in self.kernel]
        return None if None in sizes else math.prod(size or 0 for size in sizes)


class _OfEquation(Node):
    """A node of an EinsumDense."""

    @property
    def _equation(self) -> _Equation:
        return _Equation.of(self.inner, len(self.input_spatial[0]) + 2)

    def call(self, layer: Any, tensors: Sequence[Any], training: bool | None = None) -> Any:
        if not isinstance(tensors[0], keras.KerasTensor):
            return super().call(layer, tensors, training)
        with known_sizes():
            return super().call(layer, tensors, training)

    @property
    def positions(self) -> int | None:
        return self._equation.positions(self.input_spatial[0])


class Einsum(_OfEquation):
    """An EinsumDense that reads, writes or ties channels, and computes each example by itself."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if type(layer) is not keras.layers.EinsumDense or Variable.is_of(layer) or len(layer.weights) > 2:
            return False
        equation = _Equation.of(layer, len(record.input_tensors[0].shape))
        by_example = equation.read[0] == equation.made[0] and equation.read[0] not in equation.kernel
        named = not layer.equation.endswith("...")
        return by_example and named and (equation.reads or equation.writes or equation.ties)

    @property
    def zero_to_zero(self) -> bool:
        activation = self.inner.activation
        return self.inner.bias is None and is_pointwise(activation) and is_zero_at_zero(activation)

    @property
    def full_output(self) -> bool:
        return not (is_pointwise(self.inner.activation) and (self._equation.writes or self._equation.ties))

    @property
    def mixes(self) -> bool:
        return not self._equation.ties

    def pins(self, j: int) -> bool:
        return not (self._equation.reads or self._equation.ties)

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels) if self._equation.ties else None

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        if self.mixes:
            return self.everywhere(x.depends.any(), x.explicit.any(), False)
        zero = x.zero & self.zero_to_zero
        return State(x.depends, x.explicit | ~zero, zero)

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return super().read(live) if self.mixes else [live]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available if self.mixes else x.live)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        equation, layer = self._equation, self.inner
        sizes = dict(zip(equation.kernel, layer.kernel.shape, strict=True))
        parameters = math.prod((sizes | self._wide(equation.kernel, inputs, outputs)).values())
        if layer.bias is not None:
            *others, last = layer.bias.shape
            parameters += math.prod(others) * (outputs if equation.made[-1] in layer.bias_axes else last)
        return parameters, equation.multiplied(layer.kernel.shape, inputs, outputs)

    def _wide(self, axes: str, inputs: int, outputs: int) -> dict[str, int]:
        """Sizes of those of some axes that are channels."""
        of_channels = {self._equation.read[-1]: inputs, self._equation.made[-1]: outputs}
        return {axis: size for axis, size in of_channels.items() if axis in axes}

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        equation, (reads, makes) = self._equation, super().squared_norms()
        squares = np.square(np.asarray(self.inner.kernel, np.float64))

        def by(axis: str) -> np.ndarray:
            number = equation.kernel.index(axis)
            return squares.sum(tuple(i for i in range(squares.ndim) if i != number))

        if equation.reads:
            reads = reads + by(equation.read[-1])
        if equation.made[-1] in equation.kernel:
            makes = makes + by(equation.made[-1])
        if self.inner.bias is not None and equation.made[-1] in self.inner.bias_axes:
            bias = np.asarray(self.inner.bias, np.float64)
            makes = makes + np.square(bias).reshape(-1, self.num_channels).sum(0)
        return reads, makes

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        equation, layer = self._equation, self.inner
        inputs, outputs = self.given(x, 0), self.held(x.live)
        kernel, *bias = layer.get_weights()
        for axis, channels in {equation.read[-1]: inputs, equation.made[-1]: outputs}.items():
            if axis in equation.kernel:
                kernel = np.take(kernel, channels, equation.kernel.index(axis))
        if bias and equation.made[-1] in layer.bias_axes:
            bias = [bias[0][..., outputs]]
        named = len(layer.partial_output_shape)
        sizes = (*self.spatial, int(outputs.size))[-named:]
        return self.rebuilt(build, [build.gather(sources[0], inputs)], [kernel, *bias], output_shape=sizes)


class WholeEinsum(_OfEquation, Uncut):
    """An EinsumDense that is left whole, which costs what `Einsum` does."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return isinstance(layer, keras.layers.EinsumDense)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        parameters, _ = super().count_of(inputs, outputs)
        # All of its kernel is there, whatever it reads.
        return parameters, self._equation.multiplied(self.inner.kernel.shape, self.input_channels[0], self.num_channels)


def says_less(record: Any) -> bool:
    """Whether an EinsumDense was made with None for a size of its output that its input has."""
    if type(record.operation) is not keras.layers.EinsumDense:
        return False
    (x,), (output,) = record.input_tensors, record.output_tensors
    return _completed(record.operation, x.shape, output.shape) != tuple(output.shape)


def _completed(layer: Any, read: Sequence[int | None], made: Sequence[int | None]) -> tuple[int | None, ...]:
    """The shape of an EinsumDense's output, with all sizes that its input has."""
    equation = _Equation.of(layer, len(read))
    sizes = dict(zip(equation.read, read, strict=True))
    return tuple(sizes.get(axis) if size is None else size for axis, size in zip(equation.made, made, strict=True))


@contextlib.contextmanager
def known_sizes() -> Iterator[None]:
    """Lets an EinsumDense say every size of its output that its input has, also where it was made with None for it."""
    given = keras.layers.EinsumDense.compute_output_shape

    def completed(layer: Any, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return _completed(layer, input_shape, given(layer, input_shape))

    with mock.patch.object(keras.layers.EinsumDense, "compute_output_shape", completed):
        yield
