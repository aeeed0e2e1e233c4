"""Tasks as all stages ask for them: for their data, networks, measurements and answers; one class each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.tasks import columns, functions
from tfnas.tasks import facts as facts_lib
from tfnas.tasks.columns import Column
from tfnas.tasks.task import Task, cross_entropy, in_top5, named


class Classification(Task):
    """One class for each example. Targets are class numbers, or one-hot."""

    target = "an integer label or a one-hot one"
    ranks = (0, 1)
    integers = True
    squashing = ("softmax",)

    def __init__(self, name: str = "classification", loss: str = "", metric: str = "", goal: str = ""):
        super().__init__(name, loss, metric, goal)

    def prepared(self, target: tf.Tensor) -> tf.Tensor:
        """Returns the class number, int64 scalar."""
        return tf.cast(tf.argmax(target, -1) if target.shape.rank == 1 else target, tf.int64)

    def check_target(self, target: np.ndarray, outputs: int | None, about: str) -> None:
        """Raises UserError for a label out of range, or a vector that is not one-hot."""
        if target.ndim:
            ones = np.count_nonzero(target == 1)
            if ones != 1 or np.count_nonzero(target) != 1 or outputs not in (None, target.size):
                raise UserError(f"{about} the label {target.tolist()}; expected one-hot vectors, one entry per class")
        elif target < 0 or (outputs is not None and target >= outputs):
            most = "labels of at least 0" if outputs is None else f"0 to {outputs - 1}"
            raise UserError(f"{about} the label {target}; expected {most}")

    def num_outputs(self, target: np.ndarray) -> int:
        """Number of classes that there are at least."""
        return int(target.size) if target.ndim else int(target) + 1

    def titled(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Returns the name of the class."""
        return names[int(target)]

    def _usual_loss(self, logits: bool, one_hot: bool) -> keras.losses.Loss:
        return cross_entropy(logits, one_hot)

    def metrics(self, logits: bool = True) -> list[Any]:
        """Returns the accuracy."""
        return ["accuracy"]

    def figures(self, targets: tf.Tensor, judged: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns 'accuracy' and, with more than 20 classes, 'top5_accuracy': 1 or 0."""
        correct = tf.cast(tf.argmax(judged, -1), tf.int64) == tf.cast(tf.reshape(targets, [-1]), tf.int64)
        found = {"accuracy": tf.cast(correct, tf.float32)}
        if (top5 := in_top5(targets, judged)) is not None:
            found["top5_accuracy"] = top5
        return found

    def errors(self, targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns 1 for wrong and 0 for right."""
        return 1.0 - self.figures(targets, outputs)["accuracy"]

    def confusion(self, outputs: int) -> np.ndarray:
        """Returns zeros, shape (classes, classes)."""
        return np.zeros((outputs, outputs), np.int64)

    def answer(self, outputs: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns probabilities, and the most probable classes by name."""
        found = tf.nn.softmax(outputs)
        return {"probabilities": found, **named(found, names)}


class MultiLabel(Task):
    """Any number of labels for each example. Targets have a 0 or 1 for each label."""

    target = "a vector with 0 or 1 for each label"
    ranks = (1,)
    nouns = "labels"
    per_output = "logits {}, one per label"
    squashing = ("sigmoid",)

    def check_target(self, target: np.ndarray, outputs: int | None, about: str) -> None:
        """Raises UserError for anything but 0 and 1, or another number of labels."""
        if outputs not in (None, target.size) or not np.isin(target, (0, 1)).all():
            count = "one" if outputs is None else f"{outputs}"
            raise UserError(f"{about} the target {target.tolist()}; expected 0 or 1, {count} for each label")

    def titled(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Returns the names of the labels that the example has."""
        return ", ".join(name for name, has in zip(names, target, strict=True) if has)

    def _usual_loss(self, logits: bool, one_hot: bool) -> keras.losses.Loss:
        return keras.losses.BinaryCrossentropy(from_logits=logits)

    def metrics(self, logits: bool = True) -> list[Any]:
        """Returns the share of labels that are right."""
        return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if logits else 0.5)]

    def judged(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns probabilities."""
        return tf.sigmoid(outputs)

    def figures(self, targets: tf.Tensor, judged: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns 'accuracy', the share of the example's labels that are right."""
        return {"accuracy": keras.metrics.binary_accuracy(tf.cast(targets, tf.float32), judged)}

    def columns(self, outputs: int) -> dict[str, Column]:
        """Returns 'auc', the mean over labels of the area under the receiver operating characteristic."""
        return {"auc": columns.MeanAuc()}

    def answer(self, outputs: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns the probability of each label, and the most probable ones by name."""
        found = tf.sigmoid(outputs)
        return {"probabilities": found, **named(found, names)}


class Regression(Task):
    """Numbers from each example."""

    target = "a number or a vector of numbers"
    ranks = (0, 1)
    nouns = "numbers"
    per_output = "numbers {}"
    argument = "num_outputs"

    def prepared(self, target: tf.Tensor) -> tf.Tensor:
        """Returns a vector, float32."""
        return tf.reshape(tf.cast(target, tf.float32), [target.shape[0] if target.shape.rank else 1])

    def check_target(self, target: np.ndarray, outputs: int | None, about: str) -> None:
        """Raises UserError for numbers that are not finite, or another number of them."""
        super().check_target(target, outputs, about)
        if outputs not in (None, target.size):
            raise UserError(f"{about} a target of {target.size} numbers; expected {outputs}")

    def titled(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Returns the numbers."""
        return ", ".join(f"{value:.3g}" for value in target)

    def _usual_loss(self, logits: bool, one_hot: bool) -> keras.losses.Loss:
        return keras.losses.MeanSquaredError()

    def metrics(self, logits: bool = True) -> list[Any]:
        """Returns the mean absolute error."""
        return [keras.metrics.MeanAbsoluteError(name="mae")]

    def figures(self, targets: tf.Tensor, judged: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns 'mae', the mean absolute error of the example's numbers."""
        return {"mae": tf.reduce_mean(tf.abs(tf.cast(targets, tf.float32) - judged), -1)}

    def columns(self, outputs: int) -> dict[str, Column]:
        """Returns 'rmse', the root of the mean squared error over all examples and numbers."""
        return {"rmse": columns.RootMeanSquaredError()}

    def answer(self, outputs: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns the numbers."""
        return {"values": tf.identity(outputs)}


class Segmentation(Task):
    """A class for every pixel. Targets are masks of class numbers, of the image's height and width."""

    target = "an integer mask (height, width)"
    ranks = (2, 3)
    integers = True
    per_output = "logits {}, one per pixel and class"
    squashing = ("softmax",)

    def prepared(self, target: tf.Tensor) -> tf.Tensor:
        """Returns the mask, int64, shape (height, width)."""
        return tf.cast(tf.squeeze(target, -1) if target.shape.rank == 3 else target, tf.int64)

    def check_target(self, target: np.ndarray, outputs: int | None, about: str) -> None:
        """Raises UserError for a class out of range."""
        most = np.inf if outputs is None else outputs
        if target.min() < 0 or target.max() >= most:
            worst = target.min() if target.min() < 0 else target.max()
            last = "at least 0" if outputs is None else f"from 0 to {outputs - 1}"
            raise UserError(f"{about} a mask with the class {worst}; expected classes {last}")

    def num_outputs(self, target: np.ndarray) -> int:
        """Number of classes that there are at least."""
        return int(target.max()) + 1

    def head(self, image_shape: Sequence[int | None], outputs: int) -> tuple[int | None, ...]:
        """One logit for each pixel and class."""
        return (None, *image_shape[:2], outputs)

    def _usual_loss(self, logits: bool, one_hot: bool) -> keras.losses.Loss:
        return cross_entropy(logits, one_hot)

    def metrics(self, logits: bool = True) -> list[Any]:
        """Returns the share of pixels that are right."""
        return ["accuracy"]

    def figures(self, targets: tf.Tensor, judged: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns 'accuracy', the share of the example's pixels that are right."""
        correct = tf.cast(tf.argmax(judged, -1) == tf.cast(targets, tf.int64), tf.float32)
        return {"accuracy": tf.reduce_mean(correct, (1, 2))}

    def columns(self, outputs: int) -> dict[str, Column]:
        """Returns 'mean_iou', the mean over classes of intersection over union, of all pixels together."""
        return {"mean_iou": columns.MeanIoU(outputs)}

    def answer(self, outputs: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns the probabilities of each pixel's classes, and the most probable class as a mask."""
        found = tf.nn.softmax(outputs)
        return {"probabilities": found, "mask": tf.argmax(found, -1, tf.int32)}


class Custom(Task):
    """A task with a loss and a metric of the user's own, which are given targets and outputs as they are.

    Both are arrays, or dicts of arrays by the same names.
    """

    target = "any array or dict of arrays"
    ranks = (0, 1, 2, 3, 4)
    by_name = True
    nouns = "outputs"
    has_names = False
    argument = "num_outputs"

    def prepared(self, target: tf.Tensor) -> tf.Tensor:
        """Returns the target as it is."""
        return target

    def check_target(self, target: Any, outputs: int | None, about: str) -> None:
        """Accepts anything: the user's loss decides."""

    def num_outputs(self, target: Any) -> int:
        """Returns 0: outputs need no names."""
        return 0

    def compared(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Returns all of the answer."""
        return dict(answer)

    def answered(self, compared: Mapping[str, Any]) -> Any:
        """Returns the outputs as the network gives them."""
        return compared[self.primary] if set(compared) == {self.primary} else dict(compared)

    def head(self, image_shape: Sequence[int | None], outputs: int) -> None:
        """Accepts any output."""

    def own_functions(self) -> dict[str, tuple[str, functions.Function]]:
        """Returns the user's loss, and the metric if it is a function."""
        own = {} if isinstance(self._own, keras.metrics.Metric) else {"metric": (self._metric, self._own)}
        return {**super().own_functions(), **own}

    @functools.cached_property
    def _own(self) -> Any:
        return functions.own_metric(self._metric)

    def metrics(self, logits: bool = True) -> list[Any]:
        """Returns the user's metric."""
        if isinstance(self._own, keras.metrics.Metric):
            own: Any = functions.own_metric(self._metric)
            own.name = self.facts.example.name
            return [own]
        return [keras.metrics.MeanMetricWrapper(self._own, name=self.facts.example.name)]

    def figures(self, targets: tf.Tensor, judged: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the user's metric, if it is a function."""
        if isinstance(self._own, keras.metrics.Metric):
            return {}
        values = functions.by_example(self._own(targets, judged), self._own, targets, judged)
        return {self.facts.example.name: values}

    def columns(self, outputs: int) -> dict[str, Column]:
        """Returns the user's metric, if it is a Keras metric."""
        own = functions.own_metric(self._metric)
        return {self.facts.example.name: columns.OfKeras(own)} if isinstance(own, keras.metrics.Metric) else {}

    def answer(self, outputs: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns the outputs, by their names if they have any."""
        return tf.nest.map_structure(tf.identity, outputs if isinstance(outputs, dict) else {self.primary: outputs})


CLASSIFICATION = Classification()
_TASKS: Mapping[str, type[Task]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
    facts_lib.CUSTOM: Custom,
}


@functools.lru_cache(8)
def task_of(name: str, loss: str = "", metric: str = "", goal: str = "") -> Task:
    """Returns a task.

    Args:
        name: one of `facts.NAMES`.
        loss: 'package.module:loss' in place of the usual one; empty: the usual one.
        metric: of a custom task, 'package.module:metric'.
        goal: of that metric, 'max' or 'min'.

    Raises:
        UserError: if the metric's name is not of that form.
    """
    return _TASKS[name](name, loss, metric, goal)
