"""A supernet of channel units: hard masks against the cut network, expected costs, training, saving, replicas."""

import itertools
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights
from exactness import check_equal
from random_models import Builder

import tfnas
from tfnas.common.errors import UserError
from tfnas.gating.bounds import ExpectedShares
from tfnas.gating.gates import hard_gates
from tfnas.graph.costs import count
from tfnas.ranking.engine import Engine
from tfnas.search_space.architecture import Architecture
from tfnas.supernets import multi_branch_resnet

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def random_architecture(graph, rng):
    rates = rng.choice([0.0, 0.2, 0.6, 1.0], len(graph.groups))
    return Architecture({g.name: rng.random(g.size) < rate for g, rate in zip(graph.groups, rates, strict=True)})


def supernet_of(model, **options):
    return tfnas.gate(model, **{"parameters": 0.95, "steps": 100, "num_examples": 1000, **options})


def is_random(network):
    """Whether training draws numbers other than the gates'."""
    kinds = (L.Dropout, L.GaussianNoise, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D)
    return any(isinstance(layer, kinds) for layer in network.layers)


def engine_of(supernet, given):
    labels = [np.zeros(29, int) for _ in supernet.graph.outputs]
    supernet.compile("sgd", LOSS if len(labels) == 1 else [LOSS] * len(labels))
    return Engine(supernet, (given, labels if len(labels) > 1 else labels[0]), batch_size=11)


@pytest.mark.parametrize("seed", range(16))
def test_masks_the_cut_network_and_the_engine_agree_on_random_models(seed):
    rng = np.random.default_rng([seed, 5])
    model = Builder(seed).model()
    random_weights(model, rng)
    noise = "batch" if seed % 2 else "example"
    try:
        supernet = supernet_of(model, streams=seed % 3 == 0, noise=noise)
    except UserError as error:
        assert "no channels that may vanish" in str(error) or "out of reach" in str(error)
        return
    images = [rng.normal(size=(29, *i.shape[1:])).astype("f4") for i in model.inputs]
    given = images if len(images) > 1 else images[0]
    check_equal(supernet(given), model(given))
    engine = engine_of(supernet, given) if seed % 4 == 0 else None
    for _ in range(4):
        architecture = random_architecture(supernet.graph, rng)
        supernet.set_architecture(architecture)
        assert supernet.architecture() == supernet.graph.closed(architecture)
        cut = tfnas.subnet(supernet, supernet.architecture())
        expected = cut(given)
        check_equal(supernet(given), expected)
        if engine:
            check_equal(engine.outputs(architecture), expected)
        if not is_random(cut):
            before = supernet.get_weights()
            with hard_gates():
                trained = supernet.network(given, training=True)
            supernet.set_weights(before)
            check_equal(trained, cut(given, training=True))


def test_a_bound_on_the_latency_is_one_on_seconds_measured_layer_by_layer(tmp_path, rng):
    def device(network):
        return 1e-9 * tfnas.cost(network).multiply_adds + 1e-6

    model = model_of(residual)
    supernet = tfnas.gate(model, latency=0.5, parameters=0.8, steps=20, num_examples=100, device=device)
    assert set(supernet.bounds) == {"latency", "parameters"}
    full = supernet.form.full("latency")
    assert full == pytest.approx(device(model)) and supernet.bounds["latency"] == pytest.approx(full / 2)
    supernet.compile("sgd", LOSS)
    logs = supernet.fit(rng.normal(size=(8, 4, 4, 1)).astype("f4"), np.arange(8) % 2, verbose=0).history
    assert 0 < logs["latency"][0] <= 1
    supernet.save(tmp_path / "supernet.keras")
    again = tfnas.load(tmp_path / "supernet.keras")  # without measuring anything
    assert again.latencies == supernet.latencies
    for architecture in again.posterior().sample(5):
        assert again.posterior().cost_of(architecture, "latency") <= full / 2
    for wrong in (0, 1, 20):
        with pytest.raises(ValueError, match=r"latency must be a share in \(0, 1\)"):
            tfnas.gate(model, latency=wrong, steps=20, num_examples=100, device=device)


