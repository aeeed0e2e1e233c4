"""What a Keras layer or operation does with channels: one kind for each, and what is refused because none fits.

Each kind has one rule in `channels` (how it makes channels explicit, zero and live), one in `costs` (what it costs),
one in `folding` (what its constants are), one in `subnets` (how it is cut) and one in `program` (how it is computed for
any architecture):

    input      a model's input
    kernel     mixes all input channels: Conv, ConvTranspose, Dense
    separable  a depthwise convolution and a kernel in one layer
    depthwise  filters each channel by itself, `multiplier` outputs for each input
    norm       BatchNormalization
    scale      one factor per channel
    pointwise  a function of each number by itself
    spatial    pooling, cropping, upsampling, dropout: a constant channel stays what it is
    padding    zeros round the border, or dropout that is always on: a constant channel stays so only if it is zero
    reshape    other spatial axes, the same channels
    flatten    spatial axes and channels become one axis
    merge      Add, Multiply, ... of tensors, channel by channel
    concat     concatenation along channels
    opaque     reads all channels and is not cut: LayerNormalization, Rescaling, ungated grouped convolutions, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.layers.calls import Call

KERNELS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)
TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_POINTWISE = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
POOLING = (
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
)
# Operations without weights that a gate may keep or drop.
CHOICES = (*POOLING, keras.layers.Identity)
# Kinds whose layer has a kernel that can be cut.
CUT_KINDS = frozenset(("kernel", "separable", "depthwise"))
_RANDOM = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianNoise,
)
_SPATIAL = (
    *POOLING,
    *_RANDOM,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
    keras.layers.UpSampling3D,
    keras.layers.Identity,
)
_PADDING = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)
_OPAQUE = (
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.Softmax,
    keras.layers.Permute,
    keras.layers.RepeatVector,
)
# By class name, of layers and of Keras operations alike (`x + y` makes an operation 'Add').
MERGES = {
    "Add": "add",
    "Subtract": "subtract",
    "Multiply": "multiply",
    "Average": "average",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Divide": "divide",
    "TrueDivide": "divide",
}
_POINTWISE_OPERATIONS = frozenset(
    "Relu Relu6 Sigmoid Silu Gelu Tanh Elu Selu LeakyRelu HardSigmoid HardSilu Softplus Softsign Exp Abs Absolute "
    "Square Sqrt Negative Clip".split()
)
# What `subnets` builds with, so that a subnet can be gated in its turn.
_OPAQUE_OPERATIONS = frozenset("Take GetItem OnesLike ZerosLike Cast Reshape Tile".split())
# Of these, what looks at nothing but its input's shape.
CONSTANT_OPERATIONS = frozenset(("OnesLike", "ZerosLike"))
# Activations that look at one number at a time; anything else (softmax, a user's own function) may mix channels.
_ACTIVATIONS = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish mish sigmoid hard_sigmoid hard_silu hard_swish "
    "log_sigmoid tanh hard_tanh hard_shrink soft_shrink tanh_shrink softplus softsign squareplus sparse_plus "
    "exponential threshold".split()
)


def kind_of(layer: Any, name: str, call: Any, called: Call) -> str:
    """The kind of a layer or operation, with or without a gate round it.

    Args:
        layer: built.
        name: for messages.
        call: Keras's record of the call, with its input and output tensors.
        called: the same with its arguments checked.

    Raises:
        UserError: naming the layer and what to do, if no kind fits.
    """
    inputs, output = call.input_tensors, call.output_tensors[0]
    inner = layer.layer if is_gate(layer) else layer
    if not type(inner).__module__.startswith("keras."):
        # Also where it inherits from one of Keras's: what it does may be another thing, and a subnet of it could not be
        # loaded without its code.
        raise UserError(
            f"layer '{name}': {type(inner).__name__} is a class of your own, and how channels pass through it is not "
            "known: replace it by Keras's own layers, or put it before or behind the model"
        )
    if getattr(inner, "data_format", None) == "channels_first":
        raise UserError(f"layer '{name}': data_format must be 'channels_last'. Received: {inner.data_format!r}")
    if isinstance(inner, keras.layers.InputLayer):
        return "input"
    if called.masked:
        return "opaque"
    if isinstance(inner, SEPARABLE):
        return _checked(inner, name, "separable")
    if isinstance(inner, DEPTHWISE):
        return _checked(inner, name, "depthwise")
    if isinstance(inner, (*KERNELS, *TRANSPOSED)):
        groups = getattr(inner, "groups", 1)
        if groups == inputs[0].shape[-1] > 1:
            return _checked(inner, name, "depthwise")
        return "opaque" if groups > 1 else _checked(inner, name, "kernel")
    if isinstance(inner, keras.layers.BatchNormalization):
        if inner.axis not in (-1, len(output.shape) - 1):
            raise UserError(f"layer '{name}': axis must be the channels' (-1). Received: {inner.axis}")
        if called.training:
            raise UserError(
                f"layer '{name}': a BatchNormalization called with training=True makes what an example gives depend on "
                "the other examples of its batch, at inference too, so that no architecture has one result: leave the "
                "argument out"
            )
        return "norm"
    if type(inner).__name__ == "LayerScale" and type(inner).__module__.startswith("keras."):
        return "scale"
    if isinstance(inner, _POINTWISE):
        if not isinstance(inner, keras.layers.Activation):
            return "pointwise"
        return _checked(inner, name, "pointwise") if is_pointwise(inner.activation) else _checked(inner, name, "opaque")
    if isinstance(inner, _RANDOM) and called.training:
        return "opaque" if isinstance(inner, keras.layers.GaussianNoise) else "padding"
    if isinstance(inner, _SPATIAL):
        return "spatial"
    if isinstance(inner, _PADDING):
        return "padding"
    if isinstance(inner, keras.layers.Flatten):
        return "flatten"
    if isinstance(inner, keras.layers.Reshape):
        return "reshape" if output.shape[-1] == inputs[0].shape[-1] else "opaque"
    if isinstance(inner, _OPAQUE):
        return "opaque"
    if type(inner).__module__.startswith("keras."):
        if type(inner).__name__ in MERGES:
            return _merge_kind(name, call)
        if type(inner).__name__ == "Concatenate":
            if inner.axis not in (-1, len(output.shape) - 1):
                raise UserError(f"layer '{name}': axis must be the channels' (-1). Received: {inner.axis}")
            return "concat"
        if type(inner).__name__ in _POINTWISE_OPERATIONS and len(inputs) == 1:
            return "pointwise"
        if type(inner).__name__ in _OPAQUE_OPERATIONS and not isinstance(inner, keras.Layer):
            return "opaque"
    if isinstance(inner, keras.layers.TFSMLayer):
        raise UserError(
            f"layer '{name}': a TFSMLayer, which holds a SavedModel: its operations are fixed and cannot be cut. Gate "
            "the Keras model that it was made from, from its .keras or .h5 file"
        )
    what = "a Lambda" if isinstance(inner, keras.layers.Lambda) else type(inner).__name__
    raise UserError(
        f"layer '{name}': {what} is not supported, because how channels pass through it is not known: replace it by "
        "Keras's own layers (convolutions, Dense, normalisations, activations, pooling, padding, cropping, upsampling, "
        "Flatten, Reshape, Add, Multiply, Concatenate and their like), or put it before or behind the model"
    )


def _checked(inner: Any, name: str, kind: str) -> str:
    if not is_pointwise(inner.activation) and inner.activation not in _keras_activations():
        received = getattr(inner.activation, "__name__", type(inner.activation).__name__)
        raise UserError(
            f"layer '{name}': one of Keras's own activations expected, such as 'relu'. Received: '{received}'"
        )
    return kind


def _keras_activations() -> list[Any]:
    return [getattr(keras.activations, name) for name in dir(keras.activations)]


def _merge_kind(name: str, call: Any) -> str:
    inputs, output = call.input_tensors, call.output_tensors[0]
    if len(inputs) == 1:  # with a number, `x + 3.0`, or with an array, which is not cut
        others = keras.tree.flatten((call.arguments.args, call.arguments.kwargs))
        return "pointwise" if all(np.ndim(o) == 0 for o in others if o is not inputs[0]) else "opaque"
    if any(t.shape[-1] not in (1, output.shape[-1]) or len(t.shape) != len(output.shape) for t in inputs):
        raise UserError(
            f"layer '{name}': tensors of one rank, with the same or one channel, expected. "
            f"Received: {[tuple(t.shape) for t in inputs]}"
        )
    return "merge"


def zero_to_zero(operation: Any, kind: str, called: Call) -> bool:
    """Whether zeros as input give zeros, whatever the weights."""
    inner = operation.layer if is_gate(operation) else operation
    if kind in CUT_KINDS:
        return not inner.use_bias and is_pointwise(inner.activation) and _at_zero(inner.activation)
    if kind == "pointwise":
        return _at_zero(lambda x: called.again(inner, [x]))
    return kind not in ("norm", "opaque", "input")


def _at_zero(function: Callable[[Any], Any]) -> bool:
    return not np.any(np.asarray(function(np.zeros((1, 1), np.float32))))


def channel_kernels(layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """A layer's kernels, each with the shape (before, K, after) in which its input channels are the middle axis.

    Args:
        layer: built; one that `Gated` may wrap. A layer without a kernel (pooling) has none.
    """
    if isinstance(layer, TRANSPOSED):
        return [(layer.kernel, (math.prod(layer.kernel.shape[:-1]), layer.kernel.shape[-1], 1))]
    if isinstance(layer, SEPARABLE):
        depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
        channels, multiplier = depthwise.shape[-2:]
        return [
            (depthwise, (math.prod(depthwise.shape[:-2]), channels, multiplier)),
            (pointwise, (1, channels, multiplier * pointwise.shape[-1])),
        ]
    if not hasattr(layer, "kernel"):
        return []
    shape = layer.kernel.shape
    if getattr(layer, "groups", 1) > 1:  # depthwise: the one that `is_gateable` lets through
        return [(layer.kernel, (math.prod(shape[:-2]), layer.groups, shape[-1] // layer.groups))]
    return [(layer.kernel, (math.prod(shape[:-2]), *shape[-2:]))]


def is_gate(layer: Any) -> bool:
    """Whether a layer is `Gated`, which this file cannot import."""
    return getattr(layer, "gates_inputs", False)


def is_pointwise(activation: Any) -> bool:
    """Whether a layer's activation is one of Keras's that look at one number at a time."""
    return getattr(activation, "__name__", "") in _ACTIVATIONS
