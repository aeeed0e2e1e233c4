"""What a layer was called with in a model is kept: in the supernet, in a subnet, and in their files."""

import keras
import numpy as np
import pytest
import random_models
import tensorflow as tf
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting.subnets import subnet
from tfnas.layers.calls import copy_of
from tfnas.ranking.engine import Engine

layers = keras.layers


def half(supernet):
    """An architecture that keeps every other channel."""
    return tfnas.Architecture({name: np.arange(g.mask.shape[0]) % 2 == 0 for name, g in supernet.gated_layers.items()})


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def everything(model, folder):
    """A model, its supernet, a subnet, and what their files hold."""
    supernet = tfnas.gate(model, ell2=1, num_examples=64)
    cut = subnet(supernet, half(supernet))
    return (
        model,
        supernet,
        cut,
        reloaded(supernet, folder),
        reloaded(cut, folder),
        tfnas.gate(cut, ell2=1, num_examples=64),
    )


def head(x):
    return layers.Dense(2, name="classifier")(layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize("where", ["layer", "nested", "in a nested model", "noise"])
def test_noise_that_is_always_on_stays_so(where, tmp_path):
    """In a plain call, as in Keras; `predict` and `evaluate` say training=False, which comes first."""
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="a")(layers.Conv2D(8, 1, name="stem")(image))
    if where == "layer":
        x = layers.Dropout(0.5, name="dropout")(x, training=True)
    elif where == "noise":
        x = layers.GaussianNoise(0.5, name="dropout")(x, training=True)
    else:
        own = {"training": True} if where == "in a nested model" else {}
        inner = keras.Input((4, 4, 8))
        block = keras.Model(inner, layers.SpatialDropout2D(0.5, name="dropout")(inner, **own), name="block")
        x = block(x, **({} if own else {"training": True}))
    model = keras.Model(image, head(layers.Conv2D(8, 1, name="b")(x)))
    images = np.ones((64, 6, 6, 3), "f4")
    for network in everything(model, tmp_path):
        assert np.std(network(images), axis=0).max() > 0.01
        assert np.std(network(images, training=False), axis=0).max() < 1e-5


def test_gates_behind_dropout_that_is_always_on_are_not_relaxed():
    """Keras hands a layer's own `training` on to all layers behind it."""
    image = keras.Input((6, 6, 3))
    x = layers.Dropout(1e-7)(layers.Conv2D(8, 1, name="stem")(image), training=True)
    model = keras.Model(image, head(layers.Conv2D(8, 3, name="a")(layers.Conv2D(8, 1, name="b")(x))))
    supernet = tfnas.gate(model, ell2=1, num_examples=64, initial_drop=0.5)
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("f4")
    np.testing.assert_allclose(supernet(images), model(images), rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(supernet(images, training=True)) - model(images)).max() > 0.01


