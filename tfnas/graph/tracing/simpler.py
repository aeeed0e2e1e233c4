"""Operations of Keras as the simpler ones that they consist of."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfnas.graph.tracing.records import calls_before

ops = keras.ops


def consists_of(record: Any) -> list[Any]:
    """Returns records of simpler calls between the same tensors as a call's; the call's own record if there are none.

    Args:
        record: Keras's, of a call of a layer or operation.
    """
    operation = record.operation
    simpler = None if isinstance(operation, keras.Layer) else _SIMPLER.get(type(operation).__name__)
    if simpler is None:
        return [record]
    arguments, keywords = record.arguments.args, record.arguments.kwargs
    given = {**dict(zip(inspect.signature(operation.call).parameters, arguments, strict=False)), **keywords}
    made = simpler(operation, **given)
    return [record] if made is None else _between(record.input_tensors, made, record.output_tensors)


def _between(inputs: Sequence[Any], made: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Records of the calls that make tensors of inputs, in topological order, with other tensors in place of these."""
    instead = {id(x): y for x, y in zip(made, outputs, strict=True)}
    return [
        types.SimpleNamespace(
            operation=record.operation,
            arguments=record.arguments,
            input_tensors=record.input_tensors,
            output_tensors=[instead.get(id(x), x) for x in record.output_tensors],
        )
        for record in calls_before(made, {id(x) for x in inputs})
    ]


def _normalize(operation: Any, x: Any) -> list[Any] | None:
    if operation.order != 2 or operation.axis not in (-1, len(x.shape) - 1):
        return None
    smallest = keras.config.epsilon() if operation.epsilon is None else operation.epsilon
    squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return [ops.multiply(x, ops.minimum(ops.rsqrt(squares), 1 / smallest))]


def _moments(operation: Any, x: Any) -> list[Any]:
    axes, keepdims = tuple(operation.axes), operation.keepdims
    return [ops.mean(x, axes, keepdims), ops.var(x, axes, keepdims)]


def _glu(operation: Any, x: Any) -> list[Any]:
    one, other = ops.split(x, 2, operation.axis)
    return [ops.multiply(one, ops.sigmoid(other))]


def _layer_norm(operation: Any, x: Any, gamma: Any = None, beta: Any = None) -> list[Any] | None:
    if operation.rms_scaling:
        return None
    centered = ops.subtract(x, ops.mean(x, operation.axis, keepdims=True))
    return _scaled(centered, ops.var(x, operation.axis, keepdims=True), operation.epsilon, gamma, beta)


def _rms_norm(operation: Any, x: Any, scale: Any = None) -> list[Any] | None:
    return _scaled(x, ops.mean(ops.square(x), operation.axis, keepdims=True), operation.epsilon, scale, None)


def _batch_norm(
    operation: Any, x: Any, mean: Any, variance: Any, offset: Any = None, scale: Any = None
) -> list[Any] | None:
    if operation.axis not in (-1, len(x.shape) - 1):
        return None
    return _scaled(ops.subtract(x, mean), variance, operation.epsilon, scale, offset)


def _scaled(x: Any, variance: Any, epsilon: float | None, scale: Any, offset: Any) -> list[Any] | None:
    """`x / sqrt(variance + epsilon) * scale + offset`; None in half precision, of which Keras takes more care."""
    if keras.backend.standardize_dtype(x.dtype) != "float32":
        return None
    smallest = keras.config.epsilon() if epsilon is None else epsilon
    made = ops.multiply(x, ops.rsqrt(ops.add(variance, smallest)))
    made = made if scale is None else ops.multiply(made, scale)
    return [made if offset is None else ops.add(made, offset)]


_SIMPLER: dict[str, Callable[..., list[Any] | None]] = {
    "BatchNorm": _batch_norm,
    "Glu": _glu,
    "LayerNorm": _layer_norm,
    "Moments": _moments,
    "Normalize": _normalize,
    "RMSNorm": _rms_norm,
}
