"""Many candidates, one compiled program: evaluate each with inherited weights on held-out data, and rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.architecture import Architecture
from tfnas.errors import UserError
from tfnas.supernet import Supernet


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one candidate on the validation data: mean loss (nats for a cross-entropy) and accuracy in [0, 1]."""

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Candidates and their scores, in the order drawn.

    Attributes:
        candidates: the architectures.
        scores: one each.
        by: 'loss' or 'accuracy'.
    """

    candidates: Sequence[Architecture]
    scores: Sequence[Score]
    by: str

    @property
    def order(self) -> list[int]:
        """Numbers of the candidates, best first."""
        return order(self.scores, self.by)

    @property
    def best(self) -> Architecture:
        """The winner."""
        return self.candidates[self.order[0]]


def order(scores: Sequence[Score], by: str) -> list[int]:
    """Numbers of the scores, best first; ties go to the other criterion, then to the earlier candidate."""
    keys = {
        "loss": lambda i: (_nan_last(scores[i].loss), -scores[i].accuracy, i),
        "accuracy": lambda i: (-scores[i].accuracy, _nan_last(scores[i].loss), i),
    }
    if by not in keys:
        raise UserError(f"rank: by must be 'loss' or 'accuracy'. Received: {by!r}")
    return sorted(range(len(scores)), key=keys[by])


def rank(
    supernet: Supernet, candidates: Sequence[Architecture], validation: tf.data.Dataset, by: str = "loss"
) -> Ranking:
    """Evaluates every candidate in full and ranks them.

    Args:
        supernet: trained and compiled; its architecture in use is restored afterwards.
        candidates: architectures, for example from `posterior.sample`.
        validation: batches of (inputs, integer labels), never the test split.
        by: 'loss', by far the more reliable, or 'accuracy', the paper's.

    Raises:
        UserError: if there is no candidate, no example, or the supernet is not compiled.
    """
    if not candidates:
        raise UserError("rank: at least one candidate expected. Received: none")
    evaluator = Evaluator(supernet, validation)
    before = supernet.architecture()
    try:
        return Ranking(candidates, [evaluator(candidate) for candidate in candidates], by)
    finally:
        supernet.set_architecture(before)


class Evaluator:
    """Scores architectures of one supernet on one set of examples, held in memory, by one compiled program.

    The masks are the only thing that changes between candidates, so the program is traced once.

    Args:
        supernet: compiled with the loss to rank by.
        validation: batches of (inputs, integer labels).

    Raises:
        UserError: if the supernet is not compiled or there are no examples.
    """

    def __init__(self, supernet: Supernet, validation: tf.data.Dataset):
        if not getattr(supernet, "compiled", False):
            raise UserError("rank: the supernet must be compiled with its loss before candidates are ranked")
        self._supernet = supernet
        self._batches = [(tf.convert_to_tensor(x), tf.convert_to_tensor(y)) for x, y in validation]
        if not self._batches:
            raise UserError("rank: the validation data is empty")
        self.num_examples = sum(int(y.shape[0]) for _, y in self._batches)
        loss = keras.losses.get(supernet.loss)
        self._loss = loss.call if isinstance(loss, keras.losses.Loss) else loss
        self._totals = tf.function(self._totals_of_masks)

    def __call__(self, architecture: Architecture) -> Score:
        """The candidate's mean loss and accuracy over all examples; leaves its masks in the supernet."""
        self._supernet.set_architecture(architecture)
        loss, correct = (float(total) / self.num_examples for total in self._totals())
        return Score(loss, correct)

    @property
    def num_traces(self) -> int:
        """How often the program was traced: 1 once it has run, however many candidates it has seen."""
        return self._totals.experimental_get_tracing_count()

    def _totals_of_masks(self) -> tuple[tf.Tensor, tf.Tensor]:
        losses, correct = [], []
        for inputs, labels in self._batches:
            outputs = tf.cast(self._supernet(inputs, training=False), tf.float32)
            losses.append(tf.reduce_sum(self._loss(labels, outputs)))
            hits = tf.cast(tf.argmax(outputs, -1), tf.int64) == tf.cast(labels, tf.int64)
            correct.append(tf.reduce_sum(tf.cast(hits, tf.float32)))
        return tf.add_n(losses), tf.add_n(correct)


def summary(scores: Iterable[Score], by: str) -> dict[str, Any]:
    """Mean and deviation of accuracy and loss, and the best score."""
    scores = list(scores)
    accuracy = np.array([s.accuracy for s in scores])
    loss = np.array([s.loss for s in scores])
    best = scores[order(scores, by)[0]]
    return {
        "count": len(scores),
        "mean_accuracy": float(accuracy.mean()),
        "std_accuracy": float(accuracy.std()),
        "mean_loss": float(loss.mean()),
        "best_accuracy": best.accuracy,
        "best_loss": best.loss,
    }


def _nan_last(value: float) -> float:
    return value if np.isfinite(value) else np.inf
