"""Held-out examples decide between the cut as it is, with its own statistics, and refitted."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.training.best_cut import Way, best_at_once, best_cut, check_same

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


@pytest.fixture
def trained():
    """The weights of a trained network, all of whose neurons but the last six are small."""
    image = keras.Input((6,))
    model = keras.Model(image, L.Dense(3)(L.Dense(16, activation="relu", name="hidden")(image)))
    random_weights(model, np.random.default_rng(0))
    kernel, bias = model.get_layer("hidden").get_weights()
    model.get_layer("hidden").set_weights([kernel * np.where(np.arange(16) < 10, 0.01, 1), bias * 0])
    supernet = tfnas.gate(model, parameters=0.5, importance="curvature", iterative=False)
    supernet.compile(loss="mse")
    return supernet


def test_importances_that_need_no_training_are_compared(trained, rng):
    """Gradients of examples that are all 0 say nothing, and those of the posterior given are the wrong way round."""
    some, images, held_out = (rng.normal(size=(n, 6)).astype("float32") for n in (100, 300, 200))
    labels, others = (np.asarray(trained.graph.model(x)) for x in (held_out, some))
    others = others + rng.normal(size=others.shape).astype("float32")
    data = [(some[i : i + 20], others[i : i + 20]) for i in range(0, 100, 20)]
    right = trained.posterior(data=data)
    wrong = dataclasses.replace(right, keep_logits=tuple(-logit for logit in right.keep_logits))
    silent = [(np.zeros_like(x), y) for x, y in data]
    for batches, winners in (data, {"curvature of the full network", "norm"}), (silent, {"norm"}):
        found = best_at_once(trained, wrong, batches, images, (held_out, labels))
        assert found.importance in winners and found.losses[found.importance] == min(found.losses.values())
        chosen = tfnas.subnet(trained, found.posterior.mode())
        chosen.compile(loss="mse")
        assert chosen.evaluate(held_out, labels, verbose=0) < 1e-3 < found.losses["curvature"]
        assert str(found).startswith(f"chosen by {found.importance}")


def test_it_needs_a_loss():
    image = keras.Input((4,))
    model = keras.Model(image, L.Dense(2)(L.Dense(8, activation="relu")(image)))
    supernet = tfnas.gate(model, num_examples=10, parameters=0.5, steps=200)
    with pytest.raises(UserError, match="best_cut: needs a compiled supernet"):
        best_cut(supernet, supernet.posterior().mode(), np.zeros((4, 4)), (np.zeros((4, 4)), np.zeros((4, 2))))


class Draws(keras.layers.Layer):
    """Adds noise at inference, as the sampling of a variational autoencoder does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.numbers = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.numbers)


def test_models_are_compared_but_for_what_is_drawn_at_random(rng):
    image = keras.Input((4,))
    x = keras.layers.Dense(3, name="dense")(image)
    one, drawn = keras.Model(image, x), keras.Model(image, [x, Draws()(x)])
    other, also_drawn = keras.models.clone_model(one), keras.models.clone_model(drawn)
    given = rng.normal(size=(5, 4)).astype("f4")
    for a, b in ((one, other), (drawn, also_drawn)):
        with pytest.raises(UserError, match="the two differ by .* of the largest output"):
            check_same(a, b, given, "the two differ")
        b.set_weights(a.get_weights())
        check_same(a, b, given, "the two differ")
