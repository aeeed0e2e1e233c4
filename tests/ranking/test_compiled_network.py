"""The engine's own convolutions are Keras's, dilated and padded in every way."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights

import tfnas
from tfnas.ranking.engine import Engine

layers = keras.layers
DILATED = {
    1: [
        lambda **options: layers.Conv1D(4, 3, **options),
        lambda **options: layers.DepthwiseConv1D(3, **options),
        lambda **options: layers.SeparableConv1D(4, 3, **options),
    ],
    2: [
        lambda **options: layers.Conv2D(4, (3, 2), **options),
        lambda **options: layers.DepthwiseConv2D(3, depth_multiplier=1, **options),
        lambda **options: layers.SeparableConv2D(4, 3, depth_multiplier=2, **options),
        lambda **options: layers.Conv2D(4, 3, groups=4, **options),
    ],
    3: [lambda **options: layers.Conv3D(4, (2, 3, 2), **options)],
}


@pytest.mark.parametrize(("rank", "size"), [(1, 9), (2, 8), (3, 5)])
def test_dilated_and_causal_convolutions(rank, size, rng):
    image = keras.Input((size,) * rank + (2,))
    stem = layers.BatchNormalization(name="bn")(getattr(layers, f"Conv{rank}D")(4, 1, name="stem")(image))
    ends = []
    for make in DILATED[rank]:
        ends.append(make(padding="same", dilation_rate=2, activation="tanh")(stem))
        ends.append(make(padding="valid", dilation_rate=3 if rank == 1 else 2)(stem))
    if rank == 1:
        ends += [layers.Conv1D(4, 3, padding="causal", dilation_rate=rate)(stem) for rate in (1, 4)]
        ends.append(layers.Conv1D(4, 3, padding="causal", strides=2)(stem))
        ends.append(layers.Conv1D(4, 3, padding="causal", dilation_rate=2, name="after")(ends[-1]))
    # Of each result, every position counts; and there is a kernel behind it, so that it is gated.
    flat = [layers.Flatten()(x) for x in ends]
    flat.append(layers.Dense(4, name="hidden")(layers.Concatenate()(flat)))
    model = keras.Model(image, layers.Dense(5, name="classifier")(layers.Concatenate()(flat)))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(keras.optimizers.SGD(0.01), loss=loss)
    images = rng.normal(size=(3, *[size] * rank, 2)).astype("f4")
    engine = Engine(supernet, tf.data.Dataset.from_tensors((images, np.zeros(3, int))))
    names = list(supernet.gated_layers)
    for gone in ([], names[::3], names[1::3]):
        keep = {n: rng.random(g.mask.shape[0]) > (1 if n in gone else 0.3) for n, g in supernet.gated_layers.items()}
        architecture = tfnas.Architecture(keep)
        supernet.set_architecture(architecture)
        expected = np.asarray(supernet(images, training=False))
        np.testing.assert_allclose(
            engine.outputs(architecture), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
        )
