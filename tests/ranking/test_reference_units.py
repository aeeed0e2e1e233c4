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
