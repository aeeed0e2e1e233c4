"""The objective against a NumPy computation of method.md's equations, and its gradients against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnas
from tfnas.gating import elbo

LOGITS = np.array([-2.0, 0.3, 4.0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_weight_term_and_entropy_against_numpy(rng):
    kernel = rng.normal(size=(3, 3, 3, 5))
    p = sigmoid(LOGITS)
    expected = sum((1 - p[k]) * (kernel[:, :, k] ** 2).sum() for k in range(3))
    norms = tf.constant((kernel**2).sum((0, 1, 3)), tf.float32)
    assert float(elbo.weight_term(tf.constant(LOGITS, tf.float32), norms)) == pytest.approx(expected, rel=1e-5)
    entropy = (p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    assert float(elbo.negative_entropy(tf.constant(LOGITS, tf.float32))) == pytest.approx(entropy, rel=1e-5)


def test_regularizer_and_its_gradients(rng):
    kernel = rng.normal(size=(1, 1, 3, 4))
    ell2, num_examples = 80.0, 700.0
    p, norms = sigmoid(LOGITS), (kernel**2).sum((0, 1, 3))
    logits, weights = tf.Variable(LOGITS, dtype=tf.float32), tf.Variable(kernel, dtype=tf.float32)
    with tf.GradientTape() as tape:
        squares = tf.reduce_sum(tf.square(weights.value()), (0, 1, 3))
        value = elbo.regularizer([(logits.value(), squares)], ell2, num_examples)
    by_logits, by_weights = tape.gradient(value, [logits, weights])

    entropy = (p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    assert float(value) == pytest.approx((ell2 / 2 * ((1 - p) * norms).sum() + entropy) / num_examples, rel=1e-5)
    # d/dl of the weight term: -p (1 - p) norm; of the entropy term: p (1 - p) l.
    expected = (p * (1 - p) * (-ell2 / 2 * norms + LOGITS)) / num_examples
    np.testing.assert_allclose(by_logits, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(by_weights, ell2 * (1 - p)[:, None] * kernel / num_examples, rtol=1e-5, atol=1e-9)


def test_a_constant_weight_term_has_no_gradient_by_the_gates(rng):
    logits, norms = tf.Variable(rng.normal(size=4)), tf.constant(rng.uniform(size=4))
    with tf.GradientTape() as tape:
        value = elbo.regularizer([(logits, norms)], 80.0, 700.0, correlated=False)
    p = 1 / (1 + np.exp(-logits.numpy()))
    entropy = p * np.log(p) + (1 - p) * np.log(1 - p)
    assert float(value) == pytest.approx((40.0 * norms.numpy().sum() + entropy.sum()) / 700.0)
    # d/dx of p log p + (1 - p) log(1 - p) at p = sigmoid(x) is x p (1 - p).
    np.testing.assert_allclose(tape.gradient(value, logits), logits.numpy() * p * (1 - p) / 700.0)


def test_extreme_logits_stay_finite():
    extreme = tf.Variable([-100.0, 100.0])
    with tf.GradientTape() as tape:
        value = elbo.regularizer([(extreme.value(), tf.ones(2))], 1.0, 1.0)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, extreme)).all()
    assert float(value) == pytest.approx(0.5, abs=1e-6)


def test_regularizer_is_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    image = keras.Input((1, 1, 2))
    x = keras.layers.Conv2D(2, 1, kernel_initializer=keras.initializers.Constant(300.0), name="conv")(image)
    supernet = tfnas.gate(keras.Model(image, x), ell2=1, num_examples=1, initial_drop=0.5, include="conv")
    value = supernet.regularizer()
    assert value.dtype == tf.float32
    # 300^2 overflows float16; 2 channels of 2 weights each.
    assert float(value) == pytest.approx(0.5 * 2 * 0.5 * 2 * 90_000 - 2 * np.log(2), rel=1e-6)


def test_training_loss_is_the_elbo(rng):
    """Nearly certain gates (p = 1e-9) make the relaxed pass deterministic, so that the whole loss has a closed form."""
    image = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 1, name="stem", use_bias=False)(image)
    x = keras.layers.Conv2D(3, 1, name="conv", use_bias=False)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(3, use_bias=False)(x))
    ell2, num_examples, p = 40.0, 600.0, 1e-9
    supernet = tfnas.gate(model, ell2=ell2, num_examples=num_examples, initial_drop=p)
    supernet.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = rng.normal(size=(5, 4, 4, 2)).astype("float32"), np.array([0, 1, 2, 1, 0])
    loss = supernet.compute_loss(
        images, tf.constant(labels), supernet(images, training=True), sample_weight=None, training=True
    )

    stem, conv, dense = (w.astype(np.float64) for w in model.get_weights())
    logits = (images.astype(np.float64).mean((1, 2)) @ stem[0, 0]) @ conv[0, 0] @ dense
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    nll = -log_probs[np.arange(5), labels].mean()
    entropy = 3 * (p * np.log(p) + (1 - p) * np.log1p(-p))
    expected = nll + (ell2 / 2 * (1 - p) * (conv**2).sum() + entropy) / num_examples
    assert float(loss) == pytest.approx(expected, rel=1e-5)
