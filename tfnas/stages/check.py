"""Check: what a run will need and cost, before it is begun. Not one of the stages of a run."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfnas import checks, conversion, data, distribution, loop, optimizers, training, workdir
from tfnas.config import Config
from tfnas.errors import unwrapped


def run(config: Config, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Builds the networks of `config`, takes steps at full batch size, prints and returns what was found.

    The folder does not become this config's: settings may still change. The test split is not read.

    Returns:
        `data`, what messages call it; `sizes`, number of examples by split ('test' only where it is known unread);
        `image_shape`, (H, W, C); `classes`, names; `parameters` and `gated_layers` of the super-network; `seconds`,
        about what search and retraining will take.

    Raises:
        UserError: for bad settings, data, files or devices, too little room or memory, or a loss that is not finite.
    """
    config, work = config.check(), workdir.Workdir(path)
    conversion.require(config.export.formats)
    with unwrapped(), distribution.strategy(config.distribution).scope():
        return _check(config, work)


def _check(config: Config, work: workdir.Workdir) -> dict[str, Any]:
    training.set_seed(config.seed)
    strategy = tf.distribute.get_strategy()
    _say("devices", distribution.describe(strategy))
    splits = training.load_data(config, work)
    _say("data", f"{config.data.title}: {splits.summary()}")
    search, retrain = config.search, config.retrain
    plain = training.network(config, splits)
    supernet = training.gated(config, splits, plain)
    _say("supernet", f"{supernet.count_params():,} parameters, {len(supernet.gated_layers)} gated layers")
    needed, free = checks.room(work, supernet, config.training.checkpoints_kept)
    _say("folder", f"{work.path}: writable, {_bytes(free)} free, about {_bytes(needed)} needed")

    steps = splits.sizes["train"] // search.batch_size
    training.compile_gated(config, supernet, optimizers.search(config, max(1, steps)))
    gated_seconds = _measured("search", config, splits, supernet, search.batch_size)
    searching = search.epochs * steps * gated_seconds  # a warm-up's are no longer
    _say("", f"{search.epochs:,} epochs of {steps:,} steps: about {_duration(searching)}")

    rate = optimizers.Cosine(retrain.baseline_learning_rate, 1).schedule(1000)
    training.compile_plain(config, plain, rate, retrain.weight_decay)
    plain_seconds = _measured("retrain", config, splits, plain, retrain.batch_size)
    plain_steps = splits.sizes["train"] // retrain.batch_size
    epochs = retrain.epochs + (search.epochs + retrain.epochs) * retrain.baseline
    retraining = epochs * plain_steps * plain_seconds
    if retrain.controls:
        # Under a fixed drop probability, along single paths, and by magnitude, each trained further.
        retraining += 2 * searching + (search.epochs + 3 * retrain.epochs) * plain_steps * plain_seconds
    _say("", f"with all that it is compared with: about {_duration(retraining)}, if what is found is no smaller")
    _say("in all", f"about {_duration(searching + retraining)}, and the ranking of {config.sample.num_candidates:,}")
    return {
        "data": config.data.title,
        "sizes": splits.sizes,
        "image_shape": list(splits.image_shape),
        "classes": list(splits.label_names),
        "parameters": supernet.count_params(),
        "gated_layers": len(supernet.gated_layers),
        "seconds": round(searching + retraining, 1),
    }


def _measured(title: str, config: Config, splits: data.Splits, model: keras.Model, batch_size: int) -> float:
    """Seconds of one step, as the run will take it."""
    settings = config.training

    def batches(first_step: int, share: data.Share) -> tf.data.Dataset:
        return data.training_batches(splits, config.data, batch_size, 100, config.seed, first_step, share)

    def measured(jit_compile: bool) -> checks.Measured:
        with training.precision(model, settings.precision):
            return checks.measure(loop.Step(model, settings.accumulate, jit_compile), batches)

    found = measured(settings.jit_compile)
    total = checks.memory_bytes()
    of = f" of {_bytes(total)}" if total else " of the GPU's"
    speed = f"a batch of {batch_size}: {1000 * found.seconds:,.0f} ms, {batch_size / found.seconds:,.0f} images/s"
    memory = f"up to {_bytes(found.memory_bytes)}{of} in use"
    _say(title, f"{speed}; the first took {found.first_seconds:.1f} s; {memory}")
    if _may_compile(settings.jit_compile):
        _compare(measured, settings.jit_compile, found)
    return found.seconds


def _may_compile(jit_compile: bool) -> bool:
    """Whether to try the step with and without XLA: on a GPU, where either may be the faster, or where it is asked."""
    one = tf.distribute.get_strategy().num_replicas_in_sync == 1
    return one and (jit_compile or bool(tf.config.list_physical_devices("GPU")))


def _compare(measured: Callable[[bool], checks.Measured], jit_compile: bool, found: checks.Measured) -> None:
    other = measured(not jit_compile)
    ratio = other.seconds / found.seconds
    setting = str(not jit_compile).lower()
    _say("", f"with training.jit_compile={setting} {ratio:.2f} x the time" + (": set it" if ratio < 0.97 else ""))


def _say(title: str, text: str) -> None:
    print(f"{title:9s} {text}")


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
