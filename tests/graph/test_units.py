"""Channel units: which channels vanish as one, what an architecture of them leaves, and what it costs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights
from exactness import built_cost, check_equal
from random_models import Builder

from tfnas.common.errors import UserError
from tfnas.cutting.subnets import cut, describe, rebuild
from tfnas.graph.costs import cost
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture
from tfnas.supernets import multi_branch_resnet

L = keras.layers


def graph_of(build, shape=(8, 8, 3), **options):
    image = keras.Input(shape, name="image")
    return UnitGraph(keras.Model(image, build(image)), **options)


def units_of(graph, name):
    return graph.of[graph.index[name]]


def summary(graph):
    return {group.name: (group.size, group.may_empty, group.stream) for group in graph.groups}


def head(x, name="classifier"):
    return L.Dense(2, name=name)(L.GlobalAveragePooling2D()(x))


def test_a_chain_has_a_group_for_every_convolution():
    def build(x):
        x = L.ReLU()(L.BatchNormalization(name="bn")(L.Conv2D(4, 3, name="a")(x)))
        x = L.DepthwiseConv2D(3, depth_multiplier=2, name="each")(x)
        x = L.MaxPooling2D(2)(L.Conv2D(5, 1, name="b")(x))
        return L.Dense(3, name="classifier")(L.Dense(6, name="hidden")(L.Flatten(name="flat")(x)))

    graph = graph_of(build, (10, 10, 3))
    assert summary(graph) == {"a": (4, False, False), "b": (5, False, False), "hidden": (6, False, False)}
    assert units_of(graph, "bn").tolist() == [0, 1, 2, 3]
    assert units_of(graph, "each").tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert units_of(graph, "flat").tolist() == [4, 5, 6, 7, 8] * 9
    assert (units_of(graph, "image") == PINNED).all() and (units_of(graph, "classifier") == PINNED).all()


def test_what_one_layer_writes_is_no_stream_when_it_is_added_to_itself():
    def build(x):
        x = L.Conv2D(4, 3, name="a")(x)
        y = x + L.DepthwiseConv2D(3, padding="same")(x)
        y = y + keras.ops.concatenate([y[..., 2:], -y[..., :2]], axis=-1)
        return head(y * L.Conv2D(4, 3, name="b", padding="same")(y))

    graph = graph_of(build)
    assert summary(graph) == {"a": (2, False, False)}
    assert (units_of(graph, "b") == units_of(graph, "a")).all()


def residual(x):
    x = L.Conv2D(4, 3, padding="same", name="stem")(x)
    for block in ("first", "second"):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, padding="same", name=f"{block}_in")(x)))
        x = L.Add(name=block)([x, L.BatchNormalization()(L.Conv2D(4, 3, padding="same", name=f"{block}_out")(y))])
    return head(x)


def test_a_residual_stream_is_one_group_where_streams_are_gated():
    inner = {"first_in": (6, True, False), "second_in": (6, True, False)}
    assert summary(graph_of(residual)) == inner
    graph = graph_of(residual, streams=True)
    assert summary(graph) == {"stem": (4, False, True), **inner}
    for name in ("stem", "first", "first_out", "second"):
        assert units_of(graph, name).tolist() == [0, 1, 2, 3]


def test_squeeze_and_excitation_ties_its_writers_and_keeps_a_unit_of_the_squeeze():
    def build(x):
        x = L.Conv2D(6, 3, name="wide")(x)
        s = L.GlobalAveragePooling2D(keepdims=True)(x)
        s = L.Dense(6, activation="sigmoid", name="excite")(L.Dense(2, activation="relu", name="squeeze")(s))
        return head(L.Conv2D(4, 1, name="narrow")(L.Multiply()([x, s])))

    graph = graph_of(build)
    # An empty squeeze would leave sigmoid(bias).
    assert summary(graph) == {name: (size, False, False) for name, size in (("wide", 6), ("squeeze", 2), ("narrow", 4))}
    assert units_of(graph, "excite").tolist() == units_of(graph, "wide").tolist()


def test_what_is_left_whole_pins_what_it_reads_and_makes():
    def build(x):
        x = L.Conv2D(4, 1, name="a")(x)
        x = L.Conv2D(4, 1, name="b")(L.Softmax()(x))
        x = L.Conv2D(6, 1, name="mixed")(L.Permute((2, 3, 1))(L.Conv2D(4, 1, name="c")(x)))
        one = L.Conv2D(1, 1, name="one")(x)
        return head(L.Conv2D(3, 1, name="d")(L.Multiply()([x, one])))

    assert set(summary(graph_of(build))) == {"b", "mixed", "d"}
    with pytest.raises(UserError, match="no channels that may vanish"):
        graph_of(lambda x: head(L.Softmax()(L.Conv2D(4, 1)(x))))


def test_excluded_layers_write_pinned_channels():
    assert set(summary(graph_of(residual, exclude=["first_*"]))) == {"second_in"}
    with pytest.raises(UserError, match="no layer matches 'third'"):
        graph_of(residual, exclude=["third"])


def test_of_branches_side_by_side_one_is_kept():
    def build(x):
        a, b = (L.Conv2D(n, 3, padding="same", name=name)(x) for name, n in (("a", 3), ("b", 2)))
        return head(L.Conv2D(4, 1, name="after")(L.Concatenate()([a, b])))

    assert summary(graph_of(build)) == {"a": (3, True, False), "b": (2, False, False), "after": (4, False, False)}


def test_closing_drops_what_is_written_or_read_by_nothing():
    def build(x):
        y = L.Conv2D(4, 1, name="a")(x)
        for name in ("b", "c", "d"):
            y = L.Conv2D(4, 1, name=name)(y)
        return head(L.Add()([L.Conv2D(4, 1, name="skip")(x), y]))

    graph = graph_of(build)
    for empty in "abc":
        keep = {name: np.ones(4, bool) for name in "abc"} | {empty: np.zeros(4, bool)}
        assert not any(mask.any() for mask in graph.closed(keep).values())
        assert not graph.flow(keep).works(graph.index["d"])
    assert graph.mortal[graph.index["d"]] and not graph.mortal[graph.index["skip"]]
    chain = graph_of(lambda x: head(L.Conv2D(3, 1, name="b")(L.Conv2D(3, 1, name="a")(x))))
    closed = chain.closed({"a": np.zeros(3, bool), "b": np.array([False, True, True])})
    assert closed == Architecture({"a": [True, False, False], "b": [False, True, True]})


def test_a_group_whose_emptiness_leaves_a_constant_beside_its_factor_keeps_a_unit():
    """The product of an empty squeeze is gone, but its units live on in what it was multiplied with."""

    def build(x):
        x = L.ReLU()(L.Conv2D(4, 3, padding="same", name="wide")(x))
        s = L.Conv2D(2, 1, activation="relu", name="squeeze")(L.GlobalAveragePooling2D(keepdims=True)(x))
        s = L.Conv2D(4, 1, activation="sigmoid", name="excite")(s)
        return head(L.Conv2D(5, 1, name="after")(L.Concatenate()([x, L.Multiply()([x, s])])))

    assert not any(may_empty for _, may_empty, _ in summary(graph_of(build)).values())


def test_no_node_is_gone_for_want_of_two_groups_together():
    """Of two branches that alone read a convolution, or alone feed a normalization, one keeps a unit."""

    def shared_reader(x):
        stem = L.Conv2D(4, 1, name="stem")(x)
        g = L.Conv2D(8, 3, padding="same", name="g")(stem)
        ends = []
        for n, name in ((3, "a"), (2, "b")):
            ends.append(L.Conv2D(4, 1, name=f"{name}2")(L.Conv2D(n, 1, name=name)(g)))
        return head(L.Add()([stem, *ends]))

    def shared_writer(x):
        stem = L.Conv2D(4, 1, name="stem")(x)
        ends = [L.Conv2D(4, 1, name=f"{name}2")(L.Conv2D(n, 1, name=name)(stem)) for n, name in ((3, "a"), (2, "b"))]
        return head(L.Add()([stem, L.BatchNormalization()(L.Add()(ends))]))

    for build in (shared_reader, shared_writer):
        found = summary(graph_of(build))
        assert found["a"][1] and not found["b"][1]


def test_masks_of_another_supernet_are_refused():
    graph = graph_of(residual)
    right = {"first_in": np.ones(6, bool), "second_in": np.ones(6, bool)}
    for wrong in ({**right, "third_in": np.ones(6, bool)}, {"first_in": np.ones(6, bool)}):
        for use in (graph.flow, graph.closed):
            with pytest.raises(UserError, match="the groups of this supernet expected"):
                use(wrong)
    with pytest.raises(UserError, match="a mask of 6 units"):
        graph.flow({**right, "first_in": np.ones(5, bool)})


def closed_cost(form, sizes):
    """Costs from the records of the closed form, term by term."""
    costs = {}
    for resource, terms in form.terms.items():
        widths = [width.pinned + sum(m * sizes[g] for g, m in width.members) for width in form.widths]
        costs[resource] = sum(
            term.coefficient * widths[term.first] * widths[term.second]
            for term in terms
            if all(sizes[g] for g in term.needs)
        )
    return costs


def inferred(node, tensors, there):
    """A node's output from all channels; of statistics over channels, by a layer that has those that are there."""
    if not node.weighs_channels or not there.any():
        return node.infer(tensors)
    if not isinstance(node.inner, keras.Layer):
        return node.infer([np.asarray(tensors[0])[..., there]])
    narrow = type(node.inner).from_config(node.inner.get_config())
    x = np.asarray(tensors[0])
    narrow.build((*x.shape[:-1], int(there.sum())))
    narrow.set_weights([w[there] for w in node.inner.get_weights()])
    y = np.zeros_like(x)
    y[..., there] = narrow(x[..., there])
    return y


