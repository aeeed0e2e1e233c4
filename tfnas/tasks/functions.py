"""Losses and metrics that are the user's own functions, and the metric of each example by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfnas.common import user_functions
from tfnas.common.errors import UserError

Function = Callable[[Any, Any], Any]


@keras.saving.register_keras_serializable("tfnas")
class OwnLoss(keras.losses.Loss):
    """The user's function of targets and outputs as a loss.

    A `.keras` file has only its name. A model that is loaded from one must be compiled with the function again: what a
    file names is not imported.

    A network with several outputs by name has one such loss: the function is given all targets and outputs together.

    Args:
        source: 'package.module:function', or the name of a Keras class, that the settings name.
        function: from (targets, outputs) to losses of examples or positions, or of the batch; None in a loaded model.
        name: as of any Keras loss.
    """

    joint = True  # of several outputs together, which Keras would give it one by one

    def __init__(self, source: str, function: Function | None = None, name: str = "own", **options: Any):
        super().__init__(name=name, **options)
        self._source, self._function = source, function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Calls the function."""
        if self._function is None:
            raise UserError(f"loss '{self._source}': this model was loaded from a file; compile it with the loss again")
        return user_functions.call("loss", self._source, self._function, y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """Arguments of a loss that cannot be called."""
        return {**super().get_config(), "source": self._source}


def own_loss(source: str) -> keras.losses.Loss:
    """Returns the loss that the setting `loss` names: a function, or a class or instance of `keras.losses.Loss`.

    Raises:
        UserError: if it cannot be found.
    """
    found: Any = user_functions.resolve("loss", source)
    if isinstance(found, type) and issubclass(found, keras.losses.Loss):
        found = user_functions.call("loss", source, found)
    return OwnLoss(source, found.call if isinstance(found, keras.losses.Loss) else found)


def own_metric(source: str) -> Function | keras.metrics.Metric:
    """Returns the metric that the setting `metric` names: a function, or a new `keras.metrics.Metric` of that class.

    Raises:
        UserError: if it cannot be found.
    """
    found: Any = user_functions.resolve("metric", source)
    if isinstance(found, type) and issubclass(found, keras.metrics.Metric):
        return user_functions.call("metric", source, found)
    return found


def in_float32(outputs: Any) -> Any:
    """Returns a network's outputs, a tensor or a dict of them, in float32, whatever they were computed in."""
    return tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), outputs)


def by_example(values: Any, function: Function, targets: Any, outputs: Any) -> tf.Tensor:
    """Returns one value for each example, float32, shape (N,).

    Args:
        values: result of `function(targets, outputs)`; its mean over all axes but the first, unless the function has
            reduced the batch and is therefore called for each example by itself.
        function: of targets and outputs.
        targets: shape (N, ...), or a dict of such.
        outputs: likewise.
    """
    values = tf.cast(values, tf.float32)
    first = tf.nest.flatten(outputs)[0]
    if values.shape.rank and values.shape[0] == first.shape[0]:
        return tf.reduce_mean(tf.reshape(values, (tf.shape(first)[0], -1)), 1)
    return tf.map_fn(
        lambda one: tf.reduce_mean(tf.cast(function(*_batch_of_one(one)), tf.float32)),
        _tensors((targets, outputs)),
        fn_output_signature=tf.float32,
    )


def metric_by_example(metric: keras.metrics.Metric, targets: Any, outputs: Any) -> tf.Tensor:
    """Returns a metric's result for each example by itself, float32, shape (N,)."""

    def one(pair: tuple[Any, Any]) -> tf.Tensor:
        metric.reset_state()
        metric.update_state(*_batch_of_one(pair))
        return tf.reduce_mean(tf.cast(metric.result(), tf.float32))

    return tf.map_fn(one, _tensors((targets, outputs)), fn_output_signature=tf.float32, parallel_iterations=1)


def _tensors(nested: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, nested)


def _batch_of_one(example: Any) -> Any:
    return tf.nest.map_structure(lambda x: x[None], example)
