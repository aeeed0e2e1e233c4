"""Bounds on the latency that hold as measured."""

import dataclasses
import functools
import math

import numpy as np
import pytest

from tfnas.common.errors import UserError
from tfnas.cutting.latency_bound import meet_latency
from tfnas.cutting.subnets import cut
from tfnas.graph.costs import cost
from tfnas.graph.latencies import Latencies
from tfnas.graph.units import UnitGraph
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.supernets import multi_branch_resnet

GRAPH = UnitGraph(multi_branch_resnet(16, 1, 5, (8, 8, 3)))
multiply_adds = functools.cache(lambda network: cost(network).multiply_adds + 1)  # nothing takes no time
FULL = multiply_adds(GRAPH.model)
# Seconds of networks as devices have them: with a part that no narrowing saves, less than proportional, or not even in
# order; of which the layers alone say too little or too much.
DEVICES = {
    "proportional": lambda m: m,
    "overhead": lambda m: m + 0.4 * FULL,
    "concave": lambda m: m**0.6,
    "convex": lambda m: m**1.3,
    "wavy": lambda m: m * (1 + 0.1 * math.sin(25 * m / FULL)),
}


def posterior_on(device):
    form = GRAPH.form.with_latency(Latencies.measure(GRAPH, device).terms(GRAPH))
    return UnitPosterior(form, (2.0,) * GRAPH.num_units)


@pytest.mark.parametrize("kind", DEVICES)
def test_a_bound_is_met_as_measured(kind):
    def device(network):
        return 1e-9 * DEVICES[kind](multiply_adds(network))

    posterior = posterior_on(device)
    bound = meet_latency(posterior, GRAPH, 0.6, device)
    assert bound.met and 0.57 <= bound.measured <= 0.6 and len(bound.tried) <= (8 if kind == "wavy" else 4)
    assert bound.tried[-1][1] == bound.measured
    network = cut(GRAPH, posterior.mode(latency=bound.predicted))
    assert device(network) / device(GRAPH.model) == pytest.approx(bound.measured)


def test_between_a_network_too_fast_and_one_too_slow_it_bisects():
    """The device has two speeds only, and none that is asked for."""

    def device(network):
        return 1.0 if multiply_adds(network) > 0.3 * FULL else 0.1

    posterior = posterior_on(lambda network: 1e-9 * multiply_adds(network))
    bound = meet_latency(posterior, GRAPH, 0.5, device)
    assert not bound.met and bound.measured == 0.1 and len(bound.tried) <= 10
    slow, fast = ([share for share, measured in bound.tried if measured == speed] for speed in (1.0, 0.1))
    assert max(fast) < 0.3 < min(slow) < 1.05 * max(fast) and len({*slow, *fast}) == len(bound.tried)


def test_a_network_is_taken_only_if_it_is_as_fast_when_measured_again():
    """The device takes 5 % longer than predicted for a network, but not in the first rounds of the first one."""
    turns = []

    def device(network):
        if network is GRAPH.model:
            return 1e-9 * FULL
        turns.append(network)
        return (0.98 if len(turns) <= 5 else 1.05) * 1e-9 * multiply_adds(network)

    posterior = posterior_on(lambda network: 1e-9 * multiply_adds(network))
    bound = meet_latency(posterior, GRAPH, 0.6, device)
    (predicted, measured), *others = bound.tried
    assert measured == pytest.approx(1.05 * predicted, rel=1e-3) and others
    assert bound.met and 0.57 <= bound.measured <= 0.6


def counting(seconds):
    """A device, and the multiply-adds of the networks that it measured."""
    measured = []

    def device(network):
        measured.append(multiply_adds(network))
        return seconds(measured[-1])

    return device, measured


def test_other_bounds_hold_as_well_and_end_the_search_if_they_bind():
    device, measured = counting(lambda m: 1e-9 * m)
    posterior = posterior_on(device)
    parameters = 0.3 * posterior.form.full("parameters")
    both = dataclasses.replace(posterior, bounds={"parameters": parameters})
    measured.clear()
    bound = meet_latency(both, GRAPH, 0.9, device)
    assert bound.others_bind and bound.met and bound.measured < 0.85  # faster than asked for
    assert len(bound.tried) == 1 and len(set(measured)) == 2  # and no other network could be slower
    found = both.mode(parameters=0.3, latency=bound.predicted)
    assert cost(GRAPH, found).parameters <= parameters


def test_other_bounds_may_exceed_the_full_cost():
    posterior = posterior_on(lambda network: 1e-9 * multiply_adds(network))
    loose = {"parameters": 2 * posterior.form.full("parameters"), "multiply_adds": 1.5 * FULL}
    bound = meet_latency(
        dataclasses.replace(posterior, bounds=loose), GRAPH, 0.6, lambda network: 1e-9 * multiply_adds(network)
    )
    assert bound.met and not bound.others_bind


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_share_out_of_reach_ends_at_the_smallest_network(multiple):
    device, measured = counting(lambda m: 1e-9 * (m + 9 * FULL))
    posterior = dataclasses.replace(posterior_on(device), channel_multiple=multiple)
    measured.clear()
    bound = meet_latency(posterior, GRAPH, 0.5, device)
    least = posterior.form.least("multiply_adds", multiple)
    assert not bound.met and bound.measured == pytest.approx((least + 1 + 9 * FULL) / (10 * FULL))
    assert len(set(measured)) == 1 + len(bound.tried)  # none twice
    assert posterior.cost_of(posterior.mode(latency=bound.predicted), "multiply_adds") == least


def test_the_smallest_bound_is_in_reach_whatever_its_rounding():
    measured = Latencies.measure(GRAPH, lambda network: multiply_adds(network) + 9 * FULL)
    for seed in range(40):
        scale = np.random.default_rng(seed).random()
        products, outputs = (
            {name: scale * x for name, x in layers.items()} for layers in (measured.products, measured.outputs)
        )
        scaled = Latencies(scale * measured.full, scale * measured.overhead, products, outputs)
        posterior = UnitPosterior(GRAPH.form.with_latency(scaled.terms(GRAPH)), (2.0,) * GRAPH.num_units)
        bound = meet_latency(
            posterior, GRAPH, 0.5, lambda network, scale=scale: scale * (multiply_adds(network) + 9 * FULL)
        )
        posterior.mode(latency=bound.predicted)


def test_shares_out_of_range_are_refused():
    posterior = posterior_on(lambda network: 1e-9 * multiply_adds(network))
    for share in (0, 1, 2.5):
        with pytest.raises(UserError, match="a share of the full network's"):
            meet_latency(posterior, GRAPH, share)
