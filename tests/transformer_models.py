"""Small transformers, with attention by Keras's layers and as people write it by hand."""

import keras
import numpy as np

L, ops = keras.layers, keras.ops


def block(x, attention, width=8):
    """A transformer's block."""
    x = x + attention(L.LayerNormalization()(x))
    y = L.Dense(2 * width, activation="gelu", name=f"up_{attention.__name__}")(L.LayerNormalization()(x))
    return x + L.Dense(width)(y)


def heads(x, name):
    """Shape (batch, positions, 2 heads, 4)."""
    return L.Reshape((-1, 2, 4))(L.Dense(8, name=name)(x))


def by_matrix_products(x):
    query, key, value = (ops.transpose(heads(x, name), (0, 2, 1, 3)) for name in ("query", "key", "value"))
    weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 2.0)
    return L.Dense(8)(L.Reshape((-1, 8))(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))))


def by_einsum(x):
    query, key, value = (heads(x, name) for name in ("query", "key", "value"))
    weights = ops.softmax(ops.einsum("btnh,bsnh->bnts", query, key))
    return L.Dense(8)(L.Reshape((-1, 8))(ops.einsum("bnts,bsnh->btnh", weights, value)))


def by_dot_products(x):
    query, key, value = (heads(x, name) for name in ("query", "key", "value"))
    return L.Dense(8)(L.Reshape((-1, 8))(ops.dot_product_attention(query, key, value)))


def by_einsum_layers(x):
    query, key, value = (
        L.EinsumDense("btd,dnh->btnh", (None, 2, 4), bias_axes="nh", name=name)(x) for name in ("query", "key", "value")
    )
    weights = ops.softmax(ops.einsum("btnh,bsnh->bnts", query, key))
    return L.EinsumDense("btnh,nhd->btd", (None, 8), bias_axes="d")(ops.einsum("bnts,bsnh->btnh", weights, value))


def causal_of_grouped_queries(x):
    query = L.Reshape((-1, 4, 4))(L.Dense(16, name="query")(x))
    bias = np.sin(np.arange(256, dtype="float32")).reshape(1, 1, 16, 16)
    more = {"bias": bias, "mask": np.tri(16, k=3, dtype=bool)[None, None].repeat(4, 1), "is_causal": True}
    attended = ops.dot_product_attention(query, heads(x, "key"), heads(x, "value"), **more)
    return L.Dense(8)(L.Reshape((-1, 16))(attended))


def one_head(x):
    query, key, value = (L.Dense(8, name=name)(x) for name in ("query", "key", "value"))
    weights = ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2)) / 2.0)
    return L.Dense(8)(ops.matmul(weights, value))


def by_dot_layers(x):
    query, key, value = (L.Dense(8, name=name)(x) for name in ("query", "key", "value"))
    weights = L.Softmax()(L.Dot((2, 1))([query, L.Permute((2, 1))(key)]) + L.Dot(-1)([query, key]))
    return L.Dense(8)(L.Dot((2, 1))([weights, value]))


def fused(x):
    """As timm has it."""
    projected = L.Reshape((-1, 3, 2, 4))(L.Dense(24, name="query")(x))
    query, key, value = (ops.transpose(projected, (2, 0, 3, 1, 4))[i] for i in range(3))
    weights = ops.softmax(ops.matmul(query * 0.5, ops.transpose(key, (0, 1, 3, 2))))
    return L.Dense(8)(ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), (-1, 16, 8)))


def unstacked(x):
    projected = ops.transpose(L.Reshape((-1, 3, 2, 4))(L.Dense(24, name="query")(x)), (2, 0, 3, 1, 4))
    query, key, value = ops.unstack(projected, axis=0)
    weights = ops.softmax(ops.matmul(query, ops.moveaxis(key, -1, -2)) / 2.0)
    return L.Dense(8)(L.Reshape((-1, 8))(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))))


def divided(x):
    """As nanoGPT has it."""
    parts = ops.split(L.Dense(24, name="query")(x), 3, axis=-1)
    query, key, value = (ops.transpose(L.Reshape((-1, 2, 4))(part), (0, 2, 1, 3)) for part in parts)
    weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 2.0 - 1e9 * (1 - np.tri(16)))
    return L.Dense(8)(L.Reshape((-1, 8))(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))))


def normalized(x):
    query, key, value = (heads(x, name) for name in ("query", "key", "value"))
    query, key = L.LayerNormalization()(query), L.RMSNormalization()(key)
    weights = ops.softmax(ops.einsum("...qhd,...khd->...hqk", query, key))
    return L.Dense(8)(L.Reshape((-1, 8))(ops.einsum("bhqk,bkhd->bqhd", weights, value)))


