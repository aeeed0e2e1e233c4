"""Whether a bound on the latency holds as measured, on four networks, one run.

    .venv/bin/python -m benchmarks.latency_bounds [--share=0.5] [--device=litert]

Each network is gated with a bound on its latency, and before any training the most probable network within the bound is
measured in turns with the full one, until it is as fast as was asked and at most 5 % faster, four networks at most
(`tfnas.meet_latency`). The last column measures the network found once more.
"""

import keras
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas import supernets

_MODELS = flags.DEFINE_list("models", ["M", "ResNet50", "MobileNetV2", "EfficientNetB0"], "Which networks.")
_RECORD = records.flag()
_SHARE = flags.DEFINE_float("share", 0.5, "Bound on the latency, as a share of the full network's.")
_DEVICE = flags.DEFINE_enum("device", "litert", ["litert", "tensorflow"], "What runs the networks.")

_APPLICATION = {"input_shape": (96, 96, 3), "weights": None, "classes": 10}
_BUILD = {
    "M": lambda: supernets.multi_branch_resnet(32, input_shape=(32, 32, 3)),
    "ResNet50": lambda: keras.applications.ResNet50(**_APPLICATION),
    "MobileNetV2": lambda: keras.applications.MobileNetV2(**_APPLICATION),
    "EfficientNetB0": lambda: keras.applications.EfficientNetB0(**_APPLICATION),
}


def main(_):
    """Prints one table."""
    record = records.Record(_RECORD.value)
    columns = ["network", "full, ms", "networks measured: predicted, measured", "found, of the full", "met"]
    record.heading(*columns, "once more")
    for name in _MODELS.value:
        model = _BUILD[name]()
        supernet = tfnas.gate(model, latency=_SHARE.value, device=_DEVICE.value, steps=1000, num_examples=1e4)
        posterior = supernet.posterior()
        bound = tfnas.meet_latency(posterior, supernet.graph, _SHARE.value, _DEVICE.value)
        network = tfnas.subnet(supernet, posterior.mode(latency=bound.predicted))
        again = tfnas.compare_latency([model, network], _DEVICE.value, 9)
        tried = "; ".join(f"{predicted:.3f}, {measured:.3f}" for predicted, measured in bound.tried)
        cells = [name, f"{1e3 * again.seconds[0]:.2f}", tried, f"{bound.measured:.3f}"]
        cells += ["yes" if bound.met else "no", f"{again.ratios[1]:.3f}"]
        record.row(*cells)
    record.keep()


if __name__ == "__main__":
    app.run(main)
