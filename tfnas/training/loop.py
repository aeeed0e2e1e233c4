"""The training loop: one for every strategy, which stops and goes on at any step as if nothing had happened."""

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
from tfnas.training import distribution

# How often the loop waits for the devices to see how far they are; between two looks they are never kept waiting.
_LOOK_SECONDS = 1.0
_TITLE = 9  # columns

Batches = Callable[[int, Share], tf.data.Dataset]


class Step:
    """One step of gradient descent on a global batch, under the strategy whose scope it is made in.

    The loss is the mean of the compiled loss over the global batch, plus the losses that the model adds, such as the
    ELBO's regularisers. Its gradient is the sum over replicas, and over the parts that each replica takes one after
    another, of their shares. Batch normalisation, as everywhere, takes the statistics of each part by itself.

    Args:
        model: compiled and built in the same scope, with integer labels.
        accumulate: parts into which each replica's batch is cut; must divide it.
        jit_compile: compile forward and backward pass with XLA; on a TPU it is anyway.

    Raises:
        UserError: for XLA with several replicas that are no TPU's: updates of theirs inside a compiled step are beyond
            TensorFlow.
    """

    def __init__(self, model: keras.Model, accumulate: int = 1, jit_compile: bool = False):
        self._model, self._accumulate = model, accumulate
        self.strategy = tf.distribute.get_strategy()
        replicas = self.strategy.num_replicas_in_sync
        tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        if jit_compile and replicas > 1 and not tpu:
            raise UserError(
                f"training.jit_compile: false expected with several replicas that are no TPU's. Received: true, with "
                f"{replicas} replicas"
            )
        self._share = 1.0 / (replicas * accumulate)
        self._gradients = tf.function(self._part, jit_compile=True) if jit_compile and not tpu else self._part
        self._step = tf.function(self._global_step)

    def totals(self, losses: float = 0.0, correct: float = 0.0) -> tf.Tensor:
        """Totals of an epoch's steps: of losses, of correct examples; third, the number of the first bad step."""
        return tf.constant([losses, correct, math.inf], tf.float64)

    def __call__(self, batches: Any, totals: tf.Tensor, number: int) -> tf.Tensor:
        """Takes a step on the next batch.

        Args:
            batches: distributed iterator of (inputs, labels).
            totals: of the steps before.
            number: of this step in its epoch, from 0.

        Returns:
            The totals with this step's, on the device: reading them waits for it.

        Raises:
            UserError: if the batch does not fit the memory.
        """
        try:
            return self._step(batches, totals, tf.constant(number, tf.float64))
        except tf.errors.ResourceExhaustedError as error:
            reason = str(error).partition("\n")[0][:160]
            raise UserError(
                f"a batch does not fit the memory ({reason}): try --config.training.accumulate=2, a smaller "
                "batch_size, or more devices"
            ) from None

    def _global_step(self, batches: Any, totals: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        figures = self.strategy.run(self._replica_step, args=(next(batches),))
        loss, correct = tf.unstack(tf.cast(self.strategy.reduce("SUM", figures, axis=None), tf.float64))
        bad = tf.where(tf.math.is_finite(loss), tf.constant(math.inf, tf.float64), number)
        return tf.stack([totals[0] + loss, totals[1] + correct, tf.minimum(totals[2], bad)])

    def _replica_step(self, batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        variables = self._model.trainable_variables
        parts = [tf.split(value, self._accumulate) for value in batch] if self._accumulate > 1 else [[v] for v in batch]
        gradients, figures = self._gradients(parts[0][0], parts[1][0])
        for inputs, labels in zip(parts[0][1:], parts[1][1:], strict=True):
            more, further = self._gradients(inputs, labels)
            gradients = [a if b is None else b if a is None else a + b for a, b in zip(gradients, more, strict=True)]
            figures += further
        optimizer = self._model.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _alike(gradients)
        optimizer.apply(gradients, variables)
        if isinstance(self._model, Supernet):
            self._model.update_multiplier()
        return figures

    def _part(self, inputs: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor | None], tf.Tensor]:
        """Gradients of one part's share of the loss; that share of the loss, and how many of its examples are right."""
        with tf.GradientTape() as tape:
            outputs = tf.cast(self._model(inputs, training=True), tf.float32)
            loss = tf.reduce_mean(self._model.loss.call(labels, outputs))
            if self._model.losses:
                loss += tf.add_n(self._model.losses)
            loss *= self._share
            scaled = self._model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self._model.trainable_variables)
        hits = tf.cast(tf.argmax(outputs, -1), tf.int64) == tf.cast(tf.reshape(labels, [-1]), tf.int64)
        return gradients, tf.stack([loss, tf.reduce_sum(tf.cast(hits, tf.float32))])


