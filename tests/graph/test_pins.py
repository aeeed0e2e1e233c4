"""Largest shares that can be removed, and layers that keep whole streams."""

import keras
import numpy as np
import pytest

import tfnas
from tfnas.graph.pins import removable, stream_pins
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture

L = keras.layers


def residual(stem):
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", name="stem")(image) if stem else image
    for i in range(2):
        inner = L.Conv2D(6, 3, padding="same", activation="relu", name=f"inner{i}")(x)
        x = L.Add(name=f"sum{i}")([x, L.Conv2D(x.shape[-1], 3, padding="same", name=f"back{i}")(inner)])
    return keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))


def test_a_stream_is_pinned_by_the_input_or_by_an_excluded_layer_and_else_not():
    assert stream_pins(UnitGraph(residual(stem=False))) == {"sum0": ["image"]}
    for streams in (False, True):
        assert stream_pins(UnitGraph(residual(stem=True), streams=streams)) == {}
        assert stream_pins(UnitGraph(residual(stem=True), exclude=("back1",), streams=streams)) == {"sum0": ["back1"]}


@pytest.mark.parametrize("multiple", [1, 2])
def test_what_can_go_is_what_the_smallest_network_lacks(multiple):
    graph = UnitGraph(residual(stem=True), streams=True)
    smallest = {g.name: np.arange(g.size) < (0 if g.may_empty else multiple) for g in graph.groups}
    left, full = tfnas.cost(graph, graph.closed(Architecture(smallest))), tfnas.cost(graph)
    expected = {name: 1 - vars(left)[name] / vars(full)[name] for name in ("parameters", "multiply_adds")}
    assert removable(graph.form, multiple) == pytest.approx(expected)
