"""Reference architectures of channel units, against the costs of what is cut and the weights themselves."""

import keras
import numpy as np
import pytest

from tfnas.graph.costs import cost
from tfnas.graph.units import UnitGraph
from tfnas.ranking import reference_units
from tfnas.runs.sampled import RANDOM
from tfnas.search_space.unit_posterior import UnitPosterior

layers = keras.layers


def network():
    """A stem that two layers read, one of them separable, and a dense layer behind Flatten."""
    image = keras.Input((4, 4, 2))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    one = layers.Conv2D(5, 1, name="one")(x)
    two = layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2, name="two")(x)
    x = layers.Flatten()(layers.Concatenate()([one, two]))
    return keras.Model(image, layers.Dense(3, name="head")(x))


@pytest.fixture(scope="module")
def graph():
    return UnitGraph(network())


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("multiple", [1, 2])
def test_random_candidates_fill_their_bounds(graph, kind, multiple):
    full = cost(graph)
    bounds = {"parameters": 0.6 * full.parameters, "multiply_adds": 0.5 * full.multiply_adds}

    posterior = UnitPosterior(graph.form, (0.0,) * graph.num_units, bounds, multiple)

    def candidates(seed):
        return [reference_units.random_candidate(posterior, kind, seed, i) for i in range(20)]

    found = candidates(0)
    assert found == candidates(0) != candidates(1) and len({a.digest() for a in found}) > 5
    for architecture in found:
        price = cost(graph, architecture)
        assert price.parameters <= bounds["parameters"] and price.multiply_adds <= bounds["multiply_adds"]
        assert all(mask.sum() % multiple == 0 or mask.all() for mask in architecture.values())
        # No group can grow by its own next units alone, all groups being as large as they may.
        larger = []
        for name, mask in architecture.items():
            more = mask.copy()
            more[np.flatnonzero(~mask)[:multiple]] = True
            if more.sum() > mask.sum():
                larger.append(cost(graph, {**architecture, name: more}))
        assert any(p.parameters > bounds["parameters"] or p.multiply_adds > bounds["multiply_adds"] for p in larger)


def test_units_are_scored_by_the_weights_that_read_them(graph):
    scores = reference_units.mean_magnitudes(graph)
    by_group = dict(zip((group.name for group in graph.groups), np.split(scores, graph.starts[1:]), strict=True))
    one, two, head = (graph.model.get_layer(name) for name in ("one", "two", "head"))
    pointwise = np.asarray(two.pointwise_kernel).reshape(6, 2, 4)  # the two outputs of a channel follow each other
    for i in range(6):
        reads = [np.asarray(one.kernel)[..., i, :], np.asarray(two.depthwise_kernel)[..., i, :], pointwise[i]]
        expected = sum(np.abs(part).sum() for part in reads) / sum(part.size for part in reads)
        assert by_group["stem"][i] == pytest.approx(expected, rel=1e-5)
    after = np.abs(np.asarray(head.kernel)).reshape(16, 9, 3)
    np.testing.assert_allclose(by_group["one"], after[:, :5].mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(by_group["two"], after[:, 5:].mean((0, 2)), rtol=1e-5)
    most = 0.5 * cost(graph).parameters
    posterior = UnitPosterior(graph.form, (0.0,) * graph.num_units, {"parameters": most})
    pruned = reference_units.within(posterior, scores)
    assert 0.8 * most < cost(graph, pruned).parameters <= most
    for name, mask in pruned.items():
        if 0 < mask.sum() < mask.size:
            assert by_group[name][mask].min() >= by_group[name][~mask].max()


def test_an_even_drop_probability_has_the_expected_cost(graph, rng):
    most = {"parameters": 0.5 * cost(graph).parameters, "multiply_adds": 0.4 * cost(graph).multiply_adds}
    drop = reference_units.even_drop(graph.form, most)
    prices = []
    for _ in range(4000):
        keep = {group.name: rng.random(group.size) >= drop for group in graph.groups}
        prices.append(cost(graph, graph.closed(keep)))
    shares = [np.mean([getattr(price, name) for price in prices]) / bound for name, bound in most.items()]
    assert max(shares) == pytest.approx(1, abs=0.02)
