"""Convolutions, transposed ones, and Dense: every output channel mixes all input channels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfnas.layers.base import Computation, Fed, Node, Normalizing, WholeComputation
from tfnas.layers.normalization import BatchNormalization
from tfnas.layers.pointwise import Pointwise, is_pointwise, is_zero_at_zero
from tfnas.layers.records import Builder, Channels, Folded, State, Value, Weights


class WithKernel(Node):
    """Base class of all layers with a kernel."""

    kernel_is_cut = True

    @functools.cached_property
    def zero_to_zero(self) -> bool:
        activation = self.inner.activation
        return not self.inner.use_bias and is_pointwise(activation) and is_zero_at_zero(activation)

    @property
    def full_output(self) -> bool:
        return not is_pointwise(self.inner.activation)  # softmax looks at all output channels at once

    @property
    def pads(self) -> bool:
        """Whether it sees zeros beyond the border, so that a constant input gives no constant output."""
        padding = getattr(self.inner, "padding", "valid")
        return padding != "valid" and any(k > 1 for k in getattr(self.inner, "kernel_size", ()))

    def bias(self, weights: Weights) -> np.ndarray:
        """Its bias, shape (C,); zeros without one."""
        return weights[self.name].get("bias", np.zeros(self.num_channels, np.float32))

    def _squared_bias(self) -> np.ndarray:
        """Squares of its bias, float64, shape (C,)."""
        bias = self.inner.bias if self.inner.use_bias else np.zeros(self.num_channels)
        return np.square(np.asarray(bias, np.float64))

    def activated(self, constants: np.ndarray) -> np.ndarray:
        """Its activation of one number for each channel."""
        return np.asarray(self.inner.activation(constants[None]))[0]


class Kernel(NamedTuple):
    """The weights that an architecture leaves of a convolution or dense layer, constants folded in.

    Attributes:
        weights: of the channels it is given and computes, shape (*spatial, inputs, outputs); the last two axes
            are in this order for a transposed convolution too.
        border: what constants contribute to each position of the kernel, shape (*spatial, 1, outputs), where
            it pads and so sees an edge; None where nothing is contributed.
        bias: shape (outputs,); constants of a kernel that does not pad included.
    """

    weights: np.ndarray
    border: np.ndarray | None
    bias: np.ndarray


class Convolution(WithKernel):
    """A convolution that is not grouped, or Dense."""

    LAYERS: ClassVar[tuple[type, ...]] = (
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.Dense,
    )

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        return isinstance(layer, cls.LAYERS) and getattr(layer, "groups", 1) == 1

    @classmethod
    def channel_kernels(cls, layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
        return [(layer.kernel, (math.prod(layer.kernel.shape[:-2]), *layer.kernel.shape[-2:]))]

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        constants = (kept & ~x.explicit & ~x.zero).any()
        explicit = (kept & x.explicit).any() or (self.pads and constants)
        return self.everywhere((kept & x.depends).any(), explicit, not constants and self.zero_to_zero)

    def taken(self, x: Channels) -> tuple[np.ndarray, bool]:
        """The input channels it is given, bool, shape (K,), and whether constants add to them; where it works.

        In the subnet the constants become the bias of a kernel that does not pad, and one channel of ones for one that
        does.
        """
        inputs = x.kept & x.explicit
        constants = bool((x.kept & ~x.explicit & ~x.zero).any())
        return x.available if x.linked and inputs.any() else inputs, constants

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(self.taken(x)[0])

    @property
    def mixes(self) -> bool:
        return True

    def count(self, x: Channels) -> tuple[int, int]:
        inputs, constants = self.taken(x)
        outputs = int(x.live.sum())
        as_channel, as_bias = constants and self.pads, constants and not self.pads
        parameters, weights = self.count_of(int(inputs.sum()) + as_channel, outputs)
        return parameters + (outputs if as_bias and not self.inner.use_bias else 0), weights

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        weights = math.prod(getattr(self.inner, "kernel_size", ())) * inputs * outputs
        return weights + (outputs if self.inner.use_bias else 0), weights

    def _turned(self, kernel: np.ndarray) -> np.ndarray:
        """Transposes between its layer's axes and (*spatial, K, C)."""
        return kernel

    def _kernel(self, x: Folded) -> np.ndarray:
        return self._turned(x.weights[self.name]["kernel"])

    def _of_constants(self, x: Folded) -> np.ndarray:
        """Returns the output of the source's constants at each position of the kernel, shape (*spatial, C)."""
        kernel = self._kernel(x)
        return np.tensordot(x.kept_constants, kernel, (0, kernel.ndim - 2))

    def constants(self, x: Folded) -> Any:
        return self.activated(self._of_constants(x).reshape(-1, self.num_channels).sum(0) + self.bias(x.weights))

    def folded(self, x: Folded) -> Kernel:
        """Its kernel under an architecture, where it works."""
        outputs = np.flatnonzero(x.live)
        inputs, constants = self.taken(x)
        read = np.flatnonzero(inputs)
        weights = self._kernel(x)[..., read, :][..., outputs]
        if not x.kept[read].all():
            weights = np.where(x.kept[read][:, None], weights, np.float32(0))
        bias = self.bias(x.weights)[outputs]
        if not constants:
            return Kernel(weights, None, bias)
        folded = self._of_constants(x)[..., outputs]
        if self.pads:
            return Kernel(weights, folded[..., None, :], bias)
        return Kernel(weights, None, bias + folded.reshape(-1, outputs.size).sum(0))

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        kernel = self.folded(x)
        inputs, constants = self.taken(x)
        (source,) = sources
        tensors, kernels = [], []
        if inputs.any():
            tensors.append(build.gather(source, np.flatnonzero(inputs)))
            kernels.append(kernel.weights)
        if kernel.border is not None:
            tensors.append(build.ones(source))
            kernels.append(kernel.border)
        tensor = build.operation(keras.ops.concatenate, tensors, axis=-1) if len(tensors) > 1 else tensors[0]
        weights = [self._turned(np.concatenate(kernels, axis=-2))]
        use_bias = self.inner.use_bias or (constants and not self.pads)
        if use_bias:
            weights.append(kernel.bias)
        units = "units" if isinstance(self.inner, keras.layers.Dense) else "filters"
        return self.rebuilt(build, [tensor], weights, **{units: int(kernel.bias.size)}, use_bias=use_bias)

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        squares = np.square(self._turned(np.asarray(self.inner.kernel, np.float64)))
        by_pair = squares.reshape(-1, *squares.shape[-2:]).sum(0)  # [K, C]
        return by_pair.sum(1), by_pair.sum(0) + self._squared_bias()

    @property
    def computation(self) -> type[Computation]:
        return _Computation

    # How it is refitted.

    def read_by_matrix(self, x: Any) -> Any:
        """The tensor that `matrix` is applied to, from the layer's input."""
        return x

    def windows(self, sizes: Sequence[int], outputs: Sequence[int]) -> list[np.ndarray]:
        """Position that each element of the kernel reads, by spatial axis; int, shape (outputs, kernel), -1 for none.

        Args:
            sizes: of the spatial axes of `read_by_matrix`.
            outputs: of those of its output.
        """
        layer = self.inner
        if isinstance(layer, keras.layers.Dense):
            return [np.arange(size)[:, None] for size in sizes]
        found = []
        settings = zip(sizes, outputs, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
        for size, num, kernel, stride, rate in settings:
            before = _pad_before(layer.padding, size, num, kernel, stride, rate)
            read = np.arange(num)[:, None] * stride + np.arange(kernel) * rate - before
            found.append(np.where((read >= 0) & (read < size), read, -1))
        return found

    @property
    def matrix(self) -> np.ndarray:
        """The kernel that mixes channels, shape (elements of a window x input channels, output channels)."""
        kernel = self._turned(np.asarray(self._mixing))
        return kernel.reshape(-1, kernel.shape[-1])

    def refit(self, matrix: np.ndarray, bias: np.ndarray) -> None:
        """Assigns a kernel, as `matrix` has it, and a bias, if it has one, shape (output channels,)."""
        shape = self._turned(np.asarray(self._mixing)).shape
        self._mixing.assign(self._turned(matrix.reshape(shape)))
        if self.inner.use_bias:
            self.inner.bias.assign(bias)

    @property
    def _mixing(self) -> Any:
        return self.inner.kernel


def _pad_before(padding: str, size: int, outputs: int, kernel: int, stride: int, rate: int) -> int:
    """Number of zeros that a convolution adds before an axis, as TensorFlow places them."""
    reach = rate * (kernel - 1)
    if padding == "same":
        return max((outputs - 1) * stride + reach + 1 - size, 0) // 2
    return reach if padding == "causal" else 0


class TransposedConvolution(Convolution):
    """A transposed convolution, whose kernel's last two axes are the other way round."""

    LAYERS = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    computation = WholeComputation

    @classmethod
    def channel_kernels(cls, layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
        return [(layer.kernel, (math.prod(layer.kernel.shape[:-1]), layer.kernel.shape[-1], 1))]

    @property
    def pads(self) -> bool:
        return any(k > 1 for k in self.inner.kernel_size) or any(s > 1 for s in self.inner.strides)

    @property
    def positions(self) -> int | None:
        (spatial,) = self.input_spatial
        return None if None in spatial else math.prod(size or 0 for size in spatial)

    def _turned(self, kernel: np.ndarray) -> np.ndarray:
        return np.swapaxes(kernel, -1, -2)

    def windows(self, sizes: Sequence[int], outputs: Sequence[int]) -> list[np.ndarray]:
        layer = self.inner
        found = []
        settings = zip(sizes, outputs, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
        for size, num, kernel, stride, rate in settings:
            # It is the gradient of a convolution from its output to its input.
            before = _pad_before(layer.padding, num, size, kernel, stride, rate)
            read = np.arange(num)[:, None] + before - np.arange(kernel) * rate
            found.append(np.where((read % stride == 0) & (read >= 0) & (read // stride < size), read // stride, -1))
        return found


_PLAIN, _WITH_BORDER, _BORDER_ONLY = range(3)


class _Computation(Normalizing):
    """A convolution or dense layer, the normalization behind it folded in, and the activation behind that."""

    node: Convolution
    norm: BatchNormalization | None = None
    activation: Pointwise | None = None

    @property
    def _bordered(self) -> bool:
        """Whether constants may reach it that its padding makes depend on the position."""
        return self.node.pads and not self.bare

    def takes_held(self, source: Node) -> bool:
        return not source.holds_more

    def absorbs(self, node: Node) -> bool:
        linear = self.node.inner.activation is keras.activations.linear
        if isinstance(node, BatchNormalization) and linear and self.norm is None and self.activation is None:
            self.norm = node
            self.normalizes = node if node.name in self.calibrated else None
        elif isinstance(node, Pointwise) and self.activation is None:
            self.activation = node
        else:
            return False
        return True

    def wanted(self, x: Channels, j: int) -> np.ndarray | None:
        inputs = self.node.given(x, j)
        return inputs if inputs.size else None  # one that sees nothing but its border

    def signature(self) -> Fed:
        kernel = tf.TensorSpec((*getattr(self.node.inner, "kernel_size", ()), None, None))
        more = {"kernel": kernel, "bias": tf.TensorSpec((None,))}
        if self.normalizes:
            more |= self.normalizes.signature()
        return {**more, "case": tf.TensorSpec((), tf.int32), "border": kernel} if self._bordered else more

    def feed(self, x: Folded) -> Fed:
        kernel, border, bias = self.node.folded(x)
        case = _PLAIN if border is None else _WITH_BORDER if kernel.size else _BORDER_ONLY
        border = kernel[..., :0, :] if border is None else border
        more = {}
        if self.normalizes:
            more = self.normalizes.parameters(x.weights, self.node.held(x.live))
        elif self.norm is not None:
            scale, offset = (part[self.node.held(x.live)] for part in self.norm.affine(x.weights))
            kernel, border, bias = kernel * scale, border * scale, bias * scale + offset
        fed = {"kernel": kernel, "bias": bias, **more}
        return {**fed, "case": np.array(case, np.int32), "border": border} if self._bordered else fed

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        if self.normalizes:
            scale, offset = self.normalizes.scaling(fed)
            fed = {**fed, "kernel": fed["kernel"] * scale, "bias": fed["bias"] * scale + offset}
            if self._bordered:
                fed["border"] *= scale
        return self._convolved(tensors[0], fed, self._finished)

    def calibrate(self, tensors: list[tf.Tensor], fed: Fed) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        y, mean, variance = self.normalizes.by_batch(self._convolved(tensors[0], fed, lambda y: y), fed)
        return self._finished(y), mean, variance

    def _convolved(self, x: tf.Tensor, fed: Fed, finish: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        def plain() -> tf.Tensor:
            return finish(tf.nn.bias_add(self._applied(x, fed["kernel"]), fed["bias"]))

        def border() -> tf.Tensor:
            ones = tf.ones((1, *self.source_shapes[0], 1))
            return tf.nn.bias_add(self._applied(ones, fed["border"]), fed["bias"])

        def with_border() -> tf.Tensor:
            return finish(self._applied(x, fed["kernel"]) + border())

        def border_only() -> tf.Tensor:
            return tf.repeat(finish(border()), tf.shape(x)[0], axis=0)

        return tf.switch_case(fed["case"], [plain, with_border, border_only]) if self._bordered else plain()

    def _applied(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        inner = self.node.inner
        if isinstance(inner, keras.layers.Dense):
            return tf.matmul(x, kernel) if len(x.shape) == 2 else tf.tensordot(x, kernel, 1)
        if len(inner.strides) == 2:
            return tf.nn.conv2d(x, kernel, inner.strides, inner.padding.upper(), dilations=inner.dilation_rate)
        if max(inner.dilation_rate) > 1:
            return dilated(inner, x, self.source_shapes[0], lambda x: tf.nn.convolution(x, kernel, 1, "VALID"))
        padding = inner.padding
        if padding == "causal":
            x = tf.pad(x, [[0, 0], [inner.kernel_size[0] - 1, 0], [0, 0]])
            padding = "valid"
        return tf.nn.convolution(x, kernel, inner.strides, padding.upper())

    def _finished(self, y: tf.Tensor) -> tf.Tensor:
        y = self.node.inner.activation(y)
        return y if self.activation is None else self.activation.infer([y])


def dilated(inner: Any, x: tf.Tensor, shape: tuple[int, ...], convolve: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A layer's dilated convolution, as `convolve`, which is not dilated, on every d-th position by itself.

    TensorFlow's own wants to know the number of channels when it is traced, but in two dimensions.

    Args:
        inner: the layer, with strides of 1.
        x: shape (batch, *shape, channels).
        shape: the spatial axes.
        convolve: without padding.
    """
    paddings, crops = [], []
    for length, size, rate in zip(shape, inner.kernel_size, inner.dilation_rate, strict=True):
        reach = rate * (size - 1)
        padded = 0 if inner.padding == "valid" else reach
        before = reach if inner.padding == "causal" else padded // 2
        fill = -(length + padded) % rate  # until the rate divides the length
        paddings.append((before, padded - before + fill))
        crops.append((0, fill))
    parts = tf.space_to_batch(x, inner.dilation_rate, paddings)
    return tf.batch_to_space(convolve(parts), inner.dilation_rate, crops)
