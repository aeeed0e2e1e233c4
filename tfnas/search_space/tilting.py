"""Tilts or shifts independent units so that their expected costs meet bounds. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfnas.search_space.expectation import Expectation

_SWEEPS = 500
_TOLERANCE = 1e-7  # of the keep probabilities
_CERTAIN = 40.0  # logit of a unit that is as good as always kept


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def tilt(
    logits: np.ndarray, costs: Sequence[Expectation], bounds: Sequence[float], either_sign: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Finds a stationary point of KL(q || posterior) under bounds on the expected costs (method.md, section 9).

        logit q = logits - the sum over r of lambda_r dE[cost_r]/dq,   E[cost_r] <= bound_r,   lambda_r >= 0

    lambda_r is 0 where the expected cost is below the bound. A cost is not a sum over units, so that this problem is
    not convex, and the point found is stationary, not the nearest. Each sweep solves the problem with the costs
    linearized at the current q, which is convex in the multipliers, and moves the logits part of the way there.

    Args:
        logits: of keeping each unit, float64, shape (U,).
        costs: the bounded resources.
        bounds: largest expected cost of each, above the smallest one.
        either_sign: with a single resource, meets its bound with equality, with a negative multiplier if the expected
            cost is below it, so that expensive units are added first.

    Returns:
        Tilted logits, float64, shape (U,), and the multipliers, float64, shape (R,).
    """
    if not costs:
        return logits, np.zeros(0)
    free = either_sign and len(costs) == 1
    tilted, multipliers = logits, np.zeros(len(costs))
    step, last = 1.0, np.inf
    for _ in range(_SWEEPS):
        q = sigmoid(tilted)
        found = [cost.value_and_gradient(q) for cost in costs]
        shares = np.array([value / bound for (value, _), bound in zip(found, bounds, strict=True)])
        slopes = np.array([slope / bound for (_, slope), bound in zip(found, bounds, strict=True)])
        now, most = slopes @ q, slopes.sum(1)
        # What the linearized cost may be; far from the bound, no more than a part of the way to either end.
        goals = np.clip(1 - shares + now, now / 4, (now + most) / 2)
        multipliers = _linear_multipliers(logits, slopes, goals, multipliers, free)
        goal = logits - multipliers @ slopes
        change = float(np.abs(sigmoid(goal) - q).max())
        if change < _TOLERANCE:
            break
        # Partners pull in opposite directions, so that a full step may go back and forth.
        step = min(1.0, step * 1.1) if change < last else max(0.05, step * 0.6)
        last = change
        tilted = tilted + step * (goal - tilted)
    return tilted, multipliers / np.asarray(bounds, np.float64)


def shift(logits: np.ndarray, costs: Sequence[Expectation], bounds: Sequence[float]) -> np.ndarray:
    """Adds one number to all logits, so that one expected cost is at its bound and none is above.

    Args:
        logits: of keeping each unit, float64, shape (U,).
        costs: the bounded resources.
        bounds: largest expected cost of each, above the smallest one and below the largest one.

    Returns:
        Float64, shape (U,).
    """
    if not costs:
        return logits
    low, high = -_CERTAIN - logits.max(), _CERTAIN - logits.min()
    for _ in range(60):
        middle = (low + high) / 2
        q = sigmoid(logits + middle)
        fits = all(cost.value(q) <= bound for cost, bound in zip(costs, bounds, strict=True))
        low, high = (middle, high) if fits else (low, middle)
    return logits + low


def _linear_multipliers(
    logits: np.ndarray, slopes: np.ndarray, goals: np.ndarray, start: np.ndarray, free: bool
) -> np.ndarray:
    """Multipliers for linear costs: Newton's method with an active set, on the convex dual.

    They minimize the sum over units of log(1 + exp(logit - multipliers @ slopes)) + multipliers @ goals, at least 0
    unless `free`.
    """

    def dual(at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The dual's value and slope, and the multipliers that are not held at 0."""
        exponents = logits - at @ slopes
        value = float(np.logaddexp(0.0, exponents).sum() + at @ goals)
        slope = goals - slopes @ sigmoid(exponents)
        return value, slope, np.flatnonzero((at > 0) | (slope < 0) | free)

    multipliers, (value, slope, moving) = start, dual(start)
    for _ in range(100):
        if (np.abs(slope[moving]) <= 1e-13 * goals[moving]).all():
            break
        q = sigmoid(logits - multipliers @ slopes)
        hessian = (slopes * (q * (1 - q))) @ slopes.T
        direction = _newton_direction(hessian, slope, moving)
        while not free and (outward := moving[(multipliers[moving] == 0) & (direction[moving] < 0)]).size:
            moving = moving[moving != outward[0]]
            direction = _newton_direction(hessian, slope, moving)
        longest = 1.0
        if not free and (falling := direction < 0).any():
            longest = min(1.0, float((multipliers[falling] / -direction[falling]).min()))
        for length in longest * 0.5 ** np.arange(60):
            trial = multipliers + length * direction
            if not free:
                trial[(direction < 0) & (trial <= 1e-15 * multipliers)] = 0.0
            better, new_slope, new_moving = dual(trial)
            if better <= value + 1e-4 * length * slope @ direction:
                break
            # Near the minimum the value is lost in its rounding error, and the slope is not.
            flatter = np.abs(new_slope[new_moving]).sum() < 0.5 * np.abs(slope[moving]).sum()
            if flatter and better <= value + 1e-12 * abs(value):
                break
        else:
            break
        multipliers, value, slope, moving = trial, better, new_slope, new_moving
    return multipliers


def _newton_direction(hessian: np.ndarray, slope: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Newton's step of the multipliers `moving`, 0 for the others."""
    direction = np.zeros_like(slope)
    own = hessian[np.ix_(moving, moving)]
    # Enough of the identity that saturated units and costs in proportion to each other do not make it singular.
    own = own + np.eye(len(moving)) * (1e-12 * np.trace(own) + 1e-30)
    direction[moving] = np.linalg.solve(own, -slope[moving])
    return direction
