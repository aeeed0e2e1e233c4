"""Data and models of tasks other than classification, as small as they can be, for `data.source` and `supernet.source`.

Patterns are a bright square on noise: what is asked for follows from where it is.
"""

import numpy as np

SIZES = {"train": 60, "validation": 30, "test": 40}


def squares(count, seed):
    """Images (N, 8, 8, 1) uint8, and row, column and width of each one's bright square."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, 8, 8, 1), np.uint8)
    places = np.stack([*rng.integers(0, 5, (2, count)), rng.integers(2, 5, count)], 1)
    for image, (row, column, width) in zip(images, places, strict=True):
        image[row : row + width, column : column + width] = 220
    return images, places


def splits(target, weighted=False):
    made = {}
    for seed, (split, count) in enumerate(SIZES.items()):
        images, places = squares(count, seed)
        made[split] = (images, target(images, places))
        if weighted:
            made[split] += (np.where(places[:, 2] > 2, 2.0, 0.5).astype(np.float32),)
    return made


def numbers():
    return splits(lambda images, places: places[:, ::2].astype(np.float32), weighted=True), ["row", "width"]


def labels():
    return splits(lambda images, places: (places > 2).astype(np.int8)), ["low", "right", "wide"]


def masks():
    return splits(lambda images, places: (images[..., 0] > 150).astype(np.uint8)), ["ground", "square"]


def one_hot():
    return splits(lambda images, places: np.eye(3, dtype=np.float32)[places[:, 2] - 2])


def rows():
    """A table: 13 measurements of 178 wines of three kinds, scaled, and the kind."""
    from sklearn.datasets import load_wine
    from sklearn.preprocessing import scale

    table, kinds = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(kinds))
    parts = dict(zip(SIZES, np.split(order, (100, 138)), strict=True))
    return {split: (scale(table)[chosen], kinds[chosen]) for split, chosen in parts.items()}, ["red", "white", "rose"]


def body(input_shape):
    import keras  # here, so that the command line answers before TensorFlow is loaded

    layers = keras.layers
    image = keras.Input(input_shape, name="image")
    x = layers.ReLU(name="one_relu")(layers.Conv2D(6, 3, padding="same", name="one")(image))
    return image, layers.ReLU(name="two_relu")(layers.Conv2D(8, 3, padding="same", name="two")(x))


def vector(input_shape, num_classes=0, num_outputs=2):
    import keras

    image, x = body(input_shape)
    x = keras.layers.Flatten(name="flat")(keras.layers.MaxPooling2D(4, name="pool")(x))
    return keras.Model(image, keras.layers.Dense(num_classes or num_outputs, name="head")(x))


def perceptron(input_shape, num_classes):
    import keras

    inputs = keras.Input(input_shape, name="inputs")
    x = keras.layers.Dense(24, "relu", name="one")(inputs)
    x = keras.layers.Dense(16, "relu", name="two")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="head")(x))


def per_pixel(input_shape, num_classes):
    import keras

    image, x = body(input_shape)
    return keras.Model(image, keras.layers.Conv2D(num_classes, 1, name="head")(x))


def huber(targets, outputs):
    import keras

    return keras.losses.huber(targets, outputs, delta=0.5)


def worst(targets, outputs):
    """The larger of the two errors of each example."""
    from keras import ops

    return ops.max(ops.abs(ops.cast(targets, "float32") - outputs), -1)


def __getattr__(name):
    """`R2`, a class of Keras metrics; made when it is asked for, like all that needs Keras."""
    if name != "R2":
        raise AttributeError(name)
    import keras

    return keras.metrics.R2Score


def named():
    """An image and two numbers, of which the class needs both: where the square is, or how large the first number."""
    made = {}
    for seed, (split, (images, places)) in enumerate(splits(lambda images, places: places).items()):
        extra = np.random.default_rng(100 + seed).normal(size=(len(images), 2)).astype(np.float32)
        made[split] = ({"image": images, "extra": extra}, (places[:, 0] > 2) + (extra[:, 0] > 0).astype(np.int64))
    return made, ["none", "one", "both"]


def image_and_numbers(input_shape, num_classes):
    """Takes a list of inputs, whose names are those of the data."""
    import keras

    image, x = body(input_shape["image"])
    extra = keras.Input(input_shape["extra"], name="extra")
    x = keras.layers.Flatten(name="flat")(keras.layers.MaxPooling2D(4, name="pool")(x))
    x = keras.layers.Concatenate(name="both")([x, keras.layers.Dense(4, "relu", name="wide")(extra)])
    return keras.Model([image, extra], keras.layers.Dense(num_classes, name="head")(x))


def two_targets():
    """Of an image the row and column of its square, and whether it is wide."""
    return splits(
        lambda images, places: {"place": places[:, :2].astype(np.float32), "wide": (places[:, 2] > 2).astype(np.int64)}
    )


def two_heads(input_shape):
    import keras

    image, x = body(input_shape)
    x = keras.layers.Flatten(name="flat")(keras.layers.MaxPooling2D(4, name="pool")(x))
    outputs = {"place": keras.layers.Dense(2, name="place")(x), "wide": keras.layers.Dense(1, name="wide")(x)}
    return keras.Model(image, outputs)


def of_both(targets, outputs):
    """The squared distance of the place, and the cross-entropy of the width."""
    import keras
    from keras import ops

    distance = ops.sum(ops.square(targets["place"] - outputs["place"]), -1)
    wide = ops.cast(targets["wide"], "float32")[:, None]
    return distance + keras.losses.binary_crossentropy(wide, outputs["wide"], from_logits=True)


def misses(targets, outputs):
    """How far the place is missed, and 10 for a wrong width."""
    from keras import ops

    wrong = (outputs["wide"][:, 0] > 0) != (ops.cast(targets["wide"], "float32") > 0.5)
    distance = ops.sqrt(ops.sum(ops.square(targets["place"] - outputs["place"]), -1))
    return distance + 10 * ops.cast(wrong, "float32")


def mean_of_both(targets, outputs):
    from keras import ops

    return ops.mean(of_both(targets, outputs))
