"""Results of a shrinking in its working directory: each phase's result, under a key of all it depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from tfnas.common import digests
from tfnas.common.errors import UserError
from tfnas.common.schema import to_json
from tfnas.runs import stage_table
from tfnas.runs.checkpoints import Checkpoint, Checkpoints
from tfnas.runs.workdir import Workdir

T = TypeVar("T")
_KEPT = 2  # checkpoints of a training


@dataclasses.dataclass(frozen=True)
class _Result:
    """A file of a phase."""

    key: str
    value: Any


class Phases:
    """Results of phases; without a folder nothing is kept.

    Args:
        workdir: the folder, or None.
    """

    def __init__(self, workdir: Workdir | None):
        self._workdir = workdir

    def json(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` gives, as JSON holds it, once for each key."""
        if self._workdir is None:
            return json.loads(to_json(make()))
        file = f"{name}.json"
        if (self._workdir.path / file).exists():
            found = self._workdir.read_sealed(file, _Result)
            if found.key == key:
                return found.value
        value = json.loads(to_json(make()))
        self._workdir.write_sealed(file, _Result(key, value))
        return value

    def arrays(self, name: str, key: str, make: Callable[[], tuple[Sequence[np.ndarray], Any]]) -> tuple[Any, Any]:
        """Arrays and a record that `make` gives, once for each key."""
        checkpoints = self.checkpoints(name, key)
        if checkpoints is None:
            return make()
        with checkpoints:
            found = checkpoints.latest()
            if found is None:
                found = Checkpoint(0, *make())
                checkpoints.save(found)
        return found.arrays, found.record

    def checkpoints(self, name: str, key: str) -> Checkpoints | None:
        """Checkpoints of a training; None without a folder."""
        return None if self._workdir is None else Checkpoints(self._workdir, name, key, _KEPT)


@contextlib.contextmanager
def opened(workdir: str | os.PathLike[str] | None) -> Iterator[Phases]:
    """The phases of a working directory, which other processes are kept out of. Raises UserError if it is a run's."""
    if workdir is None:
        yield Phases(None)
        return
    work = Workdir(workdir)
    if (work.path / stage_table.MANIFEST).exists():
        raise UserError(f"shrink: workdir must not be that of a run of the command line. Received: {work.path}")
    with work.hold():
        yield Phases(work)


def key(**depends: Any) -> str:
    """Digest of what a phase depends on: JSON, arrays, and structures of them; of anything else, its `repr`."""
    return digests.of_value(_plain(depends))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return _plain(keras.saving.serialize_keras_object(value))
    except Exception:  # a user's class without a config
        return f"{type(value).__module__}.{type(value).__qualname__}"
