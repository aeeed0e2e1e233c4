"""Ranking end to end for the tasks that people bring: `rank` says of its winner what Keras's `evaluate` says."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfnas
from tfnas.common.errors import UserError


def convolutional(head, size=8):
    """A body of two convolutions, of which one is gated."""
    image = keras.Input((size, size, 1), name="image")
    x = layers.Conv2D(8, 3, activation="relu")(image)
    x = layers.Conv2D(8, 3, activation="relu")(x)
    return keras.Model(image, head(x))


def pooled(units, activation=None):
    return lambda x: layers.Dense(units, activation)(layers.GlobalAveragePooling2D()(x))


def gated(model, count, **options):
    keras.utils.set_random_seed(0)
    return tfnas.gate(model, **{"ell2": 1, "num_examples": count, "initial_drop": 0.3, **options})


def ranked(supernet, data, num=4, **options):
    """A ranking in full, of which the winner's score is compared with `evaluate`; returns that and the ranking."""
    candidates = supernet.posterior().sample(num, 0)
    ranking = tfnas.rank(supernet, candidates, data, holdout=0, racing=None, **options)
    supernet.set_architecture(ranking.best)
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    expected = supernet.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert ranking.scores[ranking.outcome.winner].loss == pytest.approx(expected["loss"], rel=1e-4)
    return expected, ranking


def test_one_hot_labels(rng):
    supernet = gated(convolutional(pooled(5, "softmax")), 40, ell2=None, parameters=0.6, steps=2)
    x, y = rng.normal(size=(40, 8, 8, 1)).astype("float32"), rng.integers(0, 5, 40)
    labels = keras.utils.to_categorical(y, 5)
    supernet.compile("adam", loss="categorical_crossentropy", metrics=["accuracy"])
    supernet.fit(x, labels, verbose=0)
    for size in (5, 40):
        expected, ranking = ranked(supernet, (x, labels), batch_size=size, by="accuracy")
        winner = ranking.scores[ranking.outcome.winner]
        assert winner.accuracy == pytest.approx(expected["accuracy"])


@pytest.mark.parametrize("number", [2, 6])
def test_several_labels_an_image(number, rng):
    supernet = gated(convolutional(pooled(number, "sigmoid")), 30)
    x, y = rng.normal(size=(30, 8, 8, 1)).astype("float32"), rng.integers(0, 2, (30, number)).astype("float32")
    supernet.compile("adam", loss="binary_crossentropy", metrics=["binary_accuracy"])
    supernet.fit(x, y, verbose=0)
    expected, ranking = ranked(supernet, (x, y), batch_size=number)
    winner = ranking.scores[ranking.outcome.winner]
    assert winner.accuracy == pytest.approx(expected["binary_accuracy"])


def test_numbers_from_an_image(rng):
    x = rng.normal(size=(40, 8, 8, 1)).astype("float32")
    y = np.stack([x.mean((1, 2, 3)) * 9 + 2, x.std((1, 2, 3)), x.max((1, 2, 3))], 1).astype("float32")
    for labels in (y, y[:, :1], y[:, 0]):
        supernet = gated(convolutional(lambda x, k=labels[0].size: layers.Dense(k)(layers.Flatten()(x))), 40)
        supernet.compile(keras.optimizers.SGD(1e-3), loss="mse", metrics=["mae"])
        supernet.fit(x, labels, verbose=0)
        _, ranking = ranked(supernet, (x, labels))
        assert {score.accuracy for score in ranking.scores} == {None}
        assert "accuracy" not in repr(ranking) and "<td>-</td>" in ranking._repr_html_()
    by_metric = tfnas.rank(supernet, ranking.candidates, (x, labels), by="mae", holdout=0, racing=None)
    errors = []
    for candidate in ranking.candidates:
        supernet.set_architecture(candidate)
        errors.append(np.abs(supernet.predict(x, verbose=0)[:, 0] - labels).mean())
    assert [score["mae"] for score in by_metric.scores] == pytest.approx(errors, rel=1e-4)
    assert by_metric.order == list(np.argsort(errors)) and "by mae" in repr(by_metric)


