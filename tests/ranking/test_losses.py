"""What the engine finds of each example is what Keras's own `evaluate` reports of the same examples."""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_tasks
from conftest import random_weights
from keras import layers, ops

import tfnas
from tfnas.common.errors import UserError
from tfnas.config import Config, Data
from tfnas.data.pipeline import Splits, evaluation_batches
from tfnas.ranking.engine import Engine
from tfnas.ranking.losses import in_top5
from tfnas.stages import retrain
from tfnas.tasks import network_inputs
from tfnas.tasks.meanings import task_of

COUNT, CLASSES = 55, 5
_RNG = np.random.default_rng(3)
IMAGES = _RNG.normal(size=(COUNT, 8, 8, 1)).astype("float32")
NUMBERS = _RNG.integers(0, CLASSES, COUNT)
ONE_HOT = keras.utils.to_categorical(NUMBERS, CLASSES)
COINS = _RNG.integers(0, 2, COUNT)
MANY = _RNG.integers(0, 2, (COUNT, 6)).astype("float32")
REALS = _RNG.normal(size=(COUNT, 3)).astype("float32")
PIXELS = _RNG.integers(0, 3, (COUNT, 4, 4))
WEIGHTS = np.where(COINS, 9.0, 0.5).astype("float32")
KINDS_AND_SIZES = {"kind": NUMBERS, "size": REALS[:, :1]}


def supernet_of(heads):
    """Convolutions, of which one is gated, and `heads` on (features, map of 4 x 4)."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    model = keras.Model(image, heads(layers.Flatten()(x), x))
    random_weights(model, np.random.default_rng(1))
    return tfnas.gate(model, ell2=1, num_examples=10, initial_drop=0.3)


def dense(units, activation=None):
    return lambda features, image: layers.Dense(units, activation, name="output")(features)


def pixels(channels, activation=None):
    return lambda features, image: layers.Conv2D(channels, 1, activation=activation)(image)


def kind_and_size(features, image):
    return {"kind": layers.Dense(CLASSES)(features), "size": layers.Dense(1)(features)}


def kind_and_size_listed(features, image):
    return [layers.Dense(CLASSES, name="kind")(features), layers.Dense(1, name="size")(features)]


def two_kinds(features, image):
    return [layers.Dense(CLASSES, name="kind")(features), layers.Dense(1, activation="sigmoid", name="coin")(features)]


def focal(y, p):
    """A user's own, of each example."""
    q = ops.take_along_axis(ops.softmax(p), ops.cast(ops.reshape(y, (-1, 1)), "int32"), 1)[:, 0]
    return -((1 - q) ** 2) * ops.log(q + 1e-7)


def of_the_batch(y, p):
    """A user's own, that is reduced to one number."""
    return ops.mean(ops.abs(ops.cast(y, p.dtype) - p))


class Largest(keras.losses.Loss):
    """A user's own, as a class, of each position."""

    def call(self, y_true, y_pred):
        return ops.abs(y_true - y_pred) ** 3


def f1(y, p):
    return ops.mean(p)


