"""Latency of found networks over evenly narrowed ones of the same multiply-adds, on LiteRT, one thread, one run.

    .venv/bin/python -m benchmarks.found_latency [--models=M,ResNet50,MobileNetV2,EfficientNetB0] [--share=0.5]

Each supernet is trained for a few steps on noise with a bound on its multiply-adds, which is enough for widths that
differ from group to group; the most probable network within the bound is cut, with any widths and with multiples of 16.
Beside it the same network is narrowed evenly, every group by one factor, streams included, to the same multiply-adds
(within 1 %). The three and the full network are timed in turns; ratios are medians over the rounds, one image a pass.
"""

import statistics

import keras
import numpy as np
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas import supernets
from tfnas.cutting.subnets import cut
from tfnas.graph.units import UnitGraph

_MODELS = flags.DEFINE_list("models", ["M", "ResNet50", "MobileNetV2", "EfficientNetB0"], "Which supernets.")
_RECORD = records.flag()
_SHARE = flags.DEFINE_float("share", 0.5, "Bound on the multiply-adds, as a share of the full network's.")
_STEPS = flags.DEFINE_integer("steps", 60, "Training steps of each supernet.")
_STREAMS = flags.DEFINE_bool("streams", None, "Whether streams may be narrowed; not given: if the bound needs it.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each network has its turn.")
_DEVICE = flags.DEFINE_enum("device", "litert", ["litert", "tensorflow"], "What runs the networks.")

_APPLICATION = {"input_shape": (96, 96, 3), "weights": None, "classes": 10, "classifier_activation": None}
_BUILD = {
    "M": lambda: supernets.multi_branch_resnet(32, input_shape=(32, 32, 3)),
    "ResNet50": lambda: keras.applications.ResNet50(**_APPLICATION),
    "MobileNetV2": lambda: keras.applications.MobileNetV2(**_APPLICATION),
    "EfficientNetB0": lambda: keras.applications.EfficientNetB0(**_APPLICATION),
}


def _searched(model, rng):
    """The supernet after a few steps."""
    bounds = {"multiply_adds": _SHARE.value, "streams": _STREAMS.value}
    supernet = tfnas.gate(model, **bounds, steps=_STEPS.value, num_examples=1e4)
    supernet.compile(keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = rng.normal(size=(8 * _STEPS.value, *model.input_shape[1:])).astype("float32")
    supernet.fit(images, rng.integers(0, 10, len(images)), batch_size=8, verbose=0)
    return supernet


def _narrowed(model, multiply_adds):
    """The model with every group of channels narrowed by one factor to this many multiply-adds."""
    graph = UnitGraph(model, streams=True)
    form = graph.form
    sizes = np.array([group.size for group in graph.groups])

    def kept(factor):
        return np.maximum(1, np.round(factor * sizes).astype(int))

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        below = form.counts(kept(middle))["multiply_adds"] <= multiply_adds
        low, high = (middle, high) if below else (low, middle)
    numbers = kept(low)
    for g in np.argsort(-sizes):  # what rounding leaves, one channel a group
        more = numbers + (np.arange(sizes.size) == g)
        if more[g] <= sizes[g] and form.counts(more)["multiply_adds"] <= multiply_adds:
            numbers = more
    keep = {group.name: np.arange(group.size) < n for group, n in zip(graph.groups, numbers, strict=True)}
    return cut(graph, graph.closed(keep))


def _measure(name, rng, record):
    model = _BUILD[name]()
    supernet = _searched(model, rng)
    full = tfnas.cost(model).multiply_adds
    for multiple in (1, 16):
        (found,) = supernet.posterior().sample(1, channel_multiple=multiple)
        network = tfnas.subnet(supernet, found)
        narrow = _narrowed(model, tfnas.cost(network).multiply_adds)
        found_share, narrow_share = (tfnas.cost(m).multiply_adds / full for m in (network, narrow))
        turns = tfnas.compare_latency([model, network, narrow], _DEVICE.value, _ROUNDS.value)
        of_full, of_narrow, narrow_of_full = (
            statistics.median(r[a] / r[b] for r in turns.rounds) for a, b in ((1, 0), (1, 2), (2, 0))
        )
        milliseconds = [1e3 * seconds for seconds in turns.seconds]
        cells = [name, str(multiple), f"{found_share:.3f}", f"{narrow_share:.3f}"]
        cells += [f"{value:.2f}" for value in (*milliseconds, of_full, of_full / found_share)]
        cells += [f"{narrow_of_full / narrow_share:.2f}", f"{of_narrow:.3f}"]
        record.row(*cells)


def main(_):
    """Prints one table."""
    rng = np.random.default_rng(0)
    columns = ["network", "multiple", "multiply-adds, found", "narrowed", "full, ms", "found, ms", "narrowed, ms"]
    columns += ["found over full", "over its multiply-adds", "narrowed over its", "found over narrowed"]
    record = records.Record(_RECORD.value)
    record.heading(*columns)
    for name in _MODELS.value:
        _measure(name, rng, record)
    record.keep()


if __name__ == "__main__":
    app.run(main)
