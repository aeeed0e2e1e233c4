"""Batch normalization, and scaling of each channel by a factor of its own (LayerScale)."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.layers.base import Computation, Fed, Normalizing
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise, ChannelwiseComputation
from tfnas.layers.records import Folded, Weights

_LEAST_EPSILON = 1.001e-5  # of cuDNN's normalization


class _Affine(Channelwise, abc.ABC):
    """At inference a factor and an offset for each channel; a constant stays one."""

    @abc.abstractmethod
    def affine(self, weights: Weights) -> tuple[Any, Any]:
        """Factor and offset, shape (C,) each."""

    def constants(self, x: Folded) -> Any:
        scale, offset = self.affine(x.weights)
        return x.constants[0] * scale + offset

    @property
    def computation(self) -> type[Computation]:
        return _Computation


class BatchNormalization(_Affine):
    """Batch normalization, which makes another constant of zero."""

    LAYERS = (keras.layers.BatchNormalization,)
    zero_to_zero = False

    @classmethod
    def check(cls, layer: Any, name: str, record: Any, called: Call) -> None:
        if layer.axis not in (-1, len(record.output_tensors[0].shape) - 1):
            raise UserError(f"layer '{name}': axis must be the channels' (-1). Received: {layer.axis}")
        if called.training:
            raise UserError(
                f"layer '{name}': a BatchNormalization called with training=True makes what an example gives depend on "
                "the other examples of its batch, at inference too, so that no architecture has one result: leave the "
                "argument out"
            )

    @property
    def frozen(self) -> bool:
        """Whether it keeps its statistics: not trainable, called with training=False, or called more than once."""
        return not self.inner.trainable or self.called.training is False or self.shared

    def affine(self, weights: Weights) -> tuple[Any, Any]:
        values = weights[self.name]
        scale = values.get("gamma", np.float32(1)) / np.sqrt(values["moving_variance"] + self.inner.epsilon)
        return scale, values.get("beta", np.float32(0)) - values["moving_mean"] * scale

    def constants(self, x: Folded) -> Any:
        if "moving_mean" in x.weights[self.name]:
            return super().constants(x)
        return x.weights[self.name].get("beta", np.float32(0))  # by the batch's own statistics, a constant becomes 0

    def settings(self, channels: int) -> dict[str, Any]:
        return {"axis": -1}

    # With statistics that are not folded.

    def signature(self) -> Fed:
        """Returns the tf.TensorSpec of the values of `parameters`."""
        return {"gamma": tf.TensorSpec((None,)), "beta": tf.TensorSpec((None,))}

    def parameters(self, weights: Weights, channels: np.ndarray) -> Fed:
        """Factor and offset of the normalized channels with these indices."""
        values = weights[self.name]
        defaults = np.ones(channels.size, np.float32), np.zeros(channels.size, np.float32)
        return {
            name: values[name][channels] if name in values else default
            for name, default in zip(("gamma", "beta"), defaults, strict=True)
        }

    def scaling(self, fed: Fed) -> tuple[tf.Tensor, tf.Tensor]:
        """Factor and offset for each channel, as `affine`, from what the program is given."""
        scale = fed["gamma"] * tf.math.rsqrt(fed["variance"] + self.inner.epsilon)
        return scale, fed["beta"] - fed["mean"] * scale

    def by_batch(self, x: tf.Tensor, fed: Fed) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Normalizes by the batch's own mean and (biased) variance, and returns these too, shape (channels,) each."""
        gamma, beta, epsilon = fed["gamma"], fed["beta"], self.inner.epsilon
        if epsilon < _LEAST_EPSILON:
            mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon), mean, variance
        shape = tf.shape(x)
        flat = len(x.shape) != 4
        images = tf.reshape(x, (-1, 1, 1, shape[-1])) if flat else x
        none = tf.zeros(0)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
        )
        count = tf.cast(tf.reduce_prod(shape[:-1]), tf.float32)
        return (
            tf.reshape(y, shape) if flat else y,
            mean,
            variance * (count - 1) / count,
        )  # TensorFlow returns the unbiased one

    @property
    def computation(self) -> type[Computation]:
        return _Normalizing


class Scale(_Affine):
    """LayerScale, which Keras's ConvNeXt has: a factor for each channel."""

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        return type(layer).__name__ == "LayerScale"

    def affine(self, weights: Weights) -> tuple[Any, Any]:
        gamma = weights[self.name]["gamma"]
        return gamma, np.zeros_like(gamma)

    def settings(self, channels: int) -> dict[str, Any]:
        return {"projection_dim": channels}


class _Computation(ChannelwiseComputation):
    node: _Affine

    def signature(self) -> Fed:
        return {"scale": tf.TensorSpec((None,)), "offset": tf.TensorSpec((None,))}

    def feed(self, x: Folded) -> Fed:
        scale, offset = self.node.affine(x.weights)
        held = self.node.held(x.live)
        return {"scale": scale[held], "offset": offset[held]}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        return tensors[0] * fed["scale"] + fed["offset"]


class _Normalizing(_Computation, Normalizing):
    """A normalization that no kernel absorbs."""

    node: BatchNormalization

    def __init__(self, node: BatchNormalization, *arguments: Any):
        super().__init__(node, *arguments)
        self.normalizes = node if node.name in self.calibrated else None

    def signature(self) -> Fed:
        return self.node.signature() if self.normalizes else super().signature()

    def feed(self, x: Folded) -> Fed:
        return self.node.parameters(x.weights, self.node.held(x.live)) if self.normalizes else super().feed(x)

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        if not self.normalizes:
            return super().compute(tensors, fed)
        scale, offset = self.node.scaling(fed)
        return tensors[0] * scale + offset

    def calibrate(self, tensors: list[tf.Tensor], fed: Fed) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return self.node.by_batch(tensors[0], fed)
