import keras
import numpy as np
import pytest

from tfnas.common.errors import UserError
from tfnas.graph.channels import Graph


def graph_of(build, shape=(8, 8, 3)):
    image = keras.Input(shape, name="image")
    return Graph(keras.Model(image, build(image)))


def named(graph, values, name):
    return values[graph.index[name]]


def test_groups_come_from_concatenations():
    def build(x):
        a = keras.layers.Conv2D(4, 1, name="a")(x)
        b = keras.layers.Conv2D(2, 1, name="b")(a)
        ab = keras.layers.Concatenate(name="ab")([a, b])
        c = keras.layers.Conv2D(3, 1, name="c")(keras.layers.ReLU()(keras.layers.BatchNormalization()(ab)))
        abc = keras.layers.Concatenate(name="abc")([ab, c])
        d = keras.layers.Conv2D(9, 1, name="d")(abc)
        return keras.layers.Conv2D(2, 1, name="e")(keras.layers.Add()([d, abc]))

    graph = graph_of(build)
    assert graph.group_sizes("b") == (4,)
    assert graph.group_sizes("c") == (4, 2)
    assert graph.group_sizes("d") == (4, 2, 3)
    assert graph.group_sizes("e") == (9,)  # a sum mixes its sources


def test_explicit_and_live_by_hand():
    def build(x):
        a = keras.layers.Conv2D(3, 1, name="a")(x)
        b = keras.layers.Conv2D(3, 1, name="b")(a)
        total = keras.layers.Add(name="total")([a, b])
        return keras.layers.Conv2D(2, 1, name="out")(total)

    graph = graph_of(build)
    flow = graph.flow({"b": np.array([False] * 3), "out": np.array([True, False, True])})
    # b reads nothing: it is constant. a is read only where the sum is.
    assert not named(graph, flow.explicit, "b").any()
    assert named(graph, flow.live, "a").tolist() == [True, False, True]
    assert not named(graph, flow.live, "b").any()
    assert not named(graph, flow.zero, "b").any()  # its bias stays
    inputs, reads_ones = graph.nodes[graph.index["out"]].taken(flow.at(graph.index["out"]))
    assert inputs.tolist() == [True, False, True] and not reads_ones


def test_padding_makes_a_constant_vary_with_position():
    def build(x):
        a = keras.layers.Conv2D(3, 1, name="a")(keras.layers.Conv2D(3, 1, name="stem")(x))
        same = keras.layers.Conv2D(2, 3, padding="same", name="same")(a)
        valid = keras.layers.Conv2D(2, 3, name="valid")(a)
        valid = keras.layers.GlobalAveragePooling2D()(valid)
        return keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(same), valid])

    graph = graph_of(build)
    flow = graph.flow({"a": np.array([False] * 3)})
    assert named(graph, flow.explicit, "same").all()
    assert not named(graph, flow.explicit, "valid").any()


def constant_stem(rest, **dropped):
    """A stem, and behind it a convolution that is dropped whole; then `rest`. Its flow."""

    def build(x):
        x = keras.layers.Conv2D(3, 1, name="stem")(x)
        return rest(keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 1, name="gone")(x)))

    graph = graph_of(build)
    return graph, graph.flow({"gone": np.zeros(3, bool), **dropped})


L = keras.layers
# What is left when all that they read is a constant: whether it must be computed. It depends on the input in no case.
ON_CONSTANTS = {
    "a padded kernel": (lambda x: L.Conv2D(4, 3, padding="same")(x), True),
    "a kernel inside": (lambda x: L.Conv2D(4, 3)(x), False),
    "a padded depthwise": (lambda x: L.DepthwiseConv2D(3, padding="same")(x), True),
    "a padded separable": (lambda x: L.SeparableConv2D(4, 3, padding="same")(x), True),
    "a transposed": (lambda x: L.Conv2DTranspose(4, 3)(x), True),
    "padding": (lambda x: L.ZeroPadding2D()(x), True),
    "opaque": (lambda x: L.LayerNormalization()(x), True),
    "a sum": (lambda x: L.Add()([x, L.Conv2D(3, 3, padding="same")(x)]), True),
    "a product": (lambda x: x * L.Conv2D(3, 3, padding="same")(x), True),
    "a concatenation": (lambda x: L.Concatenate()([x, L.Conv2D(3, 3, padding="same")(x)]), True),
    "several in a row": (
        lambda x: L.Flatten()(L.MaxPooling2D()(L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x))))),
        True,
    ),
}


@pytest.mark.parametrize("name", ON_CONSTANTS)
def test_what_is_made_of_constants_depends_on_nothing(name):
    rest, explicit = ON_CONSTANTS[name]
    graph, flow = constant_stem(rest)
    (out,) = graph.outputs
    assert flow.explicit[out].any() == explicit
    assert not flow.depends[out].any() and not flow.reaches_outputs()
    assert graph.flow({}).reaches_outputs()


def test_every_output_must_depend_on_one_input():
    a, b = keras.Input((4, 4, 2)), keras.Input((4, 4, 2))
    left, right = (keras.layers.Conv2D(2, 1, name=name)(x) for name, x in (("left", a), ("right", b)))
    graph = Graph(keras.Model([a, b], [keras.layers.Add()([left, right]), keras.layers.Conv2D(2, 1, name="top")(left)]))
    none = np.zeros(2, bool)
    assert graph.flow({"right": none}).reaches_outputs()  # the sum depends on one input still
    assert not graph.flow({"left": none}).reaches_outputs()  # nothing is left for the other output
    assert not graph.flow({"top": none}).reaches_outputs()


