"""Channels that change places in groups are followed, whichever operations move them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights
from networks import convolved
from test_tracing import checked

from tfnas.graph.channels import Graph
from tfnas.graph.models import calls_of
from tfnas.graph.tracing import with_shuffles

layers, ops = keras.layers, keras.ops
ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # of the 8 channels of two groups, by NumPy: np.arange(8).reshape(2, 4).T.ravel()


def by_layers(x):
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((6, 6, 2, 4))(x))
    return layers.Reshape((6, 6, 8))(x)


def by_operations(x):
    return ops.reshape(ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 4)), (0, 1, 2, 4, 3)), (-1, 6, 6, 8))


def by_tensorflow(x):
    def shuffled(x):
        x = tf.transpose(tf.reshape(x, [-1, 6, 6, 2, 4]), perm=[0, 1, 2, 4, 3])
        return tf.reshape(x, [-1, 6, 6, 8])

    return layers.Lambda(shuffled)(x)


def network(shuffle):
    """Two units of ShuffleNetV2: half of the channels pass by, the others are convolved; then all change places."""
    image = keras.Input((6, 6, 3))
    x = convolved(image, 8)
    for _ in range(2):
        passed, read = x[..., :4], x[..., 4:]
        x = shuffle(layers.Concatenate()([passed, convolved(convolved(read, 5, 1), 4)]))
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(convolved(x, 6, 1))))


@pytest.mark.parametrize("shuffle", [by_layers, by_operations, by_tensorflow])
def test_a_shuffled_stream_is_narrowed(shuffle, rng, tmp_path, eager):
    model = network(shuffle)
    random_weights(model, rng)
    supernet = checked(model, rng.normal(size=(3, 6, 6, 3)).astype("f4"), rng, tmp_path)
    assert not Graph(model).untraced
    # A channel stays in both groups or in none. Of the first convolution's 8, each of the 4 that pass by is so tied to
    # one of the first unit, and 2 of these pairs, which pass by the second, to two channels each of that.
    assert sorted(group.size for group in supernet.graph.groups) == [2, 2, 4, 5, 5, 6]


def test_a_shuffle_is_a_permutation_of_channels():
    x = keras.Input((6, 6, 8))
    model = keras.Model(x, by_operations(x))
    (_, record) = with_shuffles(calls_of(model), model.outputs)
    given = np.random.default_rng(0).normal(size=(2, 6, 6, 8)).astype("f4")
    np.testing.assert_array_equal(record.operation(given), given[..., ORDER])
    np.testing.assert_array_equal(model(given), given[..., ORDER])


def test_what_is_read_elsewhere_or_moves_places_stays():
    x = keras.Input((4, 4, 4))
    split = ops.reshape(x, (-1, 4, 4, 2, 2))
    turned = ops.transpose(split, (0, 1, 2, 4, 3))
    both = keras.Model(x, [ops.reshape(turned, (-1, 4, 4, 4)), turned])
    twice = keras.Model(x, ops.reshape(turned, (-1, 4, 4, 4)) + ops.max(split, axis=(3, 4))[..., None])
    places = keras.Model(x, ops.reshape(ops.transpose(split, (0, 3, 1, 2, 4)), (-1, 4, 4, 4)))
    row = keras.Input((6,))
    swapped = keras.Model(row, ops.reshape(ops.transpose(ops.reshape(row, (6, -1)), (1, 0)), (-1, 6)))
    for model in (both, twice, places, swapped):
        records = calls_of(model)
        assert with_shuffles(records, model.outputs) == records
