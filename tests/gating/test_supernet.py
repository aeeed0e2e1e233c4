import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tiny
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.search_space.architecture import Architecture
from tfnas.supernets import multi_branch_resnet


def small(**arguments):
    model = multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)
    return model, tfnas.gate(model, **{"ell2": 50, "num_examples": 1000, **arguments})


def batch(rng):
    return rng.normal(size=(8, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 8)


def logits_of(supernet):
    return np.concatenate([np.asarray(layer.drop_logit) for layer in supernet.gated_layers.values()])


def test_gate_keeps_weights_and_leaves_stem_and_classifier(rng):
    model = multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)
    random_weights(model, rng)
    before = [w.copy() for w in model.get_weights()]
    supernet = tfnas.gate(model, ell2=50, num_examples=1000)
    x, _ = batch(rng)
    np.testing.assert_allclose(supernet(x), model(x), rtol=1e-5, atol=1e-6)
    # 2 paths of 2 convolutions in 3 blocks, and a skip of 2 halves in the last two (the first keeps its 4 channels).
    assert len(supernet.gated_layers) == 16
    assert "stem_conv" not in supernet.gated_layers and "classifier" not in supernet.gated_layers
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_posterior_reads_the_gates():
    _, supernet = small(initial_drop=0.25)
    posterior = supernet.posterior()
    assert [g.name for g in posterior.layers] == list(supernet.gated_layers)
    conv = next(g for g in posterior.layers if g.name == "stage2_block1_path1_conv2")
    assert (conv.group_sizes, conv.parameters_per_channel) == ((8,), 3 * 3 * 8)
    assert conv.multiply_adds_per_channel == 3 * 3 * 8 * 4 * 4  # at 4 x 4 positions
    assert conv.drop_probability == pytest.approx((0.25,))


def narrow(**options):
    """Few layers, so that a step is traced in a second."""
    return tfnas.gate(tiny.build((8, 8, 1), 3), **{"ell2": 50, "num_examples": 1000, **options})


def without_noise(supernet):
    for layer in supernet.gated_layers.values():
        layer.relaxed_gates = lambda n, layer=layer: tf.repeat(tf.sigmoid(-layer.channel_logits())[None], n, 0)
    return supernet


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BOUNDED = {"ell2": None, "parameters": 0.5, "steps": 20}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01, clipnorm=1.0),
    "adamw": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.02, 40), weight_decay=0.05),
    "lion": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion(0.003, weight_decay=0.3)),
}


@pytest.mark.parametrize("name, options", [("sgd", {}), ("sgd", BOUNDED), ("adamw", BOUNDED), ("lion", {})])
def test_a_reloaded_supernet_trains_as_if_it_had_not_been_saved(tmp_path, rng, name, options):
    optimizer = OPTIMIZERS[name]()
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    supernet = narrow(**options)
    five = tfnas.GatedOptimizer(inner, gate_learning_rate=5.0) if (name, options) == ("sgd", {}) else optimizer
    supernet.compile(five, LOSS, run_eagerly=True)  # for so few steps, tracing would take most of the time
    x, y = batch(rng)
    supernet.fit(x, y, epochs=3, verbose=0, shuffle=False)
    supernet.save(tmp_path / "s.keras")
    again = keras.models.load_model(tmp_path / "s.keras")
    assert again.posterior() == supernet.posterior()
    assert (again.num_examples, again.bounds) == (1000, supernet.bounds)
    assert again.optimizer.get_config() == supernet.optimizer.get_config()
    for model in (supernet, again):
        for _ in range(2):
            model.train_on_batch(x, y)
    for one, other in zip(supernet.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(supernet.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_xla_takes_the_same_steps(rng):
    """Without noise, for which XLA has a generator of its own, and of few layers, which it takes long to compile."""
    image = keras.Input((8, 8, 1))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, name="stem")(image))
    x = keras.layers.Conv2D(4, 3, name="gated")(keras.layers.ReLU()(x))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    ends, (x, y) = [], batch(rng)
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        supernet = without_noise(tfnas.gate(model, ell2=50, num_examples=1000))
        rate = keras.optimizers.schedules.CosineDecay(0.01, 20)
        supernet.compile(keras.optimizers.AdamW(rate), LOSS, jit_compile=jit_compile)
        assert supernet.jit_compile == jit_compile
        before = logits_of(supernet)
        supernet.fit(x, y, epochs=3, verbose=0, shuffle=False)
        ends.append(logits_of(supernet))
    np.testing.assert_allclose(*ends, rtol=1e-3)
    assert (np.abs(ends[0] - before) > 1e-4).all()


