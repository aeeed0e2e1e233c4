"""What units are worth: by weights, against the networks that are cut without them; by gradients of Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights
from gate_gradients import gradients

import tfnas
from tfnas.common.errors import UserError
from tfnas.gating import importances
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def residual(x):
    x = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(x))
    for i in range(2):
        y = L.ReLU()(L.BatchNormalization(name=f"inner{i}_bn")(L.Conv2D(5, 3, padding="same", name=f"inner{i}")(x)))
        x = L.ReLU()(L.Add()([x, L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(y))]))
    return x


def depthwise(x):
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x)))
    x = L.ReLU()(L.BatchNormalization(scale=False)(L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)))
    x = L.ReLU()(L.SeparableConv2D(6, 3, padding="same", depth_multiplier=2)(x))
    return L.Conv2DTranspose(3, 3, padding="same")(x)


def dense_block(x):
    x = L.Conv2D(4, 3, padding="same")(x)
    for i in range(3):
        y = L.ReLU()(L.BatchNormalization(name=f"in{i}_bn")(x))
        y = L.ReLU()(L.BatchNormalization(name=f"out{i}_bn")(L.Conv2D(3, 1)(y)))
        x = L.Concatenate()([x, L.Conv2D(2, 3, padding="same")(y)])
    return L.ReLU()(L.BatchNormalization(name="last_bn")(x))


def network_of(block):
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(block(image))))
    random_weights(model, np.random.default_rng(7))
    return model


@pytest.fixture(scope="module", params=[residual, depthwise, dense_block], ids=lambda block: block.__name__)
def supernet(request):
    supernet = tfnas.gate(network_of(request.param), parameters=0.6, multiply_adds=0.7, steps=9, num_examples=99)
    supernet.compile("sgd", LOSS)
    return supernet


def batches(weights=False, size=4):
    rng = np.random.default_rng(5)
    for _ in range(3):
        batch = rng.normal(size=(size, 6, 6, 2)).astype("f4"), rng.integers(3, size=size)
        yield (*batch, rng.random(size).astype("f4")) if weights else batch


def kept_by(architecture):
    return [int(mask.sum()) for mask in architecture.values()]


def test_the_norm_of_a_unit_is_that_of_the_weights_that_a_cut_without_it_lacks(supernet):
    graph = supernet.graph

    def squares(model):
        return sum(np.square(np.asarray(v, np.float64)).sum() for v in model.trainable_variables)

    norms, full = importances.squared_norms(graph), squares(tfnas.subnet(supernet, graph.closed(full_of(graph))))
    for g, start in enumerate(graph.starts):
        masks = full_of(graph)
        masks[graph.groups[g].name][g % 2] = False
        without = squares(tfnas.subnet(supernet, graph.closed(masks)))
        assert norms[start + g % 2] == pytest.approx(full - without, rel=1e-5)


def full_of(graph):
    return {group.name: np.ones(group.size, bool) for group in graph.groups}


def test_a_stream_is_weighed_with_all_of_its_writers_readers_and_normalizations():
    model = network_of(residual)
    graph = UnitGraph(model, streams=True)
    norms = importances.squared_norms(graph)[graph.starts[0] :][:4]
    convolutions = [layer for layer in model.layers if isinstance(layer, L.Conv2D)]
    stem, inner0, outer0, inner1, outer1 = ([np.asarray(w, np.float64) for w in c.weights] for c in convolutions)
    affine = [bn.gamma**2 + bn.beta**2 for bn in model.layers if getattr(bn, "gamma", None) is not None]
    expected = (stem[0] ** 2).sum((0, 1, 2)) + sum(np.asarray(a) for a in affine if a.shape == (4,))
    for kernel, bias in (outer0, outer1):
        expected += (kernel**2).sum((0, 1, 2)) + bias**2
    for kernel, _ in (inner0, inner1):
        expected += (kernel**2).sum((0, 1, 3))
    expected += (np.asarray(model.layers[-1].kernel) ** 2).sum(1)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_norm_keeps_the_heaviest_and_even_the_first_units_in_equal_shares(supernet):
    graph, norms = supernet.graph, importances.squared_norms(supernet.graph)
    even, norm = (supernet.posterior(importance).mode() for importance in ("even", "norm"))
    assert kept_by(even) == kept_by(norm) and 0 < even.kept < even.total
    sizes = graph.form.sizes
    assert (np.maximum(np.array(kept_by(even)) - 1, 0) / sizes).max() <= ((np.array(kept_by(even)) + 1) / sizes).min()
    for name, part in zip(norm, np.split(norms, graph.starts[1:]), strict=True):
        assert even[name].tolist() == sorted(even[name], reverse=True)
        assert part[norm[name]].min() >= max(part[~norm[name]], default=0)


def readers_gradients(model, graph, batch):
    """Of each unit, the sum over what reads it of its weights times their gradient: what a gate in front of it gets."""
    inputs, labels, *weights = batch
    with tf.GradientTape() as tape:
        loss = LOSS(labels, model(inputs, training=False), *weights)
    variables = model.trainable_variables
    gradients = dict(zip([v.path for v in variables], tape.gradient(loss, variables), strict=True))
    total = np.zeros(graph.num_units)
    for node in graph.nodes:
        if not node.mixes:
            continue
        separable = isinstance(node.inner, L.SeparableConv2D)
        kernel = node.inner.depthwise_kernel if separable else node.inner.kernel
        product = np.asarray(kernel * gradients[kernel.path], np.float64)
        axis = -1 if isinstance(node.inner, L.Conv2DTranspose) else -2
        by_channel = np.moveaxis(product, axis, 0).reshape(product.shape[axis], -1).sum(1)
        units = graph.of[node.inputs[0]]
        np.add.at(total, units[units != PINNED], by_channel[units != PINNED])
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_curvature_is_half_the_mean_squared_gradient_of_a_gate_at_one(supernet, weighted):
    graph = supernet.graph
    squares = [readers_gradients(graph.model, graph, batch) ** 2 for batch in batches(weighted)]
    before = supernet.get_weights()
    supernet.set_architecture(supernet.posterior("even").mode())
    used = supernet.architecture()
    q = supernet.posterior("curvature", batches(weighted), rounds=1)
    assert supernet.architecture() == used
    expected = importances.posterior_of(supernet.form, np.mean(squares, 0) / 2, supernet.bounds)
    np.testing.assert_allclose(q.keep_logits, expected.keep_logits, rtol=0.02, atol=0.02)
    supernet.set_architecture(graph.closed(full_of(graph)))
    got = importances.Curvatures(supernet)([*batches(weighted)])
    np.testing.assert_allclose(got, np.mean(squares, 0) / 2, rtol=2e-3, atol=1e-6 * got.max())
    for a, b in zip(before, supernet.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_round_measures_the_network_that_is_left_with_its_own_statistics(supernet, monkeypatch):
    graph, form, few = supernet.graph, supernet.form, [*batches()]
    given, measured = [], []

    def recorded(form, scores, bounds, *more):
        given.append((scores, bounds))
        return posterior_of(form, scores, bounds, *more)

    def measuring(self, some):
        found = measure(self, some)
        measured.append((supernet.architecture(), found))
        return found

    posterior_of, measure = importances.posterior_of, importances.Curvatures.__call__
    monkeypatch.setattr(importances, "posterior_of", recorded)
    monkeypatch.setattr(importances.Curvatures, "__call__", measuring)
    before, used = supernet.get_weights(), supernet.architecture()
    q = supernet.posterior("curvature", iter(few), rounds=2)
    for a, b in zip(before, supernet.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert supernet.architecture() == used and q.bounds == supernet.bounds == given[1][1]
    halfway = {name: form.full(name) * (bound / form.full(name)) ** 0.5 for name, bound in q.bounds.items()}
    assert given[0][1] == pytest.approx(halfway)
    # Two of the three batches, then one, of which the gradients are those of the network cut out.
    first = [readers_gradients(graph.model, graph, batch) ** 2 / 2 for batch in few[:2]]
    np.testing.assert_allclose(given[0][0], np.mean(first, 0), rtol=2e-3, atol=1e-6 * given[0][0].max())
    left, found = measured[1]
    small = tfnas.subnet(supernet, left)
    for layer in small.layers:
        layer.momentum = 0.0
    small(np.concatenate([images for images, _ in few]), training=True)
    kept = np.concatenate([*left.values()])
    assert 0 < kept.sum() < kept.size
    own = UnitGraph(small)
    # Units that nothing is left of are in no group of the small network.
    expected = readers_gradients(small, own, few[2]) ** 2 / 2
    assert own.num_units == kept.sum()
    np.testing.assert_allclose(found[kept], expected, rtol=5e-3, atol=1e-5 * found.max())
    np.testing.assert_array_equal(given[1][0], np.where(kept, found, 0))
    np.testing.assert_array_equal(given[2][0], np.where(kept, found, given[0][0]))
    # The last round decides, whatever scores the units had that were dropped before.
    assert q.mode() == posterior_of(form, *given[1]).mode()


def test_curvature_of_a_gate_in_a_normalization():
    model = network_of(residual)
    supernet = tfnas.gate(model, parameters=0.6, steps=9, num_examples=99, noise="batch")
    supernet.compile("sgd", LOSS)
    expected = []
    for images, labels in batches():
        expected.append(gradients(model, ["inner0_bn", "inner1_bn"], LOSS, images, labels, training=False))
    got = importances.Curvatures(supernet)([*batches()])
    np.testing.assert_allclose(got, (np.square(expected).mean(0) / 2).reshape(-1), rtol=1e-3, atol=1e-9)


def test_scale_has_one_threshold_for_all_groups_above_a_floor():
    model = network_of(residual)
    model.get_layer("inner0_bn").gamma.assign([0.01, -0.02, 0.03, 0.04, -0.05])
    model.get_layer("inner1_bn").gamma.assign([0.5, -0.9, 0.7, 0.6, -0.8])
    supernet = tfnas.gate(model, parameters=0.5, steps=9, num_examples=99)
    one, two = supernet.posterior("scale", floor=0.0).mode().values()
    assert one.tolist() == [False] * 5 and two.any() and two[1]
    one, two = supernet.posterior("scale", floor=0.2).mode().values()
    assert one.tolist() == [False] * 4 + [True] and two[1]
    one, two = supernet.posterior("scale", floor=0.21).mode().values()  # rounded up
    assert one.tolist() == [False] * 3 + [True] * 2 and two[1] and two[4]


def test_scales_of_several_normalizations_are_averaged():
    supernet = tfnas.gate(network_of(dense_block), parameters=0.6, steps=9, num_examples=99)
    graph = supernet.graph
    scores = importances.by_scale(graph, 0.0)
    gammas = {i: np.abs(graph.model.get_layer(f"in{i}_bn").gamma) for i in range(3)}
    last = np.abs(graph.model.get_layer("last_bn").gamma)
    stem = [(sum(float(gammas[i][c]) for i in range(3)) + float(last[c])) / 4 for c in range(4)]
    np.testing.assert_allclose(scores[:4], stem, rtol=1e-5)


def test_a_users_function_is_weighed_against_costs(supernet):
    graph = supernet.graph
    scores = np.random.default_rng(2).lognormal(0, 1, graph.num_units)
    asked = []

    def mine(given):
        asked.append(given)
        return scores.astype("f4")

    q = supernet.posterior(mine)
    assert asked == [graph] and q.tilts and q.bounds == supernet.bounds
    for candidate in q.sample(20):
        assert all(q.cost_of(candidate, resource) <= bound for resource, bound in q.bounds.items())
    order = np.concatenate([part.argsort().argsort() for part in np.split(scores, graph.starts[1:])])
    got = np.concatenate([p.argsort().argsort() for p in np.split(np.array(q.keep_logits), graph.starts[1:])])
    np.testing.assert_array_equal(got, order)
    for wrong, message in (
        (lambda graph: scores[1:], r"shape \(\d+,\)"),
        (lambda graph: np.full(graph.num_units, np.nan), "not all finite"),
        (lambda graph: "norm", "Received: 'norm'"),
    ):
        with pytest.raises(UserError, match=f"one finite number for each of the {graph.num_units} units.*{message}"):
            supernet.posterior(wrong)


def test_wrong_importances_are_refused():
    supernet = tfnas.gate(network_of(depthwise), parameters=0.6, steps=9, num_examples=99)
    with pytest.raises(UserError, match="posterior: importance must be one of 'gates', .* Received: 'taylor'"):
        supernet.posterior("taylor")
    with pytest.raises(UserError, match="'curvature' needs data: batches as fit takes them"):
        supernet.posterior("curvature")
    with pytest.raises(UserError, match="'norm' takes no data: only 'curvature' does"):
        supernet.posterior("norm", batches())
    with pytest.raises(UserError, match=r"'curvature' needs a compiled supernet; call supernet.compile\(loss="):
        supernet.posterior("curvature", batches())
    supernet.compile("sgd", LOSS)
    with pytest.raises(UserError, match="rounds must be a whole number of at least 1. Received: 0"):
        supernet.posterior("curvature", batches(), rounds=0)
    with pytest.raises(UserError, match="'curvature' needs at least one batch of data"):
        supernet.posterior("curvature", [])
    with pytest.raises(UserError, match="gradients of importance 'curvature' are not finite"):
        supernet.posterior("curvature", [(np.full((2, 6, 6, 2), np.nan, "f4"), np.zeros(2, int))])
    image = keras.Input((6, 6, 2))
    plain = L.Dense(3)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(L.Conv2D(4, 3)(image))))
    bare = tfnas.gate(keras.Model(image, plain), parameters=0.6, steps=9, num_examples=99)
    with pytest.raises(UserError, match="has no BatchNormalization with a scale whose channels may vanish"):
        bare.posterior("scale")
