"""One battery for families that channel units cut: cut, cost, engine and files agree with the masked supernet."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import random_weights
from exactness import check_equal

import tfnas
from tfnas.gating.gates import hard_gates
from tfnas.gating.importances import squared_norms
from tfnas.graph.costs import cost
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph
from tfnas.layers.of_units import OF_UNITS
from tfnas.layers.of_units.attention import Heads
from tfnas.ranking.engine import Engine
from tfnas.search_space.architecture import Architecture

L, ops = keras.layers, keras.ops
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def image_model(layer, channels=8):
    """A layer between convolutions."""
    image = keras.Input((6, 6, 2))
    x = layer(L.Conv2D(channels, 3, padding="same", activation="relu", name="before")(image))
    if len(x.shape) == 4:
        x = L.GlobalAveragePooling2D()(L.Conv2D(5, 3, activation="relu", name="after")(x))
    elif len(x.shape) == 3:
        x = L.GlobalMaxPooling1D()(L.Conv1D(5, 3, activation="relu", name="after")(x))
    return keras.Model(image, L.Dense(3, name="classifier")(L.Dense(5, activation="tanh", name="hidden")(x)))


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
    "instance normalization": (lambda x: L.GroupNormalization(-1)(x), 8),
}


EVERYTHING = ("LayerNormalization", "GroupNormalization, few groups", "a part of a split", "a common divisor", "PReLU")


def architectures(graph, rng, count):
    for _ in range(count):
        rates = rng.choice([0.3, 0.6, 1.0], len(graph.groups))
        masks = {g.name: rng.random(g.size) < rate for g, rate in zip(graph.groups, rates, strict=True)}
        yield graph.closed(Architecture(masks))


def check(model, tmp_path, rng, noise="batch", streams=False, everything=True):
    """Cut and cost of a model's supernet against its masks, the full model first; with everything, engine and files."""
    random_weights(model, rng)
    (image,) = model.inputs
    images = rng.normal(size=(7, *image.shape[1:])).astype("f4")
    if image.dtype == "int32":
        images = rng.integers(0, 9, (7, *image.shape[1:]))
    supernet = tfnas.gate(model, parameters=0.95, steps=10, num_examples=100, streams=streams, noise=noise)
    supernet.compile("sgd", LOSS)
    check_equal(supernet(images), model(images))
    engine = Engine(supernet, (images, np.zeros(7, int))) if everything else None
    form = supernet.graph.form
    assert form.full("parameters") == cost(supernet.graph).parameters <= model.count_params()
    for architecture in architectures(supernet.graph, rng, 3):
        supernet.set_architecture(architecture)
        cut = tfnas.subnet(supernet, architecture)
        expected = cut(images)
        check_equal(supernet(images), expected)
        if engine:
            check_equal(engine.outputs(architecture), expected)
        built = sum(np.prod(v.shape) for v in cut.trainable_variables)
        kept = np.array([architecture[group.name].sum() for group in supernet.graph.groups])
        counts = form.counts(kept)
        counted = cost(supernet.graph, architecture)
        assert counted.parameters == built
        assert (counts["parameters"], counts["multiply_adds"]) == pytest.approx(dataclasses.astuple(counted), rel=1e-12)
        with hard_gates():
            before = supernet.get_weights()
            check_equal(supernet.network(images, training=True), cut(images, training=True))
            supernet.set_weights(before)
    if not everything:
        return supernet
    cut.save(tmp_path / "cut.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "cut.keras")(images), cut(images))
    supernet.save(tmp_path / "supernet.keras")
    np.testing.assert_array_equal(tfnas.load(tmp_path / "supernet.keras")(images), supernet(images))
    supernet.fit(images, np.zeros(7, int), epochs=1, verbose=0)
    assert np.isfinite(np.asarray(supernet(images, training=True))).all()
    return supernet


def words():
    text = keras.Input((6,), dtype="int32")
    x = L.Conv1D(5, 3, activation="relu", name="after")(L.Embedding(9, 8, name="before")(text))
    return keras.Model(text, L.Dense(3, name="classifier")(L.Dense(4, name="hidden")(L.GlobalMaxPooling1D()(x))))


def test_an_embedding_writes_channels(tmp_path, rng):
    supernet = check(words(), tmp_path, rng)
    assert units_of(supernet.graph, "before") == 8


def test_every_family_is_tested():
    models = [*(image_model(layer) for layer, _ in LAYERS.values()), transformer(self_attention), words()]
    found = {type(node) for model in models for node in UnitGraph(model).nodes}
    assert {*OF_UNITS, Heads} <= found


def units_of(graph, name):
    units = graph.of[graph.index[name]]
    return len(set(units[units != PINNED].tolist()))


@pytest.mark.parametrize("name", LAYERS)
def test_a_family(name, tmp_path, rng):
    layer, units = LAYERS[name]
    model = image_model(layer)
    supernet = check(model, tmp_path, rng, noise="example" if len(name) % 2 else "batch", everything=name in EVERYTHING)
    assert units_of(supernet.graph, "before") == units


def block(x, attention, width=8):
    """A transformer's block."""
    x = x + attention(L.LayerNormalization()(x))
    y = L.Dense(2 * width, activation="gelu", name=f"up_{attention.__name__}")(L.LayerNormalization()(x))
    return x + L.Dense(width)(y)


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
def test_a_head_is_a_unit(attention, streams, tmp_path, rng):
    noise = "example" if streams else "batch"
    everything = (attention, streams) in [(self_attention, True), (grouped, False)]
    supernet = check(transformer(attention), tmp_path, rng, noise, streams, everything)
    assert units_of(supernet.graph, "attention_heads") == ATTENTION[attention]
    assert units_of(supernet.graph, "patches") == (8 if streams else 0)


def test_a_transformers_candidates_obey_their_bounds_and_most_parameters_are_units(rng):
    model = transformer(self_attention, width=32)
    supernet = tfnas.gate(model, parameters=0.4, multiply_adds=0.6, steps=10, num_examples=100)
    assert not supernet.graph.streams
    assert supernet.graph.form.least("parameters") < 0.15 * model.count_params()
    posterior = supernet.posterior(importance="norm")
    full = cost(model)
    for architecture in posterior.sample(3, seed=1):
        counted = cost(tfnas.subnet(supernet, architecture))
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
