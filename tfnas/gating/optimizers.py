"""GatedOptimizer: any Keras optimizer for the weights, and beside it one for the gates; MeanSquares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnas.common.errors import UserError

SQUARES = "squared_gradients"
GATES = ("drop_logit", "keep_logit", SQUARES)  # names of gates' variables
_GATE_STEP = 0.05
_GATE_BETAS = (0.9, 0.99)


_SQUARES_DECAY = 0.99


@keras.saving.register_keras_serializable("tfnas")
class MeanSquares(keras.optimizers.Optimizer):
    """Makes each variable the moving average of its own squared gradient: s <- s + (1 - decay) (g^2 - s).

    The gradient is that of the global batch, summed over replicas as for any other optimizer.

    Args:
        decay: in [0, 1).
        kwargs: further arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(self, decay: float = _SQUARES_DECAY, **kwargs: Any):
        super().__init__(learning_rate=1.0 - decay, **kwargs)
        self.decay = decay

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        variable.assign_add(tf.cast(learning_rate, variable.dtype) * (tf.square(gradient) - variable))

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same optimizer."""
        config = {name: value for name, value in super().get_config().items() if name != "learning_rate"}
        return {**config, "decay": self.decay}


@keras.saving.register_keras_serializable("tfnas")
class GatedOptimizer(keras.optimizers.Optimizer):
    """Any Keras optimizer for the weights, and beside it one for the gates' logits, which never decays them.

    In a search under bounds, Adam steps the logits at a rate of its own. The gradient of one channel's gate is
    small, the smaller the wider the network, and differs between layers by orders of magnitude; Adam's steps do not
    depend on its scale (arXiv 1412.6980, algorithm 1).

    The published method uses the same optimizer for weights and probabilities (method.md, section 2). With
    `gate_learning_rate` the logits' optimizer is therefore a copy of the weights', with that multiple of their learning
    rate at every step, whichever schedule or callback sets it.

    `Supernet.compile` wraps its optimizer in a GatedOptimizer, so you only need this class for a rate other than the
    default, or in a training loop of your own:

    >>> optimizer = tfnas.GatedOptimizer(keras.optimizers.SGD(0.05, momentum=0.9))  # doctest: +SKIP
    >>> optimizer.build(supernet.trainable_variables)  # doctest: +SKIP
    >>> optimizer.apply(gradients, supernet.trainable_variables)  # doctest: +SKIP

    A supernet that learns by squared gradients (`gate(..., importance="curvature")`) has their averages in place of
    logits. `MeanSquares` updates these, and neither rate is used.

    Its learning rate and its iterations are those of the weights' optimizer. A `keras.optimizers.LossScaleOptimizer`
    wraps it, not the other way round.

    Args:
        weights_optimizer: a Keras optimizer or its name, for all variables except the logits. Its weight decay and the
            variables excluded from it, its clipping, moving average and schedule apply to the weights as they were set.
        gate_step: Adam's learning rate for the logits, > 0; it does not follow the weights' schedule. None: 0.05,
            unless `gate_learning_rate` is given.
        gate_learning_rate: the logits' learning rate as a multiple of the weights', > 0; for searches with `ell2`. 1 is
            the paper's; a run of few epochs needs 3 to 10.
        name: of the optimizer.

    Attributes:
        weights_optimizer: as given.
        gates_optimizer: for the logits.

    Raises:
        UserError: for both rates at once, one that is not above 0, an optimizer that cannot be wrapped, or with
            `gate_learning_rate` one that cannot be made again from its `get_config()`.
    """

    def __init__(
        self,
        weights_optimizer: Any = "sgd",
        gate_step: float | None = None,
        gate_learning_rate: float | None = None,
        name: str | None = None,
    ):
        weights_optimizer = keras.optimizers.get(weights_optimizer)
        _check_gated(weights_optimizer, gate_step, gate_learning_rate)
        # The factor is applied to all gradients here, so that it must not be applied again.
        super().__init__(0.0, loss_scale_factor=weights_optimizer.loss_scale_factor, name=name)
        weights_optimizer.loss_scale_factor = None
        self.weights_optimizer = weights_optimizer
        self.gate_step = gate_step
        self.gate_learning_rate = gate_learning_rate
        self._undecayed: tuple[str, ...] | None = None
        if gate_learning_rate is None:
            self.gates_optimizer: Any = keras.optimizers.Adam(
                gate_step or _GATE_STEP,
                *_GATE_BETAS,
                gradient_accumulation_steps=weights_optimizer.gradient_accumulation_steps,
            )
        else:
            self.gates_optimizer = self._copy(gate_learning_rate)

    def _copy(self, multiple: float) -> Any:
        """Copies the weights' optimizer, without its weight decay, with `multiple` times its current learning rate."""
        weights = self.weights_optimizer
        rate = weights._learning_rate
        try:
            # Keras takes rates that it cannot serialize, such as functions; the copy's is replaced anyway.
            weights._learning_rate = 0.0
            made = type(weights).from_config({**weights.get_config(), "name": f"{weights.name}_gates"})
        except Exception as error:
            name, why = type(weights).__name__, " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"GatedOptimizer: the gates need an optimizer of their own, and no second {name} can be made from the "
                f"get_config() of weights_optimizer ({why}); define it for all arguments of {name}, or let Adam step "
                f"the gates: GatedOptimizer(optimizer, gate_step={_GATE_STEP:g})"
            ) from error
        finally:
            weights._learning_rate = rate
        made.exclude_from_weight_decay(var_names=[*GATES])
        made.learning_rate = lambda: multiple * tf.convert_to_tensor(weights.learning_rate)
        return made

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state of both optimizers, each for its own variables."""
        if self.built:
            return
        super().build(variables)
        weights = [v for v in variables if v.name not in GATES]
        if any(v.name == SQUARES for v in variables):
            every = self.weights_optimizer.gradient_accumulation_steps
            self.gates_optimizer = MeanSquares(gradient_accumulation_steps=every)
        if self._undecayed is not None:
            excluded = [v for v in weights if v.path in self._undecayed]
            self.weights_optimizer.exclude_from_weight_decay(var_list=excluded)
        for optimizer, own in (
            (self.weights_optimizer, weights),
            (self.gates_optimizer, [v for v in variables if v.name in GATES]),
        ):
            if not optimizer.built:
                optimizer.build(own)

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        """Called by `keras.optimizers.Optimizer.apply` with the variables that have a gradient."""
        pairs = list(zip(grads, trainable_variables, strict=True))
        # The gates first: the weights' step moves the schedule on, from which a copy reads its rate.
        for optimizer, of_gates in ((self.gates_optimizer, True), (self.weights_optimizer, False)):
            own = [(gradient, variable) for gradient, variable in pairs if (variable.name in GATES) == of_gates]
            if own:
                optimizer.apply(*zip(*own, strict=True))
            else:  # the schedule advances even if all its variables are frozen
                optimizer._iterations.assign_add(1)

    @property
    def variables(self) -> list[Any]:
        """The state of both optimizers."""
        return [*self.weights_optimizer.variables, *self.gates_optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Steps taken."""
        return self.weights_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """Current learning rate of the weights."""
        return self.weights_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.weights_optimizer.learning_rate = value

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Replaces variables by their moving averages, where an optimizer keeps such."""
        self.weights_optimizer.finalize_variable_values([v for v in var_list if v.name not in GATES])
        self.gates_optimizer.finalize_variable_values([v for v in var_list if v.name in GATES])

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns the state, in the order of `variables`."""
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: the two optimizers each save their own."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing: the two optimizers each load their own."""

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same optimizer, and the weights that are not decayed.

        Keras's optimizers forget, when they are saved, what was excluded from their weight decay.
        """
        undecayed = self._undecayed
        if self.built:
            weights = [v for v in self._trainable_variables if v.name not in GATES]
            undecayed = tuple(v.path for v in weights if not self.weights_optimizer._use_weight_decay(v))
        return {
            "weights_optimizer": keras.saving.serialize_keras_object(self.weights_optimizer),
            "gate_step": self.gate_step,
            "gate_learning_rate": self.gate_learning_rate,
            "loss_scale_factor": self.loss_scale_factor,
            "undecayed": undecayed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GatedOptimizer:
        """Inverse of `get_config`."""
        config = dict(config)
        undecayed, factor = config.pop("undecayed"), config.pop("loss_scale_factor")
        weights = keras.saving.deserialize_keras_object(config.pop("weights_optimizer"), custom_objects=custom_objects)
        made = cls(weights, **config)
        made._undecayed = None if undecayed is None else tuple(undecayed)
        made.loss_scale_factor = factor
        return made


def _check_gated(optimizer: Any, gate_step: float | None, gate_learning_rate: float | None) -> None:
    if isinstance(optimizer, GatedOptimizer | keras.optimizers.LossScaleOptimizer):
        raise UserError(
            "GatedOptimizer: weights_optimizer must be the optimizer of the weights alone; a LossScaleOptimizer goes "
            f"around the GatedOptimizer. Received: {type(optimizer).__name__}"
        )
    if gate_learning_rate is not None and not hasattr(optimizer, "learning_rate"):  # Keras's MultiOptimizer has none
        raise UserError(
            "GatedOptimizer: with gate_learning_rate, weights_optimizer must have one learning rate. "
            f"Received: {type(optimizer).__name__}"
        )
    if gate_step is not None and gate_learning_rate is not None:
        raise UserError(
            "GatedOptimizer: gate_step and gate_learning_rate exclude each other: give one of them. "
            f"Received: {gate_step} and {gate_learning_rate}"
        )
    for key, value in (("gate_step", gate_step), ("gate_learning_rate", gate_learning_rate)):
        if value is not None and not value > 0:
            raise UserError(f"GatedOptimizer: {key} must be greater than 0. Received: {value}")


def gated(optimizer: Any, **rates: Any) -> Any:
    """Adds an optimizer for the gates to `optimizer`, inside a `LossScaleOptimizer` if there is one.

    Args:
        optimizer: a Keras optimizer. Returned unchanged if it has one already.
        rates: arguments of `GatedOptimizer`.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.inner_optimizer = gated(optimizer.inner_optimizer, **rates)
        return optimizer
    return optimizer if isinstance(optimizer, GatedOptimizer) else GatedOptimizer(optimizer, **rates)
