"""Ways in which a supernet of channel units learns what its units are worth (method.md, "Importances")."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import SearchFailedError, UserError
from tfnas.gating import bounds as bounding
from tfnas.gating import elbo
from tfnas.gating.gates import Gating
from tfnas.gating.importances import scales
from tfnas.gating.supernet import undecided
from tfnas.gating.unit_gates import UnitDraw
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.scored import intermediate_bounds, posterior_of, settled
from tfnas.search_space.unit_posterior import UnitPosterior

_TIGHTENING = 0.7  # share of the steps in which the kept units fall to the bounds
_TIGHTENINGS = 20
_CERTAIN = 40.0  # logit of a unit that is kept, or of minus that, dropped
_PULL, _LEAST_PENALTY = 2.0, 1e-4  # default of the scales' penalty: times the steps; network slimming's

# Updated within a replica, where all replicas hold the same value.
_STATE: dict[str, Any] = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}


class Training:
    """Plain training: the network without gates, and an importance that follows from its weights."""

    gating = Gating.OPEN

    def regularizer(self) -> tf.Tensor:
        """Term added to the mean negative log likelihood, float32 scalar."""
        return tf.zeros(())

    def expected_shares(self) -> tf.Tensor | None:
        """Expected cost of each bounded resource as a share of the full network's, float32, shape (R,), if any."""
        return None

    def progress(self) -> dict[str, tf.Tensor]:
        """Values that `fit` reports beside the shares, float32 scalars."""
        return {}

    def update(self) -> None:
        """Updates the state after a step of the optimizer, in the step's graph."""

    def starts(self) -> None:
        """Prepares the supernet for the steps of `fit`."""

    def between_steps(self, step: int | None, taken: int) -> None:
        """Does what cannot be part of the step's graph.

        Args:
            step: steps so far; None: as counted by `update`.
            taken: how many of them since the last call.
        """


class ByScale(Training):
    """Plain training with an L1 penalty on the scales of the units' normalizations (arXiv 1708.06519).

    Args:
        graph: of the network without gates.
        penalty: of the sum of absolute scales.
    """

    def __init__(self, graph: UnitGraph, penalty: float):
        self._scales = [(np.flatnonzero(units != PINNED), gamma) for units, gamma in scales(graph)]
        self._penalty = penalty

    def regularizer(self) -> tf.Tensor:
        """The penalty, float32 scalar."""
        of_units = [tf.gather(tf.convert_to_tensor(gamma), channels) for channels, gamma in self._scales]
        return self._penalty * tf.add_n([tf.reduce_sum(tf.abs(tf.cast(part, tf.float32))) for part in of_units])


def scale_penalty(steps: int) -> float:
    """The default penalty of the scales: enough to bring those that the loss does not need to 0 in these steps."""
    return max(_LEAST_PENALTY, _PULL / max(1, steps))


class Bounded(Training, abc.ABC):
    """Training whose supernet is brought down to the bounds.

    Args:
        form: costs in closed form.
        bounds: largest cost by resource, absolute.
        steps: training steps in which the costs are to reach the bounds.

    Attributes:
        steps_taken: optimizer steps since the gates were set up, int32 scalar, not trainable.
    """

    def __init__(self, layer: keras.layers.Layer, form: ClosedForm, bounds: Mapping[str, float], steps: int):
        self._shares = bounding.ExpectedShares(form, bounds)
        self._bound_shares = [bound / form.full(resource) for resource, bound in bounds.items()]
        self._steps = steps
        self.steps_taken = layer.add_weight(shape=(), dtype="int32", initializer="zeros", name="steps_taken", **_STATE)

    @abc.abstractmethod
    def expected_shares(self) -> tf.Tensor:
        """Expected cost of each bounded resource as a share of the full network's, exact; float32, shape (R,)."""


class ByGates(Bounded):
    """Relaxed gates, and Lagrange multipliers that bring the expected costs to the bounds (method.md, section 9).

    Args:
        layer: to which the state is added.
        draw: has the logits.
        num_examples: N.
        form, bounds, steps: as of `Bounded`.

    Attributes:
        multipliers: of the expected costs, float32, shape (R,), not trainable.
    """

    gating = Gating.BY_CALL

    def __init__(
        self,
        layer: keras.layers.Layer,
        draw: UnitDraw,
        num_examples: float,
        form: ClosedForm,
        bounds: Mapping[str, float],
        steps: int,
    ):
        super().__init__(layer, form, bounds, steps)
        self._draw, self._num_examples = draw, num_examples
        self._first_levels = bounding.first_levels(self._bound_shares)

        def state(name: str, initial: Sequence[float]) -> Any:
            shape = (len(bounds),)
            variable = layer.add_weight(shape=shape, dtype="float32", initializer="zeros", name=name, **_STATE)
            variable.assign(initial)
            return variable

        shares = self.expected_shares().numpy()
        self.multipliers = state("multipliers", self._first_levels)
        self._levels = state("multiplier_levels", self._first_levels)
        self._first_shares = state("first_shares", shares)
        self._average_shares = state("average_shares", shares)

    def steps(self) -> int:
        """Number of steps that were counted."""
        return int(np.asarray(self.steps_taken))

    @property
    def moved(self) -> bool:
        """Whether gates were drawn, and have moved."""
        p = self._draw.initial_drop
        moved = not np.allclose(self._logits(), math.log1p(-p) - math.log(p), atol=1e-6)
        return moved and int(np.asarray(self._draw.draws)) > 0

    def _logits(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._draw.keep_logit)

    def regularizer(self) -> tf.Tensor:
        """Negative entropy of the units / N, and each multiplier times the expected share; float32 scalar."""
        priced = tf.reduce_sum(tf.convert_to_tensor(self.multipliers) * self.expected_shares())
        return priced + elbo.negative_entropy(self._logits()) / self._num_examples

    def expected_shares(self) -> tf.Tensor:
        """Expected shares under the gates' probabilities."""
        return self._shares(self._logits())

    def progress(self) -> dict[str, tf.Tensor]:
        """Number of units with a drop probability from 0.05 to 0.95."""
        return {"undecided": undecided(self._logits())}

    def update(self) -> None:
        """Updates the multipliers."""
        step, shares = tf.convert_to_tensor(self.steps_taken) + 1, self.expected_shares()
        average = bounding.moving_average(tf.convert_to_tensor(self._average_shares), shares)
        goals = bounding.goals(
            tf.convert_to_tensor(self._first_shares), tf.constant(self._bound_shares, tf.float32), step, self._steps
        )
        levels, multipliers = bounding.next_levels(
            tf.convert_to_tensor(self._levels),
            tf.constant(self._first_levels, tf.float32),
            shares,
            average,
            goals,
        )
        self._levels.assign(levels)
        self.multipliers.assign(multipliers)
        self._average_shares.assign(average)
        self.steps_taken.assign(step)


