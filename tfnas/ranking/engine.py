"""Evaluates any architecture of a supernet with programs compiled once, at the cost of its subnet.

Only the inputs of the programs change between candidates: kernels cut to the channels that are kept, with mask and
batch normalization folded in, of any shape; and flags that let a program skip dropped operations. A candidate therefore
costs its own multiply-adds, and nothing is retraced or rebuilt. Convolution, bias and activation are adjacent, so that
TensorFlow fuses them.

The network is split into segments at the tensors through which everything flows. Most gates of a posterior are decided,
so many candidates start with the same layers: they are evaluated in the order of their masks, and the segments that a
candidate shares with the previous one, from the input on, are not recomputed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.data import inputs
from tfnas.gating.recalibration import Recalibration, with_statistics
from tfnas.gating.supernet import Supernet
from tfnas.graph.folding import Folding, weights_of
from tfnas.layers.base import Fed
from tfnas.layers.records import Weights
from tfnas.ranking import compiled_network
from tfnas.ranking.compiled_network import Unit
from tfnas.ranking.losses import Criterion
from tfnas.search_space.architecture import Architecture

_FED_BYTES = 256e6  # cached weights of candidates
_STATISTICS_BYTES = 64e6  # cached recalibrated statistics


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation of one architecture on consecutive examples.

    Attributes:
        number: index of the architecture among those requested.
        start: index of the first example.
        figures: values of `Criterion` for each example, by name, such as 'loss'; float32, shape (examples,).
        outputs: outputs of the network, in the model's structure, float32, shape (examples, ...) each.
    """

    number: int
    start: int
    figures: dict[str, np.ndarray]
    outputs: Any