def by_interpretation(graph, architecture, inputs):
    """The outputs, from all channels: after every node those of dropped units and of dead operands are set to 0."""
    there = np.concatenate([*(architecture[group.name] for group in graph.groups), [True]])
    values, present = [], []
    given = dict(zip(graph.inputs, inputs, strict=True))
    for i, node in enumerate(graph.nodes):
        sources = [present[j] for j in node.inputs]
        if i in given:
            value, alive = tf.convert_to_tensor(given[i]), np.ones(node.num_channels, bool)
        else:
            value = inferred(node, [values[j] for j in node.inputs], sources[0])
            ties = [node.ties(j) for j in range(len(sources))]
            alive = np.zeros(node.num_channels, bool)
            for source, tied in zip(sources, ties, strict=True):
                there_too = np.full(node.num_channels, source.any()) if tied is None else (tied >= 0) & source[tied]
                product = type(node.inner).__name__ == "Multiply" and source is not sources[0]
                alive = alive & there_too if product else alive | there_too
        alive &= there[graph.of[i]]
        values.append(tf.where(alive, value, 0.0))
        present.append(alive)
    return [values[i] for i in graph.outputs]


def random_architectures(graph, rng, count):
    for _ in range(count):
        rates = rng.choice([0.0, 0.2, 0.6, 1.0], len(graph.groups))
        yield {g.name: rng.random(g.size) < rate for g, rate in zip(graph.groups, rates, strict=True)}


