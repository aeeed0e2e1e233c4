"""Distances of three networks from the full ones right after the cut, without any training.

    .venv/bin/python -m benchmarks.refit [--share=0.5] [--examples=500] [--size=64]

Networks of keras.applications have random weights, with statistics that fit the images, which are noise on several
scales. Each is cut to a share of its parameters and multiply-adds, by the norms of the units within each group. The
distance of the outputs is the root of the mean squared difference on held-out images, over the standard deviation of
the full network's outputs: 1 is as far as a constant. Memory is what the process has at most while refitting, above
what it had before.
"""

import pathlib
import time

import keras
import numpy as np
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas.cutting.refit import refit
from tfnas.graph.statistics import recompute_statistics

_MODELS = flags.DEFINE_list("models", ["MobileNetV2", "ResNet50", "DenseNet121"], "Of keras.applications.")
_RECORD = records.flag()
_SHARE = flags.DEFINE_float("share", 0.5, "Bound on the parameters and on the multiply-adds.")
_EXAMPLES = flags.DEFINE_integer("examples", 500, "Images to refit on.")
_SIZE = flags.DEFINE_integer("size", 64, "Height and width of the images.")
_HELD_OUT = 250


def images(count, rng):
    """Noise on scales of 1, 4, 16 and 64 pixels, float32, shape (count, size, size, 3)."""
    size = _SIZE.value
    found = np.zeros((count, size, size, 3), "float32")
    for scale in (1, 4, 16, 64):
        noise = rng.normal(size=(count, -(-size // scale), -(-size // scale), 3))
        found += noise.repeat(scale, 1).repeat(scale, 2)[:, :size, :size]
    return found / 2


def distance(network, expected, held_out):
    """Root mean squared difference of the outputs over the standard deviation of those expected."""
    outputs = network.predict(held_out, verbose=0)
    return float(np.sqrt(np.square(outputs - expected).mean() / expected.var(0).mean()))


def megabytes(field):
    """Memory of the process, by a line of /proc/self/status."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main(_):
    """Prints one table."""
    record = records.Record(_RECORD.value)
    columns = ["network", "parameters, multiply-adds", "as cut", "statistics", "refitted", "seconds", "memory, MB"]
    record.heading(*columns)
    for name in _MODELS.value:
        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(1)
        given, held_out = images(_EXAMPLES.value, rng), images(_HELD_OUT, rng)
        shape = (_SIZE.value, _SIZE.value, 3)
        build = getattr(keras.applications, name)
        model = build(input_shape=shape, weights=None, classes=100, classifier_activation=None)
        recompute_statistics(model, images(250, rng))
        bounds = {"parameters": _SHARE.value, "multiply_adds": _SHARE.value}
        supernet = tfnas.gate(model, **bounds, steps=1000, num_examples=1e4)
        architecture = supernet.posterior("norm").mode()
        price, full = tfnas.cost(supernet.graph, architecture), tfnas.cost(supernet.graph)
        expected = model.predict(held_out, verbose=0)
        bare, recalibrated = (tfnas.subnet(supernet, architecture) for _ in range(2))
        recompute_statistics(recalibrated, given[:250])
        distances = [distance(network, expected, held_out) for network in (bare, recalibrated)]
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = megabytes("VmRSS"), time.perf_counter()
        refitted = refit(supernet.graph, architecture, bare, given)
        seconds, memory = time.perf_counter() - start, megabytes("VmHWM") - before
        distances.append(distance(refitted, expected, held_out))
        shares = price.parameters / full.parameters, price.multiply_adds / full.multiply_adds
        cells = [name, ", ".join(f"{share:.2f}" for share in shares), *(f"{d:.3f}" for d in distances)]
        record.row(*cells, f"{seconds:.0f}", f"{memory:.0f}")
    record.keep()


if __name__ == "__main__":
    app.run(main)
