"""Recurrent layers, whose units are numbers of the state: masks, dropout, gates between 0 and 1, and costs."""

import keras
import numpy as np
import pytest
from exactness import check_units

import tfnas
from tfnas.common.errors import UserError
from tfnas.graph.costs import cost
from tfnas.graph.units import UnitGraph
from tfnas.layers.of_units.recurrent import GatedRecurrent
from tfnas.testing import num_units

L = keras.layers


def reader(each):
    """Classifies a text that is padded with zeros, or each of its words."""
    text = keras.Input((6,), dtype="int32")
    x = L.Embedding(9, 8, mask_zero=True, name="before")(text)
    x = L.Bidirectional(L.LSTM(5, return_sequences=True), name="both")(x)
    x = L.GRU(4, return_sequences=each, name="gru")(L.Dense(7, activation="relu", name="hidden")(x))
    return keras.Model(text, L.Dense(3, name="classifier")(x))


def test_padded_texts(rng):
    supernet = check_units(reader(False), rng)
    sizes = [num_units(supernet.graph, name) for name in ("before", "both_forward_lstm", "both_backward_lstm", "gru")]
    assert sizes == [8, 5, 5, 4]


def test_a_layer_that_reads_two_texts(rng):
    pair, both = keras.Input((2, 5, 3)), L.Bidirectional(L.LSTM(4, name="lstm"), name="both")
    texts = [pair[:, 0], pair[:, 1]]
    first = L.Conv1D(6, 3, padding="same", name="first")
    x, y = (both(first(text)) for text in texts)
    supernet = check_units(keras.Model(pair, L.Dense(3)(L.Dense(5, activation="relu")(x * y))), rng)
    sizes = [num_units(supernet.graph, name) for name in ("first", "both_forward_lstm", "both_forward_lstm_1")]
    assert sizes == [6, 4, 4] and len(supernet.graph.groups) == 4
    one, other = L.LSTM(4, name="lstm"), L.Masking()(texts[1])
    model = keras.Model(pair, L.Dense(3)(L.Dense(5)(one(texts[0]) + one(other))))
    with pytest.raises(UserError, match="layer 'lstm' is called in several ways"):
        UnitGraph(model)


def test_padding_is_no_part_of_the_loss(rng):
    model, texts, labels = reader(True), rng.integers(0, 9, (16, 6)), rng.integers(0, 3, (16, 6))
    supernet = tfnas.gate(model, parameters=0.5, importance="curvature", iterative=False)
    found = []
    for one in (model, supernet):
        one.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        found.append(one.evaluate(texts, labels, verbose=0))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    logits = np.asarray(model(texts), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(found[1], losses[texts != 0].mean(), rtol=1e-5)


def test_a_gate_multiplies_what_every_step_passes_on(rng):
    sequences, gates = rng.normal(size=(4, 5, 3)), rng.uniform(size=(4, 6))
    layer = L.SimpleRNN(6, return_sequences=True)
    layer.build(sequences.shape)
    kernel, recurrent, bias = (rng.normal(size=w.shape) for w in layer.get_weights())
    layer.set_weights([kernel, recurrent, bias])
    state, expected = np.zeros((4, 6)), []
    for step in range(5):
        state = gates * np.tanh(sequences[:, step] @ kernel + state @ recurrent + bias)
        expected.append(state)
    found = GatedRecurrent(layer)(sequences.astype("float32"), units=gates.astype("float32"))
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [L.LSTM, L.GRU, L.SimpleRNN])
def test_open_gates_change_nothing_but_the_layers_name(kind, rng):
    sequences = rng.normal(size=(4, 5, 3)).astype("float32")
    outputs = []
    for gated in (False, True):
        keras.utils.set_random_seed(0)
        layer = kind(6, dropout=0.3, recurrent_dropout=0.3, seed=1, go_backwards=True, return_sequences=True)
        layer.build(sequences.shape)
        called, more = (GatedRecurrent(layer), {"units": np.ones((4, 6), "float32")}) if gated else (layer, {})
        outputs.append([np.asarray(called(sequences, training=training, **more)) for training in (False, True, True)])
    for plain, gated in zip(*outputs, strict=True):
        np.testing.assert_allclose(gated, plain, rtol=1e-5, atol=1e-6)
    assert not np.allclose(outputs[0][1], outputs[0][2])  # dropout is drawn anew for each batch


@pytest.mark.parametrize("whole", [False, True])
def test_costs_are_those_of_all_steps(whole):
    sequences = keras.Input((7, 3))
    x = L.LSTM(5, return_state=whole, name="lstm")(L.Dense(4)(sequences))
    model = keras.Model(sequences, L.Dense(2)(L.Dense(6)(x[0] if whole else x)))
    graph = UnitGraph(model)
    expected = 7 * 3 * 4 + 7 * 4 * 5 * (4 + 5) + 5 * 6 + 6 * 2
    assert cost(model).multiply_adds == cost(graph).multiply_adds == graph.form.full("multiply_adds") == expected
    assert cost(model).parameters == cost(graph).parameters == graph.form.full("parameters") == model.count_params()
    assert num_units(graph, "lstm") == (0 if whole else 5)
