"""Time and multiply-adds of search, ranking and retraining over those of training the full network as long.

    .venv/bin/python -m benchmarks.whole_run --config=configs/whole_run.py --workdir=DIR [--images=500,1500]
        [--config.data.data_dir=DIR]

For each number of training images both sides run in one process, one after the other, with the same images, batches and
number of epochs. Networks that are trained for comparison, and random candidates, are left out; networks that are cut
for comparison are timed apart. Much of a small run takes as long with any number of images: tracing, ranking,
refitting. So the last row is of a whole data set, computed from the line through the first two. A run that is done is
not repeated.
"""

import dataclasses
import json
import os
import pathlib
import time
from unittest import mock

from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import records
from tfnas.common import user_functions
from tfnas.common.errors import UserError, exit_on_error
from tfnas.config import Config, from_config_dict
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.runs import stage_table, workdir
from tfnas.runs.measured import Results
from tfnas.stages import retrain, sample, search
from tfnas.training import building, networks, rivals
from tfnas.training.schedules import Cosine

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
_RECORD = records.flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Of the runs.", required=True)
_IMAGES = flags.DEFINE_list("images", ["500", "1500"], "Two numbers of training images.")
_ALL_IMAGES = flags.DEFINE_integer("all_images", 45_000, "Training images of the whole data set.")
_PARTS = ("search", "sample", "retrain", "comparisons", "full")


def main(_):
    """Prints a table of seconds and, as the last line, JSON."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    with exit_on_error(_WORKDIR.value):
        _compare()


def _compare():
    user_functions.add_import_folder(
        os.path.dirname(config_flags.get_config_filename(flags.FLAGS["config"])) or os.curdir
    )
    config = from_config_dict(_CONFIG.value)
    try:
        few, many = sorted(set(map(int, _IMAGES.value)))
    except ValueError:
        raise UserError(f"--images: two different whole numbers expected. Received: {_IMAGES.value}") from None
    runs = {number: _run_once(config, number) for number in (few, many)}
    seconds = {number: run["seconds"] for number, run in runs.items()}
    further = (_ALL_IMAGES.value - few) / (many - few)
    computed = {part: seconds[few][part] + further * (seconds[many][part] - seconds[few][part]) for part in _PARTS}
    record = records.Record(_RECORD.value)
    columns = ("search, s", "sample, s", "retrain, s", "cut for comparison, s", "full, s", "over full")
    record.heading("images", *columns)
    for number, found in (seconds | {_ALL_IMAGES.value: computed}).items():
        title = f"{number:,}" + " (computed)" * (found is computed)
        record.row(title, *(f"{found[part]:,.0f}" for part in _PARTS), f"{_ratio(found):.2f}")
    print(f"multiply-adds of training: {runs[many]['multiply_adds_of_training']:.2f} of the full network's")
    settings = {name: dataclasses.asdict(getattr(config, name)) for name in ("search", "sample", "retrain")}
    record.keep(runs=runs, computed=computed, ratio=_ratio(computed), settings=settings)


def _ratio(seconds):
    return sum(seconds[stage] for stage in ("search", "sample", "retrain")) / seconds["full"]


def _run_once(config: Config, number: int):
    """Seconds of each part with so many training images, and multiply-adds as shares of the full network's."""
    path = pathlib.Path(_WORKDIR.value) / str(number)
    record = path.with_suffix(".json")
    if record.exists():
        return json.loads(record.read_text())
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=f"train[:{number}]"))
    work, apart, at_once = workdir.Workdir(path), [], rivals.at_once

    def timed(*arguments):
        start = time.monotonic()
        arms = at_once(*arguments)
        apart.append(time.monotonic() - start)
        return arms

    with mock.patch.object(rivals, "at_once", timed):
        for stage in (search, sample, retrain):
            stage.run(config, work.path)
    if not apart:
        raise UserError(f"--workdir: {path} holds a part of a run, which was not timed as a whole; remove it")
    seconds = {name: stage.seconds for name, stage in work.manifest().stages.items()} | {"comparisons": sum(apart)}
    seconds["retrain"] -= seconds["comparisons"]

    epochs, searched = config.search.epochs + config.retrain.epochs, config.search.epochs
    splits = networks.load_data(config, work)
    networks.set_seed(config.seed)
    full = building.network(config, splits)
    start = time.monotonic()
    rates = Cosine(config.search.learning_rate, epochs).schedule
    networks.fit_plain(config, splits, workdir.Workdir(path / "full"), full, epochs, rates, "full")
    seconds["full"] = time.monotonic() - start

    results = work.read_json(stage_table.RESULTS, "whole_run", Results)
    row = next(row for row in results.rows if row.name == results.chosen)
    share = row.multiply_adds / cost(Graph(full)).multiply_adds
    found = {
        "seconds": seconds,
        "multiply_adds_of_network": share,
        "multiply_adds_of_training": (searched + share * (epochs - searched)) / epochs,
    }
    workdir.Workdir(path.parent).write_json(record.name, found)
    return found


if __name__ == "__main__":
    app.run(main)
