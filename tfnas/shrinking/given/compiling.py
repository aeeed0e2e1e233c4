"""Losses, metrics and optimizers of a shrinking's networks: as the user's model is, or by its outputs and labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.tasks.recognition import recognized
from tfnas.training import schedules
from tfnas.training.distillation import Kind, kind_of

_OF_BATCHES = ("run_eagerly", "steps_per_execution", "jit_compile")
_STEPS = ("train_step", "test_step", "compute_loss", "compute_metrics")
_ADAM_RATE, _TRAINED_ADAM_RATE, _ADAM_DECAY = 1e-3, 3e-4, 1e-2
_FEW = 1_000  # labels that are looked at
_HIGH = 0.5  # share of a schedule's largest learning rate, at which a training should not end
_RATES = 20  # of a schedule that are looked at


@dataclasses.dataclass(frozen=True)
class Compiling:
    """Arguments of `compile`, of which every network gets its own metrics and its own optimizer.

    Attributes:
        optimizer: whose class and settings are used, not its state; without a loss scale around it.
        objective: losses, their weights and metrics, as for `compile`.
        options: further arguments of `compile`.
        scaled: whether the optimizer was in a `LossScaleOptimizer`.
        output_names: names by which losses, metrics and labels may be given.
        words: what was chosen, for a model that is not compiled; else empty.
        constant: whether a constant learning rate is kept as it is.
    """

    optimizer: keras.optimizers.Optimizer
    objective: dict[str, Any]
    options: dict[str, Any]
    scaled: bool
    output_names: Sequence[str]
    words: str = ""
    constant: bool = False

    def apply(self, model: keras.Model, steps: int = 0, first: int = 0) -> None:
        """Compiles a network.

        Args:
            model: a plain network or a supernet, of the user's outputs.
            steps: of all trainings together, over which a constant learning rate falls to zero along one cosine; 0: it
                stays constant.
            first: step at which this training begins.
        """
        optimizer: Any = self._optimizer(steps, first)
        if self.scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        network = getattr(model, "network", model)
        network.output_names = [*self.output_names]
        model.compile(optimizer, **_copied(self.objective), **self.options)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of the network's outputs, by their losses."""
        losses = self.objective["loss"]
        if isinstance(losses, dict) and set(losses) <= set(self.output_names):
            losses = [losses.get(name) for name in self.output_names]
        flat = keras.tree.flatten(losses)
        return tuple(kind_of(loss) for loss in (flat * len(self.output_names) if len(flat) == 1 else flat))

    def rate_words(self, steps: int) -> str:
        """Describes a schedule of the user's that hardly falls over so many steps; else empty."""
        rate = self.optimizer._learning_rate
        if not isinstance(rate, schedules.Schedule) or not steps:
            return ""
        rates = [float(rate(step)) for step in np.linspace(0, steps - 1, _RATES).astype(int)]
        if rates[-1] <= _HIGH * max(rates):
            return ""
        return (
            f"the optimizer's schedule begins anew, and after {steps:,} steps ends at a learning rate of "
            f"{rates[-1]:.3g}, {rates[-1] / max(rates):.0%} of its largest; a constant learning rate would fall to zero"
        )

    def _optimizer(self, steps: int, first: int) -> keras.optimizers.Optimizer:
        given = self.optimizer
        rate = given._learning_rate
        if isinstance(rate, schedules.Schedule):
            rate = schedules.shifted(rate, first) if steps else rate
        elif not callable(rate):
            value = float(np.asarray(rate))
            rate = schedules.shifted(schedules.cosine(value, steps), first) if steps and not self.constant else value
        config = {name: value for name, value in given.get_config().items() if name != "learning_rate"}
        try:
            made = type(given).from_config({**config, "learning_rate": 0.0})
            made.learning_rate = rate
        except Exception as error:  # whatever a class of the user's raises
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"shrink: no second {type(given).__name__} can be made from its get_config() ({why}); define it for "
                "all of its arguments, or compile the model with another optimizer"
            ) from None
        pattern = getattr(given, "_exclude_from_weight_decay_pattern", None)
        if isinstance(pattern, re.Pattern):  # Keras keeps nothing else of what `exclude_from_weight_decay` was given
            made.exclude_from_weight_decay(var_names=[pattern.pattern])
        return made


