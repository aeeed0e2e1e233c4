"""Ways to a small network against each other, within the same bounds and the same number of epochs.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_16.py --workdir=runs/contest_16 --seeds=0,1,2
        [--situations=scratch,trained-8] [--arms=narrowed,norm] [--jobs=1/2] [--export=docs/results/contest_16]
        [--config.data.data_dir=DIR ...]

Situations:

    scratch      24 epochs in all, of which a search takes 6, from new weights
    trained-8    8 more epochs, of which a search takes 3, from the network that 'full' trained from scratch
    trained-2    2 more epochs, of which a search takes 1
    trained-0    no training: the cut is the result

Bounds are on parameters and multiply-adds together: 'width', those of the network whose layers are all half as wide,
and for trained networks also 'half', half of both. An arm with an importance (docs/method.md) keeps the units that it
rates highest, as many as the bounds allow. A network is cut in three ways: as it is, recalibrated
(with normalization statistics of its own), and refitted. The one with the lowest loss on validation is trained for the
remaining epochs.

    full, narrowed                 the whole network; every layer half as wide, with new weights
    even-streams                   the first channels of each layer
    norm(-streams)                 of each layer those with the largest weights, the same share of all layers, as
                                   Torch-Pruning does by default
    scale, scale-floor             the largest normalization scales of all layers, after training with an L1 penalty on
                                   them (network slimming); with a tenth of each layer in any case
    curvature(-rounds, -iterative) the largest squared gradients: of the network as it is; in rounds, each of which
                                   measures what is left, without training; or while training
    gates(-example)                the project's search; with noise for each example
    published                      the published search, the best of its candidates with these multiply-adds
    ...-streams                    residual streams are narrowed too; the others leave them as wide as they are
    ...-distilled                  trained on with the full network's outputs
    ...-as-cut                     trained on as it was cut, as other tools do

All train by SGD with one cosine to zero. Test is read when a run's network is fixed, and chooses nothing. A run is a
file, WORKDIR/SITUATION/BOUNDS/ARM/seedN.json, and is not repeated; an interrupted one resumes from its last checkpoint.
--jobs=i/n does every n-th run, so that n processes share the work; one that needs a trained network waits for it.
--export=NAME writes NAME.json and NAME.md of all runs that are done.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import records
from benchmarks.arms import ARMS, SITUATIONS, Run
from tfnas.common import user_functions
from tfnas.common.errors import UserError, exit_on_error
from tfnas.config import Config, from_config_dict
from tfnas.data import pipeline
from tfnas.graph.channels import Graph
from tfnas.graph.costs import Cost, cost
from tfnas.runs import workdir
from tfnas.training import building
from tfnas.training.best_cut import Way

_POLL_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, order=True)
class Key:
    """Situation, bounds, arm and seed of a run."""

    situation: str
    bounds: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.situation}/{self.bounds}/{self.arm}/seed{self.seed}"


def plan(situations: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[Key]:
    """All runs, seed by seed: after the first seed there is a whole table.

    Raises:
        UserError: for a situation or an arm that is not known.
    """
    for flag, given, known in (("situations", situations, SITUATIONS), ("arms", arms, ARMS)):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"--{flag}: some of {', '.join(known)} expected. Received: {unknown[0]!r}")
    keys = []
    for seed in seeds:
        for situation in situations:
            trained = SITUATIONS[situation].trained
            for bounds in ("width", "half") if trained else ("width",):
                entering = [arm for arm in arms if ARMS[arm].enters(SITUATIONS[situation])]
                # What is not cut has no bounds.
                keys += [Key(situation, bounds, arm, seed) for arm in entering if bounds == "width" or arm != "full"]
    return keys


class Contest:
    """A folder of records, one a run.

    Args:
        config: has the images, the full network, and the batch size and weight decay of retraining, which are those
            of every training; the rest is the arms' own.
        path: the folder. It is this config's from then on.
        keys: the runs.

    Raises:
        UserError: if the folder is another contest's, or this network has no width to halve.
    """

    def __init__(self, config: Config, path: str | os.PathLike[str], keys: Sequence[Key]) -> None:
        if config.supernet.name != "multi_branch_resnet" or config.supernet.source or not config.supernet.width:
            raise UserError("contest: supernet.name 'multi_branch_resnet' with a width expected")
        self.config, self.keys = config, keys
        self.work = workdir.Workdir(path)
        shared = {"batch_size": config.retrain.batch_size, "weight_decay": config.retrain.weight_decay}
        self.settings = records.claim(self.work, "contest.json", config, "contest", ("data", "supernet"), **shared)

    @functools.cached_property
    def _splits(self) -> pipeline.Splits:
        return pipeline.load(self.config.data, self.work.path / "tensorflow_datasets")

    @functools.cached_property
    def bounds(self) -> dict[str, dict[str, float]]:
        """Shares of the full network's costs, by the bounds' name."""
        full, narrowed = (self._cost_at(self.config.supernet.width // part) for part in (1, 2))
        shares = {name: getattr(narrowed, name) / getattr(full, name) for name in ("parameters", "multiply_adds")}
        return {"width": shares, "half": dict.fromkeys(shares, 0.5)}

    def _cost_at(self, width: int) -> Cost:
        supernet = dataclasses.replace(self.config.supernet, width=width)
        return cost(Graph(building.network(dataclasses.replace(self.config, supernet=supernet), self._splits)))

    def record(self, key: Key) -> dict[str, Any] | None:
        """Returns the record of a finished run."""
        file = self.work.path / f"{key}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def teacher(self, seed: int) -> pathlib.Path:
        """File of the full network that was trained from scratch."""
        return self.work.path / f"full-seed{seed}.keras"

    def conduct(self, index: int, count: int) -> None:
        """Does part `index` of `count` of the runs, but for what is done; waits for what others have to do first."""
        left = self.keys[index - 1 :: count]
        announced = False
        while left:
            waiting = []
            for key in left:
                if self.record(key) is not None:
                    continue
                if self._needs_teacher(key) and not self.teacher(key.seed).exists():
                    waiting.append(key)
                    continue
                print(f"contest   {key}", flush=True)
                self._do(key)
            if waiting and len(waiting) == len(left):
                if not announced:
                    print(f"contest   waits for the full network of seed {waiting[0].seed}, trained from scratch")
                announced = True
                time.sleep(_POLL_SECONDS)
            left = waiting

    @staticmethod
    def _needs_teacher(key: Key) -> bool:
        return SITUATIONS[key.situation].trained or ARMS[key.arm].distilled

    def _do(self, key: Key) -> None:
        keras.utils.clear_session()
        work = workdir.Workdir(self.work.path / str(key))
        config = dataclasses.replace(self.config, seed=key.seed)
        teacher = str(self.teacher(key.seed)) if self._needs_teacher(key) else None
        run = Run(config, self._splits, work, SITUATIONS[key.situation], self.bounds[key.bounds], teacher)
        facts, model = run.conduct(ARMS[key.arm])
        if key.arm == "full" and key.situation == "scratch":
            self.work.write(self.teacher(key.seed).name, keras.Model(model.inputs[0], model.outputs[0]).save)
        scores = records.scores(model, self._splits, config)
        record = {**dataclasses.asdict(key), **facts, **scores, "commit": records.commit()}
        self.work.write_json(f"{key}.json", record)
        shutil.rmtree(work.path)

    def results(self, command: str) -> dict[str, Any]:
        """All that was found so far."""
        found = [record for key in self.keys if (record := self.record(key))]
        return {"command": command, "machine": records.machine(), **self.settings, "records": found}


def table(results: Mapping[str, Any], situation: str, bounds: str) -> str:
    """Markdown of one situation and one pair of bounds; accuracies and shares in %."""
    arms: dict[str, dict[int, Mapping[str, Any]]] = {arm: {} for arm in ARMS}
    for record in results["records"]:
        if record["situation"] == situation and record["bounds"] in (
            bounds,
            "width" if record["arm"] == "full" else bounds,
        ):
            arms[record["arm"]][record["seed"]] = record
    reference = "narrowed" if arms["narrowed"] else "norm-streams"
    columns = (
        "network",
        "test",
        "by seed",
        f"difference to {reference}, points (95 %)",
        "validation after the cut: bare",
        "recalibrated",
        "refitted",
        "parameters",
        "multiply-adds",
        "latency",
        "training, in epochs of the full network",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for arm, runs in arms.items():
        if not runs:
            continue
        found = list(runs.values())
        difference = records.difference(_accuracies(runs), _accuracies(arms[reference]))
        cells = (
            arm,
            records.spread_cell([100 * r["test"]["accuracy"] for r in found]),
            " / ".join(f"{100 * r['test']['accuracy']:.1f}" for r in found),
            records.interval_cell(*difference) if arm != reference and arms[reference] else "-",
            *(_mean(found, lambda r, cut=cut: r.get("after_cut", {}).get(cut)) for cut in Way),
            *(_mean(found, lambda r, name=name: r.get(name)) for name in ("parameters", "multiply_adds", "latency")),
            records.mean_cell([r["epochs_spent"] for r in found], ".1f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(found: Sequence[Mapping[str, Any]], value: Any) -> str:
    values = [value(record) for record in found]
    return records.mean_cell([100 * v for v in values if v is not None], ".1f")


def _accuracies(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: 100 * record["test"]["accuracy"] for seed, record in runs.items()}


def page(results: Mapping[str, Any], title: str) -> str:
    """Markdown of everything found."""
    there = dict.fromkeys((record["situation"], record["bounds"]) for record in results["records"])
    parts = [
        f"# Ways to a small network: {title}",
        f"`{results['command']}`",
        f"{results['machine']}. `benchmarks/contest.py` says what each network is. Accuracies, and shares of the full "
        "network, are in %.",
    ]
    for situation, bounds in there:
        parts += [f"## {situation}, bounds '{bounds}'", table(results, situation, bounds)]
    return "\n\n".join(parts)


def part(text: str) -> tuple[int, int]:
    """i and n of 'i/n'. Raises UserError for anything but two numbers, 1 <= i <= n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--jobs: i/n with 1 <= i <= n expected, such as 1/2. Received: {text!r}")
    return int(match[1]), int(match[2])


