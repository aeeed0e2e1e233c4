"""Gates of channel units: one draw for all of a step, and the layers that multiply channels by it (docs/method.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfnas.gating.gates import Gating, gating, is_relaxed, probe
from tfnas.layers.of_units import normalized, reduced

NOISES = ("example", "batch")


@keras.saving.register_keras_serializable("tfnas")
class UnitDraw(keras.layers.Layer):
    """Draws the relaxed gates of all units, once a step, or stands for them in a gradient.

    In training `keep ~ RelaxedBernoulli(temperature, logits=keep_logit)`. The noise is a function of the seed, of a
    counter that is saved with the weights, and of the example's position in the global batch, or with one draw for the
    batch, of the replica. So replicas draw different noise; with noise for each example, together the same as a single
    device.

    Args:
        sizes: number of units of each group; U in all.
        noise: 'example': gates for each example; 'batch': one draw for all examples of the batch, on each replica;
            None: gates are never relaxed.
        temperature: of the relaxed Bernoulli, > 0.
        initial_drop: drop probability at the start, in (0, 1).
        seed: of the noise, in [0, 2**31).

    Call arguments:
        inputs: any tensor whose first axis is the batch.
        training: whether to draw relaxed gates.

    Attributes:
        keep_logit: logit of the probability that a unit is kept, float32, shape (U,), trainable; with noise.
        draws: how often noise was drawn, int32 scalar, not trainable; with noise.
        squared_gradients: moving average of the squared gradient with regard to each unit's gate, float32, shape (U,),
            trainable, by `optimizers.MeanSquares`; without noise.
    """

    gates_units = True

    def __init__(
        self,
        sizes: Sequence[int],
        noise: str | None = "batch",
        temperature: float = 0.2,
        initial_drop: float = 0.02,
        seed: int = 0,
        **kwargs: Any,
    ):
        # Not the global policy: under a mixed one gates would saturate. Inputs are not looked at, and so not cast.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.sizes = tuple(sizes)
        self.noise = noise
        self.temperature = temperature
        self.initial_drop = initial_drop
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Creates the units' variable."""
        if self.noise is None:
            shape = (sum(self.sizes),)
            self.squared_gradients = self.add_weight(
                shape=shape, initializer="zeros", dtype="float32", autocast=False, name="squared_gradients"
            )
            super().build(input_shape)
            return
        self.keep_logit = self.add_weight(
            shape=(sum(self.sizes),),
            initializer=keras.initializers.Constant(math.log1p(-self.initial_drop) - math.log(self.initial_drop)),
            dtype="float32",
            autocast=False,
            name="keep_logit",
        )
        # A weight with a count of its own on every replica, as in `gates.Gated`.
        self.draws = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", autocast=False, trainable=False, name="draws"
        )
        super().build(input_shape)

    def relaxed_gates(self, batch_size: Any) -> tf.Tensor:
        """Draws relaxed gates (1 keeps), float32, shape (batch_size, U); (1, U) with one draw for the batch.

        Under a strategy, batch_size is the replica's, and must be the same on all of them.
        """
        draw = tf.identity(tf.convert_to_tensor(self.draws))
        self.draws.assign_add(1)
        seed = tf.random.experimental.stateless_fold_in(tf.stack([self.seed, draw]), 0)  # mixes the two
        # A Logistic, then a sigmoid, whose gradient does not overflow (see `gates.Gated.relaxed_gates`).
        logits = tf.convert_to_tensor(self.keep_logit)
        logistic = tfp.distributions.Logistic(logits / self.temperature, 1.0 / self.temperature)
        context = tf.distribute.get_replica_context()
        replicas = 1 if context is None else context.num_replicas_in_sync
        size = batch_size if self.noise == "example" else 1
        if replicas == 1:
            return tf.sigmoid(logistic.sample(size, seed=seed))
        # Every replica draws all replicas' noise, and takes its part.
        first = context.replica_id_in_sync_group * size
        return tf.sigmoid(logistic.sample(replicas * size, seed=seed)[first : first + size])

    def call(self, inputs: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Gates of each group, float32, shape (batch or 1, its size); ones if not relaxed.

        The ones are read where gates are probed, by what multiplies the masks by them. Their derivative with regard to
        the probe, or to `squared_gradients`, is then one.
        """
        if is_relaxed(training):
            gates = self.relaxed_gates(tf.shape(inputs)[0])
        elif gating() == Gating.PROBED:
            variable = self.squared_gradients if probe() is None else probe()
            variable = tf.convert_to_tensor(variable)
            gates = (1.0 + variable - tf.stop_gradient(variable))[None]
        else:
            gates = tf.ones((1, sum(self.sizes)))
        # Split once: the gradient of a slice would be as large as all gates, for every reader.
        return tf.split(gates, self.sizes, axis=1)

    def compute_output_spec(self, inputs: Any, training: bool = False) -> list[Any]:
        """Shapes and dtypes of the output."""
        batch = inputs.shape[0] if self.noise == "example" else 1
        return [keras.KerasTensor((batch, size), "float32") for size in self.sizes]

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same layer."""
        return {
            **super().get_config(),
            "sizes": self.sizes,
            "noise": self.noise,
            "temperature": self.temperature,
            "initial_drop": self.initial_drop,
            "seed": self.seed,
        }


class _Gate:
    """The gate of each channel of one tensor; what UnitGate and GatedNormalization have in common."""

    gates_units = True

    units: tuple[int, ...]
    mask: Any

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask of the tensor that is multiplied, by which Keras weighs losses."""
        return previous_mask[0]

    @staticmethod
    def _spread(gates: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Gates of shape (batch or 1, C) or (C,) as those of a tensor, of which an example may have several."""
        if gates.shape.rank == 2 and gates.shape[0] != 1:
            gates = tf.repeat(gates, tf.shape(x)[0] // tf.shape(gates)[0], axis=0)
        return tf.reshape(gates, [-1, *[1] * (len(x.shape) - 2), gates.shape[-1]])  # [B or 1, 1, ..., C]

    def _add_mask(self, channels: int) -> None:
        self.mask = self.add_weight(  # type: ignore[attr-defined]
            shape=(channels,), initializer="ones", dtype="float32", autocast=False, trainable=False, name="mask"
        )

    def _channel_gates(self, drawn: Sequence[tf.Tensor], training: bool) -> tf.Tensor | None:
        """Float32, shape (batch or 1, C) if relaxed or probed, else (C,); None for gates that nothing multiplies by."""
        relaxed, probed = is_relaxed(training), gating() == Gating.PROBED
        if gating() == Gating.OPEN or (relaxed and not drawn):
            return None
        if relaxed:
            return self._gathered(drawn)
        mask = tf.convert_to_tensor(self.mask)
        return mask * self._gathered(drawn) if probed and drawn else mask

    def _gathered(self, drawn: Sequence[tf.Tensor]) -> tf.Tensor:
        """The gate of each channel from those of the groups, shape (batch or 1, C)."""
        units = np.asarray(self.units)
        if (units < 0).any():
            drawn = [*drawn, tf.ones_like(drawn[0][:, :1])]
            units = np.where(units < 0, sum(part.shape[1] for part in drawn) - 1, units)
        gates = drawn[0] if len(drawn) == 1 else tf.concat(drawn, axis=1)
        if np.array_equal(units, np.arange(gates.shape[1])):
            return gates
        return tf.gather(gates, units, axis=1)


class _GateAlone(_Gate, keras.layers.Layer):
    """A gate that is a layer by itself."""

    def __init__(self, units: Sequence[int] = (), **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        self.units = tuple(units)

    def build(self, input_shape: Any) -> None:
        """Creates the mask."""
        self._add_mask(int(input_shape[0][-1]))
        super().build(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same layer."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tfnas")
class UnitGate(_GateAlone):
    """Multiplies each channel by the gate of its unit: relaxed in training, otherwise a hard mask.

    Args:
        units: for each channel the position of its unit in the gates that it is called with, one group after the other;
            -1 for a channel without a gate. Empty: a gate that relaxed training leaves alone, for an operand of a sum
            that may be absent.

    Call arguments:
        inputs: a tensor of shape (batch, ..., C), and behind it groups of `UnitDraw`'s output.
        training: whether the gates are relaxed.

    Attributes:
        mask: 1 keeps and 0 drops a channel, float32, shape (C,), not trainable; ones until it is assigned.
    """

    def call(self, inputs: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        """The gated tensor, of the same dtype."""
        x, *drawn = inputs
        gates = self._channel_gates(drawn, training)
        if gates is None:
            return x
        return x * tf.cast(self._spread(gates, x), x.dtype)

    def compute_output_spec(self, inputs: Sequence[Any], training: bool = False) -> Any:
        """Shape and dtype of the output: the gated tensor's."""
        return keras.KerasTensor(inputs[0].shape, inputs[0].dtype)


class _WithNormalization(_Gate, keras.layers.Wrapper):
    """A gate together with the normalization that it stands on."""

    def __init__(self, layer: Any, units: Sequence[int], **kwargs: Any):
        super().__init__(layer, **{"autocast": False, **kwargs})
        self.units = tuple(units)

    def build(self, input_shape: Any) -> None:
        """Creates the mask, and the normalization's variables."""
        if not self.layer.built:
            self.layer.build(input_shape[0])
        self._add_mask(int(input_shape[0][-1]))
        self.built = True

    def compute_output_spec(self, inputs: Sequence[Any], training: bool = False) -> Any:
        """Shape and dtype of the output."""
        return keras.KerasTensor(inputs[0].shape, self.layer.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same layer."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tfnas")
class GatedNormalization(_WithNormalization):
    """A BatchNormalization whose output channels are gated by scaling gamma and beta, which costs next to nothing.

    For one draw for the batch: gates of single examples are no factor of gamma.

    Args:
        layer: a BatchNormalization with scale and offset.
        units: as of `UnitGate`, not empty.

    Call arguments:
        inputs: as of `UnitGate`.
        training: as of BatchNormalization, and whether the gates are relaxed.

    Attributes:
        mask: as of `UnitGate`.
    """

    def call(self, inputs: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        """The normalized and gated tensor."""
        x, *drawn = inputs
        layer, gates = self.layer, self._channel_gates(drawn, training)
        if gates is None:
            return layer(x, training=training)
        gates = tf.reshape(gates, [-1])  # [C]
        scaled = {id(v): tf.convert_to_tensor(v) * tf.cast(gates, v.dtype) for v in (layer.gamma, layer.beta)}

        def values(variables: Sequence[Any]) -> list[tf.Tensor]:
            return [scaled.get(id(v), v.value) for v in variables]

        # Its computation, also of the statistics, is Keras's own.
        output, after = layer.stateless_call(
            values(layer.trainable_variables),
            values(layer.non_trainable_variables),
            tf.cast(x, layer.compute_dtype),
            training=training,
        )
        if training and layer.trainable:
            for variable, value in zip(layer.non_trainable_variables, after, strict=True):
                variable.assign(value)
        return output


@keras.saving.register_keras_serializable("tfnas")
class KeptNormalization(_WithNormalization):
    """A normalization whose statistics are over the channels that are kept; see `layers.of_units.statistics`.

    Args:
        layer: one of the families `Statistics` or `GroupStatistics`.
        units: as of `UnitGate`, not empty.

    Call arguments:
        inputs: as of `UnitGate`, the tensor that is normalized first, without a gate.
        training: whether the gates are relaxed.

    Attributes:
        mask: as of `UnitGate`.
    """

    def call(self, inputs: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        """The normalized tensor."""
        x, *drawn = inputs
        gates = self._channel_gates(drawn, training)
        if gates is None:
            return self.layer(x)
        return tf.cast(normalized(self.layer, x, self._spread(gates, x)), self.layer.compute_dtype)


@keras.saving.register_keras_serializable("tfnas")
class KeptReduction(_GateAlone):
    """A reduction over the channels that are kept; see `layers.of_units.reductions`.

    Args:
        kind: the operation's class name in Keras.
        units: as of `UnitGate`, not empty.

    Call arguments:
        inputs: as of `UnitGate`, the tensor that is reduced first, without a gate.
        training: whether the gates are relaxed.

    Attributes:
        mask: as of `UnitGate`.
    """

    def __init__(self, kind: str, units: Sequence[int], **kwargs: Any):
        super().__init__(units, **kwargs)
        self.kind = kind

    def call(self, inputs: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        """The reduced tensor, of the same dtype, shape (batch, ..., 1)."""
        x, *drawn = inputs
        gates = self._channel_gates(drawn, training)
        gates = tf.ones(x.shape[-1:]) if gates is None else gates
        return reduced(self.kind, x, self._spread(gates, x))

    def compute_output_spec(self, inputs: Sequence[Any], training: bool = False) -> Any:
        """Shape and dtype of the output."""
        return keras.KerasTensor((*inputs[0].shape[:-1], 1), inputs[0].dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same layer."""
        return {**super().get_config(), "kind": self.kind}
