"""Bounds on the latency that hold as measured."""

import dataclasses

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

FULL = cost(UnitGraph(multi_branch_resnet(16, 1, 5, (8, 8, 3)))).multiply_adds
# Seconds of networks as devices have them: with a part that no narrowing saves, or less than proportional; of which the
# layers alone say too little or too much.
DEVICES = {
    "proportional": lambda m: m,
    "overhead": lambda m: m + 0.4 * FULL,
    "concave": lambda m: m**0.6,
    "convex": lambda m: m**1.3,
}


def posterior_on(device):
    graph = UnitGraph(multi_branch_resnet(16, 1, 5, (8, 8, 3)))
    form = graph.form.with_latency(Latencies.measure(graph, device).terms(graph.form))
    return graph, UnitPosterior(form, (2.0,) * graph.num_units)


@pytest.mark.parametrize("kind", DEVICES)
def test_a_bound_is_met_as_measured_within_four_networks(kind):
    measured = []

    def device(network):
        measured.append(network)
        return 1e-9 * DEVICES[kind](cost(network).multiply_adds)

    graph, posterior = posterior_on(device)
    bound = meet_latency(posterior, graph, 0.6, device)
    assert bound.met and 0.57 <= bound.measured <= 0.6 and len(bound.tried) <= 4
    network = cut(graph, posterior.mode(latency=bound.predicted))
    assert device(network) / device(graph.model) == pytest.approx(bound.measured)


def counting(seconds):
    """A device, and the multiply-adds of the networks that it measured."""
    measured = []

    def device(network):
        measured.append(cost(network).multiply_adds)
        return seconds(measured[-1])

    return device, measured


def test_other_bounds_hold_as_well_and_end_the_search_if_they_bind():
    device, measured = counting(lambda m: 1e-9 * m)
    graph, posterior = posterior_on(device)
    parameters = 0.3 * posterior.form.full("parameters")
    both = dataclasses.replace(posterior, bounds={"parameters": parameters})
    measured.clear()
    bound = meet_latency(both, graph, 0.9, device)
    assert bound.others_bind and bound.met and bound.measured < 0.85  # faster than asked for
    assert len(bound.tried) == 1 and len(set(measured)) == 2  # and no other network could be slower
    found = both.mode(parameters=0.3, latency=bound.predicted)
    assert cost(graph, found).parameters <= parameters


def test_other_bounds_may_exceed_the_full_cost():
    graph, posterior = posterior_on(lambda network: 1e-9 * cost(network).multiply_adds)
    loose = {"parameters": 2 * posterior.form.full("parameters"), "multiply_adds": 1.5 * FULL}
    bound = meet_latency(
        dataclasses.replace(posterior, bounds=loose), graph, 0.6, lambda network: 1e-9 * cost(network).multiply_adds
    )
    assert bound.met and not bound.others_bind


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_share_out_of_reach_ends_at_the_smallest_network(multiple):
    device, measured = counting(lambda m: 1e-9 * (m + 9 * FULL))
    graph, posterior = posterior_on(device)
    posterior = dataclasses.replace(posterior, channel_multiple=multiple)
    measured.clear()
    bound = meet_latency(posterior, graph, 0.5, device)
    least = posterior.form.least("multiply_adds", multiple)
    assert not bound.met and bound.measured == pytest.approx((least + 9 * FULL) / (10 * FULL))
    assert len(set(measured)) == 1 + len(bound.tried)  # none twice
    assert posterior.cost_of(posterior.mode(latency=bound.predicted), "multiply_adds") == least


@pytest.mark.parametrize("seed", range(40))
def test_the_smallest_bound_is_in_reach_whatever_its_rounding(seed):
    scale = np.random.default_rng(seed).random()

    def device(network):
        return scale * (cost(network).multiply_adds + 9 * FULL)

    posterior = posterior_on(device)[1]
    bound = meet_latency(posterior, posterior_on(device)[0], 0.5, device)
    posterior.mode(latency=bound.predicted)


def test_shares_out_of_range_are_refused():
    graph, posterior = posterior_on(lambda network: 1e-9 * cost(network).multiply_adds)
    for share in (0, 1, 2.5):
        with pytest.raises(UserError, match="a share of the full network's"):
            meet_latency(posterior, graph, share)
