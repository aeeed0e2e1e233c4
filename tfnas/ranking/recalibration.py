"""Batch-normalization statistics of one architecture, instead of those of all architectures drawn in training.

The moving statistics of a search are those of relaxed, random gates. Under one hard mask a layer's inputs have another
distribution, and statistics are recomputed from a batch of training images (arXiv 1904.00420 does so for each path of a
single-path supernet).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas.data import inputs
from tfnas.gating.supernet import Supernet
from tfnas.graph.folding import Folding, weights_of
from tfnas.layers import BatchNormalization
from tfnas.layers.records import Weights
from tfnas.ranking import compiled_network
from tfnas.ranking.compiled_network import Segment
from tfnas.search_space.architecture import Architecture

Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]


class Recalibration:
    """Computes batch-normalization statistics of a supernet under any architecture, at the cost of its subnet.

    Frozen normalizations keep theirs: those that are not trainable, and those that were called with training=False,
    directly or in a nested model.

    After `apply(architecture)`, inference under that architecture and a subnet cut for it use these statistics.

    Args:
        supernet: its weights at the time of a call are used; computes in float32 whatever its policy.
        images: one batch of training images, augmented as in training, shape (batch, ..., channels); for several
            inputs, arrays in the structure of the model's inputs. Or a tuple (images, labels), or a data set or other
            iterable of such batches, of which the first is used; see `tfnas.data.inputs.one_batch`.

    Attributes:
        names: names of the normalizations that are not frozen.

    Raises:
        UserError: if the images do not fit the model.
    """

    def __init__(self, supernet: Supernet, images: Any):
        self._graph = supernet.graph
        self._inputs = [tf.convert_to_tensor(x) for x in inputs.one_batch(images, supernet.network, "Recalibration")]
        self.names = frozenset(
            node.name for node in self._graph.nodes if isinstance(node, BatchNormalization) and not node.frozen
        )

    def statistics(self, architecture: Architecture) -> Statistics:
        """Mean and variance of the inputs of every normalization that is not frozen, by node, float32, shape (C,).

        Channels that the architecture does not have keep the supernet's.
        """
        weights = weights_of(self._graph, np.float32)
        flow = self._graph.flow(architecture, linked=True, read=[segment.last for segment in self._segments[:-1]])
        folding = Folding(flow, without_statistics(weights, self.names))
        found = {}
        for node in (self._graph.nodes[self._graph.index[name]] for name in sorted(self.names)):
            (source,) = node.inputs
            mean, variance = (weights[node.name][name].copy() for name in ("moving_mean", "moving_variance"))
            constant = ~flow.explicit[source] & ~flow.absent(source)
            mean[constant], variance[constant] = folding.constants[source][constant], 0
            found[node.name] = mean, variance
        tensors = self._inputs
        for j, segment in enumerate(self._segments):
            tensors, packed = self.calibrate(j, tensors, segment.feed(flow, folding))
            values = np.asarray(packed)
            for node in segment.normalizations:
                channels = node.held(flow.live[self._graph.index[node.name]])
                for array in found[node.name]:
                    array[channels], values = values[: channels.size], values[channels.size :]
        return found

    def apply(self, architecture: Architecture) -> None:
        """Assigns these statistics to the supernet's own normalizations."""
        for name, (mean, variance) in self.statistics(architecture).items():
            layer = self._graph.nodes[self._graph.index[name]].inner
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)

    # Segment by segment, for the engine.

    @property
    def inputs(self) -> list[tf.Tensor]:
        """Returns what the first segment is given."""
        return self._inputs

    def trace(self) -> None:
        """Traces the programs, which the first call of `calibrate` does otherwise."""
        self._programs  # noqa: B018

    def calibrate(
        self, j: int, tensors: Sequence[tf.Tensor], packed: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Computes segment `j` on the images; see `Segment.calibrate`.

        Args:
            j: number of the segment.
            tensors: outputs of the segment before.
            packed: from `Segment.feed`, of this network's segment or of the same one for inputs of another shape.
        """
        return self._programs[j](tensors, packed)

    @functools.cached_property
    def _segments(self) -> list[Segment]:
        return compiled_network.segments(self._graph, [np.asarray(x[:1]) for x in self._inputs], self.names)

    @functools.cached_property
    def _programs(self) -> list[Any]:
        programs = []
        specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in self._inputs]
        for segment in self._segments:
            program = tf.function(segment.calibrate, autograph=False).get_concrete_function(
                specs, segment.packing.signature
            )
            programs.append(program)
            specs = [tf.TensorSpec(x.shape, x.dtype) for x in program.structured_outputs[0]]
        return programs


def without_statistics(weights: Weights, names: Collection[str]) -> Weights:
    """Returns `weights` without the means and variances of some normalizations."""
    gone = ("moving_mean", "moving_variance")
    return {
        name: {key: array for key, array in values.items() if name not in names or key not in gone}
        for name, values in weights.items()
    }
