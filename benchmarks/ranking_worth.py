"""Is the ranking by inherited weights worth anything? Every candidate of two pools is ranked, then cut and retrained.

    .venv/bin/python -m benchmarks.ranking_worth --config=configs/digits_paper.py --workdir=runs/ranking_worth
        [--candidates=16] [--epochs=10] [--recalibrate=500] [--config.seed=1 ...]

The search is run in the working directory if there is none. The pools, without candidates that drop every path:

- the posterior's own samples;
- mixed sizes: samples of the posterior tilted to 0.3 to 1 times the gated parameters that it expects to keep, spread
  evenly over the candidates. Only downwards, because upwards revives channels that search stopped training.

Each candidate is evaluated with inherited weights, without and with batch-normalization statistics of its own, then cut
out (without these statistics) and retrained for --epochs as the config says, all with one schedule and one seed. Losses
and accuracies are on the validation split; test is not read. Intervals are the 95 % bootstrap's over candidates.

A retrained network is evaluated as it is, and with statistics of its own too ("settled"): after few steps its moving
ones are still partly the supernet's. Two rankings stand beside those by inherited weights: by nothing but the number of
parameters, the more the better; and by retraining again, from the same weights with another order of the images, as no
ranking can be expected to foretell more than that does.
"""

import dataclasses
import os
import tempfile
import time

import keras
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks import records
from tfnas.common import user_functions
from tfnas.common.errors import UserError
from tfnas.common.statistics import kendall_tau
from tfnas.config import from_config_dict
from tfnas.cutting.subnets import subnet
from tfnas.data import pipeline
from tfnas.graph.costs import cost
from tfnas.graph.statistics import recompute_statistics
from tfnas.ranking.ranking import Evaluator
from tfnas.ranking.recalibration import Recalibration
from tfnas.runs import stage_table, workdir
from tfnas.stages import search
from tfnas.training import networks
from tfnas.training.schedules import Cosine

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", "runs/ranking_worth", "Of the search.")
_RECORD = records.flag()
_CANDIDATES = flags.DEFINE_integer("candidates", 16, "In each pool.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Of retraining each candidate.", lower_bound=1)
_RECALIBRATE = flags.DEFINE_integer("recalibrate", 500, "Training images for the statistics.", lower_bound=1)
_SHARES = (0.3, 1.0)
_ATTEMPTS = 1_000
_WEIGHTS = ("inherited", "recalibrated", "retrained", "settled", "retrained again", "settled again")
_PAIRS = (
    ("inherited", "retrained"),
    ("recalibrated", "retrained"),
    ("retrained again", "retrained"),
    ("parameters", "retrained"),
    ("inherited", "settled"),
    ("recalibrated", "settled"),
    ("settled again", "settled"),
    ("parameters", "settled"),
    ("inherited", "recalibrated"),
)


def _drawn(graph, posterior, seed, i):
    """Candidate i; where that drops every path, the first of its further draws that does not."""
    for attempt in range(_ATTEMPTS):
        (candidate,) = posterior.sample(1, seed, first=i + attempt * _CANDIDATES.value)
        if graph.flow(candidate).reaches_outputs():
            return candidate
    raise UserError(f"candidate {i}: every path is dropped in {_ATTEMPTS:,} draws")


def _pools(supernet, seed):
    """Architectures by the pool's name."""
    posterior, count = supernet.posterior(), _CANDIDATES.value
    expected = posterior.expected_parameters()
    tilted = [posterior.tilt(parameters=share * expected) for share in np.linspace(*_SHARES, count)]
    return {
        "posterior's samples": [_drawn(supernet.graph, posterior, seed, i) for i in range(count)],
        "mixed sizes": [_drawn(supernet.graph, tilted[i], seed + 1, i) for i in range(count)],
    }


