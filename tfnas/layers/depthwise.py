"""Depthwise convolutions, which filter each channel by itself, and separable ones, which mix the results as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.layers.base import Computation, Fed, WholeComputation
from tfnas.layers.convolution import Convolution, WithKernel, dilated
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class Depthwise(WithKernel):
    """A depthwise convolution, also as a grouped one of one channel a group; m outputs for each input channel."""

    LAYERS = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        if isinstance(layer, cls.LAYERS):
            return True
        grouped = isinstance(layer, Convolution.LAYERS) and getattr(layer, "groups", 1) > 1
        return grouped and layer.kernel.shape[-2] == 1

    @classmethod
    def channel_kernels(cls, layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
        size = math.prod(layer.kernel_size)
        multiplier = cls._multiplier_of(layer)
        return [(layer.kernel, (size, math.prod(layer.kernel.shape) // size // multiplier, multiplier))]

    @property
    def multiplier(self) -> int:
        """Outputs for each input channel."""
        return self._multiplier_of(self.inner)

    @classmethod
    def _multiplier_of(cls, layer: Any) -> int:
        return int(layer.depth_multiplier if isinstance(layer, cls.LAYERS) else layer.filters // layer.groups)

    @property
    def holds_more(self) -> bool:
        return self.multiplier > 1

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        constants = kept & ~x.explicit & ~x.zero
        explicit = (kept & x.explicit) | (constants & self.pads)
        zero = ~constants & self.zero_to_zero
        return State(*(np.repeat(channels, self.multiplier) for channels in (kept & x.depends, explicit, zero)))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [np.any(live.reshape(-1, self.multiplier), axis=1)]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(*self.read(x.live))

    def held(self, live: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.repeat(self.read(live)[0], self.multiplier))

    def ties(self, j: int) -> np.ndarray | None:
        return np.repeat(np.arange(self.input_channels[0]), self.multiplier)

    def count(self, x: Channels) -> tuple[int, int]:
        # All outputs of an input channel that is there are computed, also where only one of them is read.
        return self.count_of(self.given(x, 0).size, self.held(x.live).size)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        weights = outputs * math.prod(self.inner.kernel_size)
        return weights + (outputs if self.inner.use_bias else 0), weights

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        squares = np.square(np.asarray(self.inner.kernel, np.float64)).reshape(-1, self.num_channels).sum(0)
        return np.zeros(self.input_channels[0]), squares + self._squared_bias()

    def constants(self, x: Folded) -> Any:
        ((_, shape),) = self.channel_kernels(self.inner)
        sums = x.weights[self.name]["kernel"].reshape(shape).sum(0)  # [K, m]
        return self.activated((x.kept_constants[:, None] * sums).reshape(-1) + self.bias(x.weights))

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        inputs, outputs = self.given(x, 0), self.held(x.live)
        kernel = x.weights[self.name]["kernel"]
        if isinstance(self.inner, self.LAYERS):
            weights, changes = [kernel[..., inputs, :]], {}
        else:
            weights, changes = [kernel[..., outputs]], {"groups": int(inputs.size), "filters": int(outputs.size)}
        if self.inner.use_bias:
            weights.append(self.bias(x.weights)[outputs])
        return self.rebuilt(build, [build.gather(sources[0], inputs)], weights, **changes)

    @property
    def computation(self) -> type[Computation]:
        narrow = isinstance(self.inner, self.LAYERS) and _is_plain(self.inner)
        return _Filtering if narrow else WholeComputation


class Separable(Convolution):
    """A depthwise convolution and a 1x1 convolution in one layer; constants are written out in front of it."""

    LAYERS = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)

    @classmethod
    def channel_kernels(cls, layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
        depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
        channels, multiplier = depthwise.shape[-2:]
        return [
            (depthwise, (math.prod(depthwise.shape[:-2]), channels, multiplier)),
            (pointwise, (1, channels, multiplier * pointwise.shape[-1])),
        ]

    def taken(self, x: Channels) -> tuple[np.ndarray, bool]:
        inputs, _ = super().taken(x)
        return inputs | (x.kept & ~x.explicit & ~x.zero), False

    def count(self, x: Channels) -> tuple[int, int]:
        return self.count_of(self.given(x, 0).size, int(x.live.sum()))

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        middle = inputs * self.inner.depth_multiplier
        weights = middle * math.prod(self.inner.kernel_size) + middle * outputs
        return weights + (outputs if self.inner.use_bias else 0), weights

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        kernels = self.channel_kernels(self.inner)
        reads = [np.square(np.asarray(kernel, np.float64)).reshape(shape).sum((0, 2)) for kernel, shape in kernels]
        makes = np.square(np.asarray(self.inner.pointwise_kernel, np.float64)).reshape(-1, self.num_channels).sum(0)
        return np.sum(reads, axis=0), makes + self._squared_bias()

    def constants(self, x: Folded) -> Any:
        values = x.weights[self.name]
        depthwise, pointwise = values["depthwise_kernel"], values["pointwise_kernel"]
        size = math.prod(depthwise.shape[:-2])
        middle = x.kept_constants[:, None] * depthwise.reshape(size, *depthwise.shape[-2:]).sum(0)  # [K, m]
        return self.activated(middle.reshape(-1) @ pointwise.reshape(-1, self.num_channels) + self.bias(x.weights))

    def weights(self, x: Folded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both kernels and the bias, of the channels it is given and computes."""
        values = x.weights[self.name]
        inputs, outputs = self.taken(x)[0], self.held(x.live)
        depthwise = np.where(x.kept[inputs][:, None], values["depthwise_kernel"][..., inputs, :], np.float32(0))
        rows = np.repeat(inputs, self.inner.depth_multiplier)
        return depthwise, values["pointwise_kernel"][..., rows, :][..., outputs], self.bias(x.weights)[outputs]

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        depthwise, pointwise, bias = self.weights(x)
        tensor = build.gather(sources[0], self.given(x, 0))
        weights = [depthwise, pointwise, bias] if self.inner.use_bias else [depthwise, pointwise]
        return self.rebuilt(build, [tensor], weights, filters=int(bias.size))

    def read_by_matrix(self, x: Any) -> Any:
        layer = self.inner
        settings = {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}
        kernel = layer.depthwise_kernel
        return keras.ops.depthwise_conv(keras.ops.cast(x, kernel.dtype), kernel, **settings)

    def windows(self, sizes: Sequence[int], outputs: Sequence[int]) -> list[np.ndarray]:
        return [np.arange(size)[:, None] for size in sizes]

    @property
    def _mixing(self) -> Any:
        return self.inner.pointwise_kernel

    @property
    def computation(self) -> type[Computation]:
        return _Separated if _is_plain(self.inner) else WholeComputation


