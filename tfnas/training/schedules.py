"""Learning rates and optimizers as a config has them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import keras

from tfnas import config as config_lib

Schedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("tfnas")
class ShiftedSchedule(Schedule):
    """`schedule` from its step `first` on."""

    def __init__(self, schedule: Schedule, first: int):
        super().__init__()
        self.schedule, self.first = schedule, first

    def __call__(self, step: Any) -> Any:
        """Learning rate of step number `step` of the rest."""
        return self.schedule(step + self.first)

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same schedule."""
        return {"schedule": keras.optimizers.schedules.serialize(self.schedule), "first": self.first}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ShiftedSchedule:
        """Inverse of `get_config`."""
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["first"])


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Half a cosine from `learning_rate` to zero over `epochs`, from epoch `first` on."""

    learning_rate: float
    epochs: int
    first: int = 0

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """Learning rate by step."""
        return shifted(cosine(self.learning_rate, max(1, steps_per_epoch * self.epochs)), self.first * steps_per_epoch)


def cosine(learning_rate: float, steps: int) -> Schedule:
    """Half a cosine from `learning_rate` to zero over `steps`."""
    return keras.optimizers.schedules.CosineDecay(learning_rate, steps)


def one_cosine(config: config_lib.Config) -> Cosine:
    """The schedule 'one_cosine': a single cosine over search and retraining."""
    return Cosine(config.search.learning_rate, config.search.cosine_epochs)


def retraining(config: config_lib.Config) -> Cosine:
    """Schedule of retraining."""
    if config.search.schedule == "one_cosine":
        return dataclasses.replace(one_cosine(config), first=config.search.epochs)
    return Cosine(config.retrain.learning_rate, config.retrain.epochs)


def search(config: config_lib.Config, steps_per_epoch: int, first_epoch: int = 0) -> Schedule:
    """Learning rate of search by step, from `first_epoch` of its epochs on."""
    settings = config.search
    start = settings.learning_rate
    if settings.schedule == "one_cosine":
        return dataclasses.replace(one_cosine(config), first=first_epoch).schedule(steps_per_epoch)
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
    return shifted(made, first_epoch * steps_per_epoch)


def shifted(schedule: Schedule, first: int) -> Schedule:
    """`schedule` from its step `first` on."""
    return ShiftedSchedule(schedule, first) if first else schedule


def sgd(config: config_lib.Search, rate: Schedule | float, weight_decay: float) -> keras.optimizers.SGD:
    """Makes SGD with search's momentum.

    Args:
        config: search's settings.
        rate: learning rate, or that by step.
        weight_decay: decoupled, of kernels only: kernel -= rate x weight_decay x kernel.
    """
    kwargs: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    optimizer = keras.optimizers.SGD(rate, weight_decay=weight_decay or None, **kwargs)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def gate_rates(config: config_lib.Search) -> dict[str, float]:
    """Arguments of `GatedOptimizer` for the gates, by this search's mode."""
    if config.published:
        return {"gate_learning_rate": config.gate_learning_rate}
    return {"gate_step": config.gate_step}
