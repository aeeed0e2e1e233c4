"""Functions of TensorFlow as those of keras.ops, for layers whose `call` uses these.

TensorFlow's functions take no symbolic tensors of Keras. Each function here has the arguments of the one that it stands
for, and computes the same; tests compare them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.util import dispatch

from tfnas.graph.tracing.records import UntraceableError

ops = keras.ops
_UNARY = (
    *("abs", "cos", "elu", "erf", "exp", "log", "log1p", "negative", "ones_like", "reciprocal", "relu", "relu6"),
    *("round", "rsqrt", "selu", "sigmoid", "sign", "sin", "softplus", "softsign", "sqrt", "square", "stop_gradient"),
    *("tanh", "zeros_like"),
)
_BINARY = (
    *("add", "divide", "equal", "greater", "greater_equal", "less", "less_equal", "maximum", "minimum", "multiply"),
    *("not_equal", "subtract"),
)


def _integers(values: Any) -> tuple[int, ...]:
    """A shape, sizes or axes, which may be given as a tensor."""
    return tuple(int(x) for x in np.ravel(values))


def _axis(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else _integers(value)


def _unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function of one tensor, which TensorFlow calls x, features or input."""
    return lambda *given, name=None, **named: function(*given, *named.values())


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda x, y, name=None: function(x, y)


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input_tensor, axis=None, keepdims=False, name=None: function(input_tensor, _axis(axis), keepdims)


def _deviation(x: Any, axis: Any, keepdims: bool) -> Any:
    return ops.sqrt(ops.var(x, axis, keepdims))


def _concat(values: Any, axis: int, name: Any = None) -> Any:
    return ops.concatenate(values, _axis(axis))


def _stack(values: Any, axis: int = 0, name: Any = None) -> Any:
    return ops.stack(values, axis)


def _unstack(value: Any, num: Any = None, axis: int = 0, name: Any = None) -> Any:
    return ops.unstack(value, num, axis)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0, num: Any = None, name: Any = None) -> Any:
    if np.ndim(num_or_size_splits) == 0:
        return ops.split(value, int(num_or_size_splits), axis)
    sizes = list(_integers(num_or_size_splits))
    if -1 in sizes:
        sizes[sizes.index(-1)] = value.shape[axis] - sum(sizes) - 1
    return ops.split(value, list(itertools.accumulate(sizes))[:-1], axis)


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0, name: Any = None) -> Any:
    widths = [tuple(row) for row in np.asarray(paddings).tolist()]
    value = constant_values if mode.lower() == "constant" else None
    return ops.pad(tensor, widths, mode.lower(), value)


def _shape(input: Any, out_type: Any = None, name: Any = None) -> Any:
    return np.array(ops.shape(input))


def _reshape(tensor: Any, shape: Any, name: Any = None) -> Any:
    return ops.reshape(tensor, _integers(shape))


def _transpose(a: Any, perm: Any = None, conjugate: bool = False, name: Any = None) -> Any:
    return ops.transpose(a, None if perm is None else _integers(perm))


def _expand_dims(input: Any, axis: int, name: Any = None) -> Any:
    return ops.expand_dims(input, axis)


def _squeeze(input: Any, axis: Any = None, name: Any = None) -> Any:
    return ops.squeeze(input, _axis(axis))


def _slice(input_: Any, begin: Any, size: Any, name: Any = None) -> Any:
    return ops.slice(input_, _integers(begin), _integers(size))


def _tile(input: Any, multiples: Any, name: Any = None) -> Any:
    return ops.tile(input, _integers(multiples))


def _repeat(input: Any, repeats: Any, axis: Any = None, name: Any = None) -> Any:
    return ops.repeat(input, repeats if np.ndim(repeats) else int(repeats), axis)


def _norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None, name: Any = None) -> Any:
    if ord != "euclidean" and (ord != 2 or not isinstance(axis, int)):
        raise UntraceableError(f"its `call` uses tf.norm with ord={ord}, which cannot be followed")
    return ops.sqrt(ops.sum(ops.square(tensor), _axis(axis), keepdims=bool(keepdims)))


def _broadcast_to(input: Any, shape: Any, name: Any = None) -> Any:
    return ops.broadcast_to(input, _integers(shape))


def _reverse(tensor: Any, axis: Any, name: Any = None) -> Any:
    return ops.flip(tensor, _integers(axis))


def _gather(
    params: Any, indices: Any, validate_indices: Any = None, axis: Any = None, batch_dims: int = 0, name: Any = None
) -> Any:
    if batch_dims:
        raise UntraceableError("its `call` uses tf.gather with batch_dims, which cannot be followed")
    return ops.take(params, indices, 0 if axis is None else axis)


def _cast(x: Any, dtype: Any, name: Any = None) -> Any:
    return ops.cast(x, tf.as_dtype(dtype).name)


