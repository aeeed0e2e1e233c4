"""Composite layers and subclassed models are taken apart, exactly; what cannot be is left whole; calls are tied."""

import re

import composites
import composites_of_numbers
import keras
import numpy as np
import pytest
import tensorflow as tf
from composites import (
    Affine,
    Block,
    DropPath,
    Heads,
    Net,
    Noise,
    Outer,
    Raw,
    Squeeze,
    Trains,
    around,
    attended,
    conv,
    own_activation,
    recursive,
    siamese,
)
from composites_of_numbers import Marks, Table
from conftest import random_weights
from exactness import check_equal

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting.subnets import subnet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.ranking.engine import Engine

layers, ops = keras.layers, keras.ops
MODELS = composites.MODELS | composites_of_numbers.MODELS


def candidates(supernet, rng):
    for rate in (0.3, 0.7):
        yield supernet.graph.closed({g.name: rng.random(g.size) >= rate for g in supernet.graph.groups})


def checked(model, x, rng, tmp_path):
    """The supernet is the model, and each network that is cut the supernet under its mask; also once read back."""
    supernet = tfnas.gate(model, parameters=0.9, steps=10, num_examples=10, streams=True, example=x)
    check_equal(supernet(x), model(x))
    supernet.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    engine = Engine(supernet, (x, np.zeros(len(keras.tree.flatten(x)[0]), int)))
    for architecture in candidates(supernet, rng):
        cut = subnet(supernet, architecture)
        supernet.set_architecture(architecture)
        check_equal(cut(x), supernet(x))
        check_equal(engine.outputs(architecture), supernet(x))
        built = sum(v.numpy().size for v in cut.trainable_variables)
        assert cost(supernet.graph, architecture).parameters == built
        kept = np.array([architecture[group.name].sum() for group in supernet.graph.groups])
        assert supernet.graph.form.counts(kept[None], ["parameters"])["parameters"] == [built]
    cut.save(tmp_path / "cut.keras")
    supernet.save(tmp_path / "supernet.keras")
    own = {
        c.__name__: c
        for c in (Block, Affine, Squeeze, Outer, Noise, DropPath, Trains, Raw, Heads, Table, Marks, own_activation)
    }
    with keras.saving.custom_object_scope(own):
        check_equal(keras.models.load_model(tmp_path / "cut.keras", safe_mode=False)(x), cut(x))
        check_equal(keras.models.load_model(tmp_path / "supernet.keras", safe_mode=False)(x), supernet(x))
    return supernet


def checked_inside(layer, rng, tmp_path):
    """`checked` of a layer that is taken apart; the names of the groups inside it."""
    model = around(layer(name="own"))
    random_weights(model, rng)
    with keras.saving.custom_object_scope({layer.__name__: layer}):
        supernet = checked(model, rng.normal(size=(3, 6, 6, 3)).astype("f4"), rng, tmp_path)
    assert not Graph(model).untraced
    return {group.name for group in supernet.graph.groups if group.name.startswith("own_")}


@pytest.mark.parametrize("name", MODELS)
def test_exact(name, rng, tmp_path, eager):
    build, whole = MODELS[name]
    model = build()
    random_weights(model, rng)
    x = [rng.normal(size=(3, 6, 6, 3)).astype("f4") for _ in model.inputs]
    supernet = checked(model, x if len(x) > 1 else x[0], rng, tmp_path)
    assert tuple(Graph(model).untraced) == whole
    assert cost(Graph(model)).parameters == sum(v.numpy().size for v in model.trainable_variables)
    assert all(f"; left whole: '{name}', because " in repr(supernet) for name in whole)
    assert supernet.graph.num_units == sum(group.size for group in supernet.graph.groups) >= 5


class InOneAxis(layers.Layer):
    """A dense layer and an activation of all positions in one axis, however many there are."""

    def build(self, shape):
        self.dense = layers.Dense(shape[-1], name="dense")
        self.dense.build(shape)

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        y = ops.relu(ops.reshape(self.dense(x), (batch, height * width, channels)))
        return ops.reshape(y, (batch, height, width, channels))

    def compute_output_shape(self, shape):
        return shape


