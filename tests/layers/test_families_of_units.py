"""One battery for families that channel units cut: cut, cost, engine and files agree with the masked supernet."""

import keras
import numpy as np
import pytest
from conftest import random_weights
from exactness import check_equal, check_units
from transformer_models import by_dot_products, by_matrix_products, self_attention, transformer

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting.subnets import subnet
from tfnas.gating.unit_gates import UnitDraw
from tfnas.graph.costs import cost
from tfnas.graph.units import UnitGraph
from tfnas.layers.of_units import OF_UNITS
from tfnas.layers.of_units.attention import Heads
from tfnas.layers.of_units.recurrent import States
from tfnas.ranking.engine import Engine
from tfnas.search_space.architecture import Architecture
from tfnas.testing import model_around, num_units

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
    "a shuffle": (lambda x: L.Reshape((6, 6, 8))(L.Permute((1, 2, 4, 3))(L.Reshape((6, 6, 2, 4))(x))), 4),
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
    "a filter for each channel": (lambda x: ops.depthwise_conv(x, np.arange(72.0, dtype="f4").reshape(3, 3, 8, 1)), 8),
    "a power of each channel": (lambda x: (ops.abs(x) + 1) ** np.linspace(1, 2, 8, dtype="float32"), 8),
    "an array for each position": (lambda x: 2.0 - ops.relu(x + SINUSOIDS) * SINUSOIDS * SINUSOIDS[..., :1], 8),
    "global response normalization": (lambda x: x * response(x), 8),
    "LSTM": (lambda x: L.LSTM(5)(L.LSTM(6, return_sequences=True)(L.Reshape((36, 8))(x))), 8),
    "GRU": (lambda x: L.GRU(5, return_sequences=True)(L.Reshape((36, 8))(x))[:, :, :4], 8),
    "GRU, reset before": (lambda x: L.GRU(5, reset_after=False)(L.Reshape((36, 8))(x)), 8),
    "SimpleRNN": (
        lambda x: L.SimpleRNN(5, "softplus", use_bias=False, go_backwards=True)(L.Reshape((36, 8))(x)),
        8,
    ),
    "Bidirectional": (
        lambda x: L.Bidirectional(L.GRU(5), merge_mode="sum")(
            L.Bidirectional(L.LSTM(6, return_sequences=True))(L.Reshape((36, 8))(x))
        ),
        8,
    ),
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


def words(masked=False):
    text = keras.Input((6,), dtype="int32")
    if masked:
        x = L.GlobalAveragePooling1D()(L.Embedding(9, 8, mask_zero=True, name="before")(text))
        return keras.Model(text, L.Dense(3, name="classifier")(L.Dense(4, name="hidden")(x)))
    x = L.Conv1D(5, 3, activation="relu", name="after")(L.Embedding(9, 8, name="before")(text))
    return keras.Model(text, L.Dense(3, name="classifier")(L.Dense(4, name="hidden")(L.GlobalMaxPooling1D()(x))))


@pytest.mark.parametrize("masked", [False, True])
def test_an_embedding_writes_channels(masked, rng):
    supernet = check_units(words(masked), rng)
    assert num_units(supernet.graph, "before") == 8


def of_any_length():
    """Words are an input whose last axis, which holds the channels elsewhere, has no fixed size; scores are another."""
    text = keras.Input((None,), dtype="int32")
    known = ops.cast(ops.not_equal(text, 0), "float32")
    x = L.Embedding(9, 8, name="before")(text) * ops.expand_dims(known, -1)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    query, key, value = (L.Dense(6, name=name)(x) for name in ("query", "key", "value"))
    scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 2)
    x = L.GlobalMaxPooling1D()(
        L.Conv1D(5, 3, padding="same", activation="relu", name="after")(ops.matmul(scores, value))
    )
    x = L.Concatenate()([x, ops.sum(known, -1, keepdims=True)])
    return keras.Model(text, [L.Dense(3, name="classifier")(x), known])


def test_texts_of_any_length(rng):
    model = of_any_length()
    random_weights(model, rng)
    supernet = tfnas.gate(model, parameters=0.9, streams=True, steps=10, num_examples=100)
    names = ("before", "multi_head_attention_heads", "query", "value", "after")
    assert [num_units(supernet.graph, name) for name in names] == [8, 2, 6, 6, 5]
    supernet.compile("sgd", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None])
    short, long = (rng.integers(0, 9, (7, length)) for length in (5, 11))
    engine = Engine(supernet, (short, [np.zeros(7, int), np.zeros((7, 5))]))
    for architecture in supernet.posterior("norm").sample(3, 0):
        supernet.set_architecture(architecture)
        expected = supernet(short)
        cut = subnet(supernet, architecture)
        assert cut.input_shape == (None, None) and cut.count_params() <= 0.9 * model.count_params()
        check_equal(cut(long), supernet(long))
        check_equal(cut(short), expected)
        check_equal(engine.outputs(architecture), expected)
    with pytest.raises(UserError, match="a fixed spatial size expected. Received: .None"):
        tfnas.cost(model)


def test_every_family_is_tested():
    transformers = [transformer(kind) for kind in (self_attention, by_matrix_products, by_dot_products)]
    models = [*(image_model(layer) for layer, _ in LAYERS.values()), *transformers, words(), words(True)]
    found = {type(node) for model in models for node in UnitGraph(model).nodes}
    assert {*OF_UNITS, Heads, States} <= found


@pytest.mark.parametrize("name", LAYERS)
def test_a_family(name, rng):
    layer, units = LAYERS[name]
    model = image_model(layer)
    supernet = check_units(model, rng, noise="example" if len(name) % 2 else "batch", everything=name in EVERYTHING)
    assert num_units(supernet.graph, "before") == units


def test_a_cut_leaves_the_models_operations_their_names(rng):
    model = image_model(LAYERS["an array for each channel"][0])
    names = [operation.name for operation in model.operations]
    supernet = check_units(model, rng, everything=False)
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
