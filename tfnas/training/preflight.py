"""Checks before a training: disk space, data, and the cost of a step."""

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
from tfnas.graph.channels import Graph
from tfnas.graph.latencies import Latencies
from tfnas.ranking.engine import Engine
from tfnas.runs.sampled import LayerLatencies
from tfnas.runs.stage_table import LATENCIES
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.training import distribution
from tfnas.training.loop import Batches, Step, distributed

_TIMED_STEPS, _TIMED_SECONDS = 10, 10.0  # whichever ends first
_MODELS = 3  # disk space for a stage's results, in multiples of the trained model


@dataclasses.dataclass(frozen=True)
class Measured:
    """The cost of training steps.

    Attributes:
        first_seconds: seconds of the first step, including tracing and compiling.
        seconds: median seconds of the other steps, including the input pipeline.
        memory_bytes: peak memory of a GPU, or of this process on a CPU.
    """

    first_seconds: float
    seconds: float
    memory_bytes: int

    @property
    def tracing(self) -> float:
        """Seconds by which the first step took longer than the others, once per training."""
        return max(0.0, self.first_seconds - self.seconds)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The cost of evaluating candidates.

    Attributes:
        tracing: seconds of tracing and compiling, once for all candidates.
        candidate_seconds: seconds per candidate, independent of the number of validation images.
        batch_seconds: seconds per candidate and batch of validation images.
    """

    tracing: float
    candidate_seconds: float
    batch_seconds: float


@dataclasses.dataclass(frozen=True)
class Time:
    """Estimated time of a stage: `seconds` in total, including `tracing` seconds of tracing and compiling."""

    seconds: float
    tracing: float


def layer_latencies(config: Config, work: Workdir, model: keras.Model) -> Latencies:
    """Measures the seconds of a network and of its layers, once for a search in a working directory.

    Raises:
        UserError: as `Latencies.measure`.
    """
    key = work.key("search", config)
    with distribution.chief_first(config.distribution):
        there = (work.path / LATENCIES).exists()
        known = work.read_sealed(LATENCIES, LayerLatencies) if there else None
        if known is None or known.key != key:
            measured = Latencies.measure(Graph(model), config.search.latency_device)
            known = LayerLatencies(key, **dataclasses.asdict(measured))
            work.write_sealed(LATENCIES, known)
    return Latencies(known.full, known.overhead, known.products, known.outputs)


def room(work: Workdir, model: keras.Model, kept: int) -> tuple[int, int]:
    """Returns the bytes that training a model may write, and the free bytes.

    Args:
        work: working directory that it writes to.
        model: model with its optimizer; without one, momentum is included.
        kept: number of checkpoints kept.

    Raises:
        UserError: if there is not enough space.
    """
    size = sum(int(np.prod(v.shape)) * 4 for v in [*model.variables, *model.trainable_variables])
    needed = size * (kept + 1 + _MODELS)  # one more checkpoint while it is written
    free = shutil.disk_usage(work.path).free
    if free < needed:
        raise UserError(
            f"workdir {work.path}: {needed / 1e6:,.0f} MB of free space needed, for {kept} checkpoints and the models. "
            f"Received: {free / 1e6:,.0f} MB"
        )
    return needed, free


def examples(splits: pipeline.Splits) -> None:
    """Checks the first targets of training and validation examples, but not those of test.

    Raises:
        UserError: if a target is out of range, or an example cannot be read.
    """
    for split in ("train", "validation"):
        for _, target, *_ in getattr(splits, split).take(64).as_numpy_iterator():
            splits.task.check_target(target, splits.num_outputs, f"{split} has")


def formats(config: Config, splits: pipeline.Splits) -> None:
    """Raises UserError for formats besides the SavedModel that a network of these outputs is not written in."""
    if splits.output_names and config.export.formats:
        raise UserError(
            "export.formats: written for networks with one output only; leave them out. Received: "
            f"{', '.join(config.export.formats)} and the outputs {', '.join(splits.output_names)}"
        )


def measure(step: Step, batches: Batches) -> Measured:
    """Runs and times training steps, which change the model.

    Args:
        step: step of a compiled model.
        batches: at least eleven batches, as for `loop.train`.

    Raises:
        UserError: if a batch does not fit into memory, or its loss is not finite.
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
            f"check: expected a finite loss in the first {len(times)} steps. Received: {loss}; usually the learning "
            "rate is too high: try a smaller --config.search.learning_rate"
        )
    return Measured(times[0], float(np.median(times[1:] or times)), peak_memory())