def sparse(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


@dataclasses.dataclass
class Case:
    heads: Any
    labels: Any
    compiled: dict
    weights: Any = None
    accuracy: str | None = "accuracy"  # its name in what evaluate reports
    batch: int = 32  # of evaluate


ACCURACY = {"metrics": ["accuracy"]}
CASES = {
    "sparse": Case(dense(CLASSES), NUMBERS, {"loss": sparse(), **ACCURACY}),
    "sparse, (N, 1)": Case(dense(CLASSES), NUMBERS[:, None], {"loss": sparse(), **ACCURACY}),
    "sparse by name, by a softmax": Case(
        dense(CLASSES, "softmax"),
        NUMBERS,
        {"loss": "sparse_categorical_crossentropy", "metrics": ["acc"]},
        accuracy="acc",
    ),
    "crossentropy, as the shapes say": Case(
        dense(CLASSES, "softmax"),
        NUMBERS,
        {"loss": "crossentropy", "metrics": [keras.metrics.SparseCategoricalAccuracy()]},
        accuracy="sparse_categorical_accuracy",
    ),
    "one-hot": Case(dense(CLASSES, "softmax"), ONE_HOT, {"loss": "categorical_crossentropy", **ACCURACY}),
    "one-hot, smoothed, float64": Case(
        dense(CLASSES),
        ONE_HOT.astype("float64"),
        {"loss": keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), **ACCURACY},
    ),
    "binary": Case(dense(1, "sigmoid"), COINS, {"loss": "binary_crossentropy", **ACCURACY}),
    "binary, (N, 1), from logits": Case(
        dense(1),
        COINS[:, None],
        {
            "loss": keras.losses.BinaryCrossentropy(from_logits=True),
            "metrics": [keras.metrics.BinaryAccuracy(threshold=0)],
        },
        accuracy="binary_accuracy",
    ),
    "several labels": Case(
        dense(6, "sigmoid"),
        MANY,
        {"loss": "binary_crossentropy", "metrics": ["binary_accuracy"]},
        accuracy="binary_accuracy",
    ),
    "two labels": Case(
        dense(2, "sigmoid"),
        MANY[:, :2],
        {"loss": "binary_crossentropy", "metrics": ["binary_accuracy"]},
        accuracy="binary_accuracy",
    ),
    "pixels": Case(pixels(3), PIXELS, {"loss": sparse(), **ACCURACY}),
    "pixels, one-hot": Case(
        pixels(3, "softmax"), keras.utils.to_categorical(PIXELS, 3), {"loss": "categorical_crossentropy", **ACCURACY}
    ),
    "pixels, weighted": Case(
        pixels(3), PIXELS, {"loss": sparse(), **ACCURACY}, np.where(PIXELS == 1, 4.0, 0.5).astype("float32")
    ),
    "autoencoder": Case(pixels(1), IMAGES[:, ::2, ::2], {"loss": "mse"}, accuracy=None),
    "one number, (N,)": Case(dense(1), REALS[:, 0], {"loss": "mse"}, accuracy=None),
    "one number, (N, 1)": Case(dense(1), REALS[:, :1], {"loss": keras.losses.Huber(0.3)}, accuracy=None),
    "three numbers": Case(dense(3), REALS, {"loss": "mae", "loss_weights": [0.3]}, accuracy=None),
    "a user's own loss": Case(dense(CLASSES), NUMBERS, {"loss": focal, "metrics": [f1]}, accuracy=None),
    "a user's own loss, and accuracy": Case(dense(CLASSES), NUMBERS, {"loss": focal, "metrics": [f1, "accuracy"]}),
    "a user's own loss of the batch": Case(dense(3), REALS, {"loss": of_the_batch}, accuracy=None),
    "a user's own class": Case(dense(3), REALS, {"loss": Largest()}, accuracy=None),
    "of the batch by Keras": Case(
        pixels(3, "softmax"),
        keras.utils.to_categorical(PIXELS, 3),
        {"loss": keras.losses.Dice()},
        accuracy=None,
        batch=1,
    ),
    "a sum": Case(dense(3), REALS, {"loss": Largest(reduction="sum")}, accuracy=None, batch=1),
    "not reduced": Case(dense(3), REALS, {"loss": Largest(reduction="none")}, accuracy=None),
    "weighted": Case(dense(CLASSES), NUMBERS, {"loss": sparse(), **ACCURACY}, WEIGHTS),
    "weighted, (N, 1)": Case(dense(3), REALS, {"loss": Largest()}, WEIGHTS[:, None], accuracy=None),
    "weighted, by the sum of the weights": Case(
        dense(CLASSES), NUMBERS, {"loss": sparse(reduction="mean_with_sample_weight"), **ACCURACY}, WEIGHTS, batch=COUNT
    ),
    "a dictionary of lists": Case(
        lambda features, image: {"sizes": [layers.Dense(3)(features), layers.Dense(3)(features)]},
        {"sizes": [REALS, REALS]},
        {"loss": "mse"},
        accuracy=None,
    ),
    "two outputs, a dictionary": Case(
        kind_and_size,
        KINDS_AND_SIZES,
        {
            "loss": {"kind": sparse(), "size": "mse"},
            "loss_weights": {"kind": 0.7, "size": 3.0},
            "metrics": {"kind": ["accuracy"], "size": ["mae"]},
        },
        accuracy="kind_accuracy",
    ),
    "two outputs, a list": Case(
        kind_and_size_listed,
        list(KINDS_AND_SIZES.values()),
        {"loss": [sparse(), "mse"], "loss_weights": [0.7, 3.0], "metrics": [["accuracy"], []]},
        accuracy="kind_accuracy",
    ),
    "two outputs, a list, by name, weighted": Case(
        kind_and_size_listed,
        list(KINDS_AND_SIZES.values()),
        {
            "loss": {"kind": sparse(), "size": "mse"},
            "loss_weights": {"kind": 0.7, "size": 3.0},
            "metrics": {"kind": ["accuracy"]},
        },
        [WEIGHTS, WEIGHTS[::-1].copy()],
        accuracy="kind_accuracy",
    ),
    "two outputs, one without a loss": Case(
        kind_and_size,
        KINDS_AND_SIZES,
        {"loss": {"kind": sparse(), "size": None}, "metrics": {"kind": ["accuracy"]}},
        accuracy="kind_accuracy",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_accuracy_are_evaluates(name):
    case = CASES[name]
    supernet = supernet_of(case.heads)
    supernet.compile("adam", **case.compiled)
    data = (IMAGES, case.labels) if case.weights is None else (IMAGES, case.labels, case.weights)
    engine = Engine(supernet, data)
    assert ("accuracy" in engine.names) == (case.accuracy is not None) and "top5_accuracy" not in engine.names
    (candidate,) = supernet.posterior().sample(1, seed=0)
    supernet.set_architecture(candidate)
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    expected = supernet.evaluate(x, y, sample_weight=weights, batch_size=case.batch, verbose=0, return_dict=True)
    before = None
    for size in (4, CLASSES, 50):  # of 55 examples, so that the last batch is partial, but for batches of 5
        engine.batch_size = size
        parts = [e.figures for e in engine.evaluate([candidate])]
        found = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
        assert {(values.shape, values.dtype) for values in found.values()} == {((COUNT,), np.dtype("float32"))}
        assert found["loss"].mean(dtype="float64") == pytest.approx(expected["loss"], rel=1e-4)
        if case.accuracy:
            assert found["accuracy"].mean() == pytest.approx(expected[case.accuracy], abs=1e-6)
        if before is not None:  # an example's loss does not depend on its company
            np.testing.assert_allclose(found["loss"], before, rtol=1e-4, atol=1e-6)
        before = found["loss"]


def test_a_binary_threshold_is_the_metrics_or_else_zero_for_logits():
    supernet = supernet_of(dense(1))
    (candidate,) = supernet.posterior().sample(1, seed=0)
    for metrics, threshold in (([], 0.0), (["accuracy"], 0.5), ([keras.metrics.BinaryAccuracy(threshold=-1)], -1.0)):
        supernet.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True), weighted_metrics=metrics)
        (e,) = Engine(supernet, (IMAGES, COINS)).evaluate([candidate])
        np.testing.assert_array_equal(e.figures["accuracy"], (e.outputs[:, 0] > threshold) == COINS)
        assert ((e.outputs[:, 0] > threshold) != (e.outputs[:, 0] > 0.2)).any()


