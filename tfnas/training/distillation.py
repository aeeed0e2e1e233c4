"""The loss of a network that also learns from a teacher's outputs (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

import keras
import tensorflow as tf

from tfnas.graph.models import deep


class Kind(enum.Enum):
    """Kinds of outputs of a network."""

    LOGITS = "logits of classes"
    PROBABILITIES = "probabilities of classes"
    BINARY_LOGITS = "a logit for each label"
    BINARY_PROBABILITIES = "a probability for each label"
    NUMBERS = "numbers"


_CLASSES = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)
_BINARY = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


def kind_of(loss: Any) -> Kind:
    """Returns the kind of outputs that a loss compares with labels: numbers, unless it is a cross-entropy of Keras.

    Args:
        loss: as for `compile`.
    """
    found = keras.losses.get(loss) if isinstance(loss, str) and loss != "crossentropy" else loss
    function = getattr(found, "fn", found)
    logits = getattr(found, "_fn_kwargs", {}).get("from_logits", False)
    if function in _CLASSES:
        return Kind.LOGITS if logits else Kind.PROBABILITIES
    if function in _BINARY:
        return Kind.BINARY_LOGITS if logits else Kind.BINARY_PROBABILITIES
    return Kind.NUMBERS


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network from whose outputs another one learns, beside the labels.

    The loss of a batch is (1 - w) L + w D, with L the mean loss of the labels, and D the sum over outputs of
    T^2 mean KL(softmax(teacher / T) || softmax(student / T)). Probabilities count by their logarithms, and a label of
    its own as two classes. Of numbers, D is the mean squared difference.

    Attributes:
        model: not trained, and not part of a checkpoint.
        weight: w, in (0, 1].
        temperature: T, > 0.
        kinds: what each output is, in the flattened order.
    """

    model: keras.Model
    weight: float
    temperature: float
    kinds: tuple[Kind, ...] = (Kind.LOGITS,)

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"Teacher: weight must be in (0, 1]. Received: weight={self.weight}")

    @functools.cached_property
    def _distillation(self) -> Any:
        # Not the default, 'kl_divergence': for that name Keras leaves the softmax out and compares logits themselves.
        # Nor Keras's reduction, which divides by the number of replicas, as the step does.
        loss = keras.losses.KLDivergence(reduction=None)
        return keras.distillation.LogitsDistillation(self.temperature, loss=loss)

    def outputs(self, inputs: Any) -> Any:
        """The teacher's outputs at inference, without a gradient; float32."""
        found = self.model(inputs, training=False)
        return keras.tree.map_structure(lambda x: tf.stop_gradient(tf.cast(x, tf.float32)), found)

    def loss(self, loss: tf.Tensor, taught: Any, outputs: Any) -> tf.Tensor:
        """The loss with a teacher.

        Args:
            loss: mean loss of the labels, scalar.
            taught: the teacher's outputs, float32, of shape (N, ..., classes) each.
            outputs: of the network that learns, likewise.
        """
        pairs = zip(self.kinds, keras.tree.flatten(taught), keras.tree.flatten(outputs), strict=True)
        return (1 - self.weight) * loss + self.weight * tf.add_n([self._difference(*pair) for pair in pairs])

    def _difference(self, kind: Kind, taught: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        if kind == Kind.NUMBERS:
            return tf.reduce_mean(tf.square(taught - outputs))
        logits = (_as_logits(kind, part) for part in (taught, outputs))
        return tf.reduce_mean(self._distillation.compute_loss(*logits))


def _as_logits(kind: Kind, outputs: tf.Tensor) -> tf.Tensor:
    """Logits of classes, shape (..., classes)."""
    if kind == Kind.LOGITS:
        return outputs
    if kind == Kind.BINARY_LOGITS:
        return tf.stack([outputs, tf.zeros_like(outputs)], axis=-1)
    epsilon = keras.config.epsilon()
    if kind == Kind.BINARY_PROBABILITIES:
        outputs = tf.stack([outputs, 1 - outputs], axis=-1)
    return tf.math.log(tf.clip_by_value(outputs, epsilon, 1.0))


class Taught(keras.Model):
    """A functional network whose training with `fit` also learns from a teacher; made of the network's own layers."""

    def __init__(self, network: keras.Model, teacher: Teacher):
        with deep():
            super().__init__(network.input, network.output, name=network.name)
        self._teacher = teacher

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The compiled loss, in training with the teacher's; called by `fit` and `evaluate`."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        added = tf.add_n([tf.cast(part, tf.float32) for part in self.losses]) if self.losses else 0.0
        outputs = keras.tree.map_structure(lambda part: tf.cast(part, tf.float32), y_pred)
        # Keras divides the loss by the number of replicas, whose gradients are added.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        taught = self._teacher.loss(replicas * loss - added, self._teacher.outputs(x), outputs)
        return (taught + added) / replicas
