"""The draw of a step, and the layers that multiply by it: against TFP, Keras's normalization, differences."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfnas.gating.gates import hard_gates
from tfnas.gating.unit_gates import GatedNormalization, UnitDraw, UnitGate


def drawn(noise="example", sizes=(2, 3), **arguments):
    draw = UnitDraw(sizes, noise, **arguments)
    draw.build((None, 4))
    return draw


@pytest.mark.parametrize("p, temperature", [(0.1, 0.2), (0.5, 0.2), (0.9, 2 / 3)])
def test_relaxed_gates_have_tfps_distribution(p, temperature):
    draw = drawn(temperature=temperature, initial_drop=p)
    ours = draw.relaxed_gates(50_000).numpy()
    logits = np.full(5, np.log(1 - p) - np.log(p), np.float32)
    tfps = tfp.distributions.RelaxedBernoulli(temperature, logits=logits).sample(50_000, seed=7).numpy()
    # 5 standard errors of a mean of 250,000 with deviation at most 1/2, and of its variance.
    assert ours.mean() == pytest.approx(tfps.mean(), abs=0.008)
    assert ours.var() == pytest.approx(tfps.var(), abs=0.006)


def test_saturated_logits_have_finite_gradients():
    draw = drawn(sizes=(3,))
    draw.keep_logit.assign([-30.0, 0.0, 30.0])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(draw.relaxed_gates(100_000))
    gradient = tape.gradient(total, draw.keep_logit.value)
    assert np.isfinite(gradient).all() and gradient[1] > 0


def test_noise_differs_by_example_unit_and_step_but_not_by_run():
    draw, again = (drawn(seed=3, initial_drop=0.5) for _ in range(2))
    first, second = draw.relaxed_gates(8).numpy(), draw.relaxed_gates(8).numpy()
    assert first.shape == (8, 5) and np.ptp(first, axis=0).min() > 0 and np.ptp(first, axis=1).min() > 0
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again.relaxed_gates(8))
    assert not np.array_equal(first, drawn(seed=4, initial_drop=0.5).relaxed_gates(8))
    one = drawn("batch").relaxed_gates(8).numpy()
    assert one.shape == (1, 5) and np.ptp(one) > 0


@pytest.mark.parametrize("noise", ["example", "batch"])
def test_replicas_draw_different_noise(noise):
    """Replica numbers are given by hand here; tests/gating/test_unit_supernet.py has real ones."""
    draw, draws = drawn(noise), []
    whole = draw.relaxed_gates(8).numpy()
    for replica in (0, 1):
        draw.draws.assign(0)

        class Context:
            replica_id_in_sync_group = replica
            num_replicas_in_sync = 2

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.distribute, "get_replica_context", Context)
            draws.append(draw.relaxed_gates(4).numpy())
    assert not np.array_equal(*draws)
    if noise == "example":
        np.testing.assert_array_equal(np.concatenate(draws), whole)


def test_without_relaxation_nothing_is_drawn():
    draw = drawn()
    x = np.zeros((7, 4), "f4")
    for context, training in ((contextlib.nullcontext(), False), (hard_gates(), True)):
        with context:
            parts = draw(x, training=training)
        assert [tuple(part.shape) for part in parts] == [(1, 2), (1, 3)] and int(draw.draws) == 0
    assert [tuple(part.shape) for part in draw(x, training=True)] == [(7, 2), (7, 3)] and int(draw.draws) == 1


@pytest.mark.parametrize("units", [(0, 1, 2, 3, 4), (4, 0, 0, -1, 2), (-1, 1, 1, 1, -1)])
@pytest.mark.parametrize("noise", ["example", "batch"])
def test_a_gate_multiplies_every_channel_by_its_units(units, noise, rng):
    parts = drawn(noise)(np.zeros((7, 4), "f4"), training=True)
    x = rng.normal(size=(7, 3, 3, 5)).astype("f4")
    gate = UnitGate(units)
    values = np.concatenate([np.concatenate(parts, 1), np.ones((len(parts[0]), 1))], 1)[:, list(units)]
    np.testing.assert_allclose(gate([x, *parts], training=True), x * values[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(gate([x, *parts]), x)
    mask = np.array([1, 0, 1, 0, 0], "f4")
    gate.mask.assign(mask)
    np.testing.assert_array_equal(gate([x, *parts]), x * mask)
    with hard_gates():
        np.testing.assert_array_equal(gate([x, *parts], training=True), x * mask)
    alive = UnitGate()
    alive([x])
    alive.mask.assign(mask)
    np.testing.assert_array_equal(alive([x], training=True), x)
    np.testing.assert_array_equal(alive([x]), x * mask)


def normalizations(rng, **options):
    """A normalization, and the same one with a gate in it."""
    plain, inner = (keras.layers.BatchNormalization(name="bn", **options) for _ in range(2))
    values = [rng.uniform(0.5, 2, 5).astype("f4") for _ in range(4)]
    for layer in (plain, inner):
        layer.build((None, 3, 3, 5))
        layer.set_weights(values)
    return plain, GatedNormalization(inner, (1, 0, 3, -1, 4))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_gate_in_a_normalization_is_one_behind_it(policy, trainable, rng):
    keras.mixed_precision.set_global_policy(policy)
    plain, gated = normalizations(rng)
    plain.trainable = gated.layer.trainable = trainable
    parts = drawn("batch")(np.zeros((7, 4), "f4"), training=True)
    x = tf.cast(rng.normal(1, 2, (7, 3, 3, 5)), plain.compute_dtype)
    behind = UnitGate(gated.units)
    tolerance = {"float32": 1e-5, "mixed_float16": 5e-3, "mixed_bfloat16": 4e-2}[policy]
    for training in (True, False):
        got = gated([x, *parts], training=training)
        expected = behind([plain(x, training=training), *parts], training=training)
        assert got.dtype == plain.compute_dtype
        np.testing.assert_allclose(*(tf.cast(y, tf.float32) for y in (got, expected)), rtol=tolerance, atol=tolerance)
        for one, other in zip(gated.layer.weights, plain.weights, strict=True):  # moving statistics too
            np.testing.assert_allclose(one, other, rtol=1e-6)
    mask = np.array([1, 0, 1, 0, 1], "f4")
    gated.mask.assign(mask)
    masked = np.asarray(tf.cast(gated([x, *parts]), tf.float32))
    assert not masked[..., [1, 3]].any() and masked[..., [0, 2, 4]].any()


def test_gradients_reach_scale_offset_and_logits_as_behind_the_normalization(rng):
    plain, gated = normalizations(rng)
    draw, behind = drawn("batch"), UnitGate(gated.units)
    x = tf.constant(rng.normal(1, 2, (7, 3, 3, 5)), tf.float32)
    weights = tf.constant(rng.normal(size=(7, 3, 3, 5)), tf.float32)
    found = []
    for layer, apply in (
        (gated.layer, lambda parts: gated([x, *parts], training=True)),
        (plain, lambda parts: behind([plain(x, training=True), *parts], training=True)),
    ):
        draw.draws.assign(0)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(weights * apply(draw(x, training=True)))
        sources = [layer.gamma.value, layer.beta.value, draw.keep_logit.value, x]
        found.append([np.asarray(g) for g in tape.gradient(total, sources)])
    for one, other in zip(*found, strict=True):
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_logits_against_finite_differences(rng):
    draw, gate = drawn("example", temperature=1.0, initial_drop=0.4), UnitGate((1, 0, 3, -1, 4))
    x = tf.constant(rng.normal(size=(7, 2, 5)), tf.float32)

    def value(logits):
        draw.draws.assign(0)
        draw.keep_logit.assign(logits)
        return tf.reduce_sum(tf.square(gate([x, *draw(x, training=True)], training=True)))

    logits = rng.normal(size=5).astype("f4")
    with tf.GradientTape() as tape:
        total = value(logits)
    gradient = tape.gradient(total, draw.keep_logit.value)
    for u in range(5):
        shift = 1e-2 * np.eye(5, dtype="f4")[u]
        expected = (float(value(logits + shift)) - float(value(logits - shift))) / 2e-2
        assert float(gradient[u]) == pytest.approx(expected, rel=1e-2, abs=1e-3)
    assert float(gradient[2]) == 0.0  # a unit that no channel has


def test_saved_in_a_model_of_their_own(tmp_path, rng):
    image = keras.Input((3, 3, 5))
    parts = UnitDraw((2, 3), "batch", temperature=0.5, initial_drop=0.3, seed=9, name="draw")(image)
    x = GatedNormalization(keras.layers.BatchNormalization(), (1, 0, 3, -1, 4), name="bn")([image, *parts])
    model = keras.Model(image, UnitGate(range(5), name="gate")([keras.layers.Conv2D(5, 1)(x), *parts]))
    model.get_layer("draw").keep_logit.assign(rng.normal(size=5))
    model.get_layer("gate").mask.assign([1, 0, 1, 0, 1])
    images = rng.normal(size=(4, 3, 3, 5)).astype("f4")
    model(images, training=True)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for training in (False, True):  # the noise resumes where it was, too
        np.testing.assert_array_equal(again(images, training=training), model(images, training=training))
