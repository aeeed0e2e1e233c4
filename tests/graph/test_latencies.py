"""Measured latencies as a cost in closed form."""

import dataclasses

import keras
import numpy as np
import pytest

from tfnas.common.errors import UserError
from tfnas.cutting.subnets import cut
from tfnas.graph import latencies
from tfnas.graph.costs import cost
from tfnas.graph.latencies import Latencies, Turns, compare_latency, timer
from tfnas.graph.units import UnitGraph
from tfnas.supernets import multi_branch_resnet


def model(size=8):
    return multi_branch_resnet(4, 1, 5, (size, size, 3))


def per_multiply_add(network):
    """A device on which a multiply-add takes a nanosecond, and calling a network a microsecond."""
    return 1e-9 * cost(network).multiply_adds + 1e-6


def test_on_a_device_that_takes_a_time_for_each_multiply_add_the_closed_form_is_exact():
    graph = UnitGraph(model())
    measured = Latencies.measure(graph, per_multiply_add)
    assert measured.overhead == pytest.approx(1e-6)
    assert measured.full == pytest.approx(1e-9 * cost(graph).multiply_adds + 1e-6)
    layers = sum(measured.products.values()) + sum(measured.outputs.values())
    assert layers == pytest.approx(measured.full - measured.overhead)
    form = graph.form.with_latency(measured.terms(graph))
    rng = np.random.default_rng(0)
    for rate in (0.0, 0.3, 0.7):
        architecture = graph.closed({g.name: rng.random(g.size) < rate for g in graph.groups})
        kept = np.array([mask.sum() for mask in architecture.values()])
        expected = per_multiply_add(cut(graph, architecture))
        assert form.counts(kept)["latency"] == pytest.approx(expected, rel=1e-9)


def chain_and_sum():
    """Two convolutions with an activation each, whose outputs are added up, and a dense layer."""
    image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(8, 1, name="first")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    y = keras.layers.Conv2D(8, 3, padding="same", name="second")(x)
    y = keras.layers.Add(name="sum")([x, keras.layers.Activation("swish", name="swish")(y)])
    return keras.Model(image, keras.layers.Dense(5, name="last")(keras.layers.GlobalAveragePooling2D(name="mean")(y)))


def per_number(network):
    """A device on which a pass takes 3 s, a product of two numbers 1 ms, a number of any tensor of feature maps 1 s."""
    maps = [op.output for op in network.operations if type(op).__name__ != "InputLayer"]
    return 3 + 1e-3 * cost(network).multiply_adds + sum(np.prod(tensor.shape[1:]) for tensor in maps)


def test_seconds_for_outputs_alone_are_separate_from_those_for_products():
    graph = UnitGraph(chain_and_sum(), streams=True)
    measured = Latencies.measure(graph, per_number)
    assert measured.overhead == 4  # with the one number of the network that has one
    # Less the overhead, of numbers at 16 positions of three layers, of two, and of one at one position.
    assert measured.outputs == pytest.approx({"first": 16 * 24 - 1, "second": 16 * 16 - 1, "last": 5 - 1})
    assert measured.products == pytest.approx({"first": 0.001 * 16 * 24, "second": 0.001 * 16 * 9 * 64, "last": 0.04})
    terms = {(term.name, bool(term.first), bool(term.second)): term.coefficient for term in measured.terms(graph)}
    # What the layers leave is that of the sum, in proportion to its numbers, and of the mean.
    left = measured.full - 4 - sum(measured.outputs.values()) - sum(measured.products.values())
    assert terms["sum", False, True] == pytest.approx(left * 16 / (16 + 1) / 8)
    assert terms["mean", False, True] == pytest.approx(left / (16 + 1) / 8)
    assert terms["second", True, True] == pytest.approx(0.001 * 16 * 9)
    assert terms["second", False, True] == pytest.approx((16 * 16 - 1) / 8)
    assert graph.form.with_latency(measured.terms(graph)).full("latency") == pytest.approx(measured.full)


def test_what_layers_alone_exceed_the_network_by_is_shared():
    graph = UnitGraph(model())
    measured = Latencies.measure(graph, per_multiply_add)
    half = dataclasses.replace(measured, full=measured.full / 2)
    form = graph.form.with_latency(half.terms(graph))
    assert form.full("latency") == pytest.approx(measured.full / 2)
    assert [term.name for term in half.terms(graph)][-1] == "a pass"
    assert half.terms(graph)[-1].coefficient == pytest.approx(1e-6)


