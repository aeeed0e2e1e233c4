"""Attention: a head is a unit, with its rows of the projections of queries, keys, values and outputs.

Such a layer is two nodes. `Heads` reads its inputs and makes one channel for each head (of grouped queries, for each
group of query heads with their one key and value). `Attention` reads these channels, as 1 for each head that is kept
and 0 for the others, and its inputs; it multiplies what each head has found by them, before the output projection.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Node
from tfnas.layers.calls import Call
from tfnas.layers.of_units.inside import Inside
from tfnas.layers.records import Builder, Folded, State, Value
from tfnas.layers.uncut import Uncut

_LAYERS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_TENSORS = {"query", "value", "key", "attention_mask"}


class _Projections:
    """The parts of a layer, by the names that its class gives them; numbers of heads are of those that are units.

    Attributes:
        heads: number of units.
        repeats: query heads for each of them.
        key_size, value_size: of a head.
    """

    def __init__(self, layer: Any):
        self.grouped = isinstance(layer, keras.layers.GroupQueryAttention)
        self.heads: int = layer.num_key_value_heads if self.grouped else layer.num_heads
        self.repeats: int = layer.num_repeats if self.grouped else 1
        self.key_size: int = layer.head_dim if self.grouped else layer.key_dim
        self.value_size: int = layer.head_dim if self.grouped else layer.value_dim
        self.use_gate = bool(layer.use_gate if self.grouped else layer._use_gate)


class Heads(Inside):
    """The heads of an attention layer; its inputs are query, value, key."""

    NAME = "heads"

    @staticmethod
    def num_units(layer: Any) -> int:
        """Number of its heads, or of its groups of query heads."""
        return _Projections(layer).heads

    @staticmethod
    def sources(record: Any, sources: Sequence[int]) -> tuple[int, ...]:
        """Returns, of the nodes that a call reads, those of the query, the value and the key."""
        given = dict(zip(_roles(record), sources, strict=True))
        return given["query"], given["value"], given.get("key", given["value"])

    @property
    def positions(self) -> int | None:
        axes = [axis for spatial in self.input_spatial for axis in spatial]
        return None if None in axes else 1  # `count_of` knows of the positions, which are not one number

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        """Returns the cost of the attention and of its projections of queries, keys, values, by the query's channels.

        Keys and values are of the same channels, or of all channels of tensors that this layer pins.
        """
        parts = _Projections(self.inner)
        read, keys = parts.repeats * parts.key_size, parts.key_size
        gated = parts.repeats * parts.value_size if parts.use_gate else 0
        positions = [math.prod(size or 0 for size in spatial) for spatial in self.input_spatial]
        weights = 0
        multiply_adds = positions[0] * self._attended * parts.repeats * (parts.key_size + parts.value_size)
        for j, size in enumerate((read + gated, parts.value_size, keys)):
            channels = inputs if self.inputs[j] == self.inputs[0] else self.input_channels[j]
            weights += channels * size
            multiply_adds += channels * size * positions[j]
        use_bias = self.inner.use_bias
        biases = read + gated + keys + parts.value_size if use_bias else 0
        return (weights + biases) * outputs, multiply_adds * outputs

    @property
    def _attended(self) -> int:
        """Number of positions that each query attends to."""
        spatial = self.input_spatial[1]
        axes = getattr(self.inner, "attention_axes", None) or range(1, len(spatial) + 1)
        return math.prod(spatial[axis - 1] or 0 for axis in axes)

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        parts = _Projections(self.inner)
        names = ["query", "value", "key", *(["gate"] if parts.use_gate else [])]
        of_inputs = dict(zip(names, [*self.inputs, self.inputs[0]], strict=False))
        reads, makes = super().squared_norms()
        for name in names:
            weights = getattr(self.inner, f"_{name}_dense").get_weights()
            kernel, *bias = (np.square(w.astype(np.float64)) for w in weights)
            if of_inputs[name] == self.inputs[0]:
                reads = reads + kernel.sum((1, 2))
            by_head = kernel.sum((0, 2)) + sum(b.sum(1) for b in bias)  # of every query head, if it is of queries
            makes = makes + by_head.reshape(parts.heads, -1).sum(1)
        return reads, makes


class Attention(Node):
    """MultiHeadAttention and GroupQueryAttention, apart from which heads there are."""

    INSIDE = Heads
    full_output = False
    mixes = True

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if type(layer) not in _LAYERS:
            return False
        arguments = record.arguments
        bound = inspect.signature(layer.call).bind(*arguments.args, **arguments.kwargs).arguments
        roles = _roles(record)
        plain = not bound.get("return_attention_scores") and {"query", "value"} <= set(roles) <= _TENSORS
        return plain and len(getattr(layer, "_output_shape", None) or [0]) == 1

    def call(self, layer: Any, tensors: Sequence[Any], training: bool | None = None) -> Any:
        heads, *others = tensors
        gated = GatedHeads(layer, name=f"{self.name}_gated")
        return self.called.again(gated, others, training, heads=heads)

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return self.everywhere(sources[0].depends.any(), True, False)

    def pins(self, j: int) -> bool:
        return j > 0 and self.inputs[j] != self._query

    def ties(self, j: int) -> np.ndarray | None:
        # Of grouped queries the output is as wide as the query.
        grouped = isinstance(self.inner, keras.layers.GroupQueryAttention)
        return np.arange(self.num_channels) if grouped and j > 0 and self.inputs[j] == self._query else None

    @property
    def _query(self) -> int:
        """Number of the node that is the query."""
        return self.inputs[1 + _roles(self.called.record).index("query")]

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        parts = _Projections(self.inner)
        weights = inputs * parts.repeats * parts.value_size * outputs
        return weights + (outputs if self.inner.use_bias else 0), weights

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        kernel, *bias = (np.square(w.astype(np.float64)) for w in self.inner._output_dense.get_weights())
        return kernel.reshape(self.input_channels[0], -1).sum(1), kernel.sum((0, 1)) + sum(bias)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        layer, parts, live = self.inner, _Projections(self.inner), np.flatnonzero(x.live)
        roles = {name: j + 1 for j, name in enumerate(_roles(self.called.record))}
        outputs = sources[roles["query"]].channels if parts.grouped else live
        kept = sources[0].channels
        queries = (kept[:, None] * parts.repeats + np.arange(parts.repeats)).reshape(-1)
        if parts.grouped:
            changes: dict[str, Any] = {"num_query_heads": int(queries.size), "num_key_value_heads": int(kept.size)}
        else:
            changes = {"num_heads": int(kept.size), "output_shape": (int(outputs.size),)}
            if outputs.size == sources[roles["query"]].channels.size and not layer._output_shape:
                del changes["output_shape"]
        config = {**layer.get_config(), "name": self.name, **changes}
        new = build.shared.get(id(layer)) or type(layer).from_config(config)
        if self.shared:
            build.shared[id(layer)] = new
        channels = {name: sources[j].channels for name, j in roles.items()}
        channels.setdefault("key", channels["value"])
        tensors = [source.tensor for source in sources[1:]]
        output = self.called.again(new, tensors)
        of_heads = {"query": queries, "key": kept, "value": kept, "gate": queries}
        for name in ("query", "key", "value", *(("gate",) if parts.use_gate else ())):
            heads, read = of_heads[name], channels["query" if name == "gate" else name]
            kernel, *bias = getattr(layer, f"_{name}_dense").get_weights()
            weights = [kernel[read][:, heads], *(b[heads] for b in bias)]
            build.weights.append((getattr(new, f"_{name}_dense"), weights))
        kernel, *bias = layer._output_dense.get_weights()
        build.weights.append((new._output_dense, [kernel[queries][..., outputs], *(b[outputs] for b in bias)]))
        return build.take(output, outputs, live)


class WholeAttention(Uncut):
    """Attention that is left whole, which costs what `Heads` and `Attention` cost together."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return type(layer) in _LAYERS and {"query", "value"} <= set(_roles(record))

    @property
    def positions(self) -> int | None:
        return self._heads.positions

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        parameters, _ = super().count_of(inputs, outputs)
        heads, parts = self._heads, _Projections(self.inner)
        _, multiply_adds = heads.count_of(heads.input_channels[0], parts.heads)
        found = parts.heads * parts.repeats * parts.value_size * self.num_channels
        return parameters, multiply_adds + found * math.prod(size or 0 for size in self.spatial)

    @functools.cached_property
    def _heads(self) -> Heads:
        """Its first part, as channel units have it."""
        read = Heads.sources(self.called.record, range(len(self.inputs)))
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Node)}
        fields |= {name: tuple(fields[name][j] for j in read) for name in ("inputs", "input_channels", "input_spatial")}
        return Heads(**fields)


