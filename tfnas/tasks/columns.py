"""Metrics of networks over all examples of a split, for the report's columns, gathered batch by batch."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np
from scipy import stats


class Column(Protocol):
    """A metric that is gathered from batches."""

    def update(self, targets: np.ndarray, judged: np.ndarray) -> None:
        """Adds a batch: targets, and what the task judges of a network's outputs."""

    def result(self) -> float:
        """Returns the metric of all batches together."""


class RootMeanSquaredError:
    """The root of the mean squared error over all examples and numbers."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, targets: np.ndarray, judged: np.ndarray) -> None:
        """Adds a batch of numbers, shape (N, K) both."""
        self._sum += float(np.square(np.asarray(targets, np.float64) - judged).sum())
        self._count += targets.size

    def result(self) -> float:
        """Returns the root."""
        return float(np.sqrt(self._sum / self._count))


class MeanIoU:
    """The mean of intersection over union, over all classes that are in a mask or an answer.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int):
        self._counts = np.zeros((classes, classes), np.int64)  # pixels by class and answer

    def update(self, targets: np.ndarray, judged: np.ndarray) -> None:
        """Adds a batch of masks (N, H, W), and scores (N, H, W, classes)."""
        classes = len(self._counts)
        pairs = np.asarray(targets, np.int64).ravel() * classes + judged.argmax(-1).ravel()
        self._counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def result(self) -> float:
        """Returns the mean."""
        both = np.diag(self._counts)
        either = self._counts.sum(0) + self._counts.sum(1) - both
        return float((both[either > 0] / either[either > 0]).mean())


class MeanAuc:
    """The mean over labels of the area under the receiver operating characteristic.

    The area is the probability that an example with the label has a higher score than one without it; ties count half
    (Mann and Whitney 1947). Labels that all or none of the examples have are left out; without any others it is NaN.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, targets: np.ndarray, judged: np.ndarray) -> None:
        """Adds a batch of 0 and 1, and of scores, shape (N, labels) both."""
        self._parts.append((np.asarray(targets) > 0.5, np.asarray(judged, np.float64)))

    def result(self) -> float:
        """Returns the mean."""
        has, scores = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        if not np.isfinite(scores).all():
            return float("nan")
        with_label = has.sum(0)
        without = len(has) - with_label
        ranks = np.where(has, stats.rankdata(scores, axis=0), 0.0).sum(0)
        known = (with_label > 0) & (without > 0)
        areas = (ranks - with_label * (with_label + 1) / 2)[known] / (with_label * without)[known]
        return float(areas.mean()) if areas.size else float("nan")


class OfKeras:
    """A metric of the user's own.

    Args:
        metric: new, to be updated with targets and outputs.
    """

    def __init__(self, metric: keras.metrics.Metric):
        self._metric = metric

    def update(self, targets: Any, judged: Any) -> None:
        """Adds a batch of targets and outputs, arrays or dicts of them."""
        self._metric.update_state(targets, judged)

    def result(self) -> float:
        """Returns the metric, or its mean over what it has several values of."""
        return float(np.mean(np.asarray(self._metric.result(), np.float64)))


class Tally:
    """All of a task's metrics of one network on one split.

    Args:
        task: the task.
        outputs: number of classes, labels or numbers.
    """

    def __init__(self, task: Any, outputs: int):
        self._task, self._columns = task, task.columns(outputs)
        self._figures: dict[str, list[np.ndarray]] = {}

    def update(self, targets: Any, judged: Any) -> None:
        """Adds a batch: targets, and what the task judges of a network's outputs."""
        for name, values in self._task.figures(targets, judged).items():
            self._figures.setdefault(name, []).append(np.asarray(values))
        for column in self._columns.values():
            column.update(*keras.tree.map_structure(np.asarray, (targets, judged)))

    def metrics(self) -> dict[str, float]:
        """Returns the metrics by name, in the order of the task's columns, as far as there are."""
        means = {name: float(np.concatenate(parts).mean(dtype=np.float64)) for name, parts in self._figures.items()}
        found = {**means, **{name: column.result() for name, column in self._columns.items()}}
        return {metric.name: found[metric.name] for metric in self._task.facts.columns if metric.name in found}