def test_ones_in_the_shape_of_the_input_do_not_depend_on_it():
    def build(x):
        return keras.layers.Conv2D(2, 1)(keras.ops.concatenate([keras.ops.ones_like(x), keras.ops.zeros_like(x)], -1))

    assert not graph_of(build).flow({}).reaches_outputs()


def test_who_works_on_anything():
    """A branch of three in a row and one beside it; what each is left with when another has gone."""

    def build(x):
        x = keras.layers.Conv2D(4, 1, name="stem")(x)
        a = keras.layers.Conv2D(4, 1, name="a1")(x)
        a = keras.layers.Conv2D(4, 3, padding="same", name="a2")(keras.layers.BatchNormalization(name="norm")(a))
        a = keras.layers.Conv2D(4, 1, use_bias=False, name="a3")(keras.layers.ReLU(name="relu")(a))
        b = keras.layers.DepthwiseConv2D(3, padding="same", name="b")(x)
        return keras.layers.Conv2D(2, 1, name="out")(keras.layers.Concatenate(name="both")([a, b]))

    graph = graph_of(build)

    def working(**dropped):
        flow = graph.flow({name: np.zeros(graph.nodes[graph.index[name]].num_channels, bool) for name in dropped})
        names = ("a1", "norm", "a2", "relu", "a3", "b")
        return [name for name in names if flow.works(graph.index[name])], flow

    assert working()[0] == ["a1", "norm", "a2", "relu", "a3", "b"]
    # Its constants reach a border, so that a2 and a3 make a map, of the position alone.
    alive, flow = working(a1=True)
    assert alive == ["a2", "relu", "a3", "b"]
    assert flow.reads(graph.index["a2"]).sum() == 0 and flow.reads(graph.index["a3"]).sum() == 4
    assert working(a2=True)[0] == ["b"]  # nobody reads what comes before, and what comes after is constant
    assert working(a3=True)[0] == ["b"]
    assert working(a1=True, a2=True)[0] == ["b"]
    assert working(b=True)[0] == ["a1", "norm", "a2", "relu", "a3"]
    # Kept, but by a layer that nobody reads: of the last one's inputs only b's are.
    flow = graph.flow({"out": np.arange(8) >= 4})
    assert [flow.works(graph.index[name]) for name in ("a1", "a2", "a3", "b")] == [False, False, False, True]
    assert not flow.reads(graph.index["a1"]).any() and flow.reads(graph.index["out"]).sum() == 4
    assert flow.reads_of(["a1", "b", "out"]) == {"a1": None, "b": 4, "out": 4}


def test_what_cannot_be_followed_is_refused_by_name():
    with pytest.raises(UserError, match=r"layer 'n': axis must be the channels' \(-1\). Received: 1"):
        graph_of(lambda x: keras.layers.BatchNormalization(axis=1, name="n")(x))


def test_masks_that_do_not_fit_are_refused():
    graph = graph_of(lambda x: keras.layers.Conv2D(3, 1, name="a")(x))
    with pytest.raises(UserError, match="one of the layers .* expected. Received: 'b'; was it made for another"):
        graph.flow({"b": np.array([True])})
    with pytest.raises(UserError, match="'a': a mask of 3 input channels expected. Received: 2"):
        graph.flow({"a": np.array([True, False])})


def test_what_is_zero_whatever_the_weights():
    def build(x):
        a = keras.layers.Conv2D(3, 1, use_bias=False, name="a")(keras.layers.Conv2D(3, 1, name="stem")(x))
        relu = keras.layers.ReLU(name="relu")(a)
        padded = keras.layers.ZeroPadding2D(name="padded")(relu)
        squashed = keras.layers.Activation("sigmoid", name="squashed")(relu)  # 1/2 of zero
        norm = keras.layers.BatchNormalization(name="norm")(a)
        product = keras.layers.Multiply(name="product")([x, relu])
        heads = [keras.layers.GlobalAveragePooling2D()(t) for t in (padded, squashed, norm, product)]
        return keras.layers.Concatenate()(heads)

    graph = graph_of(build)
    flow = graph.flow({"a": np.array([False] * 3)})
    zero = {name: bool(named(graph, flow.zero, name).all()) for name in graph.index}
    names = ("stem", "a", "relu", "padded", "squashed", "norm", "product")
    assert [zero[n] for n in names] == [False, True, True, True, False, False, True]
    assert not named(graph, flow.explicit, "product").any()


def test_nested_models_are_taken_apart_and_weightless_layers_may_be_shared():
    relu = keras.layers.ReLU(name="relu")
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 1, name="conv"), relu], name="block")
    graph = graph_of(lambda x: relu(inner(keras.layers.Conv2D(4, 1, name="stem")(x))))
    assert [n.name for n in graph.nodes] == ["image", "stem", "block_conv", "block_relu", "relu"]
    twice = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 1, name="c")], name="twice")
    graph = graph_of(lambda x: twice(twice(x)))
    assert [n.name for n in graph.nodes] == ["image", "twice_c", "twice_c_1"]
