"""One battery for families that channel units cut: cut, cost, engine and files agree with the masked supernet."""

import keras
import numpy as np
import pytest
from conftest import random_weights

import tfnas
from tfnas.gating.importances import squared_norms
from tfnas.gating.unit_gates import UnitDraw
from tfnas.graph.costs import cost
from tfnas.graph.units import UnitGraph
from tfnas.layers.of_units import OF_UNITS
from tfnas.layers.of_units.attention import Heads
from tfnas.search_space.architecture import Architecture
from tfnas.testing import check_model, model_around, num_units

L, ops = keras.layers, keras.ops


def image_model(layer):
    """A layer between convolutions."""
    return model_around(layer, (6, 6, 8))


def response(x):
    """As ConvNeXt V2 has it."""
    norms = ops.norm(x, axis=(1, 2), keepdims=True)
    return norms / (ops.mean(norms, axis=-1, keepdims=True) + 1e-3)


SINUSOIDS = np.sin(np.arange(6 * 6 * 8, dtype="float32").reshape(6, 6, 8))

# A layer, and how many units its input's channels, 8 if not said, have.
LAYERS = {
    "LayerNormalization": (lambda x: L.LayerNormalization()(x), 8),
    "LayerNormalization without offset": (lambda x: L.LayerNormalization(center=False)(x), 8),
    "RMSNormalization": (lambda x: L.RMSNormalization()(x), 8),
    "UnitNormalization": (lambda x: L.UnitNormalization()(x), 8),
    "GroupNormalization, few groups": (lambda x: L.GroupNormalization(2)(x), 4),
    "GroupNormalization, many groups": (lambda x: L.GroupNormalization(4)(x), 4),
    "slices": (lambda x: x[:, ::-1, 1:, 2:6], 4),
    "split and stack": (lambda x: ops.sum(ops.stack(ops.split(x, 2, axis=-1), axis=2), axis=(1, 2)), 4),
    "a part of a split": (lambda x: ops.split(x, [3], axis=-1)[1], 5),
    "the first part of a split": (lambda x: L.ReLU()(ops.split(L.Conv2D(6, 1)(x), 2, axis=-1)[0]), 8),
    "moves": (lambda x: L.Permute((2, 1, 3))(ops.roll(ops.tile(ops.flip(x, 1), (1, 2, 1, 1)), 1, 1)), 8),
    "reductions": (
        lambda x: L.Maximum()([ops.mean(x, axis=(1, 2)), ops.squeeze(ops.max(x, (1, 2), keepdims=True), (1, 2))]),
        8,
    ),
    "rows as channels": (lambda x: L.Reshape((6, 48))(x), 8),
    "fewer channels": (lambda x: ops.reshape(x, (-1, 12, 6, 4)), 4),
    "a common divisor": (lambda x: L.Reshape((24, 12))(x), 4),
    "of a dense layer": (
        lambda x: L.Reshape((3, 3, 8))(L.Dense(72, activation="relu", name="wide")(L.Flatten()(x))),
        8,
    ),
    "other axes": (lambda x: L.Softmax(axis=1)(L.Concatenate(axis=1)([x, L.Resizing(3, 6)(x)])), 8),
    "PReLU": (lambda x: L.PReLU(shared_axes=(1, 2))(L.PReLU()(x)), 8),
    "one vector": (lambda x: L.RepeatVector(4)(x[:, 0, 1]), 8),
    "grouped convolution": (lambda x: L.Conv2D(6, 3, groups=2, activation="relu")(x), 4),
    "many groups, without bias": (lambda x: L.Conv2D(12, 3, 2, "same", groups=4, use_bias=False)(x), 2),
    "an einsum to heads and back": (
        lambda x: L.EinsumDense("abcnh,nhd->abcd", (6, 6, 7), "relu", "d")(
            L.EinsumDense("abcd,dnh->abcnh", (6, 6, 2, 3), bias_axes="nh", name="of_heads")(x)
        ),
        8,
    ),
    "an einsum with an ellipsis": (lambda x: L.EinsumDense("...d,de->...e", 7, bias_axes="e")(x), 8),
    "an einsum for each channel": (
        lambda x: L.EinsumDense("...d,d->...d", 8, bias_axes="d")(L.EinsumDense("btsd,td->btsd", (6, 6, 8))(x)),
        8,
    ),
    "an einsum of rows": (lambda x: L.EinsumDense("btsd,tu->busd", (5, 6, 8), "relu", "us")(x), 8),
    "an einsum that moves an axis": (lambda x: L.EinsumDense("btsd,dn->btns", (6, 5, 6), bias_axes="n")(x), 8),
    "an einsum beside its channels": (
        lambda x: L.ReLU()(L.EinsumDense("btsd,sn->btdn", (6, 8, 5), bias_axes="n", name="beside")(x)),
        0,
    ),
    "dense at each time step": (lambda x: L.TimeDistributed(L.Dense(7, activation="relu"))(x), 8),
    "convolution of each time step": (lambda x: L.TimeDistributed(L.Conv1D(7, 3, 2, "same", activation="relu"))(x), 8),
    "instance normalization": (lambda x: L.GroupNormalization(-1)(x), 8),
    "root mean square by hand": (
        lambda x: x * ops.rsqrt(ops.mean(ops.square(ops.cast(x, "float32")), axis=-1, keepdims=True) + 1e-6),
        8,
    ),
    "layer normalization by hand": (
        lambda x: (x - ops.mean(x, -1, keepdims=True)) / ops.sqrt(ops.var(x, axis=3, keepdims=True) + 1e-3),
        8,
    ),
    "spatial attention": (
        lambda x: (
            x
            * L.Conv2D(1, 3, padding="same", activation="sigmoid", name="where")(
                ops.concatenate([ops.mean(x, [-1], keepdims=True), ops.max(x, axis=-1, keepdims=True)], axis=-1)
            )
        ),
        8,
    ),
    "an array for each channel": (lambda x: (x - np.arange(8.0)) / np.linspace(1, 2, 8, dtype="float32"), 8),
    "an array for each position": (lambda x: 2.0 - ops.relu(x + SINUSOIDS) * SINUSOIDS * SINUSOIDS[..., :1], 8),
    "global response normalization": (lambda x: x * response(x), 8),
    "sums over channels": (
        lambda x: (
            x**2 * 0.1 + ops.sum(x, -1, keepdims=True) * ops.min(x, -1, keepdims=True) - ops.std(x, -1, keepdims=True)
        ),
        8,
    ),
}


