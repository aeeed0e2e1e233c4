"""Bounds on the expected cost of a unit supernet: the expectation in closed form, and the multipliers (docs/method.md).

The objective is the mean negative log likelihood, plus the units' negative entropy / N, plus for each bounded resource
its multiplier times the expected cost as a share of the full network's. Up to a constant the last two are the KL
divergence, / N, from a prior under which an architecture of cost share c has the log probability -N lambda c.

A multiplier is raised while the expected share is above its goal, which falls from the initial share to the bound, and
lowered while it is below. The gates answer with a delay, since Adam averages gradients over tens of steps, and their
steps hardly depend on how large the multiplier is. So beside the level that the multiplier settles at, it has a part
that follows the present error at once, and takes the multiplier to zero where the share is clearly below its goal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.expectation import Expectation

_FALLING = 0.7  # share of the steps over which the goal falls to the bound
_BAND = 0.05  # relative error at which the multiplier is zero, or twice its level
_GAIN = 0.05  # largest change of the level's logarithm in a step
_LEVELS = (1e-2, 1e2)  # bounds of the level, times its first value
_DECAY = 0.9  # of the moving average from which the slope of the share is estimated
_HORIZON = 15  # steps by which share and goal are extrapolated, because gates answer with delay


class ExpectedShares:
    """Expected costs as shares of the full network's, in closed form (method.md, section 9); float32, differentiable.

    Args:
        form: the costs.
        resources: some of its resources.
    """

    def __init__(self, form: ClosedForm, resources: Iterable[str]):
        sizes = [group.size for group in form.groups]
        self._num_groups = len(sizes)
        self._group_of = tf.constant(np.repeat(np.arange(len(sizes)), sizes), tf.int32)
        # A group that may not empty keeps a unit where it would keep none.
        self._held = tf.constant([not group.may_empty for group in form.groups], tf.float32)
        self._parts = [_constants(form.expectations[resource], form.full(resource)) for resource in resources]

    def __call__(self, keep_logits: tf.Tensor) -> tf.Tensor:
        """E[cost] / full cost of each resource, shape (R,).

        Args:
            keep_logits: logit of q of each unit, float32, shape (U,).
        """
        q = tf.sigmoid(keep_logits)
        by_unit = tf.stack([q, q * (1 - q), tf.nn.softplus(keep_logits)], axis=1)
        sums = tf.math.unsorted_segment_sum(by_unit, self._group_of, self._num_groups)  # [G, 3]
        kept, variance, decades = tf.unstack(sums, axis=1)
        held = self._held * tf.exp(-decades)
        one = tf.ones(1)  # stands behind the groups for a factor of 1
        mean = tf.concat([kept + held, one], 0)
        square = tf.concat([tf.square(kept) + variance + held, one], 0)
        alive = -tf.math.expm1(-decades)
        shares = []
        for coefficients, first, second, squares, needed, number in self._parts:
            factors = tf.where(squares, tf.gather(square, first), tf.gather(mean, first) * tf.gather(mean, second))
            works = tf.reduce_prod(tf.where(needed, alive, 1.0), axis=1)
            shares.append(tf.reduce_sum(coefficients * factors * tf.gather(works, number)))
        return tf.stack(shares)


def _constants(expectation: Expectation, full: float) -> tuple[tf.Tensor, ...]:
    """Constants from which a cost's expectation is computed, with coefficients as shares of the full cost."""
    return (
        tf.constant(expectation.coefficients / full, tf.float32),
        tf.constant(expectation.first, tf.int32),
        tf.constant(expectation.second, tf.int32),
        tf.constant(expectation.squares),
        tf.constant(expectation.sets > 0),
        tf.constant(expectation.set_of, tf.int32),
    )


def first_levels(bounds: Sequence[float]) -> list[float]:
    """Each multiplier's level before the first step, from the bound as a share of the full network's cost."""
    return [0.1 / bound for bound in bounds]


def goals(first: tf.Tensor, bounds: tf.Tensor, step: tf.Tensor, steps: int) -> tf.Tensor:
    """The expected shares to be reached a horizon of 15 steps after `step` of `steps`, shape (R,).

    They fall geometrically from the first ones to the bounds in 70 % of the steps.
    """
    first = tf.maximum(first, bounds)
    return first * (bounds / first) ** tf.minimum(1.0, (tf.cast(step, tf.float32) + _HORIZON) / (_FALLING * steps))


def moving_average(average: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """Moving average of the expected shares, updated with this step's."""
    return _DECAY * average + (1 - _DECAY) * shares


def next_levels(
    levels: tf.Tensor, first: tf.Tensor, shares: tf.Tensor, average: tf.Tensor, goal: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The multipliers' levels after a step, and the multipliers.

    Args:
        levels: before the step, float32, shape (R,).
        first: `first_levels`.
        shares: expected shares of the full network's costs.
        average: `moving_average`, with these; it lags by 9 steps behind a share that changes linearly.
        goal: `goals` of this step.
    """
    slope = (shares - average) * (1 - _DECAY) / _DECAY
    error = tf.clip_by_value(((shares + _HORIZON * slope) / goal - 1) / _BAND, -1.0, 1.0)
    levels = tf.clip_by_value(levels * tf.exp(_GAIN * error), _LEVELS[0] * first, _LEVELS[1] * first)
    return levels, levels * (1 + error)