@pytest.mark.parametrize("policy, scaled", [("mixed_float16", True), ("mixed_bfloat16", False)])
def test_the_loss_is_scaled_where_keras_scales_the_plain_models(tmp_path, rng, policy, scaled):
    keras.config.set_dtype_policy(policy)
    model = tiny.build((8, 8, 1), 3)
    supernet = tfnas.gate(model, ell2=50, num_examples=1000)
    keras.config.set_dtype_policy("float32")
    model.compile("sgd", loss="mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    supernet.compile("sgd", LOSS, run_eagerly=True)
    supernet.fit(*batch(rng), epochs=1, verbose=0)
    supernet.save(tmp_path / "s.keras")
    for made in (supernet, keras.models.load_model(tmp_path / "s.keras")):
        optimizer = made.optimizer
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == scaled
        assert isinstance(getattr(optimizer, "inner_optimizer", optimizer), tfnas.GatedOptimizer)
    supernet.compile("sgd", LOSS, auto_scale_loss=False)
    assert isinstance(supernet.optimizer, tfnas.GatedOptimizer)


def test_the_constant_prior_is_an_l2_that_no_gate_sees():
    _, supernet = small(prior="constant", initial_drop=0.3)
    entropies, norms = 0.0, 0.0
    for layer, gates in zip(supernet.gated_layers.values(), supernet.posterior().layers, strict=True):
        entropies += float(np.sum(tfp.distributions.Bernoulli(probs=gates.channel_drop).entropy()))
        norms += sum(float(np.sum(np.square(kernel))) for kernel in layer.layer.get_weights() if kernel.ndim > 1)
    expected = (0.5 * supernet.ell2 * norms - entropies) / supernet.num_examples
    assert float(supernet.regularizer()) == pytest.approx(expected, rel=1e-5)
    again = type(supernet).from_config(supernet.get_config())
    assert (again.prior, again.ell2) == ("constant", supernet.ell2)
    with pytest.raises(UserError, match="gate: prior must be one of 'uniform', 'constant'. Received: 'flops'"):
        small(prior="flops")


def test_set_architecture_and_back():
    _, supernet = small()
    architecture = supernet.posterior().sample(1, seed=3)[0]
    supernet.set_architecture(architecture)
    assert supernet.architecture() == architecture


def test_another_networks_architecture_is_refused():
    _, supernet = small()
    with pytest.raises(
        UserError, match="the layers of this supernet expected. Received: others; 'other' is only in the architecture"
    ):
        supernet.set_architecture(Architecture({**supernet.architecture(), "other": [True]}))
    wrong = {**supernet.architecture(), "stage1_block1_path1_conv1": [True]}
    with pytest.raises(
        UserError, match="'stage1_block1_path1_conv1': a mask of 4 input channels expected. Received: 1"
    ):
        supernet.set_architecture(Architecture(wrong))


def test_nothing_to_gate_is_refused():
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)))
    with pytest.raises(UserError, match="has no convolution"):
        tfnas.gate(model, ell2=1, num_examples=10)
    with pytest.raises(ValueError, match="ell2 must be greater than 0. Received: ell2=0"):
        small(ell2=0)


def test_replicas_draw_together_what_one_device_draws():
    """Replica numbers are given by hand here; tests/training/test_distribution.py has real ones."""
    _, supernet = small()
    gated = next(iter(supernet.gated_layers.values()))
    whole, draws = gated.relaxed_gates(8).numpy(), []
    for replica in (0, 1):
        gated.draws.assign(0)

        class Context:
            replica_id_in_sync_group = replica
            num_replicas_in_sync = 2

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.distribute, "get_replica_context", Context)
            draws.append(gated.relaxed_gates(4).numpy())
    assert not np.array_equal(*draws)
    np.testing.assert_array_equal(np.concatenate(draws), whole)


