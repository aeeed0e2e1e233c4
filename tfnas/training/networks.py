"""What search and retraining share: the networks, the optimiser and the batches that a config means."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfnas import config as config_lib
from tfnas.common import user_functions
from tfnas.common.errors import UserError
from tfnas.cutting import subnets
from tfnas.data import pipeline
from tfnas.gating import optimizers
from tfnas.gating.placement import gate
from tfnas.gating.recalibration import Recalibration, settle, stale
from tfnas.gating.supernet import Supernet
from tfnas.layers import BatchNormalization
from tfnas.runs.checkpoints import Checkpoints
from tfnas.runs.stage_table import WARMUP_CHECKPOINTS
from tfnas.runs.workdir import Workdir
from tfnas.training import distribution, loop, preflight, schedules

_STALE = 0.01  # moving statistics that are this much, or more, what they began with are taken anew


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy, Keras and TensorFlow."""
    # Not 0: with that global seed, TensorFlow cannot shuffle by a seed that is a tensor, as the epochs' are.
    keras.utils.set_random_seed(seed + 1)


def load_data(config: config_lib.Config, work: Workdir) -> pipeline.Splits:
    """The three splits, looked into; of several processes the chief reads first: it may have to prepare them in `work`.

    Raises:
        UserError: as `data.load` and `checks.examples`.
    """
    with distribution.chief_first(config.distribution):
        splits = pipeline.load(config.data, work.path / "tensorflow_datasets")
    preflight.examples(splits)
    return splits


def builder_name(config: config_lib.Config) -> str:
    """What `subnets.builder` finds the super-network's function by: the user's own, or one of `tfnas.supernets`."""
    return config.supernet.source or config.supernet.name


def network_arguments(config: config_lib.Config, splits: pipeline.Splits) -> dict[str, Any]:
    """Arguments of the function that `builder_name` names, for these images and labels."""
    return {**config.supernet.arguments(), "num_classes": splits.num_classes, "input_shape": splits.image_shape}


def network(config: config_lib.Config, splits: pipeline.Splits) -> keras.Model:
    """The plain, ungated super-network of `config`.

    Raises:
        UserError: if it cannot take these images, or a function of the user's gives no network for them.
    """
    build = subnets.builder(builder_name(config), "supernet.source")
    arguments = network_arguments(config, splits)
    if source := config.supernet.source:
        model = user_functions.call("supernet.source", source, build, **arguments)
        _check_network(model, source, splits)
        return model
    try:
        return build(**arguments)
    except ValueError as error:
        raise UserError(
            f"{error}; for '{config.data.title}' set --config.data.image_size to resize its images"
        ) from None


