"""Models round composite layers as people write them, and a subclassed one: taken apart, or left whole in part."""

import keras
import numpy as np
import tensorflow as tf

layers, ops = keras.layers, keras.ops


class Block(layers.Layer):
    """A residual branch with a training argument, as most people write one."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.filters = filters
        self.steps = [layers.Conv2D(filters, 3, padding="same", name="conv"), layers.BatchNormalization(name="bn")]
        self.dropout = layers.Dropout(0.1)
        self.last = layers.Conv2D(filters, 1, name="conv")

    def call(self, x, training=None):
        y = x
        for step in self.steps:
            y = step(y, training=training) if isinstance(step, layers.BatchNormalization) else step(y)
        return self.last(self.dropout(ops.relu(y), training=training)) + x


class Affine(layers.Layer):
    """Variables of its own, one on the left of an operation and one on the right."""

    def build(self, shape):
        self.scales = [self.add_weight(shape=(shape[-1],), name="scale")]
        self.offset = self.add_weight(shape=(1, 1, shape[-1]), name="offset", initializer="ones")

    def call(self, x):
        return self.scales[0] * x + self.offset


class Squeeze(layers.Layer):
    def __init__(self, ratio=2, **options):
        super().__init__(**options)
        self.ratio = ratio

    def build(self, shape):
        self.pool = layers.GlobalAveragePooling2D(keepdims=True)
        self.inner = layers.Dense(shape[-1] // self.ratio, activation="relu", name="inner")
        self.w = self.add_weight(shape=(shape[-1] // self.ratio, shape[-1]), name="w")

    def call(self, x):
        return x * ops.sigmoid(ops.matmul(self.inner(self.pool(x)), self.w))


class Outer(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.a, self.b = Affine(name="a"), Block(6, name="b")

    def call(self, x, training=False):
        return self.b(self.a(x), training=training)


class Net(keras.Model):
    def __init__(self, classes=3, **options):
        super().__init__(**options)
        self.stem = layers.Conv2D(6, 3, padding="same", name="stem")
        self.blocks = [Block(6, name=f"block_{i}") for i in range(2)]
        self.squeeze = Squeeze(name="squeeze")
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(classes, name="head")

    def call(self, x, training=False):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.pool(self.squeeze(x)))


class Noise(layers.Layer):
    """Random numbers in training, for each number by itself."""

    def call(self, x, training=False):
        return x + 0.1 * keras.random.normal(ops.shape(x)) if training else x


class DropPath(layers.Layer):
    """Stochastic depth as most people write it."""

    def __init__(self, rate, **options):
        super().__init__(**options)
        self.rate, self.seed_generator = rate, keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if not training:
            return x
        keep = 1 - self.rate
        shape = (ops.shape(x)[0], *[1] * (len(x.shape) - 1))
        return x / keep * ops.floor(keep + keras.random.uniform(shape, seed=self.seed_generator))

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


class Trains(layers.Layer):
    """Other behavior in training, in which channels read each other."""

    def call(self, x, training=False):
        return ops.softmax(x) if training else x


class Pools(layers.Layer):
    """Layers without weights that are made anew in each call."""

    def call(self, x):
        return layers.multiply([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])


class Pair(layers.Layer):
    """Gives None besides a tensor, as attention layers give their weights or None."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.inner = layers.Dense(shape[-1], name="inner")
        self.inner.build(shape)

    def call(self, x, training=None):
        return self.inner(x) * self.scale, None


class Takes(layers.Layer):
    """Reads the first of a pair, and gives a constant that nothing reads."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pair = Pair(name="pair")

    def build(self, shape):
        self.pair.build(shape)

    def call(self, x):
        return self.pair(x)[0], ops.zeros((0, 6))


class Windows(layers.Layer):
    """Four windows of each image as examples, to which a variable is added, as attention in windows has it."""

    def build(self, shape):
        self.offset = self.add_weight(shape=(9, shape[-1]), name="offset", initializer="normal")
        self.inner = layers.Dense(7, activation="relu", name="inner")
        self.inner.build((None, 9, shape[-1]))
        self.outer = layers.Dense(shape[-1], name="outer")
        self.outer.build((None, 9, 7))
        self.affine = Affine(name="affine")
        self.affine.build((None, 9, shape[-1]))

    def call(self, x):
        channels = x.shape[-1]
        y = ops.transpose(ops.reshape(x, (-1, 2, 3, 2, 3, channels)), (0, 1, 3, 2, 4, 5))
        y = self.affine(self.outer(self.inner(ops.reshape(y, (-1, 9, channels)) + self.offset)))
        y = ops.transpose(ops.reshape(y, (-1, 2, 2, 3, 3, channels)), (0, 1, 3, 2, 4, 5))
        return x + ops.reshape(y, (-1, 6, 6, channels))


def rows():
    """Rows of each image as examples of layers with variables of their own."""
    image = keras.Input((6, 6, 3), name="image")
    x = ops.reshape(conv(6, "first")(image), (-1, 6, 6))
    x = Affine(name="own")(layers.Conv1D(6, 3, padding="same", name="second")(Affine(name="before")(x)))
    x = layers.Conv2D(5, 1, name="third")(ops.reshape(x, (-1, 6, 6, 6)))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


def activated():
    """A convolution and an Activation with functions that are not Keras's."""
    own = layers.Conv2D(6, 3, padding="same", activation=own_activation, name="own")
    return around(own, layers.Activation(lambda x: ops.tanh(x) + 1))


