"""Held-out examples decide between the cut as it is, with its own statistics, and refitted."""

import keras
import numpy as np
import pytest
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.training.best_cut import Way, best_cut

L = keras.layers


@pytest.fixture
def supernet():
    image = keras.Input((4, 4, 2), name="image")
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", name="a")(image)))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 1, name="b")(x)))
    model = keras.Model(image, L.Dense(3, name="classifier")(L.GlobalAveragePooling2D()(x)))
    random_weights(model, np.random.default_rng(0))
    supernet = tfnas.gate(model, num_examples=100, parameters=0.5, steps=200)
    supernet.compile(loss="mse")
    return supernet


def test_the_lowest_held_out_loss_wins(supernet, rng):
    images, held_out = (rng.normal(size=(n, 4, 4, 2)).astype("float32") for n in (300, 200))
    architecture = supernet.posterior().mode()
    # The full network, which refitting comes nearer to, says what is right; and then the cut one, which it leaves.
    for teacher, winner in (supernet.graph.model, Way.REFITTED), (tfnas.subnet(supernet, architecture), Way.BARE):
        labels = np.asarray(teacher(held_out))
        found = best_cut(supernet, architecture, images, (held_out, labels))
        assert set(found.losses) == set(Way) and found.way == winner
        found.model.compile(loss=supernet.loss)
        assert min(found.losses.values()) == found.losses[winner]
        np.testing.assert_allclose(
            found.model.evaluate(held_out, labels, verbose=0), found.losses[winner], rtol=1e-4, atol=1e-9
        )


def test_it_needs_a_loss():
    image = keras.Input((4,))
    model = keras.Model(image, L.Dense(2)(L.Dense(8, activation="relu")(image)))
    supernet = tfnas.gate(model, num_examples=10, parameters=0.5, steps=200)
    with pytest.raises(UserError, match="best_cut: needs a compiled supernet"):
        best_cut(supernet, supernet.posterior().mode(), np.zeros((4, 4)), (np.zeros((4, 4)), np.zeros((4, 2))))
