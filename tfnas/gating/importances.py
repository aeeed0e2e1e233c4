"""Scores of channel units by several measures, all of which lead to one posterior (method.md, "Importances").

A score says what the loss would lose with the unit, up to a factor that all units share. Bounds, sampling, ranking and
cut are the same for all measures.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError, brief
from tfnas.config import FLOOR, IMPORTANCES
from tfnas.gating.gates import Gating, gates_as
from tfnas.graph.partition import PINNED
from tfnas.graph.statistics import NUM_EXAMPLES, recompute_statistics
from tfnas.graph.units import UnitGraph
from tfnas.layers import BatchNormalization
from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.scored import intermediate_bounds, posterior_of, settled
from tfnas.search_space.unit_posterior import UnitPosterior

Importance = str | Callable[[UnitGraph], np.ndarray]

ROUNDS = 5  # in which units are dropped by curvature without training

_FIRST = 100.0  # times the largest scale: units that enter before all others


def check_importance(importance: object, title: str) -> None:
    """Raises UserError, naming the function `title`, for what is not an importance."""
    if importance not in IMPORTANCES and not callable(importance):
        raise UserError(
            f"{title}: importance must be one of {', '.join(map(repr, IMPORTANCES))}, or a function from a UnitGraph "
            f"to scores. Received: {brief(importance)}"
        )


def scored_posterior(
    graph: UnitGraph,
    importance: Importance,
    bounds: Mapping[str, float],
    channel_multiple: int = 1,
    floor: float = FLOOR,
    form: ClosedForm | None = None,
) -> UnitPosterior:
    """The posterior by an importance that follows from the weights alone.

    Args:
        graph: of the network without gates, with its weights.
        importance: 'norm', 'scale', 'even', or a function from the graph to scores, shape (U,), which compare over all
            groups: they are weighed against what the units cost.
        bounds: largest cost of a candidate by resource, absolute.
        channel_multiple: as of `UnitPosterior`.
        floor: with 'scale', smallest share of each group's units that enter before all others, in [0, 1].
        form: the graph's costs, if not only those that are counted.

    Raises:
        UserError: for scores that are not one finite number for each unit, 'scale' without a normalization, or a bound
            that no candidate can meet.
    """
    if callable(importance):
        scores = _checked(importance(graph), graph)
    else:
        scores = {"norm": by_norm, "scale": lambda graph: by_scale(graph, floor), "even": by_place}[importance](graph)
    return posterior_of(form or graph.form, scores, bounds, channel_multiple, tilts=callable(importance))


def by_place(graph: UnitGraph) -> np.ndarray:
    """Ranks that keep the first units of every group, in equal shares; in (-1, 0), float64, shape (U,)."""
    return _ranks(np.zeros(graph.num_units), graph)


def by_norm(graph: UnitGraph) -> np.ndarray:
    """Ranks within each group by `squared_norms`; in (-1, 0), float64, shape (U,)."""
    return _ranks(squared_norms(graph), graph)


def squared_norms(graph: UnitGraph) -> np.ndarray:
    """Squared norm of all weights that go with each unit, float64, shape (U,).

    The sum over the layers that write the unit (rows of kernels, biases), read it (columns), or treat its channels one
    by one (scales and offsets of normalizations, depthwise kernels): Torch-Pruning's group norm (arXiv 2301.12900) with
    biases.
    """
    total = np.zeros(graph.num_units)
    for i, node in enumerate(graph.nodes):
        reads, makes = node.squared_norms()
        for units, norms in [(graph.of[i], makes), *[(graph.of[j], reads) for j in node.inputs[:1]]]:
            np.add.at(total, units[units != PINNED], norms[units != PINNED])
    return total


def by_scale(graph: UnitGraph, floor: float = FLOOR) -> np.ndarray:
    """Mean absolute scale of each unit's normalizations, which compare over all groups; float64, shape (U,).

    With one threshold for all groups, network slimming (arXiv 1708.06519). Units without a normalization, and the best
    `floor` of each group, enter before all others.

    Args:
        graph: of the network without gates.
        floor: share of a group's units, in [0, 1]; rounded up.

    Raises:
        UserError: if no unit has a normalization with scales.
    """
    total, count = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for units, gamma in scales(graph):
        values = np.abs(np.asarray(gamma, np.float64))
        np.add.at(total, units[units != PINNED], values[units != PINNED])
        np.add.at(count, units[units != PINNED], 1)
    if not count.any():
        raise UserError(
            f"importance 'scale': model '{graph.model.name}' has no BatchNormalization with a scale whose channels may "
            "vanish: choose another importance, such as 'norm'"
        )
    scores = np.divide(total, count, out=np.full_like(total, total.max()), where=count > 0)
    first = count == 0
    for start, group in zip(graph.starts, graph.groups, strict=True):
        best = np.argsort(-scores[start : start + group.size], kind="stable")[: math.ceil(floor * group.size)]
        first[start + best] = True
    return scores + np.where(first, _FIRST * scores.max(), 0.0)


def scales(graph: UnitGraph) -> list[tuple[np.ndarray, Any]]:
    """Normalizations of units: the unit of every channel, int, shape (C,), and the variable of scales, of each."""
    return [
        (units, node.inner.gamma)
        for units, node in zip(graph.of, graph.nodes, strict=True)
        if isinstance(node, BatchNormalization) and node.inner.scale and (units != PINNED).any()
    ]


def by_curvature(
    supernet: Any,
    data: Iterable[Any],
    bounds: Mapping[str, float],
    rounds: int = ROUNDS,
    form: ClosedForm | None = None,
) -> UnitPosterior:
    """The posterior by squared gradients of the present weights, without training.

    Of one full network, gradients say little about one half as large: in a layer that hardly matters yet, few units
    would be kept, or none. So units are dropped in rounds, in which the bounds fall geometrically from the full costs,
    and each round measures the network that is left, with statistics of its own for batch normalizations. A unit that
    is dropped keeps its last score.

    Args:
        supernet: a compiled UnitSupernet; not changed.
        data: batches as `fit` takes them, tuples (inputs, targets) or (inputs, targets, sample weights). Each round
            takes its share of them.
        bounds: largest cost of a candidate by resource, absolute.
        rounds: at most the number of batches is used. 1: the full network's gradients decide alone.
        form: costs in closed form, if not the supernet's.

    Raises:
        UserError: without a batch, for gradients that are not finite, or a bound that no candidate can meet.
    """
    form, batches = form or supernet.form, [*data]
    if not batches:
        raise UserError("posterior: importance 'curvature' needs at least one batch of data. Received: none")
    measure = Curvatures(supernet)
    images = _first_inputs(batches)
    parts = np.array_split(np.arange(len(batches)), min(rounds, len(batches)))
    scores, architecture = np.zeros(form.num_units), supernet.graph.full
    with _as_it_was(supernet):
        for number, part in enumerate(parts, 1):
            supernet.set_architecture(architecture)
            kept = np.concatenate([*supernet.architecture().values()])
            if number > 1:
                with gates_as(Gating.HARD):
                    recompute_statistics(supernet.network, images, supernet.graph)
            found = measure([batches[i] for i in part])
            scores = np.where(kept, found, scores)
            reached = intermediate_bounds(form, bounds, number / len(parts))
            # A unit that was dropped has no gradient, and so comes back only if no other fits.
            architecture = posterior_of(form, found, reached, supernet.channel_multiple).mode()
    posterior = posterior_of(form, scores, bounds, supernet.channel_multiple)
    return posterior if len(parts) == 1 else settled(posterior, np.concatenate([*architecture.values()]))


class Curvatures:
    """Half the mean squared gradient of the loss with regard to each unit's gate at 1.

    At a minimum the gradient's mean over examples is 0, and its mean square is the diagonal of the Fisher information:
    to the second order, half of it is what the loss gains when the gate closes. The square of a batch's mean gradient
    estimates it up to a factor, which is one over the batch size.

    Args:
        supernet: a compiled UnitSupernet; its masks and weights at the time of a call are used.
    """

    def __init__(self, supernet: Any):
        optimizer, num_units = supernet.optimizer, supernet.graph.num_units

        @tf.function(reduce_retracing=True, autograph=False)
        def gradient(inputs: Any, targets: Any, weights: Any) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                probe = tf.zeros(num_units)
                tape.watch(probe)
                scaled = optimizer.scale_loss(_loss(supernet, probe, inputs, targets, weights))
            return tape.gradient(scaled, probe) / optimizer.scale_loss(1.0)

        self._gradient = gradient

    def __call__(self, batches: Sequence[Any]) -> np.ndarray:
        """The units' curvatures, float64, shape (U,); 0 for those that the masks drop.

        Normalizations use their moving statistics, and dropout is off.

        Args:
            batches: tuples (inputs, targets) or (inputs, targets, sample weights); at least one.

        Raises:
            UserError: for gradients that are not finite.
        """
        found = [np.asarray(self._gradient(*keras.utils.unpack_x_y_sample_weight(batch))) for batch in batches]
        total = np.square(np.asarray(found, np.float64)).mean(0)
        if not np.isfinite(total).all():
            raise UserError(
                "posterior: the gradients of importance 'curvature' are not finite: the loss of this data is not"
            )
        return total / 2


def _first_inputs(batches: Sequence[Any]) -> Any:
    """Inputs of the first examples, enough for statistics, in the model's structure."""
    parts, number = [], 0
    for batch in batches:
        parts.append(keras.utils.unpack_x_y_sample_weight(batch)[0])
        number += len(keras.tree.flatten(parts[-1])[0])
        if number >= NUM_EXAMPLES:
            break
    return keras.tree.map_structure(lambda *some: tf.concat(some, 0)[:NUM_EXAMPLES], *parts)


