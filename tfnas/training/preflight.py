"""What can be known before the hours are spent: room on the disk, whole data, what a step costs."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.ranking.engine import Engine
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.training.loop import Batches, Step, distributed

_TIMED_STEPS, _TIMED_SECONDS = 10, 10.0  # whichever ends first
_MODELS = 3  # of a stage's own results, in sizes of what is trained


@dataclasses.dataclass(frozen=True)
class Measured:
    """What steps of training cost.

    Attributes:
        first_seconds: of the first step, tracing and compiling included.
        seconds: of each after that, input pipeline included; the median.
        memory_bytes: most that was in use at a time: on a GPU, or by this process on a CPU.
    """

    first_seconds: float
    seconds: float
    memory_bytes: int

    @property
    def tracing(self) -> float:
        """Seconds that the first step took longer than the others: what is done once for each training."""
        return max(0.0, self.first_seconds - self.seconds)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What evaluating candidates costs.

    Attributes:
        tracing: seconds of tracing and compiling, once for all of them.
        candidate_seconds: of each candidate, for what does not depend on the number of validation images.
        batch_seconds: of each candidate, for one batch of validation images.
    """

    tracing: float
    candidate_seconds: float
    batch_seconds: float


@dataclasses.dataclass(frozen=True)
class Time:
    """About what a stage takes: `seconds` in all, of which `tracing` are for tracing and compiling."""

    seconds: float
    tracing: float


def room(work: Workdir, model: keras.Model, kept: int) -> tuple[int, int]:
    """Bytes that training a model will write at most, and those that are free.

    Args:
        work: where it writes.
        model: with its optimiser, or without: then momentum is counted.
        kept: checkpoints.

    Raises:
        UserError: if there is not enough room.
    """
    size = sum(int(np.prod(v.shape)) * 4 for v in [*model.variables, *model.trainable_variables])
    needed = size * (kept + 1 + _MODELS)  # one more checkpoint while it is written
    free = shutil.disk_usage(work.path).free
    if free < needed:
        raise UserError(
            f"workdir {work.path}: {needed / 1e6:,.0f} MB free expected, for {kept} checkpoints and the models. "
            f"Received: {free / 1e6:,.0f} MB"
        )
    return needed, free


def examples(splits: pipeline.Splits) -> None:
    """Looks at the first labels of training and validation images, never at those of test.

    Raises:
        UserError: if a label is none of the classes'; an image that cannot be read is told by `sources`.
    """
    for split in ("train", "validation"):
        for _, label in getattr(splits, split).take(64).as_numpy_iterator():
            if not 0 <= label < splits.num_classes:
                raise UserError(
                    f"{split}: labels from 0 to {splits.num_classes - 1} expected, one per class. Received: {label}"
                )


def measure(step: Step, batches: Batches) -> Measured:
    """Takes steps, which change the model, and times them.

    Args:
        step: of a compiled model.
        batches: at least eleven, as `loop.train` takes them.

    Raises:
        UserError: if a batch does not fit the memory, or its loss is not finite.
    """
    iterator, totals = distributed(step.strategy, batches, 0), step.totals()
    times: list[float] = []
    start = time.monotonic()
    while len(times) <= _TIMED_STEPS and (len(times) < 3 or time.monotonic() - start < _TIMED_SECONDS):
        before = time.monotonic()
        try:
            totals = step(iterator, totals, len(times))
        except (StopIteration, tf.errors.OutOfRangeError):
            break
        loss = float(totals[0])  # waits for the devices
        times.append(time.monotonic() - before)
    if not np.isfinite(loss):
        raise UserError(
            f"check: a finite loss expected in the first {len(times)} steps. Received: {loss}; usually the learning "
            "rate is too high: try a smaller --config.search.learning_rate"
        )
    return Measured(times[0], float(np.median(times[1:] or times)), _peak_memory())


def measure_ranking(make: Callable[[], Engine], candidates: Sequence[Architecture]) -> Ranked:
    """Evaluates candidates on one batch, and times it.

    Args:
        make: the engine, of one batch of examples.
        candidates: at least two, no two alike; the first is evaluated to trace and compile.
    """
    start = time.monotonic()
    engine = make()
    list(engine.evaluate(candidates[:1]))
    begun = time.monotonic()
    first: list[float] = []
    again: list[float] = []
    for candidate in candidates[1:]:
        # By itself, so that it shares nothing with another; the second time its statistics are there.
        for seconds in (first, again):
            before = time.monotonic()
            list(engine.evaluate([candidate]))
            seconds.append(time.monotonic() - before)
        if time.monotonic() - begun > _TIMED_SECONDS:
            break
    one, other = float(np.median(first)), float(np.median(again))
    return Ranked(max(0.0, begun - start - one), max(0.0, one - other), other)


def num_candidates(config: Config) -> int:
    """How many candidates sample ranks: the posterior's, also at every budget, and the random ones of two kinds."""
    settings = config.sample
    return settings.num_candidates * (1 + len(settings.budgets)) + 2 * settings.num_random


def times(
    config: Config, sizes: Mapping[str, int], gated: Measured, plain: Measured, ranked: Ranked, devices: int = 1
) -> dict[str, Time]:
    """About what the stages take that train or rank, by name, if every network is as large as the full one.

    Every candidate is counted on all validation images, though a race drops most of them earlier, and a warm-up's
    steps as search's, though they are no longer.

    Args:
        config: the run's.
        sizes: number of examples by split.
        gated: steps of search.
        plain: steps of the full network, without gates.
        ranked: what a candidate costs.
        devices: which evaluate candidates side by side.
    """
    search, retrain = config.search, config.retrain
    steps, plain_steps = (sizes["train"] // part.batch_size for part in (search, retrain))
    batches = -(-sizes["validation"] // config.sample.batch_size)
    evaluating = num_candidates(config) * (ranked.candidate_seconds + batches * ranked.batch_seconds) / devices
    # One network found, and the full one.
    networks, epochs = int(retrain.epochs > 0), retrain.epochs
    if retrain.baseline:
        networks, epochs = networks + 1, epochs + search.epochs + retrain.epochs
    searches = 0
    if retrain.controls:
        # Under a fixed drop probability, along single paths, and by magnitude, each trained further. The first two
        # begin with search's warm-up, which is there.
        searches = 2
        networks, epochs = networks + 1 + 3 * (retrain.epochs > 0), epochs + search.epochs + 3 * retrain.epochs
    tracing = {
        "search": gated.tracing + (plain.tracing if search.warmup_epochs else 0.0),
        "sample": ranked.tracing,
        "retrain": networks * plain.tracing + searches * gated.tracing,
    }
    computing = {
        "search": search.epochs * steps * gated.seconds,
        "sample": evaluating,
        "retrain": epochs * plain_steps * plain.seconds + searches * search.gated_epochs * steps * gated.seconds,
    }
    return {stage: Time(computing[stage] + tracing[stage], tracing[stage]) for stage in computing}


def memory_bytes() -> int | None:
    """Of the first GPU, as far as TensorFlow tells, or of this machine."""
    if tf.config.list_physical_devices("GPU"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _peak_memory() -> int:
    if tf.config.list_physical_devices("GPU"):
        info: dict[str, Any] = tf.config.experimental.get_memory_info("GPU:0")
        return int(info["peak"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
