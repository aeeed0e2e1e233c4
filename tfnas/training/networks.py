"""Shared by search and retrain: the networks, optimizers and batches of a config."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfnas import config as config_lib
from tfnas.common import user_functions
from tfnas.data import pipeline
from tfnas.gating import optimizers
from tfnas.gating.placement import gate
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.statistics import settle_statistics, settled_in_words
from tfnas.layers import BatchNormalization
from tfnas.ranking.recalibration import Recalibration
from tfnas.runs.checkpoints import Checkpoints
from tfnas.runs.stage_table import WARMUP_CHECKPOINTS
from tfnas.runs.workdir import Workdir
from tfnas.training import building, distribution, loop, preflight, schedules
from tfnas.training.distillation import Teacher, kind_of

CURVATURE_BATCH = 20  # images whose mean gradient is squared


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy, Keras and TensorFlow."""
    # Not 0: with that global seed, TensorFlow cannot shuffle by a seed that is a tensor, as the epochs' are.
    keras.utils.set_random_seed(seed + 1)


def load_data(config: config_lib.Config, work: Workdir) -> pipeline.Splits:
    """Loads and checks the three splits. With several processes, the chief loads first, and may prepare them in `work`.

    Raises:
        UserError: as `pipeline.load`, `preflight.examples` and `preflight.formats`.
    """
    with distribution.chief_first(config.distribution):
        splits = pipeline.load(config.data, work.path / "tensorflow_datasets", building.task_of(config))
    preflight.examples(splits)
    preflight.formats(config, splits)
    return splits


