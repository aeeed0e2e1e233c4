import numpy as np
import pytest

from tfnas.baselines import ALLOCATED, EVEN, random_candidate
from tfnas.channels import Graph
from tfnas.costs import cost
from tfnas.posterior import LayerGates, Posterior
from tfnas.supernets import multi_branch_resnet

GRAPH = Graph(multi_branch_resnet(8, 1, 3, (8, 8, 1), stem_width=8))
POSTERIOR = Posterior(
    tuple(
        LayerGates(n.name, (GRAPH.nodes[n.inputs[0]].num_channels,), (0.5,), 1)
        for n in GRAPH.nodes
        if "_conv" in n.name and "stem" not in n.name
    )
)
FULL = cost(GRAPH).parameters


@pytest.mark.parametrize("kind", [EVEN, ALLOCATED])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_size_is_matched_from_above_within_one_channel(kind, share):
    for i in range(5):
        candidate = random_candidate(POSTERIOR, GRAPH, int(share * FULL), kind, seed=0, i=i)
        size = cost(GRAPH, candidate).parameters
        # One more channel kept can revive a whole convolution, at most 3 x 3 x 32 x 32 weights and its neighbours'.
        assert share * FULL <= size <= share * FULL + 0.25 * FULL
    sizes = [
        cost(GRAPH, random_candidate(POSTERIOR, GRAPH, int(share * FULL), kind, 0, i)).parameters for i in range(30)
    ]
    assert np.median(sizes) <= 1.05 * share * FULL


def test_draws_depend_on_seed_kind_and_number():
    one = random_candidate(POSTERIOR, GRAPH, FULL // 3, EVEN, seed=0, i=4)
    assert one == random_candidate(POSTERIOR, GRAPH, FULL // 3, EVEN, seed=0, i=4)
    others = [(EVEN, 1, 4), (EVEN, 0, 5), (ALLOCATED, 0, 4)]
    assert all(one != random_candidate(POSTERIOR, GRAPH, FULL // 3, kind, seed, i) for kind, seed, i in others)


def test_even_spreads_and_allocation_varies_by_layer():
    def spread(kind):
        draws = [random_candidate(POSTERIOR, GRAPH, FULL // 2, kind, 0, i) for i in range(30)]
        big = [n for n in draws[0] if draws[0][n].size >= 16]
        return np.mean([np.std([d[n].mean() for n in big]) for d in draws])

    assert spread(ALLOCATED) > 1.5 * spread(EVEN)


def test_everything_can_be_asked_for():
    assert cost(GRAPH, random_candidate(POSTERIOR, GRAPH, FULL, EVEN, 0, 0)).parameters == FULL