def _matmul(
    a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, name: Any = None, **others: Any
) -> Any:
    if any(others.values()):
        raise UntraceableError(f"its `call` uses tf.matmul with {', '.join(others)}, which cannot be followed")
    turned = [ops.swapaxes(x, -1, -2) if turn else x for x, turn in ((a, transpose_a), (b, transpose_b))]
    return ops.matmul(*turned)


def _einsum(equation: str, *inputs: Any, name: Any = None, optimize: Any = None) -> Any:
    letters = sorted({letter for letter in equation if letter.isalpha()})
    small = str.maketrans(dict(zip(letters, string.ascii_lowercase, strict=False)))  # Keras knows no others
    return ops.einsum(equation.replace(" ", "").translate(small), *inputs)


def _crelu(features: Any, axis: int = -1, name: Any = None) -> Any:
    return ops.relu(ops.concatenate([features, ops.negative(features)], axis))


def _roll(input: Any, shift: Any, axis: Any, name: Any = None) -> Any:
    return ops.roll(input, shift if isinstance(shift, int) else _integers(shift), _axis(axis))


def _tensordot(a: Any, b: Any, axes: Any, name: Any = None) -> Any:
    return ops.tensordot(a, b, axes)


def _gelu(features: Any, approximate: bool = False, name: Any = None) -> Any:
    return ops.gelu(features, approximate)


def _silu(features: Any, beta: float = 1.0) -> Any:
    return ops.silu(features) if beta == 1 else features * ops.sigmoid(beta * features)


def _leaky_relu(features: Any, alpha: float = 0.2, name: Any = None) -> Any:
    return ops.leaky_relu(features, alpha)


def _softmax(logits: Any, axis: Any = None, name: Any = None) -> Any:
    return ops.softmax(logits, -1 if axis is None else axis)


def _log_softmax(logits: Any, axis: Any = None, name: Any = None) -> Any:
    return ops.log_softmax(logits, -1 if axis is None else axis)


def _clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, name: Any = None) -> Any:
    return ops.clip(t, clip_value_min, clip_value_max)


def _where(condition: Any, x: Any = None, y: Any = None, name: Any = None) -> Any:
    return ops.where(condition, x, y)


def _add_n(inputs: Sequence[Any], name: Any = None) -> Any:
    return functools.reduce(operator.add, inputs)


def _bias_add(value: Any, bias: Any, data_format: Any = None, name: Any = None) -> Any:
    _channels_last(data_format)
    return ops.add(value, bias)


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12, name: Any = None) -> Any:
    squares = ops.sum(ops.square(x), _axis(axis), keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(squares, epsilon)))


def _moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: Any = None) -> Any:
    return ops.mean(x, _axis(axes), keepdims), ops.var(x, _axis(axes), keepdims)


def _batch_normalization(
    x: Any, mean: Any, variance: Any, offset: Any, scale: Any, variance_epsilon: float, name: Any = None
) -> Any:
    rate = ops.rsqrt(ops.add(variance, variance_epsilon))
    rate = rate if scale is None else ops.multiply(rate, scale)
    made = ops.multiply(ops.subtract(x, mean), rate)
    return made if offset is None else ops.add(made, offset)


def _resize(
    images: Any,
    size: Any,
    method: Any = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
    name: Any = None,
) -> Any:
    if preserve_aspect_ratio:
        raise UntraceableError("its `call` uses tf.image.resize with preserve_aspect_ratio, which cannot be followed")
    return ops.image.resize(images, _integers(size), interpolation=method, antialias=antialias)


def _channels_last(data_format: Any) -> None:
    if data_format not in (None, "NHWC"):
        raise UntraceableError(f"its `call` uses data_format={data_format!r}, where channels are not the last axis")


def _window(sizes: Any) -> tuple[int, ...]:
    """A window or steps over height and width, given as one number, as two, or as four with examples and channels."""
    found = _integers(sizes)
    if len(found) == 4 and found[0] == found[3] == 1:
        return found[1:3]
    return found * 2 if len(found) == 1 else found


def _pooling(function: Callable[..., Any]) -> Callable[..., Any]:
    def pooled(input: Any, ksize: Any, strides: Any, padding: str, data_format: Any = None, name: Any = None) -> Any:
        _channels_last(data_format)
        return function(input, _window(ksize), _window(strides), padding.lower())

    return pooled


def _convolution(function: Callable[..., Any], kernel: str) -> Callable[..., Any]:
    """A convolution of which TensorFlow calls the kernel so."""
    names = ("input", kernel, "strides", "padding", "data_format", "dilations")

    def convolved(*arguments: Any, **keywords: Any) -> Any:
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        _channels_last(given.get("data_format"))
        strides, rates = _window(given["strides"]), _window(given.get("dilations") or 1)
        return function(given["input"], given[kernel], strides, given["padding"].lower(), dilation_rate=rates)

    return convolved


