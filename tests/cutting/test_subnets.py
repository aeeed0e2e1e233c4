"""The subnet is the supernet under its mask, exactly, and costs what costs.py says: the invariants of the cut."""

import keras
import numpy as np
import pytest
import random_models
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting.subnets import describe, rebuild, subnet
from tfnas.graph.costs import cost
from tfnas.search_space.architecture import Architecture
from tfnas.supernets import multi_branch_resnet


def resnet(num_blocks=1, shape=(8, 8, 2)):
    return multi_branch_resnet(4, num_blocks, 3, shape, stem_width=4)


def dense_blocks():
    """Concatenations, so that channels of one tensor are constant and others not; biases and activations besides."""
    image = keras.Input((8, 8, 2), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(image)
    for i in range(3):
        y = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        y = keras.layers.Conv2D(3, 1, activation="elu", name=f"reduce{i}")(y)
        y = keras.layers.Conv2D(2, 3, padding="same", name=f"grow{i}")(y)
        x = keras.layers.Concatenate(name=f"concat{i}")([x, y])
    x = keras.layers.AveragePooling2D(2, name="pool")(x)
    x = keras.layers.Conv2D(5, 3, strides=2, padding="valid", name="last")(x)
    x = keras.layers.GlobalMaxPooling2D(name="head")(x)
    return keras.Model(image, keras.layers.Dense(3, activation="softmax", name="classifier")(x))


# Shares of a layer's channels that are kept.
KINDS = {"half": (0.5,), "sparse": (0.15,), "some layers gone": (0.0, 0.6, 1.0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [lambda: resnet(2, (12, 8, 1)), dense_blocks], ids=["resnet", "dense blocks"])
def test_subnet_equals_supernet_under_the_mask(build, kind, rng):
    model = build()
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    x = rng.normal(size=(3, *model.input_shape[1:])).astype("float32")
    for _ in range(2):
        architecture = random_models.architecture(supernet, rng, KINDS[kind])
        supernet.set_architecture(architecture)
        expected = supernet(x).numpy()
        cut = subnet(supernet, architecture)
        np.testing.assert_allclose(cut(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        price = cost(supernet.graph, architecture)
        assert sum(np.prod(v.shape) for v in cut.trainable_variables) == price.parameters
        assert multiply_adds(cut) == price.multiply_adds


def test_nothing_kept_is_refused():
    supernet = tfnas.gate(resnet(), ell2=1, num_examples=10)
    nothing = Architecture({n: np.zeros(g.mask.shape, bool) for n, g in supernet.gated_layers.items()})
    with pytest.raises(UserError, match="drops every path to the output 'classifier'"):
        subnet(supernet, nothing)
    assert cost(supernet.graph, nothing).multiply_adds == 0


def multiply_adds(model):
    """By another road than costs.py: from the built layers' own weights and outputs."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense | keras.layers.Conv2D):
            total += np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1], dtype=int)
    return total


def test_a_dropped_branch_is_really_gone():
    model = resnet()
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    gone = {"stage2_block1_path1_conv2": False, "stage3_block1_path2_conv2": False}
    architecture = Architecture({n: np.full(g.mask.shape, gone.get(n, True)) for n, g in supernet.gated_layers.items()})
    cut = subnet(supernet, architecture)
    names = {layer.name for layer in cut.layers}
    assert not any(n.startswith(("stage2_block1_path1", "stage3_block1_path2")) for n in names)
    assert "stage2_block1_path2_conv2" in names


def test_everything_kept_is_the_model_itself(rng):
    model = resnet()
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    cut = subnet(supernet, supernet.architecture())
    x = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    np.testing.assert_allclose(cut(x), model(x), rtol=1e-5, atol=1e-6)
    assert cut.count_params() == model.count_params()


def test_subnet_is_plain_keras_saves_and_trains(tmp_path, rng):
    supernet = tfnas.gate(dense_blocks(), ell2=1, num_examples=10)
    cut = subnet(supernet, random_models.architecture(supernet, rng))
    modules = {type(layer).__module__ for layer in cut._operations}
    assert modules and all(module.startswith("keras.") for module in modules)
    cut.save(tmp_path / "cut.keras")
    x = rng.normal(size=(4, 8, 8, 2)).astype("float32")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "cut.keras")(x), cut(x))
    cut.compile("sgd", loss="sparse_categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(cut.train_on_batch(x, np.array([0, 1, 2, 0])))


def test_rebuild_from_json_alone(rng):
    arguments = {"width": 4, "num_blocks": 1, "num_classes": 3, "input_shape": (8, 8, 2), "stem_width": 4}
    supernet = tfnas.gate(multi_branch_resnet(**arguments), ell2=1, num_examples=10)
    architecture = random_models.architecture(supernet, rng, KINDS["half"])
    cut = subnet(supernet, architecture)
    text = describe(architecture, supernet.graph, "multi_branch_resnet", **arguments)
    again = rebuild(text)
    again.set_weights(cut.get_weights())
    x = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    np.testing.assert_array_equal(again(x), cut(x))
    assert Architecture.from_json(text) == architecture
    with pytest.raises(UserError, match="names no supernet"):
        rebuild(architecture.to_json())


def test_another_supernets_architecture_is_refused():
    supernet = tfnas.gate(resnet(), ell2=1, num_examples=10)
    with pytest.raises(UserError, match="one of the layers .* expected. Received: 'other'"):
        subnet(supernet, Architecture({"other": [True]}))
