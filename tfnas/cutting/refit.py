"""Refits a network right after the cut, so that its layers give what those of the full network gave.

A layer that reads fewer channels than in the full network computes something else. Layer by layer, in the network's
order, a ridge regression finds the kernel and the bias with which it comes closest to what the full network's layer
gives, from the inputs that it has in the cut network, whose layers before it are refitted already (docs/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.cutting import ridge
from tfnas.cutting.activations import Activations
from tfnas.data import inputs
from tfnas.graph.channels import Flow, Graph, deep
from tfnas.layers import BatchNormalization, Convolution
from tfnas.layers.base import Node

NUM_EXAMPLES = 1_000
_BATCH_ELEMENTS = 2**22  # of the largest output of a batch
_ROWS = 20_000  # of a regression, at least where there are as many positions
_ROWS_PER_INPUT = 10
_MOST_INPUTS = 6_000  # of a regression, whose sums hold the square of it


def refit(
    graph: Graph,
    architecture: Mapping[str, np.ndarray],
    model: keras.Model,
    images: Any,
    num_examples: int = NUM_EXAMPLES,
) -> keras.Model:
    """Refits a network that was cut from the full one.

    Convolutions and dense layers (also transposed and separable ones) that read fewer channels than in the full network
    get a new kernel and bias; every normalization after that gets statistics that differ from the full network's by as
    much as its inputs do. Frozen layers stay as they are; so do grouped convolutions and kernels with more than 6,000
    weights for each output channel.

    Both networks are computed once, and what their layers give for all examples lies in temporary files until it has
    been read; memory holds one batch and the sums of one layer, twice the square of its weights for each output
    channel.

    Args:
        graph: of the full network, with its weights and statistics.
        architecture: by which `model` was cut.
        model: the network that `cut` made; not changed.
        images: some hundred to thousand examples as the network sees them in use, without labels or with ones that are
            ignored; see `tfnas.data.inputs.one_batch`.
        num_examples: how many of them are used at most, the first ones.

    Returns:
        The refitted network.

    Raises:
        UserError: if the model was not cut by this architecture, or for fewer than two examples, or ones that do not
            fit the model.
    """
    examples = inputs.read_inputs(images, model, "refit", num_examples)
    if len(examples[0]) < 2:
        raise UserError("refit: some hundred examples expected, and at least two. Received: one")
    copy = _copied(model)
    _Refit(graph, graph.flow(architecture), Graph(copy), examples).run()
    return copy


def _copied(model: keras.Model) -> keras.Model:
    with deep():
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        for layer in copy._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()
    return copy


class _Pair(NamedTuple):
    """A layer of the cut network and the same layer of the full one.

    Attributes:
        cut, full: the nodes.
        channels: which of the full layer's output channels the cut one has.
    """

    cut: Any
    full: Any
    channels: np.ndarray


class _Refit:
    """Walks through the cut network's layers in order; see `refit`."""

    def __init__(self, graph: Graph, flow: Flow, cut: Graph, examples: Sequence[np.ndarray]):
        self._rng = np.random.default_rng(0)
        self._num_examples = len(examples[0])
        readers: dict[int, list[Node]] = {}
        for node in cut.nodes:
            for j in node.inputs:
                readers.setdefault(j, []).append(node)
        # The mean of what these give makes no difference.
        self._centered = {cut.nodes[j].name for j, found in readers.items() if all(map(_is_renewed, found))}
        self._pairs = [pair for pair in _pairs(graph, flow, cut) if _is_renewed(pair.cut) or _is_refitted(pair, flow)]
        size = max(math.prod(n or 1 for n in (*node.spatial, node.num_channels)) for node in graph.nodes)
        batch_size = min(max(1, _BATCH_ELEMENTS // size), 256)
        self._cut = Activations(cut, examples, batch_size, [pair.cut.inputs[0] for pair in self._pairs])
        self._full = Activations(graph, examples, batch_size, [pair.full.inputs[0] for pair in self._pairs])

    def run(self) -> None:
        """Refits all layers."""
        for pair in self._pairs:
            if isinstance(pair.cut, BatchNormalization):
                self._renew_statistics(pair)
            else:
                self._refit_kernel(pair)

    def _renew_statistics(self, pair: _Pair) -> None:
        """Shifts and scales a normalization's statistics as its input is shifted and scaled."""
        layer, full = pair.cut.inner, pair.full.inner
        mean, variance = _moments(self._cut.read(pair.cut.inputs[0]))
        full_mean, full_variance = (part[pair.channels] for part in _moments(self._full.read(pair.full.inputs[0])))
        old_mean, old_variance = (
            np.asarray(v, np.float64)[pair.channels] for v in (full.moving_mean, full.moving_variance)
        )
        scale = (variance + layer.epsilon) / (full_variance + full.epsilon)
        new_mean = mean + (old_mean - full_mean) * np.sqrt(scale)
        new_variance = np.maximum((old_variance + full.epsilon) * scale - layer.epsilon, 0)
        if np.isfinite(new_mean).all() and np.isfinite(new_variance).all():
            layer.moving_mean.assign(new_mean)
            layer.moving_variance.assign(new_variance)

    def _refit_kernel(self, pair: _Pair) -> None:
        """Fits a layer's kernel and bias to what the full network's layer gives, up to their activation."""
        cut, full = pair.cut, pair.full
        matrix, bias = cut.matrix.astype(np.float64), _bias(cut)
        target, target_bias = full.matrix[:, pair.channels].astype(np.float64), _bias(full)[pair.channels]
        intercept = cut.inner.use_bias or cut.name in self._centered
        halves = ridge.Sums.zeros(*matrix.shape), ridge.Sums.zeros(*matrix.shape)
        rows = max(_ROWS, _ROWS_PER_INPUT * len(matrix))
        first = 0
        for own, wanted in zip(self._cut.read(cut.inputs[0]), self._full.read(full.inputs[0]), strict=True):
            windows = [_Windows(node, x) for node, x in ((cut, own), (full, wanted))]
            count = min(windows[0].num_positions, math.ceil(rows / self._num_examples))
            positions = self._rng.choice(windows[0].num_positions, count, replace=False)
            for half, sums in enumerate(halves):
                some = slice((first + half) % 2, None, 2)
                x, full_x = (w.rows(some, positions) for w in windows)
                sums.add(x, full_x @ target + target_bias - (x @ matrix + bias))
            first += len(own)
        change, offset = ridge.fitted(halves, intercept)
        if np.isfinite(change).all() and np.isfinite(offset).all():
            cut.refit(matrix + change, bias + offset)


def _pairs(graph: Graph, flow: Flow, cut: Graph) -> Iterator[_Pair]:
    """Layers of the cut network that may be refitted, in its order."""
    for node in cut.nodes:
        if not isinstance(node, Convolution | BatchNormalization):
            continue
        number = graph.index.get(node.inner.name)  # parts of a deep network are nested models, whose names come before
        if number is None or flow.held(number).size != node.num_channels:
            raise UserError(
                f"refit: a network cut by this architecture expected. Received: one with the layer '{node.name}' of "
                f"{node.num_channels} channels"
            )
        yield _Pair(node, graph.nodes[number], flow.held(number))


def _is_renewed(node: Node) -> bool:
    return isinstance(node, BatchNormalization) and not node.frozen


def _is_refitted(pair: _Pair, flow: Flow) -> bool:
    cut, number = pair.cut, flow.graph.index[pair.full.name]
    trainable = isinstance(cut, Convolution) and cut.inner.trainable
    return trainable and not flow.reads(number).all() and len(cut.matrix) <= _MOST_INPUTS


def _bias(node: Any) -> np.ndarray:
    layer = node.inner
    return np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(node.num_channels)


def _moments(batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel, float64, shape (C,)."""
    count, sums, squares = 0, 0.0, 0.0
    for batch in batches:
        rows = np.asarray(batch, np.float64).reshape(-1, batch.shape[-1])
        count += len(rows)
        sums = sums + rows.sum(0)
        squares = squares + (rows * rows).sum(0)
    mean = np.asarray(sums) / count
    return mean, np.maximum(np.asarray(squares) / count - mean * mean, 0)


class _Windows:
    """Windows of one batch that a layer's kernel is applied to.

    Args:
        node: the layer.
        x: its input.

    Attributes:
        num_positions: at which the kernel is applied to one example.
    """

    def __init__(self, node: Any, x: Any):
        outputs = node.inner.compute_output_shape(tuple(x.shape))[1:-1]
        self._x = np.asarray(node.read_by_matrix(x))
        self._windows = node.windows(self._x.shape[1:-1], outputs)
        self._shape = tuple(len(window) for window in self._windows)
        self.num_positions = math.prod(self._shape)

    def rows(self, examples: slice, positions: np.ndarray) -> np.ndarray:
        """Values that the kernel reads, float64, shape (examples x positions, elements of the kernel x channels)."""
        at = np.unravel_index(positions, self._shape) if self._shape else ()
        flat, inside = np.zeros((len(positions), 1), int), np.ones((len(positions), 1), bool)
        for window, place, size in zip(self._windows, at, self._x.shape[1:-1], strict=True):
            read = window[place][:, None, :]  # [positions, 1, elements along this axis]
            flat = (flat[:, :, None] * size + read).reshape(len(positions), -1)
            inside = (inside[:, :, None] & (read >= 0)).reshape(len(positions), -1)
        x = self._x[examples]
        values = x.reshape(len(x), -1, x.shape[-1])[:, np.where(inside, flat, 0)]
        values = np.where(inside[..., None], values, 0).astype(np.float64)
        return values.reshape(len(x) * len(positions), -1)
