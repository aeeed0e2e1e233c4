"""Ways to a small network against each other, at equal budget and size: is searching worth more than narrowing by hand?

    .venv/bin/python -m benchmarks.contest --config=configs/contest_16.py --workdir=runs/contest_16 --seeds=0,1,2
        [--arms=narrowed,magnitude] [--decays=0.0005,0.002] [--jobs=1/2] [--decays_from=runs/OTHER/results.json]
        [--ell2=250] [--export=docs/results/contest_16] [--config.data.data_dir=DIR ...]

Every arm ends with one network, trained on the same images for search.epochs + retrain.epochs of the config in all, its
search included, by SGD with one cosine from search.learning_rate to zero, but where an arm says otherwise. It has the
parameters, or the multiply-adds, of the network whose layers are all half as wide ('narrowed'), or half of the full
network's parameters. The weight decay is chosen among --decays for each arm by validation accuracy at the first seed.
Test is read when a run's network is fixed, and chooses nothing.

    full                   the network as it is
    narrowed               every layer half as wide
    narrowed-wide          every layer as narrow as leaves half of the parameters or more
    last-stage             the last stage's gated layers read only their first channels; before it nothing goes but what
                           is then read no more
    last-stage-half        the same, with half of the full network's parameters
    magnitude              full for search.epochs, less the channels of the smallest weights, then trained on
    bn-scale               the same by batch normalization's scales, under an L1 penalty (arXiv 1708.06519); channels
                           that more than one layer reads have no scale of their own and stay
    random                 full for search.epochs, then the best of 20 random allocations by inherited weights
    paper                  the published search, with a cosine of its own, for 2 search.epochs; candidates of its
                           posterior tilted to this size; the best is trained on, with a cosine of its own
    paper-search-only      the published search for all epochs; the best candidate as it is
    paper-scratch          the network that 'paper' found, its weights new; that search is not counted
    default                the project's search with two bounds: the parameters and the multiply-adds of 'narrowed'
    default-parameters     with one: its parameters
    default-multiply-adds  with one: its multiply-adds
    default-half           with one: half of the full network's parameters

Ranking is timed apart from training; that search's training includes what its stages evaluate.

A run is a file, WORKDIR/ARM/decay-D/seedN.json, and is not repeated; an interrupted one resumes from its last
checkpoint. --jobs=i/n does every n-th run, so that n processes share the work; where a decay is to be chosen by a run
of another process, it is waited for. The process that ends last writes results.json and table.md. --decays_from takes
the decays that another contest chose. --export=NAME writes NAME.json and NAME.md too.
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
from benchmarks.arms import ARMS, NEAR, RESOURCES, Run
from tfnas.common import user_functions
from tfnas.common.errors import UserError, exit_on_error
from tfnas.config import Config, from_config_dict
from tfnas.data import pipeline
from tfnas.runs import workdir

_POLL_SECONDS = 5.0


class Contest:
    """A folder of records, one a run.

    Args:
        config: of all runs; the seed and the decays are not used.
        path: the folder. It is this config's from then on.
        options: the weight decays to choose among, by arm.
        seeds: at the first, the decays are chosen.
        ell2: of the published search.

    Raises:
        UserError: if the folder is another contest's, or this network has no width or search to compare.
    """

    def __init__(
        self,
        config: Config,
        path: str | os.PathLike[str],
        options: Mapping[str, Sequence[float]],
        seeds: Sequence[int],
        ell2: float,
    ) -> None:
        if config.supernet.name != "multi_branch_resnet" or config.supernet.source or not config.supernet.width:
            raise UserError("contest: supernet.name 'multi_branch_resnet' with a width expected")
        if config.search.published or config.search.schedule != "one_cosine":
            raise UserError("contest: a search with bounds and one cosine expected, the others are made of it")
        if config.retrain.epochs <= config.search.epochs:
            raise UserError("contest: retrain.epochs above search.epochs expected: 'paper' takes twice those to search")
        self.config, self.options, self.seeds, self.ell2 = config, options, seeds, ell2
        self.work = workdir.Workdir(path)
        self.settings = records.claim(self.work, "contest.json", config, "contest", ell2=ell2)

    @functools.cached_property
    def _splits(self) -> pipeline.Splits:
        return pipeline.load(self.config.data, self.work.path / "tensorflow_datasets")

    def plan(self) -> list[tuple[str, float | None, int]]:
        """Arm, weight decay and seed of every run; without a decay where it is the one that the first seed chooses."""
        first, *others = self.seeds
        chosen: list[tuple[str, float | None, int]] = [(a, d, first) for a, ds in self.options.items() for d in ds]
        return chosen + [(arm, None, seed) for seed in others for arm in self.options]

    def record(self, arm: str, decay: float, seed: int) -> dict[str, Any] | None:
        """Returns the record of a finished run."""
        file = self.work.path / f"{_folder(arm, decay, seed)}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def decay(self, arm: str) -> float | None:
        """The one of the highest validation accuracy at the first seed, of equals the smaller loss; None: not yet."""
        if len(self.options[arm]) == 1:
            return self.options[arm][0]
        tried = [self.record(arm, decay, self.seeds[0]) for decay in self.options[arm]]
        found = [record for record in tried if record is not None]
        if len(found) < len(tried):
            return None
        return min(found, key=lambda r: (-r["validation"]["accuracy"], r["validation"]["loss"]))["decay"]

    def conduct(self, index: int, count: int) -> None:
        """Does part `index` of `count` of the plan, but for what is done; waits for what others have to do first."""
        left = self.plan()[index - 1 :: count]
        announced = False
        while left:
            waiting = []
            for arm, given, seed in left:
                decay = self.decay(arm) if given is None else given
                if decay is None:
                    waiting.append((arm, given, seed))
                elif self.record(arm, decay, seed) is None:
                    print(f"contest   {_folder(arm, decay, seed)}", flush=True)
                    self._do(arm, decay, seed)
            if len(waiting) == len(left):
                if not announced:
                    print(f"contest   waits for the decays of {', '.join(sorted({arm for arm, *_ in waiting}))}")
                announced = True
                time.sleep(_POLL_SECONDS)
            left = waiting

    def _do(self, arm: str, decay: float, seed: int) -> None:
        keras.utils.clear_session()
        name = _folder(arm, decay, seed)
        resumed = (self.work.path / name).exists()
        config = dataclasses.replace(
            self.config,
            seed=seed,
            search=dataclasses.replace(self.config.search, weight_decay=decay),
            retrain=dataclasses.replace(self.config.retrain, weight_decay=decay),
        )
        work = workdir.Workdir(self.work.path / name)
        run = Run(config, self._splits, work, self.work.path, self.ell2)
        found = ARMS[arm].make(run)
        target = ARMS[arm].target
        record = {
            "arm": arm,
            "decay": decay,
            "seed": seed,
            "epochs": run.epochs,
            "parameters": found.cost.parameters,
            "multiply_adds": found.cost.multiply_adds,
            "parameters_share": found.cost.parameters / run.full.parameters,
            "multiply_adds_share": found.cost.multiply_adds / run.full.multiply_adds,
            "target": target,
            "off_target": getattr(found.cost, RESOURCES[target]) / run.targets[target] - 1 if target else None,
            **records.scores(found.model, run.splits, config),
            "seconds": {phase: round(seconds, 1) for phase, seconds in run.seconds.items()},
            "resumed": resumed,  # its seconds are then only those since
            "commit": records.commit(),
            **found.facts,
        }
        self.work.write_json(f"{name}.json", record)
        shutil.rmtree(work.path)

    def results(self, command: str) -> dict[str, Any] | None:
        """All that was found; None while a run is missing."""
        decays = {arm: self.decay(arm) for arm in self.options}
        if None in decays.values():
            return None
        found = [self.record(arm, decays[arm] if decay is None else decay, seed) for arm, decay, seed in self.plan()]
        if None in found:
            return None
        return {
            "command": command,
            "machine": records.machine(),
            **self.settings,
            "seeds": list(self.seeds),
            "options": {arm: list(decays) for arm, decays in self.options.items()},
            "decays": decays,
            # Of an architecture the numbers of channels: which ones they are stands in the run's file.
            "records": [{k: v for k, v in record.items() if k != "architecture"} for record in found if record],
        }


def _folder(arm: str, decay: float, seed: int) -> str:
    return f"{arm}/decay-{decay:g}/seed{seed}"


def table(results: Mapping[str, Any]) -> str:
    """Markdown of `Contest.results`, with notes under it."""
    decays = results["decays"]
    chosen: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in decays}
    for record in results["records"]:
        if record["decay"] == decays[record["arm"]]:
            chosen[record["arm"]][record["seed"]] = record
    columns = (
        "network",
        "test accuracy, %",
        "parameters, %",
        "multiply-adds, %",
        "training accuracy, %",
        "difference, points (95 %)",
        "to",
        "weight decay",
        "epochs",
        "training, s",
        "ranking, s",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    notes = []
    for arm, runs in chosen.items():
        found, reference = list(runs.values()), ARMS[arm].reference
        uninterrupted = [r["seconds"] for r in found if not r["resumed"]]
        compared = reference != arm and reference in chosen
        difference = records.difference(_accuracies(runs), _accuracies(chosen.get(reference, {})))
        cells = (
            arm,
            records.spread_cell([100 * r["test"]["accuracy"] for r in found]),
            records.mean_cell([100 * r["parameters_share"] for r in found], ".1f"),
            records.mean_cell([100 * r["multiply_adds_share"] for r in found], ".1f"),
            records.mean_cell([100 * r["train"]["accuracy"] for r in found], ".2f"),
            records.interval_cell(*difference) if compared else "-",
            reference if compared else "-",
            f"{decays[arm]:g}" if ARMS[arm].decayed else "-",
            str(found[0]["epochs"]),
            records.mean_cell([s["train"] for s in uninterrupted], ".0f"),
            records.mean_cell([s["rank"] for s in uninterrupted], ".0f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
        off = {seed: r["off_target"] for seed, r in runs.items() if abs(r["off_target"] or 0.0) > NEAR}
        if off:
            offsets = ", ".join(f"{100 * value:+.1f} % at seed {seed}" for seed, value in off.items())
            notes.append(f"{arm} is more than {100 * NEAR:.0f} % off the target size: {offsets}.")
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _accuracies(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: 100 * record["test"]["accuracy"] for seed, record in runs.items()}


def export(results: Mapping[str, Any], target: pathlib.Path) -> None:
    """Writes what was found as TARGET.json, and as a page, TARGET.md."""
    work = workdir.Workdir(target.parent)
    work.write_json(f"{target.name}.json", results)
    decays = sorted({decay for arm, tried in results["options"].items() if ARMS[arm].decayed for decay in tried})
    chosen = f", chosen by validation accuracy at seed {results['seeds'][0]}" if len(decays) > 1 else ""
    tried = f"Weight decays: {records.listed(decays)}{chosen}."
    lines = (
        f"# Ways to a small network: {target.name}",
        f"`{results['command']}`",
        f"Seeds: {records.listed(results['seeds'])}. {results['machine']}. Shares are of the full network. {tried}",
        table(results),
    )
    text = "\n\n".join(lines)
    work.write(f"{target.name}.md", lambda file: file.write_text(text))


def part(text: str) -> tuple[int, int]:
    """i and n of 'i/n'. Raises UserError for anything but two numbers, 1 <= i <= n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--jobs: i/n with 1 <= i <= n expected, such as 1/2. Received: {text!r}")
    return int(match[1]), int(match[2])


