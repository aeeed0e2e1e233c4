"""Products of two tensors in which one weighs the other's positions, as attention that is written by hand ends with.

`matmul(weights, x)` and `einsum("bnts,bsnh->btnh", weights, x)` treat each channel of x by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import keras
import numpy as np

from tfnas.layers.base import Computation, Node, WholeComputation
from tfnas.layers.calls import Call
from tfnas.layers.of_units.rearranging import layout
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class WeightedSum(Node):
    """Sums over positions: the channels are those of the input that is weighed."""

    full_output = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return _number_of_weighed(layer, record) is not None

    @property
    def _weighed(self) -> int:
        return cast(int, _number_of_weighed(self.inner, self.called.record))

    @property
    def zero_to_zero(self) -> bool:
        return True

    def state(self, sources: Sequence[State], kept: Any) -> State:
        x, weights = sources[self._weighed], [source for j, source in enumerate(sources) if j != self._weighed]
        depends = x.depends | (any(w.depends.any() for w in weights) & ~x.zero)
        return State(depends, x.explicit | ~x.zero, x.zero)

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [live if j == self._weighed else read for j, read in enumerate(super().read(live))]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.live) if j == self._weighed else super().given(x, j)

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels) if j == self._weighed else None

    @property
    def computation(self) -> type[Computation]:
        return Computation


class Contraction(Node):
    """A product of two tensors that is summed over their channels, such as the scores of queries and keys.

    It is as large with fewer channels: a product over a channel that is gone is a zero in the sum. So channel c of the
    one input and channel c of the other vanish as one.
    """

    meets = (0, 1)

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        places = [_channels_of(called, j) for j in range(len(record.input_tensors))]
        return len(places) == 2 and None not in places and _is_summed(layer, record, cast(list[int], places))

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available)

    @property
    def computation(self) -> type[Computation]:
        return Computation


class DotProductAttention(WeightedSum):
    """`keras.ops.nn.dot_product_attention`, for which what is narrower, values or queries, is padded with zeros."""

    meets = (0, 1)

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        read, named = record.input_tensors[:3], record.arguments.args[:3]
        each = type(layer).__name__ == "DotProductAttention" and len(read) == len(named) == 3
        return each and all(x is y and x.shape[-1] == read[0].shape[-1] for x, y in zip(read, named, strict=True))

    @property
    def _weighed(self) -> int:
        return 2

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available) if j in self.meets else super().given(x, j)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        if x.live.all() and x.available.all():
            return super().cut(x, sources, build)
        channels = [self.given(x, j) for j in range(len(sources))]
        most = max(part.size for part in channels[:3])  # Keras takes it that values are as wide as queries
        tensors = [build.gather(source, part) for source, part in zip(sources, channels, strict=True)]
        tensors[:3] = [self._padded(tensor, most, build) for tensor in tensors[:3]]
        stand_ins = iter(tensors)
        arguments, keywords = self.called.record.arguments.convert(
            lambda x: next(stand_ins) if isinstance(x, keras.KerasTensor) else x
        )
        names = ("is_causal", "flash_attention", "attn_logits_soft_cap")
        keywords |= {name: getattr(self.inner, name) for name in names}
        if keywords.get("scale") is None:
            keywords["scale"] = 1 / math.sqrt(self.input_channels[0])  # the one of all channels
        output = build.operation(keras.ops.dot_product_attention, *arguments, **keywords)
        values = channels[self._weighed].size
        return output if values == most else build.operation(lambda output: output[..., :values], output)

    @property
    def computation(self) -> type[Computation]:
        return WholeComputation  # for its scale

    @staticmethod
    def _padded(tensor: Any, channels: int, build: Builder) -> Any:
        missing = channels - tensor.shape[-1]
        return build.operation(keras.ops.pad, tensor, ((0, 0),) * 3 + ((0, missing),)) if missing else tensor


def _channels_of(called: Call, j: int) -> int | None:
    """The axis of input `j` of a call with the channels of the tensor that stands for it; None if examples move."""
    rank = len(called.record.input_tensors[j].shape)
    axes = layout(called.before[j]) if j in called.before else (0, rank - 1)
    return axes[1] if axes and axes[0] == 0 else None


def _is_summed(operation: Any, record: Any, axes: Sequence[int]) -> bool:
    """Whether these axes of its two inputs are multiplied by each other and summed over."""
    kind, ranks = type(operation).__name__, [len(tensor.shape) for tensor in record.input_tensors]
    if kind == "Matmul":
        return ranks[0] == ranks[1] > 2 and list(axes) == [ranks[0] - 1, ranks[0] - 2]
    if isinstance(operation, keras.layers.Dot):
        summed = [operation.axes] * 2 if isinstance(operation.axes, int) else operation.axes
        return not operation.normalize and [axis % rank for axis, rank in zip(summed, ranks, strict=True)] == list(axes)
    if kind != "Einsum":
        return False
    inputs, _, output = operation.subscripts.replace(" ", "").partition("->")
    first, *others = [
        part[axis - rank :] if len(part) >= rank - axis else "."
        for part, axis, rank in zip(inputs.split(","), axes, ranks, strict=True)
    ]
    channel, by_example = first[0], len({part[:1] for part in (*inputs.split(","), output)}) == 1
    once = inputs.count(channel) == 2 and channel not in output and others[0][0] == channel
    return by_example and once and "." not in first + others[0]


def _number_of_weighed(operation: Any, record: Any) -> int | None:
    """Number of the input that is weighed; None for an operation that is not of this kind."""
    tensors = record.input_tensors
    if len(tensors) != 2 or tensors[0] is tensors[1]:
        return None
    if type(operation).__name__ == "Matmul":
        return 1 if len(tensors[0].shape) == len(tensors[1].shape) > 2 else None
    if isinstance(operation, keras.layers.Dot):
        ranks = [len(tensor.shape) for tensor in tensors]
        _, summed = [operation.axes] * 2 if isinstance(operation.axes, int) else operation.axes
        return 1 if ranks[1] > 2 and summed % ranks[1] != ranks[1] - 1 and not operation.normalize else None
    if type(operation).__name__ != "Einsum":
        return None
    inputs, _, output = operation.subscripts.partition("->")
    parts = inputs.split(",")
    if "." in inputs or not output or not all(part.startswith(output[0]) for part in parts):
        return None
    channel = output[-1]
    found = [j for j in (0, 1) if parts[j].find(channel) == len(parts[j]) - 1 and channel not in parts[1 - j]]
    return found[0] if found else None