def check_architectures(graph, inputs, rng, count=4):
    own = {(type(node.inner), node.name) for node in graph.nodes}
    for keep in random_architectures(graph, rng, count):
        architecture = graph.closed(keep)
        assert graph.closed(architecture) == architecture
        subnet = cut(graph, architecture)
        # No gather, no slice, no layer that the original did not have.
        assert {(type(layer), layer.name) for layer in subnet.layers} <= own
        check_equal(subnet(inputs if len(inputs) > 1 else inputs[0]), by_interpretation(graph, architecture, inputs))
        counted = cost(graph, architecture)
        assert (counted.parameters, counted.multiply_adds) == built_cost(subnet)
        sizes = [int(architecture[group.name].sum()) for group in graph.groups]
        expected = {"parameters": counted.parameters, "multiply_adds": counted.multiply_adds}
        assert closed_cost(graph.form, sizes) == expected
        assert graph.form.closed(np.array(sizes)).tolist() == sizes


def test_the_full_network_costs_what_keras_counts_and_cut_ones_lack_what_nothing_reads():
    image = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(6, 1, name="stem")(image)
    mean, _ = keras.ops.split(keras.layers.Conv2D(8, 1, name="both")(x), 2, axis=-1)
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(mean))
    graph = UnitGraph(model, exclude=["both"])
    assert cost(graph).parameters == graph.form.full("parameters") == model.count_params() == 89
    assert cost(graph).multiply_adds == graph.form.full("multiply_adds") == 16 * (12 + 48 + 12)
    every = {group.name: np.ones(group.size, bool) for group in graph.groups}
    counted = cost(graph, every)
    assert (counted.parameters, counted.multiply_adds) == built_cost(cut(graph, every)) == (61, 16 * (12 + 24 + 12))
    assert graph.form.counts(graph.form.sizes)["parameters"] == 61 and graph.form.absolute({"parameters": 0.5}) == {
        "parameters": 44.5
    }


