"""One battery for every family of layers: cut, cost, the engine and files agree with the supernet under the mask."""

import keras
import numpy as np
import pytest
from conftest import random_weights
from exactness import check_cut, check_equal
from random_models import connected, masks

import tfnas
from tfnas.graph.channels import Graph
from tfnas.layers import FAMILIES
from tfnas.ranking.engine import Engine

layers = keras.layers


def with_another(merge):
    """A layer that joins its input with a convolution of it."""
    return lambda x: merge([x, layers.Conv2D(4, 3, padding="same", activation="tanh", name="other")(x)])


def layer_scale(x):
    from keras.src.applications.convnext import LayerScale

    return LayerScale(0.5, 4)(x)


class Offset(layers.Layer):
    """A variable of its own."""

    def build(self, shape):
        self.offset = self.add_weight(shape=(shape[1], 1, shape[-1]), name="offset", initializer="ones")

    def call(self, x):
        return x - self.offset


LAYERS = {
    "own variable": lambda x: Offset()(x),
    "Conv2D": lambda x: layers.Conv2D(5, 3, padding="same", activation="relu")(x),
    "Conv2DTranspose": lambda x: layers.Conv2DTranspose(3, 3, strides=2, padding="same")(x),
    "Dense": lambda x: layers.Dense(5, activation="tanh")(x),
    "EinsumDense": lambda x: layers.EinsumDense("bhwc,cd->bhwd", (5, 5, 6), bias_axes="d")(x),
    "SeparableConv2D": lambda x: layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2)(x),
    "DepthwiseConv2D": lambda x: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x),
    "one channel a group": lambda x: layers.Conv2D(8, 3, groups=4, use_bias=False)(x),
    "BatchNormalization": lambda x: layers.BatchNormalization(center=False)(layers.ReLU()(x)),
    "LayerScale": layer_scale,
    "activation": lambda x: layers.Activation("sigmoid")(x) + 3.0,
    "ZeroPadding2D": lambda x: layers.ZeroPadding2D(1)(x),
    "pooling": lambda x: layers.AveragePooling2D(2)(layers.UpSampling2D(2)(x)),
    "Flatten": lambda x: layers.Flatten()(x),
    "Reshape": lambda x: layers.Reshape((25, 4))(x),
    "Add": with_another(layers.Add()),
    "Multiply": with_another(layers.Multiply()),
    "Maximum": with_another(layers.Maximum()),
    "Concatenate": with_another(layers.Concatenate()),
    "LayerNormalization": lambda x: layers.LayerNormalization()(x),
    "attention": lambda x: layers.MultiHeadAttention(2, 3, attention_axes=(1, 2))(x, layers.AveragePooling2D(2)(x)),
    "grouped convolution": lambda x: layers.Conv2D(6, 3, groups=2)(x),
    "recurrent": lambda x: layers.Reshape((5, 5, 2))(
        layers.LSTM(2, return_sequences=True)(layers.Reshape((25, x.shape[-1]))(x))
    ),
}


def around(layer):
    """A small model with a layer whose input has constant channels once some before it are dropped."""
    image = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(image)
    x = layer(layers.BatchNormalization(name="before")(layers.DepthwiseConv2D(3, padding="same", name="each")(x)))
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same", activation="relu", name="after")(x))
    elif len(x.shape) == 3:
        x = layers.GlobalMaxPooling1D()(layers.Conv1D(4, 3, padding="same", activation="relu", name="after")(x))
    return keras.Model(image, layers.Dense(3, name="classifier")(x))


def test_every_family_is_tested():
    found = {type(node) for layer in LAYERS.values() for node in Graph(around(layer)).nodes}
    assert found == set(FAMILIES)


@pytest.mark.parametrize("name", LAYERS)
def test_a_family(name, tmp_path, rng):
    model = around(LAYERS[name])
    random_weights(model, rng)
    grouped = [node.name for node in Graph(model).nodes if node.has_kernel and not node.gateable]
    supernet = tfnas.gate(model, ell2=1, num_examples=10, gate_dense=True, gate_pooling=True, exclude=grouped)
    supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = rng.normal(size=(3, 5, 5, 2)).astype("float32")
    check_equal(supernet(images), model(images))
    engine = Engine(supernet, (images, np.zeros(3, int)))
    for architecture in masks(supernet, 3, rng):
        architecture = connected(supernet, architecture, rng)
        supernet.set_architecture(architecture)
        expected = supernet(images)
        check_equal(engine.outputs(architecture), expected)
        cut = check_cut(supernet, architecture, images, expected)
    cut.save(tmp_path / "cut.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "cut.keras")(images), cut(images))
    supernet.save(tmp_path / "supernet.keras")
    np.testing.assert_array_equal(tfnas.load(tmp_path / "supernet.keras")(images), supernet(images))