def own_activation(x):
    """Not 0 at 0, and no function of Keras's."""
    return ops.cos(x) * ops.sigmoid(x)


class Raw(layers.Layer):
    """TensorFlow's own operations, with a variable."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x):
        return tf.cumsum(x, axis=1) * self.w


def conv(filters, name, size=3):
    return layers.Conv2D(filters, size, padding="same", name=name)


def around(*own):
    """A network round some layers, with units on both sides of them."""
    image = x = keras.Input((6, 6, 3), name="image")
    x = conv(6, "first")(x)
    for layer in own:
        x = keras.tree.flatten(layer(x))[0]
    x = layers.ReLU(name="after")(conv(5, "second")(x))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


def recurrent():
    """All three outputs of a layer with weights."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Reshape((36, 6))(conv(6, "first")(image))
    x, h, c = layers.LSTM(4, return_sequences=True, return_state=True)(x)
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(5, 3, name="second")(x))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.Concatenate()([x, h, c])))


def recursive():
    """One convolution and one normalization, each called three times on a residual stream."""
    image = keras.Input((6, 6, 3), name="image")
    x, one = conv(6, "first")(image), conv(6, "shared")
    norm = layers.BatchNormalization(name="norm")
    for _ in range(3):
        x = x + norm(one(layers.ReLU()(x)))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


def siamese():
    """A nested model called on two images."""
    image = x = keras.Input((6, 6, 3))
    for i in range(2):
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm_{i}")(conv(6, f"conv_{i}")(x)))
    body = keras.Model(image, layers.GlobalAveragePooling2D()(x), name="body")
    pair = [keras.Input((6, 6, 3), name=name) for name in ("left", "right")]
    return keras.Model(pair, layers.Dense(2, name="head")(layers.Concatenate()([body(x) for x in pair])))


def attended():
    """CBAM: two Dense layers, each called on the mean and on the maximum."""
    image = keras.Input((6, 6, 3), name="image")
    x, inner, outer = (
        conv(6, "first")(image),
        layers.Dense(4, activation="relu", name="in"),
        layers.Dense(6, name="out"),
    )
    pooled = [layers.GlobalAveragePooling2D(keepdims=True)(x), layers.GlobalMaxPooling2D(keepdims=True)(x)]
    x = x * ops.sigmoid(outer(inner(pooled[0])) + outer(inner(pooled[1])))
    x = layers.ReLU()(conv(5, "second")(x))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


class Waves(layers.Layer):
    """Numbers of each position, whatever the image holds."""

    def call(self, image):
        angles = ops.arange(6 * ops.shape(image)[1], dtype="float32")
        return ops.cos(angles), ops.sin(angles)


class Rotates(layers.Layer):
    """Reads numbers of each position, and has kernels of its own."""

    def build(self, shape):
        self.inner, self.outer = layers.Dense(7, activation="relu", name="in"), layers.Dense(shape[-1], name="out")

    def call(self, x, waves):
        cosines, sines = (ops.reshape(wave, (6, 6, 1)) for wave in waves)
        return x + self.outer(self.inner(x) * cosines + ops.flip(self.inner(x), 1) * sines)


class Windowed(layers.Layer):
    """Attention of all positions, with a bias for each distance, as Swin Transformers have."""

    def build(self, shape):
        self.qkv, self.out = layers.Dense(3 * shape[-1], name="qkv"), layers.Dense(shape[-1], name="out")
        self.table = self.add_weight(shape=(11, 2), initializer="normal", name="table")

    def call(self, x):
        rows = np.arange(6)
        bias = ops.take(self.table, rows[:, None] - rows[None] + 5, axis=0)
        query, key, value = ops.split(ops.reshape(self.qkv(x), (-1, 6, 6, 2, 9)), 3, axis=-1)
        scores = ops.einsum("bwthd,bwshd->bwhts", query, key) + ops.transpose(bias, (2, 0, 1))
        mixed = ops.einsum("bwhts,bwshd->bwthd", ops.softmax(scores, axis=-1), value)
        return x + self.out(ops.reshape(mixed, (-1, 6, 6, 6)))