@contextlib.contextmanager
def _as_it_was(supernet: Any) -> Iterator[None]:
    """A context after which masks, moving statistics and the like are what they were before."""
    used = supernet.architecture()
    before = [(variable, variable.numpy()) for variable in supernet.network.non_trainable_variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
        supernet.set_architecture(used)


def expansion(supernet: Any, data: Iterable[Any], lost: np.ndarray) -> float:
    """Rise of the mean loss if the gates of these units close, to the second order; it may be negative.

    With t from 0 to 1 along the way, the mean loss is L(t), and the rise L'(0) + L''(0) / 2. Other than `Curvatures`,
    this holds for any loss, away from a minimum, and with what units have in common.

    Args:
        supernet: compiled, with masks that keep all units.
        data: batches as of `by_curvature`, all of one size.
        lost: bool, shape (U,).

    Raises:
        UserError: without a batch.
    """
    direction = tf.constant(lost.astype("float32"))

    @tf.function(reduce_retracing=True, autograph=False)
    def rise(inputs: Any, targets: Any, weights: Any) -> tf.Tensor:
        t = tf.zeros(())
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(t)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(t)
                loss = _loss(supernet, -t * direction, inputs, targets, weights)
            slope = inner.gradient(loss, t)
        second = outer.gradient(slope, t, unconnected_gradients="zero")
        return slope + second / 2

    rises = [float(rise(*keras.utils.unpack_x_y_sample_weight(batch))) for batch in data]
    if not rises:
        raise UserError("posterior: importance 'curvature' needs at least one batch of data. Received: none")
    return float(np.mean(rises))


def _loss(supernet: Any, probe: tf.Tensor, inputs: Any, targets: Any, weights: Any) -> tf.Tensor:
    """The compiled loss of a batch, whose derivatives with regard to `probe` are those with regard to the gates."""
    supernet._clear_losses()  # of a call for training
    with gates_as(Gating.PROBED, probe):
        outputs = supernet.network(inputs, training=False)
    return supernet.compute_loss(inputs, targets, outputs, weights, training=False)


def _ranks(scores: np.ndarray, graph: UnitGraph) -> np.ndarray:
    """Minus the place of each unit among its group's, best first, as a share: in (-1, 0), shape (U,)."""
    ranks = np.empty(graph.num_units)
    for start, group in zip(graph.starts, graph.groups, strict=True):
        order = np.argsort(-scores[start : start + group.size], kind="stable")
        ranks[start + order] = -(np.arange(group.size) + 0.5) / group.size
    return ranks


def _checked(scores: Any, graph: UnitGraph) -> np.ndarray:
    try:
        array = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != (graph.num_units,) or not np.isfinite(array).all():
        received = f"shape {array.shape}" if array.size else brief(scores)
        received += ", not all finite" if array.shape == (graph.num_units,) else ""
        raise UserError(
            f"importance: the function must return one finite number for each of the {graph.num_units} units, in the "
            f"groups' order. Received: {received}"
        )
    return array