def measure_ranking(make: Callable[[], Engine], candidates: Sequence[Architecture]) -> Ranked:
    """Times the evaluation of candidates on one batch.

    Args:
        make: creates the engine for one batch of examples.
        candidates: at least two distinct candidates; the first is evaluated to trace and compile.
    """
    start = time.monotonic()
    engine = make()
    list(engine.evaluate(candidates[:1]))
    begun = time.monotonic()
    first: list[float] = []
    again: list[float] = []
    for candidate in candidates[1:]:
        # One at a time, so that nothing is shared; the second time, its statistics are cached.
        for seconds in (first, again):
            before = time.monotonic()
            list(engine.evaluate([candidate]))
            seconds.append(time.monotonic() - before)
        if time.monotonic() - begun > _TIMED_SECONDS:
            break
    one, other = float(np.median(first)), float(np.median(again))
    return Ranked(max(0.0, begun - start - one), max(0.0, one - other), other)


def num_candidates(config: Config) -> int:
    """Returns how many candidates sample ranks: those of the posterior, for each budget, and two kinds of random
    ones."""
    settings = config.sample
    return settings.num_candidates * (1 + len(settings.budgets)) + 2 * settings.num_random


def times(
    config: Config, sizes: Mapping[str, int], gated: Measured, plain: Measured, ranked: Ranked, devices: int = 1
) -> dict[str, Time]:
    """Estimates the time of the stages that train or rank, by name, if every network is as large as the full one.

    Every candidate is counted on all validation images, although a race drops most of them earlier, and the steps of a
    warm-up count as those of search, although they take no longer.

    Args:
        config: settings of the run.
        sizes: number of examples by split.
        gated: cost of the steps of search.
        plain: cost of the steps of the full network, without gates.
        ranked: cost of a candidate.
        devices: number of devices that evaluate candidates in parallel.
    """
    search, retrain = config.search, config.retrain
    steps, plain_steps = (sizes["train"] // part.batch_size for part in (search, retrain))
    batches = -(-sizes["validation"] // config.sample.batch_size)
    evaluating = num_candidates(config) * (ranked.candidate_seconds + batches * ranked.batch_seconds) / devices
    # The network found, and the full network.
    networks, epochs = int(retrain.epochs > 0), float(retrain.epochs)
    if retrain.baseline:
        networks, epochs = networks + 1, epochs + search.epochs + retrain.epochs
    # Each baseline is searched for and retrained; only magnitude pruning needs no gates. The others start from the
    # existing warm-up of search.
    baselines = len(retrain.baselines)
    pruned = int("magnitude_pruning" in retrain.baselines)
    searches = baselines - pruned
    networks += pruned + baselines * (retrain.epochs > 0)
    epochs += pruned * search.epochs + baselines * retrain.epochs
    if retrain.distill:
        epochs += (1 + baselines) * retrain.epochs / 3  # a forward pass of the teacher in every step
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
    """Returns the memory of this machine, or None for a GPU, whose size TensorFlow does not report."""
    if tf.config.list_physical_devices("GPU"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Returns the peak memory of the first GPU in bytes, or of this process on a CPU."""
    if tf.config.list_physical_devices("GPU"):
        info: dict[str, Any] = tf.config.experimental.get_memory_info("GPU:0")
        return int(info["peak"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