class Halves(layers.Layer):
    """An unknown size that follows from the batch's, as layers that merge patches write it."""

    def build(self, shape):
        self.reduce = layers.Dense(shape[-1], name="reduce")

    def call(self, x):
        batch, channels = ops.shape(x)[0], x.shape[-1]
        return ops.reshape(self.reduce(ops.reshape(x, (batch, 6, 3, 2 * channels))), (batch, -1, channels))


class Stage(layers.Layer):
    """Calls one, and passes on what it returns."""

    def build(self, shape):
        self.halves = Halves(name="halves")
        self.halves.build(shape)

    def call(self, x):
        return self.halves(x)

    def compute_output_shape(self, shape):
        return (None, 18, shape[-1])


class Cosine(layers.Layer):
    """Attention by cosines, with a temperature that is trained as its logarithm, as Swin V2 has it."""

    def build(self, shape):
        self.logarithm = self.add_weight(shape=(2, 1, 1), initializer="ones", name="logarithm")
        self.qkv = layers.Dense(3 * shape[-1], name="qkv")
        self.qkv.build(shape)

    def call(self, x):
        parts = ops.reshape(self.qkv(x), (ops.shape(x)[0], 36, 3, 2, x.shape[-1] // 2))
        query, key, value = ops.unstack(ops.transpose(parts, (2, 0, 3, 1, 4)), axis=0)
        scores = ops.matmul(ops.normalize(query), ops.transpose(ops.normalize(key), (0, 1, 3, 2)))
        weights = ops.softmax(scores * ops.exp(ops.minimum(self.logarithm, 4.6)))
        return ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), (-1, 6, 6, x.shape[-1]))


def staged():
    image = keras.Input((6, 6, 3), name="image")
    x = Stage(name="own")(conv(6, "first")(image))
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling1D(name="pool")(x)))


def rotary():
    """Positions that a layer computes for others."""
    image = keras.Input((6, 6, 3), name="image")
    waves = Waves(name="waves")(image)
    x = conv(6, "first")(image)
    for i in range(2):
        x = Rotates(name=f"rotates_{i}")(x, waves)
    return keras.Model(image, layers.Dense(3, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)))


class Heads(layers.Layer):
    """Attention whose projections name no size of the image."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.projections = [
            layers.EinsumDense("bijd,dnh->bijnh", (None, None, 2, 3), bias_axes="nh", name=f"projection_{i}")
            for i in range(3)
        ]
        self.joined = layers.EinsumDense("bijnh,nhd->bijd", (None, None, 6), bias_axes="d", name="joined")

    def call(self, x):
        query, key, value = (projection(x) for projection in self.projections)
        weights = ops.softmax(ops.einsum("bijnh,bklnh->bnijkl", query, key))
        return self.joined(ops.einsum("bnijkl,bklnh->bijnh", weights, value))


# By name: the model, and the layers that are left whole.
MODELS = {
    "block": (lambda: around(Block(6, name="own")), ()),
    "affine": (lambda: around(Affine(name="own")), ()),
    "twice": (lambda: around(layer := Affine(name="own"), layer), ()),
    "squeeze": (lambda: around(Squeeze(name="own")), ()),
    "outer": (lambda: around(Outer(name="own")), ()),
    "lambda": (lambda: around(layers.Lambda(lambda x: ops.relu(x) * 2, name="own")), ()),
    "noise": (lambda: around(Noise(name="own"), DropPath(0.5, name="path")), ()),
    "trains": (lambda: around(Trains(name="own")), ("own",)),
    "pools": (lambda: around(Pools(name="own")), ()),
    "pair": (lambda: around(Takes(name="own")), ()),
    "windows": (lambda: around(Windows(name="own")), ()),
    "activated": (activated, ()),
    "rows": (rows, ()),
    "raw": (lambda: around(Raw(name="own")), ("own",)),
    "recurrent": (recurrent, ()),
    "recursive": (recursive, ()),
    "siamese": (siamese, ()),
    "attended": (attended, ()),
    "rotary": (rotary, ()),
    "heads": (lambda: around(Heads(name="own")), ()),
    "windowed": (lambda: around(Windowed(name="own")), ()),
    "staged": (staged, ()),
    "cosine": (lambda: around(Cosine(name="own")), ()),
}
