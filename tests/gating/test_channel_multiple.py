"""gate's channel_multiple: what it refuses, and that the supernet keeps it."""

import keras
import pytest

from tfnas import gate
from tfnas.common.errors import UserError


def model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, name="a"),
            keras.layers.Conv2D(8, 3, name="b"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )


def test_candidates_keep_a_multiple_also_after_the_supernet_is_copied():
    supernet = gate(model(), num_examples=100, parameters=0.5, steps=200, channel_multiple=4)
    for each in (supernet, type(supernet).from_config(supernet.get_config())):
        for candidate in each.posterior().sample(3):
            assert all(mask.sum() % 4 == 0 for mask in candidate.values())


def test_a_bound_out_of_reach_with_the_multiple_is_refused():
    # All 8 channels of both layers stay: nothing is left to remove.
    with pytest.raises(UserError, match="or lower channel_multiple=8, which holds it"):
        gate(model(), num_examples=100, parameters=0.5, steps=200, channel_multiple=8)
    with pytest.raises(ValueError, match="channel_multiple must be at least 1"):
        gate(model(), num_examples=100, parameters=0.5, steps=200, channel_multiple=0)
