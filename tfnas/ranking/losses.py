"""The compiled loss of each example, whether it is classified correctly, and any other compiled metric of it.

The loss of an example is the compiled loss of a batch that contains only this example: reduced over everything but the
example, for any loss, structure of outputs and loss weights, with its sample weights. Its mean over examples is what
`evaluate` reports, without the regularizers: for batches of any size if the loss of a batch is the mean over its
examples, and for batches of one otherwise (a sum, or a Dice loss over the batch).

Keras itself flattens structures and resolves 'accuracy' and 'crossentropy' for the shapes: a model without layers is
compiled with the same losses and metrics, each replaced by a wrapper that keeps the axis of examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers import compile_utils  # resolves 'accuracy' and 'crossentropy'; there is no public function

from tfnas.common.errors import UserError, plain_message
from tfnas.data.inputs import Examples
from tfnas.gating.supernet import Supernet
from tfnas.tasks.functions import by_example, metric_by_example
from tfnas.tasks.task import in_top5

Note = Callable[[tf.Tensor, dict[str, tf.Tensor]], None]
LOSS, ACCURACY, TOP5_ACCURACY = "loss", "accuracy", "top5_accuracy"
_SPARSE, _CATEGORICAL, _BINARY = (
    keras.metrics.sparse_categorical_accuracy,
    keras.metrics.categorical_accuracy,
    keras.metrics.binary_accuracy,
)
# Losses of classifications, whatever the metrics.
_CLASSIFYING = {
    keras.losses.sparse_categorical_crossentropy: _SPARSE,
    keras.losses.categorical_crossentropy: _CATEGORICAL,
    keras.losses.categorical_focal_crossentropy: _CATEGORICAL,
    keras.losses.binary_crossentropy: _BINARY,
    keras.losses.binary_focal_crossentropy: _BINARY,
}


class Criterion:
    """The compiled loss of each example, the accuracy if there is one, and another metric that is asked for.

    An output has an accuracy if one of its compiled metrics, weighted or not, is an accuracy, or if its loss is a Keras
    cross-entropy. It is the share of the example's positions that are correct (one position, or for example its
    pixels), without sample weights. Another metric of an example is the compiled metric of a batch that contains only
    this example, without sample weights: its mean over examples is what `evaluate` reports of metrics that are such
    means, but not of others, such as an AUC.

    Args:
        supernet: compiled supernet.
        examples: examples with the labels and weights; the first ones are tried.
        caller: prefix of error messages.
        metric: name of a compiled metric to compute besides accuracies; with several outputs that have it,
            'OUTPUT_METRIC'. One that is not there is left out.

    Attributes:
        names: names of the figures of each example: 'loss'; 'accuracy' and, with more than 20 classes, 'top5_accuracy'
            if exactly one output has an accuracy; if several have one, 'OUTPUT_accuracy' and 'OUTPUT_top5_accuracy'.
            Likewise that of `metric`.
        directions: 'up' or 'down', whether higher or lower is better, by name of a metric, as far as Keras says it.
        largest: upper bound of the loss of an example; None if unknown, as for all losses but Keras's cross-entropies.
            For these, the loss of a position is at most -log(epsilon), 16.1 nats, at which Keras clips probabilities.
            Logits are not clipped; that no class has a probability below epsilon is an assumption. Includes the
            largest sample weight, the loss weights and, for a sum, the number of positions.

    Raises:
        UserError: if the supernet is not compiled with a loss, or the loss cannot be computed from these labels.
    """

    def __init__(self, supernet: Supernet, examples: Examples, caller: str = "rank", metric: str = LOSS):
        arguments = _compiled(supernet, caller)
        network = supernet.network
        self._structure = network.output
        self._output_names = _names(network)
        self._found: dict[int, dict[str, tf.Tensor]] = {}  # by output tensor, during a call
        self._traced: Any = None
        self.directions = {ACCURACY: "up"}

        def metrics(given: Any) -> Any:
            return given and keras.tree.map_structure(lambda m: m and _PerExampleMetric(m, metric, self._note), given)

        loss = arguments["loss"]
        self._joint = loss if isinstance(self._structure, dict) and getattr(loss, "joint", False) else None
        self._joint_metrics = [m for m in arguments["metrics"] or () if self._joint and m.name == metric]
        divisor = _divisor(loss, examples.weights, caller)

        def model(wrapper: Callable[[Any], keras.losses.Loss], **others: Any) -> keras.Model:
            model = keras.Model()
            model.output_names = network.output_names
            losses = keras.tree.map_structure(lambda loss: loss and wrapper(loss), arguments["loss"])
            model.compile(loss=losses, loss_weights=arguments["loss_weights"], **others)
            return model

        self._model = model(
            lambda loss: _PerExampleLoss(loss, self._note, divisor),
            metrics=None if self._joint else metrics(arguments["metrics"]),
            weighted_metrics=metrics(arguments["weighted_metrics"]),
        )
        few = examples.take(slice(0, 2))
        inputs = keras.tree.pack_sequence_as(network.input, few.inputs)
        outputs = [tf.cast(x, tf.float32) for x in keras.tree.flatten(network(inputs, training=False))]
        try:
            # Not in a graph, because Keras creates its variables in the first call.
            self.names = tuple(self(outputs, few.labels, few.weights))
        except (ValueError, TypeError, KeyError, IndexError, tf.errors.InvalidArgumentError) as error:
            shapes = keras.tree.map_structure(lambda x: x.shape, few.labels)
            raise UserError(
                f"{caller}: the compiled loss cannot be computed from labels of shape {shapes} for "
                f"outputs of shape {[tuple(x.shape) for x in outputs]} ({plain_message(error)})"
            ) from None
        weights = [w for w in keras.tree.flatten(examples.weights) if w is not None]
        factors = [w for w in keras.tree.flatten(arguments["loss_weights"]) if w is not None]
        self.largest: float | None = None
        # A negative weight may lower the sum of the others.
        if not self._joint and min([*factors, *(w.min() for w in weights)], default=0) >= 0:
            most = max((float(w.max()) for w in weights), default=1.0)
            # Keras itself adds up the upper bounds of the outputs' losses.
            bounding = model(lambda loss: _LargestLoss(loss, most, divisor))
            structure = keras.tree.pack_sequence_as(self._structure, outputs)
            largest = float(bounding.compute_loss(None, few.labels, structure, few.weights))
            self.largest = largest if math.isfinite(largest) else None

    def __call__(self, outputs: list[tf.Tensor], labels: Any, weights: Any = None) -> dict[str, tf.Tensor]:
        """Computes the figures of each example by name, float32, shape (B,) each; may be traced.

        Args:
            outputs: outputs of the network, float32, in the order of `network.outputs`.
            labels: a structure of tensors, shape (B, ...) each.
            weights: sample weights, likewise, or None.
        """
        self._found.clear()
        structure = keras.tree.pack_sequence_as(self._structure, outputs)
        if self._joint is not None:
            return self._of_joint(self._joint.call, labels, structure, weights)
        losses = self._model.compute_loss(None, labels, structure, weights)
        # Metrics last, because they take precedence over the loss of an output.
        self._model.compute_metrics(None, labels, structure, weights)
        named = list(zip(self._output_names, [self._found.get(id(x), {}) for x in outputs], strict=True))
        figures = {LOSS: tf.cast(losses, tf.float32)}
        for key in dict.fromkeys(key for _, found in named for key in found):
            kind = ACCURACY if key == TOP5_ACCURACY else key
            alone = sum(kind in found for _, found in named) == 1
            figures |= {key if alone else f"{name}_{key}": found[key] for name, found in named if key in found}
        self._found.clear()
        return figures

    def traced(self, outputs: list[tf.Tensor], labels: Any, weights: Any = None) -> dict[str, tf.Tensor]:
        """The same, traced once: a loss of the batch is called for each example by itself, eagerly in milliseconds."""
        given = {"outputs": outputs, "labels": labels} | ({} if weights is None else {"weights": weights})
        given = keras.tree.map_structure(tf.convert_to_tensor, given)
        if self._traced is None:
            specs = keras.tree.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), given)
            function = tf.function(lambda parts: self(**parts), autograph=False)
            self._traced = function.get_concrete_function(specs)
        return self._traced(given)

    def _of_joint(
        self, loss: Callable[[Any, Any], Any], labels: Any, outputs: Any, weights: Any
    ) -> dict[str, tf.Tensor]:
        """The figures of a loss, and of metrics, that are given all outputs together."""
        losses = by_example(loss(labels, outputs), loss, labels, outputs)
        figures = {LOSS: losses if weights is None else losses * tf.cast(weights, tf.float32)}
        for metric in self._joint_metrics:
            if (function := getattr(metric, "_fn", None)) is None:
                figures[metric.name] = metric_by_example(metric, labels, outputs)
            else:
                figures[metric.name] = by_example(function(labels, outputs), function, labels, outputs)
        return figures

    def _note(self, outputs: tf.Tensor, figures: dict[str, tf.Tensor], direction: str | None = None) -> None:
        self._found.setdefault(id(outputs), {}).update(figures)
        if direction:
            self.directions |= dict.fromkeys(figures, direction)


class _PerExampleLoss(keras.losses.Loss):
    """Wraps a compiled loss to reduce over everything but the example.

    Args:
        loss: loss as for `compile`.
        note: receives the outputs and their accuracies if the loss is that of a classification.
        divisor: divisor of the weighted sum of an example's losses, if it is not their number.
    """

    def __init__(self, loss: Any, note: Note, divisor: float | None):
        super().__init__(name=_name(loss))
        self._loss, self._note, self._divisor = loss, note, divisor

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        resolved = compile_utils.get_loss(self._loss, y_true, y_pred)
        loss = object.__new__(type(resolved))  # a copy; Keras copies through JSON, which a user's class may not support
        vars(loss).update(vars(resolved), reduction=None)
        if (judge := _CLASSIFYING.get(getattr(loss, "fn", None))) is not None:
            options = {}
            if judge is _BINARY and loss._fn_kwargs.get("from_logits"):
                options = {"threshold": 0.0}
            self._note(y_pred, _accuracies(judge, options, y_true, y_pred))
        values = tf.cast(loss(y_true, y_pred), tf.float32)
        if not values.shape.rank or values.shape[0] != y_pred.shape[0]:
            values = by_example(values, loss, y_true, y_pred)
        if sample_weight is not None:
            values *= _aligned(tf.cast(sample_weight, tf.float32), values)
        values = tf.reshape(values, (tf.shape(y_pred)[0], -1))
        if resolved.reduction == "sum":
            return tf.reduce_sum(values, 1)
        if resolved.reduction == "mean_with_sample_weight" and self._divisor is not None:
            return tf.reduce_sum(values, 1) / self._divisor
        return tf.reduce_mean(values, 1)


class _LargestLoss(keras.losses.Loss):
    """Wraps a compiled loss to compute the upper bound for an example; infinite if unknown.

    Args:
        loss: loss as for `compile`.
        weight: largest sample weight, at least 0.
        divisor: as for `_PerExampleLoss`.
    """

    def __init__(self, loss: Any, weight: float, divisor: float | None):
        super().__init__(name=_name(loss))
        self._loss, self._weight, self._divisor = loss, weight, divisor

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        loss = compile_utils.get_loss(self._loss, y_true, y_pred)
        # A user's class may compute anything with the same function.
        if getattr(loss, "fn", None) not in _CLASSIFYING or not type(loss).__module__.startswith("keras."):
            return math.inf
        largest = -math.log(keras.config.epsilon())
        if (alpha := loss._fn_kwargs.get("alpha")) is not None:  # a focal loss, whose other factor is at most 1
            largest *= max(1.0, float(np.max(alpha)))
        largest *= self._weight
        shape = y_pred.shape[1:]
        positions = math.prod(shape) // shape[loss._fn_kwargs.get("axis", -1)] if shape else 1
        if loss.reduction == "sum":
            return largest * positions
        if loss.reduction == "mean_with_sample_weight" and self._divisor is not None:
            return largest * positions / self._divisor
        return largest


class _PerExampleMetric(keras.metrics.Metric):
    """Wraps a compiled metric to compute it for each example, if it is an accuracy or the one that is asked for.

    Args:
        metric: metric as for `compile`.
        wanted: name of the metric that is asked for, perhaps after that of its output.
        note: receives the outputs, the values, and whether higher or lower is better.
    """

    def __init__(self, metric: Any, wanted: str, note: Callable[..., None]):
        super().__init__(name="judge")
        self._metric, self._wanted, self._note = metric, wanted, note
        self._resolved: Any = None

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if self._resolved is None:  # once, because a metric creates variables
            self._resolved = compile_utils.get_metric(self._metric, y_true, y_pred)
        judge = getattr(self._resolved, "_fn", None)
        if judge in (_SPARSE, _CATEGORICAL, _BINARY):
            self._note(y_pred, _accuracies(judge, self._resolved._fn_kwargs, y_true, y_pred))
            return
        for name in (_name(self._metric), self._resolved.name):
            if self._wanted == name or self._wanted.endswith(f"_{name}"):
                self._note(y_pred, {name: self._values(y_true, y_pred)}, getattr(self._resolved, "_direction", None))
                return

    def _values(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        if (function := getattr(self._resolved, "_fn", None)) is None:
            return metric_by_example(self._resolved, y_true, y_pred)
        options = self._resolved._fn_kwargs

        def computed(targets: Any, outputs: Any) -> Any:
            return function(targets, outputs, **options)

        targets = tf.convert_to_tensor(y_true)
        return by_example(computed(targets, y_pred), computed, targets, y_pred)

    def result(self) -> float:
        return 0.0


def _accuracies(judge: Any, options: dict[str, Any], y_true: Any, y_pred: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the share of correct positions of each example, and the share within the top five."""
    y_true = tf.cast(y_true, tf.float32)
    found = {ACCURACY: judge(y_true, y_pred, **options)}
    if judge is not _BINARY:
        labels = tf.argmax(y_true, -1) if judge is _CATEGORICAL else tf.cast(y_true, tf.int32)
        if judge is _SPARSE and labels.shape.rank == y_pred.shape.rank:
            labels = tf.squeeze(labels, -1)
        if (top5 := in_top5(labels, y_pred)) is not None:
            found[TOP5_ACCURACY] = top5
    count = tf.shape(y_pred)[0]
    return {name: tf.reduce_mean(tf.reshape(values, (count, -1)), 1) for name, values in found.items()}