class _Filtering(Computation):
    """A depthwise convolution of images."""

    node: Depthwise

    def signature(self) -> Fed:
        kernel = tf.TensorSpec((*self.node.inner.kernel_size, None, self.node.multiplier))
        return {"kernel": kernel, "bias": tf.TensorSpec((None,))}

    def feed(self, x: Folded) -> Fed:
        kernel = x.weights[self.node.name]["kernel"][..., self.node.given(x, 0), :]
        return {"kernel": kernel, "bias": self.node.bias(x.weights)[self.node.held(x.live)]}

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        filtered = _filtered(self.node.inner, tensors[0], fed["kernel"], self.source_shapes[0])
        return self.node.inner.activation(tf.nn.bias_add(filtered, fed["bias"]))


class _Separated(Computation):
    """A separable convolution of images."""

    node: Separable

    def signature(self) -> Fed:
        return {
            "depthwise": tf.TensorSpec((*self.node.inner.kernel_size, None, self.node.inner.depth_multiplier)),
            "pointwise": tf.TensorSpec((1, 1, None, None)),
            "bias": tf.TensorSpec((None,)),
        }

    def feed(self, x: Folded) -> Fed:
        return dict(zip(("depthwise", "pointwise", "bias"), self.node.weights(x), strict=True))

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        middle = _filtered(self.node.inner, tensors[0], fed["depthwise"], self.source_shapes[0])
        mixed = tf.nn.convolution(middle, fed["pointwise"], 1, "VALID")
        return self.node.inner.activation(tf.nn.bias_add(mixed, fed["bias"]))


def _is_plain(layer: Any) -> bool:
    """Whether TensorFlow can compute this layer's depthwise step on any number of channels."""
    strides, dilations = layer.strides, layer.dilation_rate
    return len(strides) == 2 and len(set(strides)) == 1 and (max(strides) == 1 or max(dilations) == 1)


def _filtered(layer: Any, x: tf.Tensor, kernel: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """The depthwise step of a layer, on channels of this spatial shape."""
    if max(layer.dilation_rate) > 1:
        return dilated(layer, x, shape, lambda x: tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID"))
    return tf.nn.depthwise_conv2d(x, kernel, (1, *layer.strides, 1), layer.padding.upper())
