"""Time and multiply-adds of search, ranking and retraining over those of training the full network as long.

    .venv/bin/python benchmarks/whole_run.py --config=configs/whole_run.py --workdir=DIR [--config.data.data_dir=DIR]

Both sides run in one process, one after the other, with the same images, batches and number of epochs. Networks that
are trained for comparison, and random candidates, are left out. A stage that is done is not repeated.
"""

import dataclasses
import json
import os
import time

from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import records
from tfnas.common import user_functions
from tfnas.common.errors import exit_on_error
from tfnas.config import from_config_dict
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.runs import stage_table, workdir
from tfnas.runs.measured import Results
from tfnas.stages import retrain, sample, search
from tfnas.training import building, networks
from tfnas.training.schedules import Cosine

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.", required=True)


def main(_):
    """Prints the seconds and, as the last line, JSON."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    with exit_on_error(_WORKDIR.value):
        _run()


def _run():
    user_functions.add_import_folder(
        os.path.dirname(config_flags.get_config_filename(flags.FLAGS["config"])) or os.curdir
    )
    config = from_config_dict(_CONFIG.value)
    work = workdir.Workdir(_WORKDIR.value)
    for stage in (search, sample, retrain):
        stage.run(config, work.path)
    seconds = {name: stage.seconds for name, stage in work.manifest().stages.items()}
    results = work.read_json(stage_table.RESULTS, "whole_run", Results)
    epochs, searched = config.search.epochs + config.retrain.epochs, config.search.epochs

    splits = networks.load_data(config, work)
    networks.set_seed(config.seed)
    full = building.network(config, splits)
    start = time.monotonic()
    rates = Cosine(config.search.learning_rate, epochs).schedule
    networks.fit_plain(config, splits, workdir.Workdir(work.path / "full"), full, epochs, rates, "full")
    seconds["full"] = time.monotonic() - start

    row = next(row for row in results.rows if row.name == results.chosen)
    share = row.multiply_adds / cost(Graph(full)).multiply_adds
    spent = sum(seconds[name] for name in ("search", "sample", "retrain"))
    found = {
        "machine": records.machine(),
        "commit": records.commit(),
        "seconds": seconds,
        "time": spent / seconds["full"],
        "multiply_adds_of_network": share,
        "multiply_adds_of_training": (searched + share * (epochs - searched)) / epochs,
        "settings": {name: dataclasses.asdict(getattr(config, name)) for name in ("search", "sample", "retrain")},
    }
    print(f"search {seconds['search']:.0f} s, sample {seconds['sample']:.0f} s, retrain {seconds['retrain']:.0f} s")
    print(f"full network, {epochs} epochs: {seconds['full']:.0f} s; all three together {found['time']:.2f} of it")
    print(f"multiply-adds of training: {found['multiply_adds_of_training']:.2f} of the full network's")
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
