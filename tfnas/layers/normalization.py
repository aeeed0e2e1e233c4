"""Batch normalization, and scaling of each channel by a factor of its own (LayerScale)."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.layers.base import Channelwise, ChannelwiseComputation, Computation, Fed
from tfnas.layers.calls import Call
from tfnas.layers.records import Folded, Weights


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
        check_axis(layer, name, record)
        if called.training:
            raise UserError(
                f"layer '{name}': a BatchNormalization called with training=True makes what an example gives depend on "
                "the other examples of its batch, at inference too, so that no architecture has one result: leave the "
                "argument out"
            )

    @property
    def frozen(self) -> bool:
        """Whether it keeps its statistics: not trainable, or called with training=False."""
        return not self.inner.trainable or self.called.training is False

    def affine(self, weights: Weights) -> tuple[Any, Any]:
        values = weights[self.name]
        scale = values.get("gamma", np.float32(1)) / np.sqrt(values["moving_variance"] + self.inner.epsilon)
        return scale, values.get("beta", np.float32(0)) - values["moving_mean"] * scale

    def settings(self, channels: int) -> dict[str, Any]:
        return {"axis": -1}


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


def check_axis(layer: Any, name: str, record: Any) -> None:
    """Raises UserError unless a layer's axis is the channels'."""
    if layer.axis not in (-1, len(record.output_tensors[0].shape) - 1):
        raise UserError(f"layer '{name}': axis must be the channels' (-1). Received: {layer.axis}")