def test_a_nested_model_has_the_sizes_that_it_is_called_on(rng, tmp_path, eager):
    """As keras.applications without `input_shape` leave them open; twice, so that names are used twice."""
    x = keras.Input((None, None, 6))
    inner = keras.Model(x, InOneAxis(name="last")(conv(5, "middle")(InOneAxis(name="first")(x))), name="inner")
    image = keras.Input((6, 6, 3))
    pooled = layers.GlobalAveragePooling2D()(inner(conv(6, "before")(image)))
    model = keras.Model(image, layers.Dense(3, name="head")(pooled))
    random_weights(model, rng)
    with keras.saving.custom_object_scope({"InOneAxis": InOneAxis}):
        supernet = checked(model, rng.normal(size=(3, 6, 6, 3)).astype("f4"), rng, tmp_path)
    assert {group.name for group in supernet.graph.groups} >= {"inner_first_dense", "inner_last_dense"}
    price = tfnas.cost(model)
    assert price.parameters == sum(v.numpy().size for v in model.trainable_variables)
    dense = [(6, 6), (5, 5)]
    convolved = [(3, 6), (6, 5)]
    assert price.multiply_adds == 36 * (sum(a * b for a, b in dense) + 9 * sum(a * b for a, b in convolved)) + 5 * 3


def test_a_subclassed_model_needs_the_shape_of_its_inputs(rng, tmp_path, eager):
    model, x = Net(name="net"), rng.normal(size=(3, 6, 6, 3)).astype("f4")
    with pytest.raises(UserError, match="model 'net': not built, so the shape of its inputs is not known: .* example="):
        tfnas.gate(model, parameters=0.5, steps=10, num_examples=10)
    model(x)
    random_weights(model, rng)
    supernet = checked(model, x, rng, tmp_path)
    assert {g.name for g in supernet.graph.groups} >= {"net_stem", "net_block_0_conv"}
    assert tfnas.cost(model).parameters == sum(v.numpy().size for v in model.trainable_variables)
    fresh = tfnas.gate(Net(), example=x, parameters=0.5, steps=10, num_examples=10, streams=True)
    assert fresh.graph.num_units == supernet.graph.num_units


def test_what_is_inside_trains_as_before(rng, eager):
    """Dropout and normalization: one step of a network whose gates are all open, against one of the model."""
    image = keras.Input((6, 6, 3))
    block = Block(6, name="own")
    x = layers.GlobalAveragePooling2D()(block(conv(6, "first")(image)))
    model = keras.Model(image, layers.Dense(3, name="head")(x))
    block.dropout.rate = 0.0
    supernet = tfnas.gate(model, parameters=0.99, steps=10, num_examples=10, streams=True, initial_drop=1e-9)
    images = rng.normal(size=(8, 6, 6, 3)).astype("f4")
    np.testing.assert_allclose(
        supernet.network(images, training=True), model(images, training=True), rtol=1e-4, atol=1e-5
    )
    (norm,) = (layer for layer in supernet.network._flatten_layers() if layer.name == "own_bn")
    np.testing.assert_allclose(norm.moving_mean, block.steps[1].moving_mean, rtol=1e-5)
    dropouts = [layer for layer in supernet.network._flatten_layers() if isinstance(layer, layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.0]


def test_published_gates_leave_calls_of_one_layer_whole(rng, eager):
    for build in (recursive, siamese, attended):
        model = build()
        random_weights(model, rng)
        x = [rng.normal(size=(3, 6, 6, 3)).astype("f4") for _ in model.inputs]
        x = x if len(x) > 1 else x[0]
        supernet = tfnas.gate(
            model, ell2=1, num_examples=10, gate_dense=True, include="classifier head".split()[build is siamese]
        )
        check_equal(supernet(x), model(x))
        architecture = tfnas.Architecture(
            {n: rng.random(g.mask.shape[0]) > 0.4 for n, g in supernet.gated_layers.items()}
        )
        supernet.set_architecture(architecture)
        cut = subnet(supernet, architecture)
        check_equal(cut(x), supernet(x))
        assert cost(supernet.graph, architecture).parameters == sum(v.numpy().size for v in cut.trainable_variables)


class Constrained(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), constraint="non_neg")

    def call(self, x):
        return x * self.w


