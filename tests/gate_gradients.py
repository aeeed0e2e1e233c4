"""Gradients with regard to gates that scale a normalization's output, by plain Keras layers."""

import numpy as np
import tensorflow as tf


def gradients(model, names, loss, images, labels, training):
    """Of the loss by each channel's gate at 1: gamma dL/dgamma + beta dL/dbeta, shape (layers, channels)."""
    norms = [model.get_layer(name) for name in names]
    with tf.GradientTape() as tape:
        value = loss(labels, model(images, training=training))
    found = tape.gradient(value, [(bn.gamma.value, bn.beta.value) for bn in norms])
    return np.array([bn.gamma * gamma + bn.beta * beta for bn, (gamma, beta) in zip(norms, found, strict=True)])