def test_layers_of_one_configuration_are_measured_once():
    calls = []
    graph = UnitGraph(model())
    Latencies.measure(graph, lambda network: calls.append(network) or 1.0)
    shapes = {
        (node.inner.name.split("_")[-1][:4], node.input_channels, node.num_channels, node.input_spatial)
        for node in graph.nodes
        if node.has_kernel
    }
    # Each with all and with half of its inputs; a pass, and the whole network twice; three turns each.
    assert len(calls) <= 3 * (2 * len(shapes) + 3)


@pytest.mark.parametrize("seconds, passes", [(1e-5, 1000), (1e-3, 100), (0.5, 10)])
def test_a_network_is_timed_for_a_tenth_of_a_second_within_ten_to_a_thousand_passes(monkeypatch, seconds, passes):
    now, done = [0.0], []

    def run():
        now[0] += seconds
        done.append(now[0])

    monkeypatch.setattr(latencies, "_SECONDS", 0.1)
    monkeypatch.setattr(latencies, "_PASSES", 10)
    monkeypatch.setattr(latencies.time, "perf_counter", lambda: now[0])
    assert latencies._timer(run)() == pytest.approx(seconds)
    assert len(done) - 3 == pytest.approx(passes, abs=1)  # three to warm up


def test_refusals():
    with pytest.raises(UserError, match="one of 'tensorflow', 'litert', or a function"):
        timer(model(), "abacus")
    for wrong in (0, -1.0, float("nan"), "fast", None):
        with pytest.raises(UserError, match="a number of seconds above 0"):
            timer(model(), lambda network, wrong=wrong: wrong)()
    image = keras.Input((None, None, 3))
    any_size = keras.Model(image, keras.layers.Conv2D(2, 1)(keras.layers.Conv2D(4, 3)(image)))
    with pytest.raises(UserError, match="fixed spatial size"):
        Latencies.measure(UnitGraph(any_size), per_multiply_add)


@pytest.mark.parametrize("device", ["tensorflow", "litert"])
def test_networks_are_timed_in_turns_on_this_machine(device):
    if device == "litert":
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
        vector = keras.Input((256,))
        dense = keras.Model(vector, keras.layers.Dense(256)(vector))
        assert len(latencies._litert(dense)) > 4 * 256**2  # with the weights, which are no variables
    graph = UnitGraph(model(32))
    small = cut(graph, graph.closed({g.name: np.arange(g.size) == 0 for g in graph.groups}))
    turns = compare_latency([graph.model, small], device, 3)
    rounds = np.array(turns.rounds)
    assert rounds.shape == (3, 2) and (rounds > 0).all()
    np.testing.assert_allclose(turns.seconds, np.median(rounds, 0))


@pytest.mark.parametrize("device", ["tensorflow", "litert"])
def test_inputs_are_given_in_the_networks_own_structure(device):
    """Keras warns of another one, and warnings are errors here."""
    inputs = {name: keras.Input(shape, name=name) for name, shape in {"image": (4, 3), "age": (2,)}.items()}
    x = keras.layers.Concatenate()([keras.layers.Flatten()(inputs["image"]), inputs["age"]])
    assert timer(keras.Model(inputs, keras.layers.Dense(2)(x)), device)() > 0


def test_every_network_has_one_turn_in_every_round():
    order = []
    networks = [model(8), model(16)]
    seconds = iter([2.0, 5.0, 8.0, 16.0, 3.0, 6.0])  # the machine is busy in the second round
    turns = compare_latency(networks, lambda network: order.append(network) or next(seconds), 3)
    assert order == networks * 3
    assert turns == Turns(((2.0, 5.0), (8.0, 16.0), (3.0, 6.0)))
    assert turns.seconds == (3.0, 6.0) and turns.ratios == (1.0, 2.0) and turns.spread == 4.0


def test_nothing_to_compare_is_refused():
    for models, rounds in (([], 3), ([model()], 0)):
        with pytest.raises(UserError, match="at least one network and one round"):
            compare_latency(models, per_multiply_add, rounds)
