"""Records of calls: what they were given besides tensors of the graph, and the same with other arguments.

A record is Keras's of a call (a node of its graph), or what is like it.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

BATCH = 397  # stands for the size of the batch, and is recognized in shapes; a prime that no layer has as its width


class UntraceableError(Exception):
    """A layer cannot be taken apart, for the reason that is the message."""


def new_record(operation: Any, inputs: Sequence[Any], outputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Any:
    """Returns what is like Keras's record of a call with these arguments.

    Args:
        operation: a layer or operation.
        inputs: the symbolic tensors among the arguments, in their order.
        outputs: symbolic tensors.
        arguments, keywords: of the call.
    """
    given = keras.src.ops.symbolic_arguments.SymbolicArguments(*arguments, **keywords)
    return types.SimpleNamespace(operation=operation, arguments=given, input_tensors=inputs, output_tensors=outputs)


def calls_before(tensors: Sequence[Any], known: Collection[int] = ()) -> list[Any]:
    """Keras's records of the calls that tensors come from, in topological order.

    Args:
        tensors: symbolic tensors.
        known: ids of tensors whose own calls are left out, and what comes before them alone.
    """
    found: dict[int, Any] = {}
    waiting = [(x, False) for x in reversed(tensors)]
    while waiting:
        tensor, done = waiting.pop()
        history = getattr(tensor, "_keras_history", None)
        if id(tensor) in known or history is None or history.operation is None:
            continue
        record = history.operation._inbound_nodes[history.node_index]
        if id(record) in found:
            continue
        if done:
            found[id(record)] = record
        else:
            waiting.append((tensor, True))
            waiting += [(x, False) for x in reversed(record.input_tensors)]
    return list(found.values())


def numbers_of(record: Any) -> list[Any]:
    """Returns what a call was given that is neither a tensor of the graph nor its `training`."""
    keywords = {key: value for key, value in record.arguments.kwargs.items() if key != "training"}
    settings = {} if isinstance(record.operation, keras.Layer) else settings_of(record.operation)
    flat = keras.tree.flatten((record.arguments.args, keywords, settings))
    return [np.asarray(x) if keras.ops.is_tensor(x) else x for x in flat if not isinstance(x, keras.KerasTensor)]


def settings_of(operation: Any) -> dict[str, Any]:
    """An operation's own arguments."""
    return {key: value for key, value in vars(operation).items() if not key.startswith("_") and key != "name"}


def with_numbers(record: Any, numbers: Mapping[int, np.ndarray]) -> Any:
    """A record like another, of a call that was given numbers in place of the tensors that are known to hold them.

    Args:
        record: Keras's.
        numbers: by the tensor's id.
    """
    if not numbers:
        return record
    arguments, keywords = record.arguments.convert(lambda x: numbers.get(id(x), x))
    inputs = [x for x in record.input_tensors if id(x) not in numbers]
    return new_record(record.operation, inputs, record.output_tensors, *arguments, **keywords)


def key_of(record: Any) -> tuple[Any, ...]:
    """The key of `x[key]`, or the one that a call of `keras.ops.slice` stands for."""
    arguments = {**dict(zip(("x", "key"), record.arguments.args, strict=False)), **record.arguments.kwargs}
    if type(record.operation).__name__ == "GetItem":
        key = arguments["key"]
        return tuple(key) if isinstance(key, list | tuple) else (key,)
    (read,), (made,) = record.input_tensors, record.output_tensors
    starts = arguments["start_indices" if "start_indices" in arguments else "key"]
    ranges = zip(starts, read.shape, made.shape, strict=True)
    return tuple(slice(None) if size == part else slice(int(at), int(at) + part) for at, size, part in ranges)


def has_batch(value: Any) -> bool:
    """Whether the size of the batch has entered a number or the shape of an array."""
    sizes = np.shape(value) if np.ndim(value) else (value,)
    return any(isinstance(s, int | np.integer) and not isinstance(s, bool) and s and s % BATCH == 0 for s in sizes)


def of_one(value: Any, rank: int) -> Any:
    """Numbers of one example, if those of all are the same and are joined with a tensor of this rank."""
    value = plain(value)
    if not has_batch(value):
        return value
    if np.ndim(value) == rank and not has_batch(value[:1]) and (value == value[:1]).all():
        return value[:1]
    raise UntraceableError("it computes with the size of the batch")


def of_any(value: Any) -> Any:
    """Numbers of one example in place of equal ones of all, such as a mask of what is earlier."""
    return of_one(value, np.ndim(value)) if np.ndim(value) else plain(value)


def plain(value: Any) -> Any:
    """An array for an eager tensor, which Keras can save."""
    return np.asarray(value) if keras.ops.is_tensor(value) and not isinstance(value, keras.KerasTensor) else value
