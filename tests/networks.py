"""Small networks of the kinds that people build; `MODELS` maps a name to a builder. `benchmarks.coverage` has all."""

import keras
from keras import layers, ops


def convolved(x, filters, size=3, strides=1, activation="relu", **options):
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, **options)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def classified(image, x, classes=4):
    return keras.Model(image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def unet():
    image = keras.Input((16, 16, 3))
    first = convolved(image, 8)
    second = convolved(layers.MaxPooling2D()(first), 12)
    x = layers.UpSampling2D()(convolved(layers.MaxPooling2D()(second), 16))
    x = layers.Conv2DTranspose(8, 2, 2)(convolved(layers.Concatenate()([x, second]), 12))
    return keras.Model(image, layers.Conv2D(2, 1)(convolved(layers.Concatenate()([x, first]), 8)))


def autoencoder():
    image = keras.Input((8, 8, 1))
    code = layers.Dense(6, name="code")(layers.Flatten()(layers.Conv2D(8, 3, 2, "same", activation="relu")(image)))
    x = layers.Reshape((4, 4, 8))(layers.Dense(128, activation="relu")(code))
    return keras.Model(image, layers.Conv2DTranspose(1, 3, 2, "same", activation="sigmoid")(x))


def super_resolution():
    """Of images of any size."""
    image = keras.Input((None, None, 1))
    x = layers.Conv2D(16, 5, padding="same", activation="relu")(image)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    detail = layers.Conv2DTranspose(1, 4, 2, "same")(layers.Conv2D(8, 3, padding="same", activation="relu")(x))
    return keras.Model(image, detail + layers.UpSampling2D(interpolation="bilinear")(image))


def pixel_shuffle():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(12, 3, padding="same")(convolved(convolved(image, 8), 8))
    x = ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 2, 3)), (0, 1, 3, 2, 4, 5))
    return keras.Model(image, ops.reshape(x, (-1, 12, 12, 3)))


def two_outputs():
    image = keras.Input((8, 8, 3), name="image")
    x = convolved(convolved(image, 8), 12, strides=2)
    pooled = layers.GlobalAveragePooling2D()(x)
    heads = {"label": layers.Dense(3, name="label")(layers.Dense(8, "relu")(pooled))}
    return keras.Model(image, {**heads, "mask": layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x)})


def two_inputs():
    image, numbers = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="numbers")
    x = layers.GlobalMaxPooling2D()(convolved(convolved(image, 8), 12))
    y = layers.Dense(8, activation="relu")(layers.Dense(8, activation="relu")(numbers))
    return keras.Model([image, numbers], layers.Dense(1)(layers.Dense(8, "relu")(layers.Concatenate()([x, y]))))


def time_distributed():
    frames = keras.Input((3, 8, 8, 3))
    x = layers.TimeDistributed(layers.Conv2D(6, 3, activation="relu"))(frames)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    x = layers.Conv1D(8, 3, padding="same", activation="relu")(layers.Conv1D(8, 3, padding="same")(x))
    return keras.Model(frames, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def spectral():
    image = keras.Input((8, 8, 3))
    x = layers.LeakyReLU()(layers.SpectralNormalization(layers.Conv2D(8, 3))(image))
    x = layers.Conv2D(8, 3, activation="relu")(layers.Conv2D(8, 1, activation="relu")(x))
    return classified(image, x, 1)


def audio():
    wave = keras.Input((64, 1))
    x = wave
    for filters, rate in ((8, 1), (8, 2), (12, 4)):
        x = layers.Conv1D(filters, 3, padding="causal", dilation_rate=rate, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv1D(12, 3, padding="same", activation="relu")(layers.MaxPooling1D(4)(x))
    return keras.Model(wave, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def video():
    clip = keras.Input((4, 8, 8, 3))
    x = layers.Conv3D(6, 3, padding="same", activation="relu")(clip)
    x = x + layers.Conv3D(6, (3, 1, 1), padding="same")(layers.Conv3D(8, (1, 3, 3), padding="same")(x))
    return keras.Model(clip, layers.Dense(3)(layers.GlobalAveragePooling3D()(layers.MaxPooling3D(2)(x))))


def recurrent_behind_convolutions():
    series = keras.Input((16, 6))
    x = layers.Conv1D(8, 3, activation="relu")(layers.Conv1D(8, 3, activation="relu")(series))
    return keras.Model(series, layers.Dense(4)(layers.Bidirectional(layers.GRU(5))(x)))


def tokens(image, size, width):
    x = layers.Conv2D(width, size, size)(image)
    return layers.Reshape((-1, width))(x)


def mixer():
    image = keras.Input((8, 8, 3))
    x = tokens(image, 2, 12)
    for _ in range(2):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        x = x + layers.Permute((2, 1))(layers.Dense(16)(layers.Dense(8, activation="gelu")(y)))
        x = x + layers.Dense(12)(layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))))