def gated(
    config: config_lib.Config,
    splits: pipeline.Splits,
    model: keras.Model,
    work: Workdir,
    initial_drop: float | None = None,
    importance: str = "",
) -> Supernet:
    """Adds the gates of a search to `model`.

    Args:
        config: settings of the gates, and of the bounds or the prior.
        splits: splits whose training images the prior is weighed against.
        model: model built by `building.network`; its weights are copied.
        work: working directory; layers are measured once in it, if the latency is bounded.
        initial_drop: drop probability of every gate, in (0, 1); None means `search.initial_drop`.
        importance: by which units are chosen; empty means `search.importance`.

    Raises:
        UserError: if a layer cannot be gated, a pattern matches no layer, there is nothing to gate, or a bound is out
            of reach.
    """
    settings = config.search.by(importance) if importance else config.search
    if initial_drop is not None:
        settings = dataclasses.replace(settings, initial_drop=initial_drop)
    num_examples, seed = splits.sizes["train"], config.seed
    if settings.published:
        return gate(
            model,
            **_common(settings, num_examples, seed),
            ell2=settings.ell2,
            group_size=settings.group_size,
            by_source=settings.by_source,
            prior=settings.prior,
            gate_dense=settings.gate_dense,
            gate_pooling=settings.gate_pooling,
            include=patterns(settings.include),
        )
    device = preflight.layer_latencies(config, work, model) if settings.latency else None
    steps = settings.gated_epochs * (num_examples // settings.batch_size)
    return gate(model, **unit_arguments(settings, num_examples, steps, seed, device))


def unit_arguments(
    settings: config_lib.Search, num_examples: int, steps: int, seed: int, device: Any = None
) -> dict[str, Any]:
    """Arguments of `tfnas.gate` for a search under bounds.

    Args:
        settings: of the search, resolved.
        num_examples: training examples.
        steps: training steps with gates.
        seed: of the gates' noise.
        device: of a bounded latency.
    """
    chosen: Any = settings.importance
    if ":" in chosen:
        chosen = functools.partial(
            user_functions.call,
            "search.importance",
            chosen,
            user_functions.resolve("search.importance", chosen),
        )
    return {
        **settings.bounds,
        **_common(settings, num_examples, seed),
        **({"device": device} if settings.latency else {}),
        "importance": chosen,
        "iterative": settings.iterative,
        "floor": settings.floor,
        "scale_penalty": None if settings.scale_penalty == -1 else settings.scale_penalty,
        "steps": max(1, steps),
        "noise": settings.noise,
        "streams": {"auto": None, "yes": True, "no": False}[settings.streams],
    }


def _common(settings: config_lib.Search, num_examples: int, seed: int) -> dict[str, Any]:
    """Arguments of `tfnas.gate` for either kind of search."""
    common: dict[str, Any] = {"exclude": patterns(settings.exclude), "seed": seed}
    if settings.published or settings.importance == "gates":
        common["num_examples"] = settings.example_multiplier * num_examples
        common |= {"temperature": settings.temperature, "initial_drop": settings.initial_drop}
    return common


def gates_in_words(supernet: Supernet) -> str:
    """Returns what the gates of a supernet stand on, such as '12 gated layers'."""
    if isinstance(supernet, UnitSupernet):
        return f"{len(supernet.graph.groups)} groups of channel units"
    return f"{len(supernet.posterior().layers)} gated layers"


def curvature_batches(config: config_lib.Config, splits: pipeline.Splits) -> tf.data.Dataset:
    """Returns the training batches from whose gradients curvature is computed at once."""
    number = max(1, min(config.search.curvature_images, splits.sizes["train"]) // CURVATURE_BATCH)
    # A shifted seed, so that the batches are not those of the last epoch, to which the weights have just adapted.
    return pipeline.training_batches(splits, config.data, CURVATURE_BATCH, 1, config.seed + 4).take(number)


def patterns(text: str) -> list[str]:
    """Glob patterns of a setting, which are separated by commas."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def calibration_images(config: config_lib.Config, splits: pipeline.Splits, number: int) -> tf.Tensor:
    """Returns one batch of at most `number` augmented training inputs."""
    size = min(number, splits.sizes["train"])
    return next(iter(pipeline.training_batches(splits, config.data, size, 1, config.seed + 2)))[0]


def recalibration(config: config_lib.Config, splits: pipeline.Splits, supernet: Supernet) -> Recalibration | None:
    """Returns the recalibration of `config.sample`, or None if it is off or there is no normalization."""
    number = config.sample.recalibrate
    if not number or not any(isinstance(node, BatchNormalization) for node in supernet.graph.nodes):
        return None
    return Recalibration(supernet, calibration_images(config, splits, number))


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
    """Compiles a supernet and trains it by `config.search`, starting from its newest checkpoint, if any.

    Args:
        config: settings of the run.
        splits: the splits, of which only train is read.
        work: working directory of the checkpoints.
        supernet: supernet built by `gated`, in the scope of the strategy, like the call of this function.
        folder: folder of the checkpoints.
        key: identifies the run; checkpoints with another key are not resumed.
        title: name on the progress line.
        options: `describe`, `check`, `on_epoch` and `before_step` of `loop.train`.

    Returns:
        One record per epoch, as `loop.train`.

    Raises:
        UserError: as `loop.train`, or if the training images cannot be made into such batches.
    """
    settings = config.search
    rate = schedules.search(config, splits.sizes["train"] // settings.batch_size, settings.warmup_epochs)
    compile_gated(config, supernet, rate)
    epochs, batch_size = settings.gated_epochs, settings.batch_size
    return _fit(config, splits, work, supernet, epochs, batch_size, config.seed, folder, key, title, options)


def compile_gated(config: config_lib.Config, supernet: Supernet, rate: schedules.Schedule) -> None:
    """Compiles a supernet for search, with the learning-rate schedule `rate`."""
    settings = config.search
    weights = schedules.sgd(settings, rate, settings.weight_decay)
    optimizer = _scaled(config, optimizers.gated(weights, **schedules.gate_rates(settings)))
    supernet.compile(optimizer, loss=building.task_of(config).loss(), auto_scale_loss=False)


def warmed_up(config: config_lib.Config, splits: pipeline.Splits, work: Workdir) -> keras.Model:
    """Returns the supernet without gates after the warm-up of the search, if there is one.

    Args:
        config: settings of the run.
        splits: the splits, of which only train is read.
        work: working directory of the checkpoints.

    Raises:
        UserError: as `building.network` and `loop.train`.
    """
    set_seed(config.seed)
    model = building.network(config, splits)
    settings = config.search
    if settings.warmup_epochs:
        rate = schedules.search(config, splits.sizes["train"] // settings.batch_size)
        compile_plain(config, model, rate, settings.weight_decay)
        # A shifted seed, so that the order differs from that of the gated epochs.
        seed, key = config.seed + 3, work.key("search", config)
        epochs, batch_size = settings.warmup_epochs, settings.batch_size
        _fit(config, splits, work, model, epochs, batch_size, seed, WARMUP_CHECKPOINTS, key, "warm-up", {})
    return model


def fit_as_search(
    config: config_lib.Config, splits: pipeline.Splits, work: Workdir, model: keras.Model, title: str
) -> None:
    """Trains a network without gates with the epochs, learning rates and batch size of search.

    The weight decay is that of retrain: the published search has a regularizer instead, which needs gates.
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
    teacher: keras.Model | None = None,
) -> None:
    """Compiles a network without gates and trains it by `config.retrain`, starting from its newest checkpoint, if any.

    If training is too short for the moving statistics of batch normalization to settle, they are recomputed at the end,
    like those of candidates, unless `config.sample.recalibrate` is 0.

    Args:
        config: settings of the run.
        splits: the splits, of which only train is read.
        work: working directory of the checkpoints.
        model: classifier of these images, trained in place; built in the scope of the strategy, like the call of this
            function.
        epochs: total number of epochs; 0 leaves the network as it is.
        rates: function from the number of steps in an epoch to the learning-rate schedule.
        title: name on the progress line. Its letters also name the checkpoints, so it must be unique in the stage.
        batch_size: batch size; 0 means that of retrain.
        teacher: trained classifier from whose logits the network also learns, as `config.retrain` has it.

    Raises:
        UserError: as `loop.train`, or if the training images cannot be made into such batches.
    """
    if not epochs:
        return
    batch_size = batch_size or config.retrain.batch_size
    steps = splits.sizes["train"] // batch_size
    compile_plain(config, model, rates(steps), config.retrain.weight_decay)
    # A shifted seed, so that the order differs from that of search.
    seed, key = config.seed + 1, work.key("retrain", config)
    settings, kinds = config.retrain, (kind_of(model.loss),) * len(model.outputs)
    taught = Teacher(teacher, settings.distill, settings.distill_temperature, kinds) if teacher else None
    _fit(config, splits, work, model, epochs, batch_size, seed, retrain_checkpoints(title), key, title, {}, taught)
    if number := config.sample.recalibrate:
        left = settle_statistics(model, epochs * steps, lambda: calibration_images(config, splits, number))
        if left:
            print(f"{' '.join(loop.line_start(title))}{settled_in_words(left)}")


def compile_plain(config: config_lib.Config, model: keras.Model, rate: schedules.Schedule, weight_decay: float) -> None:
    """Compiles a network without gates, with the learning-rate schedule `rate`."""
    optimizer = _scaled(config, schedules.sgd(config.search, rate, weight_decay))
    model.compile(optimizer, loss=building.task_of(config).loss(), auto_scale_loss=False)


def retrain_checkpoints(title: str) -> str:
    """Returns the folder, within the working directory, of the checkpoints of a network that retrain trains."""
    return f"retrain/{re.sub(r'[^a-z]+', '_', title)}_checkpoints"


@contextlib.contextmanager
def precision(model: keras.Model, name: str) -> Iterator[None]:
    """Temporarily gives the policy `name` to the layers of `model` that compute in float32.

    This includes layers with an explicit float32 policy, which cannot be distinguished from the global one.

    Everything that is built, saved, ranked or served is therefore in float32. The policy of a supernet itself is not
    changed, so that its regularizers stay in float32.
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
    """Wraps `optimizer` in loss scaling if gradients could underflow in float16."""
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
    teacher: Teacher | None = None,
) -> list[dict[str, Any]]:
    settings = config.training

    def batches(first_step: int, share: pipeline.Share) -> tf.data.Dataset:
        return pipeline.training_batches(splits, config.data, batch_size, epochs, seed, first_step, share)

    preflight.room(work, model, settings.checkpoints_kept)
    with contextlib.ExitStack() as stack:
        for network in (model, *([teacher.model] if teacher else [])):
            stack.enter_context(precision(network, settings.precision))
        return loop.train(
            loop.Step(model, settings.accumulate, settings.jit_compile, teacher, building.task_of(config)),
            model,
            batches,
            batch_size,
            epochs,
            splits.sizes["train"] // batch_size,
            # With the title, because networks trained in one stage must not share checkpoints.
            Checkpoints(work, folder, f"{key} {title}", settings.checkpoints_kept),
            title,
            settings.checkpoint_minutes,
            **options,
        )
