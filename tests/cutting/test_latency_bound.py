"""Bounds on the latency that hold as measured."""

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


def test_other_bounds_hold_as_well():
    graph, posterior = posterior_on(lambda network: 1e-9 * cost(network).multiply_adds)
    parameters = 0.3 * posterior.form.full("parameters")
    both = UnitPosterior(posterior.form, posterior.keep_logits, {"parameters": parameters})
    bound = meet_latency(both, graph, 0.9, lambda network: 1e-9 * cost(network).multiply_adds)
    assert not bound.met and bound.measured < 0.85  # the parameters bind
    found = both.mode(parameters=0.3, latency=bound.predicted)
    assert cost(graph, found).parameters <= parameters


def test_shares_out_of_range_are_refused():
    graph, posterior = posterior_on(lambda network: 1e-9 * cost(network).multiply_adds)
    for share in (0, 1, 2.5):
        with pytest.raises(UserError, match="a share of the full network's"):
            meet_latency(posterior, graph, share)
