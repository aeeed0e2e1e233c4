import dataclasses

import keras
import numpy as np
import pytest

from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.ranking.reference_architectures import (
    choice_blocks,
    even_drop,
    magnitude_candidate,
    random_candidate,
    single_path,
)
from tfnas.runs.sampled import Kind
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior
from tfnas.supernets import densenet121, multi_branch_resnet, resnet50

GRAPH = Graph(multi_branch_resnet(8, 1, 3, (8, 8, 1), stem_width=8))
POSTERIOR = Posterior(
    tuple(
        LayerGates(n.name, (GRAPH.nodes[n.inputs[0]].num_channels,), (0.5,), 1)
        for n in GRAPH.nodes
        if "_conv" in n.name and "stem" not in n.name
    )
)
FULL = cost(GRAPH).parameters


@pytest.mark.parametrize("kind", [Kind.EVEN, Kind.ALLOCATED])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_a_random_candidate_is_within_its_size_and_near_it(kind, share):
    most = share * FULL
    drawn = [random_candidate(POSTERIOR, GRAPH, most, kind, 0, i) for i in range(15)]
    sizes = [cost(GRAPH, candidate).parameters for candidate in drawn]
    assert max(sizes) <= most and np.median(sizes) >= 0.85 * most


def test_a_random_candidate_is_within_the_posteriors_own_count():
    def price(architecture):
        return sum(int(architecture[g.name].sum()) * g.parameters_per_channel for g in POSTERIOR.layers)

    most = 0.3 * POSTERIOR.total_parameters()
    prices = [price(random_candidate(POSTERIOR, GRAPH, most, Kind.EVEN, 0, i, price)) for i in range(5)]
    assert all(most - 1 < p <= most for p in prices)  # each channel costs 1