def _alike(gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Makes the gradients of all replicas not finite where those of one are: Keras asks only one of them."""
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
    """Trains a compiled model, from its newest checkpoint if there is one of this run.

    A checkpoint is left at every epoch's end, within long epochs every `checkpoint_minutes`, and when the process is
    told to end (SIGTERM). It has all that the rest depends on, so that the end is the same, bit for bit, on one device.

    Args:
        step: of this model.
        model: compiled and built, in the step's strategy's scope.
        batches: from the number of the first step, and this process's share, to a data set of all batches from there.
        batch_size: of the global batch.
        epochs: in all, those before an interruption included.
        steps_per_epoch: batches in one epoch.
        checkpoints: where they are kept.
        title: what the progress line is called.
        checkpoint_minutes: between two within an epoch.
        describe: further figures for the epoch's record.
        check: called with the number of every epoch, from 1, at its end, before it is saved; what it raises ends the
            training, and the checkpoint before stays.
        on_epoch: called with the history after every epoch.
        before_step: called with the number of every step, from 0, before it is taken.

    Returns:
        One record an epoch: loss, accuracy and what `describe` says.

    Raises:
        PreemptedError: after SIGTERM, once a checkpoint is written.
        SearchFailedError: if the loss is no longer finite; the last checkpoint stays.
        UserError: if a checkpoint cannot be read, the memory does not suffice, the processes of a cluster have
            different ones, or as `check` raises it.
    """
    model.optimizer.build(model.trainable_variables)
    variables = _state(model)
    history: list[dict[str, Any]] = []
    totals, first = step.totals(), 0
    if found := checkpoints.latest():
        _assign(variables, found)
        history, totals = found.record["history"], step.totals(*found.record["totals"])
        first = found.step
        _say_start(title, *divmod(first, steps_per_epoch), epochs)
    distribution.agree(first)
    if len(history) == epochs:
        return history

    def save(number: int, totals: np.ndarray) -> None:
        record = {"history": list(history), "totals": totals[:2].tolist()}
        checkpoints.save(Checkpoint(number, [np.array(variable) for variable in variables], record))

    iterator = distributed(step.strategy, batches, first)
    shown = _Progress(title, epochs, steps_per_epoch, batch_size)
    with checkpoints, shown as progress, _terminations() as terminated:
        saved = looked = time.monotonic()
        for number in range(first, epochs * steps_per_epoch):
            if before_step:
                before_step(number)
            position = number % steps_per_epoch
            totals = step(iterator, totals, position)
            now, last = time.monotonic(), position + 1 == steps_per_epoch
            if not (last or terminated.is_set() or now - looked > _LOOK_SECONDS):
                continue
            looked = now
            values = np.asarray(totals)  # waits for the devices
            _check_finite(values, title, len(history), steps_per_epoch, first)
            done = position + 1
            figures = {"loss": values[0] / done, "accuracy": values[1] / (done * batch_size)}
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
                    f"{title} was told to end (SIGTERM) in epoch {number // steps_per_epoch + 1}, after step {done} of "
                    f"{steps_per_epoch}; all is saved, and the same command goes on"
                )
    return history


def distributed(strategy: tf.distribute.Strategy, batches: Batches, first: int) -> Iterator[Any]:
    """Every replica's batches from step number `first` on: what a `Step` takes them from."""

    def of_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
        processes = context.num_input_pipelines
        share = Share(context.input_pipeline_id, processes, context.num_replicas_in_sync // processes)
        return batches(first, share)

    return iter(strategy.distribute_datasets_from_function(of_process))


def _state(model: keras.Model) -> list[Any]:
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


def _assign(variables: list[Any], found: Checkpoint) -> None:
    shapes = [tuple(variable.shape) for variable in variables]
    if [array.shape for array in found.arrays] != shapes:
        raise UserError(
            f"the checkpoint after step {found.step}: {len(shapes)} arrays of this network's shapes expected. "
            f"Received: {len(found.arrays)}, of another network's: use another --workdir"
        )
    for variable, array in zip(variables, found.arrays, strict=True):
        variable.assign(array)


def line_start(title: str) -> tuple[str, str]:
    """How a line on the terminal begins, so that columns align: its first nine, and what is to be told further on.

    >>> line_start("baseline"), line_start("baseline, retrained")
    (('baseline ', ''), ('training ', 'baseline, retrained '))
    """
    return (title.ljust(_TITLE), "") if len(title) <= _TITLE else ("training".ljust(_TITLE), f"{title} ")


def _say_start(title: str, epochs_done: int, steps_done: int, epochs: int) -> None:
    within = f" and {steps_done} steps" if steps_done else ""
    head, tail = line_start(title)
    console.print(f"{head} {tail}goes on after epoch {epochs_done}{within} of {epochs}")


def _check_finite(totals: np.ndarray, title: str, epochs_done: int, steps_per_epoch: int, first: int) -> None:
    if not math.isfinite(totals[2]):
        return
    number = epochs_done * steps_per_epoch + int(totals[2]) + 1
    kept = f"the checkpoint after epoch {epochs_done} stays" if epochs_done or first else "there was no checkpoint yet"
    raise SearchFailedError(
        f"{title} stopped at step {number} (epoch {epochs_done + 1}): the loss is no longer finite. Usually the "
        f"learning rate is too high: try a smaller one, in another --workdir; {kept}"
    )


@contextlib.contextmanager
def _terminations() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while this lasts; only the main thread of a process is told of signals."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """The line that shows how far a training is."""

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
        # Shown on a terminal until the first step is taken; a file is given the last state only.
        self._task = self._progress.add_task(
            f"{self._head} building the step, once",
            total=epochs * steps_per_epoch,
            figures=f"{self._tail}minutes for a large network",
        )
        self._start = 0.0

    def __enter__(self) -> _Progress:
        self._progress.start()
        self._start = time.monotonic()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def step(self, taken: int, number: int, figures: dict[str, Any]) -> None:
        """Shows the state after `number` steps in all, `taken` of them since the start."""
        if number % self._steps == 0:
            self._progress.update(self._task, completed=number)
            return
        rate = taken * self._batch_size / (time.monotonic() - self._start)
        self._show(number, number // self._steps + 1, {**figures, "images/s": rate})

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
