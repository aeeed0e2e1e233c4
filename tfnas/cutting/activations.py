"""Outputs of a network's nodes on all examples, batch by batch, in temporary files for as long as they are needed.

What takes long to compute, or several nodes read, is written to a file, which is deleted after its last reader.
Everything else (normalizations, activations, sums, ...) is computed anew from that for each reader. So each convolution
is computed once, however many layers there are, and memory holds one batch.
"""

from __future__ import annotations

import collections
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas.common.errors import add_filename
from tfnas.graph.channels import Graph


class Activations:
    """Outputs of a graph's nodes at inference.

    Args:
        graph: of a network, whose weights at the time of reading are used.
        examples: one array for each input, in the graph's order, shape (N, ...).
        batch_size: number of examples computed at a time.
        reads: numbers of the nodes that will be read, each as often as it occurs.
    """

    def __init__(self, graph: Graph, examples: Sequence[np.ndarray], batch_size: int, reads: Iterable[int]):
        self._graph = graph
        self._examples = dict(zip(graph.inputs, examples, strict=True))
        self._batches = [
            slice(first, min(first + batch_size, len(examples[0]))) for first in range(0, len(examples[0]), batch_size)
        ]
        consumers = collections.Counter(j for node in graph.nodes for j in node.inputs)
        self._is_kept = [
            bool(node.inputs) and (node.has_kernel or consumers[i] > 1) for i, node in enumerate(graph.nodes)
        ]
        self._files: dict[int, _File] = {}
        self._num_readers: collections.Counter[int] = collections.Counter()
        waiting = list(reads)
        seen: set[int] = set()
        while waiting:
            for k in self._path(waiting.pop())[0]:
                self._num_readers[k] += 1
                if k not in seen:
                    seen.add(k)
                    waiting += self._graph.nodes[k].inputs

    def read(self, i: int) -> Iterator[tf.Tensor]:
        """The output of node `i` for each batch; to be exhausted."""
        for k in self._missing(i):
            self._files[k] = _File(self._computed(k))
            for j in self._graph.nodes[k].inputs:
                self._release(j)
        yield from self._values(i)
        self._release(i)

    def _path(self, i: int) -> tuple[list[int], list[int]]:
        """Nodes with files from which the output of node `i` is computed, and those without, in order."""
        kept, others, waiting = set(), set(), [i]
        while waiting:
            j = waiting.pop()
            if self._is_kept[j]:
                kept.add(j)
            elif j not in others:
                others.add(j)
                waiting += self._graph.nodes[j].inputs
        return sorted(kept), sorted(others)

    def _missing(self, i: int) -> list[int]:
        """Nodes whose files have to be written first, in order."""
        missing: set[int] = set()
        waiting = [i]
        while waiting:
            for k in self._path(waiting.pop())[0]:
                if k not in self._files and k not in missing:
                    missing.add(k)
                    waiting += self._graph.nodes[k].inputs
        return sorted(missing)

    def _values(self, i: int) -> Iterator[Any]:
        kept, others = self._path(i)
        for b, batch in enumerate(self._batches):
            values = {k: tf.convert_to_tensor(self._files[k].read(b)) for k in kept}
            for j in others:
                node = self._graph.nodes[j]
                if node.inputs:
                    values[j] = self._output(j, [values[k] for k in node.inputs])
                else:
                    values[j] = tf.convert_to_tensor(self._examples[j][batch])
            yield values[i]

    def _computed(self, k: int) -> Iterator[Any]:
        """The output of a node that has no file yet."""
        sources = [self._values(j) for j in self._graph.nodes[k].inputs]
        for values in zip(*sources, strict=True):
            yield self._output(k, values)

    def _output(self, i: int, values: Sequence[Any]) -> Any:
        node = self._graph.nodes[i]
        return node.call(node.inner, values, training=False)

    def _release(self, i: int) -> None:
        for k in self._path(i)[0]:
            self._num_readers[k] -= 1
            if not self._num_readers[k]:
                self._files.pop(k).close()


class _File:
    """The batches of one output.

    Args:
        batches: of one dtype, of the same shape but for the examples.
    """

    def __init__(self, batches: Iterable[Any]):
        self._file: Any = tempfile.TemporaryFile()  # open until its last reader is done
        self._places: list[tuple[int, tuple[int, ...]]] = []
        with add_filename(tempfile.gettempdir()):
            for batch in batches:
                array = np.asarray(batch)
                self._dtype = array.dtype
                self._places.append((self._file.tell(), array.shape))
                self._file.write(array.tobytes())

    def read(self, b: int) -> np.ndarray:
        """Batch number `b`."""
        start, shape = self._places[b]
        self._file.seek(start)
        size = math.prod(shape) * self._dtype.itemsize
        return np.frombuffer(self._file.read(size), self._dtype).reshape(shape)

    def close(self) -> None:
        """Deletes the file."""
        self._file.close()
