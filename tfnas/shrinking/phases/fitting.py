"""Training with Keras's `fit`: the user's callbacks, a progress line, and checkpoints from which it resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import terminal
from tfnas.common.errors import SearchFailedError, unwrap_user_errors
from tfnas.runs.checkpoints import Checkpoint, Checkpoints
from tfnas.shrinking.given.examples import Batches
from tfnas.training import loop

_TIMED_STEPS = 4  # of which the first one also builds the step


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a network.

    Attributes:
        title: of its progress line.
        first: epochs of the trainings before it.
        epochs: of this one, at least 1.
        batches: the examples.
        validation: examples on which the network is evaluated after each epoch, as `fit` takes them; or None.
        callbacks: the user's.
    """

    title: str
    first: int
    epochs: int
    batches: Batches
    validation: Any = None
    callbacks: Sequence[keras.callbacks.Callback] = ()

    def fit(self, model: keras.Model, checkpoints: Checkpoints | None) -> list[dict[str, Any]]:
        """Trains a compiled network, from its newest checkpoint on, if there is one.

        A checkpoint is written after every epoch and at the end, with the weights as the callbacks leave them.

        Args:
            model: compiled and built, in the scope of the strategy.
            checkpoints: of this training; None: it cannot be resumed.

        Returns:
            A record for each epoch: its number, counted over all trainings, and what `fit` logs.

        Raises:
            SearchFailedError: if the loss is no longer finite; the last checkpoint is kept.
        """
        model.optimizer.build(model.trainable_variables)
        variables = loop.state(model)
        history: list[dict[str, Any]] = []
        if checkpoints is not None and (found := checkpoints.latest()):
            loop.restore(variables, found)
            history = list(found.record["history"])
            if found.record["ended"]:
                return history
            terminal.print_line(f"{_head(self.title)}resumes after epoch {len(history)} of {self.epochs}")
        done = self.first + len(history)
        last = self.first + self.epochs
        own = _Own(self, variables, history, checkpoints)
        with contextlib.ExitStack() as stack:
            if checkpoints is not None:
                stack.enter_context(checkpoints)
            stack.enter_context(unwrap_user_errors())
            if done < last:
                model.fit(
                    self.batches.dataset(done),
                    steps_per_epoch=self.batches.steps,
                    initial_epoch=done,
                    epochs=last,
                    validation_data=self.validation,
                    callbacks=[*self.callbacks, own],
                    shuffle=False,
                    verbose=0,
                )
            own.save(ended=True)
        return history


class _Own(keras.callbacks.Callback):
    """History, progress line and checkpoints of a training, after the user's callbacks."""

    def __init__(
        self, training: Training, variables: list[Any], history: list[dict[str, Any]], checkpoints: Checkpoints | None
    ):
        super().__init__()
        self._training, self._variables, self._checkpoints = training, variables, checkpoints
        self._history, self._before = history, len(history)
        batches = training.batches
        size = max(1, batches.num_examples // batches.steps)
        self._progress = loop.Progress(training.title, training.epochs, batches.steps, size)
        self._shown = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Shows the progress line."""
        self._progress.__enter__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the progress line, about once a second."""
        if time.monotonic() - self._shown > 1.0:
            self._shown = time.monotonic()
            steps = self._training.batches.steps
            number = len(self._history) * steps + batch + 1
            self._progress.step(number - self._before * steps, number, _numbers(logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records the epoch, and writes a checkpoint."""
        figures = _numbers(logs)
        if not math.isfinite(figures["loss"]):
            raise SearchFailedError(
                f"{self._training.title}: the loss is no longer finite in epoch {epoch + 1}. Usually the learning rate "
                "is too high: compile the model with a smaller one; the last checkpoint is kept"
            )
        self._history.append({"epoch": epoch + 1, **figures})
        self._progress.epoch(self._history)
        self.save(ended=False)

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the progress line."""
        self._progress.__exit__()

    def save(self, ended: bool) -> None:
        """Writes a checkpoint, whose last one has the weights as the callbacks left them at the end."""
        if self._checkpoints is not None:
            arrays = [np.array(variable) for variable in self._variables]
            record = {"history": list(self._history), "ended": ended}
            self._checkpoints.save(Checkpoint(len(self._history) + ended, arrays, record))


def seconds_of_step(model: keras.Model, batches: Batches) -> tuple[float, float]:
    """Seconds of a training step, and those that building it takes once; the model is as before afterwards.

    Args:
        model: compiled and built; its step is built for the trainings that follow.
        batches: the examples, of which a few are used.
    """
    model.optimizer.build(model.trainable_variables)
    variables = loop.state(model)
    before = [np.array(variable) for variable in variables]
    times: list[float] = []
    start = time.perf_counter()

    def note(batch: int, logs: Any) -> None:
        _numbers(logs)  # waits for the step
        times.append(time.perf_counter())

    timing = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    few = min(_TIMED_STEPS, batches.steps)
    with unwrap_user_errors():
        model.fit(batches.dataset(), steps_per_epoch=few, callbacks=[timing], shuffle=False, verbose=0)
    for variable, array in zip(variables, before, strict=True):
        variable.assign(array)
    steps = np.diff([start, *times])
    each = float(np.median(steps[1:])) if len(steps) > 1 else float(steps[0])
    return each, max(0.0, float(steps[0]) - each)


def evaluate(model: keras.Model, examples: tf.data.Dataset) -> dict[str, float]:
    """The loss, the compiled metrics in their order, and other figures that `evaluate` gives, which sorts them all."""
    found = _numbers(model.evaluate(examples, verbose=0, return_dict=True))
    compiled = _flat(model._compile_metrics.result()) if model._compile_metrics else {}
    return {name: found[name] for name in ("loss", *compiled, *found) if name in found}


def _numbers(logs: Any) -> dict[str, float]:
    """Numbers that `fit` logs; a metric may also give arrays."""
    numbers = {name: np.asarray(value) for name, value in _flat(logs or {}).items()}
    return {name: float(value) for name, value in numbers.items() if not value.ndim}


def _flat(logs: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in logs.items():
        found |= _flat(value, f"{prefix}{name}_") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _head(title: str) -> str:
    return " ".join(loop.line_start(title))
