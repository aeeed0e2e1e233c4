"""Step time of gated networks over the plain one, same shapes, one run.

    .venv/bin/python -m benchmarks.gate_overhead [--models=M,D-121] [--rounds=25] [--batch=128]

SupNet-M at width 32 with one block a stage (32 x 32) and DenseNet-121 (32 x 32), SGD with Nesterov momentum. Gates are
those of channel units, with one draw of noise for the batch and with one for each example, and the published ones at
every reader. Gated and plain network are stepped in turn, pair by pair, so that a drift of the machine's speed falls on
both alike; the ratio's quartiles are over the pairs.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas import supernets

_MODELS = flags.DEFINE_list("models", ["M", "D-121"], "Which networks.")
_RECORD = records.flag()
_ROUNDS = flags.DEFINE_integer("rounds", 25, "How many pairs of steps.")
_BATCH = flags.DEFINE_integer("batch", 128, "Images a step.")

_BUILD = {
    "M": lambda: supernets.multi_branch_resnet(32, num_blocks=1),
    "D-121": lambda: supernets.densenet121(num_classes=10, input_shape=(32, 32, 3)),
}
_BOUNDS = {"parameters": 0.5, "multiply_adds": 0.5, "steps": 1000, "num_examples": 5e5}
_GATES = {
    "units, noise of the batch": {"noise": "batch", **_BOUNDS},
    "units, noise of each example": {"noise": "example", **_BOUNDS},
    "published, at every reader": {"ell2": 50, "num_examples": 5e5},
}


def _step(model, images, labels):
    """A compiled training step on these images."""
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    step = tf.function(model.train_step)
    call = lambda: step((images, labels))["loss"].numpy()  # noqa: E731
    for _ in range(3):
        call()
    return call


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(_):
    """Prints one table."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(_BATCH.value, 32, 32, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 10, _BATCH.value))
    record = records.Record(_RECORD.value)
    record.heading("network", "gates", "plain, ms", "gated, ms", "gated over plain (median; quartiles)")
    for name in _MODELS.value:
        plain = _step(_BUILD[name](), images, labels)
        for gates, options in _GATES.items():
            gated = _step(tfnas.gate(_BUILD[name](), **options), images, labels)
            # First one, then the other goes first.
            pairs = []
            for i in range(_ROUNDS.value):
                if i % 2:
                    after, before = _seconds(gated), _seconds(plain)
                else:
                    before, after = _seconds(plain), _seconds(gated)
                pairs.append((before, after))
            low, middle, high = statistics.quantiles([after / before for before, after in pairs], n=4)
            before, after = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            record.row(name, gates, f"{before:.0f}", f"{after:.0f}", f"{middle:.3f} ({low:.3f} to {high:.3f})")
    record.keep()


if __name__ == "__main__":
    app.run(main)
