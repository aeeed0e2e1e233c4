"""The goals of the expected costs, and how the multipliers follow them."""

import numpy as np
import pytest
import tensorflow as tf

from tfnas.gating import bounds


def test_goals_fall_geometrically_to_the_bounds_and_stay():
    first, asked = tf.constant([0.8, 0.9]), tf.constant([0.2, 0.95])  # the second is below its bound from the start
    found = [bounds.goals(first, asked, tf.constant(step - 15), 100).numpy() for step in (15, 35, 70, 100, 300)]
    np.testing.assert_allclose(np.array(found)[:, 0], [0.8 * 0.25 ** (15 / 70), 0.4, 0.2, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(np.array(found)[:, 1], 0.95)


def followed(level, share, average, goal):
    arguments = ([value] for value in (level, 1.0, share, average, goal))
    levels, multipliers = bounds.next_levels(*(tf.constant(x, tf.float32) for x in arguments))
    return float(levels[0]), float(multipliers[0])


def test_multipliers_follow_the_extrapolated_share():
    """A share that falls by 0.01 a step: its average lags by 0.09, and in 15 steps it will have fallen by 0.15."""
    average = 1.0
    for i in range(1, 200):
        average = float(bounds.moving_average(average, 1 - 0.01 * i))
    assert average - (1 - 0.01 * 199) == pytest.approx(0.09, rel=1e-4)
    assert followed(2.0, 0.8, 0.89, 0.65) == pytest.approx((2.0, 2.0), rel=1e-4)
    # At an error of 5 % and beyond the multiplier is twice its level, or zero.
    up, down = 2.0 * np.exp(0.05), 2.0 * np.exp(-0.05)
    assert followed(2.0, 0.8, 0.8, 0.4) == pytest.approx((up, 2 * up), rel=1e-5)
    assert followed(2.0, 0.3, 0.3, 0.4) == pytest.approx((down, 0.0), rel=1e-5)
    half = 2.0 * np.exp(0.05 * 0.5)
    assert followed(2.0, 0.41, 0.41, 0.4) == pytest.approx((half, 1.5 * half), rel=1e-4)
    assert followed(100.0, 0.8, 0.8, 0.4)[0] == 100.0 and followed(0.01, 0.1, 0.1, 0.4)[0] == pytest.approx(0.01)


def test_first_levels_rise_as_bounds_fall():
    assert bounds.first_levels([0.05, 0.5, 0.95]) == pytest.approx([2.0, 0.2, 0.1 / 0.95])