def _check_network(model: Any, source: str, splits: pipeline.Splits) -> None:
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
    config: config_lib.Config,
    splits: pipeline.Splits,
    model: keras.Model,
    initial_drop: float | None = None,
    check_share: bool = False,
) -> Supernet:
    """`model` with search's gates.

    Args:
        config: says what is gated, and the prior.
        splits: whose training images the prior is weighed against.
        model: as `network` makes it; its weights are copied.
        initial_drop: drop probability of every gate, in (0, 1); None: search's.
        check_share: look if the size asked for is within the gates' reach; a run does so once, before the warm-up.

    Raises:
        UserError: for a layer that cannot be gated, a pattern that matches none, nothing to gate, or a size out of
            reach.
    """
    settings = config.search
    steps = max(1, settings.gated_epochs * (splits.sizes["train"] // settings.batch_size))
    return gate(
        model,
        num_examples=settings.example_multiplier * splits.sizes["train"],
        ell2=settings.ell2 or None,
        **settings.target,
        steps=steps,
        group_size=settings.group_size,
        by_source=settings.by_source,
        prior=settings.prior,
        temperature=settings.temperature,
        initial_drop=settings.initial_drop if initial_drop is None else initial_drop,
        gate_dense=settings.gate_dense,
        gate_pooling=settings.gate_pooling,
        include=_patterns(settings.include),
        exclude=_patterns(settings.exclude),
        seed=config.seed,
        check_share=check_share,
    )


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def calibration_images(config: config_lib.Config, splits: pipeline.Splits, number: int) -> tf.Tensor:
    """One batch of training images as training sees them, at most `number`."""
    size = min(number, splits.sizes["train"])
    images, _ = next(iter(pipeline.training_batches(splits, config.data, size, 1, config.seed + 2)))
    return images


def recalibration(config: config_lib.Config, splits: pipeline.Splits, supernet: Supernet) -> Recalibration | None:
    """What gives every candidate statistics of its own, as `config.sample` says; None if it has none to give."""
    number = config.sample.recalibrate
    if not number or not any(isinstance(node, BatchNormalization) for node in supernet.graph.nodes):
        return None
    return Recalibration(supernet, calibration_images(config, splits, number))


def classification_loss() -> keras.losses.Loss:
    """Mean negative log likelihood of integer labels from logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit_gated(
    config: config_lib.Config,
    splits: pipeline.Splits,
    work: Workdir,
    supernet: Supernet,
    folder: str,
    key: str,
    title: str,
    **options: Any,
) -> list[dict[str, Any]]:
    """Compiles a supernet and trains it as `config.search` says, from its newest checkpoint if there is one.

    Args:
        config: the run's.
        splits: only the training images are read.
        work: where the checkpoints are kept.
        supernet: as `gated` makes it, in the strategy's scope, as all of this.
        folder: of the checkpoints.
        key: identifies the run; checkpoints of another key are not continued.
        title: what the progress line is called.
        options: `describe`, `check`, `on_epoch` and `before_step` of `loop.train`.

    Returns:
        One record an epoch, as `loop.train`.

    Raises:
        UserError: as `loop.train`, or if the training images cannot be made into such batches.
    """
    settings = config.search
    rate = schedules.search(config, splits.sizes["train"] // settings.batch_size, settings.warmup_epochs)
    compile_gated(config, supernet, rate)
    epochs, batch_size = settings.gated_epochs, settings.batch_size
    return _fit(config, splits, work, supernet, epochs, batch_size, config.seed, folder, key, title, options)


def compile_gated(config: config_lib.Config, supernet: Supernet, rate: schedules.Schedule) -> None:
    """Compiles a supernet for search, its learning rate by the schedule `rate`."""
    settings = config.search
    weights = schedules.sgd(settings, rate, settings.weight_decay)
    optimizer = _scaled(config, optimizers.gated(weights, **schedules.gate_rates(settings)))
    supernet.compile(optimizer, loss=classification_loss(), metrics=["accuracy"], auto_scale_loss=False)


def warmed_up(config: config_lib.Config, splits: pipeline.Splits, work: Workdir) -> keras.Model:
    """The super-network without gates, after search's warm-up; as it is made where that has no epochs.

    Args:
        config: the run's.
        splits: only the training images are read.
        work: where the checkpoints are kept.

    Raises:
        UserError: as `network` and `loop.train`.
    """
    set_seed(config.seed)
    model = network(config, splits)
    settings = config.search
    if settings.warmup_epochs:
        rate = schedules.search(config, splits.sizes["train"] // settings.batch_size)
        compile_plain(config, model, rate, settings.weight_decay)
        # Not the order again in which the gated epochs see the images: the seed is shifted.
        seed, key = config.seed + 3, work.key("search", config)
        epochs, batch_size = settings.warmup_epochs, settings.batch_size
        _fit(config, splits, work, model, epochs, batch_size, seed, WARMUP_CHECKPOINTS, key, "warm-up", {})
    return model


def fit_as_search(
    config: config_lib.Config, splits: pipeline.Splits, work: Workdir, model: keras.Model, title: str
) -> None:
    """`fit_plain` in search's place: for as many epochs, by its learning rates, on batches of its size.

    The weight decay is retrain's: the published search has none, but its regulariser instead, which needs gates.
    """
    settings = config.search
    rates = functools.partial(schedules.search, config)
    fit_plain(config, splits, work, model, settings.epochs, rates, title, settings.batch_size)


def fit_plain(
    config: config_lib.Config,
    splits: pipeline.Splits,
    work: Workdir,
    model: keras.Model,
    epochs: int,
    rates: Callable[[int], schedules.Schedule],
    title: str,
    batch_size: int = 0,
) -> None:
    """Compiles a network without gates and trains it as `config.retrain` says, from its newest checkpoint.

    Where so few steps leave batch normalisation's moving statistics partly what they began with, they are taken anew at
    the end, as candidates' are, unless `config.sample` says that those keep search's.

    Args:
        config: the run's.
        splits: only the training images are read.
        work: where the checkpoints are kept.
        model: classifies these images; trained in place. Made in the strategy's scope, as all of this.
        epochs: in all.
        rates: from the number of steps in an epoch to the learning rate by step.
        title: what the progress line is called; names the checkpoints too, by its letters, so unique in the stage.
        batch_size: 0: retrain's.

    Raises:
        UserError: as `loop.train`, or if the training images cannot be made into such batches.
    """
    batch_size = batch_size or config.retrain.batch_size
    steps = splits.sizes["train"] // batch_size
    compile_plain(config, model, rates(steps), config.retrain.weight_decay)
    # Not search's order again: the seed is shifted.
    seed, key = config.seed + 1, work.key("retrain", config)
    _fit(config, splits, work, model, epochs, batch_size, seed, retrain_checkpoints(title), key, title, {})
    number, left = config.sample.recalibrate, stale(model, epochs * steps)
    if number and left >= _STALE:
        head, tail = loop.line_start(title)
        told = f"batch normalisation's statistics taken anew: {left:.0%} of the moving ones are the first ones"
        print(f"{head} {tail}{told}")
        settle(model, calibration_images(config, splits, number))


def compile_plain(config: config_lib.Config, model: keras.Model, rate: schedules.Schedule, weight_decay: float) -> None:
    """Compiles a network without gates, its learning rate by the schedule `rate`."""
    optimizer = _scaled(config, schedules.sgd(config.search, rate, weight_decay))
    model.compile(optimizer, loss=classification_loss(), metrics=["accuracy"], auto_scale_loss=False)


def retrain_checkpoints(title: str) -> str:
    """Folder, in the working directory, of the checkpoints of what retrain trains under this title."""
    return f"retrain/{re.sub(r'[^a-z]+', '_', title)}_checkpoints"


@contextlib.contextmanager
def precision(model: keras.Model, name: str) -> Iterator[None]:
    """While it lasts, layers of `model` that compute in float32 compute by the policy `name` instead.

    Also those set to float32 by hand: a policy does not tell whether it was given or the global one.

    So whatever is built, saved, ranked or served is in float32. A supernet itself is left so too: its regularisers.
    """
    layers = [
        layer
        for layer in model._flatten_layers(include_self=not isinstance(model, Supernet))
        if layer.dtype_policy.name == "float32"
    ]
    for layer in layers:
        layer.dtype_policy = name
    try:
        yield
    finally:
        for layer in layers:
            layer.dtype_policy = "float32"


def _scaled(config: config_lib.Config, optimizer: Any) -> Any:
    """`optimizer`, whose loss is scaled where gradients would otherwise vanish in 16 bits."""
    if config.training.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _fit(
    config: config_lib.Config,
    splits: pipeline.Splits,
    work: Workdir,
    model: keras.Model,
    epochs: int,
    batch_size: int,
    seed: int,
    folder: str,
    key: str,
    title: str,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    settings = config.training

    def batches(first_step: int, share: pipeline.Share) -> tf.data.Dataset:
        return pipeline.training_batches(splits, config.data, batch_size, epochs, seed, first_step, share)

    preflight.room(work, model, settings.checkpoints_kept)
    with precision(model, settings.precision):
        return loop.train(
            loop.Step(model, settings.accumulate, settings.jit_compile),
            model,
            batches,
            batch_size,
            epochs,
            splits.sizes["train"] // batch_size,
            # The title too: networks that are trained in one stage must not take each other's.
            Checkpoints(work, folder, f"{key} {title}", settings.checkpoints_kept),
            title,
            settings.checkpoint_minutes,
            **options,
        )
