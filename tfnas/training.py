"""What search and retraining share: optimiser, one fit that resumes, its checkpoint, its guards, its progress."""

from __future__ import annotations

import json
import math
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import rich.progress
import tensorflow as tf

from tfnas import config as config_lib
from tfnas import data, functions, subnets
from tfnas.errors import UserError
from tfnas.recalibration import Recalibration
from tfnas.supernet import Supernet, gate
from tfnas.terminal import console
from tfnas.workdir import Workdir


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy, Keras and TensorFlow."""
    # Not 0: with that global seed, TensorFlow cannot shuffle by a seed that is a tensor, as the epochs' are.
    keras.utils.set_random_seed(seed + 1)


def builder_name(config: config_lib.Config) -> str:
    """What `subnets.builder` finds the super-network's function by: the user's own, or one of `tfnas.supernets`."""
    return config.supernet.source or config.supernet.name


def network_arguments(config: config_lib.Config, splits: data.Splits) -> dict[str, Any]:
    """Arguments of the function that `builder_name` names, for these images and labels."""
    return {**config.supernet.arguments(), "num_classes": splits.num_classes, "input_shape": splits.image_shape}


def network(config: config_lib.Config, splits: data.Splits) -> keras.Model:
    """The plain, ungated super-network of `config`.

    Raises:
        UserError: if it cannot take these images, or a function of the user's gives no network for them.
    """
    build = subnets.builder(builder_name(config), "supernet.source")
    arguments = network_arguments(config, splits)
    if source := config.supernet.source:
        model = functions.call("supernet.source", source, build, **arguments)
        _check_network(model, source, splits)
        return model
    try:
        return build(**arguments)
    except ValueError as error:
        raise UserError(
            f"{error}; for '{config.data.title}' set --config.data.image_size to resize its images"
        ) from None


def _check_network(model: Any, source: str, splits: data.Splits) -> None:
    if not isinstance(model, keras.Model):
        raise UserError(f"supernet.source: '{source}' must return a keras.Model. Received: {type(model).__name__}")
    if not model.built or not getattr(model, "inputs", None):
        raise UserError(
            f"supernet.source: '{source}' must return a functional or Sequential model with an Input. "
            f"Received: {type(model).__name__}"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            f"supernet.source: the model of '{source}' must have one input and one output. "
            f"Received: {len(model.inputs)} and {len(model.outputs)}"
        )
    takes, gives = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    wanted = (None, *splits.image_shape)
    if len(takes) != 4 or any(t not in (None, w) for t, w in zip(takes, wanted, strict=True)):
        raise UserError(f"supernet.source: the model of '{source}' must take images {wanted}. Received: input {takes}")
    if gives != (None, splits.num_classes):
        raise UserError(
            f"supernet.source: the model of '{source}' must give logits {(None, splits.num_classes)}, one a class. "
            f"Received: output {gives}"
        )
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        raise UserError(
            f"supernet.source: the model of '{source}' must give logits. Received: a softmax in '{last.name}'"
        )


def gated(
    config: config_lib.Config, splits: data.Splits, model: keras.Model, initial_drop: float | None = None
) -> Supernet:
    """`model` with search's gates.

    Args:
        config: says what is gated, and the prior.
        splits: whose training images the prior is weighed against.
        model: as `network` makes it; its weights are copied.
        initial_drop: drop probability of every gate, in (0, 1); None: search's.

    Raises:
        UserError: for a layer that cannot be gated, a pattern that matches none, or nothing to gate.
    """
    settings = config.search
    return gate(
        model,
        ell2=settings.ell2,
        prior=settings.prior,
        num_examples=settings.example_multiplier * splits.sizes["train"],
        temperature=settings.temperature,
        initial_drop=settings.initial_drop if initial_drop is None else initial_drop,
        gate_learning_rate=settings.gate_learning_rate,
        gate_dense=settings.gate_dense,
        gate_pooling=settings.gate_pooling,
        include=_patterns(settings.include),
        exclude=_patterns(settings.exclude),
        seed=config.seed,
    )


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def cosine(learning_rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """From `learning_rate` to zero as half a cosine over `steps`."""
    return keras.optimizers.schedules.CosineDecay(learning_rate, steps)


def schedule(config: config_lib.Search, steps_per_epoch: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Search's learning rate by step."""
    start = config.learning_rate
    if config.schedule == "cosine_restarts":
        return keras.optimizers.schedules.CosineDecayRestarts(
            start,
            config.restart_epochs * steps_per_epoch,
            t_mul=config.restart_multiplier,
            alpha=config.minimum_learning_rate / start,
        )
    if config.schedule == "steps":
        # Keras's last step at a rate is the boundary itself; steps count from 0.
        boundaries = [round(epoch * steps_per_epoch) - 1 for epoch in config.boundaries]
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            boundaries, [start / 10**i for i in range(len(boundaries) + 1)]
        )
    return cosine(start, max(1, steps_per_epoch * config.epochs))