def test_draws_depend_on_seed_kind_and_number():
    one = random_candidate(POSTERIOR, GRAPH, FULL // 3, Kind.EVEN, seed=0, i=4)
    assert one == random_candidate(POSTERIOR, GRAPH, FULL // 3, Kind.EVEN, seed=0, i=4)
    others = [(Kind.EVEN, 1, 4), (Kind.EVEN, 0, 5), (Kind.ALLOCATED, 0, 4)]
    assert all(one != random_candidate(POSTERIOR, GRAPH, FULL // 3, kind, seed, i) for kind, seed, i in others)


def test_even_spreads_and_allocation_varies_by_layer():
    def spread(kind):
        draws = [random_candidate(POSTERIOR, GRAPH, FULL // 2, kind, 0, i) for i in range(30)]
        big = [n for n in draws[0] if draws[0][n].size >= 16]
        return np.mean([np.std([d[n].mean() for n in big]) for d in draws])

    assert spread(Kind.ALLOCATED) > 1.5 * spread(Kind.EVEN)


def test_everything_can_be_asked_for():
    assert cost(GRAPH, random_candidate(POSTERIOR, GRAPH, FULL, Kind.EVEN, 0, 0)).parameters == FULL


def test_magnitude_keeps_the_largest_of_all_layers(rng):
    scores = {g.name: rng.random(g.num_channels) for g in POSTERIOR.layers}
    candidate = magnitude_candidate(GRAPH, scores, FULL // 3)
    kept = np.concatenate([scores[name][mask] for name, mask in candidate.items()])
    dropped = np.concatenate([scores[name][~mask] for name, mask in candidate.items()])
    assert dropped.size and kept.min() > dropped.max()
    assert cost(GRAPH, candidate).parameters <= FULL // 3
    # One channel more, the largest of those dropped, and it is too large.
    more = Architecture({name: scores[name] >= dropped.max() for name in candidate})
    assert more.kept == candidate.kept + 1 and cost(GRAPH, more).parameters > FULL // 3


def test_magnitude_never_drops_what_has_no_score(rng):
    scores = {g.name: rng.random(g.num_channels) for g in POSTERIOR.layers}
    first = next(iter(scores))
    scores[first][:] = np.inf
    assert magnitude_candidate(GRAPH, scores, 0)[first].all()


def test_even_drop_keeps_the_same_weights_in_expectation():
    posterior = Posterior((LayerGates("a", (4,), (0.3,), 9), LayerGates("b", (2, 2), (0.3, 0.6), 18)))
    architecture = Architecture({"a": np.array([1, 0, 1, 0], bool), "b": np.array([1, 0, 0, 0], bool)})
    p = even_drop(posterior, architecture)
    assert p == pytest.approx(1 - (2 * 9 + 18) / (4 * 9 + 4 * 18))
    even = Posterior(
        tuple(dataclasses.replace(g, drop_probability=(p,) * len(g.group_sizes)) for g in posterior.layers)
    )
    assert even.expected_parameters() == pytest.approx(36)
    whole = Architecture({"a": np.ones(4, bool), "b": np.ones(4, bool)})
    assert even_drop(posterior, whole) == 1e-6


def blocks_of(model):
    """Under the gates that `gate` puts by default."""
    graph = Graph(model)
    kernels = {i for i, node in enumerate(graph.nodes) if node.kernel_is_cut}
    return choice_blocks(
        graph, {graph.nodes[i].name for i in kernels if graph.sees_kernel[i] and graph.feeds_kernel[i]}
    )


def test_blocks_of_the_multi_branch_resnet_are_its_pairs_of_paths():
    # Its skips are identities, or two concatenated halves that both stay.
    assert blocks_of(multi_branch_resnet(4, 2, 3, (8, 8, 1))) == [
        [f"stage{stage}_block{block}_path{path}_conv2" for path in (1, 2)] for stage in (1, 2, 3) for block in (1, 2)
    ]


def test_blocks_of_resnet50_are_its_four_convolutions():
    # In each stage's first block a projection meets conv3 in the sum; it goes round the block and stays.
    branches = ("1x1", "3x3", "3x3_dilated", "5x5_dilated")
    assert blocks_of(resnet50(4, 2, 3, (32, 32, 3))) == [
        [f"stage{stage}_block{block}_conv2_{branch}" for branch in branches]
        for stage in (1, 2, 3, 4)
        for block in (1, 2)
    ]


def test_nothing_competes_in_densenet_nor_in_a_plain_chain():
    assert blocks_of(densenet121(4, 2, 3, (32, 32, 3))) == []
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    x = keras.layers.Conv2D(4, 3, name="middle")(x)
    assert blocks_of(keras.Model(image, keras.layers.Conv2D(4, 3, name="last")(x))) == []


def test_what_others_read_too_does_not_compete():
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    a, b, c = (keras.layers.Conv2D(4, 3, padding="same", name=name)(x) for name in "abc")
    x = keras.layers.Add()([a, b, keras.layers.ReLU()(keras.layers.BatchNormalization()(c)), x])
    x = keras.layers.Concatenate()([x, a])
    model = keras.Model(image, keras.layers.Dense(2, name="classifier")(keras.layers.GlobalAveragePooling2D()(x)))
    assert blocks_of(model) == [["b", "c"]]
    assert choice_blocks(Graph(model), ["a", "b"]) == []


def test_a_single_path_has_one_operation_of_each_block():
    blocks = [[f"stage{stage}_block1_path{path}_conv2" for path in (1, 2)] for stage in (1, 2, 3)]
    paths = [single_path(POSTERIOR, blocks, seed=0, i=i) for i in range(400)]
    for path in paths:
        for block in blocks:
            assert sorted(path[name].mean() for name in block) == [0, 1]
        assert all(path[name].all() for name in path if not any(name in block for block in blocks))
    firsts = np.array([[path[block[0]].all() for block in blocks] for path in paths])
    np.testing.assert_allclose(firsts.mean(0), 0.5, atol=0.1)  # 4 standard errors
    assert len({tuple(row) for row in firsts}) == 8  # the blocks' draws are independent
    assert paths[7] == single_path(POSTERIOR, blocks, seed=0, i=7) and len(set(paths)) == 8
    assert paths[:20] != [single_path(POSTERIOR, blocks, seed=1, i=i) for i in range(20)]
