"""The training loop for every strategy, which can be stopped and resumed exactly at any step."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import rich.progress
import tensorflow as tf

from tfnas.common.errors import PreemptedError, SearchFailedError, UserError
from tfnas.common.terminal import console
from tfnas.data.pipeline import Share
from tfnas.gating.supernet import Supernet
from tfnas.runs.checkpoints import Checkpoint, Checkpoints
from tfnas.tasks.functions import by_example, in_float32
from tfnas.tasks.meanings import CLASSIFICATION
from tfnas.tasks.task import Task
from tfnas.training import distribution
from tfnas.training.distillation import Teacher

_SYNC_SECONDS = 1.0  # between the times when the loop waits for the devices, to read the totals
_TITLE = 9  # columns

Batches = Callable[[int, Share], tf.data.Dataset]


class Step:
    """One step of gradient descent on a global batch, under the strategy in whose scope it is created.

    The loss is the mean of the compiled loss over the global batch, or the teacher's, plus the losses that the model
    adds, such as the ELBO's regularizers. Its gradient is summed over replicas, and over the parts into which each
    replica splits its batch. Batch normalization uses the statistics of each part, as usual.

    Args:
        model: compiled and built in the same scope, with one loss of its outputs.
        accumulate: number of parts of each replica's batch; must divide it.
        jit_compile: whether to compile the forward and backward pass with XLA, as always on TPUs.
        teacher: from which the model also learns; built in the same scope.
        task: says which metric of an example is shown, beside the loss.

    Raises:
        UserError: for XLA with several replicas that are not TPU cores, which TensorFlow does not support.
    """

    def __init__(
        self,
        model: keras.Model,
        accumulate: int = 1,
        jit_compile: bool = False,
        teacher: Teacher | None = None,
        task: Task = CLASSIFICATION,
    ):
        self.task = task
        self._model, self._accumulate, self._teacher = model, accumulate, teacher
        self.strategy = tf.distribute.get_strategy()
        replicas = self.strategy.num_replicas_in_sync
        tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        if jit_compile and replicas > 1 and not tpu:
            raise UserError(
                "training.jit_compile: must be false with several replicas that are not TPU cores. Received: true, "
                f"with {replicas} replicas"
            )
        self.has_metric = True  # until the first step is traced
        self._share = 1.0 / (replicas * accumulate)
        # AutoGraph, which Keras's `fit` does without too, would take longer to convert these than they take to trace.
        compiled = tf.function(self._part, jit_compile=True, autograph=False)
        self._gradients = compiled if jit_compile and not tpu else self._part
        self._step = tf.function(self._global_step, autograph=False)

    def totals(self, losses: float = 0.0, metrics: float = 0.0) -> tf.Tensor:
        """Totals of an epoch's steps: losses, the examples' metrics, and the first step that is not finite."""
        return tf.constant([losses, metrics, math.inf], tf.float64)

    def figures(self, totals: np.ndarray, steps: int, examples: int) -> dict[str, float]:
        """Returns the mean loss of the steps, and the mean metric of the examples by its name, if there is one."""
        metric = {self.task.facts.example.name: totals[1] / examples} if self.has_metric else {}
        return {"loss": totals[0] / steps, **metric}

    def __call__(self, batches: Any, totals: tf.Tensor, number: int) -> tf.Tensor:
        """Runs a step on the next batch.

        Args:
            batches: distributed iterator of (inputs, labels) or (inputs, labels, weights).
            totals: totals of the previous steps.
            number: index of this step in its epoch, from 0.

        Returns:
            The totals including this step, on the device: reading them waits for the step.

        Raises:
            UserError: if the batch does not fit into memory.
        """
        try:
            return self._step(batches, totals, tf.constant(number, tf.float64))
        except tf.errors.ResourceExhaustedError as error:
            reason = str(error).partition("\n")[0][:160]
            raise UserError(
                f"a batch does not fit into memory ({reason}): try --config.training.accumulate=2, a smaller "
                "batch_size, or more devices"
            ) from None

    def _global_step(self, batches: Any, totals: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        figures = self.strategy.run(self._replica_step, args=(next(batches),))
        loss, metrics = tf.unstack(tf.cast(self.strategy.reduce("SUM", figures, axis=None), tf.float64))
        bad = tf.where(tf.math.is_finite(loss), tf.constant(math.inf, tf.float64), number)
        return tf.stack([totals[0] + loss, totals[1] + metrics, tf.minimum(totals[2], bad)])

    def _replica_step(self, batch: tuple[Any, ...]) -> tf.Tensor:
        variables = self._model.trainable_variables
        parts = _parts(batch, self._accumulate) if self._accumulate > 1 else [batch]
        gradients, figures = self._gradients(*parts[0])
        for part in parts[1:]:
            more, further = self._gradients(*part)
            gradients = [a if b is None else b if a is None else a + b for a, b in zip(gradients, more, strict=True)]
            figures += further
        optimizer = self._model.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _agree_on_finite(gradients)
        optimizer.apply(gradients, variables)
        if isinstance(self._model, Supernet):
            self._model.update()
        return figures

    def _part(
        self, inputs: Any, labels: Any, weights: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor | None], tf.Tensor]:
        """Returns the gradients of one part's share of the loss, that share, and the sum of the examples' metrics."""
        taught = self._teacher.outputs(inputs) if self._teacher else None
        with tf.GradientTape() as tape:
            outputs = in_float32(self._model(inputs, training=True))
            loss = self._model.loss.call(labels, outputs)
            if weights is not None:
                loss = by_example(loss, self._model.loss.call, labels, outputs) * weights
            loss = tf.reduce_mean(loss)
            if self._teacher:
                loss = self._teacher.loss(loss, taught, outputs)
            if self._model.losses:
                loss += tf.add_n(self._model.losses)
            loss *= self._share
            scaled = self._model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self._model.trainable_variables)
        found = self.task.figures(labels, self.task.judged(outputs))
        self.has_metric = self.task.facts.example.name in found
        metrics = tf.reduce_sum(found[self.task.facts.example.name]) if self.has_metric else 0.0
        return gradients, tf.stack([loss, metrics])


def _parts(batch: tuple[Any, ...], number: int) -> list[Any]:
    """A batch of structures of tensors, in equal, consecutive parts."""
    split = [tf.split(x, number) for x in tf.nest.flatten(batch)]
    return [tf.nest.pack_sequence_as(batch, part) for part in zip(*split, strict=True)]


def _agree_on_finite(gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Makes the gradients of all replicas NaN if those of any replica are not finite: Keras checks only one replica."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None])
    bad = context.all_reduce("SUM", tf.where(finite, 0.0, 1.0))
    return [None if g is None else tf.where(bad > 0, tf.constant(math.nan, g.dtype), g) for g in gradients]


def train(
    step: Step,
    model: keras.Model,
    batches: Batches,
    batch_size: int,
    epochs: int,
    steps_per_epoch: int,
    checkpoints: Checkpoints,
    title: str,
    checkpoint_minutes: float = 10.0,
    describe: Callable[[], dict[str, Any]] = dict,
    check: Callable[[int], None] = lambda epoch: None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    before_step: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains a compiled model, starting from the newest checkpoint of this run, if any.

    A checkpoint is written at the end of every epoch, every `checkpoint_minutes` within long epochs, and on SIGTERM. It
    contains the complete state, so that on one device the result is bit-identical to an uninterrupted training.

    Args:
        step: the step of this model.
        model: compiled and built, in the scope of the step's strategy.
        batches: function from the index of the first step and this process's share to a data set of all batches from
            there.
        batch_size: size of the global batch.
        epochs: total number of epochs, including those before an interruption.
        steps_per_epoch: number of batches in an epoch.
        checkpoints: the checkpoints of this training.
        title: name on the progress line.
        checkpoint_minutes: minutes between checkpoints within an epoch.
        describe: returns further figures for the epoch's record.
        check: called with the number of every epoch, from 1, at its end, before it is saved. If it raises, training
            ends and the previous checkpoint is kept.
        on_epoch: called with the history after every epoch.
        before_step: called with the index of every step, from 0, before it runs.

    Returns:
        One record per epoch: loss, the task's metric of an example by its name, and the figures of `describe`.

    Raises:
        PreemptedError: after SIGTERM, once a checkpoint is written.
        SearchFailedError: if the loss is no longer finite; the last checkpoint is kept.
        UserError: if a checkpoint cannot be read, memory is insufficient, or the processes of a cluster see different
            checkpoints; and whatever `check` raises.
    """
    model.optimizer.build(model.trainable_variables)
    variables = state(model)
    history: list[dict[str, Any]] = []
    totals, first = step.totals(), 0
    if found := checkpoints.latest():
        restore(variables, found)
        history, totals = found.record["history"], step.totals(*found.record["totals"])
        first = found.step
        _print_resumed(title, *divmod(first, steps_per_epoch), epochs)
    distribution.agree(first)
    if len(history) == epochs:
        return history

    def save(number: int, totals: np.ndarray) -> None:
        record = {"history": list(history), "totals": totals[:2].tolist()}
        checkpoints.save(Checkpoint(number, [np.array(variable) for variable in variables], record))

    iterator = distributed(step.strategy, batches, first)
    with checkpoints, Progress(title, epochs, steps_per_epoch, batch_size) as progress, _terminations() as terminated:
        saved = synced = time.monotonic()
        for number in range(first, epochs * steps_per_epoch):
            if before_step:
                before_step(number)
            position = number % steps_per_epoch
            totals = step(iterator, totals, position)
            if isinstance(model, Supernet):
                model.between_steps(number + 1)
            now, last = time.monotonic(), position + 1 == steps_per_epoch
            if not (last or terminated.is_set() or now - synced > _SYNC_SECONDS):
                continue
            synced = now
            values = np.asarray(totals)  # waits for the devices
            _check_finite(values, title, len(history), steps_per_epoch, first)
            done = position + 1
            figures = step.figures(values, done, done * batch_size)
            if last:
                check(len(history) + 1)
                history.append({"epoch": len(history) + 1, **figures, **describe()})
                totals = step.totals()
                values = np.asarray(totals)
                save(number + 1, values)
                saved = now
                on_epoch(history)
                progress.epoch(history)
            elif now - saved > 60 * checkpoint_minutes:
                save(number + 1, values)
                saved = now
            progress.step(number + 1 - first, number + 1, figures)
            if terminated.is_set():
                if saved != now:
                    save(number + 1, values)
                checkpoints.wait()
                raise PreemptedError(
                    f"{title} received SIGTERM in epoch {number // steps_per_epoch + 1}, after step {done} of "
                    f"{steps_per_epoch}; its state is saved, and the same command resumes"
                )
    return history


