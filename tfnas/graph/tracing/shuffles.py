"""Channel shuffles, each a Reshape, a Transpose and a Reshape, as one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfnas.graph.tracing.records import new_record
from tfnas.layers.calls import Call
from tfnas.layers.of_units import Shuffle, moves


def with_shuffles(records: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Returns records of calls with one of a `Shuffle` in place of those that make one up.

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
            if groups := _groups(chain):
                (x,), shuffle = chain[0].input_tensors, Shuffle(groups, last.operation.name)
                shuffles |= {id(chain[0]): None, id(chain[1]): None}
                shuffles[id(last)] = new_record(shuffle, [x], last.output_tensors, x)
    found = [shuffles.get(id(record), record) for record in records]
    return [record for record in found if record is not None]


def _groups(chain: Sequence[Any]) -> int:
    """The number of groups whose channels calls shuffle; 0 if they do anything else."""
    if len(chain[0].input_tensors) != 1 or chain[0].input_tensors[0].shape != chain[-1].output_tensors[0].shape:
        return 0
    first, *others = chain
    called = Call(first, first.operation.name)
    for record in others:
        called = Call(record, record.operation.name, before={0: called})
    groups, size = first.output_tensors[0].shape[-2:]
    found = None if None in (groups, size) else moves(called)
    if found is None:
        return 0
    order = np.arange(groups * size).reshape(groups, size).T.reshape(-1)
    return groups if np.array_equal(found[0], order) else 0
