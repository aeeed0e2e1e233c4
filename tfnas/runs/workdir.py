"""The working directory of a run: atomic writing, and a manifest that knows what is whole and up to date.

A stage whose settings, inputs and outputs are as the manifest has them is skipped. A stage is refused while one before
it did not run with the settings of this config, or ran on other files than are there now; and so is an input that no
longer has the digest that its writer recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import tfnas.config
from tfnas.common import atomic, digests
from tfnas.common.atomic import SET_ASIDE, TEMPORARY
from tfnas.common.errors import UserError, brief, unwrap_user_errors
from tfnas.common.schema import read, to_json
from tfnas.runs import holding, provenance, stage_table
from tfnas.runs.manifest import Begun, Finished, Manifest
from tfnas.runs.stage_table import CHECKPOINTS, MANIFEST, NEUTRAL, STAGES, WRITERS

T = TypeVar("T")
_UNFINISHED = (f"{TEMPORARY}*", *(f"{stage}/**/{TEMPORARY}*" for stage in STAGES), "tensorflow_datasets/*/incomplete.*")
_SEAL = "sha256"  # key of a sealed file's own digest
_SET_ASIDE = f"export/**/{SET_ASIDE}*"


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
        """Removes unfinished files, unless another process, a shard perhaps, may be writing them.

        A folder that was set aside for one that then did not take its place returns to it.
        """
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
                for before in [*self.path.glob(_SET_ASIDE)]:
                    atomic.restore(before)
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

    def write(self, name: str, writer: Callable[[pathlib.Path], object], replace: bool = True) -> pathlib.Path:
        """Lets `writer` fill a temporary file beside `name`, then renames it: readers see the old or the new, whole.

        Without `replace`, a file that is there by then stays: of several processes the first one's.

        Raises OSError, naming `name`, for a disk that is full or cannot be written; the old file stays.
        """
        target = self.file(name)
        if not self.writes:
            # Not nothing at all: what a model's saving asks of the devices, all processes must ask together.
            with tempfile.TemporaryDirectory() as folder:
                writer(pathlib.Path(folder) / target.name)
            return target
        atomic.write(target, writer, self.path, replace)
        return target

    def remove(self, path: pathlib.Path) -> None:
        """Deletes a file of this folder, if it is there."""
        if self.writes:
            path.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any, replace: bool = True) -> pathlib.Path:
        """Writes `value` as JSON, as `write` does; keys keep their order."""
        return self.write(name, lambda path: path.write_text(to_json(value, 1) + "\n"), replace)

    def write_lines(self, name: str, values: Iterable[Any]) -> pathlib.Path:
        """Writes each of `values` as JSON on a line of its own, as `write` does."""
        text = "".join(f"{to_json(value)}\n" for value in values)
        return self.write(name, lambda path: path.write_text(text))

    def write_sealed(self, name: str, record: Any, replace: bool = True) -> pathlib.Path:
        """Writes a record as JSON with its digest: for files whose digest no manifest has."""
        value = json.loads(to_json(record))
        return self.write_json(name, {**value, _SEAL: digests.of_value(value)}, replace)

    def read_sealed(self, name: str, kind: type[T]) -> T:
        """The record that `write_sealed` wrote. Raises UserError if the file was truncated or altered since."""
        path = self.path / name
        title = f"{path}: truncated or altered: delete it, and 'tfnas run' makes it again from the others"
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"{title} ({error.strerror})") from None
        record = read(text, kind, title)
        value = json.loads(text)
        if value.pop(_SEAL, None) != digests.of_value(value):
            raise UserError(title)
        return record

    def read(self, name: str, stage: str) -> pathlib.Path:
        """Path of a file that `stage` needs, known to be what its writer left. Raises UserError otherwise."""
        path = self.path / name
        writer = WRITERS[name]
        recorded = _recorded(self.manifest().stages, [name]).get(name)
        if recorded is None or not path.exists():
            raise UserError(f"{stage} needs {writer}'s {name}, and {self.path} has none: {self._command(writer)} first")
        if digests.of_file(path) != recorded:
            raise UserError(
                f"{path}: truncated or changed since {writer} wrote it (sha256 {digests.of_file(path)[:12]}, expected "
                f"{recorded[:12]}): {self._command(writer)} to make it again"
            )
        return path

    def read_json(self, name: str, stage: str, kind: type[T]) -> T:
        """The record in a JSON file that `stage` needs. Raises UserError as `read`, or if it is another."""
        path = self.read(name, stage)
        return read(path.read_bytes(), kind, f"{path}: altered")

    def read_lines(self, name: str, stage: str, kind: type[T]) -> list[T]:
        """The records in a file with JSON on every line that `stage` needs. Raises UserError as `read_json`."""
        path = self.read(name, stage)
        lines = path.read_bytes().splitlines()
        return [read(line, kind, f"{path}: line {i} was altered") for i, line in enumerate(lines, 1)]

    def has(self, name: str, config: tfnas.config.Config) -> bool:
        """Whether a stage recorded a file when it last ended, with these settings; else it is an earlier run's."""
        writer = WRITERS[name]
        if self._stale((*stage_table.before(writer), writer), config):
            return False
        return bool(_recorded(self.manifest().stages, [name]))

    def manifest(self) -> Manifest:
        """Returns the manifest of this folder; an empty one for a new folder."""
        if not (self.path / MANIFEST).exists():
            return Manifest()
        manifest = self.read_sealed(MANIFEST, Manifest)
        for stage, finished in manifest.stages.items():
            for name in finished.outputs:
                # They are opened to see whether they are still as they were left.
                if os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
                    raise UserError(
                        f"{self.path / MANIFEST}: '{stage}' is to have written {brief(name)}, outside of this "
                        "folder: delete the file, and 'tfnas run' makes it again"
                    )
        return manifest

    def claim(self, config: tfnas.config.Config) -> None:
        """Makes this folder `config`'s; only the process that writes. Raises UserError as `check_search`."""
        self.check_search(config)
        manifest, given = self.manifest(), stage_table.every_setting(config)
        if self.writes and manifest.config != given:
            self.write_sealed(MANIFEST, dataclasses.replace(manifest, config=given))

    def check_search(self, config: tfnas.config.Config) -> None:
        """Raises UserError if this folder holds another search's results, or part of them."""
        manifest = self.manifest()
        held, current = manifest.config, stage_table.settings(config, STAGES["search"].settings)
        # While the folder is empty, settings may still be corrected.
        begun = manifest.stages or any((self.path / CHECKPOINTS).glob("*.npz"))
        if held is None or not begun:
            return
        found = [
            difference
            for section, values in current.items()
            for difference in _differences(section, held.get(section), values)
            if difference[0] not in NEUTRAL
        ]
        if not found:
            return
        wanted = stage_table.every_setting(config)
        followed = [stage_table.followed(key, held, wanted) for key, _, _ in found]
        if followed[0] and all(followed):
            name, before, now = followed[0]
            flags = " ".join(f"--config.{key}={brief(stored)}" for key, stored, _ in found)
            raise UserError(
                f"workdir {self.path}: holds a search made for {name}={brief(before)}, and this config has "
                f"{brief(now)}: {flags} keeps that search, or use another --workdir"
            )
        key, stored, given = min(found, key=stage_table.recognized)
        raise UserError(
            f"workdir {self.path}: holds a search with {key}={brief(stored)}, and this config has "
            f"{brief(given)}: use another --workdir, or delete this one"
        )

    def dependencies(self, stage: str, config: tfnas.config.Config) -> dict[str, Any]:
        """`settings` and `inputs` that `stage` has with this config, as `Finished` has them when it ends."""
        return {
            "settings": stage_table.settings(config, STAGES[stage].settings),
            "inputs": {
                **_recorded(self.manifest().stages, self._read_by(stage, config)),
                **self._given(stage, config),
            },
        }

    def key(self, stage: str, config: tfnas.config.Config) -> str:
        """Digest of what a stage depends on."""
        return digests.of_value(self.dependencies(stage, config))

    def check_upstream(self, stage: str, config: tfnas.config.Config) -> None:
        """Raises UserError unless all that `stage` builds on was made with this config and is as it was left.

        The files themselves are asked for only where the stage reads them: others may be on another machine.
        """
        self.check_search(config)
        if stale := self._stale(stage_table.before(stage), config):
            writer, why = stale
            raise UserError(f"{stage} needs {writer}'s results, and {self.path} {why}: {self._command(writer)} first")
        for name in self._read_by(stage, config):
            self.read(name, stage)

    def is_current(self, stage: str, config: tfnas.config.Config) -> bool:
        """Whether `stage` ended with these settings and inputs, and all that it wrote is still as it left it."""
        return self._stale((stage,), config) is None and all(
            (self.path / name).exists() and digests.of_file(self.path / name) == recorded
            for name, recorded in self.manifest().stages[stage].outputs.items()
        )

    def up_to_date(self, config: tfnas.config.Config) -> list[str]:
        """The stages, from the first on, that a run skips: those after one that runs again may read other files."""
        return list(itertools.takewhile(lambda stage: self.is_current(stage, config), STAGES))

    def hold(self, group: str = "") -> contextlib.AbstractContextManager[None]:
        """Keeps other processes out while it lasts, but for those of `group`. Raises UserError as `holding.held`."""
        return holding.held(self.path, group)

    def run_stage(
        self, stage: str, config: tfnas.config.Config, body: Callable[[], Iterable[str] | None], group: str = ""
    ) -> bool:
        """Runs `body` unless the stage is up to date, then records its outputs and those that `body` returns.

        Args:
            stage: its name.
            config: the settings.
            body: does the work.
            group: of the processes that do so together; '' for one that is to be alone in the folder.

        Returns:
            Whether it ran.

        Raises:
            UserError: if another process works in this folder, or it is another search's, or as `check_upstream`.
        """
        with self.hold(group):
            self.claim(config)
            self.check_upstream(stage, config)
            if self.is_current(stage, config):
                print(f"{stage:9s} up to date")
                return False
            depends = self.dependencies(stage, config)
            ran_with = self._begin(stage, digests.of_value(depends))
            start = time.monotonic()
            with unwrap_user_errors():
                further = body() or ()
            if self.writes:
                outputs = {name: digests.of_file(self.path / name) for name in (*STAGES[stage].outputs, *further)}
                seconds = round(time.monotonic() - start, 1)
                finished = Finished(**depends, outputs=outputs, versions=ran_with, seconds=seconds)
                manifest = self.manifest()
                self.write_sealed(MANIFEST, Manifest(manifest.config, {**manifest.stages, stage: finished}))
            return True

    def _begin(self, stage: str, key: str) -> dict[str, str]:
        """Notes that a stage runs; returns the versions it runs with, after those of attempts that were interrupted."""
        manifest, now = self.manifest(), provenance.versions()
        before = manifest.begun
        if before and (before.stage, before.key) == (stage, key):
            now = provenance.then(before.versions, now)
        begun = Begun(stage, key, now)
        if self.writes and before != begun:
            self.write_sealed(MANIFEST, dataclasses.replace(manifest, begun=begun))
        return now

    def _read_by(self, stage: str, config: tfnas.config.Config) -> list[str]:
        spec = STAGES[stage]
        return [*spec.inputs, *(name for name in spec.optional if self.has(name, config))]

    def _given(self, stage: str, config: tfnas.config.Config) -> dict[str, str]:
        """Digests of the user's own files that a stage depends on, by setting.

        A file that is no longer there counts as unchanged, so that what was made from it may be used elsewhere.
        """
        if "supernet" not in STAGES[stage].settings:
            return {}
        before = self.manifest().stages.get(stage)
        found = before.inputs if before else {}
        files = {key: pathlib.Path(file) for key, file in config.supernet.files.items()}
        digest = {key: digests.of_file(file) if file.exists() else found.get(key) for key, file in files.items()}
        return {key: value for key, value in digest.items() if value}

    def _stale(self, names: Iterable[str], config: tfnas.config.Config) -> tuple[str, str] | None:
        """The first of some stages that did not run with these settings and inputs, and what there is; or None."""
        stages = self.manifest().stages
        for stage in names:
            if stage not in stages:
                return stage, "has none"
            current = self.dependencies(stage, config)
            for name, stored, given in _differences("", stages[stage].settings, current["settings"]):
                return stage, f"has those of {name}={brief(stored)}, while this config has {brief(given)}"
            for name, _, _ in _differences("", stages[stage].inputs, current["inputs"]):
                return stage, f"has those of another {name}"
        return None

    def _command(self, stage: str) -> str:
        return f"run 'tfnas {stage} --config=... --workdir={self.path}'"


def _recorded(stages: Mapping[str, Finished], names: Iterable[str]) -> dict[str, str]:
    """Digests of files as their writers recorded them, of those that did."""
    outputs = {name: stages[WRITERS[name]].outputs for name in names if WRITERS[name] in stages}
    return {name: found[name] for name, found in outputs.items() if name in found}


def _differences(key: str, stored: Any, given: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for name in sorted(set(stored) | set(given)):
            yield from _differences(f"{key}.{name}" if key else name, stored.get(name), given.get(name))
    elif stored != given:
        yield key, stored, given
