"""The base class of tasks, and functions that several of them share."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.tasks import facts as facts_lib
from tfnas.tasks import functions
from tfnas.tasks.columns import Column

_TOP_CLASSES = 5  # number of classes returned by name
_MANY_CLASSES = 20  # with more classes, there is a top-5 accuracy


class Task(abc.ABC):
    """A task.

    Targets have an axis of examples, except in `check_target`; outputs are those of a network.

    Attributes:
        facts: names and forms of what is measured.
        target: what a target is, for messages.
        ranks: numbers of axes that a target of one example may have.
        integers: whether targets are integers.
        by_name: whether targets and outputs may be dicts by name.
        nouns: what the outputs are, in the plural.
        has_names: whether each output has a name; if the data give none, its number.
        argument: name of the argument by which a user's builder receives the number of outputs.
        per_output: what a network returns, for messages, with a place for its shape.
        squashing: activations that the last layer must not have, because the answer applies them.
    """

    facts: facts_lib.Facts
    target: str
    ranks: tuple[int, ...]
    integers = False
    by_name = False
    nouns = "classes"
    has_names = True
    argument = "num_classes"
    per_output = "logits {}, one per class"
    squashing: tuple[str, ...] = ()

    def __init__(self, name: str, loss: str = "", metric: str = "", goal: str = ""):
        self.facts = facts_lib.facts_of(name, metric, goal)
        self._loss, self._metric = loss, metric

    @property
    def primary(self) -> str:
        """Name of the part of an answer that is compared with the network's and measured."""
        return self.facts.primary

    def compared(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parts of an answer that are compared with the network's, by name."""
        return {self.primary: answer[self.primary]}

    def answered(self, compared: Mapping[str, Any]) -> Any:
        """Returns what figures and columns take, from the parts of an answer that are compared."""
        return compared[self.primary]

    # Data

    def prepared(self, target: tf.Tensor) -> tf.Tensor:
        """Returns one example's target as the losses take it; may be traced."""
        return tf.cast(target, tf.float32)

    def check_target(self, target: np.ndarray, outputs: int | None, about: str) -> None:
        """Raises UserError for a target of one example that is out of range.

        Args:
            target: as in the data.
            outputs: number of classes, labels or numbers; None if it is not known yet.
            about: how the message begins.
        """
        if not np.isfinite(target).all():
            raise UserError(f"{about} a target that is not finite")

    def num_outputs(self, target: np.ndarray) -> int:
        """Smallest number of outputs that a target of one example needs."""
        return int(target.size) if target.ndim == 1 else 1

    def titled(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Returns one example's target in a few words, for a picture's title."""
        return ""

    # Networks

    def head(self, image_shape: Sequence[int | None], outputs: int) -> tuple[int | None, ...] | None:
        """Shape of a network's output; None for any.

        Args:
            image_shape: (H, W, C) of the input that a mask belongs to, if there is one.
            outputs: number of classes, labels or numbers.
        """
        return (None, outputs)

    def loss(self, logits: bool = True, one_hot: bool = False) -> keras.losses.Loss:
        """Returns the loss to train with and to rank by, as a mean over the batch.

        Args:
            logits: whether outputs are in front of the activation that the answer applies; else behind it.
            one_hot: whether targets of classes are one-hot, not prepared.
        """
        return functions.own_loss(self._loss) if self._loss else self._usual_loss(logits, one_hot)

    def _usual_loss(self, logits: bool, one_hot: bool) -> keras.losses.Loss:
        raise UserError("task: one without a usual loss needs loss='package.module:function'")

    def own_functions(self) -> dict[str, tuple[str, functions.Function]]:
        """Returns the user's functions of targets and outputs, each with its name, by the settings that name them."""
        return {"loss": (self._loss, self.loss().call)} if self._loss else {}

    @abc.abstractmethod
    def metrics(self, logits: bool = True) -> list[Any]:
        """Returns the metrics to compile a network with: the one of each example, as for `compile`; new ones.

        Args:
            logits: as for `loss`.
        """

    # Measurements

    def judged(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns what figures and columns take: outputs, or what is served of them."""
        return outputs

    @abc.abstractmethod
    def figures(self, targets: tf.Tensor, judged: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns metrics of each example by name, float32, shape (N,) each; may be traced."""

    def columns(self, outputs: int) -> dict[str, Column]:
        """Returns metrics that are not means over examples, by name; new ones."""
        return {}

    def errors(self, targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns what paired tests compare, lower is better: the loss of each example, float32, shape (N,)."""
        loss = self.loss()
        return functions.by_example(loss.call(targets, outputs), loss.call, targets, outputs)

    def confusion(self, outputs: int) -> np.ndarray | None:
        """Returns zeros, int64, to count examples by class (rows) and most probable class (columns); None without."""
        return None

    # Answers

    @abc.abstractmethod
    def answer(self, outputs: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns what is served for the outputs of a network.

        Args:
            outputs: float32, shape (N, ...).
            names: of the classes, labels or numbers.
        """


def cross_entropy(logits: bool, one_hot: bool) -> keras.losses.Loss:
    """Returns the cross-entropy of classes (see `Task.loss`)."""
    of = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
    return of(from_logits=logits)


def named(probabilities: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
    """Returns the most probable classes by name, in descending order: string (N, k) and float32 (N, k), k at most 5."""
    scores, places = tf.math.top_k(probabilities, min(_TOP_CLASSES, len(names)))
    return {"classes": tf.gather(tf.constant(names), places), "scores": scores}


def in_top5(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor | None:
    """Whether the label is among the five largest outputs, float32, shape (...); None for at most 20 classes.

    Args:
        labels: class numbers, shape (...).
        outputs: shape (..., classes).
    """
    if outputs.shape[-1] <= _MANY_CLASSES:
        return None
    return keras.metrics.sparse_top_k_categorical_accuracy(labels, outputs, k=5)