def sgd(
    config: config_lib.Search, rate: keras.optimizers.schedules.LearningRateSchedule, weight_decay: float = 0.0
) -> Any:
    """SGD with search's momentum, its learning rate by the schedule `rate`."""
    optimizer = keras.optimizers.SGD(
        rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=weight_decay or None,
    )
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def calibration_images(config: config_lib.Config, splits: data.Splits, number: int) -> tf.Tensor:
    """One batch of training images as training sees them, at most `number`."""
    size = min(number, splits.sizes["train"])
    images, _ = next(iter(data.training_batches(splits, config.data, size, 1, config.seed + 2)))
    return images


def recalibration(config: config_lib.Config, splits: data.Splits, supernet: Supernet) -> Recalibration | None:
    """What gives every candidate statistics of its own, as `config.sample` says; None if it has none to give."""
    number = config.sample.recalibrate
    if not number or not any(node.kind == "norm" for node in supernet.graph.nodes):
        return None
    return Recalibration(supernet, calibration_images(config, splits, number))


def classification_loss() -> keras.losses.Loss:
    """Mean negative log likelihood of integer labels from logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit_gated(
    config: config_lib.Config,
    splits: data.Splits,
    work: Workdir,
    supernet: Supernet,
    checkpoint: str,
    key: str,
    title: str,
    **options: Any,
) -> None:
    """Compiles a supernet and trains it as `config.search` says, from its checkpoint if there is one of this run.

    Args:
        config: the run's.
        splits: only the training images are read.
        work: where the checkpoint is kept.
        supernet: as `gated` makes it.
        checkpoint: as for `fit`, like `key`, `title` and `options`.
        key: identifies the run.
        title: what the progress line is called.
        options: `describe`, `check`, `on_epoch` and `callbacks` of `fit`.

    Raises:
        UserError: as `fit`, or if there are fewer training images than one batch.
    """
    settings = config.search
    steps = splits.sizes["train"] // settings.batch_size
    supernet.compile(sgd(settings, schedule(settings, steps)), loss=classification_loss(), metrics=["accuracy"])

    def batches(first_epoch: int) -> tf.data.Dataset:
        return data.training_batches(
            splits, config.data, settings.batch_size, settings.epochs, config.seed, first_epoch
        )

    fit(supernet, batches, settings.epochs, steps, work, checkpoint, key, title, **options)


def fit_plain(
    config: config_lib.Config,
    splits: data.Splits,
    work: Workdir,
    model: keras.Model,
    epochs: int,
    learning_rate: float,
    title: str,
) -> None:
    """Compiles a network without gates and trains it as `config.retrain` says, from its checkpoint if there is one.

    Args:
        config: the run's.
        splits: only the training images are read.
        work: where the checkpoint is kept.
        model: classifies these images; trained in place.
        epochs: in all, with one cosine to zero over them.
        learning_rate: at their start.
        title: what the progress line is called; names the checkpoint too, so unique in the stage.

    Raises:
        UserError: as `fit`, or if there are fewer training images than one batch.
    """
    settings = config.retrain
    steps = splits.sizes["train"] // settings.batch_size
    model.compile(
        sgd(config.search, cosine(learning_rate, max(1, steps * epochs)), settings.weight_decay),
        loss=classification_loss(),
        metrics=["accuracy"],
    )

    def batches(first_epoch: int) -> tf.data.Dataset:
        # Not search's order again: the seed is shifted.
        return data.training_batches(splits, config.data, settings.batch_size, epochs, config.seed + 1, first_epoch)

    fit(model, batches, epochs, steps, work, retrain_checkpoint(title), work.key("retrain", config), title)


def retrain_checkpoint(title: str) -> str:
    """File name, in the working directory, of the checkpoint of what retrain trains under this title."""
    return f"retrain/{re.sub(r'[^a-z]+', '_', title)}_checkpoint.npz"


def fit(
    model: keras.Model,
    batches: Callable[[int], tf.data.Dataset],
    epochs: int,
    steps_per_epoch: int,
    workdir: Workdir,
    checkpoint: str,
    key: str,
    title: str,
    describe: Callable[[], dict[str, Any]] = dict,
    check: Callable[[int], None] = lambda epoch: None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, Any]]:
    """Trains a compiled model, from its checkpoint if there is one of this run.

    Args:
        model: compiled and built.
        batches: from the first epoch to a data set with all batches from there to the end.
        epochs: in all, those before an interruption included.
        steps_per_epoch: batches in one epoch.
        workdir: where the checkpoint is kept.
        checkpoint: its file name there.
        key: identifies the run; a checkpoint with another key is not continued.
        title: what the progress line is called.
        describe: further figures for the epoch's record.
        check: called with the number of every epoch, from 1, at its end, before it is saved; what it raises ends the
            training, and the checkpoint of the epoch before stays.
        on_epoch: called with the history after every epoch, once its checkpoint is safe.
        callbacks: further ones of Keras's.

    Returns:
        One record an epoch: loss, accuracy and what `describe` says.

    Raises:
        UserError: if the loss is no longer finite (the last checkpoint stays), the checkpoint cannot be read, or as
            `check` raises it.
    """
    model.optimizer.build(model.trainable_variables)
    history = _restore(workdir.path / checkpoint, model, key)
    if history:
        console.print(f"{title:9s} goes on after epoch {len(history)} of {epochs}")
    if len(history) < epochs:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
        )
        with rich.progress.Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=epochs, completed=len(history), figures="")

            def epoch_done(logs: dict[str, Any]) -> None:
                check(len(history) + 1)
                record = {"epoch": len(history) + 1, **{k: float(v) for k, v in logs.items()}, **describe()}
                history.append(record)
                workdir.write(checkpoint, lambda path: _save(path, model, key, history))
                on_epoch(history)
                figures = "   ".join(
                    f"{name.replace('_', ' ')} {_short(value)}"
                    for name, value in record.items()
                    if name != "epoch" and not isinstance(value, list | dict)
                )
                description = f"{title:9s} epoch {len(history)}/{epochs}"
                progress.update(task, completed=len(history), description=description, figures=figures)

            guard = _Guard(title, steps_per_epoch, checkpoint, epoch_done)
            model.fit(
                batches(len(history)),
                initial_epoch=len(history),
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                callbacks=[guard, *callbacks],
                shuffle=False,  # `batches` are shuffled already
                verbose=0,
            )
    return history


class _Guard(keras.callbacks.Callback):
    """Stops at the first loss that is not finite, before anything of that epoch is saved."""

    def __init__(self, title: str, steps_per_epoch: int, checkpoint: str, epoch_done: Callable[[dict], None]):
        super().__init__()
        self._title = title
        self._steps_per_epoch = steps_per_epoch
        self._checkpoint = checkpoint
        self._epoch_done = epoch_done
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not math.isfinite(logs["loss"]):
            step = self._epoch * self._steps_per_epoch + batch + 1
            kept = f"the checkpoint after epoch {self._epoch} stays" if self._epoch else "there was no checkpoint yet"
            raise UserError(
                f"{self._title} stopped at step {step} (epoch {self._epoch + 1}): the loss is {logs['loss']}. Usually "
                f"the learning rate is too high; {kept} ({self._checkpoint})"
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epoch_done(logs)


def _variables(model: keras.Model) -> list[Any]:
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


def _save(path: pathlib.Path, model: keras.Model, key: str, history: list[dict[str, Any]]) -> None:
    arrays: dict[str, Any] = {f"v{i}": np.asarray(v) for i, v in enumerate(_variables(model))}
    with open(path, "wb") as stream:
        np.savez(stream, key=np.array(key), history=np.array(json.dumps(history)), **arrays)


def _restore(path: pathlib.Path, model: keras.Model, key: str) -> list[dict[str, Any]]:
    """The history that the checkpoint holds, its values assigned; empty if there is none of this run."""
    if not path.exists():
        return []
    variables = _variables(model)
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if str(archive["key"]) != key:
                return []
            arrays = [archive[f"v{i}"] for i in range(len(variables))]  # every member's CRC is checked here
            history = json.loads(str(archive["history"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: truncated or altered, cannot be continued ({error}): delete it to start this stage again"
        ) from None
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return history


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
