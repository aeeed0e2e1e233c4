"""Latency, file size and multiply-adds of subnets over their supernet, by keep rate, one run.

    .venv/bin/python -m benchmarks.subnet_latency [--models=M,D-121,MobileNetV2] [--batch=16] [--rounds=15]

Every gated channel is kept with the rate's probability, independently. Each subnet is stepped in turn with the full
network, pair by pair, so that a drift of the machine's speed falls on both alike; their ratio's median is shown. (Not
all networks in one round: their convolutions together overflow the cache of compiled kernels.) The last column is the
latency's ratio over the multiply-adds' ratio: 1 means that a multiply-add saved is time saved.
"""

import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas import supernets
from tfnas.graph.channels import Graph
from tfnas.search_space.architecture import Architecture

_MODELS = flags.DEFINE_list("models", ["M", "D-121", "MobileNetV2"], "Which supernets.")
_RECORD = records.flag()
_BATCH = flags.DEFINE_integer("batch", 16, "Images a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each network is stepped.")
_RATES = flags.DEFINE_list("rates", ["0.25", "0.5", "0.75"], "Keep rates.")

_BUILD = {
    "M": lambda: supernets.multi_branch_resnet(32, input_shape=(32, 32, 3)),
    "D-121": lambda: supernets.densenet121(num_classes=10, input_shape=(64, 64, 3)),
    "MobileNetV2": lambda: keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None, classes=10),
}


def _candidate(supernet, rate, rng):
    while True:
        keep = {name: rng.random(gate.mask.shape[0]) < rate for name, gate in supernet.gated_layers.items()}
        if supernet.graph.flow(keep).reaches_outputs():
            return Architecture(keep)


def _size(model):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.keras"
        model.save(file)
        return file.stat().st_size


def _measure(name, rng, record):
    model = _BUILD[name]()
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    image = tf.constant(rng.normal(size=(_BATCH.value, *model.input_shape[1:])), tf.float32)
    full, full_size, full_call = tfnas.cost(supernet.graph), _size(model), _compiled(model, image)
    for rate in _RATES.value:
        network = tfnas.subnet(supernet, _candidate(supernet, float(rate), rng))
        seconds = _in_turn(full_call, _compiled(network, image))
        price = tfnas.cost(Graph(network))
        ratio = statistics.median(b / a for a, b in seconds)
        multiply_adds = price.multiply_adds / full.multiply_adds
        before, after = (1e3 * statistics.median(values) for values in zip(*seconds, strict=True))
        cells = [name, rate, f"{before:.1f}", f"{after:.1f}"]
        ratios = (price.parameters / full.parameters, _size(network) / full_size, multiply_adds, ratio)
        cells += [f"{value:.2f}" for value in (*ratios, ratio / multiply_adds)]
        record.row(*cells)


def _compiled(network, image):
    call = tf.function(lambda x: network(x, training=False), reduce_retracing=True)
    return lambda: call(image).numpy()


def _in_turn(one, other):
    """Seconds of both, pair by pair."""
    pairs = []
    for i in range(_ROUNDS.value + 3):
        marks = [time.perf_counter()]
        for call in (one, other):
            call()
            marks.append(time.perf_counter())
        if i >= 3:
            pairs.append((marks[1] - marks[0], marks[2] - marks[1]))
    return pairs


def main(_):
    """Prints one table."""
    rng = np.random.default_rng(0)
    record = records.Record(_RECORD.value)
    columns = ["network", "keep", "full, ms", "subnet, ms", "parameters", "file", "mult-adds", "latency"]
    record.heading(*columns, "over mult-adds")
    for name in _MODELS.value:
        _measure(name, rng, record)
    record.keep()


if __name__ == "__main__":
    app.run(main)