def _embedding_lookup(params: Any, ids: Any, max_norm: Any = None, name: Any = None) -> Any:
    if max_norm is not None:
        raise UntraceableError("its `call` uses tf.nn.embedding_lookup with max_norm, which cannot be followed")
    return ops.take(params, ids, 0)


def _depth_to_space(input: Any, block_size: int, data_format: Any = "NHWC", name: Any = None) -> Any:
    _channels_last(data_format)
    height, width, channels = input.shape[1:]
    left = channels // block_size**2
    x = ops.reshape(input, (-1, height, width, block_size, block_size, left))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * block_size, width * block_size, left))


def _space_to_depth(input: Any, block_size: int, data_format: Any = "NHWC", name: Any = None) -> Any:
    _channels_last(data_format)
    height, width, channels = input.shape[1:]
    rows, columns = height // block_size, width // block_size
    x = ops.reshape(input, (-1, rows, block_size, columns, block_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows, columns, channels * block_size**2))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _unary(getattr(ops, name)) for name in _UNARY},
    **{name: _binary(getattr(ops, name)) for name in _BINARY},
    "pow": _binary(ops.power),
    "truediv": _binary(ops.true_divide),
    "identity": _unary(lambda x: x),
    "convert_to_tensor": lambda value, *others, **named: value,
    "reduce_mean": _reduction(ops.mean),
    "reduce_max": _reduction(ops.max),
    "reduce_min": _reduction(ops.min),
    "reduce_sum": _reduction(ops.sum),
    "reduce_prod": _reduction(ops.prod),
    "reduce_logsumexp": _reduction(ops.logsumexp),
    "reduce_variance": _reduction(ops.var),
    "reduce_std": _reduction(_deviation),
    "add_n": _add_n,
    "batch_normalization": _batch_normalization,
    "bias_add": _bias_add,
    "broadcast_to": _broadcast_to,
    "cast": _cast,
    "clip_by_value": _clip_by_value,
    "concat": _concat,
    "conv2d": _convolution(ops.conv, "filters"),
    "crelu": _crelu,
    "depth_to_space": _depth_to_space,
    "depthwise_conv2d": _convolution(ops.depthwise_conv, "filter"),
    "einsum": _einsum,
    "embedding_lookup": _embedding_lookup,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gelu": _gelu,
    "l2_normalize": _l2_normalize,
    "leaky_relu": _leaky_relu,
    "log_softmax": _log_softmax,
    "matmul": _matmul,
    "moments": _moments,
    "norm": _norm,
    "pad": _pad,
    "repeat": _repeat,
    "reshape": _reshape,
    "resize": _resize,
    "reverse": _reverse,
    "roll": _roll,
    "shape": _shape,
    "silu": _silu,
    "slice": _slice,
    "softmax": _softmax,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "swish": _silu,
    "tensordot": _tensordot,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
    "where": _where,
    **{name: _pooling(ops.average_pool) for name in ("avg_pool", "avg_pool2d")},
    **{name: _pooling(ops.max_pool) for name in ("max_pool", "max_pool2d")},
}


@functools.cache
def functions() -> dict[str, Any]:
    """Returns the functions that Keras's symbolic tensors can be given, by all of their names below `tf`."""
    places = [("", tf), ("nn.", tf.nn), ("math.", tf.math), ("linalg.", tf.linalg)]
    names = {f"{place}{name}": module for place, module in places for name in _FUNCTIONS if name != "resize"}
    found = {name: getattr(module, name.rpartition(".")[2], None) for name, module in names.items()}
    return {name: function for name, function in found.items() if function} | {"image.resize": tf.image.resize}


class _Dispatcher(dispatch.GlobalOpDispatcher):  # type: ignore[misc]
    """Asked by TensorFlow when one of its functions is given what it cannot use.

    Attributes:
        unknown: name of the function that it was last asked about and that nothing stands for.
    """

    def __init__(self) -> None:
        self.unknown = ""
        self._in_place: dict[Any, Callable[..., Any]] = {}
        for name, function in functions().items():
            while function is not None:  # a function within others that make tensors of its arguments, say
                self._in_place[function] = _FUNCTIONS[name.rpartition(".")[2]]
                function = getattr(function, "__wrapped__", None)

    def handle(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        in_place = self._in_place.get(op)
        if not any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs))):
            return self.NOT_SUPPORTED
        if in_place is None:
            self.unknown = getattr(op, "__name__", "")
            return self.NOT_SUPPORTED
        return in_place(*args, **kwargs)


@contextlib.contextmanager
def in_keras() -> Iterator[None]:
    """Lets functions of TensorFlow take symbolic tensors of Keras, which then records what they do."""
    with mock.patch.object(dispatch, "_GLOBAL_DISPATCHERS", [*dispatch._GLOBAL_DISPATCHERS, _dispatcher()]):
        yield


def unknown() -> str:
    """Returns the name of the function that a symbolic tensor was last given to in vain."""
    return _dispatcher().unknown


@functools.cache
def _dispatcher() -> _Dispatcher:
    return _Dispatcher()