@pytest.mark.parametrize("seed", range(6))
def test_relaxed_gates_of_zeros_and_ones_are_hard_masks(seed):
    """Logits of +-300 leave nothing to chance: in training every gate multiplies exactly once."""
    rng = np.random.default_rng([seed, 6])
    model = Builder(seed).model()
    random_weights(model, rng)
    try:
        supernet = supernet_of(model, noise=("example", "batch")[seed % 2])
    except UserError:
        return
    images = [rng.normal(size=(5, *i.shape[1:])).astype("f4") for i in model.inputs]
    given = images if len(images) > 1 else images[0]
    if is_random(supernet.network):
        return
    kept = {g.name: np.r_[True, rng.random(g.size - 1) < 0.5] for g in supernet.graph.groups}
    supernet.set_architecture(Architecture(kept))  # of no empty group, so that no operand of a sum is absent
    supernet.draw.keep_logit.assign(np.where(np.concatenate([*kept.values()]), 300.0, -300.0))
    before = supernet.network.get_weights()
    relaxed = supernet.network(given, training=True)
    supernet.network.set_weights(before)
    with hard_gates():
        hard = supernet.network(given, training=True)
    check_equal(relaxed, hard)


def residual(x):
    """A chain, a residual block whose branch may vanish, and a squeeze that may not."""
    x = L.Conv2D(3, 3, padding="same", name="stem")(x)
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(2, 3, padding="same", name="inner")(x)))
    x = L.Add()([x, L.BatchNormalization()(L.Conv2D(3, 1, name="outer")(y))])
    s = L.Dense(2, activation="relu", name="squeeze")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Multiply()([x, L.Dense(3, activation="sigmoid", name="excite")(s)])
    x = L.DepthwiseConv2D(3, padding="same", use_bias=False)(L.Conv2D(2, 1, name="last")(x))
    return L.Dense(2, name="end")(L.GlobalAveragePooling2D()(x))


def model_of(build, shape=(4, 4, 1)):
    image = keras.Input(shape, name="image")
    return keras.Model(image, build(image))


RESOURCES = ("parameters", "multiply_adds")


@pytest.mark.parametrize("streams", [False, True])
def test_expected_shares_against_every_architecture(streams, rng):
    supernet = supernet_of(model_of(residual), multiply_adds=0.95, streams=streams)
    graph, logits = supernet.graph, rng.normal(0, 1.5, supernet.graph.num_units)
    q = 1 / (1 + np.exp(-logits))
    expected = np.zeros(2)
    for bits in itertools.product([False, True], repeat=graph.num_units):
        keep = dict(zip([g.name for g in graph.groups], np.split(np.array(bits), graph.starts[1:]), strict=True))
        probability = np.where(bits, q, 1 - q).prod()
        expected += probability * np.array([count(graph, r, graph.closed(keep)) for r in RESOURCES])
    expected /= [count(graph, r) for r in RESOURCES]
    supernet.draw.keep_logit.assign(logits)
    np.testing.assert_allclose(supernet.learning.expected_shares(), expected, rtol=1e-5)
    posterior = supernet.posterior()
    np.testing.assert_allclose([posterior.expected_share(r) for r in RESOURCES], expected, rtol=1e-6)
    assert float(supernet.progress()["parameters"]) == pytest.approx(expected[0], rel=1e-5)
    assert float(supernet.progress()["undecided"]) == ((q >= 0.05) & (q <= 0.95)).sum()


def test_gradients_of_expected_shares_against_the_numpy_ones(rng):
    graph = supernet_of(multi_branch_resnet(4, 1, 5, (8, 8, 3)), streams=True).graph
    shares = ExpectedShares(graph.form, RESOURCES)
    for scale in (1.0, 20.0):
        logits = tf.Variable(rng.normal(0, scale, graph.num_units), dtype=tf.float32)
        with tf.GradientTape(persistent=True) as tape:
            values = shares(logits.value())
        q = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
        gradients = tape.jacobian(values, logits, experimental_use_pfor=False)  # two rows: nothing to vectorize
        for value, gradient, resource in zip(values, gradients, RESOURCES, strict=True):
            full = graph.form.full(resource)
            expected, slope = graph.form.expectations[resource].value_and_gradient(q)
            assert float(value) == pytest.approx(expected / full, rel=1e-5)
            np.testing.assert_allclose(gradient, slope * q * (1 - q) / full, rtol=1e-3, atol=1e-7)


def test_the_training_loss_has_the_prior_of_the_costs(rng):
    """Between two posteriors, N x the difference of the regularizers is that of E[log q - log prior]."""
    supernet = supernet_of(model_of(residual), multiply_adds=0.5, num_examples=300)
    multipliers, values = np.array([0.7, 0.2]), []
    supernet.learning.multipliers.assign(multipliers)
    for _ in range(2):
        logits = rng.normal(size=supernet.graph.num_units)
        supernet.draw.keep_logit.assign(logits)
        posterior = supernet.posterior()
        prior = -300 * multipliers @ [posterior.expected_share(r) for r in RESOURCES]  # E[log prior], up to a constant
        values.append((300 * float(supernet.regularizer()), -posterior.entropy() - prior))
    (one, expected), (other, as_expected) = values
    assert one - other == pytest.approx(expected - as_expected, rel=1e-4)


