"""Latency, file size and multiply-adds of subnets over their super-network, by keep rate and layout, one run.

    .venv/bin/python benchmarks/subnet_latency.py [--models=M,D-121,MobileNetV2] [--batch=16] [--rounds=15]

Every gated channel is kept with the rate's probability, independently. For each model all subnets and the full
network are stepped in turn, round by round, so that a drift of the machine's speed falls on all alike; ratios are taken
round by round and their median is shown. The last column is the latency's ratio over the multiply-adds' ratio: 1 means
that a multiply-add saved is time saved.
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
from tfnas import supernets
from tfnas.architecture import Architecture
from tfnas.channels import Graph

_MODELS = flags.DEFINE_list("models", ["M", "D-121", "MobileNetV2"], "Which super-networks.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each network is stepped.")
_RATES = flags.DEFINE_list("rates", ["0.25", "0.5", "0.75"], "Keep rates.")

_BUILD = {
    "M": lambda: supernets.multi_branch_resnet(32, input_shape=(32, 32, 3)),
    "D-121": lambda: supernets.densenet121(num_classes=10, input_shape=(64, 64, 3)),
    "MobileNetV2": lambda: keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None, classes=10),
}
_LAYOUTS = {
    "gather": {},
    "mask": {"layout": "mask"},
    "shared": {"layout": "shared"},
    "gather, multiple of 8": {"channel_multiple": 8},
    "shared, multiple of 8": {"layout": "shared", "channel_multiple": 8},
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


def _measure(name, rng):
    model = _BUILD[name]()
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    networks = {("full", ""): model}
    for rate in _RATES.value:
        architecture = _candidate(supernet, float(rate), rng)
        for layout, options in _LAYOUTS.items():
            networks[rate, layout] = tfnas.subnet(supernet, architecture, **options)
    image = tf.constant(rng.normal(size=(_BATCH.value, *model.input_shape[1:])), tf.float32)
    calls = {key: tf.function(lambda x, net=net: net(x, training=False)) for key, net in networks.items()}
    for call in calls.values():
        for _ in range(3):
            call(image)
    seconds = {key: [] for key in calls}
    for _ in range(_ROUNDS.value):
        for key, call in calls.items():
            start = time.perf_counter()
            call(image).numpy()
            seconds[key].append(time.perf_counter() - start)
    costs = {key: tfnas.cost(Graph(net)) for key, net in networks.items()}
    size, full = _size(model), costs["full", ""]
    print(f"| {name} | full |  | {1e3 * statistics.median(seconds['full', '']):.1f} ms | 1 | 1 | 1 | 1 | 1 |")
    for (rate, layout), values in list(seconds.items())[1:]:
        price = costs[rate, layout]
        ratio = statistics.median(a / b for a, b in zip(values, seconds["full", ""], strict=True))
        multiply_adds = price.multiply_adds / full.multiply_adds
        print(
            f"| {name} | {rate} | {layout} | {1e3 * statistics.median(values):.1f} ms "
            f"| {price.parameters / full.parameters:.2f} | {_size(networks[rate, layout]) / size:.2f} "
            f"| {multiply_adds:.2f} | {ratio:.2f} | {ratio / multiply_adds:.2f} |",
            flush=True,
        )


def main(_):
    """Prints one table."""
    rng = np.random.default_rng(0)
    print("| network | keep rate | layout | latency | parameters | file | multiply-adds | latency ratio | over adds' |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in _MODELS.value:
        _measure(name, rng)


if __name__ == "__main__":
    app.run(main)