def test_several_classifications_have_an_accuracy_each():
    supernet = supernet_of(two_kinds)
    supernet.compile(loss=[sparse(), "binary_crossentropy"], metrics=[["accuracy"], ["accuracy"]])
    labels = [NUMBERS, COINS]
    (candidate,) = supernet.posterior().sample(1, seed=0)
    score = tfnas.rank(supernet, [candidate], (IMAGES, labels), holdout=0).scores[0]
    supernet.set_architecture(candidate)
    expected = supernet.evaluate(IMAGES, labels, verbose=0, return_dict=True)
    assert score.accuracy is None and score.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert score.metrics == pytest.approx({k: expected[k] for k in ("kind_accuracy", "coin_accuracy")})
    with pytest.raises(
        UserError, match="rank: by='accuracy' needs exactly one output .* loss, kind_accuracy, coin_acc"
    ):
        tfnas.rank(supernet, [candidate], (IMAGES, labels), by="accuracy")


@pytest.mark.parametrize("labels", ["sparse", "one-hot"])
def test_above_20_classes_there_is_a_top_5_accuracy(labels):
    numbers = np.random.default_rng(0).integers(0, 21, COUNT)
    supernet = supernet_of(dense(21, "softmax"))
    if labels == "sparse":
        given, loss, metric = numbers, "sparse_categorical_crossentropy", keras.metrics.SparseTopKCategoricalAccuracy(5)
    else:
        given, loss = keras.utils.to_categorical(numbers, 21), "categorical_crossentropy"
        metric = keras.metrics.TopKCategoricalAccuracy(5)
    supernet.compile(loss=loss, metrics=["accuracy", metric])
    candidates = supernet.posterior().sample(2, seed=0)
    ranking = tfnas.rank(supernet, candidates, (IMAGES, given), holdout=0)
    supernet.set_architecture(ranking.best)
    _, accuracy, top5 = supernet.evaluate(IMAGES, given, verbose=0)
    best = ranking.scores[ranking.outcome.winner]
    assert (best.accuracy, best.top5_accuracy) == pytest.approx((accuracy, top5)) and top5 > accuracy
    assert f"top-5 {top5:.1%}" in repr(ranking) and ">top-5</th>" in ranking._repr_html_()
    assert f">{tfnas.subnet(supernet, ranking.best).count_params():,}</td>" in ranking._repr_html_()


