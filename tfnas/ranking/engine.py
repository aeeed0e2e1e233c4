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

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.data import inputs
from tfnas.gating.supernet import Supernet
from tfnas.graph.folding import Folding, weights_of
from tfnas.layers.records import Weights
from tfnas.ranking import compiled_network
from tfnas.ranking.losses import LOSS, Criterion
from tfnas.ranking.recalibration import Recalibration, without_statistics
from tfnas.search_space.architecture import Architecture

_FED_BYTES = 256e6  # cached weights of candidates
_STATISTICS_BYTES = 64e6  # cached recalibrated statistics
_THREADS = 2  # of each device: one computes while the other prepares a candidate, or its layers leave a core idle
_STATISTICS = tf.TensorSpec((None,))
# Before TensorFlow 2.21, threads that normalize at once on a CPU corrupt each other's memory
# (tensorflow/tensorflow#99852).
_SAFE_VERSION = (2, 21)


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
        metric: name of a compiled metric to compute besides losses and accuracies (see `Criterion`).

    Attributes:
        names: names of the figures of each example (see `Criterion`).
        directions: whether higher or lower is better, by name of a metric (see `Criterion`).
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
        metric: str = LOSS,
    ):
        self.graph = supernet.graph
        self.batch_size = batch_size
        self._structure = supernet.network.output
        self._examples = inputs.read(examples, supernet.network, "rank")
        self._order = np.arange(self.num_examples)
        if seed is not None:
            self._order = np.random.default_rng(seed).permutation(self.num_examples)
        self._criterion = Criterion(supernet, self._examples, metric=metric)
        self.names, self.largest = self._criterion.names, self._criterion.largest
        self.directions = self._criterion.directions
        devices: Sequence[str | None] = (None,) if strategy is None else strategy.extended.worker_devices
        self._devices = [device for device in devices for _ in range(_THREADS)]
        self._weights: Weights = weights_of(self.graph, np.float32)
        self._recalibration = recalibration
        names = recalibration.names if recalibration is not None else frozenset()
        # A race returns to its candidates at every look, and statistics are kept in the order of their last use.
        self._statistics: dict[str, list[tf.Tensor]] = {}
        self._changing_statistics = threading.Lock()
        version = tuple(map(int, tf.__version__.split(".")[:2]))
        self._normalizing: Any = contextlib.nullcontext() if version >= _SAFE_VERSION else threading.Lock()
        size = sum(self._weights[name]["moving_mean"].nbytes * 2 for name in names)
        self._most_statistics = int(_STATISTICS_BYTES / max(size, 1)) + 1
        self._weights = without_statistics(self._weights, names)
        self._segments = compiled_network.segments(self.graph, self._examples.take(slice(0, 1)).inputs, names)
        # The output of a segment is computed with all channels, so that sharing it does not depend on what follows.
        self._ends = [segment.last for segment in self._segments[:-1]]
        self._programs = self._traced()
        if recalibration is not None:
            recalibration.trace()  # once, not in each thread
        self._num_kept = int(np.clip(_FED_BYTES / _kernel_bytes(self._weights), 1, 128))

    @property
    def num_examples(self) -> int:
        """Total number of examples."""
        return len(self._examples)

    def evaluate(
        self, architectures: Sequence[Architecture], start: int = 0, stop: int | None = None
    ) -> Iterator[Evaluation]:
        """Evaluates architectures on the examples from `start` to `stop`, one batch at a time.

        Within a batch, architectures are ordered by their masks, so that shared segments are found. Several are
        evaluated at a time; the evaluations of each come in order.

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
            with ThreadPoolExecutor(len(work)) as pool:
                ahead = {pool.submit(next, evaluations, None): evaluations for evaluations in work}
                while ahead:
                    for done in wait(ahead, return_when=FIRST_COMPLETED).done:
                        evaluations = ahead.pop(done)
                        if (evaluation := done.result()) is not None:
                            ahead[pool.submit(next, evaluations, None)] = evaluations
                            yield evaluation

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
        with tf.device(device):
            statistics = self._calibrated(candidates)
        for first in range(start, stop, self.batch_size):
            last = min(first + self.batch_size, stop)
            given, truth = self._tensors(self._examples.take(self._order[first:last]))
            keys: list[bytes] = []  # keys of the last computed segments
            results: list[Any] = [given]
            for (number, _), candidate, known in zip(chosen, candidates, statistics, strict=True):
                common = _shared(keys, candidate.keys)
                del results[common + 1 :]
                with tf.device(device):
                    for j in range(common, len(self._segments)):
                        results.append(self._run(j, results[-1], truth, candidate.feed(j), known[j]))
                keys = candidate.keys
                figures, outputs = keras.tree.map_structure(np.asarray, results[-1])
                yield Evaluation(number, first, figures, keras.tree.pack_sequence_as(self._structure, outputs))

    def _calibrated(self, candidates: Sequence[_Candidate]) -> list[list[tf.Tensor]]:
        """Returns each candidate's statistics, by segment; candidates are in the order of their masks."""
        none = tf.zeros(0)
        if self._recalibration is None:
            return [[none] * len(self._segments)] * len(candidates)
        keys: list[bytes] = []
        results: list[Any] = [(self._recalibration.inputs, none)]
        found: dict[str, list[tf.Tensor]] = {}
        for candidate in candidates:
            known = found.get(candidate.digest) or self._statistics.get(candidate.digest)
            if known is not None:
                found[candidate.digest] = known
                continue
            common = _shared(keys, candidate.keys)
            del results[common + 1 :]
            for j in range(common, len(self._segments)):
                with self._normalizing, _no_abort():
                    results.append(self._recalibration.calibrate(j, results[-1][0], candidate.feed(j)))
            keys = candidate.keys
            found[candidate.digest] = [statistics for _, statistics in results[1:]]
        with self._changing_statistics:
            for digest, statistics in found.items():  # those used last are kept longest
                self._statistics.pop(digest, None)
                self._statistics[digest] = statistics
            for digest in list(self._statistics)[: -self._most_statistics]:
                del self._statistics[digest]
        return [found[candidate.digest] for candidate in candidates]

    def _run(
        self,
        j: int,
        tensors: list[tf.Tensor],
        truth: dict[str, Any],
        packed: list[tf.Tensor],
        statistics: tf.Tensor,
    ) -> Any:
        with _no_abort():
            if j < len(self._segments) - 1:
                return self._programs[j](tensors, packed, statistics)
            return self._programs[j](tensors, packed, statistics, truth)

    def _traced(self) -> list[Any]:
        """Traces the program of every segment."""
        tensors, truth = keras.tree.map_structure(
            lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), self._tensors(self._examples.take(slice(0, 1)))
        )
        programs = []
        for segment in self._segments[:-1]:
            run = tf.function(segment.run, autograph=False)
            program = run.get_concrete_function(tensors, segment.packing.signature, _STATISTICS)
            programs.append(program)
            tensors = [tf.TensorSpec(x.shape, x.dtype) for x in program.structured_outputs]
        last = self._segments[-1]

        def judge(tensors: Any, packed: Any, statistics: tf.Tensor, truth: dict[str, Any]) -> Any:
            outputs = [tf.cast(x, tf.float32) for x in last.run(tensors, packed, statistics)]
            return self._criterion(outputs, truth["labels"], truth.get("weights")), outputs

        judged = tf.function(judge, autograph=False)
        return [*programs, judged.get_concrete_function(tensors, last.packing.signature, _STATISTICS, truth)]

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
        digest: of the architecture.
        keys: for each segment, everything that its output depends on, except the examples.
    """

    def __init__(self, engine: Engine, architecture: Architecture):
        self.digest = architecture.digest()
        self._segments = engine._segments
        flow = engine.graph.flow(architecture, linked=True, read=engine._ends)
        self._folding = Folding(flow, engine._weights)
        self._fed: dict[int, list[tf.Tensor]] = {}
        self.keys: list[bytes] = []
        key = b""
        for segment in self._segments:
            masks = [flow.live[unit.i] for unit in segment.units]
            masks += [flow.keep[unit.name] for unit in segment.units if unit.name in flow.keep]
            key += np.packbits(np.concatenate(masks)).tobytes()
            self.keys.append(key)

    def feed(self, j: int) -> list[tf.Tensor]:
        """Returns the inputs of the program of segment `j`."""
        if j not in self._fed:
            self._fed[j] = self._segments[j].feed(self._folding.flow, self._folding)
        return self._fed[j]


@contextlib.contextmanager
def _no_abort() -> Iterator[None]:
    """Explains what TensorFlow says when it aborts."""
    try:
        yield
    except tf.errors.AbortedError as error:
        # Observed for 1x1 convolutions from one channel to one (TensorFlow 2.21).
        raise UserError(
            "rank: TensorFlow aborted, as oneDNN's convolutions sometimes do; set the environment variable "
            f"TF_ENABLE_ONEDNN_OPTS=0 and run again. TensorFlow says: {' '.join(error.message.split())[:200]}"
        ) from error


def _shared(keys: Sequence[bytes], others: Sequence[bytes]) -> int:
    """Returns how many keys are the same from the first on."""
    return next((j for j, (a, b) in enumerate(zip(keys, others, strict=False)) if a != b), len(keys))


def _masks(architecture: Architecture) -> bytes:
    return b"".join(np.packbits(mask).tobytes() for mask in architecture.values())


def _kernel_bytes(weights: Weights) -> int:
    return sum(array.nbytes for variables in weights.values() for array in variables.values())
