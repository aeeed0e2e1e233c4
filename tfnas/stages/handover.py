"""A run that travels from machine to machine: a stage's working directory made from what earlier stages handed over.

The component of a pipeline gets the artifacts of earlier ones as folders, lets a stage work, and leaves a folder with
what that stage wrote::

    with handover.task("retrain", [search_config, sample_config, retrain_config], [searched, selected]) as task:
        retrain.run(task.config, task.path)
        task.hand_over(folder)

The manifest travels along, so a stage refuses an input that is not what its writer left. No TensorFlow, and no kfp.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfnas import config as config_lib
from tfnas.common import atomic, digests, terminal, user_functions
from tfnas.common.errors import UserError, exit_on_error
from tfnas.common.schema import anything, mapping_of, read
from tfnas.reporting import acceptance, report
from tfnas.runs import provenance, stage_table
from tfnas.runs.measured import Exported, Results, Verdict
from tfnas.runs.sampled import Epoch, Ranked
from tfnas.runs.workdir import Workdir

# A config in parts, each with the sections that a stage is the first to depend on. A stage gets its own part and those
# before it, so that no later setting makes it run again.
PARTS = {
    "search": ("data", "supernet", "search", "training", *stage_table.TASK, "distribution", "seed"),
    "sample": ("sample",),
    "retrain": ("retrain",),
    "evaluate": ("evaluate",),
    "export": ("export",),
}
FUNCTIONS = "TFNAS_FUNCTIONS"  # environment variable: folders with the user's own functions, separated as PATH's are
# Environment variable: a folder with a file `stdout` for what stages print, and `stderr` for how they fail, because an
# engine that runs tasks on this machine mixes their output with its own.
OUTPUT = "TFNAS_OUTPUT"
_READY = "ready"  # in a scratch folder: all inputs are in its working directory


def split(config: config_lib.Config) -> dict[str, str]:
    """The JSON texts that a config is cut into, by the names of `PARTS`."""
    values = config_lib.to_dict(config)
    return {part: json.dumps({name: values[name] for name in names}) for part, names in PARTS.items()}


def join(texts: Iterable[str]) -> config_lib.Config:
    """The config of some parts, defaults for the rest. Raises UserError for invalid text or settings."""
    values: dict[str, Any] = {}
    for text in texts:
        values |= read(text, mapping_of(anything), "config: not JSON of sections")
    return config_lib.from_config_dict(values)


def version(config: config_lib.Config) -> str:
    """Returns the version of all that a result depends on: tfnas, its files, and the user's functions and weights.

    A pipeline's engine keys what it caches by arguments, and does not see what is behind them.
    """
    sha = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
    files = sorted(file for file in package.rglob("*") if file.is_file() and file.parent.name != "__pycache__")
    for source in (config.data.source, config.supernet.source, config.loss, config.metric):
        with contextlib.suppress(ImportError, ValueError):  # the stage that calls it tells what is wrong
            spec = importlib.util.find_spec(source.partition(":")[0]) if source else None
            if spec and spec.origin:
                files.append(pathlib.Path(spec.origin))
    files += [path for file in config.supernet.files.values() if (path := pathlib.Path(file)).is_file()]
    for file in files:
        sha.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{provenance.versions()['tfnas']}+{sha.hexdigest()[:12]}"


class Task:
    """One stage at work.

    Attributes:
        stage: its name, or 'check'.
        config: all settings that it depends on.
        path: its working directory.
        version: of the code, as the pipeline's argument says it.
    """

    def __init__(self, stage: str, config: config_lib.Config, path: pathlib.Path, version: str):
        self.stage, self.config, self.path, self.version = stage, config, path, version

    def hand_over(self, folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
        """Copies to `folder` what the stage wrote and the manifest.

        Args:
            folder: made if it is not there.
            names: files or folders of the working directory, in place of all that the stage wrote.
        """
        if names is None:
            names = Workdir(self.path).manifest().stages[self.stage].outputs
        _copy(self.path, pathlib.Path(folder), [*names, stage_table.MANIFEST])

    def hand_over_shard(self, folder: str | os.PathLike[str]) -> None:
        """Copies to `folder` the evaluations that a shard of sample made."""
        _copy(self.path, pathlib.Path(folder), [stage_table.SHARDS])

    def hand_over_model(self, folder: str | os.PathLike[str]) -> str:
        """Copies to `folder` what export wrote under its model's name; returns the version, a folder in there."""
        exported = Workdir(self.path).read_json(stage_table.EXPORT_RESULTS, "report", Exported).saved_model
        source = (self.path / exported).parent
        _copy(source, pathlib.Path(folder), [path.name for path in source.iterdir()])
        return os.path.basename(exported)

    def facts(self) -> dict[str, float | bool]:
        """Returns the measurements of the stage as scalars.

        Raises:
            UserError: if its files are not what it left.
        """
        work = Workdir(self.path)
        if self.stage == "search":
            if not (history := work.read_lines(stage_table.HISTORY, "report", Epoch)):
                return {"epoch": 0}
            last = history[-1]
            return {"epoch": last.epoch, "loss": last.loss, **last.metrics, "kept": last.kept}
        if self.stage == "sample":
            best = work.read_json(stage_table.RANKING, "retrain", Ranked).race.best
            sizes = {"parameters": best.parameters, "multiply_adds": best.multiply_adds}
            return {**sizes, "loss": best.loss, **best.metrics}
        results = work.read_json(stage_table.RESULTS, self.stage, Results)
        chosen, full = results.chosen_row, results.full_row
        facts: dict[str, float | bool] = {
            **chosen.test,
            **{f"validation_{name}": value for name, value in chosen.validation.items()},
            "parameters": chosen.parameters,
            "multiply_adds": chosen.multiply_adds,
            "parameters_of_the_full_network": results.full.parameters,
            "multiply_adds_of_the_full_network": results.full.multiply_adds,
        }
        if full:
            facts |= {f"{name}_of_the_full_network": value for name, value in full.test.items()}
        if self.stage == "evaluate":
            verdict = self.verdict()
            facts |= {check.setting.removeprefix("evaluate."): check.value for check in verdict.checks}
            facts["blessed"] = verdict.blessed
        return facts

    def verdict(self) -> Verdict:
        """Returns the verdict of evaluate."""
        return Workdir(self.path).read_json(stage_table.EVALUATION, "export", Verdict)

    def metadata(self) -> dict[str, Any]:
        """Returns the metadata of every artifact of the stage: digest of its settings, versions and seed."""
        return {
            "config_sha256": stage_table.config_digest(self.config),
            "seed": self.config.seed,
            "code": self.version,
            "versions": provenance.versions(),
        }

    def describe(self, artifact: Any, facts: Mapping[str, Any] | None = None) -> None:
        """Gives a pipeline's artifact the stage's metadata, and what it measured or `facts`."""
        measured = self.facts() if facts is None else facts
        artifact.metadata.update({**self.metadata(), **measured})

    def log_metrics(self, metrics: Any) -> None:
        """Fills a Metrics artifact with what the stage measured, in its metadata and as JSON in its file."""
        facts = {name: float(value) for name, value in self.facts().items() if math.isfinite(value)}
        for name, value in facts.items():
            metrics.log_metric(name, value)
        _write_json(metrics.path, facts)

    def log_confusion(self, confusion: Any, classes: Sequence[str]) -> None:
        """Fills a ClassificationMetrics artifact with retrain's matrix on the test split: a row for each label."""
        matrix = Workdir(self.path).read_json(stage_table.RESULTS, "evaluate", Results).confusion
        confusion.log_confusion_matrix(list(classes), matrix)
        _write_json(confusion.path, {"classes": list(classes), "rows": matrix})

    def write_report(self, path: str | os.PathLike[str], model: str = "") -> None:
        """Copies report.html to `path`, where the exported model's place is given as `model`, and not as here."""
        text = (self.path / stage_table.REPORT).read_text(encoding="utf-8")
        if model:
            saved = Workdir(self.path).read_json(stage_table.EXPORT_RESULTS, "report", Exported).saved_model
            text = text.replace(str((self.path / saved).parent), model)
        _write(path, text)

    def end(self, page: Any, saved_model: str) -> None:
        """Prints the comparison, and describes the report's artifact with what the run ended with.

        Args:
            page: the artifact. Its metadata gets `saved_model`, and the `reasons` for which there is one or none.
            saved_model: where the exported model is; empty if there is none.
        """
        report.print_table(Workdir(self.path), self.config)
        reasons = acceptance.reasons(self.verdict())
        self.describe(page, {**self.facts(), "saved_model": saved_model, "reasons": reasons})