def test_a_class_for_every_pixel(rng):
    image = keras.Input((16, 16, 1))
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    b = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
    u = layers.Concatenate()([layers.Conv2DTranspose(4, 2, 2)(b), a])
    u = layers.Conv2D(4, 3, padding="same", activation="relu")(u)
    supernet = gated(keras.Model(image, layers.Conv2D(2, 1)(u)), 30)
    x = rng.normal(size=(30, 16, 16, 1)).astype("float32")
    x[:, :5] = x[:, -5:] = 0  # a dark margin, of which the first pixels say nothing
    y = (x[..., 0] > 0.3).astype("int64")
    supernet.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    supernet.fit(x, y, epochs=5, verbose=0)
    expected, ranking = ranked(supernet, (x, y), num=8)
    assert ranking.scores[ranking.outcome.winner].accuracy == pytest.approx(expected["accuracy"])
    losses = []
    for candidate in ranking.candidates:
        supernet.set_architecture(candidate)
        losses.append(supernet.evaluate(x, y, verbose=0)[0])
    assert [score.loss for score in ranking.scores] == pytest.approx(losses, rel=1e-4)
    assert ranking.order == list(np.argsort(losses))


def test_unequal_classes_by_weights(rng):
    supernet = gated(convolutional(pooled(2)), 60)
    x, y = rng.normal(size=(60, 8, 8, 1)).astype("float32"), (rng.random(60) > 0.9).astype("int64")
    weights = np.where(y, 9.0, 1.0).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile("adam", loss=loss, weighted_metrics=["accuracy"])
    supernet.fit(x, y, class_weight={0: 1.0, 1: 9.0}, verbose=0)
    _, ranking = ranked(supernet, (x, y, weights))
    plain = tfnas.rank(supernet, ranking.candidates, (x, y), holdout=0, racing=None)
    assert all(a.loss != b.loss for a, b in zip(plain.scores, ranking.scores, strict=True))


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_two_inputs_and_two_outputs_of_every_structure(kind, rng, tmp_path):
    """Gated, trained, recalibrated, ranked, cut and exported."""
    a, b = keras.Input((8, 8, 1), name="a"), keras.Input((6, 6, 2), name="b")
    branches = []
    for image in (a, b):
        x = layers.Conv2D(6, 3, padding="same", use_bias=False, name=f"conv_{image.name}")(image)
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm_{image.name}")(x))
        branches.append(layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(x)))
    x = layers.Concatenate()(branches)
    kind_, size = layers.Dense(3, name="output")(x), layers.Dense(1, name="size")(x)
    given = [rng.normal(1, 2, size=(30, 8, 8, 1)).astype("float32"), rng.normal(-3, 1, size=(30, 6, 6, 2)).astype("f4")]
    labels = [rng.integers(0, 3, 30), rng.normal(size=(30, 1)).astype("float32")]
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"]
    if kind == "dict":
        model = keras.Model({"a": a, "b": b}, {"kind": kind_, "size": size})
        given, labels, losses = (
            dict(zip(names, parts, strict=True))
            for names, parts in ((("a", "b"), given), (("kind", "size"), labels), (("kind", "size"), losses))
        )
    else:
        model = keras.Model([a, b], [kind_, size])
    supernet = gated(model, 30)
    supernet.compile("adam", loss=losses)
    supernet.fit(given, labels, verbose=0)
    _, ranking = ranked(supernet, (given, labels), by="accuracy")

    recalibration = tfnas.Recalibration(supernet, given)
    ranking = tfnas.rank(supernet, ranking.candidates, (given, labels), racing=None, recalibration=recalibration)
    recalibration.apply(ranking.best)
    for name, image in zip("ab", given.values() if kind == "dict" else given, strict=True):
        norm = supernet.network.get_layer(f"norm_{name}")
        kernel = supernet.network.get_layer(f"conv_{name}").kernel
        convolved = np.asarray(tf.nn.conv2d(image, kernel, 1, "SAME"))
        # Of what the network has: nothing reads the other channels' statistics.
        live = supernet.graph.flow(ranking.best).live[supernet.graph.index[f"norm_{name}"]]
        mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
        np.testing.assert_allclose(np.asarray(norm.moving_mean)[live], mean[live], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(np.asarray(norm.moving_variance)[live], variance[live], rtol=1e-3, atol=1e-4)
    supernet.set_architecture(ranking.best)
    cut = tfnas.subnet(supernet, ranking.best)
    for mine, its in zip(*(keras.tree.flatten(m(given)) for m in (supernet, cut)), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)
    cut.export(tmp_path / "saved", verbose=False)
    signature = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    named = {spec.name: tf.constant(x) for spec, x in zip(cut.inputs, keras.tree.flatten(given), strict=True)}
    answer = signature(**named)
    assert set(answer) == ({"kind", "size"} if kind == "dict" else {"output_0", "output_1"})
    for name, expected in zip(sorted(answer), keras.tree.flatten(cut(given)), strict=True):
        np.testing.assert_allclose(answer[name], expected, rtol=1e-4, atol=1e-5)
    (score,) = tfnas.rank(supernet, [ranking.best], (given, labels), holdout=0).scores
    assert score.loss == pytest.approx(supernet.evaluate(given, labels, verbose=0, return_dict=True)["loss"], rel=1e-4)


class Batches(keras.utils.PyDataset):
    """Of 12 examples each."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return -(-len(self.arrays[0]) // 12)

    def __getitem__(self, i):
        return tuple(array[12 * i : 12 * i + 12] for array in self.arrays)


def test_data_of_every_kind_gives_the_same_ranking(rng):
    supernet = gated(convolutional(pooled(3)), 30)
    supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = rng.normal(size=(30, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 30)
    candidates = supernet.posterior().sample(3, 0)
    unbatched = tf.data.Dataset.from_tensor_slices((x, y))
    expected = tfnas.rank(supernet, candidates, (x, y), recalibration=tfnas.Recalibration(supernet, x[:12])).scores
    for make in (
        lambda: unbatched,
        lambda: unbatched.batch(12),
        lambda: Batches(x, y),
        lambda: iter(unbatched.batch(12)),
    ):
        recalibration = tfnas.Recalibration(supernet, make())
        assert tfnas.rank(supernet, candidates, make(), recalibration=recalibration).scores == expected


def f1(y, p):
    y = ops.squeeze(y, -1) if len(y.shape) > 1 else y
    return ops.mean(ops.cast(ops.equal(ops.argmax(p, -1), ops.cast(y, "int64")), "float32"))


def focal(y, p):
    q = ops.take_along_axis(ops.softmax(p), ops.cast(ops.reshape(y, (-1, 1)), "int32"), 1)[:, 0]
    return -((1 - q) ** 2) * ops.log(q + 1e-7)


RELOADS = """
import keras, tfnas, tfnas.gating.supernet
from tfnas.common.errors import UserError
for load in (tfnas.load, keras.models.load_model, lambda f: keras.models.load_model(f, compile=False)):
    try:
        print(type(load({file!r})).__name__)
    except (UserError, TypeError) as error:
        print("focal" in str(error))
"""


@pytest.mark.parametrize("reload", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loss_and_a_metric_of_ones_own(reload, rng, tmp_path):
    supernet = gated(convolutional(pooled(3)), 30, ell2=None, parameters=0.6, steps=2)
    x, y = rng.normal(size=(30, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 30)
    supernet.compile("adam", loss=focal, metrics=[f1])
    supernet.fit(x, y, verbose=0)
    _, ranking = ranked(supernet, (x, y))
    assert ranking.scores[0].accuracy is None
    with pytest.raises(UserError, match="by='f1' needs goal='max' or 'min'"):
        tfnas.rank(supernet, ranking.candidates, (x, y), by="f1", holdout=0)
    best = tfnas.rank(supernet, ranking.candidates, (x, y), by="f1", goal="max", holdout=0, racing=None)
    shares = []
    for candidate in ranking.candidates:
        supernet.set_architecture(candidate)
        shares.append((supernet.predict(x, verbose=0).argmax(-1) == y).mean())
    assert [score["f1"] for score in best.scores] == pytest.approx(shares) and shares[best.order[0]] == max(shares)
    if reload:
        supernet.save(tmp_path / "s.keras")
        code = RELOADS.format(file=str(tmp_path / "s.keras"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        # Keras, too, needs `custom_objects` for a function that it does not know, and says which.
        assert done.stdout.split() == ["True", "True", "UnitSupernet"], done.stdout + done.stderr[-500:]


@pytest.mark.parametrize("policy", ["float16", "float64", "mixed_float16"])
def test_under_another_policy(policy, rng):
    keras.config.set_dtype_policy(policy)
    try:
        model = convolutional(pooled(3))
        x, y = rng.normal(size=(20, 8, 8, 1)), rng.integers(0, 3, 20)  # float64
        supernet = gated(model, 20)
        supernet.compile(
            "adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
        )
        candidates = supernet.posterior().sample(3, 0)
        ranking = tfnas.rank(supernet, candidates, (x, y), holdout=0, recalibration=tfnas.Recalibration(supernet, x))
        supernet.set_architecture(ranking.best)
        loss, _ = supernet.evaluate(x, y, verbose=0)
        assert ranking.scores[ranking.outcome.winner].loss == pytest.approx(loss, rel=2e-2 if "16" in policy else 1e-4)
    finally:
        keras.config.set_dtype_policy("float32")