EVERYTHING = (
    "an einsum to heads and back",
    "an einsum for each channel",
    "LayerNormalization",
    "GroupNormalization, few groups",
    "a part of a split",
    "the first part of a split",
    "a common divisor",
    "PReLU",
    "convolution of each time step",
    "layer normalization by hand",
    "an array for each position",
    "global response normalization",
    "spatial attention",
)


def check(model, rng, noise="batch", streams=False, everything=True):
    """Checks a model's supernet, with random weights."""
    random_weights(model, rng)
    (image,) = model.inputs
    images = rng.normal(size=(7, *image.shape[1:])).astype("f4")
    if image.dtype == "int32":
        images = rng.integers(0, 9, (7, *image.shape[1:]))
    supernet = check_model(model, images, streams=streams, noise=noise, everything=everything)
    form = supernet.graph.form
    assert form.full("parameters") == cost(supernet.graph).parameters <= model.count_params()
    return supernet


def test_frames_cost_what_their_layer_costs_for_each():
    frames = keras.Input((3, 6, 6, 2))
    inner = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(4, 3), L.GlobalMaxPooling2D()])
    model = keras.Model(frames, L.Dense(3)(L.Flatten()(L.TimeDistributed(inner)(frames))))
    graph = UnitGraph(model)
    for counted in (cost(graph), cost(model)):
        assert (counted.parameters, counted.multiply_adds) == (model.count_params(), 3 * 16 * 9 * 2 * 4 + 12 * 3)
    assert graph.form.full("multiply_adds") == counted.multiply_adds and graph.num_units == 4
    whole = L.TimeDistributed(keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization()]), name="steps")
    norms = UnitGraph(keras.Model(frames, L.Dense(3)(L.Dense(4)(L.Flatten()(whole(frames))))))
    assert norms.untraced == {"steps": "in training it normalizes each time step by itself"}


