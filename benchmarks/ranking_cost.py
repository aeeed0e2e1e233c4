"""Cost of ranking relative to training: seconds of 1,500 raced candidates over those of a search of 24 epochs.

    .venv/bin/python -m benchmarks.ranking_cost --data_dir=DIR [--epochs=24] [--candidates=1500]
    .venv/bin/python -m benchmarks.ranking_cost --data_dir=DIR --parameters=.28 --multiply_adds=.37

DIR holds cifar10 as tensorflow-datasets prepares it. A supernet, SupNet-M at width 8, is searched on 10,000 images of
16 x 16; with --ell2 the published way, with bounds on channel units. Its candidates are then raced by `tfnas.rank` on
2,000 other images, each with batch normalization recalibrated on 250 training images; tracing is included. Of fewer
epochs or candidates, both sides are extrapolated in proportion, apart from seconds of tracing.
"""

import os
import time

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas.supernets import multi_branch_resnet

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where cifar10 lies.", required=True)
_RECORD = records.flag()
_EPOCHS = flags.DEFINE_integer("epochs", 24, "Epochs that are trained; the schedule is of as many.")
_CANDIDATES = flags.DEFINE_integer("candidates", 1500, "Candidates that are ranked.")
_ELL2 = flags.DEFINE_float("ell2", 250.0, "Of the published search, without bounds.")
_PARAMETERS = flags.DEFINE_float("parameters", None, "Bound on the parameters, as a share.")
_MULTIPLY_ADDS = flags.DEFINE_float("multiply_adds", None, "Bound on the multiply-adds, as a share.")
_ALL_EPOCHS, _ALL_CANDIDATES = 24, 1500  # what the ratio is of
_BATCH, _RECALIBRATE = 128, 250
_NUM_TRAIN, _NUM_VALIDATION = 10_000, 2000


def _images(split):
    """Standardized images of 16 x 16, float32, and labels."""
    images, labels = tfds.as_numpy(
        tfds.load("cifar10", data_dir=_DATA_DIR.value, split=split, batch_size=-1, as_supervised=True, download=False)
    )
    small = images.astype(np.float32).reshape(len(images), 16, 2, 16, 2, 3).mean((2, 4))
    return (small - 120) / 60, labels


def _searched(images, labels):
    """The supernet, and seconds of its training but for its first epoch's tracing."""
    keras.utils.set_random_seed(0)
    model = multi_branch_resnet(8, 4, 10, (16, 16, 3), stem_width=16)
    steps = _EPOCHS.value * (len(images) // _BATCH)
    bounds = {"parameters": _PARAMETERS.value, "multiply_adds": _MULTIPLY_ADDS.value}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    schedule = keras.optimizers.schedules.CosineDecay(0.1, steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4 if bounds else None)
    if bounds:
        supernet = tfnas.gate(model, num_examples=len(images), steps=steps, **bounds)
    else:
        supernet = tfnas.gate(model, ell2=_ELL2.value, num_examples=len(images))
        optimizer = tfnas.GatedOptimizer(optimizer, gate_learning_rate=5.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(optimizer, loss=loss, metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0)
    batches = batches.batch(_BATCH, drop_remainder=True)
    start = time.perf_counter()
    supernet.fit(batches.take(2), verbose=0)
    tracing = time.perf_counter() - start
    start = time.perf_counter()
    supernet.fit(batches, epochs=_EPOCHS.value, verbose=2)
    return supernet, tracing, time.perf_counter() - start


def main(_):
    """Prints seconds and ratio and, as the last line, JSON."""
    images, labels = _images(f"train[:{_NUM_TRAIN}]")
    held_out = _images(f"train[{50_000 - _NUM_VALIDATION}:]")
    supernet, tracing, training = _searched(images, labels)
    candidates = supernet.posterior().sample(_CANDIDATES.value, seed=0)
    calibration = images[:_RECALIBRATE]

    def ranked(some):
        start = time.perf_counter()
        statistics = tfnas.Recalibration(supernet, calibration)
        ranking = tfnas.rank(supernet, some, held_out, recalibration=statistics)
        return ranking, time.perf_counter() - start

    _, fixed = ranked(candidates[:1])
    ranking, measured = ranked(candidates)
    training_seconds = tracing + training * _ALL_EPOCHS / _EPOCHS.value
    ranking_seconds = fixed + max(measured - fixed, 0) * _ALL_CANDIDATES / len(candidates)
    share = np.mean([tfnas.cost(supernet.graph, a).multiply_adds for a in candidates[:20]])
    share /= tfnas.cost(supernet.graph).multiply_adds
    distinct = len({candidate.digest() for candidate in candidates})
    print(f"\n{ranking!r}\n{distinct} of {len(candidates)} candidates are distinct")
    print(f"{share:.0%} of the multiply-adds kept\n")
    record = records.Record(_RECORD.value)
    record.heading("", "measured, seconds", "seconds")
    epochs, number = f"{_EPOCHS.value} epochs; {_ALL_EPOCHS}", f"{len(candidates)} candidates; {_ALL_CANDIDATES}"
    record.row(f"training, {epochs}", f"{tracing + training:.1f}", f"{training_seconds:.1f}")
    record.row(f"ranking, {number}", f"{measured:.1f}", f"{ranking_seconds:.1f}")
    print(f"\nratio {ranking_seconds / training_seconds:.3f} (tracing of ranking: {fixed:.1f} s)")
    figures = {"training": training_seconds, "ranking": ranking_seconds, "tracing": fixed, "distinct": distinct}
    record.keep(**figures, load=os.getloadavg()[0])


if __name__ == "__main__":
    app.run(main)