class Drawn(layers.Layer):
    def call(self, x):
        return x + keras.random.normal((6,))


class Peeping(layers.Layer):
    """Reads the variable of a layer of its own."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(6)

    def call(self, x):
        return self.inner(x) + ops.sum(self.inner.kernel, axis=0)


class Positions(layers.Layer):
    """An embedding of some positions."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Embedding(9, 6)

    def call(self, x):
        return x + self.inner(ops.arange(6))


class Clips(layers.Layer):
    """Clips at a variable of its own."""

    def build(self, shape):
        self.least = self.add_weight(shape=(), trainable=False)

    def call(self, x):
        return ops.clip(x, self.least, 3.0)


class Looks(layers.Layer):
    """Does this or that, according to what it is given."""

    def call(self, x):
        return x * 2 if np.asarray(x).max() > 0 else x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Clips, "Clip has a tensor as its setting"),
        (Looks, "its `call` looks at values"),
        (Trains, "it does other things in training"),
        (Raw, "its `call` uses TensorFlow's 'cumsum'"),
        (Constrained, "a variable of its own has a constraint"),
        (Drawn, "it computes with variables or random numbers by itself"),
        (Peeping, "it computes with variables or random numbers by itself"),
        (Positions, "its layer 'embedding' is called on numbers that do not come from its inputs"),
    ],
)
def test_why_a_layer_is_left_whole(layer, reason):
    model = around(layer())
    before = [v.numpy() for v in model.variables]
    (why,) = Graph(model).untraced.values()
    assert re.match(reason, why)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


class Secret(layers.Layer):
    def __init__(self, secret):
        super().__init__()
        self.secret = secret

    def call(self, x):
        return tf.cumsum(x, axis=1)

    def get_config(self):
        return {"secret": 0}


def test_a_layer_that_is_left_whole_needs_no_config(rng):
    layer = Secret(3)
    layer.name = "own"
    model = around(layer)
    random_weights(model, rng)
    supernet, x = tfnas.gate(model, parameters=0.5, steps=10, num_examples=10), rng.normal(size=(3, 6, 6, 3))
    check_equal(supernet(x), model(x))
    assert supernet.network.get_layer("own") is not layer and supernet.network.get_layer("own").secret == 3


class Forgetful(layers.Layer):
    """Is left whole, and its config does not say all that it was made with."""

    def __init__(self, offset=True, **kwargs):
        super().__init__(**kwargs)
        self.offset = offset

    def build(self, shape):
        names = ["scale", "offset"] if self.offset else ["scale"]
        self.own = [self.add_weight(shape=shape[-1:], name=name) for name in names]

    def call(self, x):
        return tf.cumsum(x, axis=1) * self.own[0] + (self.own[1] if self.offset else 0.0)

    def get_config(self):  # Keras writes one of the arguments of __init__ for a layer without
        return super().get_config()


def test_a_layer_whose_config_makes_another_is_duplicated(rng):
    model = around(Forgetful(offset=False, name="own"))
    random_weights(model, rng)
    x = rng.normal(size=(3, 6, 6, 3)).astype("f4")
    supernet = tfnas.gate(model, parameters=0.9, steps=10, num_examples=10)
    check_equal(supernet(x), model(x))
    for architecture in candidates(supernet, rng):
        supernet.set_architecture(architecture)
        check_equal(subnet(supernet, architecture)(x), supernet(x))