def test_statistics_of_one_called_with_training_false_are_as_keras_has_them(tmp_path, rng):
    """A plain call leaves them; one in training moves them in any functional model of Keras 3."""
    image = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 1, name="stem")(image), training=False)
    model = keras.Model(image, head(layers.Conv2D(8, 3, name="a")(layers.ReLU()(x))))
    images = rng.normal(2, 3, (16, 6, 6, 3)).astype("f4")
    models = everything(model, tmp_path)
    for training in (None, True):
        moved = []
        for network in models:
            (norm,) = (layer for layer in network._flatten_layers() if layer.name == "bn")
            network(images, training=training)
            moved.append(norm.moving_mean.numpy())
        for others in moved[1:]:
            channels = others.size  # the subnet has half of them
            np.testing.assert_allclose(others, moved[0][:: 8 // channels], rtol=1e-4, atol=1e-6)
        assert bool(np.any(moved[0])) == bool(training)


def test_a_copy_of_a_layer_that_was_given_an_object_can_be_saved():
    layer = layers.Identity(dtype=keras.DTypePolicy("float32"))
    with pytest.raises(NotImplementedError):
        layer.get_config()
    assert copy_of(layer, "copy").get_config()["name"] == "copy"


class Snake(layers.Layer):
    """A layer of a user's own, with a weight for each channel."""

    def build(self, shape):
        self.frequency = self.add_weight(shape=shape[-1:], name="frequency")

    def call(self, x):
        return x + keras.ops.sin(self.frequency * x) ** 2


def test_a_copy_of_a_layer_of_ones_own_may_read_fewer_channels():
    layer = Snake()
    layer(np.zeros((1, 5), "f4"))
    copy = copy_of(layer, "copy")
    assert copy(np.zeros((1, 3), "f4")).shape == (1, 3)
    assert [weight.shape for weight in (*layer.weights, *copy.weights)] == [(5,), (3,)]


def test_masks_by_hand_are_passed_on(tmp_path, rng):
    series, mask = keras.Input((6, 3), name="series"), keras.Input((6,), dtype="bool", name="mask")
    x = layers.Conv1D(8, 3, padding="same", name="a")(layers.Conv1D(8, 1, name="stem")(series))
    pooled = [layers.GlobalAveragePooling1D(name="by_keyword")(x, mask=mask)]
    pooled.append(layers.GlobalAveragePooling1D(name="by_position")(x, mask))
    x = layers.Concatenate()(pooled)
    model = keras.Model([series, mask], layers.Dense(2, name="classifier")(layers.Dense(4, name="b")(x)))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=64, gate_dense=True)
    data = [rng.normal(size=(4, 6, 3)).astype("f4"), rng.random((4, 6)) < 0.5]
    np.testing.assert_allclose(supernet(data), model(data), rtol=1e-5, atol=1e-6)
    architecture = half(supernet)
    cut = reloaded(subnet(supernet, architecture), tmp_path)
    supernet.set_architecture(architecture)
    np.testing.assert_allclose(cut(data), supernet(data), rtol=1e-4, atol=1e-5)
    other = [data[0], ~data[1]]
    np.testing.assert_allclose(cut(other), supernet(other), rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(cut(other)) - cut(data)).max() > 1e-3
    supernet.compile(keras.optimizers.SGD(0.01), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.array([0, 1, 1, 0])
    ranking = tfnas.rank(supernet, [architecture], (data, labels), holdout=0, racing=None)
    assert ranking.scores[0].loss == pytest.approx(supernet.evaluate(data, labels, verbose=0), rel=1e-4)


def test_what_cannot_be_followed_is_refused_by_name():
    image, mask = keras.Input((6, 3)), keras.Input((6,), dtype="bool")
    stem = layers.Conv1D(8, 1)(layers.Conv1D(8, 1)(image))

    def gate(x, inputs=image):
        return tfnas.gate(keras.Model(inputs, x), ell2=1, num_examples=64)

    with pytest.raises(UserError, match="layer 'bn': a BatchNormalization called with training=True"):
        gate(layers.BatchNormalization(name="bn")(stem, training=True))
    inner = keras.Input((6, 8))
    block = keras.Model(inner, layers.BatchNormalization(name="bn")(inner), name="block")
    with pytest.raises(UserError, match="layer 'block_bn': a BatchNormalization called with training=True"):
        gate(block(stem, training=True))
    with pytest.raises(UserError, match="layer 'bn': called with mask"):
        gate(layers.BatchNormalization(name="bn")(stem, mask=mask), [image, mask])
    with pytest.raises(UserError, match="layer 'sum': its output must have an axis of examples. Received: shape .."):
        gate(layers.GlobalAveragePooling1D()(stem) * keras.ops.sum(stem))
    with pytest.raises(UserError, match="layer 'dropout': called with training=1; True, False or nothing expected"):
        gate(layers.Dropout(0.5, name="dropout")(stem, training=1))


def test_the_engine_evaluates_as_evaluate_does(rng):
    """With training=False, so without noise that a plain call would have."""
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="a")(layers.Conv2D(8, 1, name="stem")(image))
    model = keras.Model(image, head(layers.Dropout(0.5)(x, training=True)))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(keras.optimizers.SGD(0.01), loss=loss)
    images, labels = rng.normal(size=(16, 6, 6, 3)).astype("f4"), rng.integers(0, 2, 16)
    engine = Engine(supernet, tf.data.Dataset.from_tensors((images, labels)))
    supernet.set_architecture(half(supernet))
    np.testing.assert_allclose(
        engine.outputs(half(supernet)), supernet.predict(images, verbose=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("operation", ["concatenate", "concatenate with another", "add", "plus", "nested"])
def test_a_tensor_that_one_call_reads_twice_may_be_cut_differently_for_each(operation, rng):
    image = keras.Input((6, 6, 3))
    h = layers.Conv2D(4, 1, activation="relu", name="stem")(image)
    a = layers.Conv2D(4, 3, padding="same", name="a")(h)
    first, second = keras.Input((6, 6, 4)), keras.Input((6, 6, 4))
    x = {
        "concatenate": lambda: layers.Concatenate()([a, a]),
        "concatenate with another": lambda: layers.Concatenate()([a, a, h]),
        "add": lambda: layers.Add()([a, a]),
        "plus": lambda: a + a,
        "nested": lambda: keras.Model([first, second], layers.Concatenate()([first, second]))([a, a]),
    }[operation]()
    model = keras.Model(image, head(layers.Conv2D(4, 3, name="b")(x)))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=64)
    supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = rng.normal(size=(4, 6, 6, 3)).astype("f4")
    engine = Engine(supernet, (images, np.zeros(4, int)))
    assert supernet.gated_layers["b"].mask.shape == (x.shape[-1],)
    for share in (0.8, 0.5, 0.5, 0.2):
        architecture = random_models.architecture(supernet, rng, (share,))
        supernet.set_architecture(architecture)
        expected = np.asarray(supernet(images))
        np.testing.assert_allclose(subnet(supernet, architecture)(images), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(engine.outputs(architecture), expected, rtol=1e-4, atol=1e-5)


class Inside(layers.Layer):
    """Layers of its own, in a list, that its first call builds; it needs an argument that no config has."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_a_copy_of_a_layer_has_each_of_its_variables_once(tmp_path):
    """They were tracked again when lists were copied, and networks with such a layer could not be loaded."""
    layer = Inside([layers.Dense(4), layers.GroupNormalization(2), layers.BatchNormalization()])
    x = keras.Input((5,))
    layer(x)
    copy = copy_of(layer, "copy")
    for one, other in zip(layer._flatten_layers(), copy._flatten_layers(), strict=True):
        for kept in ("_trainable_variables", "_non_trainable_variables", "_layers"):
            assert len(getattr(one, kept)) == len(getattr(other, kept))
    saved = keras.Model(x, copy(x))
    saved.save_weights(tmp_path / "copy.weights.h5")
    fresh = keras.Model(x, Inside([layers.Dense(4), layers.GroupNormalization(2), layers.BatchNormalization()])(x))
    fresh.load_weights(tmp_path / "copy.weights.h5")
    given = np.ones((2, 5), "f4")
    np.testing.assert_allclose(fresh(given), layer(given), rtol=1e-6)
