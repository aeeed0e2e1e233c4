"""`tfnas.shrink` on tiny models: bounds, what is measured, data in any form, and interruptions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnas
from tfnas.common.errors import UserError

L = keras.layers
SHAPE = (6, 6, 1)
OPTIONS = {"epochs": 2, "batch_size": 20, "candidates": 8, "device": lambda model: 1e-3 * model.count_params()}


def examples(count, seed):
    """Images of three classes: a bright spot in one of three places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = 0.3 * rng.normal(size=(count, *SHAPE))
    images[np.arange(count), 2 * labels, 3] += 3
    return images.astype("float32"), labels


TRAIN, VALIDATION, TEST = examples(80, 0), examples(60, 1), examples(50, 2)


def classifier(name="spots"):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = L.ReLU()(L.BatchNormalization(momentum=0.8)(L.Conv2D(8, 3, padding="same", name="a")(image)))
    x = L.ReLU()(L.Conv2D(12, 3, name="b")(x))
    return keras.Model(image, L.Dense(3, name="classes")(L.Flatten()(x)), name=name)


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=loss, metrics=["accuracy"])
    return model


def within(result, model, **shares):
    full, found = tfnas.cost(model), tfnas.cost(result.model)
    assert result.after.parameters == found.parameters and result.after.multiply_adds == found.multiply_adds
    return all(getattr(found, name) <= share * getattr(full, name) for name, share in shares.items())


def test_a_model_that_is_not_compiled_becomes_smaller_within_all_bounds():
    model = classifier()
    before = model.get_weights()
    result = tfnas.shrink(model, TRAIN, VALIDATION, parameters=0.5, multiply_adds=0.6, test=TEST, **OPTIONS)
    assert within(result, model, parameters=0.5, multiply_adds=0.6) and not model.compiled
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert result.model.count_params() < model.count_params()
    assert [record["phase"] for record in result.history] == ["search", "retrain"]
    # What is measured is what Keras measures of both models.
    for network, measured in (compiled(model), result.before), (compiled(result.model), result.after):
        for data, metrics in (VALIDATION, measured.metrics), (TEST, measured.test):
            expected = network.evaluate(*data, batch_size=25, verbose=0, return_dict=True)
            assert metrics == pytest.approx(expected, rel=1e-4)
    assert "accuracy" in str(result) and "<table" in result._repr_html_()


def test_bad_input_is_one_error():
    model = classifier()
    with pytest.raises(UserError, match="shrink: bounds expected"):
        tfnas.shrink(model, TRAIN, VALIDATION)
    with pytest.raises(UserError, match="steps_per_epoch must be at least 1, and is needed"):
        tfnas.shrink(model, tf.data.Dataset.from_tensors(TRAIN).repeat(), VALIDATION, parameters=0.5)
