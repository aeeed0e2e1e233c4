"""Gated: a Keras wrapper that puts a variational-dropout gate on the input channels of a layer with a kernel."""

from __future__ import annotations

import contextlib
import contextvars
import enum
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfnas.layers import family_of


class Gating(enum.Enum):
    """The state of a network's gates in a call.

    Attributes:
        BY_CALL: relaxed if the call is one of training, else hard masks.
        HARD: the hard masks, whatever Keras passes as `training`. In a model called without `training`, Keras applies
            the value that one layer was called with (dropout that is always on) to all layers behind it.
        PROBED: likewise, with derivatives with regard to the gates of channel units.
        OPEN: none, which only channel units' have: the network without gates.
    """

    BY_CALL = enum.auto()
    HARD = enum.auto()
    PROBED = enum.auto()
    OPEN = enum.auto()


_gating: contextvars.ContextVar[tuple[Gating, Any]] = contextvars.ContextVar("gating", default=(Gating.BY_CALL, None))


@contextlib.contextmanager
def gates_as(gating: Gating, probe: Any = None) -> Iterator[None]:
    """A context in which the gates are in this state.

    Args:
        gating: the state.
        probe: where gates are probed, a tensor of zeros, float32, shape (U,), with regard to which the derivatives are;
            None: the gates' own variable.
    """
    token = _gating.set((gating, probe))
    try:
        yield
    finally:
        _gating.reset(token)


def gating() -> Gating:
    """The state of the gates in this context."""
    return _gating.get()[0]


def probe() -> Any:
    """The tensor with regard to which gates are probed in this context, if it is not their own variable."""
    return _gating.get()[1]


def hard_gates() -> contextlib.AbstractContextManager[None]:
    """A context in which all gates are hard masks."""
    return gates_as(Gating.HARD)


def is_relaxed(training: Any) -> bool:
    """Whether gates are relaxed in a call with this value of `training`."""
    return bool(training) and gating() == Gating.BY_CALL