def words():
    text = keras.Input((6,), dtype="int32")
    x = L.Conv1D(5, 3, activation="relu", name="after")(L.Embedding(9, 8, name="before")(text))
    return keras.Model(text, L.Dense(3, name="classifier")(L.Dense(4, name="hidden")(L.GlobalMaxPooling1D()(x))))


def test_an_embedding_writes_channels(rng):
    supernet = check(words(), rng)
    assert num_units(supernet.graph, "before") == 8


def test_every_family_is_tested():
    transformers = [transformer(kind) for kind in (self_attention, by_matrix_products, by_dot_products)]
    models = [*(image_model(layer) for layer, _ in LAYERS.values()), *transformers, words()]
    found = {type(node) for model in models for node in UnitGraph(model).nodes}
    assert {*OF_UNITS, Heads} <= found


@pytest.mark.parametrize("name", LAYERS)
def test_a_family(name, rng):
    layer, units = LAYERS[name]
    model = image_model(layer)
    supernet = check(model, rng, noise="example" if len(name) % 2 else "batch", everything=name in EVERYTHING)
    assert num_units(supernet.graph, "before") == units


def test_a_cut_leaves_the_models_operations_their_names(rng):
    model = image_model(LAYERS["an array for each channel"][0])
    names = [operation.name for operation in model.operations]
    supernet = check(model, rng, everything=False)
    assert [operation.name for operation in model.operations] == names
    assert not any("cut" in operation.name for operation in supernet.network.operations)


def test_as_many_channels_as_rows_take_no_array_of_the_rows_for_theirs():
    # Keras adds shape (6, 1, 1) to 6 channels, and to 8 channels of 6 rows it adds it to the rows.
    model = image_model(lambda x: x + np.arange(6, dtype="float32")[:, None, None])
    images = np.random.default_rng(0).normal(size=(7, *model.inputs[0].shape[1:])).astype("f4")
    supernet = tfnas.gate(model, parameters=0.9, steps=10, num_examples=10)
    full = Architecture({group.name: np.ones(group.size, bool) for group in supernet.graph.groups})
    for group in full:
        six = full[group].copy()
        six[6:] = False
        architecture = supernet.graph.closed(Architecture({**full, group: six}))
        supernet.set_architecture(architecture)
        np.testing.assert_allclose(supernet(images), tfnas.subnet(supernet, architecture)(images), rtol=1e-4, atol=1e-5)


def root_mean_square(x):
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3)


def standardized(x):
    return (x - ops.mean(x, axis=-1, keepdims=True)) / ops.sqrt(ops.var(x, axis=-1, keepdims=True) + 1e-3)