@pytest.mark.parametrize("streams", [False, True])
def test_cut_networks_are_plain_and_cost_what_the_closed_form_says(streams, rng):
    model = multi_branch_resnet(4, 1, 5, (8, 8, 3))
    random_weights(model, rng)
    check_architectures(UnitGraph(model, streams=streams), [rng.normal(size=(2, 8, 8, 3)).astype("f4")], rng)


def test_a_network_of_units_is_rebuilt_from_its_description():
    graph = UnitGraph(multi_branch_resnet(4, 1, 5, (8, 8, 3)), exclude=["stage1_*"], streams=True)
    architecture = graph.closed({group.name: np.arange(group.size) % 2 == 0 for group in graph.groups})
    arguments = {"width": 4, "num_blocks": 1, "num_classes": 5, "input_shape": [8, 8, 3]}
    again = rebuild(describe(architecture, graph, "multi_branch_resnet", **arguments))
    assert [w.shape for w in again.weights] == [w.shape for w in cut(graph, architecture).weights]
    assert again.count_params() < graph.model.count_params()


class Positions(L.Layer):
    """Adds an embedding of each position: constants that belong to the units of what they are added to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embedding = L.Embedding(4, 6)

    def call(self, x):
        return x + self.embedding(keras.ops.arange(4))


def with_positions():
    tokens = keras.Input((4, 3))
    x = L.Dense(5)(Positions()(L.Dense(6)(tokens)))
    return keras.Model(tokens, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("build", [Builder(0).model, Builder(3).model, with_positions])
def test_a_flow_is_that_of_a_walk_over_the_graph(build, rng):
    """Walks are kept by the groups that are empty; each is compared with one for just these masks."""
    graph = UnitGraph(build(), streams=True)
    for share in (0.9, 0.5, 0.2, 0.0):
        kept = {group.name: rng.random(group.size) < share for group in graph.groups}
        units = np.concatenate([*kept.values(), [True]])
        walked = graph._walked([units[of] for of in graph.of])
        flow = graph._flow(kept)
        for found, expected in zip((flow.depends, flow.explicit, flow.zero, flow.live), walked, strict=True):
            np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_a_group_whose_absence_leaves_half_of_a_layer_unread_does_not_empty(rng):
    """FiLM: factors are of no use where there is nothing to multiply, and their layer makes the offsets as well."""
    image, style = keras.Input((8, 8, 3)), keras.Input((4,))
    x = L.Conv2D(6, 3, activation="relu", name="stem")(image)
    factors, offsets = keras.ops.split(L.Reshape((1, 1, 12))(L.Dense(12, name="film")(style)), 2, axis=-1)
    x = L.BatchNormalization(center=False)(L.Conv2D(6, 3, name="conv", use_bias=False)(x)) * factors + offsets
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu", name="after")(x))
    graph = UnitGraph(keras.Model([image, style], L.Dense(3)(x)), streams=True)
    may_empty = {group.name: group.may_empty for group in graph.groups}
    assert not may_empty["stem"] and set(may_empty) == {"stem", "film", "after"}
    check_architectures(graph, [rng.normal(size=(3, *i.shape[1:])).astype("f4") for i in graph.model.inputs], rng)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(16, 30), 103, 1011])  # the first 16 are those of gating/test_unit_supernet.py
def test_random_models_are_cut_exactly(seed):
    rng = np.random.default_rng([seed, 3])
    builder = Builder(seed)
    model = builder.model()
    random_weights(model, rng)
    try:
        graph = UnitGraph(model, streams=seed % 2 == 1)
    except UserError as error:
        assert "no channels that may vanish" in str(error)
        return
    check_architectures(graph, [rng.normal(size=(3, *i.shape[1:])).astype("f4") for i in model.inputs], rng)
