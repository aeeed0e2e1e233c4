"""The loss of a network that also learns from a teacher's logits (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network from whose logits another one learns, beside the labels.

    The loss of a batch is (1 - w) L + w T^2 mean KL(softmax(teacher / T) || softmax(student / T)), with L the mean loss
    of the labels.

    Attributes:
        model: from images to logits; not trained, and not part of a checkpoint.
        weight: w, in (0, 1].
        temperature: T, > 0.
    """

    model: keras.Model
    weight: float
    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"Teacher: weight must be in (0, 1]. Received: weight={self.weight}")

    @functools.cached_property
    def _distillation(self) -> Any:
        # Not the default, 'kl_divergence': for that name Keras leaves the softmax out and compares logits themselves.
        # Nor Keras's reduction, which divides by the number of replicas, as the step does.
        loss = keras.losses.KLDivergence(reduction=None)
        return keras.distillation.LogitsDistillation(self.temperature, loss=loss)

    def logits(self, inputs: tf.Tensor) -> tf.Tensor:
        """The teacher's outputs at inference, without a gradient; float32."""
        return tf.stop_gradient(tf.cast(self.model(inputs, training=False), tf.float32))

    def loss(self, loss: tf.Tensor, logits: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The loss with a teacher.

        Args:
            loss: mean loss of the labels, scalar.
            logits: of the teacher, float32, shape (N, classes).
            outputs: of the network that learns, likewise.
        """
        return (1 - self.weight) * loss + self.weight * self._distillation.compute_loss(logits, outputs)