class Engine:
    """Evaluates architectures of one supernet on one set of examples.

    Args:
        supernet: compiled with the loss to rank by. Uses its current weights, and computes in float32 whatever its
            policy.
        examples: inputs, labels and optional sample weights, in any form that `tfnas.data.inputs.read` accepts. Read
            once.
        batch_size: number of examples computed at a time.
        seed: seed of a random order of the examples; None keeps their order.
        strategy: a `tf.distribute` strategy whose devices evaluate different candidates in parallel. None means one
            device.
        recalibration: recomputes normalization statistics for each candidate; None keeps the supernet's.

    Attributes:
        names: names of the figures of each example (see `Criterion`).
        largest: upper bound of the loss of an example; None if unknown (see `Criterion`).

    Raises:
        UserError: if the supernet is not compiled, there are no examples, or they do not fit the model or the loss.
    """

    def __init__(
        self,
        supernet: Supernet,
        examples: Any,
        batch_size: int = 250,
        seed: int | None = None,
        strategy: tf.distribute.Strategy | None = None,
        recalibration: Recalibration | None = None,
    ):
        self.graph = supernet.graph
        self.batch_size = batch_size
        self._structure = supernet.network.output
        self._examples = inputs.read(examples, supernet.network, "rank")
        self._order = np.arange(self.num_examples)
        if seed is not None:
            self._order = np.random.default_rng(seed).permutation(self.num_examples)
        self._criterion = Criterion(supernet, self._examples)
        self.names, self.largest = self._criterion.names, self._criterion.largest
        self._devices: Sequence[str | None] = (None,) if strategy is None else strategy.extended.worker_devices
        self._weights: Weights = weights_of(self.graph, np.float32)
        self._statistics = None
        if recalibration is not None:
            # A race returns to its candidates at every look.
            size = sum(values["moving_mean"].nbytes * 2 for values in self._weights.values() if "moving_mean" in values)
            self._statistics = functools.lru_cache(int(_STATISTICS_BYTES / max(size, 1)) + 1)(recalibration.statistics)
        self._segments = compiled_network.segments(self.graph, self._examples.take(slice(0, 1)).inputs)
        # The output of a segment is computed with all channels, so that sharing it does not depend on what follows.
        self._ends = [segment[-1].last for segment in self._segments[:-1]]
        self._programs = [self._program(segment) for segment in self._segments]
        self._num_kept = int(np.clip(_FED_BYTES / _kernel_bytes(self._weights), 1, 128))

    @property
    def num_examples(self) -> int:
        """Total number of examples."""
        return len(self._examples)

    def evaluate(
        self, architectures: Sequence[Architecture], start: int = 0, stop: int | None = None
    ) -> Iterator[Evaluation]:
        """Evaluates architectures on the examples from `start` to `stop`, one batch at a time.

        Within a batch, architectures are ordered by their masks, so that shared segments are found.

        Raises:
            UserError: if an architecture is not one of this supernet.
        """
        end = self.num_examples if stop is None else stop
        numbers = sorted(range(len(architectures)), key=lambda i: _masks(architectures[i]))
        for first in range(0, len(numbers), self._num_kept):
            chosen = [(i, architectures[i]) for i in numbers[first : first + self._num_kept]]
            shares = np.array_split(np.arange(len(chosen)), len(self._devices))
            work = [
                self._on_device(device, [chosen[i] for i in share], start, end)
                for device, share in zip(self._devices, shares, strict=True)
                if share.size
            ]
            if len(work) == 1:
                yield from work[0]
                continue
            with ThreadPoolExecutor(len(work)) as pool:
                for done in pool.map(lambda evaluations: list(evaluations), work):
                    yield from done

    def labels(self, start: int = 0, stop: int | None = None) -> Any:
        """Returns the labels of the examples from `start` to `stop`, in their original structure."""
        return self._examples.take(self._order[start:stop]).labels

    def outputs(self, architecture: Architecture, start: int = 0, stop: int | None = None) -> Any:
        """Returns the network's outputs for one architecture, in its structure, float32, shape (stop - start, ...)
        each."""
        parts = [e.outputs for e in self.evaluate([architecture], start, stop)]
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

    def _on_device(
        self, device: str | None, chosen: Sequence[tuple[int, Architecture]], start: int, stop: int
    ) -> Iterator[Evaluation]:
        candidates = [_Candidate(self, architecture) for _, architecture in chosen]
        for first in range(start, stop, self.batch_size):
            last = min(first + self.batch_size, stop)
            given, truth = self._tensors(self._examples.take(self._order[first:last]))
            keys: list[bytes] = []  # keys of the last computed segments
            results: list[Any] = [given]
            for (number, _), candidate in zip(chosen, candidates, strict=True):
                common = 0
                while common < len(keys) and keys[common] == candidate.keys[common]:
                    common += 1
                del results[common + 1 :]
                with tf.device(device):
                    for j in range(common, len(self._segments)):
                        results.append(self._run(j, results[-1], truth, candidate.feed(j)))
                keys = candidate.keys
                figures, outputs = keras.tree.map_structure(np.asarray, results[-1])
                yield Evaluation(number, first, figures, keras.tree.pack_sequence_as(self._structure, outputs))

    def _run(self, j: int, tensors: list[tf.Tensor], truth: dict[str, Any], fed: dict[str, Fed]) -> Any:
        try:
            return self._programs[j](tensors, truth, fed)
        except tf.errors.AbortedError as error:
            # Observed for 1x1 convolutions from one channel to one (TensorFlow 2.21).
            raise UserError(
                "rank: TensorFlow aborted, as oneDNN's convolutions sometimes do; set the environment variable "
                f"TF_ENABLE_ONEDNN_OPTS=0 and run again. TensorFlow says: {' '.join(error.message.split())[:200]}"
            ) from error

    def _program(self, segment: Sequence[Unit]) -> Any:
        """Traces the program of a segment."""

        first, last = segment is self._segments[0], segment is self._segments[-1]
        starts = self.graph.inputs if first else segment[0].reads[:1]

        def run(tensors: list[tf.Tensor], truth: dict[str, Any], fed: dict[str, Fed]) -> Any:
            values = dict(zip(starts, tensors, strict=True))
            for unit in segment:
                values[unit.last] = unit(values, fed[unit.name])
            if not last:
                return [values[segment[-1].last]]
            outputs = [tf.cast(values[compiled_network.OUTPUT - k], tf.float32) for k in range(len(self.graph.outputs))]
            return self._criterion(outputs, truth["labels"], truth.get("weights")), outputs

        tensors, truth = keras.tree.map_structure(
            lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), self._tensors(self._examples.take(slice(0, 1)))
        )
        if not first:
            tensors = [tf.TensorSpec((None, *segment[0].computation.source_shapes[0], None))]
        fed = {unit.name: unit.signature() for unit in segment}
        return tf.function(run).get_concrete_function(tensors, truth, fed)

    @staticmethod
    def _tensors(examples: inputs.Examples) -> tuple[list[tf.Tensor], dict[str, Any]]:
        """Returns the program inputs of examples: inputs, and labels with weights."""
        truth = {"labels": examples.labels, "weights": examples.weights}
        return keras.tree.map_structure(
            tf.convert_to_tensor, (examples.inputs, {key: part for key, part in truth.items() if part is not None})
        )


class _Candidate:
    """Program inputs for one architecture.

    Attributes:
        keys: for each segment, everything that its output depends on, except the examples.
    """

    def __init__(self, engine: Engine, architecture: Architecture):
        self._segments = engine._segments
        flow = engine.graph.flow(architecture, linked=True, read=engine._ends)
        weights = engine._weights
        if engine._statistics:
            weights = with_statistics(weights, engine._statistics(architecture))
        self._folding = Folding(flow, weights)
        self._fed: dict[int, dict[str, Fed]] = {}
        self.keys: list[bytes] = []
        key = b""
        for segment in self._segments:
            for unit in segment:
                key += np.packbits(flow.live[unit.i]).tobytes()
                key += np.packbits(flow.keep[unit.name]).tobytes() if unit.name in flow.keep else b""
            self.keys.append(key)

    def feed(self, j: int) -> dict[str, Fed]:
        """Returns the inputs of the program of segment `j`."""
        if j not in self._fed:
            flow = self._folding.flow
            fed = {unit.name: unit.feed(flow, self._folding) for unit in self._segments[j]}
            self._fed[j] = tf.nest.map_structure(tf.convert_to_tensor, fed)
        return self._fed[j]


def _masks(architecture: Architecture) -> bytes:
    return b"".join(np.packbits(mask).tobytes() for mask in architecture.values())


def _kernel_bytes(weights: Weights) -> int:
    return sum(array.nbytes for variables in weights.values() for array in variables.values())