def options(
    arms: Sequence[str], decays: Sequence[float], others: Mapping[str, float] | None = None
) -> dict[str, tuple[float, ...]]:
    """The weight decays of each arm: none, all of `decays`, or the one that another contest chose.

    Raises:
        UserError: for an arm that is not known, or that the other contest did not have.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise UserError(f"--arms: some of {', '.join(ARMS)} expected. Received: {unknown[0]!r}")
    found: dict[str, tuple[float, ...]] = {}
    for arm in arms:
        if not ARMS[arm].decayed:
            found[arm] = (0.0,)
        elif others is None:
            found[arm] = tuple(decays)
        elif arm in others:
            found[arm] = (others[arm],)
        else:
            raise UserError(f"--decays_from: has no '{arm}'")
    return found


def _define_flags() -> None:
    # Not at import: the command line's, `tfnas.cli`'s, may be defined in the same process.
    config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
    flags.DEFINE_string("workdir", None, "Of the contest.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "One run of each arm a seed.")
    flags.DEFINE_list("arms", list(ARMS), "What is compared.")
    flags.DEFINE_list("decays", ["0.0005", "0.002"], "Weight decays to choose among.")
    flags.DEFINE_string("decays_from", None, "Another contest's results.json, which says the decays.")
    flags.DEFINE_string("jobs", "1/1", "i/n: do part i of n.")
    flags.DEFINE_float("ell2", 250.0, "Of the published search.", lower_bound=0.0)
    flags.DEFINE_string("export", None, "Where to write the results too, without suffix.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(_: Sequence[str]) -> None:
    """Does this process's runs; prints the table if all are done. A user's mistake ends with one line."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    with exit_on_error(flags.FLAGS.workdir):
        _run(flags.FLAGS)


def _run(given: Any) -> None:
    user_functions.add_import_folder(os.path.dirname(config_flags.get_config_filename(given["config"])) or os.curdir)
    config = from_config_dict(given.config)
    others = json.loads(pathlib.Path(given.decays_from).read_text())["decays"] if given.decays_from else None
    decays = options(given.arms, [float(decay) for decay in given.decays], others)
    contest = Contest(config, given.workdir, decays, [int(seed) for seed in given.seeds], given.ell2)
    contest.conduct(*part(given.jobs))
    results = contest.results(records.command("benchmarks.contest"))
    if results is None:
        print("contest   other runs are not done: the table is made when they are")
        return
    contest.work.write_json("results.json", results)
    text = table(results)
    contest.work.write("table.md", lambda file: file.write_text(text))
    print(f"\n{text}")
    if given.export:
        export(results, pathlib.Path(given.export))


if __name__ == "__main__":
    _define_flags()
    app.run(main)
