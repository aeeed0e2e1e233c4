"""Channel shuffles, a Reshape, a Transpose and a Reshape, as one operation that says which channel goes where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.graph.tracing.records import new_record
from tfnas.layers.calls import Call
from tfnas.layers.of_units import moves


def with_shuffles(records: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Returns records of calls with one of `keras.ops.take` in place of those that only permute channels.

    Args:
        records: Keras's, in topological order.
        outputs: tensors that are read by others than these calls.
    """
    kept = {id(x) for x in outputs}
    makers = {id(record.output_tensors[0]): record for record in records}
    readers: dict[int, int] = {}
    for record in records:
        for x in record.input_tensors:
            readers[id(x)] = readers.get(id(x), 0) + 1
    shuffles: dict[int, Any] = {}  # by the last call's id; None for a call before it
    for last in records:
        chain = [last]
        while len(chain) < 3 and len(chain[0].input_tensors) == 1:
            before = makers.get(id(chain[0].input_tensors[0]))
            if before is None or readers[id(before.output_tensors[0])] > 1 or id(before.output_tensors[0]) in kept:
                break
            chain.insert(0, before)
        kinds = [type(record.operation).__name__ for record in chain]
        if kinds in (["Reshape", "Transpose", "Reshape"], ["Reshape", "Permute", "Reshape"]):
            if (order := _order(chain)) is not None:
                shuffles |= {id(chain[0]): None, id(chain[1]): None, id(last): _take(chain, order)}
    found = [shuffles.get(id(record), record) for record in records]
    return [record for record in found if record is not None]


def _order(chain: Sequence[Any]) -> np.ndarray | None:
    """Which channel each one of the output is, if calls do nothing but permute channels."""
    if len(chain[0].input_tensors) != 1 or chain[0].input_tensors[0].shape != chain[-1].output_tensors[0].shape:
        return None
    first, *others = chain
    called = Call(first, first.operation.name)
    for record in others:
        called = Call(record, record.operation.name, before={0: called})
    found = moves(called)
    return None if found is None or not np.array_equal(np.sort(found[0]), np.arange(found[0].size)) else found[0]


def _take(chain: Sequence[Any], order: np.ndarray) -> Any:
    """The record of a call that takes channels in an order, between the same tensors as a chain of calls."""
    inputs = chain[0].input_tensors
    take = keras.src.ops.numpy.Take(axis=-1, name=chain[-1].operation.name)
    return new_record(take, inputs, chain[-1].output_tensors, *inputs, order)
