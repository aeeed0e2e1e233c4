"""Layers that compute with operations of keras.ops which stand for several simpler ones, or for a layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from composites import Block
from conftest import random_weights
from exactness import check_equal
from test_tracing import checked_inside

import tfnas
from tfnas.cutting.subnets import subnet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.graph.models import record_of
from tfnas.graph.tracing import consists_of

layers, ops = keras.layers, keras.ops


class Normalizes(layers.Layer):
    """By statistics over channels, over places, and by its own."""

    def build(self, shape):
        size = shape[-1]
        self.scales = [self.add_weight(shape=(size,), initializer="ones", name=f"scale{i}") for i in range(4)]
        self.offsets = [self.add_weight(shape=(size,), name=f"offset{i}") for i in range(3)]
        self.mean = self.add_weight(shape=(size,), trainable=False, name="mean")
        self.variance = self.add_weight(shape=(size,), initializer="ones", trainable=False, name="variance")
        self.convs = [layers.Conv2D(size, 1, name=f"conv{i}") for i in range(3)]

    def call(self, x):
        mean, variance = ops.moments(x, axes=[1, 2], keepdims=True)
        x = self.convs[0]((x - mean) * ops.rsqrt(variance + 1e-3) * self.scales[0])
        mean, variance = ops.moments(x, axes=[-1], keepdims=True)
        x = ops.layer_normalization((x - mean) / ops.sqrt(variance + 1e-3), self.scales[1], beta=self.offsets[0])
        x = ops.rms_normalization(self.convs[1](x), self.scales[2])
        variance = ops.square(self.variance)
        return ops.batch_normalization(self.convs[2](x), self.mean, variance, -1, self.offsets[1], self.scales[3])


class Weighted(layers.Layer):
    """Variables of its own as the weights of what Keras has layers for."""

    def build(self, shape):
        shapes = {"a": (shape[-1], 8), "b": (8, 6), "c": (3, 3, 6, 4), "d": (3, 3, 4, 2), "e": (8, 5)}
        for name, size in shapes.items():
            setattr(self, name, self.add_weight(shape=size, initializer="glorot_uniform", name=name))

    def call(self, x):
        x = ops.relu(ops.einsum("...c,cd->...d", x, self.a))
        x = ops.tensordot(x, self.b, axes=1)
        x = ops.relu(ops.conv(x, self.c, strides=2, padding="same"))
        x = ops.depthwise_conv(x, self.d, padding="same", dilation_rate=2)
        return ops.einsum("fc,bhwf->bhwc", self.e, x)


class OverSpace(layers.Layer):
    """Pooling, sizes and blurring; the second half of the channels says what passes of the first."""

    def build(self, shape):
        self.wide = layers.Conv2D(2 * shape[-1], 3, padding="same", name="wide")
        self.blur = np.ones((3, 3, shape[-1], 1), "float32") / 9

    def call(self, x):
        x = ops.max_pool(ops.glu(self.wide(x)), 2, 1, padding="same")
        x = ops.depthwise_conv(ops.average_pool(x, 2, 2), self.blur, padding="same")
        x = ops.image.pad_images(ops.image.resize(x, (7, 9), interpolation="bilinear"), 1, 0, 0, 1)
        return ops.image.crop_images(x, 1, 1, 1, 2)


@pytest.mark.parametrize("layer", [Normalizes, Weighted, OverSpace])
def test_exact(layer, rng, tmp_path, eager):
    inside = checked_inside(layer, rng, tmp_path)
    assert len(inside) >= {Normalizes: 3, Weighted: 3, OverSpace: 1}[layer]


def cut_exactly(model, given, rng, joined=0):
    """The sizes of a supernet's groups; a network cut of it at random equals it, and costs what was predicted.

    So many parameters of the model are `joined` with others.
    """
    random_weights(model, rng)
    supernet = tfnas.gate(model, parameters=0.9, steps=10, num_examples=10, streams=True)
    check_equal(supernet(given), model(given))
    masks = {group.name: rng.random(group.size) < 0.6 for group in supernet.graph.groups}
    architecture = supernet.graph.closed(masks)
    supernet.set_architecture(architecture)
    cut = subnet(supernet, architecture)
    check_equal(cut(given), supernet(given))
    assert tfnas.cost(model).parameters + joined == sum(v.numpy().size for v in model.trainable_variables)
    assert cost(supernet.graph, architecture).parameters == sum(v.numpy().size for v in cut.trainable_variables)
    return {group.name: group.size for group in supernet.graph.groups}


PARTS = {
    "all": lambda table, x: x + table[:, : ops.shape(x)[1]],
    "first rows": lambda table, x: x + table[0, : ops.shape(x)[1]],
    "backwards": lambda table, x: x + table[:, ::-1][:, : ops.shape(x)[1]],
    "rows only": lambda table, x: x + ops.squeeze(table, 0)[: ops.shape(x)[1]],
    "ops.slice": lambda table, x: x + ops.slice(table, (0, 1, 0), (1, ops.shape(x)[1], x.shape[2])),
    "broadcast": lambda table, x: x + ops.broadcast_to(ops.squeeze(table, 0)[: ops.shape(x)[1]], ops.shape(x)),
}


class Positions(layers.Layer):
    """Adds a learned embedding of as many positions as there are."""

    def __init__(self, rows, part, **options):
        super().__init__(**options)
        self.rows, self.part = rows, part

    def build(self, shape):
        self.table = self.add_weight(shape=(1, self.rows, shape[-1]), name="table")

    def call(self, x):
        return PARTS[self.part](self.table, x)


@pytest.mark.parametrize("rows", [6, 9])
@pytest.mark.parametrize("part", PARTS)
def test_rows_of_a_variable(part, rows, rng, eager):
    if part == "ops.slice" and rows == 6:
        rows = 7
    series = keras.Input((6, 4))
    x = Positions(rows, part, name="own")(layers.Dense(8, name="first")(series))
    x = layers.Dense(5, activation="relu", name="second")(x)
    model = keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    assert set(cut_exactly(model, rng.normal(size=(3, 6, 4)).astype("f4"), rng).values()) == {8, 5}


class Scored(layers.Layer):
    """Attention that returns its weights too; the number of positions is not known to Keras in its outputs."""

    def build(self, shape):
        self.parts = [layers.Dense(shape[-1], name=name) for name in ("query", "key", "value")]

    def call(self, x):
        query, key, value = (part(x) for part in self.parts)
        places = tf.reshape(key, (tf.shape(x)[0], -1, key.shape.as_list()[-1]))
        weights = tf.nn.softmax(tf.matmul(query, places, transpose_b=True), axis=-1)
        return tf.matmul(weights, value), weights


class AroundScored(layers.Layer):
    def build(self, shape):
        self.inner = Scored(name="inner")

    def call(self, x):
        read, weights = self.inner(x)
        return x + tf.reshape(read, [-1, *x.get_shape()[1:]]), weights


def test_an_output_that_nothing_reads_may_be_of_any_size(rng, eager):
    series = keras.Input((6, 4))
    x, _ = AroundScored(name="own")(layers.Dense(8, name="first")(series))
    model = keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    groups = cut_exactly(model, rng.normal(size=(3, 6, 4)).astype("f4"), rng)
    assert groups == {"first": 8, "own_inner_key": 8}


def test_an_initial_value_may_be_an_array(rng, eager):
    start = keras.initializers.Constant(np.arange(8.0))
    series = keras.Input((6, 4))
    x = layers.Dense(8, activation="relu", bias_initializer=start, name="first")(series)
    model = keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    assert cut_exactly(model, rng.normal(size=(3, 6, 4)).astype("f4"), rng) == {"first": 8}


class Orthogonal(keras.regularizers.Regularizer):
    def __call__(self, x):
        x = ops.reshape(x, (-1, 3, 3))
        return ops.sum(ops.square(ops.matmul(x, ops.transpose(x, (0, 2, 1))) - ops.eye(3)))


def test_what_ones_own_regularizer_reads_keeps_its_size(rng, eager):
    """As in PointNet, where it takes the output for a matrix."""
    series = keras.Input((6, 3))
    x = layers.GlobalMaxPooling1D()(layers.Dense(8, activation="relu", name="first")(series))
    turn = layers.Reshape((3, 3))(layers.Dense(9, activity_regularizer=Orthogonal(), name="turn")(x))
    x = layers.Dense(5, activation="relu", name="second")(layers.Dot(axes=(2, 1))([series, turn]))
    model = keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    assert cut_exactly(model, rng.normal(size=(3, 6, 3)).astype("f4"), rng) == {"first": 8, "second": 5}


class Standardized(layers.Conv2D):
    """A convolution whose filters have mean 0 and variance 1 (weight standardization), and a gain."""

    def build(self, shape):
        super().build(shape)
        self.gain = self.add_weight(shape=(self.filters,), initializer="ones", name="gain")

    def call(self, x):
        mean, variance = ops.moments(self.kernel, axes=[0, 1, 2], keepdims=True)
        kernel = (self.kernel - mean) * ops.rsqrt(variance + 1e-3) * self.gain
        return ops.relu(ops.conv(x, kernel, padding="same") + self.bias)


def test_weights_may_be_computed_from_variables(rng, tmp_path, eager):
    """Filters that are standardized keep the values that they have so, when inputs are removed."""
    image = keras.Input((6, 6, 3))
    x = Standardized(6, 3, name="second")(Standardized(8, 3, name="first")(image))
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    groups = cut_exactly(model, rng.normal(size=(3, 6, 6, 3)).astype("f4"), rng, joined=8 + 6)
    assert groups == {"first_kernel": 8, "second_kernel": 6}


class Directions(layers.Layer):
    """Cosines of the angles between examples and classes, as for ArcFace."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), name="w")

    def call(self, x):
        return tf.matmul(tf.nn.l2_normalize(x, axis=1), tf.nn.l2_normalize(self.w, axis=0))