@contextlib.contextmanager
def _redirected() -> Iterator[None]:
    """Redirects what Python code prints to the folder that OUTPUT names, if it names one."""
    with contextlib.ExitStack() as stack:
        if folder := os.environ.get(OUTPUT):
            for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
                file = open(os.path.join(folder, name), "a", buffering=1, encoding="utf-8")
                stack.enter_context(redirect(stack.enter_context(file)))
        yield


@contextlib.contextmanager
def task(
    stage: str,
    parts: Sequence[str],
    inputs: Sequence[str | os.PathLike[str]] = (),
    version: str = "",
    scratch: str = "",
    shard: str = "",
) -> Iterator[Task]:
    """A stage's working directory, while the stage works.

    A user's mistake ends the process with one line, as it ends the command line.

    Args:
        stage: its name, or 'check'.
        parts: JSON of `split` that it depends on.
        inputs: folders that earlier stages handed over, in the order of the run.
        version: of the code.
        scratch: folder that outlives the process. There a stage with the same parts, inputs and version resumes from
            where an earlier one was interrupted; one that still works there is waited for. Without it, the working
            directory is temporary.
        shard: which part of the stage this is; each works in a directory of its own.
    """
    with _redirected(), exit_on_error(scratch or tempfile.gettempdir()):
        print(f"{stage:9s} begins{shard and f' with shard {shard}'}", flush=True)
        for folder in filter(None, os.environ.get(FUNCTIONS, "").split(os.pathsep)):
            user_functions.add_import_folder(folder)
        config = join(parts)
        if stage not in stage_table.WITHOUT_TENSORFLOW:
            terminal.load_tensorflow()
        with _working_directory([stage, version, shard, *parts], inputs, scratch) as path:
            yield Task(stage, config, path, version)


