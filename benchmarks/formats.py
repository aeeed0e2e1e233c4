"""Every format of an exported network: size, test accuracy, and how long one image takes in its own runtime.

    .venv/bin/tfnas run --config=configs/digits.py --workdir=runs/formats \\
        --config.export.formats=litert,litert_int8,onnx,onnx_int8,openvino
    .venv/bin/python benchmarks/formats.py --workdir=runs/formats [--repeats=500]

Prints a Markdown table; milliseconds are medians, measured in turns, so that what else the machine does falls on all
alike. Sizes and accuracies are those that the export recorded.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import numpy as np

from tfnas.common import terminal
from tfnas.runs import stage_table


def main() -> None:
    """Measures what is in the working directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()
    tf = terminal.load_tensorflow()
    from tfnas.exporting import conversion

    exported = json.loads((options.workdir / stage_table.EXPORT_RESULTS).read_text())
    served = tf.saved_model.load(str(options.workdir / exported["saved_model"])).signatures["serving_default"]
    _, height, width, channels = served.structured_input_signature[1]["image"].shape
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, channels), np.uint8)
    networks = {"SavedModel": lambda pixels: served(image=tf.constant(pixels))["probabilities"].numpy()}
    for record in exported["formats"]:
        networks[record["format"]] = conversion.load(record["format"], options.workdir / record["file"])
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(options.repeats + 20):
        for name, predict in networks.items():
            start = time.perf_counter()
            predict(image)
            if repeat >= 20:  # the first ones allocate
                seconds[name].append(time.perf_counter() - start)

    print("| format | kB | test accuracy, % | largest difference of a probability | one image, ms |")
    print("|---|---|---|---|---|")
    saved = sum(f.stat().st_size for f in (options.workdir / exported["saved_model"]).rglob("*") if f.is_file())
    first = exported["formats"][0]
    accuracy = 100 * (first["test"] - first["change"])  # the Keras model's
    rows = [["SavedModel", f"{saved / 1e3:.0f}", f"{accuracy:.2f}", f"{exported['largest_difference']:.0e}"]]
    rows += [
        [r["format"], f"{r['bytes'] / 1e3:.0f}", f"{100 * r['test']:.2f}", f"{r['largest_difference']:.0e}"]
        for r in exported["formats"]
    ]
    for row in rows:
        print(f"| {' | '.join(row)} | {1e3 * statistics.median(seconds[row[0]]):.3f} |")


if __name__ == "__main__":
    main()
