"""The files of one run: names, atomic writing, and a manifest that knows what is whole and up to date.

The manifest (`manifest.json`) records, for every finished stage, a key (digest of the settings it depends on and of
its input files) and the digest of each output. A stage whose key and outputs still match is skipped; an input that no
longer has the digest its writer recorded is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tfnas.config
from tfnas.errors import UserError, shown, unwrapped
from tfnas.reading import Shape, mapping_of, optional, read, record, text_of, whole

MANIFEST = "manifest.json"
CHECKPOINTS = "search/checkpoints"
WARMUP_CHECKPOINTS = "search/warmup_checkpoints"
HISTORY = "search/history.jsonl"
SUPERNET = "search/supernet.keras"
POSTERIOR = "posterior.json"
EVALUATIONS = "sample/evaluations.jsonl"
SHARDS = "sample/shards"
LATENCIES = "sample/latencies.json"
CANDIDATES = "sample/candidates.jsonl"
RANKING = "sample/ranking.json"
FRONT = "sample/front.json"
FRONT_PLOT = "sample/front.png"
ARCHITECTURE = "architecture.json"
CUT_ARCHITECTURE = "retrain/architecture.json"
SUBNET = "retrain/subnet.keras"
RESULTS = "retrain/results.json"
EVALUATION = "evaluation.json"
EXPORT_RESULTS = "export/results.json"
REPORT = "report.html"


def _settings(value: Any, place: str) -> None:
    if isinstance(value, Mapping):  # whose keys are then shown
        mapping_of(_settings)(value, place)


_MANIFEST = record(
    versions=mapping_of(text_of()),
    seed=whole(),
    config=optional(mapping_of(_settings)),
    stages=mapping_of(record(key=text_of(), outputs=mapping_of(text_of()))),
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage depends on and what it writes.

    Attributes:
        sections: settings that change its result.
        inputs: files of earlier stages.
        outputs: files it writes, besides those it names when it ends.
        optional: files that earlier stages name when they end with some settings, and it then reads too.
    """

    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()


# In the order of the run.
STAGES = {
    "search": Stage(("data", "supernet", "search", "training", "seed"), (), (SUPERNET, HISTORY, POSTERIOR)),
    "sample": Stage(("data", "sample", "seed"), (SUPERNET, POSTERIOR), (CANDIDATES, RANKING, ARCHITECTURE)),
    "retrain": Stage(
        ("data", "supernet", "search", "retrain", "training", "seed"),
        (SUPERNET, RANKING, ARCHITECTURE),
        (CUT_ARCHITECTURE, SUBNET, RESULTS),
    ),
    "evaluate": Stage(("evaluate",), (RESULTS,), (EVALUATION,)),
    # The model card tells of all that made the network, so each setting of it counts.
    "export": Stage(
        ("data", "supernet", "search", "sample", "retrain", "training", "evaluate", "export", "seed"),
        (SUBNET, CUT_ARCHITECTURE, RESULTS, EVALUATION, SUPERNET, POSTERIOR, RANKING),
        (EXPORT_RESULTS,),
    ),
    "report": Stage(
        ("data", "supernet", "search", "sample", "retrain", "training", "evaluate", "export", "seed"),
        (HISTORY, POSTERIOR, CANDIDATES, RANKING, ARCHITECTURE, RESULTS, EVALUATION),
        (REPORT,),
        (FRONT, EXPORT_RESULTS),
    ),
}
WITHOUT_TENSORFLOW = ("evaluate", "report")  # stages that need not wait for its import
# What a search is: with another value of any of these, the results in a working directory are another run's.
# Where the data lies is not part of it, nor what is made of a search that leads nowhere, nor how fast and how safely it
# is run: a run may be continued on other devices (`distribution` is in no stage's sections).
_NEUTRAL = (
    "data.data_dir",
    "search.guard",
    "training.jit_compile",
    "training.checkpoint_minutes",
    "training.checkpoints_kept",
)
TEMPORARY = ".tfnas-"  # how the name begins of what is not whole yet
_UNFINISHED = (f"{TEMPORARY}*", *(f"{stage}/**/{TEMPORARY}*" for stage in STAGES), "tensorflow_datasets/*/incomplete.*")


