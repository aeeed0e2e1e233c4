"""Dtype policies, of all layers and of one: gated, trained, cut, saved and ranked."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnas
from tfnas.cutting.subnets import subnet

layers = keras.layers
# Of outputs, relative to the largest: what the policy's own rounding allows.
TOLERANCE = {"mixed_float16": 1e-2, "mixed_bfloat16": 8e-2, "float64": 1e-12}


def squeeze_and_excite():
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.Activation("relu")(layers.BatchNormalization(name="bn")(x))
    x = x + layers.Conv2D(8, 3, padding="same", name="residual")(x)
    weights = layers.Dense(8, activation="sigmoid", name="excite")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Concatenate()([layers.Multiply()([x, weights]), layers.Conv2D(4, 3, padding="same", name="side")(x)])
    x = layers.Conv2D(12, 1, name="last")(x)
    return keras.Model(image, layers.Dense(5, dtype="float32", name="classifier")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", TOLERANCE)
@pytest.mark.parametrize("options", [{"ell2": 50}, {"parameters": 0.7, "steps": 10}])
def test_global_policies(options, policy, tmp_path, rng):
    keras.config.set_dtype_policy(policy)
    model = squeeze_and_excite()
    images = rng.uniform(0, 255, (32, 8, 8, 3)).astype("f4")
    labels = rng.integers(0, 5, 32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet = tfnas.gate(model, num_examples=32, **options)
    supernet.compile(keras.optimizers.SGD(0.01), loss=loss)
    history = supernet.fit(images, labels, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    architectures = []
    for gone in (("residual",), ("residual", "side")):
        keep = {n: (rng.random(mask.size) > 0.4) & (n not in gone) for n, mask in supernet.architecture().items()}
        last = np.arange(keep["last"].size) % 2 == 0
        architectures.append(tfnas.Architecture({**keep, "last": last}))
        cut = subnet(supernet, architectures[-1])
        supernet.set_architecture(architectures[-1])
        expected = np.asarray(supernet(images), np.float64)
        assert expected.std() > 0
        difference = np.abs(np.asarray(cut(images), np.float64) - expected).max() / np.abs(expected).max()
        # A classifier in float32 reads what others gave in fewer, or in more, bits.
        assert difference <= max(TOLERANCE[policy], 1e-6)
        for layer in cut.layers:
            wanted = "float32" if layer.name == "classifier" else policy
            assert isinstance(layer, layers.InputLayer) or layer.dtype_policy.name == wanted, layer.name
    cut.save(tmp_path / "cut.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "cut.keras")(images), cut(images))
    supernet.save(tmp_path / "supernet.keras")
    again = tfnas.load(tmp_path / "supernet.keras")
    np.testing.assert_array_equal(again(images), supernet(images))
    data = tf.data.Dataset.from_tensors((images, labels))
    ranking = tfnas.rank(supernet, architectures, data, holdout=0, racing=None)
    for architecture, score in zip(ranking.candidates, ranking.scores, strict=True):
        supernet.set_architecture(architecture)
        expected = supernet.evaluate(images, labels, verbose=0)
        assert score.loss == pytest.approx(expected, rel=max(TOLERANCE[policy], 1e-4))


def test_a_layers_own_policy_is_kept(tmp_path):
    """One that computes in float32 because its results do not fit into float16, gated and cut."""
    keras.config.set_dtype_policy("mixed_float16")
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, kernel_initializer="ones", name="stem")(image)
    x = layers.Conv2D(8, 1, kernel_initializer="ones", name="half")(x)
    x = layers.Conv2D(8, 1, kernel_initializer="ones", dtype="float32", name="large")(x)  # 3 x 8 x 8 x 1,000
    x = layers.Rescaling(1e-5, dtype="float32", name="smaller")(x)
    x = layers.Conv2D(8, 1, name="last")(x)
    model = keras.Model(image, layers.Dense(2, dtype="float32", name="classifier")(layers.GlobalAveragePooling2D()(x)))
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    assert {name: gated.compute_dtype for name, gated in supernet.gated_layers.items()} == {
        "half": "float16",
        "large": "float32",
        "last": "float16",
    }
    supernet.save(tmp_path / "supernet.keras")
    keras.config.set_dtype_policy("float32")
    architecture = tfnas.Architecture({n: np.arange(8) < 7 for n in supernet.gated_layers})
    cut = subnet(supernet, architecture)
    assert cut.get_layer("large").compute_dtype == "float32" and cut.get_layer("half").compute_dtype == "float16"
    images = np.full((1, 4, 4, 3), 1000, "f4")
    inside = keras.Model(supernet.network.input, supernet.network.get_layer("large").output)
    np.testing.assert_allclose(inside(images), 192_000, rtol=1e-3)
    np.testing.assert_allclose(supernet(images), model(images), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(tfnas.load(tmp_path / "supernet.keras")(images), supernet(images))
    supernet.set_architecture(architecture)
    np.testing.assert_allclose(cut(images), supernet(images), rtol=1e-2, atol=1e-2)
    assert np.isfinite(cut(images)).all()