def _name(loss: Any) -> str:
    return getattr(loss, "name", None) or getattr(loss, "__name__", None) or str(loss)


def _aligned(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Adds axes to sample weights until they have as many as the values that they multiply."""
    if weights.shape.rank == values.shape.rank + 1:
        return tf.squeeze(weights, -1)
    missing = values.shape.rank - weights.shape.rank
    return tf.reshape(weights, (*tf.unstack(tf.shape(weights)), *[1] * missing)) if missing > 0 else weights


def _compiled(supernet: Supernet, caller: str) -> dict[str, Any]:
    """Returns the losses, loss weights and metrics that a supernet was compiled with."""
    if not getattr(supernet, "compiled", False) or supernet.loss is None:
        raise UserError(f"{caller}: needs a compiled supernet; call supernet.compile(loss=...) first")
    return supernet._compile_config.config  # what get_compile_config() returns as JSON


def _names(network: keras.Model) -> list[str]:
    """Returns the names of the outputs: the keys of a dictionary and positions in its lists, or their layers' names."""
    if not isinstance(network.output, dict):
        return list(network.output_names)
    return ["/".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(network.output)]


def _divisor(losses: Any, weights: Any, caller: str) -> float | None:
    """Returns the mean over examples of the sum of their weights, if a loss divides by the sum over all."""
    reductions = [getattr(loss, "reduction", None) for loss in keras.tree.flatten(losses)]
    if weights is None or "mean_with_sample_weight" not in reductions:
        return None
    if keras.tree.is_nested(weights):
        raise UserError(
            f"{caller}: reduction='mean_with_sample_weight' needs one array of sample weights for all outputs. "
            "Received: one per output"
        )
    return float(np.sum(weights, dtype=np.float64)) / len(weights)
