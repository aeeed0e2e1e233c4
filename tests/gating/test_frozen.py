"""Frozen layers stay frozen in the supernet and in a subnet, keep their statistics, and are counted."""

import math

import keras
import numpy as np
from conftest import random_weights

import tfnas
from tfnas.cutting.subnets import subnet
from tfnas.gating.gates import Gated
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.graph.statistics import recompute_statistics
from tfnas.ranking.recalibration import Recalibration

layers = keras.layers


def model_with_frozen_layers():
    """A frozen convolution and normalization, a frozen nested model, and one called with training=False."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(6, 1, name="stem")(image)
    conv = layers.Conv2D(6, 3, padding="same", name="conv")
    conv.trainable = False
    flag = layers.BatchNormalization(name="bn_flag")
    flag.trainable = False
    x = flag(conv(x))
    x = layers.BatchNormalization(name="by_call_bn")(layers.Conv2D(6, 1, name="a")(x), training=False)
    inner = keras.Sequential(
        [keras.Input((6, 6, 6)), layers.Conv2D(6, 1, name="conv"), layers.BatchNormalization(name="bn")], name="nested"
    )
    inner.trainable = False
    x = inner(x)
    y = keras.Input((6, 6, 6))
    called = keras.Model(y, layers.BatchNormalization(name="frozen")(layers.ReLU()(y)), name="block_nested")
    x = layers.LayerNormalization(name="ln", trainable=False)(called(x, training=False))
    x = layers.BatchNormalization(name="free")(layers.Conv2D(6, 1, name="b")(x))
    return keras.Model(image, layers.Dense(2, name="classifier")(layers.GlobalAveragePooling2D()(x)))


def statistics(network):
    norms = [x for x in network._flatten_layers() if isinstance(x, layers.BatchNormalization)]
    return {x.name: (x.moving_mean.numpy(), x.moving_variance.numpy()) for x in norms}


def thawed(network):
    """Parameters, counted by Keras once nothing is frozen any more."""
    for layer in network._flatten_layers():
        layer.trainable = True
    return sum(math.prod(v.shape) for v in network.trainable_variables)


def test_frozen_layers(tmp_path, rng):
    model = model_with_frozen_layers()
    random_weights(model, rng)
    # The frozen ones have no trainable variables.
    frozen = {"conv", "bn_flag", "nested_conv", "nested_bn", "ln"}
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    assert set(supernet.gated_layers) == {"conv", "a", "nested_conv", "b"}
    architecture = tfnas.Architecture({n: np.arange(6) % 3 != 1 for n in supernet.gated_layers})
    cut = subnet(supernet, architecture)
    supernet.save(tmp_path / "supernet.keras")
    cut.save(tmp_path / "cut.keras")
    again = tfnas.load(tmp_path / "supernet.keras")
    for network in (supernet.network, cut, again.network, keras.models.load_model(tmp_path / "cut.keras")):
        for layer in network.layers:
            inner = layer.layer if isinstance(layer, Gated) else layer
            if inner.weights:
                assert inner.trainable == (layer.name not in frozen), layer.name
    assert all(gated.drop_logit.trainable for gated in again.gated_layers.values())

    # All that is stored and computed is counted, as if nothing were frozen; not the moving statistics.
    full, small = cost(Graph(model)), cost(supernet.graph, architecture)
    assert full.parameters == cost(supernet.graph).parameters == thawed(keras.models.clone_model(model))
    assert small.parameters == cost(Graph(cut)).parameters == thawed(keras.models.load_model(tmp_path / "cut.keras"))

    # Recalibration and recompute_statistics give new statistics to one normalization alone.
    images = rng.normal(2, 3, (32, 6, 6, 3)).astype("f4")
    found = Recalibration(supernet, images).statistics(supernet.architecture())
    assert set(found) == {"free"}
    before = statistics(supernet.network)
    behind = keras.Model(supernet.network.input, supernet.network.get_layer("b").output)(images, training=False)
    np.testing.assert_allclose(found["free"][0], np.mean(behind, (0, 1, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["free"][1], np.var(behind, (0, 1, 2)), rtol=1e-4, atol=1e-4)
    Recalibration(supernet, images).apply(supernet.architecture())
    settled = statistics(cut)
    recompute_statistics(cut, images)
    for old, new in ((before, statistics(supernet.network)), (settled, statistics(cut))):
        moved = {name for name in old if not all(map(np.array_equal, old[name], new[name]))}
        assert moved == {"free"}


def test_frozen_layers_of_a_trained_model_stay_as_they_were(rng):
    """By gate, training and cut: their weights, their statistics and their flags."""
    model = model_with_frozen_layers()
    random_weights(model, rng)
    supernet = tfnas.gate(model, parameters=0.7, steps=2, num_examples=10, streams=True)
    supernet.compile(keras.optimizers.SGD(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    supernet.fit(rng.normal(size=(8, 6, 6, 3)), rng.integers(0, 2, 8), batch_size=4, verbose=0)
    small = tfnas.subnet(supernet, supernet.posterior().mode())
    whole = tfnas.subnet(supernet, supernet.architecture())
    frozen = ["conv", "bn_flag", "nested_conv", "nested_bn", "ln"]
    for network in (small, whole):
        assert [layer.name for layer in network.layers if layer.weights and not layer.trainable] == frozen
    nested = dict(zip(("nested_conv", "nested_bn"), model.get_layer("nested").layers, strict=True))
    for name in frozen:
        before = (nested[name] if name in nested else model.get_layer(name)).get_weights()
        for old, new in zip(before, whole.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    moved = whole.get_layer("stem").get_weights()[0] - model.get_layer("stem").get_weights()[0]
    assert np.abs(moved).max() > 1e-4