def distributed(strategy: tf.distribute.Strategy, batches: Batches, first: int) -> Iterator[Any]:
    """Returns the distributed iterator for a `Step`: every replica's batches from step `first` on."""

    def process_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        processes = context.num_input_pipelines
        share = Share(context.input_pipeline_id, processes, context.num_replicas_in_sync // processes)
        return batches(first, share)

    return iter(strategy.distribute_datasets_from_function(process_batches))


def state(model: keras.Model) -> list[Any]:
    """Variables from which a training resumes: the model's and its optimizer's, without those of metrics."""
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


def restore(variables: list[Any], found: Checkpoint) -> None:
    """Assigns a checkpoint. Raises UserError if it is another network's."""
    shapes = [tuple(variable.shape) for variable in variables]
    if [array.shape for array in found.arrays] != shapes:
        raise UserError(
            f"the checkpoint after step {found.step}: expected {len(shapes)} arrays with this network's shapes. "
            f"Received: {len(found.arrays)}, of another network: use another --workdir"
        )
    for variable, array in zip(variables, found.arrays, strict=True):
        variable.assign(array)


def line_start(title: str) -> tuple[str, str]:
    """Returns the aligned first column of a terminal line, and the rest of a title that does not fit into it.

    >>> line_start("baseline"), line_start("baseline, retrained")
    (('baseline ', ''), ('training ', 'baseline, retrained '))
    """
    return (title.ljust(_TITLE), "") if len(title) <= _TITLE else ("training".ljust(_TITLE), f"{title} ")


def _print_resumed(title: str, epochs_done: int, steps_done: int, epochs: int) -> None:
    within = f" and {steps_done} steps" if steps_done else ""
    head, tail = line_start(title)
    console.print(f"{head} {tail}resumes after epoch {epochs_done}{within} of {epochs}")


def _check_finite(totals: np.ndarray, title: str, epochs_done: int, steps_per_epoch: int, first: int) -> None:
    if not math.isfinite(totals[2]):
        return
    number = epochs_done * steps_per_epoch + int(totals[2]) + 1
    kept = (
        f"the checkpoint after epoch {epochs_done} is kept" if epochs_done or first else "there was no checkpoint yet"
    )
    raise SearchFailedError(
        f"{title} stopped at step {number} (epoch {epochs_done + 1}): the loss is no longer finite. Usually the "
        f"learning rate is too high: try a smaller one, in another --workdir; {kept}"
    )


@contextlib.contextmanager
def _terminations() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets; only the main thread of a process receives signals."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class Progress:
    """The progress line of a training."""

    def __init__(self, title: str, epochs: int, steps_per_epoch: int, batch_size: int):
        (self._head, self._tail), self._epochs = line_start(title), epochs
        self._steps, self._batch_size = steps_per_epoch, batch_size
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
        )
        self._progress = rich.progress.Progress(*columns, console=console)
        # Shown on a terminal until the first step is complete; a file receives only the last state.
        self._task = self._progress.add_task(
            f"{self._head} building the step, once",
            total=epochs * steps_per_epoch,
            figures=f"{self._tail}minutes for a large network",
        )
        self._start = 0.0

    def __enter__(self) -> Progress:
        self._progress.start()
        self._start = time.monotonic()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def step(self, taken: int, number: int, figures: dict[str, Any]) -> None:
        """Shows the state after `number` steps in total, `taken` of them since the start."""
        if number % self._steps == 0:
            self._progress.update(self._task, completed=number)
            return
        rate = taken * self._batch_size / (time.monotonic() - self._start)
        self._show(number, number // self._steps + 1, {**figures, "examples/s": rate})

    def epoch(self, history: list[dict[str, Any]]) -> None:
        """Shows an epoch's record."""
        self._show(len(history) * self._steps, len(history), {k: v for k, v in history[-1].items() if k != "epoch"})

    def _show(self, completed: int, epoch: int, record: dict[str, Any]) -> None:
        figures = "   ".join(
            f"{name.replace('_', ' ')} {_short(value)}"
            for name, value in record.items()
            if not isinstance(value, list | dict)
        )
        description = f"{self._head} epoch {epoch}/{self._epochs}"
        self._progress.update(self._task, completed=completed, description=description, figures=self._tail + figures)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