@pytest.mark.parametrize("noise", ["batch", "example"])
@pytest.mark.parametrize(
    ("by_hand", "layer"),
    [
        (root_mean_square, lambda x: L.RMSNormalization(epsilon=1e-3)(x)),
        (standardized, lambda x: L.LayerNormalization(center=False, scale=False, epsilon=1e-3)(x)),
    ],
)
def test_normalizations_by_hand_are_those_of_keras_under_relaxed_gates(by_hand, layer, noise, rng):
    models = [image_model(by_hand), image_model(layer)]
    weights = {w.path: rng.normal(size=w.shape) for w in models[0].weights}
    images = rng.normal(size=(5, 6, 6, 2)).astype("f4")
    found = []
    for model in models:
        for weight in model.weights:
            weight.assign(weights.get(weight.path, np.ones(weight.shape)))
        supernet = tfnas.gate(model, parameters=0.9, steps=10, num_examples=10, noise=noise)
        (draw,) = [layer for layer in supernet.network.layers if isinstance(layer, UnitDraw)]
        draw.keep_logit.assign(np.linspace(-1, 1, supernet.graph.num_units))
        found.append(np.asarray(supernet.network(images, training=True)))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def block(x, attention, width=8):
    """A transformer's block."""
    x = x + attention(L.LayerNormalization()(x))
    y = L.Dense(2 * width, activation="gelu", name=f"up_{attention.__name__}")(L.LayerNormalization()(x))
    return x + L.Dense(width)(y)


def attention_cost(queries, attended, channels, heads, key_size, value_size):
    """Multiply-adds of projections, scores and weighted sums."""
    projected = channels * heads * (queries * key_size + attended * (key_size + value_size))
    mixed = queries * attended * heads * (key_size + value_size)
    return projected + mixed + queries * heads * value_size * channels


def test_attention_costs_alike_however_it_is_read():
    x = keras.Input((16, 8))
    few = L.Conv1D(8, 2, 2)(x)
    shared = L.MultiHeadAttention(2, 3, 5)
    grouped = L.GroupQueryAttention(4, 6, 2)(few, few)
    model = keras.Model(
        x,
        L.Dense(3)(L.GlobalAveragePooling1D()(shared(x, few) + shared(x, few)))
        + L.Dense(3)(L.GlobalAveragePooling1D()(grouped)),
    )
    grouped_cost = 8 * 8 * 4 * (6 + 2 * 2) + 8 * 8 * 6 * 8 + 8 * 6 * 4 * 8
    convolved = 8 * 2 * 8 * 8
    expected = 2 * attention_cost(16, 8, 8, 2, 3, 5) + grouped_cost + convolved + 2 * 8 * 3
    assert tfnas.cost(model).multiply_adds == expected


def test_an_einsum_costs_its_multiplications_however_it_is_read():
    x = keras.Input((16, 8))
    heads = L.EinsumDense("btd,dnh->btnh", (16, 2, 3), bias_axes="nh", name="heads")(x)
    rows = L.EinsumDense("btnh,tu->bunh", (4, 2, 3), name="rows")(heads)
    model = keras.Model(x, L.Dense(3)(L.Flatten()(L.EinsumDense("...nh,nhd->...d", 5, "softmax")(rows))))
    parameters = 8 * 6 + 6 + 16 * 4 + 6 * 5 + 4 * 5 * 3 + 3
    multiply_adds = 16 * 8 * 6 + 16 * 4 * 6 + 4 * 6 * 5 + 4 * 5 * 3
    for graph in (model, UnitGraph(model)):
        assert vars(cost(graph)) == {"parameters": parameters, "multiply_adds": multiply_adds}
    graph = UnitGraph(model)
    assert num_units(graph, "heads") == 3 and graph.num_units == 3
    two = cost(graph, Architecture({"heads": np.array([True, False, True])}))
    assert two.parameters == 8 * 4 + 4 + 16 * 4 + 4 * 5 + 63
    assert two.multiply_adds == 16 * 8 * 4 + 16 * 4 * 4 + 4 * 4 * 5 + 60


def test_a_transformer_costs_alike_before_it_is_gated_and_after():
    for attention in ATTENTION:
        model = transformer(attention)
        assert tfnas.cost(model) == cost(UnitGraph(model, streams=True))


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
    of_latents: 8,
}


