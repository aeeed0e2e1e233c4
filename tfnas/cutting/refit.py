"""Refits a network right after the cut, so that its layers give what those of the full network gave.

A layer that reads fewer channels than in the full network computes something else, and so do all that follow. Layer by
layer, in the network's order, a ridge regression finds the kernel and the bias with which each comes closest to what
the full network's layer gives, from the inputs that it has in the cut network, whose layers before it are refitted
already (docs/method.md).
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
from tfnas.graph.channels import Flow, Graph
from tfnas.graph.models import deep
from tfnas.layers import BatchNormalization, Convolution
from tfnas.layers.base import Node

NUM_EXAMPLES = 1_000
_BATCH_ELEMENTS = 2**22  # of the largest output of a batch
_LEAST_VARIANCE = 1e-8  # of a channel that varies, as a share of the variance in the full network
_ROWS = 20_000  # of a regression, at least where there are as many positions
_ROWS_PER_INPUT = 10
_PART = 2**22  # elements of rows that are added at a time
_MOST_INPUTS = 6_000  # of a regression, whose sums hold the square of it


def refit(
    graph: Graph,
    architecture: Mapping[str, np.ndarray],
    model: keras.Model,
    images: Any,
    num_examples: int = NUM_EXAMPLES,
) -> keras.Model:
    """Refits a network that was cut from the full one.

    From the first layer on that reads fewer channels than in the full network, convolutions and dense layers (also
    transposed and separable ones) get another kernel and bias, and batch normalizations get the statistics of the cut
    network, another factor and another offset. Frozen layers stay as they are; so do depthwise and grouped convolutions
    and kernels with more than 6,000 weights for each output channel.

    Each convolution of both networks is computed once, and what it gives for all examples lies in temporary files until
    it has been read. Memory holds one batch and the sums of one layer: twice the square of its number of weights for
    each output channel, in float64.

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
    with np.errstate(all="ignore"):  # what is not finite in the full network changes nothing
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
        self._centered = {cut.nodes[j].name for j, found in readers.items() if all(map(_removes_mean, found))}
        changed = _changed(graph, flow)
        self._pairs = [
            pair for pair in _pairs(graph, flow, cut) if changed[graph.index[pair.full.name]] and _is_refitted(pair.cut)
        ]
        size = max(math.prod(n or 1 for n in (*node.spatial, node.num_channels)) for node in graph.nodes)
        batch_size = min(max(1, _BATCH_ELEMENTS // size), 256)
        self._cut = Activations(cut, examples, batch_size, [pair.cut.inputs[0] for pair in self._pairs])
        self._full = Activations(graph, examples, batch_size, [pair.full.inputs[0] for pair in self._pairs])

    def run(self) -> None:
        """Refits all layers."""
        for pair in self._pairs:
            if isinstance(pair.cut, BatchNormalization):
                self._refit_normalization(pair)
            else:
                self._refit_kernel(pair)

    def _refit_normalization(self, pair: _Pair) -> None:
        """Gives a normalization exact statistics, and the factor and offset that come closest to the full one's output.

        One without factor or offset keeps the distance of its statistics from the exact ones, in standard deviations.
        """
        layer, full = pair.cut.inner, pair.full.inner
        count, sums = 0, np.zeros((5, pair.channels.size))
        for own, wanted in self._inputs(pair):
            x, y = (np.asarray(part, np.float64).reshape(-1, part.shape[-1]) for part in (own, wanted))
            y = y[:, pair.channels]
            count += len(x)
            sums += [x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)]
        mean, full_mean, xx, yy, xy = sums / count
        variance, full_variance = np.maximum(xx - mean * mean, 0), np.maximum(yy - full_mean * full_mean, 0)
        if not np.isfinite(sums).all():
            return
        weights = {pair.full.name: {v.name: np.asarray(v, np.float64) for v in full.weights}}
        factor, offset = (
            np.broadcast_to(part, full.moving_mean.shape)[pair.channels] for part in pair.full.affine(weights)
        )
        if layer.scale and layer.center:
            # Of a channel that hardly varies, the factor stays.
            varies = variance > _LEAST_VARIANCE * full_variance
            slope = np.where(varies, (xy - mean * full_mean) / np.where(varies, variance, 1), 1)
            layer.gamma.assign(factor * slope * np.sqrt(variance + layer.epsilon))
            layer.beta.assign(factor * full_mean + offset)
        else:
            old_mean, old_variance = (
                np.asarray(v, np.float64)[pair.channels] for v in (full.moving_mean, full.moving_variance)
            )
            scale = (variance + layer.epsilon) / (full_variance + full.epsilon)
            mean = mean + (old_mean - full_mean) * np.sqrt(scale)
            variance = np.maximum((old_variance + full.epsilon) * scale - layer.epsilon, 0)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)

    def _inputs(self, pair: _Pair) -> Iterable[tuple[Any, Any]]:
        """Returns the inputs of the cut layer and of the full one, batch by batch."""
        return zip(self._cut.read(pair.cut.inputs[0]), self._full.read(pair.full.inputs[0]), strict=True)

    def _refit_kernel(self, pair: _Pair) -> None:
        """Fits a layer's kernel and bias to what the full network's layer gives, up to their activation."""
        cut, full = pair.cut, pair.full
        matrix, bias = cut.matrix.astype(np.float64), _bias(cut)
        target, target_bias = full.matrix[:, pair.channels].astype(np.float64), _bias(full)[pair.channels]
        intercept = cut.inner.use_bias or cut.name in self._centered
        halves = ridge.Sums.zeros(*matrix.shape), ridge.Sums.zeros(*matrix.shape)
        rows = max(_ROWS, _ROWS_PER_INPUT * len(matrix))
        first = 0
        for own, wanted in self._inputs(pair):
            windows = [_Windows(node, x) for node, x in ((cut, own), (full, wanted))]
            count = min(windows[0].num_positions, math.ceil(rows / self._num_examples))
            positions = self._rng.choice(windows[0].num_positions, count, replace=False)
            size = max(1, _PART // (count * max(len(matrix), len(target))))
            for half, sums in enumerate(halves):
                some = np.arange((first + half) % 2, len(own), 2)
                for start in range(0, len(some), size):
                    x, full_x = (w.rows(some[start : start + size], positions) for w in windows)
                    sums.add(x, full_x @ target + target_bias - (x @ matrix + bias))
            first += len(own)
        change, offset = ridge.fitted(halves, intercept)
        cut.refit(matrix + change, bias + offset)


def _removes_mean(node: Node) -> bool:
    return isinstance(node, BatchNormalization) and not node.frozen


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
        if type(graph.nodes[number]) is type(node):  # not of several groups there and of one here
            yield _Pair(node, graph.nodes[number], flow.held(number))


def _is_refitted(node: Any) -> bool:
    if isinstance(node, BatchNormalization):
        return not node.frozen
    return node.inner.trainable and len(node.matrix) <= _MOST_INPUTS


def _changed(graph: Graph, flow: Flow) -> list[bool]:
    """Whether a node is given something else than in the full network, directly or by nodes before it."""
    changed: list[bool] = []
    for i, node in enumerate(graph.nodes):
        changed.append(any(changed[j] for j in node.inputs) or ((node.mixes or node.gated) and not flow.reads(i).all()))
    return changed


def _bias(node: Any) -> np.ndarray:
    layer = node.inner
    return np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(node.num_channels)


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

    def rows(self, examples: np.ndarray, positions: np.ndarray) -> np.ndarray:
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