def test_retrain_measures_what_keras_evaluates(rng):
    images, labels = rng.integers(0, 256, (COUNT, 8, 8, 1)).astype("uint8"), rng.integers(0, 21, COUNT)
    config = Config(data=Data(name="digits", mean=(0.3,), std=(0.4,)))
    split = tf.data.Dataset.from_tensor_slices((images, labels))
    for units in (21, 20):
        image = keras.Input((8, 8, 1))
        model = keras.Model(image, layers.Dense(units)(layers.Flatten()(image)))
        names = tuple(map(str, range(units)))
        splits = Splits(split, split, split, {}, network_inputs.one((8, 8, 1)), names)
        if units == 20:
            assert set(
                retrain._scored(model, split.filter(lambda image, label: label < 20), splits, config).metrics
            ) == {"accuracy"}
            continue
        scored = retrain._scored(model, split, splits, config)
        model.compile(loss=sparse(), metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5)])
        _, accuracy, expected = model.evaluate(evaluation_batches(split, config.data, 16), verbose=0)
        assert scored.metrics == pytest.approx({"accuracy": accuracy, "top5_accuracy": expected})
        assert 1 - scored.errors.mean() == pytest.approx(accuracy) and expected > accuracy
        assert np.trace(scored.confusion) == round(accuracy * COUNT) and np.sum(scored.confusion) == COUNT


def test_top_5_of_20_classes_is_left_out():
    assert in_top5(np.zeros(3), np.zeros((3, 20))) is None
    outputs = -np.arange(21, dtype="float32")[None].repeat(3, 0)
    np.testing.assert_array_equal(in_top5(np.array([0, 4, 5]), outputs), [1, 1, 0])


BINARY_FOCAL = keras.losses.BinaryFocalCrossentropy


class Doubled(keras.losses.SparseCategoricalCrossentropy):
    def call(self, y_true, y_pred):
        return 2 * super().call(y_true, y_pred)


# Multiples of -log(1e-7), by hand; None: not known.
@pytest.mark.parametrize(
    "name, changed, largest",
    [
        ("sparse", {}, 1),
        ("one-hot, smoothed, float64", {}, 1),
        ("several labels", {}, 1),
        ("pixels", {}, 1),
        ("pixels", {"loss": sparse(reduction="sum")}, 16),
        ("pixels, weighted", {}, 4),
        ("pixels, weighted", {"loss": sparse(reduction="sum"), "loss_weights": [3.0]}, 16 * 4 * 3),
        ("weighted", {}, 9),
        ("weighted, by the sum of the weights", {}, 9 / WEIGHTS.mean()),
        ("binary", {"loss": BINARY_FOCAL(apply_class_balancing=True)}, 1),
        ("one-hot", {"loss": keras.losses.CategoricalFocalCrossentropy(alpha=[1, 2, 3, 4, 5])}, 5),
        ("weighted", {"loss_weights": [-1.0]}, None),
        ("sparse", {"loss": Doubled(from_logits=True)}, None),
        ("a user's own loss, and accuracy", {}, None),
        ("autoencoder", {}, None),
        ("two outputs, a dictionary", {}, None),
        ("two outputs, a list", {"loss": [sparse(), None]}, 0.7),
    ],
)
def test_largest_loss_of_an_example_by_hand(name, changed, largest):
    case = CASES[name]
    supernet = supernet_of(case.heads)
    supernet.compile(**{**case.compiled, **changed})
    engine = Engine(supernet, (IMAGES, case.labels) if case.weights is None else (IMAGES, case.labels, case.weights))
    assert engine.largest == (None if largest is None else pytest.approx(largest * 7 * np.log(10), rel=1e-5))


