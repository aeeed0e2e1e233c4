"""Functions of each number by itself: activations, and operations such as `x + 3.0` or keras.ops.sqrt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.merging import MERGES
from tfnas.layers.records import Folded

# Activations that look at one number at a time; anything else (softmax, a user's own function) may mix channels.
_ACTIVATIONS = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish mish sigmoid hard_sigmoid hard_silu hard_swish "
    "log_sigmoid tanh hard_tanh hard_shrink soft_shrink tanh_shrink softplus softsign squareplus sparse_plus "
    "exponential threshold".split()
)
OPERATIONS = frozenset(
    "Relu Relu6 Sigmoid Silu Gelu Tanh Elu Selu LeakyRelu HardSigmoid HardSilu Softplus Softsign Exp Expm1 Log Log1p "
    "Abs Absolute Sign Square Sqrt Rsqrt Reciprocal Negative Clip Sin Cos Erf Cast ConvertToTensor StopGradient".split()
)


class Pointwise(Channelwise):
    """A function of each number by itself."""

    LAYERS = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if isinstance(layer, keras.layers.Activation):
            return is_pointwise(layer.activation)
        return cls.is_of(layer) or takes_each_number(layer, record)

    @functools.cached_property
    def zero_to_zero(self) -> bool:
        return is_zero_at_zero(lambda x: self.call(self.inner, [x]))

    def constants(self, x: Folded) -> Any:
        return np.asarray(self.call(self.inner, [x.constants[0][None]]))[0]


def takes_each_number(operation: Any, record: Any) -> bool:
    """Whether an operation is called on one tensor alone, and computes each number of its output from one of that."""
    if len(record.input_tensors) != 1:
        return False
    if type(operation).__name__ in (*MERGES, "Power"):  # with a number, not with an array
        (tensor,) = record.input_tensors
        others = keras.tree.flatten((record.arguments.args, record.arguments.kwargs))
        return all(np.ndim(other) == 0 for other in others if other is not tensor)
    return type(operation).__name__ in OPERATIONS


def is_pointwise(activation: Any) -> bool:
    """Whether a layer's activation is one of Keras's that look at one number at a time."""
    return getattr(activation, "__name__", "") in _ACTIVATIONS


def is_zero_at_zero(function: Callable[[Any], Any]) -> bool:
    """Whether a function of tensors gives 0 for 0."""
    return not np.any(np.asarray(function(np.zeros((1, 1), np.float32))))


def is_of_keras(activation: Any) -> bool:
    """Whether a layer has no activation, or one of Keras's."""
    keras_activations = [getattr(keras.activations, key) for key in dir(keras.activations)]
    return activation is None or is_pointwise(activation) or activation in keras_activations