@keras.saving.register_keras_serializable("tfnas")
class Gated(keras.layers.Wrapper):
    """Multiplies each input channel of `layer` by a gate; weight and gate are one pair (method.md, eq. 13 to 16).

    In training the gate is relaxed, `keep ~ RelaxedBernoulli(temperature, logits=-logit p)`, drawn per example and per
    channel, with no 1 / (1 - p) rescaling. Otherwise it is the hard mask `mask`, all ones until it is assigned.

    The noise is a function of the seed, of a counter that is saved with the weights, and of the example's position in
    the global batch. So replicas draw different noise, and together the same as a single device.

    Args:
        layer: a convolution of any kind or Dense, channels last; or a pooling layer or Identity, whose gate then stands
            for the choice of that operation and costs what the identity as a 1x1 kernel would (`squared_norms`).
        group_sizes: channels of each group that shares a drop probability; they add up to K. None: one group.
        temperature: of the relaxed Bernoulli, > 0.
        initial_drop: drop probability at the start, in (0, 1).
        seed: of the noise, in [0, 2**31).

    Call arguments:
        inputs: shape (batch, ..., K).
        training: whether to draw relaxed gates.

    Attributes:
        gates_inputs: marks the class for `layers`, which may not import it.
        drop_logit: logit of p, float32 whatever the compute dtype, shape (number of groups,), trainable.
        draws: how often noise was drawn, int32 scalar, not trainable.
        mask: 1 keeps and 0 drops a channel, float32, shape (K,), not trainable.
    """

    gates_inputs = True

    def __init__(
        self,
        layer: keras.Layer,
        group_sizes: Sequence[int] | None = None,
        temperature: float = 0.2,
        initial_drop: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ):
        if not temperature > 0:
            raise ValueError(f"Gated: temperature must be greater than 0. Received: temperature={temperature}")
        if not 0 < initial_drop < 1:
            raise ValueError(f"Gated: initial_drop must be strictly in (0, 1). Received: initial_drop={initial_drop}")
        super().__init__(layer, **kwargs)
        self.group_sizes: tuple[int, ...] = tuple(group_sizes or ())  # empty until `build` knows K
        self.temperature = temperature
        self.initial_drop = initial_drop
        self.seed = seed

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the gate's logits and mask. Raises ValueError if the groups do not add up to K."""
        channels = int(input_shape[-1] or 0)
        self.group_sizes = self.group_sizes or (channels,)
        if sum(self.group_sizes) != channels:
            raise ValueError(
                f"Gated '{self.name}': group_sizes must add up to the {channels} input channels. "
                f"Received: group_sizes={self.group_sizes}"
            )
        # autocast=False: under mixed precision the gate is drawn in float32, where it neither saturates nor overflows.
        self.drop_logit = self.add_weight(
            shape=(len(self.group_sizes),),
            initializer=keras.initializers.Constant(math.log(self.initial_drop) - math.log1p(-self.initial_drop)),
            dtype="float32",
            autocast=False,
            name="drop_logit",
        )
        self.mask = self.add_weight(
            shape=(channels,), initializer="ones", dtype="float32", autocast=False, trainable=False, name="mask"
        )
        # A weight rather than a keras SeedGenerator, whose state a wrapper does not save, so that a reloaded model
        # resumes. Every replica has its own count: a common one would make them wait for each other in mid-pass, and
        # mix up the losses that their passes add, which Keras keeps in one list.
        self.draws = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            autocast=False,
            trainable=False,
            name="draws",
        )
        super().build(input_shape)

    def squared_norms(self) -> tf.Tensor:
        """||m_k||^2 of all weights that read input channel k, float32, shape (K,).

        A pooling layer or Identity has no weights; its gate is penalized like the 1x1 convolution that passes every
        channel on, for which each is 1.
        """
        terms = []
        for kernel, shape in self._kernels():
            weights = tf.reshape(tf.cast(tf.convert_to_tensor(kernel), tf.float32), shape)
            terms.append(tf.reduce_sum(tf.square(weights), axis=(0, 2)))
        return tf.add_n(terms) if terms else tf.ones(sum(self.group_sizes))

    def parameters_per_channel(self) -> int:
        """Number of kernel weights that read one input channel; 0 without a kernel."""
        return sum(shape[0] * shape[2] for _, shape in self._kernels())

    def _kernels(self) -> list[tuple[Any, tuple[int, ...]]]:
        """The layer's kernels, each with the shape (before, K, after)."""
        return family_of(self.layer).channel_kernels(self.layer)

    def channel_logits(self) -> tf.Tensor:
        """Logit of the drop probability of every input channel, float32, shape (K,)."""
        return tf.repeat(tf.convert_to_tensor(self.drop_logit), self.group_sizes)

    def drop_probability(self) -> np.ndarray:
        """p of every group, float64, shape (number of groups,)."""
        logits = np.asarray(self.drop_logit, np.float64)
        return 1 / (1 + np.exp(-logits))

    def relaxed_gates(self, batch_size: Any) -> tf.Tensor:
        """Draws relaxed gates (1 keeps), float32, shape (batch_size, K); eq. 16 of method.md.

        Under a strategy, batch_size is the replica's, and must be the same on all of them.
        """
        draw = tf.identity(tf.convert_to_tensor(self.draws))
        self.draws.assign_add(1)
        seed = tf.random.experimental.stateless_fold_in(tf.stack([self.seed, draw]), 0)  # mixes the two
        # RelaxedBernoulli(temperature, logits=-logit p) as TFP defines it: a Logistic, then a sigmoid. Its own `sample`
        # has a gradient of 0 x inf = nan where the gate saturates; with the sigmoid outside it is 0 there.
        logistic = tfp.distributions.Logistic(-self.channel_logits() / self.temperature, 1.0 / self.temperature)
        context = tf.distribute.get_replica_context()
        replicas = 1 if context is None else context.num_replicas_in_sync
        if replicas == 1:
            return tf.sigmoid(logistic.sample(batch_size, seed=seed))
        # Every replica draws the noise of the entire global batch and takes its part: little work compared with a
        # convolution, and the noise then depends on the example, not on the device.
        first = context.replica_id_in_sync_group * batch_size
        return tf.sigmoid(logistic.sample(replicas * batch_size, seed=seed)[first : first + batch_size])

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The inner layer's output for the gated input."""
        if is_relaxed(training):
            gate = self.relaxed_gates(tf.shape(inputs)[0])  # [B, K]
            gate = tf.reshape(gate, [-1, *[1] * (len(inputs.shape) - 2), inputs.shape[-1]])  # [B, 1, ..., K]
        else:
            gate = tf.convert_to_tensor(self.mask)
        return self.layer.call(inputs * tf.cast(gate, inputs.dtype))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Shape of the inner layer's output."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same layer."""
        return {
            **super().get_config(),
            "group_sizes": self.group_sizes,
            "temperature": self.temperature,
            "initial_drop": self.initial_drop,
            "seed": self.seed,
        }