def of_unit_length(x):
    """A scale behind the transposition too."""
    query, key, value = (ops.transpose(heads(x, name), (0, 2, 1, 3)) for name in ("query", "key", "value"))
    turned = 10.0 * ops.transpose(ops.normalize(key, axis=-1), (0, 1, 3, 2))
    weights = ops.softmax(ops.matmul(L.UnitNormalization()(query), turned))
    return L.Dense(8)(L.Reshape((-1, 8))(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))))


def by_attention_layer(x):
    query, key, value = (L.Dense(8, name=name)(x) for name in ("query", "key", "value"))
    return L.Dense(8)(L.Attention(use_scale=True)([query, value, key], use_causal_mask=True))


def rotated(x):
    """Rotary positions, by which each channel is added to another one of the same layer."""
    waves = np.outer(np.arange(16), 0.5 ** np.tile(np.arange(2), 2)).astype("float32")[:, None]

    def turn(x):
        first, second = ops.split(x, 2, axis=-1)
        return x * np.cos(waves) + ops.concatenate([-second, first], axis=-1) * np.sin(waves)

    query, key, value = (heads(x, name) for name in ("query", "key", "value"))
    weights = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", turn(query), turn(key)))
    return L.Dense(8)(L.Reshape((-1, 8))(ops.einsum("bhqk,bkhd->bqhd", weights, value)))


def in_windows(x):
    """Each of four windows attends to itself."""
    projected = L.Dense(24, name="query")(ops.reshape(x, (-1, 4, 8)))
    query, key, value = ops.unstack(ops.transpose(ops.reshape(projected, (-1, 4, 3, 2, 4)), (2, 0, 3, 1, 4)), axis=0)
    weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))))
    mixed = ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), (-1, 4, 8))
    return ops.reshape(L.Dense(8)(mixed), (-1, 16, 8))


class Latents(L.Layer):
    """The same trained vectors for each example, as many as 5."""

    def build(self, shape):
        self.latents = self.add_weight(shape=(1, 5, 8), initializer="normal", name="latents")

    def call(self, x):
        return ops.broadcast_to(self.latents, (ops.shape(x)[0], 5, 8))


def of_latents(x):
    query = Latents(name="latents")(x)
    key, value = L.Dense(8, name="query")(x), L.Dense(8, name="value")(x)
    scores = ops.einsum("bkd,bqd->bqk", key, query) + ops.matmul(
        L.Dense(8, name="more")(query), ops.swapaxes(key, 1, 2)
    )
    return x + ops.mean(L.Dense(8)(ops.matmul(ops.softmax(scores), value)), 1, keepdims=True)


# Attention written by hand, and how many units its queries have: as many channels of each head.
BY_HAND = {
    by_matrix_products: 4,
    by_einsum: 4,
    by_einsum_layers: 4,
    by_dot_products: 4,
    causal_of_grouped_queries: 4,
    one_head: 8,
    by_dot_layers: 8,
    fused: 4,
    unstacked: 4,
    divided: 8,  # of them 4 are of values
    normalized: 4,
    of_unit_length: 4,
    by_attention_layer: 8,
    rotated: 2,
    of_latents: 8,
}
OF_ONE_HEAD = (one_head, by_dot_layers, by_attention_layer, of_latents)


def transformer(attention, width=8):
    image = keras.Input((8, 8, 3))
    x = L.Reshape((16, width))(L.Conv2D(width, 2, 2, name="patches")(image))
    x = block(x, attention, width)
    x = L.GlobalAveragePooling1D()(L.LayerNormalization()(x))
    return keras.Model(image, L.Dense(3, name="classifier")(x))


def self_attention(x):
    return L.MultiHeadAttention(4, 3, name="attention")(x, x)


def other_values(x):
    memory = L.Dense(5)(L.Dense(6, activation="relu")(x))[:, ::2]
    return L.MultiHeadAttention(3, 2, value_dim=4, use_bias=False, use_gate=True, name="attention")(
        key=memory, value=memory, query=x
    )


def causal(x):
    return L.MultiHeadAttention(2, 4, name="attention")(x, x, use_causal_mask=True)


def grouped(x):
    return L.GroupQueryAttention(3, 6, 2, use_gate=True, name="attention")(x, x)


ATTENTION = {self_attention: 4, other_values: 3, causal: 2, grouped: 2}
