"""Networks as deep as Keras can build, and deeper: gated, cut, saved, and loaded by plain Keras."""

import sys

import keras
import numpy as np
import pytest

import tfnas
from tfnas.cutting.subnets import subnet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost

layers = keras.layers


def residual(x, blocks):
    """Ten layers a block, of which one has weights: those without are built and saved in less time."""
    for _ in range(blocks):
        y = layers.Conv2D(4, 1, kernel_initializer="he_normal")(x)
        for _ in range(8):
            y = layers.ReLU()(y)
        x = layers.Add()([y, x])
    return x


def deep_model():
    """874 layers, 870 of them in a row."""
    image = keras.Input((4, 4, 3), name="image")
    x = residual(layers.Conv2D(4, 1)(image), 87)
    return keras.Model(image, layers.Dense(2, name="classifier")(layers.GlobalAveragePooling2D()(x)))


def nested_deeply():
    """Two nested models, each flat enough for Keras, of more than eight hundred layers together."""
    image = keras.Input((4, 4, 3), name="image")
    x = layers.Conv2D(4, 1)(image)
    for name in ("first", "second"):
        inner = keras.Input((4, 4, 4))
        x = keras.Model(inner, residual(inner, 42), name=name)(x)
    return keras.Model(image, layers.Dense(2, name="classifier")(layers.GlobalAveragePooling2D()(x)))


def parameters(model):
    return sum(v.numpy().size for v in model.trainable_variables)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "gated"), [(deep_model, "conv2d_*[13]"), (nested_deeply, "second_conv2d_*3")])
def test_very_deep_models(build, gated, tmp_path, rng):
    model = build()
    limit = sys.getrecursionlimit()
    supernet = tfnas.gate(model, ell2=1, num_examples=10, include=gated)
    images = rng.normal(size=(2, 4, 4, 3)).astype("f4")
    architecture = tfnas.Architecture({n: rng.random(g.mask.shape[0]) > 0.5 for n, g in supernet.gated_layers.items()})
    supernet.set_architecture(architecture)
    expected = np.asarray(supernet(images))
    assert np.isfinite(expected).all()
    cut = subnet(supernet, architecture)
    np.testing.assert_allclose(cut(images), expected, rtol=1e-3)
    assert cost(supernet.graph, architecture).parameters == parameters(cut)
    assert {layer.name for layer in cut.layers} >= {"part_1", "part_2"}
    cut.save(tmp_path / "cut.keras")
    supernet.save(tmp_path / "supernet.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "cut.keras")(images), cut(images))
    assert tfnas.load(tmp_path / "supernet.keras").architecture() == architecture
    assert sys.getrecursionlimit() == limit


def test_a_subnet_in_parts_is_the_same_network(monkeypatch, tmp_path, rng):
    """Parts begin and end anywhere: between branches, before an input that is late, at an output that is early."""
    image, late = keras.Input((6, 6, 3), name="image"), keras.Input((6, 6, 2), name="late")
    a = layers.Conv2D(6, 1, name="stem")(image)
    b = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, padding="same", name="b")(a))
    c = layers.Conv2D(6, 3, padding="same", name="c")(layers.ReLU()(b))
    early = layers.Dense(2, name="early")(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="side")(a)))
    x = layers.Concatenate()([layers.Add()([a, b, c]), layers.Conv2D(3, 1, name="late_stem")(late)])
    for i in range(6):
        x = layers.ReLU()(layers.Conv2D(5, 3, padding="same", name=f"d{i}")(x))
    model = keras.Model([image, late], [layers.Dense(3, name="last")(layers.GlobalAveragePooling2D()(x)), early])
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    data = [rng.normal(size=(2, 6, 6, n)).astype("f4") for n in (3, 2)]
    for dropped in ((), ("b", "c")):
        keep = {n: (rng.random(g.mask.shape[0]) > 0.4) & (n not in dropped) for n, g in supernet.gated_layers.items()}
        architecture = tfnas.Architecture(keep)
        monkeypatch.setattr("tfnas.cutting.subnets._DEEPEST", 800)
        flat = subnet(supernet, architecture)
        for deepest in (2, 5, 9):
            monkeypatch.setattr("tfnas.cutting.subnets._DEEPEST", deepest)
            cut = subnet(supernet, architecture)
            assert sum(isinstance(layer, keras.Model) for layer in cut.layers) > 1
            for one, other in zip(cut(data), flat(data), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
            cut.save(tmp_path / "cut.keras")
            for one, other in zip(keras.models.load_model(tmp_path / "cut.keras")(data), flat(data), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
            assert parameters(cut) == parameters(flat) == cost(Graph(cut)).parameters