@keras.saving.register_keras_serializable("tfnas")
class GatedHeads(keras.layers.Wrapper):
    """An attention layer in which what each head has found is multiplied by its gate.

    Args:
        layer: a built MultiHeadAttention or GroupQueryAttention.

    Call arguments:
        heads: gates, shape (batch, heads); of grouped queries, one for each head of keys and values.
        all others: as of the layer.
    """

    def __init__(self, layer: Any, **kwargs: Any):
        super().__init__(layer, **{"dtype": layer.dtype_policy, **kwargs})
        self.built = True
        self.supports_masking = True  # it passes that of the query on, as the layer does

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        heads: Any = None,
    ) -> Any:
        """The attention's output."""
        layer, parts = self.layer, _Projections(self.layer)
        key = value if key is None else key
        for tensor in (query, value, key):  # whose masks are in `attention_mask`; the projections would warn of them
            keras.src.backend.set_keras_mask(tensor, None)
        mask = layer._compute_attention_mask(
            query, value, attention_mask=attention_mask, use_causal_mask=use_causal_mask
        )
        projected = [layer._query_dense(query), layer._key_dense(key), layer._value_dense(value)]
        if parts.grouped:
            projected[1:] = [keras.ops.repeat(x, parts.repeats, axis=2) for x in projected[1:]]
            heads = keras.ops.repeat(heads, parts.repeats, axis=1)
        found, _ = layer._compute_attention(*projected, attention_mask=mask, training=training)
        if parts.use_gate:
            found = keras.ops.multiply(found, layer._gate_dense(query))
        shape = (-1, *[1] * (len(found.shape) - 3), found.shape[-2], 1)
        return layer._output_dense(found * keras.ops.cast(keras.ops.reshape(heads, shape), found.dtype))

    def compute_output_spec(self, query: Any, *others: Any, **more: Any) -> Any:
        """Shape and dtype of the output."""
        size = self.layer._output_dense.kernel.shape[-1]
        return keras.KerasTensor((*query.shape[:-1], size), self.layer.compute_dtype)


def _roles(record: Any) -> list[str]:
    """Names of the arguments of a call that are tensors, in the order of its input tensors."""
    names = inspect.signature(record.operation.call).parameters
    arguments = record.arguments

    def role(name: str, given: Any) -> str | None:
        return name if isinstance(given, keras.KerasTensor) else None

    by_position = [role(name, given) for name, given in zip(names, arguments.args, strict=False)]
    by_name = {name: role(name, given) for name, given in arguments.kwargs.items()}
    return [found for found in keras.tree.flatten((by_position, by_name)) if isinstance(found, str)]