def build_metrics(model: keras.Model, few: tuple[Any, ...]) -> None:
    """Creates the variables of a compiled network's losses and metrics.

    `fit` and `evaluate` would create them in their first step, and TensorFlow then traces that whole step once more.
    With a strategy Keras creates them before.

    Args:
        model: built, and compiled without a step that was traced.
        few: labeled examples, as `fit` takes them.
    """
    if tf.distribute.has_strategy():
        return

    def tensor(array: Any) -> Any:
        return None if array is None else tf.convert_to_tensor(array)

    x, y, weights = keras.utils.unpack_x_y_sample_weight(keras.tree.map_structure(tensor, few))
    outputs = model(x, training=False)
    model.compute_loss(x, y, outputs, weights, training=False)
    model.compute_metrics(x, y, outputs, weights)
    model.reset_metrics()


def own_steps(model: keras.Model) -> list[str]:
    """Methods by which a user's model is trained in its own way, which a smaller network does not have."""
    return [name for name in _STEPS if getattr(type(model), name) is not getattr(keras.Model, name)]


def as_given(model: keras.Model, output_names: Sequence[str]) -> Compiling | None:
    """Returns how the user's model is compiled; None if it is not, or without a loss or optimizer.

    Args:
        model: the user's.
        output_names: of the functional model that it is.
    """
    if not getattr(model, "compiled", False) or model.loss is None or model.optimizer is None:
        return None
    config = model._compile_config.config  # what get_compile_config() returns as JSON, which not every loss has
    optimizer = model.optimizer
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    objective = {name: config[name] for name in ("loss", "loss_weights", "metrics", "weighted_metrics")}
    options = {name: config[name] for name in _OF_BATCHES}
    return Compiling(optimizer.inner_optimizer if scaled else optimizer, objective, options, scaled, output_names)


def chosen(model: keras.Model, labels: Any, trained: bool, settings: Any) -> Compiling:
    """Losses and metrics by outputs and labels, and an optimizer, for a model that is not compiled.

    Losses and metrics are those of the tasks that outputs and labels show (`tasks.recognition`). The optimizer is a
    search's SGD for a network with batch normalization, else AdamW.

    Args:
        model: functional.
        labels: some, in the structure of the outputs.
        trained: whether its weights are.
        settings: resolved `config.Search`.

    Raises:
        UserError: if the labels do not have the structure of the outputs.
    """
    outputs, given = keras.tree.flatten(model.output), keras.tree.flatten(labels)
    if len(outputs) != len(given):
        raise UserError(
            f"shrink: labels in the structure of the model's {len(outputs)} outputs expected. Received: {len(given)} "
            "arrays; or compile the model with its loss"
        )
    found = [recognized(x, np.asarray(y)[:_FEW]) for x, y in zip(outputs, given, strict=True)]
    structure = model.output if isinstance(model.output, dict) else None
    losses, metrics = [one.loss for one in found], [one.metrics for one in found]
    words = ", ".join(dict.fromkeys(type(loss).__name__ for loss in losses))
    normalized = any(isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers())
    optimizer: Any
    if normalized:
        optimizer = schedules.sgd(settings, settings.learning_rate, settings.weight_decay)
    else:
        optimizer = keras.optimizers.AdamW(_TRAINED_ADAM_RATE if trained else _ADAM_RATE, weight_decay=_ADAM_DECAY)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    alone = len(found) == 1
    objective = {
        "loss": losses[0] if alone else keras.tree.pack_sequence_as(structure or losses, losses),
        "metrics": metrics[0] if alone else dict(zip(structure, metrics, strict=True)) if structure else metrics,
    }
    words = f"{words} and {type(optimizer).__name__}, because the model is not compiled"
    return Compiling(optimizer, objective, {}, False, model.output_names, words)


def _copied(objective: dict[str, Any]) -> dict[str, Any]:
    """The same losses with metrics of their own: metrics have state."""

    def copied(metric: Any) -> Any:
        if not isinstance(metric, keras.metrics.Metric):
            return metric
        try:
            return type(metric).from_config(metric.get_config())
        except Exception:  # a user's class without a config: networks share it, and each evaluation resets it
            return metric

    return {
        name: value if "metrics" not in name or value is None else keras.tree.map_structure(copied, value)
        for name, value in objective.items()
    }
