"""Small networks of four tasks before and after `tfnas.shrink`: a U-Net, a regression, several labels, a transformer.

    .venv/bin/python -m benchmarks.shrink_tasks [--share=0.4] [--epochs=10] [--record=docs/results/records/tasks.json]

Each network is trained for 30 epochs, and shrunk to a share of its parameters and multiply-adds with the defaults. The
U-Net marks discs and squares on noise, 32 x 32. The regression is of scikit-learn's diabetes table, its numbers scaled
to a mean of 0 and a variance of 1. Of scikit-learn's digits, a convolutional network tells several labels (even; at
least five; with a closed loop), and a transformer on 16 patches the digit. Validation chooses; test is read at the end.
"""

import keras
import numpy as np
import sklearn.datasets
from absl import app, flags

import tfnas
from benchmarks import records

_SHARE = flags.DEFINE_float("share", 0.4, "Bound on the parameters and on the multiply-adds.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Of `shrink`.")
_RECORD = records.flag()
_LOOPS = (0, 6, 8, 9)
L = keras.layers


def _parts(inputs, targets, rng):
    """Train, validation and test examples: 60, 20 and 20 %."""
    order = rng.permutation(len(inputs))
    ends = [int(0.6 * len(order)), int(0.8 * len(order))]
    return list(zip(np.split(inputs[order], ends), np.split(targets[order], ends), strict=True))


def _digits():
    images, digits = sklearn.datasets.load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8, 1).astype("float32") / 16, digits


def _shapes(rng):
    """Images float32 (N, 32, 32, 1) and masks int32 (N, 32, 32): 0 background, 1 disc, 2 square."""
    rows, columns = np.mgrid[:32, :32]
    masks = np.zeros((500, 32, 32), "int32")
    for mask in masks:
        for kind in (1, 2):
            y, x, size = rng.uniform(5, 27), rng.uniform(5, 27), rng.uniform(3, 7)
            far = np.hypot(rows - y, columns - x) if kind == 1 else np.maximum(abs(rows - y), abs(columns - x))
            mask[far < size] = kind
    images = (masks > 0)[..., None] + rng.normal(scale=0.5, size=(500, 32, 32, 1))
    return images.astype("float32"), masks


def _convolved(x, width):
    for _ in range(2):
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, padding="same", use_bias=False)(x)))
    return x


def u_net(rng):
    """A U-Net of three levels, and its examples."""
    x = image = keras.Input((32, 32, 1))
    levels = []
    for width in (8, 16):
        levels.append(_convolved(x, width))
        x = L.MaxPooling2D()(levels[-1])
    x = _convolved(x, 32)
    for level in reversed(levels):
        x = _convolved(L.Concatenate()([level, L.UpSampling2D()(x)]), level.shape[-1])
    model = keras.Model(image, L.Conv2D(3, 1, activation="softmax")(x))
    iou = keras.metrics.MeanIoU(3, sparse_y_pred=False, name="mean_iou")
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=[iou])
    return model, _parts(*_shapes(rng), rng)


def regression(rng):
    """Dense layers for a table, and its rows."""
    table, targets = sklearn.datasets.load_diabetes(return_X_y=True)
    table, targets = ((x - x.mean(0)) / x.std(0) for x in (table, targets[:, None]))
    row = keras.Input((10,))
    x = L.Dense(64, activation="relu")(L.Dense(64, activation="relu")(row))
    model = keras.Model(row, L.Dense(1)(x))
    model.compile(keras.optimizers.Adam(0.001), "mse", metrics=["mae"])
    return model, _parts(table.astype("float32"), targets.astype("float32"), rng)


def several_labels(rng):
    """A convolutional network for three labels, and digits."""
    images, digits = _digits()
    labels = np.stack([digits % 2 == 0, digits >= 5, np.isin(digits, _LOOPS)], 1).astype("float32")
    image = keras.Input((8, 8, 1))
    x = _convolved(L.MaxPooling2D()(_convolved(image, 16)), 32)
    model = keras.Model(image, L.Dense(3, activation="sigmoid")(L.GlobalAveragePooling2D()(x)))
    auc = keras.metrics.AUC(name="auc", multi_label=True)
    model.compile(keras.optimizers.Adam(0.002), "binary_crossentropy", metrics=[auc])
    return model, _parts(images, labels, rng)


def transformer(rng):
    """A transformer of two blocks on patches of 2 x 2, and digits."""
    image = keras.Input((8, 8, 1))
    x = L.Reshape((16, 32))(L.Conv2D(32, 2, 2)(image))
    for _ in range(2):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(4, 8)(y, y)])
        y = L.Dense(64, activation="gelu")(L.LayerNormalization()(x))
        x = L.Add()([x, L.Dense(32)(y)])
    x = L.Flatten()(L.LayerNormalization()(x))
    model = keras.Model(image, L.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, metrics=["accuracy"])
    return model, _parts(*_digits(), rng)


def main(_):
    """Prints the table."""
    record = records.Record(_RECORD.value)
    columns = ("network", "metric", "validation", "test", "parameters", "multiply-adds")
    record.heading(*columns, "right after the cut, validation")
    for build in (u_net, regression, several_labels, transformer):
        keras.utils.set_random_seed(0)
        model, (train, validation, test) = build(np.random.default_rng(0))
        model.fit(*train, epochs=30, batch_size=50, verbose=0)
        bounds = dict.fromkeys(("parameters", "multiply_adds"), _SHARE.value)
        found = tfnas.shrink(model, train, validation, epochs=_EPOCHS.value, test=test, trained=True, **bounds)
        before, after = found.before, found.after
        metric = next(name for name in after.metrics if name != "loss")
        pairs = ((before.metrics, after.metrics), (before.test, after.test))
        cells = [f"{full[metric]:.3f} -> {small[metric]:.3f}" for full, small in pairs]
        sizes = ((before.parameters, after.parameters), (before.multiply_adds, after.multiply_adds))
        cells += [f"{full:,} -> {small:,}" for full, small in sizes]
        record.row(build.__name__.replace("_", " "), metric, *cells, f"{found.after_cut[metric]:.3f}")
    record.keep()


if __name__ == "__main__":
    app.run(main)
