"""Images a second of a training step: Keras's `fit`, the project's loop, and the loop with gates, in one run.

    .venv/bin/python -m benchmarks.train_step

SupNet-M at width 32 with one block a stage (32 x 32) and DenseNet-121 (64 x 64), float32, SGD with Nesterov momentum,
with and without XLA. All variants of a network are stepped in turn, round by round, so that a drift of the machine's
speed falls on all alike; figures are medians over rounds, and ratios are taken round by round. A first part measures
how many images a second the input pipeline alone delivers, so which of the two waits for the other.
"""

import os
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas import config
from tfnas.data import pipeline
from tfnas.supernets import densenet121, multi_branch_resnet
from tfnas.tasks import network_inputs
from tfnas.training import loop

_ROUNDS = flags.DEFINE_integer("rounds", 12, "How often each variant is stepped.")
_RECORD = records.flag()
_STEPS = flags.DEFINE_integer("steps", 2, "Steps in a round.")
_NETWORKS = flags.DEFINE_list("networks", ["supnet_m", "densenet121"], "Which networks.")
_XLA = flags.DEFINE_bool("xla", True, "Also measure the steps that XLA compiles; compiling takes minutes.")
_PROFILE = flags.DEFINE_string("profile", "", "Folder for a profile of the gated loop's steps, for TensorBoard.")

# Builder, image size, batch.
_SIZES = {
    "supnet_m": (lambda: multi_branch_resnet(32, num_blocks=1), 32, 100),
    "densenet121": (lambda: densenet121(input_shape=(64, 64, 3), num_classes=10), 64, 32),
}


def _compiled(model, **options):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


class _Clock(keras.callbacks.Callback):
    """Times `fit` from the beginning of its first step to the end of its last: without its start-up."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = time.perf_counter() - self.start


def _fit(build, batches, xla):
    model = _compiled(build(), metrics=["accuracy"], jit_compile=xla)

    def steps(number):
        clock = _Clock()
        model.fit(batches, steps_per_epoch=number, epochs=1, callbacks=[clock], shuffle=False, verbose=0)
        return clock.seconds

    return steps


def _loop(build, batches, xla, gated):
    model = _compiled(tfnas.gate(build(), ell2=50, num_examples=5e5) if gated else build())
    model.optimizer.build(model.trainable_variables)
    step = loop.Step(model, jit_compile=xla)
    iterator = loop.distributed(step.strategy, lambda first, share: batches, 0)

    def steps(number):
        start = time.perf_counter()
        totals = step.totals()
        for i in range(number):
            totals = step(iterator, totals, i)
        float(totals[0])
        return time.perf_counter() - start

    return steps


def _network(name):
    build, size, batch = _SIZES[name]
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(batch, size, size, 3)), tf.float32)
    batches = tf.data.Dataset.from_tensors((images, tf.constant(rng.integers(0, 10, batch)))).repeat()
    kinds = {"fit": _fit, "loop": lambda *a: _loop(*a, gated=False), "loop, gated": lambda *a: _loop(*a, gated=True)}
    variants = {}
    for xla in (False, True) if _XLA.value else (False,):
        for kind, make in kinds.items():
            start = time.perf_counter()
            variants[kind, xla] = make(build, batches, xla)
            variants[kind, xla](2)
            print(f"{name}, {kind}{', XLA' * xla}: first steps {time.perf_counter() - start:.0f} s", flush=True)
    seconds = {key: [] for key in variants}
    for _ in range(_ROUNDS.value):
        for key, steps in variants.items():
            seconds[key].append(steps(_STEPS.value) / _STEPS.value)
    if _PROFILE.value:
        tf.profiler.experimental.start(os.path.join(_PROFILE.value, name))
        variants["loop, gated", False](3)
        tf.profiler.experimental.stop()
    return batch, seconds


def _ratio(values, base):
    """Quartiles of the ratio, round by round."""
    return statistics.quantiles([a / b for a, b in zip(values, base, strict=True)], n=4)


def _pipeline(record):
    """Images a second of the input pipeline alone, CIFAR-10's augmentation, as it is and with parts left out."""
    rng = np.random.default_rng(0)
    images = tf.data.Dataset.from_tensor_slices(
        (rng.integers(0, 256, (10_000, 32, 32, 3), np.uint8), rng.integers(0, 10, 10_000))
    )
    splits = pipeline.Splits(
        images, images, images, {"train": 10_000}, network_inputs.one((32, 32, 3)), tuple("abcdefghij")
    )
    augmented = dict(mean=(0.5,) * 3, std=(0.25,) * 3, pad_crop=4, flip=True, cutout=16)
    keras.utils.set_random_seed(1)
    record.heading("input pipeline", "images/s")
    for name, settings, keep in (
        ("cached, augmented", augmented, True),
        ("cached, standardized only", {**augmented, "pad_crop": 0, "flip": False, "cutout": 0}, True),
        ("read anew and shuffled in a window, augmented", augmented, False),
    ):
        memory = pipeline._MEMORY
        pipeline._MEMORY = memory if keep else 3_000_000
        try:
            batches = iter(pipeline.training_batches(splits, config.Data(**settings), 100, 4, 0))
        finally:
            pipeline._MEMORY = memory
        for _ in range(100):
            next(batches)
        start = time.perf_counter()
        for _ in range(200):
            next(batches)
        record.row(name, f"{200 * 100 / (time.perf_counter() - start):,.0f}")


def main(_):
    """Prints the tables and, as the last line, JSON."""
    record, results = records.Record(_RECORD.value), {}
    for name in _NETWORKS.value:
        batch, seconds = _network(name)
        record.heading(f"{name}, batch {batch}", "step, ms", "images/s", "over fit's time", "over the loop's")
        for (kind, xla), values in seconds.items():
            middle = statistics.median(values)
            over = [_ratio(values, seconds[base, xla]) for base in ("fit", "loop")]
            shown = [f"{m:.3f} ({low:.3f} to {high:.3f})" for low, m, high in over]
            label = kind + ", XLA" * xla
            record.row(label, f"{1000 * middle:.0f}", f"{batch / middle:,.0f}", *shown)
            results[f"{name}, {label}"] = {"ms": 1000 * middle, "over_fit": over[0][1], "over_loop": over[1][1]}
    _pipeline(record)
    record.keep(**results)


if __name__ == "__main__":
    app.run(main)
