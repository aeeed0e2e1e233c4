"""Masks of padded texts reach attention as in the model."""

import keras
import numpy as np
import pytest
from conftest import random_weights
from exactness import check_equal

import tfnas
from tfnas.cutting.subnets import subnet
from tfnas.graph.channels import Graph

layers, ops = keras.layers, keras.ops
TEXTS = np.array([[3, 4, 5, 0, 0, 0], [1, 2, 6, 7, 8, 0], [9, 1, 2, 3, 4, 5]], "int32")


def encoder(x, attention=None):
    x = layers.LayerNormalization()(x)
    read = (attention or layers.MultiHeadAttention(2, 4, name="attention"))(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, read]))
    return x + layers.Dense(8)(layers.Dense(12, activation="relu", name="wide")(x))


def text(make):
    words = keras.Input((6,), dtype="int32")
    x = make(layers.Embedding(10, 8, mask_zero=True)(words))
    return keras.Model(words, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@keras.saving.register_keras_serializable("test_attention_masks")
class Block(layers.Layer):
    """Attention within a layer of one's own, which a mask reaches as well."""

    def build(self, shape):
        self.attention = layers.MultiHeadAttention(2, 4)
        self.attention.build(shape, shape)
        self.norm = layers.LayerNormalization()
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x + self.attention(x, x))


@keras.saving.register_keras_serializable("test_attention_masks")
class Scaled(layers.Layer):
    """Passes on the mask that it is given, which the operation in it does not."""

    def __init__(self, **options):
        super().__init__(**options)
        self.supports_masking = True

    def call(self, x):
        return x * 2.0


def of_two():
    """Texts that attend to another, with a mask by hand besides."""
    one, other = keras.Input((4,), dtype="int32"), keras.Input((6,), dtype="int32")
    embedding = layers.Embedding(10, 8, mask_zero=True)
    a, b = embedding(one), layers.Dense(5)(embedding(other))
    by_hand = ops.broadcast_to(np.arange(6) != 1, (1, 4, 6))
    read = layers.MultiHeadAttention(2, 4)(a, b, attention_mask=by_hand)
    return keras.Model([one, other], layers.Dense(3)(layers.GlobalAveragePooling1D()(read)))


MODELS = {
    "an encoder": (lambda: text(encoder), ()),
    "grouped queries": (lambda: text(lambda x: encoder(x, layers.GroupQueryAttention(4, 4, 2))), ()),
    "two texts": (of_two, ()),
    "a causal mask too": (lambda: text(lambda x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)), ()),
    "in a layer": (lambda: text(lambda x: layers.Dense(8)(Block(name="block")(x))), ("block",)),
    "passed on": (lambda: text(lambda x: encoder(Scaled(name="scaled")(x))), ("scaled",)),
}


@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")  # Keras's, of the models themselves
@pytest.mark.parametrize("name", MODELS)
def test_padding_is_not_attended_to(name, rng, tmp_path, eager):
    make, whole = MODELS[name]
    model = make()
    random_weights(model, rng)
    given = [TEXTS[:, :4], TEXTS] if len(model.inputs) > 1 else TEXTS
    supernet = tfnas.gate(model, parameters=0.9, steps=10, num_examples=10, streams=True)
    assert tuple(Graph(model).untraced) == whole
    check_equal(supernet(given), model(given))
    others = [np.where(x == 0, 7, x) for x in given] if len(model.inputs) > 1 else np.where(TEXTS == 0, 7, TEXTS)
    assert np.abs(np.asarray(model(others)) - np.asarray(model(given))).max() > 1e-3  # it matters what padding is
    architecture = supernet.graph.closed({g.name: rng.random(g.size) < 0.7 for g in supernet.graph.groups})
    supernet.set_architecture(architecture)
    cut = subnet(supernet, architecture)
    check_equal(cut(given), supernet(given))
    cut.save(tmp_path / "cut.keras")
    check_equal(keras.models.load_model(tmp_path / "cut.keras")(given), cut(given))
