"""Step time of the gated over the plain network, same shapes, one run.

    .venv/bin/python benchmarks/gate_overhead.py

SupNet-M at width 32 with one block a stage, batches of 100 images of 32 x 32 x 3, SGD with Nesterov momentum. All
variants are stepped in turn, round by round, so that a drift of the machine's speed falls on all alike; the figures
are medians over rounds, ratios are taken round by round. Variants show where the time goes.
"""

import json
import platform
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfnas
from tfnas.gating.gates import Gated
from tfnas.supernets import multi_branch_resnet

_ROUNDS = flags.DEFINE_integer("rounds", 25, "How often each variant is stepped.")
_WIDTH = flags.DEFINE_integer("width", 32, "Channels of the first stage.")
_BATCH = flags.DEFINE_integer("batch", 100, "Images a step.")


class _WithoutNoise(Gated):
    """Multiplies by a constant instead of drawing: what is left is the multiplication and its gradient."""

    def relaxed_gates(self, batch_size):
        return tf.repeat(tf.sigmoid(-self.channel_logits())[None], batch_size, axis=0)


def _gated(without_noise=False, without_regularizer=False):
    supernet = tfnas.gate(_plain(), ell2=50, num_examples=5e5)
    if without_noise:
        for layer in supernet.gated_layers.values():
            layer.relaxed_gates = _WithoutNoise.relaxed_gates.__get__(layer)
    if without_regularizer:
        supernet.regularizer = lambda: tf.constant(0.0)
    return supernet


def _plain():
    return multi_branch_resnet(_WIDTH.value, num_blocks=1)


def _step(model, images, labels):
    """A compiled training step on these images."""
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.train_on_batch(images, labels)
    step = tf.function(model.train_step)
    return lambda: step((images, labels))["loss"].numpy()


def main(_):
    """Prints the table and, as the last line, JSON."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(_BATCH.value, 32, 32, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 10, _BATCH.value))
    variants = {
        "plain": _plain(),
        "gated": _gated(),
        "gated, no noise drawn": _gated(without_noise=True),
        "gated, no regularizer": _gated(without_regularizer=True),
        "gated, neither": _gated(without_noise=True, without_regularizer=True),
    }
    steps = {name: _step(model, images, labels) for name, model in variants.items()}
    for step in steps.values():
        for _ in range(3):
            step()
    seconds = {name: [] for name in steps}
    for _ in range(_ROUNDS.value):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)

    rows = []
    print(f"| variant | step, ms (median of {_ROUNDS.value}) | over plain (median; quartiles) |\n| --- | --- | --- |")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({"variant": name, "ms": 1e3 * statistics.median(values), "ratio": middle})
        print(f"| {name} | {rows[-1]['ms']:.0f} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    print(json.dumps({"width": _WIDTH.value, "batch": _BATCH.value, "machine": platform.machine(), "rows": rows}))


if __name__ == "__main__":
    app.run(main)