class ByCurvature(Bounded):
    """Hard masks of fewer and fewer units, chosen by squared gradients with regard to their gates.

    The gates' optimizer averages the squares (`optimizers.MeanSquares`). In 20 steps over the first 70 % of the
    training, the kept units become the most probable architecture of the posterior of these scores, under bounds that
    fall geometrically from the full costs to the bounds. A unit that is dropped has no gradient, and its average fades.

    Args:
        supernet: whose masks are set; the state is added to it.
        draw: has the averages.
        form, bounds, steps: as of `Bounded`.
        channel_multiple: as of the posterior.

    Attributes:
        kept: 1 for the units that are trained, float32, shape (U,), not trainable.
    """

    gating = Gating.PROBED

    def __init__(
        self,
        supernet: Any,
        draw: UnitDraw,
        form: ClosedForm,
        bounds: Mapping[str, float],
        steps: int,
        channel_multiple: int,
    ):
        super().__init__(supernet, form, bounds, steps)
        self._supernet, self._draw, self._form, self._bounds = supernet, draw, form, bounds
        self._channel_multiple = channel_multiple
        shape = (form.num_units,)
        self.kept = supernet.add_weight(shape=shape, dtype="float32", initializer="ones", name="kept", **_STATE)

    def expected_shares(self) -> tf.Tensor:
        """Shares of the kept units' network."""
        return self._shares(_CERTAIN * (2 * tf.convert_to_tensor(self.kept) - 1))

    def update(self) -> None:
        """Counts the steps."""
        self.steps_taken.assign(tf.convert_to_tensor(self.steps_taken) + 1)

    def starts(self) -> None:
        """Sets the masks of the kept units, whatever they were set to since."""
        parts = np.split(np.asarray(self.kept) > 0.5, self._form.starts[1:])
        groups = zip(self._form.groups, parts, strict=True)
        self._supernet.set_architecture(Architecture({group.name: part for group, part in groups}))

    def between_steps(self, step: int | None, taken: int) -> None:
        """Drops units, if it is time."""
        step = int(np.asarray(self.steps_taken)) if step is None else step
        if (number := self._tightenings(step)) == self._tightenings(step - taken):
            return
        share = number / self._tightenings(self._steps)
        kept = self._by_squares(intermediate_bounds(self._form, self._bounds, share)).mode()
        self.kept.assign(np.concatenate([*kept.values()]).astype("float32"))
        self.starts()

    def _tightenings(self, step: int) -> int:
        """Number of times that the kept units are chosen anew in the first steps."""
        last = max(1, int(_TIGHTENING * self._steps))
        return min(step, last) * min(_TIGHTENINGS, last) // last

    def _by_squares(self, bounds: Mapping[str, float]) -> UnitPosterior:
        squares = np.asarray(self._draw.squared_gradients, np.float64)
        if not np.isfinite(squares).all():
            raise SearchFailedError(
                "search: the gradients of importance 'curvature' are not finite, as the loss is not. Look for numbers "
                "in the data that are not finite; else the learning rate is too high: compile with a smaller one"
            )
        return posterior_of(self._form, squares, bounds, self._channel_multiple)

    def posterior(self) -> UnitPosterior:
        """The posterior of the squares; once the kept units obey the bounds, they are its most probable architecture.

        Raises:
            UserError: before the first step.
        """
        if not np.asarray(self.steps_taken):
            raise UserError(
                "posterior: importance 'curvature' has no gradients yet: call fit first, or give data, batches as fit "
                "takes them"
            )
        found = self._by_squares(self._bounds)
        kept = np.asarray(self.kept) > 0.5
        counts = np.add.reduceat(kept, self._form.starts, dtype=int)
        costs = self._form.counts(self._form.closed(counts), [*self._bounds])
        if any(costs[resource] > bound for resource, bound in self._bounds.items()):
            return found
        return settled(found, kept)
