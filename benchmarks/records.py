"""Records of a measurement: the record behind a page of docs/results, differences with intervals, cells of tables."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags
from scipy import stats

from tfnas.common import atomic
from tfnas.common.errors import UserError
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.runs import provenance, stage_table, workdir

_SECTIONS = ("data", "supernet", "search", "sample", "retrain", "training", "tune")  # what a result may depend on
SPLITS = ("validation", "train", "test")  # test is read last
# Flags for splitting the work and for paths, which a reported command omits.
_LEFT_OUT = ("--jobs=", "--record=")
_PLACES = ("--workdir=", "--data_dir=", "--config.data.data_dir=")


class Record:
    """Rows of Markdown tables, printed as they are measured, and the file that keeps them.

    tests/test_results.py compares the tables of docs/results with the files in docs/results/records.

    Args:
        file: where `keep` writes, as `--record` says; empty for nowhere.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._commit = commit()  # of the code that is loaded: files may change while it runs
        self._rows: list[str] = []

    def heading(self, *columns: str) -> None:
        """Prints the beginning of a table."""
        print()
        self.row(*columns)
        print("|" + " --- |" * len(columns))

    def row(self, *cells: str) -> None:
        """Prints a row."""
        self._rows.append(f"| {' | '.join(cells)} |")
        print(self._rows[-1], flush=True)

    def keep(self, **figures: Any) -> None:
        """Prints further figures as JSON, and writes all with the command, the commit, the machine and the date.

        Raises:
            OSError: if the file cannot be written; one that is there stays as it was.
        """
        found = {
            "command": command(),
            "commit": self._commit,
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "rows": self._rows,
            "figures": figures,
        }
        if figures:
            print(json.dumps(figures))
        if self._file:
            target = pathlib.Path(self._file)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
            atomic.write(target, lambda path: path.write_text(text), target.parent)


def flag() -> flags.Flag:
    """Defines `--record`, for `Record`; returns the flag, whose value is the file."""
    if "record" not in flags.FLAGS:  # one process may import several programs
        flags.DEFINE_string("record", "", "File for what was measured, such as docs/results/records/NAME.json.")
    return flags.FLAGS["record"]


def scores(
    model: keras.Model, splits: pipeline.Splits, config: Config, names: Sequence[str] = SPLITS
) -> dict[str, dict[str, float]]:
    """Loss and accuracy on some of the splits, by the split's name, without augmentation."""
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    found = {}
    for name in names:
        batches = pipeline.evaluation_batches(getattr(splits, name), config.data, config.sample.batch_size)
        measured = model.evaluate(batches, verbose=0, return_dict=True)
        found[name] = {"loss": float(measured["loss"]), "accuracy": float(measured["accuracy"])}
    return found


def claim(
    work: workdir.Workdir, name: str, config: Config, what: str, sections: Sequence[str] = _SECTIONS, **further: Any
) -> dict[str, Any]:
    """Makes a folder that of these settings, which its file `name` says.

    Args:
        work: the folder.
        name: of the file.
        config: those of its settings that change a result are compared.
        what: the folder holds.
        sections: of the settings.
        further: settings that are not the config's.

    Returns:
        The settings, ready for JSON.

    Raises:
        UserError: if it was made with others.
    """
    record = json.loads(json.dumps({"config": stage_table.settings(config, sections), **further}))
    file = work.path / name
    if file.exists() and json.loads(file.read_text()) != record:
        raise UserError(f"workdir {work.path}: holds a {what} with other settings: use another --workdir")
    work.write_json(name, record)
    return record


def commit() -> str | None:
    """Returns the commit of the measuring code; None without git."""
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = pathlib.Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    return None


def machine() -> str:
    """Cores and versions."""
    versions = provenance.versions()
    names = ", ".join(f"{name} {versions[name.lower()]}" for name in ("Python", "TensorFlow", "Keras"))
    return f"{os.cpu_count()} cores ({platform.machine()}), {names}"


def command() -> str:
    """Returns this process's command without flags for splitting the work, and with DIR for paths."""
    words = sys.orig_argv[1:]
    while words and words[0] != "-m" and words[0].startswith("-"):
        words.pop(0)  # an option of Python's own
    given = [word for word in words if not word.startswith(_LEFT_OUT)]
    given = [f"{word.partition('=')[0]}=DIR" if word.startswith(_PLACES) else word for word in given]
    return shlex.join([".venv/bin/python", *given])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of numbers and its 95 % t interval; without two of them NaN, the interval or all."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return np.nan, np.nan, np.nan
    mean = float(found.mean())
    if len(found) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return mean, mean - half, mean + half


def difference(found: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean difference over the seeds that both have, and its 95 % t interval; NaN without two of them."""
    return interval([found[seed] - others[seed] for seed in found if seed in others])


def mean_cell(values: Sequence[float], form: str) -> str:
    """A table's mean."""
    return f"{np.mean(values):{form}}" if len(values) else "-"


def spread_cell(values: Sequence[float], form: str = ".2f") -> str:
    """A table's mean and standard deviation."""
    return mean_cell(values, form) + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "")


def interval_cell(mean: float, low: float, high: float, form: str = "+.2f") -> str:
    """A table's mean with its interval."""
    return f"{mean:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def listed(values: Sequence[Any]) -> str:
    """Numbers after another."""
    return ", ".join(f"{value:g}" for value in values)
