"""What can be known before the hours are spent: room on the disk, whole data, what a step costs."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import sys
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas import data
from tfnas.errors import UserError
from tfnas.loop import Batches, Step, distributed
from tfnas.workdir import Workdir

_TIMED_STEPS, _TIMED_SECONDS = 10, 10.0  # whichever ends first
_MODELS = 3  # of a stage's own results, in sizes of what is trained


@dataclasses.dataclass(frozen=True)
class Measured:
    """What steps of training cost.

    Attributes:
        first_seconds: of the first step, tracing included.
        seconds: of each after that, input pipeline included; the median.
        memory_bytes: most that was in use at a time: on a GPU, or by this process on a CPU.
    """

    first_seconds: float
    seconds: float
    memory_bytes: int


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


def examples(splits: data.Splits) -> None:
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