class PowerMean(layers.Layer):
    """Pooling by the mean of powers (GeM) with a trained exponent, one for all channels or for each."""

    def __init__(self, size, **options):
        super().__init__(**options)
        self.size = size

    def build(self, shape):
        self.p = self.add_weight(shape=self.size, initializer="ones", name="p")

    def call(self, x):
        x = tf.pow(tf.maximum(x, 1e-3), self.p)
        return tf.pow(tf.reduce_mean(x, axis=[1, 2]), 1 / self.p)


@pytest.mark.parametrize("size", [(1,), (8,)])
def test_powers(size, rng, eager):
    image = keras.Input((6, 6, 3))
    x = PowerMean(size, name="pool")(layers.Conv2D(8, 3, name="first")(image))
    model = keras.Model(image, Directions(name="classes")(layers.Dense(5, name="second")(x)))
    groups = cut_exactly(model, rng.normal(size=(3, 6, 6, 3)).astype("f4"), rng)
    assert groups == {"first": 8, "second": 5}


class Causal(layers.Layer):
    """Attention to what is earlier, by a mask that is repeated for each example, and a first token."""

    def build(self, shape):
        self.attention = layers.MultiHeadAttention(2, 3, name="attention")
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

    def call(self, x):
        x = tf.concat([tf.repeat(self.token, repeats=tf.shape(x)[0], axis=0), x], axis=1)
        places = ops.arange(ops.shape(x)[1])
        mask = ops.expand_dims(places[:, None] >= places, 0)
        return x + self.attention(x, x, attention_mask=ops.tile(mask, (ops.shape(x)[0], 1, 1)))