def images_and_labels(rng, size=400):
    """Bright quadrants: enough to learn that dropping all channels costs something."""
    labels = rng.integers(0, 4, size)
    images = rng.normal(0, 0.5, (size, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
    return images.astype("f4"), labels


def small(x):
    for filters in (8, 16):
        x = L.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
    return L.Dense(4, name="end")(L.Flatten()(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters, multiply_adds, noise",
    [(0.1, None, "batch"), (None, 0.9, "example"), (0.5, 0.4, "batch"), (0.5, 0.4, "example")],
)
def test_expected_costs_reach_their_bounds(parameters, multiply_adds, noise, rng):
    bounds = {"parameters": parameters, "multiply_adds": multiply_adds}
    supernet = tfnas.gate(model_of(small, (8, 8, 1)), steps=200, num_examples=4000, noise=noise, **bounds)
    supernet.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS)
    supernet.fit(*images_and_labels(rng), batch_size=20, epochs=10, verbose=0)
    assert int(supernet.learning.steps_taken) == 200
    misses = supernet.learning.expected_shares().numpy() / [bound for bound in bounds.values() if bound] - 1
    assert max(misses) <= 0.05
    if not multiply_adds or multiply_adds < 0.9:  # units that are worth nothing go even without a price
        assert max(misses) >= -0.05  # of the binding one
    posterior = supernet.posterior()
    for candidate in posterior.sample(5):
        assert all(posterior.cost_of(candidate, resource) <= bound for resource, bound in posterior.bounds.items())


@pytest.mark.parametrize("noise", ["batch", "example"])
def test_a_reloaded_supernet_trains_as_if_it_had_not_been_saved(tmp_path, rng, noise):
    bounds = {"parameters": 0.5, "multiply_adds": 1000}
    supernet = tfnas.gate(model_of(residual), steps=20, num_examples=50, noise=noise, exclude="last", **bounds)
    supernet.compile(keras.optimizers.AdamW(0.01), LOSS, run_eagerly=True)
    x, y = rng.normal(size=(8, 4, 4, 1)).astype("f4"), rng.integers(0, 2, 8)
    supernet.fit(x, y, epochs=3, verbose=0, shuffle=False)
    architecture = supernet.posterior().sample(1, seed=1)[0]
    supernet.set_architecture(architecture)
    supernet.save(tmp_path / "s.keras")
    again = tfnas.load(tmp_path / "s.keras")
    assert again.posterior() == supernet.posterior() and again.architecture() == supernet.architecture()
    assert again.posterior().bounds["multiply_adds"] == 1000
    assert [g.name for g in again.graph.groups] == [g.name for g in supernet.graph.groups]
    np.testing.assert_array_equal(again(x), supernet(x))
    for made in (supernet, again):
        for _ in range(2):
            made.train_on_batch(x, y)
    for one, other in zip(supernet.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(supernet.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_streams_are_gated_only_where_a_bound_needs_it():
    model = multi_branch_resnet(8, 1, 5, (8, 8, 3))
    inner = supernet_of(model, parameters=0.5)
    assert not inner.graph.streams
    least = inner.graph.form.least("parameters")
    assert not supernet_of(model, parameters=least).graph.streams
    assert supernet_of(model, parameters=least - 1).graph.streams
    with pytest.raises(
        UserError, match=f"={least - 1:,.0f} is out of reach: at least {least:,.0f} .* go: streams=True$"
    ):
        supernet_of(model, parameters=least - 1, streams=False)
    with pytest.raises(UserError, match="parameters=1.5 is out of reach: .* a share, at most 1.$"):
        supernet_of(model, parameters=1.5)
    with pytest.raises(
        UserError, match="parameters=0.001 is out of reach: .*; to let more channels go: fewer layers in"
    ):
        supernet_of(model, parameters=0.001, exclude="*path1_conv*")
    with pytest.raises(UserError, match="is out of reach: at least .* remain, a share of .*, the most in '"):
        supernet_of(model, parameters=10)


def test_a_bound_out_of_reach_names_the_kinds_of_layers_that_are_left_whole():
    x = given = keras.Input((8, 8, 4))
    x = L.Softmax()(L.Conv2D(16, 3, padding="same")(x))
    x = L.Permute((2, 3, 1))(L.Conv2D(16, 3)(L.Conv2D(16, 3)(x)))
    model = keras.Model(given, L.Dense(5)(L.GlobalAveragePooling2D()(x)))
    with pytest.raises(UserError, match="they read, these stay: Softmax, Permute$"):
        supernet_of(model, parameters=0.01)


def test_an_architecture_of_other_groups_is_refused():
    supernet = supernet_of(model_of(residual))
    with pytest.raises(UserError, match="the groups of this supernet"):
        supernet.set_architecture(Architecture({"other": [True]}))


def test_the_plain_model_is_not_changed_and_weights_are_copied(rng):
    model = multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)
    random_weights(model, rng)
    before = [w.copy() for w in model.get_weights()]
    supernet = supernet_of(model)
    x = rng.normal(size=(8, 8, 8, 1)).astype("f4")
    np.testing.assert_array_equal(supernet(x), model(x))
    supernet.compile("sgd", LOSS, run_eagerly=True)
    supernet.fit(x, np.zeros(8, int), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_supernets_print_one_line():
    """Of no training, every unit is kept with probability 0.98; a published search drops each channel with 0.1."""
    model = multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))
    units = supernet_of(model, parameters=0.5, multiply_adds=0.6)
    shares, texts = units.learning.expected_shares().numpy(), []
    smallest = units.graph.closed(Architecture({g.name: np.zeros(g.size, bool) for g in units.graph.groups}))
    full, left = tfnas.cost(units), tfnas.cost(units, smallest)
    gone = [f"{1000 * (full.parameters - left.parameters) // full.parameters / 10} % of the parameters"]
    gone += [f"{1000 * (full.multiply_adds - left.multiply_adds) // full.multiply_adds / 10} % of the multiply-adds"]
    assert repr(units) == (
        f"<UnitSupernet '{units.name}' of {units.graph.num_units} units: {100 * shares[0]:.1f} % of the parameters "
        f"expected (bound: 50.0 %), {100 * shares[1]:.1f} % of the multiply-adds expected (bound: 60.0 %); at most "
        f"{', '.join(gone).replace(', ', ' and ')} can go>"
    )
    tf.function(lambda: texts.append(repr(units)))()
    assert texts == [f"<UnitSupernet '{units.name}'>"]
    published = tfnas.gate(model, ell2=80, num_examples=1000)
    assert repr(published) == (
        f"<PublishedSupernet '{published.name}' of {len(published.gated_layers)} gated layers, ell2=80: "
        "90.0 % of the kernel weights expected>"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": "10"}, "steps must be an integer. Received: steps='10'"),
        ({"steps": 1.5}, "steps must be an integer. Received: steps=1.5"),
        ({"channel_multiple": 8.0}, "channel_multiple must be an integer"),
        ({"num_examples": math.nan}, "num_examples must be a number. Received: num_examples=nan"),
        ({"num_examples": "x"}, "num_examples must be a number. Received: num_examples='x'"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"exclude": None}, "exclude must be a pattern, or a list of them. Received: exclude=None"),
        ({"exclude": [3]}, "exclude must be a pattern"),
        ({"streams": "yes"}, "streams must be True, False or None. Received: streams='yes'"),
        ({"device": "litert"}, "device is where the latency is measured; bound it. Received: device='litert'"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_in_a_line(options, words):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Conv2D(1, 1)])
    with pytest.raises(UserError, match=f"^gate: {re.escape(words)}[^\n]*$"):
        supernet_of(model, **options)


def test_what_is_no_supernet_and_no_architecture_is_told():
    model = multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))
    supernet = supernet_of(model)
    architecture = supernet.posterior().mode()
    with pytest.raises(UserError, match="gate: a model without gates expected. Received: <UnitSupernet"):
        supernet_of(supernet)
    for function in (supernet_of, tfnas.cost):
        with pytest.raises(UserError, match="model '.*': the network of a supernet, with its gates: pass"):
            function(supernet.network)
    published = tfnas.gate(model, ell2=80, num_examples=1000)
    with pytest.raises(UserError, match="gate: a model without gates expected. Received: <Functional"):
        supernet_of(published.network)
    with pytest.raises(UserError, match="subnet: a supernet, as gate returns it, expected. Received: <Functional"):
        tfnas.subnet(model, architecture)
    supernet.compile("sgd", LOSS)
    held_out = np.zeros((20, 8, 8, 1), "f4"), np.zeros(20, int)
    with pytest.raises(UserError, match="rank: architectures expected, for example from posterior.sample. Received: 1"):
        tfnas.rank(supernet, [1, 2], held_out)
    with pytest.raises(UserError, match="rank: a supernet, as gate returns it, expected. Received: <Functional"):
        tfnas.rank(model, [architecture], held_out)
