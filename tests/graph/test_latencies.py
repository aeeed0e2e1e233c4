"""Measured latencies as a cost in closed form."""

import keras
import numpy as np
import pytest

from tfnas.common.errors import UserError
from tfnas.cutting.subnets import cut
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
    measured = Latencies.measure(graph, lambda network: 1e-9 * cost(network).multiply_adds)
    multiply_adds = cost(graph).multiply_adds
    assert measured.full == pytest.approx(1e-9 * multiply_adds)
    assert sum(measured.layers.values()) == pytest.approx(measured.full)
    form = graph.form.with_latency(measured.terms(graph.form))
    rng = np.random.default_rng(0)
    for rate in (0.0, 0.3, 0.7):
        architecture = graph.closed({g.name: rng.random(g.size) < rate for g in graph.groups})
        kept = np.array([mask.sum() for mask in architecture.values()])
        expected = 1e-9 * cost(cut(graph, architecture)).multiply_adds
        assert form.counts(kept)["latency"] == pytest.approx(expected, rel=1e-9)


def test_what_layers_leave_of_the_network_is_constant_and_what_they_exceed_is_shared():
    graph = UnitGraph(model())
    form = graph.form
    layers = Latencies.measure(graph, per_multiply_add).layers
    for full in (2 * sum(layers.values()), sum(layers.values()) / 2):
        terms = Latencies(full, layers).terms(form)
        found = form.with_latency(terms)
        assert found.full("latency") == pytest.approx(full)
        rest = [term.coefficient for term in terms if not (term.first or term.second)]
        assert sum(rest) == pytest.approx(max(0.0, full - sum(layers.values())), abs=1e-12)


def test_layers_of_one_configuration_are_measured_once():
    calls = []
    graph = UnitGraph(model())
    Latencies.measure(graph, lambda network: calls.append(network.name) or 1.0)
    shapes = {
        (node.inner.name.split("_")[-1][:4], node.input_channels, node.num_channels, node.input_spatial)
        for node in graph.nodes
        if node.has_kernel
    }
    assert len(calls) <= 3 * (len(shapes) + 1)  # and the whole network, three turns each


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
    graph = UnitGraph(model(32))
    small = cut(graph, graph.closed({g.name: np.arange(g.size) == 0 for g in graph.groups}))
    turns = compare_latency([graph.model, small], device, 3)
    rounds = np.array(turns.rounds)
    assert rounds.shape == (3, 2) and (rounds > 0).all()
    np.testing.assert_allclose(turns.seconds, np.median(rounds, 0))


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
