"""Attention under channel units: heads of Keras's layers; queries, keys and values of attention written by hand."""

import keras
import numpy as np
import pytest
from conftest import random_weights
from exactness import check_units
from transformer_models import (
    ATTENTION,
    BY_HAND,
    OF_ONE_HEAD,
    Latents,
    by_dot_products,
    by_matrix_products,
    fused,
    grouped,
    in_windows,
    normalized,
    of_latents,
    of_unit_length,
    rotated,
    self_attention,
    transformer,
)

import tfnas
from tfnas.gating.importances import squared_norms
from tfnas.graph.costs import cost
from tfnas.graph.units import UnitGraph
from tfnas.testing import num_units

L, ops = keras.layers, keras.ops


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


def test_attention_that_is_called_twice(rng):
    pair, attention = keras.Input((2, 4, 6)), L.MultiHeadAttention(4, 3, name="attention")
    pooled = [L.GlobalAveragePooling1D()(attention(text, text)) for text in (pair[:, 0], pair[:, 1])]
    model = keras.Model(pair, L.Dense(3)(L.Dense(5, activation="relu")(L.Multiply()(pooled))))
    supernet = check_units(model, rng)
    assert num_units(supernet.graph, "attention_heads") == num_units(supernet.graph, "attention_1_heads") == 4


def test_a_transformer_costs_alike_before_it_is_gated_and_after():
    for attention in (*ATTENTION, in_windows):
        model = transformer(attention)
        assert tfnas.cost(model) == cost(UnitGraph(model, streams=True))


@pytest.mark.parametrize("attention", BY_HAND)
def test_queries_and_keys_of_attention_by_hand_are_narrowed_with_each_other_and_values(attention, rng):
    everything = attention in (by_dot_products, by_matrix_products, fused, of_latents, rotated, of_unit_length)
    noise = "example" if attention in (fused, normalized) else "batch"
    graph = check_units(transformer(attention), rng, noise, everything=everything).graph
    assert num_units(graph, "query") == BY_HAND[attention]
    if "key" in graph.index:
        assert set(graph.of[graph.index["key"]]) == set(graph.of[graph.index["query"]])
    if "value" in graph.index:
        assert num_units(graph, "value") == (8 if attention in OF_ONE_HEAD else 4)


@pytest.mark.parametrize("back", [False, True])
def test_what_is_transposed_is_read_in_full_unless_it_is_transposed_back(back, rng):
    def attention(x):
        query, key = L.Dense(8, name="query")(x), L.Dense(8, name="key")(x)
        turned = ops.transpose(key, (0, 2, 1))
        read = L.Dense(5)(ops.swapaxes(turned, 1, 2) if back else L.Reshape((16, 8))(turned))
        return L.Dense(8)(ops.concatenate([ops.softmax(ops.matmul(query, turned)), read], -1))

    supernet = check_units(transformer(attention), rng, everything=False)
    assert num_units(supernet.graph, "query") == (8 if back else 0)


def test_a_trained_tensor_of_units_is_not_read_without_them(rng):
    image = keras.Input((8, 8, 3))
    latents = Latents()(image)
    scaled = ops.max(latents, axis=1, keepdims=True) * L.Reshape((-1, 8))(L.Conv2D(8, 2, 2, name="before")(image))
    read = L.Dense(5)(ops.mean(latents, axis=1)) + L.Dense(5)(L.GlobalAveragePooling1D()(scaled))
    supernet = check_units(keras.Model(image, L.Dense(3)(read)), rng)
    assert num_units(supernet.graph, "before") == 8


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("streams", [False, True])
def test_a_head_is_a_unit(attention, streams, rng):
    noise = "example" if streams else "batch"
    everything = (attention, streams) in [(self_attention, True), (grouped, False)]
    supernet = check_units(transformer(attention), rng, noise, streams, everything)
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
