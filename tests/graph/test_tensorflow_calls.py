"""Layers that use TensorFlow's functions are taken apart as those that use keras.ops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_tracing import checked_inside

from tfnas.graph.tracing import tensorflow_calls

layers, backend = keras.layers, tf.keras.backend
UNARY = (
    *("abs", "cos", "exp", "negative", "ones_like", "round", "sigmoid", "sign", "sin", "sqrt", "square"),
    *("stop_gradient", "tanh", "zeros_like", "identity", "convert_to_tensor"),
    *("nn.elu", "nn.relu", "nn.relu6", "nn.selu", "nn.softsign", "nn.sigmoid", "nn.softplus", "nn.tanh", "nn.swish"),
    *("math.erf", "math.log", "math.log1p", "math.reciprocal", "math.rsqrt", "math.softplus", "math.square"),
    *("nn.gelu", "nn.leaky_relu", "nn.log_softmax", "nn.silu", "nn.softmax", "math.abs", "math.sigmoid", "shape"),
    *("math.l2_normalize", "nn.l2_normalize", "squeeze", "transpose", "reduce_mean", "math.reduce_logsumexp"),
)
BINARY = (
    *("add", "divide", "equal", "greater", "greater_equal", "less", "less_equal", "maximum", "minimum", "multiply"),
    *("not_equal", "subtract", "pow", "truediv", "math.add"),
)
REDUCTIONS = (
    *("reduce_max", "reduce_mean", "reduce_min", "reduce_sum", "reduce_prod", "reduce_logsumexp"),
    *("math.reduce_std", "math.reduce_variance", "math.reduce_max"),
)


def named(name):
    """The function of TensorFlow, as `call` looks it up."""
    module, _, rest = name.rpartition(".")
    return getattr(getattr(tf, module) if module else tf, rest)


CALLS = {
    **{name: lambda x, y, name=name: named(name)(x) for name in UNARY},
    **{name: lambda x, y, name=name: named(name)(x, y) for name in BINARY},
    **{f"{n} over rows": lambda x, y, n=n: named(n)(x, [1, 2], keepdims=True, name="n") for n in REDUCTIONS},
    **{f"{n} over channels": lambda x, y, n=n: named(n)(x, axis=-1) for n in REDUCTIONS},
    "of a keyword": lambda x, y: tf.nn.relu(features=x) + tf.square(x=y),
    "add_n": lambda x, y: tf.add_n([x, y, x]),
    "silu steeper": lambda x, y: tf.nn.silu(x, beta=1.5),
    "gelu approximated": lambda x, y: tf.nn.gelu(x, approximate=True),
    "leaky": lambda x, y: tf.nn.leaky_relu(x - 1, alpha=0.3),
    "softmax over rows": lambda x, y: tf.nn.softmax(x, axis=1),
    "concat": lambda x, y: tf.concat([x, y], axis=-1),
    "concat over rows": lambda x, y: tf.concat((x, y), 1),
    "stack": lambda x, y: tf.stack([x, y], axis=2),
    "unstack": lambda x, y: tf.unstack(x, axis=1)[1],
    "split in three": lambda x, y: tf.split(x, 3, axis=-1)[1],
    "split by sizes": lambda x, y: tf.split(x, [2, 3, 1], axis=-1)[1],
    "split by sizes and the rest": lambda x, y: tf.split(x, [2, -1, 1], axis=-1)[1],
    "pad": lambda x, y: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], constant_values=2.0),
    "pad by a mirror": lambda x, y: tf.pad(x, tf.constant([[0, 0], [1, 2], [0, 1], [0, 0]]), "REFLECT"),
    "sizes": lambda x, y: tf.reshape(x, (tf.shape(x)[0], tf.shape(x)[1] * tf.shape(x)[2], x.shape[-1])),
    "sizes in a tensor": lambda x, y: tf.reshape(x, tf.stack([-1, 16, 6])),
    "sizes joined": lambda x, y: tf.reshape(x, tf.concat([tf.shape(x)[:1], [16, 6]], axis=0)),
    "transposed": lambda x, y: tf.transpose(x, [0, 2, 1, 3]),
    "expand_dims": lambda x, y: tf.expand_dims(x, axis=2),
    "squeezed": lambda x, y: tf.squeeze(tf.expand_dims(x, 2), axis=[2]),
    "norm": lambda x, y: tf.norm(x, axis=-1, keepdims=True) + tf.norm(x, axis=[1, 2], keepdims=True),
    "slice": lambda x, y: tf.slice(x, [0, 1, 0, 2], [-1, 2, 4, 3]),
    "tile": lambda x, y: tf.tile(x, [1, 2, 1, 1]),
    "repeat": lambda x, y: tf.repeat(x, 2, axis=1),
    "broadcast_to": lambda x, y: tf.broadcast_to(x[:, :1], (3, 4, 4, 6)),
    "reverse": lambda x, y: tf.reverse(x, axis=[1, 2]),
    "gather": lambda x, y: tf.gather(x, [2, 0, 1], axis=-1),
    "cast": lambda x, y: tf.cast(x, tf.float16),
    "where": lambda x, y: tf.where(x > y, x, 2 * y),
    "clip_by_value": lambda x, y: tf.clip_by_value(x, 0.7, 1.1),
    "einsum": lambda x, y: tf.einsum("bhwc,bvwc->bhv", x, y),
    "einsum of capitals": lambda x, y: tf.einsum("bhwc, bHWc->bhwHW", x, y),
    "crelu": lambda x, y: tf.nn.crelu(x - 1),
    "roll": lambda x, y: tf.roll(tf.roll(x, 1, axis=1), shift=[1, -1], axis=[1, 2]),
    "tensordot": lambda x, y: tf.tensordot(x, tf.ones((6, 2)), axes=1),
    "matmul": lambda x, y: tf.matmul(x, tf.transpose(y, [0, 1, 3, 2])) + tf.linalg.matmul(x, tf.ones((6, 1))),
    "matmul turned": lambda x, y: tf.matmul(x, y, transpose_b=True) + tf.matmul(x, y, transpose_a=True)[..., :4, :4],
    "bias_add": lambda x, y: tf.nn.bias_add(x, tf.range(6.0)),
    "moments": lambda x, y: tf.nn.moments(x, axes=[1, 2])[0] + tf.nn.moments(x, [1, 2])[1],
    "batch_normalization": lambda x, y: tf.nn.batch_normalization(x, 1.0, 2.0, 0.5, 3.0, 1e-3),
    "batch_normalization without": lambda x, y: tf.nn.batch_normalization(x, y, y, None, None, 1e-3),
    "average pool": lambda x, y: tf.nn.avg_pool2d(x, 3, 2, "SAME"),
    "max pool": lambda x, y: tf.nn.max_pool2d(x, [1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID"),
    "pools of any rank": lambda x, y: tf.nn.avg_pool(x, 2, 1, "VALID") + tf.nn.max_pool(x, (2, 2), (1, 1), "VALID"),
    "conv2d": lambda x, y: tf.nn.conv2d(x, tf.ones((3, 3, 6, 2)), [1, 2, 2, 1], "SAME"),
    "conv2d dilated": lambda x, y: tf.nn.conv2d(x, tf.ones((2, 2, 6, 2)), 1, "VALID", dilations=2),
    "depthwise_conv2d": lambda x, y: tf.nn.depthwise_conv2d(x, tf.ones((3, 3, 6, 2)), [1, 2, 2, 1], "SAME"),
    "embedding_lookup": lambda x, y: tf.nn.embedding_lookup(tf.ones((9, 2)), tf.cast(x * 3, "int32")),
    "depth_to_space": lambda x, y: tf.nn.depth_to_space(tf.concat([x, y], -1), 2),
    "space_to_depth": lambda x, y: tf.nn.space_to_depth(x, 2),
    "resize": lambda x, y: tf.image.resize(x, (7, 9)),
    "resize to the nearest": lambda x, y: tf.image.resize(x, tf.shape(x)[1:3] * 2, method="nearest"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_stands_for_a_function_computes_the_same(name, rng):
    x, y = (rng.uniform(0.5, 1.5, (3, 4, 4, 6)).astype("f4") for _ in range(2))
    expected = CALLS[name](tf.constant(x), tf.constant(y))
    with tensorflow_calls.in_keras():
        inputs = [keras.Input(batch_shape=x.shape) for _ in range(2)]
        outputs = CALLS[name](*inputs)
    if name == "shape":  # known while a layer is traced
        np.testing.assert_array_equal(outputs, expected)
        return
    found = keras.Model(inputs, outputs)([x, y])
    assert found.dtype == expected.dtype and outputs.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_every_function_is_compared(monkeypatch, rng):
    x = tf.constant(rng.uniform(0.5, 1.5, (3, 4, 4, 6)).astype("f4"))
    seen = set()
    for name, own in tensorflow_calls.functions().items():
        module, _, rest = name.rpartition(".")

        def noted(*arguments, _own=own, _name=rest, **keywords):
            seen.add(_name)
            return _own(*arguments, **keywords)

        monkeypatch.setattr(getattr(tf, module) if module else tf, rest, noted)
    for call in CALLS.values():
        call(x, x)
    assert seen == {name.rpartition(".")[2] for name in tensorflow_calls.functions()}


def test_afterwards_functions_are_tensorflows_own():
    x = keras.Input((4,))
    with pytest.raises(ZeroDivisionError), tensorflow_calls.in_keras():
        assert tf.nn.relu(x).shape == x.shape
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="KerasTensor cannot be used"):
        tf.nn.relu(x)


class Gate(layers.Layer):
    """Squeeze and excitation, and attention to places (CBAM)."""

    def build(self, shape):
        self.down, self.up = layers.Dense(4, activation=tf.nn.relu), layers.Dense(shape[-1])
        self.places = layers.Conv2D(1, 3, padding="same")

    def call(self, x):
        pooled = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        x = x * tf.nn.sigmoid(self.up(self.down(pooled)))
        both = tf.concat([tf.reduce_mean(x, -1, keepdims=True), tf.reduce_max(x, -1, keepdims=True)], axis=-1)
        return tf.multiply(x, tf.sigmoid(self.places(both)))


class Halves(layers.Layer):
    """Two branches, one of them with a scale and an offset of its own, and their channels shuffled."""

    def __init__(self, activation=tf.nn.swish, **options):
        super().__init__(**options)
        self.activation = activation

    def build(self, shape):
        self.branches = [layers.Conv2D(4, 3, padding="same"), layers.Conv2D(4, 1)]
        self.scale = self.add_weight(shape=(4,), initializer="ones")
        self.offset = self.add_weight(shape=(4,))

    def call(self, x):
        a, b = (branch(x) for branch in self.branches)
        a = tf.nn.relu6(tf.nn.bias_add(tf.math.multiply(a, self.scale), self.offset))
        batch, height, width = tf.shape(x)[0], tf.shape(x)[1], tf.shape(x)[2]
        shuffled = tf.reshape(tf.concat([a, self.activation(b)], axis=3), (batch, height, width, 2, 4))
        shuffled = tf.reshape(tf.transpose(shuffled, [0, 1, 2, 4, 3]), (batch, height, width, 8))
        return tf.image.resize(tf.pad(shuffled, [[0, 0], [1, 1], [1, 1], [0, 0]]), (6, 6), method="nearest")


class ByBackend(layers.Layer):
    """Attention to places, by functions of keras.backend."""

    def build(self, shape):
        self.places = layers.Conv2D(1, 3, padding="same", activation="sigmoid")
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x):
        both = [backend.mean(x, axis=3, keepdims=True), backend.max(x, axis=3, keepdims=True)]
        x = x * self.places(backend.concatenate(both, axis=-1))
        return backend.dot(backend.relu(x), self.kernel)


class Attends(layers.Layer):
    """Attention between places, with heads by hand."""

    def build(self, shape):
        self.queries, self.keys, self.values = (layers.Dense(8, name=name) for name in ("query", "key", "value"))
        self.out = layers.Dense(shape[-1], name="out")

    def heads(self, x):
        return tf.transpose(tf.reshape(x, (tf.shape(x)[0], -1, 2, 4)), perm=[0, 2, 1, 3])

    def call(self, x):
        places = tf.reshape(x, (tf.shape(x)[0], 36, x.shape[-1]))
        query, key, value = (self.heads(part(places)) for part in (self.queries, self.keys, self.values))
        scores = tf.matmul(query, key, transpose_b=True) / tf.math.sqrt(4.0)
        read = tf.transpose(tf.matmul(tf.nn.softmax(scores, axis=-1), value), perm=[0, 2, 1, 3])
        return x + tf.reshape(self.out(tf.reshape(read, (tf.shape(x)[0], -1, 8))), tf.shape(x))


@pytest.mark.parametrize("layer", [Gate, Halves, ByBackend, Attends])
def test_exact(layer, rng, tmp_path, eager):
    assert checked_inside(layer, rng, tmp_path)