@contextlib.contextmanager
def _working_directory(
    key: Sequence[str], inputs: Sequence[str | os.PathLike[str]], scratch: str
) -> Iterator[pathlib.Path]:
    folders = [pathlib.Path(folder) for folder in inputs]
    if not scratch:
        with tempfile.TemporaryDirectory(prefix=atomic.TEMPORARY) as temporary:
            _gather(folders, pathlib.Path(temporary))
            yield pathlib.Path(temporary)
        return
    material = json.dumps([*key, *(digests.of_file(folder) for folder in folders)])
    place = pathlib.Path(scratch) / f"{key[0]}-{hashlib.sha256(material.encode()).hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    with _alone_in(place):
        if not (place / _READY).exists():
            _gather(folders, place / "run")
            (place / _READY).touch()
        yield place / "run"


@contextlib.contextmanager
def _alone_in(place: pathlib.Path) -> Iterator[None]:
    with open(place / "lock", "w") as lock:
        # On file systems without locks, there is no waiting.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waits for another process that works in {place}", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _gather(folders: Sequence[pathlib.Path], target: pathlib.Path) -> None:
    """Copies the contents of all folders into one; the last one's manifest, which knows of all before it, stays."""
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: a folder that an earlier stage handed over expected, and there is none")
        _copy(folder, target, [path.name for path in folder.iterdir()])


def _copy(source: pathlib.Path, target: pathlib.Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True, copy_function=shutil.copyfile)
        else:
            # Contents only: buckets that are mounted as folders have no modes or times to set.
            shutil.copyfile(source / name, target / name)


def _write_json(path: str | os.PathLike[str], value: Any) -> None:
    _write(path, json.dumps(value, indent=1) + "\n")


def _write(path: str | os.PathLike[str], text: str) -> None:
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
