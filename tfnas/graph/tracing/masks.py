"""Masks that Keras passes on beside tensors, as arguments that a graph shows."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras

from tfnas.graph.tracing.records import new_record

ops = keras.ops
_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
# Layers of Keras that do other things with a mask than without.
_SENSITIVE = (
    *_ATTENTION,
    keras.layers.Attention,
    keras.layers.AdditiveAttention,
    keras.layers.Bidirectional,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.RNN,
    keras.layers.Softmax,
    keras.layers.TimeDistributed,
)


def mask_of(tensor: Any) -> Any:
    """Returns the symbolic mask that Keras has noted for a symbolic tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def heeds_masks(record: Any) -> bool:
    """Whether a layer of a user's own is given masks of which its layers take account, or passes one on by itself."""
    if any(mask_of(x) is not None for x in record.output_tensors):
        return True
    given = any(mask_of(x) is not None for x in record.input_tensors)
    return given and any(isinstance(layer, _SENSITIVE) for layer in record.operation._flatten_layers())


def with_attention_mask(record: Any) -> Any:
    """A record of the same call of an attention layer, with the masks of its inputs as its `attention_mask`.

    Keras joins them so in the call: positions of the query along the rows, those of values and keys along the columns.
    """
    if not isinstance(record.operation, _ATTENTION):
        return record
    arguments, keywords = record.arguments.args, record.arguments.kwargs
    names = list(inspect.signature(record.operation.call).parameters)
    given = {**dict(zip(names, arguments, strict=False)), **keywords}
    query, value, key = (mask_of(given.get(name)) for name in ("query", "value", "key"))
    masks = [ops.expand_dims(query, -1)] if query is not None else []
    masks += [ops.expand_dims(mask, -2) for mask in (value, key) if mask is not None]
    if not masks or any(given.get(f"{name}_mask") is not None for name in ("query", "value", "key")):
        return record
    by_hand = given.pop("attention_mask", None)
    mask = functools.reduce(ops.logical_and, masks if by_hand is None else [ops.cast(by_hand, "bool"), *masks])
    tensors = [given.pop(name) for name in ("query", "value", "key") if given.get(name) is not None]
    inputs = [*tensors, mask]
    return new_record(record.operation, inputs, record.output_tensors, *tensors, **given, attention_mask=mask)
