"""Refitted layers give what the full network's give, as far as the inputs that are left allow."""

import keras
import numpy as np
import pytest
import random_models
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting.refit import _Windows, refit
from tfnas.cutting.ridge import Sums, fitted
from tfnas.cutting.subnets import cut
from tfnas.graph.channels import Graph
from tfnas.graph.statistics import recompute_statistics
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture

L = keras.layers


def distance(network, full, images):
    """Root mean square of the differences of the outputs, relative to the full network's deviations from their mean."""
    got, expected = (
        [np.asarray(y, np.float64) for y in keras.tree.flatten(n(images, training=False))] for n in (network, full)
    )
    errors = sum(np.square(g - e).sum() for g, e in zip(got, expected, strict=True))
    return np.sqrt(errors / sum(np.square(e - e.mean(0)).sum() for e in expected))


def redundant(rng):
    """A network, and its architecture without channels that are multiples of channels that stay.

    Behind them stand a normalization and a ReLU, a frozen normalization, a separable and a transposed convolution, a
    pooling, and a Dense layer that reads every position.
    """
    image = keras.Input((8, 8, 3), name="image")
    stem = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, padding="same", name="stem")(image)))
    x = L.ReLU()(L.BatchNormalization(name="a_bn")(L.Conv2D(8, 3, padding="same", use_bias=False, name="a")(stem)))
    x = L.BatchNormalization()(L.Conv2D(6, 3, padding="same", use_bias=False, name="b")(x))
    x = L.Conv2D(8, 1, name="c")(L.ReLU()(L.Add()([stem, x])))
    x = L.BatchNormalization()(L.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, name="d")(x), training=False)
    x = L.Conv2D(8, 3, strides=2, dilation_rate=1, activation="tanh", name="e")(x)
    x = L.Conv2DTranspose(4, 3, strides=2, padding="same", name="f")(x)
    x = L.Conv2D(6, 2, activation="relu", name="g")(L.ReLU()(x))
    x = L.Flatten()(L.AveragePooling2D(2)(x))
    model = keras.Model(image, L.Dense(5, activation="softmax", name="classifier")(x))
    random_weights(model, rng)
    halves = {"a": 8, "c": 8, "e": 8, "g": 6}
    for name, size in halves.items():
        layer = model.get_layer(name)
        for variable in (*layer.weights, *(model.get_layer("a_bn").weights if name == "a" else ())):
            value = np.asarray(variable)
            variable.assign(np.concatenate([value[..., : size // 2]] * 2, axis=-1))
    depthwise = model.get_layer("d").depthwise_kernel
    depthwise.assign(np.concatenate([np.asarray(depthwise)[:, :, :4]] * 2, axis=2))
    scale = model.get_layer("a_bn").gamma, model.get_layer("a_bn").beta
    for variable in scale:  # multiples, not copies
        variable.assign(np.asarray(variable) * np.repeat([1, 0.5], 4))
    graph = UnitGraph(model)
    keep = {g.name: np.arange(g.size) < (halves[g.name] // 2 if g.name in halves else g.size) for g in graph.groups}
    return graph, Architecture(keep)


def test_what_the_channels_left_can_make_up_for_is_made_up_for(rng):
    graph, architecture = redundant(rng)
    images, held_out = (rng.normal(size=(n, 8, 8, 3)).astype("float32") for n in (200, 50))
    bare, statistics = cut(graph, architecture), cut(graph, architecture)
    before = bare.get_weights()
    recompute_statistics(statistics, images)
    expected = np.asarray(graph.model(held_out))
    found = refit(graph, architecture, bare, images)
    np.testing.assert_allclose(found(held_out), expected, atol=1e-4 * np.abs(expected).max())
    for network in (bare, statistics):
        assert np.abs(np.asarray(network(held_out)) - expected).max() > 0.01 * np.abs(expected).max()
    for old, new in zip(before, bare.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("seed", range(4))
def test_random_models_come_nearer_to_the_full_ones_on_held_out_images(seed):
    rng = np.random.default_rng([seed, 5])
    model = random_models.Builder(seed).model()
    random_weights(model, rng)
    graph = UnitGraph(model, streams=seed % 2 == 1)
    images, held_out = (
        keras.tree.pack_sequence_as(
            model.input, [rng.normal(size=(n, *i.shape[1:])).astype("float32") for i in model.inputs]
        )
        for n in (120, 60)
    )
    architecture = graph.closed(Architecture({g.name: rng.random(g.size) < 0.6 for g in graph.groups}))
    bare, statistics = cut(graph, architecture), cut(graph, architecture)
    recompute_statistics(statistics, images)
    found = refit(graph, architecture, bare, images)
    assert distance(found, model, held_out) < min(distance(n, model, held_out) for n in (bare, statistics))


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_regression_is_numpys_least_squares(intercept, rng):
    x = rng.normal(1, 1, size=(400, 5))
    y = x @ rng.normal(size=(5, 2)) + rng.normal(2 * intercept, 0.1, size=(400, 2))
    halves = Sums.zeros(5, 2), Sums.zeros(5, 2)
    for first in range(0, 400, 100):
        for half, sums in enumerate(halves):
            sums.add(x[first + half : first + 100 : 2], y[first + half : first + 100 : 2])
    columns = np.hstack([x, np.ones((400, 1))]) if intercept else x
    expected = np.linalg.lstsq(columns, y, rcond=None)[0]
    change, offset = fitted(halves, intercept)
    np.testing.assert_allclose(change, expected[:5], atol=1e-3)
    np.testing.assert_allclose(offset, expected[5] if intercept else np.zeros(2), atol=1e-3)


def test_without_a_relation_the_weights_stay(rng):
    halves = Sums.zeros(40, 1), Sums.zeros(40, 1)
    for sums in halves:
        sums.add(rng.normal(size=(30, 40)), rng.normal(size=(30, 1)))
    change, _ = fitted(halves, True)
    assert np.abs(change).max() < 0.02


def test_rows_times_the_matrix_are_what_keras_computes(rng):
    common = {"filters": 4, "kernel_size": 3, "bias_initializer": "normal"}
    cases: list = [(L.Dense(4, bias_initializer="normal"), (5, 3)), (L.Conv1D(**common, padding="causal"), (9, 3))]
    for padding in ("same", "valid"):
        for strides, rate in (1, 1), (2, 1), (3, 1), (1, 2):
            settings = {**common, "padding": padding, "strides": strides, "dilation_rate": rate}
            cases += [(L.Conv2D(**settings), (8, 7, 3)), (L.SeparableConv1D(**settings, depth_multiplier=2), (9, 3))]
            if rate == 1:
                cases += [(L.Conv2DTranspose(**settings), (5, 4, 3)), (L.Conv3DTranspose(**settings), (3, 2, 3, 3))]
    cases.append((L.Conv2DTranspose(4, 3, strides=2, output_padding=1, padding="same"), (5, 4, 3)))
    for layer, shape in cases:
        image = keras.Input(shape)
        node = Graph(keras.Model(image, layer(image))).nodes[1]
        x = rng.normal(size=(2, *shape)).astype("float32")
        windows = _Windows(node, x)
        rows = windows.rows(np.arange(2), np.arange(windows.num_positions))
        expected = np.asarray(layer(x))
        got = (rows @ node.matrix + np.asarray(layer.bias)).reshape(expected.shape)
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=str(layer.get_config()))


def test_what_it_cannot_refit_is_told(rng):
    graph, architecture = redundant(rng)
    images = rng.normal(size=(3, 8, 8, 3)).astype("float32")
    with pytest.raises(UserError, match="refit: some hundred examples expected, and at least two. Received: one"):
        refit(graph, architecture, cut(graph, architecture), images[:1])
    with pytest.raises(UserError, match="Received: one with the layer 'a' of 8 channels"):
        refit(graph, architecture, cut(graph, {}), images)


def two_inputs():
    """Two inputs, two outputs, a frozen convolution and normalization, and a grouped convolution."""
    image, late = keras.Input((6, 6, 3), name="image"), keras.Input((6, 6, 2), name="late")
    a = L.BatchNormalization(name="bn")(L.Conv2D(8, 3, padding="same", name="a")(image))
    early = L.Dense(2, name="early")(L.GlobalAveragePooling2D()(L.Conv2D(6, 1, activation="relu", name="side")(a)))
    x = L.Conv2D(8, 3, groups=2, name="grouped")(L.Concatenate()([L.ReLU()(a), late, late]))
    x = L.BatchNormalization(name="still", trainable=False)(L.Conv2D(8, 1, name="frozen", trainable=False)(x))
    x = L.BatchNormalization(center=False, name="b_bn")(L.Conv2D(6, 1, use_bias=False, name="b")(L.ReLU()(x)))
    x = L.Dense(3, name="last")(L.GlobalAveragePooling2D()(L.Conv2D(6, 1, name="c")(L.ReLU()(x))))
    return keras.Model([image, late], [x, early])


@pytest.mark.parametrize("search", [{"ell2": 1.0, "exclude": "grouped"}, {"parameters": 0.6, "steps": 200}])
def test_parts_of_a_deep_network_frozen_layers_and_both_searches(search, monkeypatch, rng):
    model = two_inputs()
    random_weights(model, rng)
    supernet = tfnas.gate(model, num_examples=10, **search)
    if "ell2" in search:
        architecture = random_models.architecture(supernet, rng, (0.6, 1.0))
    else:
        architecture = supernet.posterior().mode()
    images, held_out = ([rng.normal(size=(n, 6, 6, c)).astype("float32") for c in (3, 2)] for n in (150, 100))
    bare, flat = (tfnas.subnet(supernet, architecture, refit=given) for given in (None, images))
    assert distance(flat, model, held_out) < 0.9 * distance(bare, model, held_out)
    for name in ("frozen", "still", "grouped"):
        for old, new in zip(bare.get_layer(name).get_weights(), flat.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    monkeypatch.setattr("tfnas.cutting.subnets._DEEPEST", 5)
    parts = tfnas.subnet(supernet, architecture, refit=images)
    assert any(isinstance(layer, keras.Model) for layer in parts.layers)
    for one, other in zip(parts(held_out), flat(held_out), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_outputs_that_are_not_finite_change_nothing(rng):
    graph, architecture = redundant(rng)
    kernel = graph.model.get_layer("stem").kernel
    kernel.assign(np.asarray(kernel) * np.inf)
    bare = cut(graph, architecture)
    found = refit(graph, architecture, bare, rng.normal(size=(9, 8, 8, 3)).astype("float32"))
    for old, new in zip(bare.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
