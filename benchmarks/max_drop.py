"""Whether `tfnas.shrink(max_drop=0.01)` keeps its word: a small network on scikit-learn's digits, several seeds.

    .venv/bin/python -m benchmarks.max_drop [--seeds=5] [--max_drop=0.01]

For each seed, a network of 23,000 parameters is trained on 1,000 digits, and shrunk with 397 validation and 400 test
digits. Printed are the full network's and the smaller one's accuracies, the drops with their upper bounds, the sizes
tried, and the time; the exit status is 1 if a drop on the validation digits is above `max_drop`.
"""

import sys
import time

import keras
import numpy as np
import sklearn.datasets
from absl import app, flags

import tfnas
from benchmarks import records

_SEEDS = flags.DEFINE_integer("seeds", 5, "How many.")
_MAX_DROP = flags.DEFINE_float("max_drop", 0.01, "Of the accuracy on validation digits.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Of retraining, for each size.")
_TRAIN, _VALIDATION = 1_000, 397


def _digits(seed):
    """Train, validation and test digits, in another order for each seed."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images.reshape(-1, 8, 8, 1).astype("float32")[order] / 16, labels[order]
    ends = [_TRAIN, _TRAIN + _VALIDATION]
    return list(zip(np.split(images, ends), np.split(labels, ends), strict=True))


def _network(seed):
    keras.utils.set_random_seed(seed)
    x = image = keras.Input((8, 8, 1))
    for i, filters in enumerate((24, 32, 48)):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
        if i < 2:
            x = keras.layers.MaxPooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)), name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.002), loss, metrics=["accuracy"])
    return model


def main(argv):
    """Prints the table."""
    print(f"{records.machine()}; commit {records.commit()}")
    print("| seed | accuracy, validation | test | parameters | share | drop, validation | drop, test | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    above = 0
    for seed in range(_SEEDS.value):
        train, validation, test = _digits(seed)
        model = _network(seed)
        model.fit(*train, batch_size=50, epochs=30, verbose=0)
        start = time.monotonic()
        found = tfnas.shrink(
            model, train, validation, max_drop=_MAX_DROP.value, epochs=_EPOCHS.value, test=test, trained=True, seed=seed
        )
        seconds = time.monotonic() - start
        above += found.validation_drop.measured > _MAX_DROP.value + 1e-6
        before, after = found.before, found.after
        drops = " | ".join(f"{d.measured:+.4f} (< {d.upper:.4f})" for d in (found.validation_drop, found.test_drop))
        print(
            f"| {seed} | {before.metrics['accuracy']:.4f} -> {after.metrics['accuracy']:.4f} | "
            f"{before.test['accuracy']:.4f} -> {after.test['accuracy']:.4f} | "
            f"{before.parameters:,} -> {after.parameters:,} | {after.parameters / before.parameters:.1%} | {drops} | "
            f"{seconds:.0f} |",
            flush=True,
        )
        print("tried: " + ", ".join(f"{one.share:.1%} {one.drop:+.4f}" for one in found.tries), file=sys.stderr)
    sys.exit(bool(above))


if __name__ == "__main__":
    app.run(main)
