"""The files of one run: names, atomic writing, and a manifest that knows what is whole and up to date.

The manifest (`manifest.json`) records, for every finished stage, a key (digest of the settings it depends on and of
its input files) and the digest of each output. A stage whose key and outputs still match is skipped; an input that no
longer has the digest its writer recorded is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tfnas.config
from tfnas.errors import UserError

CHECKPOINT = "search/checkpoint.npz"
HISTORY = "search/history.jsonl"
SUPERNET = "search/supernet.keras"
POSTERIOR = "posterior.json"
CANDIDATES = "sample/candidates.jsonl"
RANKING = "sample/ranking.json"
ARCHITECTURE = "architecture.json"
SUBNET = "retrain/subnet.keras"
RESULTS = "retrain/results.json"
EXPORT_RESULTS = "export/results.json"
REPORT = "report.html"

_WRITER = {
    SUPERNET: "search",
    HISTORY: "search",
    POSTERIOR: "search",
    CANDIDATES: "sample",
    RANKING: "sample",
    ARCHITECTURE: "sample",
    SUBNET: "retrain",
    RESULTS: "retrain",
    EXPORT_RESULTS: "export",
    REPORT: "report",
}
# What a search is: with another value of any of these, the results in a working directory are another run's.
_SEARCH_SECTIONS = ("data", "supernet", "search", "seed")


class Workdir:
    """One run's folder. Raises UserError where it cannot be made or written."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(f"workdir {self.path}: cannot be written ({error.strerror})") from None

    def file(self, name: str) -> pathlib.Path:
        """Path of `name`, its folder made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, writer: Callable[[pathlib.Path], None]) -> pathlib.Path:
        """Lets `writer` fill a temporary file beside `name`, then renames it: readers see the old or the new, whole."""
        target = self.file(name)
        # The suffix stays, because Keras chooses a format by it.
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            writer(temporary)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def write_json(self, name: str, value: Any) -> pathlib.Path:
        """Atomically writes `value` as JSON; keys keep their order."""
        return self.write(name, lambda path: path.write_text(json.dumps(value, indent=1) + "\n"))

    def read(self, name: str, stage: str) -> pathlib.Path:
        """Path of a file that `stage` needs, known to be what its writer left. Raises UserError otherwise."""
        path = self.path / name
        writer = _WRITER[name]
        recorded = self.manifest()["stages"].get(writer, {}).get("outputs", {}).get(name)
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

    def read_json(self, name: str, stage: str) -> Any:
        """Content of a JSON file that `stage` needs; the same checks as `read`."""
        return json.loads(self.read(name, stage).read_text())

    def manifest(self) -> dict[str, Any]:
        """What is known of this folder; empty for a new one."""
        path = self.path / "manifest.json"
        if not path.exists():
            return {"config": None, "stages": {}}
        try:
            manifest = json.loads(path.read_text())
            return {**manifest, "stages": dict(manifest["stages"])}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: truncated or not a manifest of tfnas; use a new --workdir") from None

    def claim(self, config: tfnas.config.Config) -> None:
        """Makes this folder `config`'s. Raises UserError if it holds another search's results."""
        manifest = self.manifest()
        mine = json.loads(json.dumps(tfnas.config.to_dict(config)))
        held = manifest["config"]
        if held is not None:
            for section in _SEARCH_SECTIONS:
                for key, theirs, ours in _differences(section, held.get(section), mine[section]):
                    raise UserError(
                        f"workdir {self.path}: holds a search with {key}={theirs!r}, and this config has {ours!r}: "
                        "use another --workdir, or delete this one"
                    )
        if held != mine:
            self.write_json("manifest.json", {**manifest, "config": mine, "versions": versions(), "seed": config.seed})

    def key(self, config: tfnas.config.Config, sections: Sequence[str], inputs: Sequence[str]) -> str:
        """Digest of what a stage depends on: settings of `sections` and contents of the files `inputs`."""
        values = tfnas.config.to_dict(config)
        material = {
            "settings": {name: values[name] for name in sections},
            "inputs": {name: digest(self.path / name) for name in inputs if (self.path / name).exists()},
        }
        return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()

    def is_current(self, stage: str, key: str) -> bool:
        """Whether `stage` ended with this key and all that it wrote is still as it left it."""
        record = self.manifest()["stages"].get(stage)
        return (
            record is not None
            and record["key"] == key
            and all(
                (self.path / name).exists() and digest(self.path / name) == recorded
                for name, recorded in record["outputs"].items()
            )
        )

    def record(self, stage: str, key: str, outputs: Sequence[str], seconds: float) -> None:
        """Notes that `stage` is done; its outputs' digests are taken now."""
        manifest = self.manifest()
        manifest["stages"][stage] = {
            "key": key,
            "outputs": {name: digest(self.path / name) for name in outputs},
            "seconds": round(seconds, 1),
        }
        self.write_json("manifest.json", manifest)


def digest(path: pathlib.Path) -> str:
    """Hex SHA-256 of a file, or of a folder's file names and contents."""
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            sha.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                sha.update(block)
    return sha.hexdigest()


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
