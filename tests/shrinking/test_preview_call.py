import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

import tfnas
from tfnas.common.errors import UserError
from tfnas.gating.importances import expansion
from tfnas.graph.costs import cost

L = keras.layers


def network():
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(16, 3, padding="same", activation="relu", name="first")(image)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Conv2D(24, 3, padding="same", activation="relu", name="second")(L.MaxPooling2D()(x))
    return keras.Model(image, L.Dense(10, name="classifier")(L.GlobalAveragePooling2D()(x)), name="small")


@pytest.fixture(scope="module")
def digits():
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images.reshape(-1, 8, 8, 1) / 16).astype("float32")[order], labels[order]


@pytest.fixture(scope="module")
def trained(digits):
    keras.utils.set_random_seed(0)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], steps_per_execution=30)
    model.fit(digits[0][:1000], digits[1][:1000], epochs=12, batch_size=32, verbose=0)
    return model


def test_a_preview_of_a_trained_model(trained, digits):
    held_out = digits[0][1000:], digits[1][1000:]
    weights = trained.get_weights()
    found = tfnas.preview(trained, held_out, parameters=(0.75, 0.5, 0.01), num_examples=600)
    for before, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    # All but one unit of each group go at most: 1 and 1 of 16 and 24.
    least = (9 + 1 + 2) + (9 + 1) + (10 + 10)
    full = (9 * 16 + 16 + 32) + (9 * 16 * 24 + 24) + (240 + 10)
    assert found.smallest["parameters"] == pytest.approx(least / full)
    assert found.full.costs["parameters"] == full == cost(trained).parameters
    assert found.full.costs["multiply_adds"] == cost(trained).multiply_adds
    assert found.out_of_reach == (0.01,) and [size.share for size in found.sizes] == [0.75, 0.5]
    # Keras's own figures of the full network, of other examples of the same kind.
    loss, accuracy = trained.evaluate(*held_out, verbose=0)
    assert found.num_examples == 300
    assert found.full.loss == pytest.approx(loss, abs=0.1) and found.full.metrics["accuracy"] == pytest.approx(
        accuracy, abs=0.05
    )
    for size in found.sizes:
        assert 0.9 * size.share < size.costs["parameters"] / full <= size.share
        assert found.full.loss < size.estimate < 10
    assert found.sizes[0].loss < found.sizes[1].loss
    assert found.sizes[0].metrics["accuracy"] > 0.8
    # The layers alone, and all that follows from them.
    assert found.layers[0].name == "second" and found.layers[0].costs["parameters"] == 9 * 16 * 24 + 24
    counted = [part for part in found.families if "parameters" in part.costs]  # others take time alone
    assert {part.name: part.costs["parameters"] for part in counted} == {
        "Conv2D": 10 * 16 + 9 * 16 * 24 + 24,
        "BatchNormalization": 32,
        "Dense": 250,
    }
    assert sum(layer.costs.get("latency", 0) for layer in found.layers) <= found.full.costs["latency"] * 1.001
    text = repr(found)
    assert "50 %" in text and "Out of reach: 1 %" in text and "Conv2D" in text and "accuracy" in text
    assert "<table" in found._repr_html_() and "accuracy" in found._repr_html_()


def test_the_estimate_is_the_loss_itself_where_that_is_quadratic_in_the_gates(rng):
    """Least squares on one unit for each of three inputs, away from the minimum."""
    x = rng.normal(size=(400, 3)).astype("float32")
    y = x @ [[0.2], [0.6], [2.0]] + rng.normal(size=(400, 1))
    coefficients = np.array([0.1, 0.7, 2.0], "float32")
    vector = keras.Input((3,))
    hidden = L.Dense(3, use_bias=False, name="units")(vector)
    model = keras.Model(vector, L.Dense(1, use_bias=False, name="sum")(hidden))
    model.set_weights([np.eye(3, dtype="float32"), coefficients[:, None]])
    model.compile(loss="mse")
    supernet = tfnas.gate(model, parameters=0.9, importance="curvature", iterative=False)
    supernet.compile(loss="mse")
    batches = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 400, 100)]
    full, cut = (np.mean((x[:, lost:] @ coefficients[lost:, None] - y) ** 2) for lost in (0, 1))
    assert expansion(supernet, batches, np.array([True, False, False])) == pytest.approx(cut - full, rel=1e-4)
    found = tfnas.preview(model, (x, y), parameters=0.7, num_examples=400, device=None)
    (size,) = found.sizes
    assert size.costs["parameters"] == 8
    assert size.estimate - found.full.loss == pytest.approx(cut - full, abs=0.03)


def test_without_data_and_from_a_dataset(trained, digits):
    bare = tfnas.preview(network(), device=None)
    assert [size.share for size in bare.sizes] == [0.75, 0.5, 0.25] and bare.resource == "multiply_adds"
    assert bare.full.loss is None and "loss" not in repr(bare) and "latency" not in bare.full.costs
    batches = tf.data.Dataset.from_tensor_slices(digits).batch(64)
    found = tfnas.preview(trained, batches, multiply_adds=0.6, device=None, num_examples=100)
    assert found.num_examples == 50 and found.sizes[0].loss > 0 and found.looks_trained
    # A model that is not compiled, with weights that are not trained.
    raw = tfnas.preview(network(), digits, parameters=0.6, device=None, num_examples=200)
    assert "accuracy" in raw.full.metrics and not raw.looks_trained and "not trained for these labels" in repr(raw)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"parameters": 0.5, "multiply_adds": 0.5}, "one resource expected"),
        ({"parameters": 1.5}, "shares in (0, 1)"),
    ],
)
def test_sizes_that_are_none(options, message, trained):
    with pytest.raises(UserError) as error:
        tfnas.preview(trained, device=None, **options)
    assert message in str(error.value)
