"""What share the gates can bring a network down to, counted by hand, and what is said of one below it."""

import itertools

import keras
import numpy as np
import pytest

import tfnas
from tfnas.common.errors import UserError
from tfnas.graph import reach
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost, count

L = keras.layers


def tutorial():
    """A convolutional network as in tutorials: most of it is in the dense layer."""
    layers = [keras.Input((32, 32, 3))]
    for i, filters in enumerate((16, 32, 64)):
        layers.append(L.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{i}"))
        layers.append(L.MaxPooling2D(name=f"pool{i}"))
    return keras.Sequential(
        [*layers, L.Flatten(), L.Dense(128, activation="relu", name="dense"), L.Dense(10, name="end")]
    )


def gated_convolutions(graph):
    return [n.name for n in graph.nodes if n.name in ("conv1", "conv2")]


# Parameters of the tutorial network: the dense layer reads 4 x 4 x 64 numbers.
STEM, SECOND, THIRD, DENSE, END = 27 * 16 + 16, 144 * 32 + 32, 288 * 64 + 64, 1024 * 128 + 128, 128 * 10 + 10


def test_the_tutorial_network_by_hand():
    graph = Graph(tutorial())
    full = STEM + SECOND + THIRD + DENSE + END
    assert cost(graph).parameters == full
    found = reach.Reach.of(graph, gated_convolutions(graph), "parameters")
    # One channel of the stem and one of the second; all of the third, which the dense layer reads.
    smallest = (27 + 1) + (9 + 1) + (9 * 64 + 64) + DENSE + END
    assert found.share == found.least == pytest.approx(smallest / full, rel=1e-12)
    dense = reach.Reach.of(graph, [*gated_convolutions(graph), "dense"], "parameters")
    # One number of the map, of one channel.
    smallest = (27 + 1) + (9 + 1) + (9 + 1) + (128 + 128) + END
    assert dense.share == dense.least == pytest.approx(smallest / full, rel=1e-12)


def test_a_share_out_of_reach_is_refused_with_what_holds_it():
    def gate(share, **options):
        return tfnas.gate(tutorial(), parameters=share, steps=10, num_examples=100, **options)

    message = (
        r"gate: parameters=0.4 is out of reach: the smallest network .* has 85.3% of the parameters, held by what has "
        r"no gate: 'dense' \(84.1%\); gate_dense=True brings it within reach"
    )
    with pytest.raises(UserError, match=message):
        gate(0.4)
    assert gate(0.4, gate_dense=True).target.share == 0.4
    assert gate(0.9).target.share == 0.9
    with pytest.raises(UserError, match=r"'dense' .* ask for a larger share, or name more layers in include"):
        gate(0.4, include=["conv1", "conv2"])
    with pytest.raises(UserError, match="multiply_adds=0.01 is out of reach"):
        tfnas.gate(tutorial(), multiply_adds=0.01, steps=10, num_examples=100)


def branches():
    """Two ways to the output, of several layers each, and nothing that every path goes through but the ends."""
    image = keras.Input((6, 6, 2))
    x = L.Conv2D(3, 1, name="stem")(image)
    a = L.Conv2D(8, 3, padding="same", name="a2")(L.Conv2D(6, 3, padding="same", name="a1")(x))
    b = L.Conv2D(5, 1, name="b2")(L.Conv2D(4, 1, name="b1")(x))
    c = L.Conv2D(5, 3, name="c1", padding="same")(x)
    both = L.Concatenate(name="both")([a, b, c])
    return keras.Model(image, L.Dense(3, name="end")(L.GlobalAveragePooling2D()(L.Conv2D(4, 1, name="last")(both))))


def test_the_smallest_network_is_that_of_every_architecture_tried():
    """Against all architectures that keep one channel of a layer's source, or none: exhaustively."""
    graph = Graph(branches())
    gated = ["a1", "a2", "b1", "b2", "c1", "last"]
    found = reach.Reach.of(graph, gated, "parameters")
    choices = []
    for name in gated:
        size = graph.nodes[graph.nodes[graph.index[name]].inputs[0]].num_channels
        firsts = np.cumsum([0, *graph.group_sizes(name)[:-1]])
        choices.append(
            [
                np.isin(np.arange(size), firsts[list(kept)])
                for n in range(len(firsts) + 1)
                for kept in itertools.combinations(range(len(firsts)), n)
            ]
        )
    every = [dict(zip(gated, masks, strict=True)) for masks in itertools.product(*choices)]
    smallest = min(cost(graph, keep).parameters for keep in every if graph.flow(keep).reaches_outputs())
    assert found.share == pytest.approx(smallest / cost(graph).parameters, rel=1e-12)
    assert found.least <= found.share
    assert graph.flow(found.keep).reaches_outputs()


def test_where_another_way_might_be_cheaper_it_is_a_warning(capsys):
    graph = Graph(branches())
    gated = ["a1", "a2", "b1", "b2", "c1", "last"]
    found = reach.Reach.of(graph, gated, "parameters")
    # Of three ways none is on every path; one channel of the stem is, one that is read by the last, and the end.
    ends = (2 + 1) + (4 + 4) + (4 * 3 + 3)
    assert found.least == pytest.approx(ends / cost(graph).parameters, rel=1e-12) and found.least < found.share
    reach.check(graph, gated, "parameters", (found.least + found.share) / 2, {})
    assert "may be out of reach" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(UserError, match="is out of reach"):
        reach.check(graph, gated, "parameters", found.least * 0.99, {})
    reach.check(graph, gated, "parameters", found.share * 1.01, {})
    assert not capsys.readouterr().out


def test_parameters_need_no_size_of_the_image():
    def upscaler(size):
        image = keras.Input((size, size, 1))
        x = L.Conv2D(6, 5, padding="same", activation="relu", name="stem")(image)
        x = L.Conv2D(5, 3, padding="same", activation="relu", name="a")(x)
        return keras.Model(image, L.Conv2D(4, 3, padding="same", name="end")(x))

    supernet = tfnas.gate(upscaler(None), parameters=0.7, steps=10, num_examples=100)
    keep = {"a": np.array([1, 0, 1, 1, 0, 0], bool)}
    # Three channels of the stem are left, of 25 weights and an offset.
    expected = 3 * 26 + (3 * 9 + 1) * 5 + (5 * 9 + 1) * 4
    assert count(supernet.graph, "parameters", keep) == expected
    np.testing.assert_allclose(supernet.expected_share(), 1 - 0.02 * 6 * (26 + 45) / (156 + 275 + 184), rtol=1e-5)
    with pytest.raises(UserError, match="cost: layer 'stem': a fixed spatial size expected"):
        tfnas.gate(upscaler(None), multiply_adds=0.7, steps=10, num_examples=100)
    tfnas.gate(upscaler(8), multiply_adds=0.7, steps=10, num_examples=100)


def test_a_share_that_is_known_to_be_in_reach_is_not_checked_again(monkeypatch):
    checked = []
    monkeypatch.setattr(reach, "check", lambda *arguments: checked.append(arguments))
    tfnas.gate(branches(), parameters=0.5, steps=10, num_examples=100)
    tfnas.gate(branches(), parameters=0.5, steps=10, num_examples=100, check_share=False)
    assert len(checked) == 1
