"""Posterior against random candidates, and the network found against the full one: a whole run for each seed.

    .venv/bin/python -m benchmarks.comparison --config=configs/digits_paper.py --workdir=runs/comparison [--seeds=0,1,2]
        [--config.search.ell2=80 ...]

Runs `tfnas run` once a seed, in WORKDIR/seedN (a run that is up to date is not repeated), and prints one Markdown table
of accuracies on test, mean and standard deviation over the seeds, and the seconds of every stage.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys

from benchmarks import records
from tfnas.runs import stage_table, workdir


def main() -> None:
    """Runs every seed, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--record", default="")
    options, overrides = parser.parse_known_args()
    folders = [options.workdir / f"seed{seed}" for seed in options.seeds.split(",")]
    for seed, folder in zip(options.seeds.split(","), folders, strict=True):
        command = [pathlib.Path(sys.executable).parent / "tfnas", "run", f"--config={options.config}"]
        subprocess.run([*command, f"--workdir={folder}", f"--config.seed={seed}", *overrides], check=True)
    results = [json.loads((folder / stage_table.RESULTS).read_text())["rows"] for folder in folders]
    runs = [{row["name"]: row for row in rows} for rows in results]
    print(f"\n`{options.config}`, seeds {options.seeds} {' '.join(overrides)}\n")
    record = records.Record(options.record)
    record.heading("network", "test accuracy, %", "parameters", "multiply-adds, M")
    for name in runs[0]:
        rows = [run[name] for run in runs if name in run]
        if len(rows) < len(runs):  # a network without a path to the output has no row
            continue
        accuracy = _spread([100 * row["test"]["accuracy"] for row in rows], ".2f")
        parameters = _spread([row["parameters"] for row in rows], ",.0f")
        multiply_adds = _spread([row["multiply_adds"] / 1e6 for row in rows], ".2f")
        record.row(re.sub(" of [0-9,]+$", "", name), accuracy, parameters, multiply_adds)
    stages = [workdir.Workdir(folder).manifest().stages for folder in folders]
    seconds = ", ".join(f"{name} {_spread([s[name].seconds for s in stages], '.0f')}" for name in stages[0])
    print(f"\nSeconds: {seconds}")
    record.keep(rows=results)


def _spread(values: list[float], form: str) -> str:
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


if __name__ == "__main__":
    main()
