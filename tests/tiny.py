"""A run for tests of how stages run, not of what they find: two branches, so that each graph is traced in a second.

With bounds; conftest.PUBLISHED makes a published search of it.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def build(input_shape, num_classes, times=1):
    import keras  # here, so that the command line answers before TensorFlow is loaded

    layers = keras.layers

    def conv(x, filters, size, name):
        x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    image = keras.Input(input_shape, name="image")
    x = layers.MaxPooling2D(2, name="pool")(layers.ReLU(name="stem_relu")(conv(image, int(8 * times), 3, "stem")))
    x = layers.Add(name="add")([conv(x, int(8 * times), size, name) for size, name in ((3, "path1"), (5, "path2"))])
    x = conv(layers.ReLU(name="add_relu")(x), int(12 * times), 3, "last")
    x = layers.GlobalAveragePooling2D(name="mean")(layers.ReLU(name="last_relu")(x))
    return keras.Model(image, layers.Dense(num_classes, name="classifier")(x))


def wide(input_shape, num_classes):
    """With units enough to fill a bound, and to learn."""
    return build(input_shape, num_classes, times=3)


def get_config():
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:400]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(source="tiny:build"),
            search=Search(epochs=6, importance="gates", warmup_epochs=0, batch_size=50, learning_rate=0.1),
            sample=Sample(num_candidates=40, num_random=10),
            retrain=Retrain(epochs=2, batch_size=50, learning_rate=0.1, weight_decay=5e-4),
        )
    )


EPOCHS, STEPS = 4, 3


def batches(first_step, share):
    """Noise with labels, for EPOCHS of STEPS batches of four."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.normal(size=(EPOCHS * STEPS * 4, 8, 8, 1)).astype("float32")
    labels = rng.integers(0, 3, len(images))
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4).skip(first_step)
