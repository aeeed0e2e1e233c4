import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfnas.gating.gates import Gated


def built(layer, channels, **arguments):
    gated = Gated(layer, name="gated", **arguments)
    shape = (None, channels) if isinstance(layer, keras.layers.Dense) else (None, *[6] * layer.rank, channels)
    gated.build(shape)
    return gated


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv1D(4, 3),
        keras.layers.Conv2D(4, 3, strides=2, padding="same"),
        keras.layers.Conv3D(4, 3),
        keras.layers.Dense(4),
    ],
)
def test_standard_battery(layer, rng):
    gated = Gated(layer)
    shape = (2, 5) if isinstance(layer, keras.layers.Dense) else (2, *[6] * layer.rank, 5)
    x = rng.normal(size=shape).astype("float32")
    y = gated(x)
    assert y.shape == gated.compute_output_shape(shape) == layer.compute_output_shape(shape)
    np.testing.assert_allclose(y, layer(x), rtol=1e-6)  # all channels kept at first
    assert gated(x, training=True).shape == y.shape
    assert len(gated.trainable_variables) == 3 and len(gated.losses) == 0

    again = Gated.from_config(gated.get_config())
    again.build(shape)
    assert again.get_config() == gated.get_config()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.square(gated(x, training=True)))
    for gradient in tape.gradient(total, [v.value for v in gated.trainable_variables]):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_hard_mask_drops_input_channels(rng):
    gated = built(keras.layers.Conv2D(4, 3), 5)
    x = rng.normal(size=(2, 6, 6, 5)).astype("float32")
    keep = np.array([1, 0, 1, 1, 0], "float32")
    gated.mask.assign(keep)
    by_hand = (
        tf.nn.conv2d(x[..., keep > 0], gated.layer.kernel.numpy()[:, :, keep > 0], 1, "VALID")
        + gated.layer.bias.numpy()
    )
    np.testing.assert_allclose(gated(x), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p, temperature", [(0.1, 0.2), (0.5, 0.2), (0.9, 2 / 3)])
def test_relaxed_gates_have_tfps_distribution(p, temperature):
    gated = built(keras.layers.Dense(1), 4, temperature=temperature, initial_drop=p)
    ours = gated.relaxed_gates(50_000).numpy()
    keep_logits = [np.log(1 - p) - np.log(p)] * 4
    tfps = tfp.distributions.RelaxedBernoulli(temperature, logits=np.float32(keep_logits)).sample(50_000, seed=7)
    # 5 standard errors of a mean of 200,000 with deviation at most 1/2, and of its variance.
    assert ours.mean() == pytest.approx(tfps.numpy().mean(), abs=0.008)
    assert ours.var() == pytest.approx(tfps.numpy().var(), abs=0.006)
    # And the equation of the paper, from uniform numbers.
    r1, r2 = np.random.default_rng(1).random((2, 50_000, 4))
    drop_logit = np.log(p) - np.log(1 - p)
    drop = 1 / (1 + np.exp(-(drop_logit + np.log(-np.log(r2)) - np.log(-np.log(r1))) / temperature))
    assert ours.mean() == pytest.approx((1 - drop).mean(), abs=0.008)


def test_cold_gate_has_the_bernoullis_mean():
    gated = built(keras.layers.Dense(1), 2, temperature=1e-3, initial_drop=0.3)
    gates = gated.relaxed_gates(100_000).numpy()
    assert gates.mean() == pytest.approx(0.7, abs=0.006)
    assert ((gates < 0.01) | (gates > 0.99)).mean() > 0.99


def test_saturated_gates_have_finite_gradients():
    gated = built(keras.layers.Dense(1), 3, group_sizes=(1, 1, 1))
    gated.drop_logit.assign([-30.0, 0.0, 30.0])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(gated.relaxed_gates(100_000))
    gradient = tape.gradient(total, gated.drop_logit.value)
    assert np.isfinite(gradient).all()
    assert gradient[1] < 0  # a larger drop logit keeps less


def test_noise_differs_by_example_channel_call_and_layer_but_not_by_run():
    gated, again = built(keras.layers.Dense(1), 4, seed=3), built(keras.layers.Dense(1), 4, seed=3)
    first, second = gated.relaxed_gates(8).numpy(), gated.relaxed_gates(8).numpy()
    assert np.ptp(first, axis=0).min() > 0 and np.ptp(first, axis=1).min() > 0
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again.relaxed_gates(8).numpy())
    assert not np.array_equal(first, built(keras.layers.Dense(1), 4, seed=4).relaxed_gates(8).numpy())


def test_groups_share_a_probability():
    gated = built(keras.layers.Dense(1), 5, group_sizes=(2, 3))
    gated.drop_logit.assign([-1.0, 2.0])
    np.testing.assert_array_equal(gated.channel_logits(), [-1, -1, 2, 2, 2])
    np.testing.assert_allclose(gated.drop_probability(), [0.26894142, 0.88079708], rtol=1e-7)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_draws_gates_in_float32(policy, rng):
    keras.mixed_precision.set_global_policy(policy)
    gated = Gated(keras.layers.Conv2D(4, 3))
    x = rng.normal(size=(2, 6, 6, 5)).astype("float32")
    assert gated(x, training=True).dtype == policy.removeprefix("mixed_")
    assert gated.drop_logit.dtype == gated.mask.dtype == "float32"
    assert gated.relaxed_gates(3).dtype == tf.float32
    assert gated.channel_logits().dtype == tf.float32


def test_save_and_load(tmp_path, rng):
    image = keras.Input((6, 6, 5))
    model = keras.Model(image, Gated(keras.layers.Conv2D(4, 3), group_sizes=(2, 3), temperature=0.5, seed=9)(image))
    gated = model.layers[1]
    gated.drop_logit.assign([0.3, -0.7])
    gated.mask.assign([1.0, 0, 1, 0, 1])
    gated.relaxed_gates(1)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    x = rng.normal(size=(2, 6, 6, 5)).astype("float32")
    np.testing.assert_array_equal(again(x), model(x))
    np.testing.assert_array_equal(again.layers[1].drop_logit, gated.drop_logit)
    # The noise goes on where it was, too.
    np.testing.assert_array_equal(again.layers[1].relaxed_gates(4), gated.relaxed_gates(4))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": 0.0}, "temperature must be greater than 0. Received: temperature=0.0"),
        ({"initial_drop": 1.0}, "initial_drop must be strictly in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gated(keras.layers.Dense(1), **arguments)


def test_groups_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"must add up to the 4 input channels. Received: group_sizes=\(2, 1\)"):
        built(keras.layers.Dense(1), 4, group_sizes=(2, 1))
