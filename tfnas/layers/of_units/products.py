"""Products of two tensors in which one weighs the other's positions, as attention that is written by hand ends with.

`matmul(weights, x)` and `einsum("bnts,bsnh->btnh", weights, x)` treat each channel of x by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import keras
import numpy as np

from tfnas.layers.base import Computation, Node
from tfnas.layers.calls import Call
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


class DotProductAttention(WeightedSum):
    """`keras.ops.nn.dot_product_attention` without a mask: where values lose channels, it is built of its parts."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        plain = len(record.input_tensors) == 3 and not any(
            record.arguments.kwargs.get(name) is not None for name in ("bias", "mask")
        )
        fits = type(layer).__name__ == "DotProductAttention" and plain
        return fits and not layer.is_causal and layer.attn_logits_soft_cap is None

    @property
    def _weighed(self) -> int:
        return 2

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        if x.live.all():
            return super().cut(x, sources, build)  # Keras takes it that values are as wide as queries
        query, key, value = (build.gather(source, self.given(x, j)) for j, source in enumerate(sources))
        ops = keras.ops
        query, value = (build.operation(ops.transpose, tensor, (0, 2, 1, 3)) for tensor in (query, value))
        logits = build.operation(ops.matmul, query, build.operation(ops.transpose, key, (0, 2, 3, 1)))
        scale = self.called.record.arguments.kwargs.get("scale")
        scale = 1 / math.sqrt(self.input_channels[0]) if scale is None else scale
        weights = build.operation(ops.softmax, build.operation(ops.multiply, build.cast(logits, "float32"), scale))
        output = build.operation(ops.matmul, build.cast(weights, value.dtype), value)
        return build.operation(ops.transpose, output, (0, 2, 1, 3))


def _number_of_weighed(operation: Any, record: Any) -> int | None:
    """Number of the input that is weighed; None for an operation that is not of this kind."""
    tensors = record.input_tensors
    if len(tensors) != 2 or tensors[0] is tensors[1]:
        return None
    if type(operation).__name__ == "Matmul":
        return 1 if len(tensors[0].shape) == len(tensors[1].shape) > 2 else None
    if type(operation).__name__ != "Einsum":
        return None
    inputs, _, output = operation.subscripts.partition("->")
    parts = inputs.split(",")
    if "." in inputs or not output or not all(part.startswith(output[0]) for part in parts):
        return None
    channel = output[-1]
    found = [j for j in (0, 1) if parts[j].find(channel) == len(parts[j]) - 1 and channel not in parts[1 - j]]
    return found[0] if found else None
