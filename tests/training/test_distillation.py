"""A teacher's part in the loss, against NumPy, for outputs of every kind; and in `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

from tfnas.training.distillation import Kind, Taught, Teacher, kind_of

L = keras.losses


@pytest.mark.parametrize(
    "loss, kind",
    [
        (L.SparseCategoricalCrossentropy(from_logits=True), Kind.LOGITS),
        ("sparse_categorical_crossentropy", Kind.PROBABILITIES),
        (L.CategoricalCrossentropy(), Kind.PROBABILITIES),
        (L.BinaryCrossentropy(from_logits=True), Kind.BINARY_LOGITS),
        ("binary_crossentropy", Kind.BINARY_PROBABILITIES),
        ("mse", Kind.NUMBERS),
        (lambda y, x: tf.reduce_mean(x), Kind.NUMBERS),
    ],
)
def test_a_loss_says_what_outputs_are(loss, kind):
    assert kind_of(loss) == kind


def divergence(p, q):
    return (p * np.log(p / q)).sum(-1).mean()


@pytest.mark.parametrize("kind", Kind)
def test_the_difference_from_the_teacher(kind, rng):
    temperature = 3.0
    taught, outputs = rng.normal(size=(2, 6, 4))
    if kind == Kind.NUMBERS:
        expected = ((taught - outputs) ** 2).mean()
    elif kind in (Kind.LOGITS, Kind.PROBABILITIES):
        expected = temperature**2 * divergence(*(softmax(x / temperature, -1) for x in (taught, outputs)))
    else:
        p, q = (expit(x / temperature) for x in (taught, outputs))
        expected = temperature**2 * divergence(*(np.stack([x, 1 - x], -1) for x in (p, q)))
    if kind == Kind.PROBABILITIES:
        taught, outputs = softmax(taught, -1), softmax(outputs, -1)
    if kind == Kind.BINARY_PROBABILITIES:
        taught, outputs = expit(taught), expit(outputs)
    teacher = Teacher(None, 0.3, temperature, (kind,))
    found = teacher.loss(tf.constant(2.0), *(tf.constant(x, tf.float32) for x in (taught, outputs)))
    assert float(found) == pytest.approx(0.7 * 2.0 + 0.3 * expected, rel=1e-4)


def test_fit_learns_from_the_teacher_too_and_evaluate_does_not(rng):
    x, y = rng.normal(size=(8, 3)).astype("float32"), rng.normal(size=(8, 2)).astype("float32")

    def network():
        feature = keras.Input((3,))
        return keras.Model(feature, keras.layers.Dense(2, kernel_regularizer="l2")(feature))

    teacher, model = network(), network()
    student = Taught(model, Teacher(teacher, 0.25, 1.0, (Kind.NUMBERS,)))
    student.compile(keras.optimizers.SGD(0.0), loss="mse")
    assert {v.path for v in student.trainable_variables} == {v.path for v in model.trainable_variables}
    outputs, taught, added = model.predict(x, verbose=0), teacher.predict(x, verbose=0), float(model.losses[0])
    own = ((y - outputs) ** 2).mean()
    expected = 0.75 * own + 0.25 * ((taught - outputs) ** 2).mean() + added
    assert student.train_on_batch(x, y) == pytest.approx(expected, rel=1e-5)
    assert student.evaluate(x, y, verbose=0) == pytest.approx(own + added, rel=1e-5)