@pytest.mark.parametrize("attention", BY_HAND)
def test_queries_and_keys_of_attention_by_hand_are_narrowed_with_each_other_and_values(attention, rng):
    everything = attention in (by_dot_products, by_matrix_products, fused, of_latents)
    noise = "example" if attention in (fused, normalized) else "batch"
    graph = check(transformer(attention), rng, noise, everything=everything).graph
    assert num_units(graph, "query") == BY_HAND[attention]
    if "key" in graph.index:
        assert set(graph.of[graph.index["key"]]) == set(graph.of[graph.index["query"]])
    if "value" in graph.index:
        assert num_units(graph, "value") == (8 if attention in (one_head, by_dot_layers, of_latents) else 4)


@pytest.mark.parametrize("back", [False, True])
def test_what_is_transposed_is_read_in_full_unless_it_is_transposed_back(back, rng):
    def attention(x):
        query, key = L.Dense(8, name="query")(x), L.Dense(8, name="key")(x)
        turned = ops.transpose(key, (0, 2, 1))
        read = L.Dense(5)(ops.swapaxes(turned, 1, 2) if back else L.Reshape((16, 8))(turned))
        return L.Dense(8)(ops.concatenate([ops.softmax(ops.matmul(query, turned)), read], -1))

    supernet = check(transformer(attention), rng, everything=False)
    assert num_units(supernet.graph, "query") == (8 if back else 0)


def test_a_trained_tensor_of_units_is_not_read_without_them(rng):
    image = keras.Input((8, 8, 3))
    latents = Latents()(image)
    scaled = ops.max(latents, axis=1, keepdims=True) * L.Reshape((-1, 8))(L.Conv2D(8, 2, 2, name="before")(image))
    read = L.Dense(5)(ops.mean(latents, axis=1)) + L.Dense(5)(L.GlobalAveragePooling1D()(scaled))
    supernet = check(keras.Model(image, L.Dense(3)(read)), rng)
    assert num_units(supernet.graph, "before") == 8


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


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("streams", [False, True])
def test_a_head_is_a_unit(attention, streams, rng):
    noise = "example" if streams else "batch"
    everything = (attention, streams) in [(self_attention, True), (grouped, False)]
    supernet = check(transformer(attention), rng, noise, streams, everything)
    assert num_units(supernet.graph, "attention_heads") == ATTENTION[attention]
    assert num_units(supernet.graph, "patches") == (8 if streams else 0)


def test_a_transformers_candidates_obey_their_bounds_and_most_parameters_are_units(rng):
    model = transformer(self_attention, width=32)
    supernet = tfnas.gate(model, parameters=0.4, multiply_adds=0.6, steps=10, num_examples=100)
    assert not supernet.graph.streams
    assert supernet.graph.form.least("parameters") < 0.15 * model.count_params()
    posterior = supernet.posterior(importance="norm")
    full = cost(model)
    for architecture in posterior.sample(3, seed=1):
        counted = cost(tfnas.subnet(supernet, architecture))
        assert counted == cost(supernet.graph, architecture)
        assert 0.3 * full.parameters < counted.parameters <= 0.4 * full.parameters
        assert counted.multiply_adds <= 0.6 * full.multiply_adds


@pytest.mark.parametrize("attention", [self_attention, grouped])
def test_the_norm_of_a_head_is_that_of_all_its_weights(attention, rng):
    model = transformer(attention)
    random_weights(model, rng)
    graph = UnitGraph(model)
    layer = model.get_layer("attention")
    heads = graph.of[graph.index["attention_heads"]]
    repeats = 3 if attention is grouped else 1
    for head, unit in enumerate(heads):
        queries = slice(head * repeats, (head + 1) * repeats)
        expected = sum(
            np.square(w[:, heads_of] if w.ndim == 3 else w[heads_of]).sum(dtype=np.float64)
            for name, heads_of in {"query": queries, "gate": queries, "key": head, "value": head}.items()
            if hasattr(layer, f"_{name}_dense")
            for w in getattr(layer, f"_{name}_dense").get_weights()
        )
        expected += np.square(layer._output_dense.get_weights()[0][queries]).sum(dtype=np.float64)
        assert squared_norms(graph)[unit] == pytest.approx(expected, rel=1e-5)
