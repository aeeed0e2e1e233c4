"""A supernet's network as steps of a program that takes any architecture's channels, without being traced again.

A layer's family (`tfnas.layers`) defines what its step is fed for an architecture and what it computes. Dropped layers
are skipped, in chains of those that are there together; tensors hold the channels that `Flow.held` returns, where the
flow is linked. The network is split into segments at the tensors through which everything flows.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tfnas.graph.channels import Flow, Graph
from tfnas.graph.folding import Folding
from tfnas.layers.base import Computation, Fed, Node, Normalizing, Operand
from tfnas.ranking.packing import Packing

_TRUE, _FALSE = np.array(True), np.array(False)
_SAME = {"same": _TRUE, "channels": np.zeros(0, np.int32), "constants": np.zeros(0, np.float32)}
OUTPUT = -1  # number of the first output with its constants written out; the next output's is one less


def segments(graph: Graph, example: Sequence[np.ndarray], calibrated: Collection[str] = ()) -> list[Segment]:
    """All steps in order, cut where one tensor is all that flows on.

    Args:
        graph: of a supernet.
        example: one array for each of its inputs, of the shape that all will have, shape (1, ..., channels).
        calibrated: names of the normalizations whose statistics are not folded into kernels, but given to the programs.

    Returns:
        The first reads the inputs; in each of the others an architecture has a choice, and it reads nothing but the
        output of the one before. The last ends with the model's outputs.
    """
    return [Segment(graph, units) for units in _segments(graph, _units(graph, _tensors(graph, example), calibrated))]


class Segment:
    """Consecutive steps, computed by one program.

    Attributes:
        units: the steps, chain by chain.
        starts: numbers of the nodes whose tensors it is given.
        last: number of the node whose output comes out last.
        packing: of what its units are fed.
    """

    def __init__(self, graph: Graph, units: Sequence[Unit]):
        self._chains = _chained(units)
        self.units = [unit for chain in self._chains for unit in chain]
        self.last = units[-1].last  # not of the last chain, which may be of what nothing reads
        self.starts = graph.inputs if graph.nodes[units[0].reads[0]].inputs == () else units[0].reads[:1]
        self.packing = Packing({unit.name: unit.signature() for unit in self.units})
        self._normalizing = [unit for unit in self.units if unit.computation.normalizes]

    @property
    def normalizations(self) -> list[Node]:
        """The normalizations whose statistics are given, in order."""
        return [unit.computation.normalizes for unit in self._normalizing]

    def feed(self, flow: Flow, folding: Folding) -> list[tf.Tensor]:
        """Returns what `run` and `calibrate` are given for one candidate, as many tensors as `packing` says."""
        for chain in self._chains:
            if len({flow.works(unit.i) for unit in chain}) > 1:
                raise AssertionError(f"engine: '{chain[0].name}' and what follows it are not there together")
        return self.packing.pack({unit.name: unit.feed(flow, folding) for unit in self.units})

    def run(self, tensors: Sequence[tf.Tensor], packed: Sequence[tf.Tensor], statistics: tf.Tensor) -> list[tf.Tensor]:
        """The outputs: of its last node, or all of the model's.

        Args:
            tensors: one for each of `starts`.
            packed: from `feed`.
            statistics: float32, means and then variances of each of `normalizations`, one after the other.
        """
        fed = self.packing.unpack(packed)
        sizes = [tf.size(fed[unit.name]["gamma"]) for unit in self._normalizing for _ in range(2)]
        parts = iter(tf.split(statistics, sizes) if sizes else ())
        for unit in self._normalizing:
            fed[unit.name] |= {"mean": next(parts), "variance": next(parts)}
        return self._computed(tensors, fed, by_batch=False)[0]

    def calibrate(self, tensors: Sequence[tf.Tensor], packed: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The outputs if `normalizations` use the batch's own statistics, and these, as `run` takes them."""
        outputs, statistics = self._computed(tensors, self.packing.unpack(packed), by_batch=True)
        return outputs, tf.concat([tf.zeros(0), *statistics], 0)

    def _computed(
        self, tensors: Sequence[tf.Tensor], fed: Mapping[str, Fed], by_batch: bool
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The outputs of the model, or the one tensor that the next segment begins with; and the batch's statistics."""
        values = dict(zip(self.starts, tensors, strict=True))
        statistics: list[tf.Tensor] = []
        for chain in self._chains:
            values[chain[-1].last], *found = _run(chain, values, fed, by_batch)
            statistics += found
        return [values[unit.last] for unit in self.units if unit.last < 0] or [values[self.last]], statistics


def _run(chain: Sequence[Unit], values: Mapping[int, tf.Tensor], fed: Mapping[str, Fed], by_batch: bool) -> Any:
    """The output of a chain, with no channels if it does not exist; then the statistics of its normalizations."""
    head, last = chain[0], chain[-1]

    def there() -> list[tf.Tensor]:
        inside, statistics = dict(values), []
        for unit in chain:
            inside[unit.last], *found = unit.compute(inside, fed[unit.name], by_batch)
            statistics += found
        return [inside[last.last], *statistics]

    def absent() -> list[tf.Tensor]:
        normalizing = [unit for unit in chain if by_batch and unit.computation.normalizes]
        return [last.absent(tf.shape(values[head.reads[0]])[0]), *[tf.zeros(0)] * (2 * len(normalizing))]

    return tf.cond(fed[head.name]["exists"], there, absent) if head.optional else there()


def _tensors(graph: Graph, example: Sequence[np.ndarray]) -> list[tf.TensorSpec]:
    """Spatial shape and dtype of every node's output, from an example.

    The model's own may leave the image's size open, and a user's layer may be wrong about its dtype.
    """
    given = dict(zip(graph.inputs, example, strict=True))
    values: list[tf.Tensor] = []
    for i, node in enumerate(graph.nodes):
        tensors = [values[j] for j in node.inputs]
        values.append(tf.convert_to_tensor(given[i]) if i in given else node.infer(tensors))
    return [tf.TensorSpec(value.shape[1:-1], value.dtype) for value in values]


def _units(graph: Graph, tensors: Sequence[tf.TensorSpec], calibrated: Collection[str]) -> list[Unit]:
    """The program's steps, in order: a kernel together with the normalization and activation that only it feeds."""
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for i, node in enumerate(graph.nodes):
        for j in node.inputs:
            readers[j].append(i)
    units: list[Unit] = []
    taken: set[int] = set()
    for i, node in enumerate(graph.nodes):
        if not node.inputs or i in taken:
            continue
        unit = Unit(graph, i, tensors, calibrated)
        while len(readers[unit.last]) == 1 and unit.last not in graph.outputs and unit.absorbs(*readers[unit.last]):
            taken.add(unit.last)
        units.append(unit)
    return [*units, *(_Output(graph, i, tensors, number) for number, i in enumerate(graph.outputs))]


def _segments(graph: Graph, units: Sequence[Unit]) -> list[list[Unit]]:
    """Units between tensors that everything flows through; architectures differ in each but the first."""
    steps, outputs = units[: -len(graph.outputs)], units[-len(graph.outputs) :]
    chunks: list[list[Unit]] = [[]]
    for u, unit in enumerate(steps):
        chunks[-1].append(unit)
        made = {earlier.last for earlier in steps[: u + 1]} | set(graph.inputs)
        read = {i for later in (*steps[u + 1 :], *outputs) for i in later.reads}
        if read & made == {unit.last}:
            chunks.append([])
    segments = [[*chunks[0]]]
    for chunk in chunks[1:]:
        if any(graph.chooses(unit.i) for unit in chunk):
            segments.append([])
        segments[-1].extend(chunk)
    segments[-1].extend(outputs)
    return segments


def _chained(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units in chains of which each reads the output of the one before, that nothing else reads, and exists with it."""
    chains: list[list[Unit]] = []
    for unit in units:
        before = next((chain for chain in chains if unit.follows(chain[-1])), None)
        if before is not None and sum(before[-1].last in other.reads for other in units) == 1:
            before.append(unit)
        else:
            chains.append([unit])
    return chains


class Unit:
    """One step of the program: a node, or several that are computed together.

    Attributes:
        name: of its node.
        last: number of the node whose output it makes.
        optional: whether there are architectures without it.
    """

    optional = True

    def __init__(self, graph: Graph, i: int, tensors: Sequence[tf.TensorSpec], calibrated: Collection[str]):
        self.graph = graph
        self.i = self.last = i
        self.node = graph.nodes[i]
        self.name = self.node.name
        self.shape = tuple(tensors[i].shape)
        self._dtype = tensors[i].dtype
        source_shapes = [tuple(tensors[j].shape) for j in self.node.inputs]
        self._bare = all(graph.vanishing[j].all() for j in self.node.inputs)
        self.computation = self.node.computation(self.node, self.shape, source_shapes, calibrated, self._bare)
        sources = [graph.nodes[j] for j in self.node.inputs]
        self.edges = [(_Direct if self.computation.takes_held(source) else _Edge)(source) for source in sources]

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the nodes whose outputs it takes."""
        return self.node.inputs

    def absorbs(self, i: int) -> bool:
        """Whether it computes node `i` too, which alone reads its output."""
        if self.graph.nodes[i].gated or not self.computation.absorbs(self.graph.nodes[i]):
            return False
        self.last = i
        return True

    def follows(self, unit: Unit) -> bool:
        """Whether it reads nothing but the output of `unit`, as it is, and no constant instead if that is missing."""
        return self.reads == (unit.last,) and self._bare and isinstance(self.edges[0], _Direct)

    def signature(self) -> Fed:
        """Returns the signature of the values of `feed`."""
        edges = {f"edge{j}": edge.signature() for j, edge in enumerate(self.edges)}
        return {"exists": tf.TensorSpec((), tf.bool), **edges, **self.computation.signature()}

    @functools.cached_property
    def _nothing(self) -> Fed:
        return {**_nothing(self.signature()), "exists": np.array(False)}

    def feed(self, flow: Flow, folding: Folding) -> Fed:
        """Returns the values for one candidate; missing channels have empty values."""
        if not flow.works(self.i):
            return self._nothing
        x = folding.at(self.i)
        edges = {
            f"edge{j}": edge.feed(flow, folding, self.node.inputs[j], self.computation.wanted(x, j))
            for j, edge in enumerate(self.edges)
        }
        return {"exists": _TRUE, **edges, **self.computation.feed(x)}

    def compute(self, values: Mapping[int, tf.Tensor], fed: Fed, by_batch: bool) -> Sequence[tf.Tensor]:
        """Its output where it exists; if `by_batch`, normalized by the batch's own statistics, and these."""
        sources = enumerate(zip(self.edges, self.node.inputs, strict=True))
        operands = [edge.operand(values[i], fed[f"edge{j}"]) for j, (edge, i) in sources]
        if by_batch and self.computation.normalizes:
            return cast(Normalizing, self.computation).calibrate([operand.tensor() for operand in operands], fed)
        return [self.computation.run(operands, fed)]

    def absent(self, num_examples: tf.Tensor) -> tf.Tensor:
        """Its output where it does not exist."""
        return tf.zeros((num_examples, *self.shape, 0), self._dtype)


class _Edge:
    """Converts the channels of a tensor to those of a reader: usually the same, else gathered, with constants."""

    def __init__(self, source: Node):
        self.source = source

    def signature(self) -> Fed:
        channels = tf.TensorSpec((None,), tf.int32)
        return {"same": tf.TensorSpec((), tf.bool), "channels": channels, "constants": tf.TensorSpec((None,))}

    def feed(self, flow: Flow, folding: Folding, i: int, wanted: np.ndarray | None) -> Fed:
        held = flow.held(i)
        if wanted is None or np.array_equal(held, wanted):
            return _SAME
        there = np.isin(wanted, held)
        # Absent channels are taken from a channel of zeros behind the others.
        channels = np.where(there, np.searchsorted(held, wanted), held.size).astype(np.int32)
        constants = np.where(there, 0.0, folding.constants[i][wanted]).astype(np.float32)
        return {"same": _FALSE, "channels": channels, "constants": constants}

    def __call__(self, x: tf.Tensor, fed: Fed) -> tf.Tensor:
        if not x.dtype.is_floating:
            return x  # a layer that is left whole has made it, with all channels

        if x.shape.rank is None:  # behind a merge with what may be absent
            x = tf.ensure_shape(x, [None] * self.source.rank)

        def gather() -> tf.Tensor:
            zeros = tf.zeros(tf.concat([tf.shape(x)[:-1], [1]], 0), x.dtype)
            padded = tf.concat([x, zeros], -1)
            return tf.gather(padded, fed["channels"], axis=-1) + tf.cast(fed["constants"], x.dtype)

        return tf.cond(fed["same"], lambda: x, gather)

    def operand(self, x: tf.Tensor, fed: Fed) -> Operand:
        """Returns the operand of a computation for the tensor `x`."""

        def absent() -> tf.Tensor:
            return tf.logical_and(tf.equal(tf.shape(x)[-1], 0), tf.logical_not(fed["same"]))

        return Operand(lambda: self(x, fed), absent, fed.get("constants"))


class _Direct(_Edge):
    """An edge whose reader always uses exactly the channels of the tensor."""

    def signature(self) -> Fed:
        return {}

    def feed(self, flow: Flow, folding: Folding, i: int, wanted: np.ndarray | None) -> Fed:
        if wanted is not None and not np.array_equal(flow.held(i), wanted):
            raise AssertionError(f"engine: a reader of '{self.source.name}' wants other channels than it holds")
        return {}

    def __call__(self, x: tf.Tensor, fed: Fed) -> tf.Tensor:
        return x


class _Output(Unit):
    """One of the model's outputs with all its channels, those that are constant included."""

    optional = False

    def __init__(self, graph: Graph, i: int, tensors: Sequence[tf.TensorSpec], number: int):
        self.graph, self.i, self.node, self.shape = graph, i, graph.nodes[i], tuple(tensors[i].shape)
        self.last = OUTPUT - number
        self.name = f"output/{number}"  # no layer's: Keras allows none with a slash
        self._bare = False
        self.computation = Computation(self.node, self.shape, [self.shape])
        self.edges = [_Edge(self.node)]

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.i,)

    def feed(self, flow: Flow, folding: Folding) -> Fed:
        wanted = np.arange(self.node.num_channels)
        return {"exists": _TRUE, "edge0": self.edges[0].feed(flow, folding, self.i, wanted)}

    def compute(self, values: Mapping[int, tf.Tensor], fed: Fed, by_batch: bool) -> Sequence[tf.Tensor]:
        output = self.edges[0](values[self.i], fed["edge0"])
        if self.node.is_open:
            return [output]
        # Keras finds out by the shape what 'accuracy' means.
        return [tf.ensure_shape(output, (None, *self.shape, self.node.num_channels))]


def _nothing(signature: Fed) -> Fed:
    """Empty values for a signature."""
    return tf.nest.map_structure(
        lambda spec: np.zeros([size or 0 for size in spec.shape], spec.dtype.as_numpy_dtype), signature
    )
