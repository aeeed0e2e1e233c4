"""Batch-normalization statistics of one architecture, instead of those of all architectures drawn in training.

The moving statistics of a search are those of relaxed, random gates. Under one hard mask a layer's inputs have another
distribution, and statistics are recomputed from a batch of training images (arXiv 1904.00420 does so for each path of a
single-path supernet).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.data import inputs
from tfnas.gating.supernet import Supernet
from tfnas.graph.channels import Graph
from tfnas.layers import BatchNormalization
from tfnas.layers.records import Weights
from tfnas.search_space.architecture import Architecture

Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]


def with_statistics(weights: Weights, statistics: Statistics) -> Weights:
    """Returns `weights` with other means and variances for some normalizations."""
    return {
        name: {**values, "moving_mean": statistics[name][0], "moving_variance": statistics[name][1]}
        if name in statistics
        else values
        for name, values in weights.items()
    }


def initial_share(model: keras.Model, steps: int) -> float:
    """The share of their initial values in a network's moving statistics after so many steps.

    Args:
        model: a plain network. Frozen normalizations are ignored.
        steps: of its training.

    Returns:
        The largest `momentum ** steps` of its normalizations, in [0, 1]; 0 if there is none.
    """
    return max((layer.momentum**steps for layer in _norms(model)), default=0.0)


def recompute_statistics(model: keras.Model, images: Any) -> None:
    """Replaces the moving statistics of a plain network's normalizations by those of one batch.

    Args:
        model: changed in place, except for frozen normalizations.
        images: training images, augmented as in training, shape (batch, ..., channels).
    """
    moving = set(_norms(model))
    momenta = {layer: layer.momentum for layer in _all_norms(model)}
    try:
        for layer in momenta:
            # The next call's statistics replace the moving ones. For a layer called with training=False, which Keras
            # would update as well, they change nothing.
            layer.momentum = 0.0 if layer in moving else 1.0
        model(images, training=True)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Normalizations that are not frozen."""
    return [node.inner for node in Graph(model).nodes if isinstance(node, BatchNormalization) and not node.frozen]


def _all_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


class Recalibration:
    """Computes batch-normalization statistics of a supernet under any architecture.

    Frozen normalizations keep theirs: those that are not trainable, and those that were called with training=False,
    directly or in a nested model.

    After `apply(architecture)`, inference under that architecture and a subnet cut for it use these statistics.

    Args:
        supernet: its weights at the time of a call are used.
        images: one batch of training images, augmented as in training, shape (batch, ..., channels); for several
            inputs, arrays in the structure of the model's inputs. Or a tuple (images, labels), or a data set or other
            iterable of such batches, of which the first is used; see `tfnas.data.inputs.one_batch`.

    Raises:
        UserError: if the images do not fit the model.
    """

    def __init__(self, supernet: Supernet, images: Any):
        self._supernet = supernet
        given = inputs.one_batch(images, supernet.network, "Recalibration")
        self._inputs = dict(zip(supernet.graph.inputs, given, strict=True))
        self._program = tf.function(self._moments)

    def statistics(self, architecture: Architecture) -> Statistics:
        """Mean and variance of the inputs of every normalization that is not frozen, by node, float32, shape (C,)."""
        masks = {name: tf.constant(mask, tf.float32) for name, mask in architecture.items()}
        return {name: (mean.numpy(), variance.numpy()) for name, (mean, variance) in self._program(masks).items()}

    def apply(self, architecture: Architecture) -> None:
        """Assigns these statistics to the supernet's own normalizations."""
        graph = self._supernet.graph
        for name, (mean, variance) in self.statistics(architecture).items():
            layer = graph.nodes[graph.index[name]].inner
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)

    def _moments(self, masks: Mapping[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        values: list[tf.Tensor] = []
        found = {}
        for number, node in enumerate(self._supernet.graph.nodes):
            tensors = [values[i] for i in node.inputs]
            if node.gated:
                tensors = [tensors[0] * masks[node.name]]
            if number in self._inputs:
                values.append(self._inputs[number])
            elif isinstance(node, BatchNormalization) and not node.frozen:
                (x,), layer = tensors, node.inner
                mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
                found[node.name] = (mean, variance)
                scale = tf.cast(tf.convert_to_tensor(layer.gamma), tf.float32) if layer.scale else None
                offset = tf.cast(tf.convert_to_tensor(layer.beta), tf.float32) if layer.center else None
                values.append(tf.nn.batch_normalization(x, mean, variance, offset, scale, layer.epsilon))
            else:
                values.append(node.infer(tensors))
        return found