def convnext():
    image = keras.Input((8, 8, 3))
    x = layers.LayerNormalization()(layers.Conv2D(12, 2, 2)(image))
    for _ in range(2):
        y = layers.LayerNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
        x = x + layers.Dense(12)(layers.Dense(24, activation="gelu")(y))
    return classified(image, x)


def vision_transformer(attention=None):
    image = keras.Input((8, 8, 3))
    x = tokens(image, 2, 12)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + (attention or layers.MultiHeadAttention(3, 4))(y, y)
        attention = None
        x = x + layers.Dense(12)(layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))))


def grouped_query_attention():
    return vision_transformer(layers.GroupQueryAttention(head_dim=4, num_query_heads=4, num_key_value_heads=2))


def window_attention():
    """Attention within each quarter of an image."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 1)(image)
    y = ops.transpose(ops.reshape(layers.LayerNormalization()(x), (-1, 2, 4, 2, 4, 12)), (0, 1, 3, 2, 4, 5))
    y = ops.reshape(y, (-1, 16, 12))
    y = ops.reshape(layers.MultiHeadAttention(2, 6)(y, y), (-1, 2, 2, 4, 4, 12))
    x = x + ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 8, 8, 12))
    x = x + layers.Dense(12)(layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x)))
    return classified(image, x)


class Probe(layers.Layer):
    """A query of its own for each image."""

    def build(self, shape):
        self.probe = self.add_weight(shape=(1, 1, shape[-1]), name="probe", initializer="normal")

    def call(self, x):
        return ops.repeat(self.probe, ops.shape(x)[0], axis=0)


def pooled_by_attention():
    image = keras.Input((8, 8, 3))
    x = tokens(image, 2, 12)
    x = x + layers.Dense(12)(layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x)))
    x = layers.MultiHeadAttention(3, 4)(Probe(name="probe")(x), x)
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))


def text_transformer():
    words = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 12)(words)
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 6)(x, x))
    x = layers.LayerNormalization()(y + layers.Dense(12)(layers.Dense(24, activation="relu")(y)))
    return keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def squeeze_and_excite():
    image = keras.Input((8, 8, 3))
    x = convolved(image, 12)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Dense(12, activation="sigmoid")(layers.Dense(4, activation="relu")(y))
    return classified(image, convolved(x * y, 12))


def inverted_residual():
    image = keras.Input((8, 8, 3))
    x = convolved(image, 8, activation="relu6")
    for _ in range(2):
        y = convolved(x, 24, 1, activation="relu6")
        y = layers.ReLU(6)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)))
        x = layers.Add()([x, convolved(y, 8, 1, activation=None)])
    return classified(image, convolved(x, 16, 1))


def grouped():
    image = keras.Input((8, 8, 3))
    x = convolved(image, 12)
    return classified(image, x + convolved(convolved(convolved(x, 12, 1), 12, groups=3), 12, 1, activation=None))


def shuffled():
    """Channels of two groups change places, as in ShuffleNet."""
    image = keras.Input((8, 8, 3))
    x = convolved(image, 12)
    y = convolved(x, 12, 1, groups=2)
    y = ops.reshape(ops.transpose(ops.reshape(y, (-1, 8, 8, 2, 6)), (0, 1, 2, 4, 3)), (-1, 8, 8, 12))
    return classified(image, convolved(x + convolved(y, 12, 1, groups=2), 12))


def ghost():
    image = keras.Input((8, 8, 3))
    x = convolved(image, 8)
    for filters in (6, 8):
        y = convolved(x, filters, 1)
        x = layers.Concatenate()([y, layers.DepthwiseConv2D(3, padding="same", activation="relu")(y)])
    return classified(image, x)


def aspp():
    image = keras.Input((12, 12, 3))
    x = convolved(convolved(image, 8), 12)
    branches = [convolved(x, 6, 1), *(convolved(x, 6, dilation_rate=rate) for rate in (2, 4))]
    pooled = convolved(layers.GlobalAveragePooling2D(keepdims=True)(x), 6, 1)
    branches.append(layers.UpSampling2D(12, interpolation="bilinear")(pooled))
    return keras.Model(image, layers.Conv2D(3, 1)(convolved(layers.Concatenate()(branches), 8, 1)))


def feature_pyramid():
    image = keras.Input((16, 16, 3))
    levels = [convolved(image, 8, strides=2)]
    for filters in (12, 16):
        levels.append(convolved(levels[-1], filters, strides=2))
    x, found = None, []
    for i, level in reversed(list(enumerate(levels))):
        lateral = layers.Conv2D(8, 1, name=f"lateral_{i}")(level)
        x = lateral if x is None else lateral + layers.UpSampling2D()(x)
        found.append(layers.Conv2D(8, 3, padding="same", name=f"smooth_{i}")(x))
    head = layers.Conv2D(5, 3, padding="same", name="head")
    return keras.Model(image, [head(level) for level in found])


def dense_block():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(image)
    for _ in range(3):
        y = layers.Conv2D(6, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(x)))
        x = layers.Concatenate()([x, y])
    return classified(image, layers.ReLU()(layers.BatchNormalization()(x)))


def highway():
    """A gate of its own decides what is carried."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    gate = layers.Conv2D(8, 3, padding="same", activation="sigmoid")(x)
    return classified(image, convolved(gate * layers.Conv2D(8, 3, padding="same")(x) + (1.0 - gate) * x, 8))


