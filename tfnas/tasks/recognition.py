"""The task of a network's output, for a network that was not made for a task: by the output and its labels."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfnas.tasks import meanings
from tfnas.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Recognized:
    """A task, and how an output and its labels express it.

    Attributes:
        task: whose losses and metrics the output has.
        logits: whether the output is in front of the activation that gives probabilities.
        one_hot: whether labels of classes are one-hot.
    """

    task: Task
    logits: bool
    one_hot: bool = False

    @property
    def loss(self) -> keras.losses.Loss:
        """The task's loss for such outputs and labels, as a mean over the batch."""
        return self.task.loss(self.logits, self.one_hot)

    @property
    def metrics(self) -> list[Any]:
        """New metrics for such outputs, as for `compile`."""
        return self.task.metrics(self.logits)


def recognized(output: Any, labels: np.ndarray) -> Recognized:
    """Returns the task of an output.

    Whole numbers with one axis less than the output are classes; zeros and ones in the shape of the output are one-hot
    classes, if each position has a single one, else labels of their own; anything else is a regression. Classes of
    positions are a segmentation.

    Args:
        output: symbolic, of a functional model; shape (None, ...).
        labels: some of the examples, shape (N, ...).
    """
    activation = activation_of(output)
    shape, size = tuple(output.shape[1:]), output.shape[-1]
    classes: Task = meanings.Segmentation("segmentation") if len(shape) > 1 else meanings.CLASSIFICATION
    several, numbers = meanings.MultiLabel("multi_label"), meanings.Regression("regression")
    integral = bool(np.equal(labels, np.round(labels)).all())
    if integral and size != 1 and labels.shape[1:] in (shape[:-1], (*shape[:-1], 1)):
        return Recognized(classes, activation not in classes.squashing)
    same = labels.shape[1:] == shape or (*labels.shape[1:], 1) == shape
    if not (integral and same and np.isin(labels, (0, 1)).all()):
        return Recognized(numbers, activation not in numbers.squashing)
    if size != 1 and activation not in several.squashing and (labels.sum(-1) == 1).all():
        return Recognized(classes, activation not in classes.squashing, one_hot=True)
    return Recognized(several, activation not in several.squashing)


def activation_of(output: Any) -> str:
    """Name of the activation behind an output, such as 'softmax'.

    It is followed through nested models and layers that only move numbers. An operation without an activation gives
    its own name.

    Args:
        output: symbolic, of a functional model.
    """
    operation, _, _ = output._keras_history
    if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
        return activation_of(operation.outputs[0])
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if isinstance(operation, keras.layers.Reshape | keras.layers.Flatten) and operation._inbound_nodes:
        return activation_of(operation._inbound_nodes[-1].arguments.keras_tensors[0])
    activation = getattr(operation, "activation", None)
    return getattr(activation, "__name__", type(operation).__name__).lower()