def _define_flags() -> None:
    # Not at import: the command line's, `tfnas.cli`'s, may be defined in the same process.
    config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
    flags.DEFINE_string("workdir", None, "Of the contest.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "One run of each arm a seed.")
    flags.DEFINE_list("situations", list(SITUATIONS), "From where, and for how long.")
    flags.DEFINE_list("arms", list(ARMS), "What is compared.")
    flags.DEFINE_string("jobs", "1/1", "i/n: do part i of n.")
    flags.DEFINE_string("export", None, "Where to write the results too, without suffix.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(_: Sequence[str]) -> None:
    """Does this process's runs; prints the tables of what is done. A user's mistake ends with one line."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    with exit_on_error(flags.FLAGS.workdir):
        _run(flags.FLAGS)


def _run(given: Any) -> None:
    user_functions.add_import_folder(os.path.dirname(config_flags.get_config_filename(given["config"])) or os.curdir)
    keys = plan(given.situations, given.arms, [int(seed) for seed in given.seeds])
    contest = Contest(from_config_dict(given.config), given.workdir, keys)
    contest.conduct(*part(given.jobs))
    results = contest.results(records.command())
    target = pathlib.Path(given.export) if given.export else contest.work.path / "results"
    text = page(results, target.name)
    work = workdir.Workdir(target.parent)
    work.write_json(f"{target.name}.json", results)
    work.write(f"{target.name}.md", lambda file: file.write_text(text))
    print(f"\n{text}")


if __name__ == "__main__":
    _define_flags()
    app.run(main)