def inception():
    image = keras.Input((8, 8, 3))
    x = convolved(image, 8)
    pooled = convolved(layers.AveragePooling2D(3, 1, "same")(x), 4, 1)
    wide = convolved(convolved(convolved(x, 6, 1), 6, (1, 3)), 6, (3, 1))
    return classified(image, convolved(layers.Concatenate()([pooled, wide, convolved(x, 4, 1)]), 8))


def normalized_by_group():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same")(image)
    for _ in range(2):
        x = layers.PReLU(shared_axes=(1, 2))(layers.GroupNormalization(3)(layers.Conv2D(12, 3, padding="same")(x)))
    return classified(image, x)


MODELS = {
    function.__name__: function
    for function in (
        unet,
        autoencoder,
        super_resolution,
        pixel_shuffle,
        two_outputs,
        two_inputs,
        time_distributed,
        spectral,
        audio,
        video,
        recurrent_behind_convolutions,
        mixer,
        convnext,
        vision_transformer,
        grouped_query_attention,
        window_attention,
        pooled_by_attention,
        text_transformer,
        squeeze_and_excite,
        inverted_residual,
        grouped,
        shuffled,
        ghost,
        aspp,
        feature_pyramid,
        dense_block,
        highway,
        inception,
        normalized_by_group,
    )
}
