"""What search and retraining step with: SGD, Adam for gates that are priced, and the learning rates of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfnas import config as config_lib

Schedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("tfnas")
class Later(Schedule):
    """`schedule`, entered after `first` of its steps."""

    def __init__(self, schedule: Schedule, first: int):
        super().__init__()
        self.schedule, self.first = schedule, first

    def __call__(self, step: Any) -> Any:
        """The learning rate of step number `step` from here."""
        return self.schedule(step + self.first)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same schedule."""
        return {"schedule": keras.optimizers.schedules.serialize(self.schedule), "first": self.first}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Later:
        """Inverse of `get_config`."""
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["first"])


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Half a cosine from `learning_rate` to zero over `epochs`, entered after `first` of them."""

    learning_rate: float
    epochs: int
    first: int = 0

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """The learning rate by step."""
        return _entered(cosine(self.learning_rate, max(1, steps_per_epoch * self.epochs)), self.first * steps_per_epoch)


def cosine(learning_rate: float, steps: int) -> Schedule:
    """From `learning_rate` to zero as half a cosine over `steps`."""
    return keras.optimizers.schedules.CosineDecay(learning_rate, steps)


def whole(config: config_lib.Config) -> Cosine:
    """Search's and retraining's epochs under one cosine, as the schedule 'one_cosine' has it."""
    return Cosine(config.search.learning_rate, config.search.cosine_epochs)


def plain_search(config: config_lib.Config) -> Cosine:
    """What a network without gates trains by in search's place, for search's epochs."""
    if config.search.schedule == "one_cosine":
        return whole(config)
    return Cosine(config.retrain.baseline_learning_rate, config.search.epochs)


def retraining(config: config_lib.Config) -> Cosine:
    """What retraining trains by, for its epochs."""
    if config.search.schedule == "one_cosine":
        return dataclasses.replace(whole(config), first=config.search.epochs)
    return Cosine(config.retrain.learning_rate, config.retrain.epochs)


def search(config: config_lib.Config, steps_per_epoch: int, first_epoch: int = 0) -> Schedule:
    """Search's learning rate by step, entered after `first_epoch` of its epochs."""
    settings = config.search
    start = settings.learning_rate
    if settings.schedule == "one_cosine":
        return dataclasses.replace(whole(config), first=first_epoch).schedule(steps_per_epoch)
    if settings.schedule == "cosine":
        return Cosine(start, settings.epochs, first_epoch).schedule(steps_per_epoch)
    if settings.schedule == "cosine_restarts":
        made = keras.optimizers.schedules.CosineDecayRestarts(
            start,
            settings.restart_epochs * steps_per_epoch,
            t_mul=settings.restart_multiplier,
            alpha=settings.minimum_learning_rate / start,
        )
    else:
        # Keras's last step at a rate is the boundary itself; steps count from 0.
        boundaries = [round(epoch * steps_per_epoch) - 1 for epoch in settings.boundaries]
        made = keras.optimizers.schedules.PiecewiseConstantDecay(
            boundaries, [start / 10**i for i in range(len(boundaries) + 1)]
        )
    return _entered(made, first_epoch * steps_per_epoch)


def _entered(schedule: Schedule, first: int) -> Schedule:
    return Later(schedule, first) if first else schedule


@keras.saving.register_keras_serializable("tfnas")
class GatedSGD(keras.optimizers.SGD):
    """SGD, but for the gates' logits, which take steps of Adam at a rate of their own.

    What one channel's gate saves or costs is a small part of the loss, the smaller the wider the network, and differs
    between layers by orders of magnitude. Adam's steps do not depend on its size (arXiv 1412.6980, algorithm 1).

    Args:
        learning_rate: of the weights, as for `keras.optimizers.SGD`, as all others.
        gate_learning_rate: of the logits; it does not follow the weights' schedule.
        gate_betas: decay rates of the moments' averages.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        gate_learning_rate: float = 0.05,
        gate_betas: Sequence[float] = (0.9, 0.99),
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.gate_learning_rate = gate_learning_rate
        self.gate_betas = tuple(gate_betas)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the moments of weights and logits."""
        if self.built:
            return
        super().build(variables)
        self._means = [self._moment(variable, "mean") for variable in variables]
        self._squares = [self._moment(variable, "square") for variable in variables]

    def _moment(self, variable: Any, name: str) -> Any:
        """None for a weight."""
        return self.add_variable_from_reference(variable, name) if variable.name == "drop_logit" else None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step on one variable."""
        i = self._get_variable_index(variable)
        mean, square, (first, second) = self._means[i], self._squares[i], self.gate_betas
        if mean is None:
            super().update_step(gradient, variable, learning_rate)
            return
        number = tf.cast(self.iterations + 1, tf.float32)
        self.assign_add(mean, (gradient - mean) * (1 - first))
        self.assign_add(square, (tf.square(gradient) - square) * (1 - second))
        corrected = tf.sqrt(square / (1 - second**number)) + 1e-7
        self.assign_sub(variable, self.gate_learning_rate * mean / (1 - first**number) / corrected)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same optimizer."""
        own = {"gate_learning_rate": self.gate_learning_rate, "gate_betas": self.gate_betas}
        return {**super().get_config(), **own}


def sgd(config: config_lib.Search, rate: Schedule, weight_decay: float, gated: bool = False) -> Any:
    """SGD with search's momentum.

    Args:
        config: search's settings.
        rate: learning rate by step.
        weight_decay: decoupled, of kernels only: kernel -= rate x weight_decay x kernel.
        gated: for a supernet, whose gates take steps of Adam with the recipe 'target'.
    """
    kwargs: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    kwargs["weight_decay"] = weight_decay or None
    if gated and config.recipe == "target":
        optimizer = GatedSGD(rate, config.gate_step, **kwargs)
    else:
        optimizer = keras.optimizers.SGD(rate, **kwargs)
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias", "drop_logit"])
    return optimizer