def test_groups_of_channels_never_span_two_sources():
    image = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(5, 1, name="stem")(image)
    x = keras.layers.Concatenate(name="both")([x, keras.layers.Conv2D(3, 1, name="other")(image)])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 1, name="conv")(x))
    model = keras.Model(image, keras.layers.Dense(3)(x))

    def groups(**arguments):
        return tfnas.gate(model, ell2=1, num_examples=10, **arguments).gated_layers["conv"].group_sizes

    assert groups() == (5, 3)
    assert groups(group_size=2) == (2, 2, 1, 2, 1)
    assert groups(group_size=1) == (1,) * 8
    assert groups(group_size=100) == (5, 3)
    assert groups(by_source=False) == (8,)
    assert groups(by_source=False, group_size=3) == (3, 3, 2)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, group_size=2)
    p = np.array([0.2, 0.4, 0.9, 0.5, 0.6])
    supernet.gated_layers["conv"].drop_logit.assign(np.log(p) - np.log(1 - p))
    means = [(0.2 * 2 + 0.4 * 2 + 0.9) / 5, (0.5 * 2 + 0.6) / 3]
    assert supernet.source_drop()["conv"] == pytest.approx(means, rel=1e-5)


def test_fit_shows_what_is_left_and_how_many_gates_are_undecided(rng):
    supernet = narrow(initial_drop=0.05 + 1e-4, group_size=1)
    supernet.compile(tfnas.GatedOptimizer(keras.optimizers.SGD(0.1), gate_step=0.3), LOSS, run_eagerly=True)
    history = supernet.fit(*batch(rng), epochs=2, verbose=0).history
    p = np.concatenate([gates.channel_drop for gates in supernet.posterior().layers])
    assert history["undecided"][-1] == ((p >= 0.05) & (p <= 0.95)).sum() and 0 < history["undecided"][-1] < p.size
    assert history["kept"][-1] == pytest.approx(supernet.posterior().expected_kept(), rel=1e-5)
    assert set(supernet.evaluate(*batch(rng), verbose=0, return_dict=True)) == {"loss"}


def test_options_of_the_two_kinds_of_search_are_not_mixed():
    model = multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)

    def refused(message, kind=UserError, **arguments):
        with pytest.raises(kind, match=message):
            tfnas.gate(model, num_examples=10, **arguments)

    expected = r"gate: ell2, or bounds \(parameters, multiply_adds, latency\) expected. Received: "
    refused(expected + "none of them")
    refused(expected + "ell2=1, parameters=0.5", ell2=1, parameters=0.5)
    for name, value in {"group_size": 2, "by_source": False, "prior": "constant", "gate_dense": True}.items():
        message = f"gate: {name} belongs to a search with ell2. Received: {name}={value!r} and bounds"
        refused(message, parameters=0.5, steps=5, **{name: value})
    refused("gate: include belongs to a search with ell2", parameters=0.5, steps=5, include="*conv1")
    for name, value in {"noise": "example", "streams": False, "steps": 5}.items():
        refused(
            f"gate: {name} belongs to a search with bounds. Received: {name}={value!r} and ell2",
            ell2=1,
            **{name: value},
        )
    refused("steps must be at least 1 with bounds. Received: steps=0", ValueError, parameters=0.5)
    refused("noise must be one of 'example', 'batch'. Received: 'none'", parameters=0.5, steps=5, noise="none")
    refused("group_size must be at least 0. Received: group_size=-1", ValueError, ell2=1, group_size=-1)
    refused("temperature must be greater than 0", ValueError, parameters=0.5, steps=5, temperature=0)
    refused("initial_drop must be strictly in", ValueError, parameters=0.5, steps=5, initial_drop=1)
    refused("parameters=10 is out of reach", parameters=10, steps=5)
