"""Models round composite layers that compute with numbers and variables of their own, in ways of keras-hub's layers."""

import keras
import numpy as np
import tensorflow as tf
from composites import around, conv

layers, ops = keras.layers, keras.ops


class Untold(layers.Layer):
    """Says what it returns, but not for a call with `training`, as some layers of keras-hub do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.dropout = layers.Dense(6, name="dense"), layers.Dropout(0.1, name="dropout")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=None):
        return x + self.dropout(self.dense(ops.convert_to_tensor(x)), training=training)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Tells(layers.Layer):
    """Passes `training` on to a layer that does not expect it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Untold(name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x, training=None):
        return self.inner(x, training=training)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


class Table(layers.Layer):
    """Numbers that are kept with the weights, and are not trained."""

    def build(self, shape):
        self.waves = self.add_weight(
            shape=shape[1:], initializer=np.sin(np.arange(6.0 * 6 * 6)).reshape(6, 6, 6), trainable=False, name="waves"
        )

    def call(self, x):
        return self.waves

    def compute_output_shape(self, shape):
        return shape[1:]


class Shifts(layers.Layer):
    """Adds to what it reads."""

    def call(self, x, waves):
        return x + waves


class Waved(layers.Layer):
    """Gives a layer numbers that another one keeps; `whole` adds them by itself, for which that one has to stay."""

    def __init__(self, whole=False, **kwargs):
        super().__init__(**kwargs)
        self.table, self.shifts, self.whole = Table(name="table"), Shifts(name="shifts"), whole

    def build(self, shape):
        self.table.build(shape)

    def call(self, x):
        return x + self.table(x) if self.whole else self.shifts(x, self.table(x))


class Scales(layers.Layer):
    """Functions of its variables: a number, a scale that is positive, and offsets that are taken for each example."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(), name="gain", initializer="ones")
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.offsets = self.add_weight(shape=(1, 8, shape[-1]), name="offsets", initializer="normal")

    def call(self, x):
        offsets = ops.ones((ops.shape(x)[0], 1, 1)) * ops.take(self.offsets, ops.arange(6), axis=1)
        first = ops.minimum(x * (0.5 * ops.softplus(self.scale) - 2), ops.ones((ops.shape(x)[0], 6, 6, 1)))
        return self.gain * first + ops.expand_dims(offsets, 1)


class Marks(layers.Layer):
    """Is left whole, and says that it returns floats, but returns truth values."""

    def call(self, x):
        return tf.reduce_all(x > 0, axis=-1, keepdims=True)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 1)


def marked():
    """Where something is marked."""
    image = keras.Input((6, 6, 3), name="image")
    x = conv(5, "first")(image)
    x = layers.ReLU(name="after")(conv(5, "second")(ops.where(Marks(name="own")(x), x, -x)))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


class Attention(layers.Layer):
    """Gives the weights too, of which it does not know how many they are."""

    def build(self, shape):
        self.dense = layers.Dense(shape[-1], name="dense")
        self.dense.build(shape)

    def call(self, x):
        y = ops.reshape(self.dense(x), (ops.shape(x)[0], -1, 6))
        weights = ops.softmax(ops.matmul(y, ops.transpose(y, (0, 2, 1))))
        return ops.reshape(ops.matmul(weights, y), (ops.shape(x)[0], 6, 6, 6)), weights


class Attends(layers.Layer):
    """Does not read the weights."""

    def build(self, shape):
        self.attention = Attention(name="attention")
        self.attention.build(shape)

    def call(self, x):
        return x + self.attention(x)[0]


def parts():
    """A split of which one part is empty, as D-FINE has it."""
    image = keras.Input((6, 6, 3), name="image")
    split = ops.split(conv(6, "first")(image), [4, 4], axis=-1)
    x = layers.ReLU(name="after")(conv(5, "second")(layers.Concatenate()([*split, conv(2, "third")(split[-1])])))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


# By name: the model, and the layers that are left whole.
MODELS = {
    "tells": (lambda: around(Tells(name="own")), ()),
    "waved": (lambda: around(Waved(name="own")), ()),
    "waved whole": (lambda: around(Waved(True, name="own")), ()),
    "scales": (lambda: around(Scales(name="own")), ()),
    "marked": (marked, ("own",)),
    "parts": (parts, ()),
    "attends": (lambda: around(Attends(name="own")), ()),
}
