"""Merging tensors channel by channel: Add, Subtract, Multiply, Average, Maximum, ..., also as `x + y`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas.layers.base import Computation, Fed, Node, Operand
from tfnas.layers.calls import Call
from tfnas.layers.records import Builder, Channels, Folded, State, Value

# By class name, of layers and of Keras operations alike: what each makes of constants, and of two tensors.
MERGES: dict[str, tuple[Callable[[Sequence[np.ndarray]], Any], Callable[..., tf.Tensor]]] = {
    "Add": (sum, tf.add),
    "Subtract": (lambda values: values[0] - values[1], tf.subtract),
    "Multiply": (math.prod, tf.multiply),
    "Average": (lambda values: sum(values) / len(values), tf.add),
    "Maximum": (lambda values: np.maximum.reduce(np.broadcast_arrays(*values)), tf.maximum),
    "Minimum": (lambda values: np.minimum.reduce(np.broadcast_arrays(*values)), tf.minimum),
    "Divide": (lambda values: values[0] / np.where(values[1], values[1], np.nan), tf.divide),
}
MERGES["TrueDivide"] = MERGES["Divide"]
MERGES["Power"] = (lambda values: np.power(*values), tf.pow)


class Merge(Node):
    """A merge of two or more tensors; one of a single channel is broadcast over all."""

    full_output = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        inputs, output = record.input_tensors, record.output_tensors[0]
        fits = all(t.shape[-1] in (1, output.shape[-1]) and len(t.shape) == len(output.shape) for t in inputs)
        return type(layer).__name__ in MERGES and len(inputs) > 1 and fits

    @property
    def operation(self) -> str:
        """Its operation, a key of `MERGES`."""
        return type(self.inner).__name__

    @property
    def zero_to_zero(self) -> bool:
        return self.operation not in ("Divide", "TrueDivide", "Power")

    @property
    def adds(self) -> bool:
        """Whether its inputs are added up, so that one of them may be absent."""
        return self.operation == "Add"

    @property
    def additive(self) -> bool:
        """Whether it makes a stream of its inputs, such as a residual one."""
        return self.operation in ("Add", "Subtract", "Average")

    def state(self, sources: Sequence[State], kept: Any) -> State:
        depends, explicit = self._any([x.depends for x in sources]), self._any([x.explicit for x in sources])
        if self.operation == "Multiply":
            zero = self._any([x.zero for x in sources])  # whatever the other factors are
            return State(depends & ~zero, explicit & ~zero, zero)
        return State(depends, explicit, self.zero_to_zero & ~self._any([~x.zero for x in sources]))

    def _any(self, sources: Sequence[np.ndarray]) -> np.ndarray:
        """A property of the sources' channels, true of an output channel where it is of any that joins in."""
        return np.any([np.broadcast_to(x, self.num_channels) for x in sources], axis=0)

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        one = np.full(1, bool(live.any()))
        return [live if size == self.num_channels else one for size in self.input_channels]

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels) if self.input_channels[j] == self.num_channels else None

    def linked(self, available: Sequence[np.ndarray]) -> Any:
        # A source of one channel that is broadcast says nothing of the others.
        return self._any([x for x in available if x.size == self.num_channels])

    def given(self, x: Channels, j: int) -> np.ndarray:
        return self.held(x.live) if self.input_channels[j] == self.num_channels else np.arange(1)

    def constants(self, x: Folded) -> Any:
        return MERGES[self.operation][0]([s.astype("float64") for s in x.constants])

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        if self.operation != "Add":
            return super().cut(x, sources, build)
        # What is constant in an addend is in `offset`, and 0 in the tensor; an addend that is all constant is gone.
        offset = np.sum([np.broadcast_to(s, self.num_channels)[self.held(x.live)] for s in x.constants], axis=0)
        tensors = [
            build.gather(dataclasses.replace(s, constants=np.zeros_like(s.constants)), wanted)
            for j, s in enumerate(sources)
            if np.isin(wanted := self.given(x, j), s.channels).any()
        ]
        output = self.rebuilt(build, tensors) if len(tensors) > 1 else tensors[0]
        if offset.any():
            output = build.add(output, offset)
        return build.spread(build.cast(output, self.called.dtype), (*self.spatial, int(self.held(x.live).size)))

    @property
    def computation(self) -> type[Computation]:
        return _Computation


class _Computation(Computation):
    """A merge in which a source that is all constant is joined as its constants, without a tensor of its own."""

    node: Merge

    def run(self, operands: Sequence[Operand], fed: Fed) -> tf.Tensor:
        total = operands[0].tensor()
        for operand in operands[1:]:
            total = self._joined(total, operand)
        total = total / len(operands) if self.node.operation == "Average" else total
        if all(source == self.shape for source in self.source_shapes):
            return total
        # A source that is all constant brings no tensor, and so not its size either.
        return tf.broadcast_to(total, (tf.shape(total)[0], *self.shape, tf.shape(total)[-1]))

    def _joined(self, total: tf.Tensor, operand: Operand) -> tf.Tensor:
        join = MERGES[self.node.operation][1]
        return tf.cond(operand.absent(), lambda: join(total, operand.constants), lambda: join(total, operand.tensor()))


class Concatenation(Node):
    """A concatenation along channels."""

    carries = True
    full_output = False

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        return type(layer).__name__ == "Concatenate"

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return cls.is_of(layer) and layer.axis in (-1, len(record.output_tensors[0].shape) - 1)

    def _split(self, channels: np.ndarray) -> list[np.ndarray]:
        return np.split(channels, np.cumsum(self.input_channels)[:-1])

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return State(*(np.concatenate([getattr(x, name) for x in sources]) for name in ("depends", "explicit", "zero")))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return self._split(live)

    def ties(self, j: int) -> np.ndarray | None:
        before = np.arange(self.num_channels) - sum(self.input_channels[:j])
        return np.where((before >= 0) & (before < self.input_channels[j]), before, -1)

    def linked(self, available: Sequence[np.ndarray]) -> Any:
        return np.concatenate(available)

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(self._split(x.live)[j])

    def constants(self, x: Folded) -> Any:
        return np.concatenate(x.constants)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        given = [(source, self.given(x, j)) for j, source in enumerate(sources)]
        tensors = [build.gather(source, wanted) for source, wanted in given if wanted.size]
        return self.rebuilt(build, tensors) if len(tensors) > 1 else tensors[0]

    @property
    def computation(self) -> type[Computation]:
        return _Concatenating


class _Concatenating(Computation):
    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        return tf.concat(tensors, -1)