def test_no_example_loses_more_than_the_largest_loss():
    """By a network that says the opposite of the labels with all its weight."""
    supernet = supernet_of(pixels(3, "softmax"))
    labels, weights = np.ones_like(PIXELS), np.full(PIXELS.shape, 2.0, "float32")
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    supernet.compile(loss=loss, loss_weights=[3.0])
    output = supernet.network.layers[-1]
    output.set_weights([np.zeros_like(output.kernel), np.array([900.0, -900.0, 0.0])])
    engine = Engine(supernet, (IMAGES, labels, weights))
    (found,) = (e.figures["loss"] for e in engine.evaluate(supernet.posterior().sample(1, 0)) if e.start == 0)
    np.testing.assert_allclose(found, engine.largest, rtol=1e-3)


def test_what_the_loss_cannot_be_computed_from_is_refused():
    supernet = supernet_of(dense(CLASSES))
    with pytest.raises(UserError, match="rank: .*call supernet.compile"):
        Engine(supernet, (IMAGES, NUMBERS))
    supernet.compile("adam")
    with pytest.raises(UserError, match="rank: .*call supernet.compile"):
        Engine(supernet, (IMAGES, NUMBERS))
    supernet.compile(loss="categorical_crossentropy")
    with pytest.raises(UserError, match="rank: .* loss cannot be computed from labels of shape .2,. for out"):
        Engine(supernet, (IMAGES, NUMBERS))
    supernet = supernet_of(kind_and_size_listed)
    supernet.compile(loss=[sparse(reduction="mean_with_sample_weight"), "mse"])
    labels = list(KINDS_AND_SIZES.values())
    with pytest.raises(UserError, match="rank: reduction='mean_w"):
        Engine(supernet, (IMAGES, labels, [WEIGHTS, WEIGHTS]))


def test_one_loss_and_metric_of_all_outputs_together(rng):
    """As a custom task on the command line has them: each example's values, weighted, and the loss of a batch."""
    image = rng.normal(size=(12, 8, 8, 1)).astype("float32")
    targets = {"place": rng.normal(size=(12, 2)).astype("float32"), "wide": rng.integers(0, 2, 12)}
    weights = rng.uniform(0.5, 2, 12).astype("float32")
    supernet = tfnas.gate(tiny_tasks.two_heads((8, 8, 1)), parameters=0.9, steps=10, num_examples=12)
    task = task_of("custom", "tiny_tasks:of_both", "tiny_tasks:misses", "min")
    supernet.compile(loss=task.loss(), metrics=task.metrics())
    candidate = supernet.posterior().sample(1, seed=0)[0]
    (e,) = Engine(supernet, (image, targets, weights), metric="misses").evaluate([candidate])
    supernet.set_architecture(candidate)
    outputs = {name: np.asarray(x) for name, x in supernet(image, training=False).items()}
    logits, wide = outputs["wide"][:, 0], targets["wide"]
    squares = np.square(targets["place"] - outputs["place"]).sum(1)
    losses = squares + np.logaddexp(0, logits) - wide * logits
    np.testing.assert_allclose(e.figures["loss"], losses * weights, rtol=1e-4)
    np.testing.assert_allclose(e.figures["misses"], np.sqrt(squares) + 10 * ((logits > 0) != (wide > 0)), rtol=1e-4)
    whole = supernet.compute_loss(image, targets, supernet(image, training=False), weights)
    np.testing.assert_allclose(whole, (losses * weights).mean(), rtol=1e-4)