class Workdir:
    """One run's folder, without what a killed process left unfinished in it.

    Raises UserError where it cannot be made or written.


    Args:
        path: the folder.
        writes: False in the processes of a cluster that train along, and leave the files to the chief: what they
            write, they delete again.
    """

    def __init__(self, path: str | os.PathLike[str], writes: bool = True):
        self.path = pathlib.Path(path)
        self.writes = writes
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(f"workdir {self.path}: cannot be written ({error.strerror})") from None
        self._tidy()

    def _tidy(self) -> None:
        """Removes unfinished files, unless another process, a shard perhaps, may be writing them."""
        folder = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, folder)
        # Every process holds the folder's lock, which the system gives back however it ends. Some file systems lock no
        # folders: there nothing is removed.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                for left in [path for pattern in _UNFINISHED for path in self.path.glob(pattern)]:
                    if left.is_dir():
                        shutil.rmtree(left)
                    else:
                        left.unlink(missing_ok=True)
            fcntl.flock(folder, fcntl.LOCK_SH)

    def file(self, name: str) -> pathlib.Path:
        """Path of `name`, its folder made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, writer: Callable[[pathlib.Path], object]) -> pathlib.Path:
        """Lets `writer` fill a temporary file beside `name`, then renames it: readers see the old or the new, whole.

        Raises OSError, naming `name`, for a disk that is full or cannot be written; the old file stays.
        """
        target = self.file(name)
        if not self.writes:
            # Not nothing at all: what a model's saving asks of the devices, all processes must ask together.
            with tempfile.TemporaryDirectory() as folder:
                writer(pathlib.Path(folder) / target.name)
            return target
        # The suffix stays, because Keras chooses a format by it.
        temporary = target.with_name(f"{TEMPORARY}{os.getpid()}.{target.name}")
        try:
            writer(temporary)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except OSError as error:
            # A stream's error has no name, and nobody knows the temporary one.
            if error.errno is not None and error.filename in (None, str(temporary)):
                error.filename, error.filename2 = str(target), None
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def remove(self, path: pathlib.Path) -> None:
        """Deletes a file of this folder, if it is there."""
        if self.writes:
            path.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> pathlib.Path:
        """Atomically writes `value` as JSON; keys keep their order."""
        return self.write(name, lambda path: path.write_text(json.dumps(value, indent=1) + "\n"))

    def write_sealed(self, name: str, value: Mapping[str, Any]) -> pathlib.Path:
        """Writes `value` as JSON with its digest: of files that no manifest has the digest of."""
        return self.write_json(name, {**value, "sha256": _seal(value)})

    def read_sealed(self, name: str, shape: Shape) -> dict[str, Any]:
        """What `write_sealed` wrote, of a shape. Raises UserError if that was truncated or altered since."""
        path = self.path / name
        title = f"{path}: truncated or altered: delete it, and 'tfnas run' makes it again from the others"
        try:
            value = read(path.read_bytes(), shape, title)
        except OSError as error:
            raise UserError(f"{title} ({error.strerror})") from None
        if value.pop("sha256", None) != _seal(value):
            raise UserError(title)
        return value

    def read(self, name: str, stage: str) -> pathlib.Path:
        """Path of a file that `stage` needs, known to be what its writer left. Raises UserError otherwise."""
        path = self.path / name
        recorded_by = {stage: record["outputs"] for stage, record in self.manifest()["stages"].items()}
        writer = next(s for s, spec in STAGES.items() if name in (*spec.outputs, *recorded_by.get(s, ())))
        recorded = recorded_by.get(writer, {}).get(name)
        if recorded is None or not path.exists():
            raise UserError(
                f"{stage} needs {writer}'s {name}, and {self.path} has none: "
                f"run 'tfnas {writer} --config=... --workdir={self.path}' first"
            )
        if digest(path) != recorded:
            raise UserError(
                f"{path}: truncated or changed since {writer} wrote it (sha256 {digest(path)[:12]}, expected "
                f"{recorded[:12]}): run 'tfnas {writer} --config=... --workdir={self.path}' to make it again"
            )
        return path

    def read_json(self, name: str, stage: str, shape: Shape) -> Any:
        """Content of a JSON file that `stage` needs; the same checks as `read`, and that of its shape."""
        path = self.read(name, stage)
        return read(path.read_bytes(), shape, f"{path}: altered")

    def read_lines(self, name: str, stage: str, shape: Shape) -> list[Any]:
        """Content of a file with JSON on every line; the same checks as `read`, and that of each line's shape."""
        path = self.read(name, stage)
        lines = path.read_bytes().splitlines()
        return [read(line, shape, f"{path}: line {i} was altered") for i, line in enumerate(lines, 1)]

    def has(self, name: str) -> bool:
        """Whether a stage recorded a file when it last ended; if not, one of that name is an earlier run's."""
        return any(name in record["outputs"] for record in self.manifest()["stages"].values())

    def manifest(self) -> dict[str, Any]:
        """What is known of this folder; empty for a new one."""
        if not (self.path / MANIFEST).exists():
            return {"config": None, "stages": {}}
        manifest = self.read_sealed(MANIFEST, _MANIFEST)
        for stage, entry in manifest["stages"].items():
            for name in entry["outputs"]:
                # They are opened to see whether they are still as they were left.
                if os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
                    raise UserError(
                        f"{self.path / MANIFEST}: '{stage}' is to have written {shown(name)}, outside of this "
                        "folder: delete the file, and 'tfnas run' makes it again"
                    )
        return manifest

    def claim(self, config: tfnas.config.Config) -> None:
        """Makes this folder `config`'s. Raises UserError if it holds another search's results, or part of them."""
        manifest = self.manifest()
        mine = json.loads(json.dumps(tfnas.config.to_dict(config.check())))
        held = manifest["config"]
        # Before anything is there, a mistake in the settings may be mended.
        begun = manifest["stages"] or any((self.path / CHECKPOINTS).glob("*.npz"))
        if held is not None and begun:
            for section in STAGES["search"].sections:
                for key, theirs, ours in _differences(section, held.get(section), mine[section]):
                    if key in _NEUTRAL:
                        continue
                    raise UserError(
                        f"workdir {self.path}: holds a search with {key}={shown(theirs)}, and this config has "
                        f"{shown(ours)}: use another --workdir, or delete this one"
                    )
        if held != mine:
            self.write_sealed(MANIFEST, {**manifest, "config": mine, "versions": versions(), "seed": config.seed})

    def key(self, stage: str, config: tfnas.config.Config) -> str:
        """Digest of what a stage depends on: its settings and the contents of its input files."""
        material = {
            "settings": settings(config, STAGES[stage].sections),
            "inputs": {name: digest(self.path / name) for name in self._read_by(stage) if (self.path / name).exists()},
        }
        return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()

    def is_current(self, stage: str, config: tfnas.config.Config) -> bool:
        """Whether `stage` ended with these settings and inputs, and all that it wrote is still as it left it."""
        record = self.manifest()["stages"].get(stage)
        return (
            record is not None
            and record["key"] == self.key(stage, config)
            and all(
                (self.path / name).exists() and digest(self.path / name) == recorded
                for name, recorded in record["outputs"].items()
            )
        )

    def up_to_date(self, config: tfnas.config.Config) -> list[str]:
        """The stages, from the first on, that a run skips: those after one that runs again may read other files."""
        return list(itertools.takewhile(lambda stage: self.is_current(stage, config), STAGES))

    def run_stage(self, stage: str, config: tfnas.config.Config, body: Callable[[], Iterable[str] | None]) -> bool:
        """Runs `body` unless the stage is up to date, then records its outputs and those that `body` returns.

        Returns:
            Whether it ran.

        Raises:
            UserError: if this folder is another search's, or an input is missing or not what its writer left.
        """
        self.claim(config)
        for name in self._read_by(stage):
            self.read(name, stage)
        if self.is_current(stage, config):
            print(f"{stage:9s} up to date")
            return False
        key = self.key(stage, config)
        start = time.monotonic()
        with unwrapped():
            further = body() or ()
        if not self.writes:
            return True
        manifest = self.manifest()
        manifest["stages"][stage] = {
            "key": key,
            "outputs": {name: digest(self.path / name) for name in (*STAGES[stage].outputs, *further)},
            "seconds": round(time.monotonic() - start, 1),
        }
        self.write_sealed(MANIFEST, manifest)
        return True

    def _read_by(self, stage: str) -> list[str]:
        spec = STAGES[stage]
        return [*spec.inputs, *(name for name in spec.optional if self.has(name))]


def settings(config: tfnas.config.Config, sections: Iterable[str]) -> dict[str, Any]:
    """Those of some sections that change a result."""
    values = tfnas.config.to_dict(config.check())
    for name in _NEUTRAL:
        section, key = name.split(".")
        values[section].pop(key)
    return {name: values[name] for name in sections}


def config_digest(config: tfnas.config.Config) -> str:
    """Hex SHA-256 of every setting that changes a result of a run."""
    return _seal(settings(config, STAGES["report"].sections))


def digest(path: pathlib.Path) -> str:
    """Hex SHA-256 of a file, or of a folder's file names and contents.

    Raises:
        UserError: if it is neither, as a pipe, of which there may be no end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: a file or a folder expected. Received: neither; delete it")
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            sha.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                sha.update(block)
    return sha.hexdigest()


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("tfnas", "tensorflow", "keras", "tensorflow-probability", "tensorflow-datasets", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _differences(key: str, theirs: Any, mine: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for name in sorted(set(theirs) | set(mine)):
            yield from _differences(f"{key}.{name}", theirs.get(name), mine.get(name))
    elif theirs != mine:
        yield key, theirs, mine