def _retrained(config, splits, supernet, architecture, title, batches, images):
    """Loss and accuracy of the network cut out, after its training: as it is, and with the images' statistics."""
    networks.set_seed(config.seed)
    model = subnet(supernet, architecture)
    cosine = Cosine(config.retrain.learning_rate, _EPOCHS.value)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, recalibrate=0))  # settled below
    with tempfile.TemporaryDirectory() as folder:  # of its own, as its checkpoint is
        work = workdir.Workdir(folder)
        networks.fit_plain(config, splits, work, model, _EPOCHS.value, cosine.schedule, title)
    found = [model.evaluate(batches, verbose=0, return_dict=True)]
    recompute_statistics(model, images)
    found.append(model.evaluate(batches, verbose=0, return_dict=True))
    return [{"loss": scores["loss"], "accuracy": scores["accuracy"]} for scores in found]


def _measured(config, splits, supernet, pools):
    """Returns one record per candidate of each pool: its parameters, and loss and accuracy with each kind of
    weights."""
    batches = pipeline.evaluation_batches(splits.validation, config.data, config.sample.batch_size)
    images = networks.calibration_images(config, splits, _RECALIBRATE.value)
    evaluators = [Evaluator(supernet, batches), Evaluator(supernet, batches, Recalibration(supernet, images))]
    configs = [config, dataclasses.replace(config, seed=config.seed + 1)]
    found = {}
    for pool, architectures in pools.items():
        found[pool] = []
        for i, architecture in enumerate(architectures):
            title = f"{pool}, {i + 1} of {len(architectures)}"
            scores = [evaluate(architecture).figures() for evaluate in evaluators]
            for c in configs:
                scores += _retrained(c, splits, supernet, architecture, title, batches, images)
            record = {"parameters": cost(supernet.graph, architecture).parameters}
            found[pool].append(record | dict(zip(_WEIGHTS, scores, strict=True)))
    return found


def _spread(values, form):
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}"


def _rows(records):
    """The table's cells for one pool by the row's name, and the taus among them with their intervals."""
    cells = {"parameters": _spread([r["parameters"] for r in records], ",.0f")}
    for name in _WEIGHTS:
        cells[f"loss, {name}"] = _spread([r[name]["loss"] for r in records], ".4f")
        cells[f"accuracy, %, {name}"] = _spread([100 * r[name]["accuracy"] for r in records], ".2f")
    taus = {}
    for measure in ("loss", "accuracy"):
        sizes = [r["parameters"] * (-1 if measure == "loss" else 1) for r in records]
        values = {"parameters": sizes, **{name: [r[name][measure] for r in records] for name in _WEIGHTS}}
        for a, b in _PAIRS:
            taus[f"tau, {measure}: {a} and {b}"] = kendall_tau(values[a], values[b])
    cells |= {name: f"{tau:.2f} ({low:.2f} to {high:.2f})" for name, (tau, low, high) in taus.items()}
    return cells, taus


def main(_):
    """Prints a Markdown table and, as the last line, JSON."""
    user_functions.add_import_folder(
        os.path.dirname(config_flags.get_config_filename(flags.FLAGS["config"])) or os.curdir
    )
    config = from_config_dict(_CONFIG.value)
    work = workdir.Workdir(_WORKDIR.value)
    search.run(config, work.path)
    splits = pipeline.load(config.data, work.path / "tensorflow_datasets")
    supernet = keras.models.load_model(work.path / stage_table.SUPERNET)
    networks.set_seed(config.seed)
    pools = _pools(supernet, config.seed)
    start = time.monotonic()
    found = _measured(config, splits, supernet, pools)
    seconds = time.monotonic() - start

    decided, groups = supernet.posterior().decided()
    distinct = ", ".join(f"{len({a.digest() for a in pool})} in {name}" for name, pool in pools.items())
    print(
        f"\n{_CANDIDATES.value} candidates a pool, distinct: {distinct}; {decided} of {groups} gates decided; "
        f"{splits.sizes['validation']:,} validation images; {_EPOCHS.value} epochs of retraining; {seconds:.0f} s\n"
    )
    tables = {pool: _rows(records) for pool, records in found.items()}
    record = records.Record(_RECORD.value)
    record.heading(f"{_CANDIDATES.value} candidates", *tables)
    for name in next(iter(tables.values()))[0]:
        record.row(name, *(cells[name] for cells, _ in tables.values()))
    record.keep(taus={pool: taus for pool, (_, taus) in tables.items()}, candidates=found)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