def test_a_mask_that_is_repeated_for_each_example(rng, eager):
    series = keras.Input((6, 4))
    x = Causal(name="own")(layers.Dense(8, name="first")(series))
    model = keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    groups = cut_exactly(model, rng.normal(size=(3, 6, 4)).astype("f4"), rng)
    assert sorted(groups.values()) == [2, 8]  # heads, and the stream


class Stages(keras.Model):
    """Blocks in a Sequential model that is built by the first call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = keras.Sequential([Block(6, name=f"block_{i}") for i in range(2)])
        self.stem, self.head = layers.Conv2D(6, 3, name="stem"), layers.Dense(2, name="head")

    def call(self, x, training=False):
        return self.head(tf.reduce_mean(self.blocks(self.stem(x), training=training), axis=[1, 2]))


def test_a_model_that_was_built_by_a_call_on_data_takes_any_number_of_examples(rng, eager):
    model, x = Stages(), rng.normal(size=(3, 6, 6, 3)).astype("f4")
    model(x)
    groups = cut_exactly(model, x[:2], rng)
    assert len(groups) >= 3 and not Graph(model).untraced


class Tokens(layers.Layer):
    """An embedding by hand."""

    def build(self, shape):
        self.table = self.add_weight(shape=(11, 8), initializer="uniform", name="table")

    def call(self, x):
        return ops.take(self.table, x, axis=0)


def test_an_embedding_by_hand_is_narrowed(rng, eager):
    words = keras.Input((5,), dtype="int32")
    x = layers.Dense(6, activation="relu", name="hidden")(Tokens(name="own")(words))
    model = keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    assert cut_exactly(model, rng.integers(0, 11, (4, 5)), rng) == {"own_table": 8, "hidden": 6}


X = np.random.default_rng(0).normal(size=(3, 4, 4, 6)).astype("f4")
VECTORS = [np.random.default_rng(i).uniform(0.5, 1.5, 6).astype("f4") for i in range(4)]
SEVERAL = {
    "moments over rows": lambda x: ops.moments(x, axes=[1, 2]),
    "moments over channels": lambda x: ops.moments(x, axes=[3], keepdims=True),
    "glu": lambda x: ops.glu(x),
    "layer_normalization": lambda x: ops.layer_normalization(x, VECTORS[0], VECTORS[1]),
    "layer_normalization alone": lambda x: ops.layer_normalization(x, epsilon=0.1),
    "rms_normalization": lambda x: ops.rms_normalization(x, VECTORS[0]),
    "batch_normalization": lambda x: ops.batch_normalization(x, VECTORS[0], VECTORS[1], -1, VECTORS[2], VECTORS[3]),
    "normalize": lambda x: ops.normalize(x),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_simpler_operations_compute_the_same(name):
    x = keras.Input(batch_shape=X.shape)
    outputs = keras.tree.flatten(SEVERAL[name](x))
    values = {id(x): X}
    records = consists_of(record_of(outputs[0]))
    assert len(records) > 1
    for record in records:
        arguments, keywords = record.arguments.convert(lambda y, values=values: values.get(id(y), y))
        made = keras.tree.flatten(record.operation(*arguments, **keywords))
        values |= {id(y): value for y, value in zip(record.output_tensors, made, strict=True)}
    for found, expected in zip(outputs, keras.tree.flatten(SEVERAL[name](X)), strict=True):
        np.testing.assert_allclose(values[id(found)], expected, rtol=1e-5, atol=1e-6)
