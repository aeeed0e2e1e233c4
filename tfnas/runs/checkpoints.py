"""Checkpoints of a training: written beside it, the last few kept, one that is damaged skipped."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from tfnas.common.errors import UserError
from tfnas.common.terminal import console
from tfnas.runs.workdir import Workdir

# What a zip file raises that is truncated or altered somewhere; RuntimeError where it then seems to be encrypted.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state from which a training resumes.

    Attributes:
        step: optimizer steps taken.
        arrays: values of the model's and the optimizer's variables, in their order.
        record: whatever else, as JSON holds it; floats keep every bit.
    """

    step: int
    arrays: Sequence[np.ndarray]
    record: Any


class Checkpoints:
    """The checkpoints of one training, in a folder of the working directory, as `.npz` files without pickle.

    As a context manager it waits, at the end, until the last one is on disk.

    Args:
        workdir: where the folder is; written to only by the process that may.
        folder: its name there.
        key: identifies the run; checkpoints with another key are another run's.
        keep: how many of the last are kept, at least 1.
    """

    def __init__(self, workdir: Workdir, folder: str, key: str, keep: int = 3):
        self._workdir, self._folder, self._key, self._keep = workdir, folder, key, keep
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.wait()

    def latest(self) -> Checkpoint | None:
        """The newest that can be read; None if there is none of this run, and what another left is then deleted.

        Raises:
            UserError: if there are some and not one can be read.
        """
        damaged = []
        for file in reversed(self._files()):
            try:
                found = _read(file, self._key)
            except _DAMAGE as e:
                damaged.append(f"{file}: truncated or altered ({e})")
                continue
            if found is not None:
                for text in damaged:
                    console.print(f"warning: {text}: skipped, the checkpoint before it is used")
                return found
        if damaged:
            raise UserError(
                f"{damaged[0]}, and no checkpoint before it can be used: delete {self._workdir.path / self._folder} to "
                "start this training again"
            )
        for file in self._files():
            self._workdir.remove(file)
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the background, once the one before is safe; raises what befell that one."""
        self.wait()
        self._pending = self._writer.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises what befell it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, checkpoint: Checkpoint) -> None:
        name = f"{self._folder}/step-{checkpoint.step:09d}.npz"
        self._workdir.write(name, lambda path: _save(path, self._key, checkpoint))
        for file in self._files()[: -self._keep]:
            self._workdir.remove(file)

    def _files(self) -> list[pathlib.Path]:
        """In the order of their steps."""
        files = (self._workdir.path / self._folder).glob("step-*.npz")
        return sorted(file for file in files if re.fullmatch(r"step-\d{9,}\.npz", file.name))


def _save(path: pathlib.Path, key: str, checkpoint: Checkpoint) -> None:
    arrays: dict[str, Any] = {f"v{i}": array for i, array in enumerate(checkpoint.arrays)}
    about = {"key": key, "step": checkpoint.step, "arrays": len(arrays), "record": checkpoint.record}
    with open(path, "wb") as stream:
        np.savez(stream, about=np.array(json.dumps(about)), **arrays)


def _read(path: pathlib.Path, key: str) -> Checkpoint | None:
    """None if it is another run's. Every member's CRC is checked here."""
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        about = json.loads(str(archive["about"]))
        if about["key"] != key:
            return None
        return Checkpoint(about["step"], [archive[f"v{i}"] for i in range(about["arrays"])], about["record"])
