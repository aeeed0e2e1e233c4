"""Losses and hits of architectures on numbered examples, in a file that grows by one line an evaluation.

What is in the file is never computed again: a run that was killed, a shard of a run on another machine, and a run with
more candidates or other budgets all go on from what they find. A line is a checksum and JSON; the first names what the
evaluations depend on. No TensorFlow.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnas.errors import UserError
from tfnas.reading import MOST, Shape, read, record, text_of, whole

_MOST_EXAMPLES = 2**31
_EVALUATION = record(
    digest=text_of(), start=whole(0, MOST), count=whole(1, _MOST_EXAMPLES), losses=text_of(), hits=text_of()
)


class Evaluations:
    """By architecture, on the examples from the first on.

    Args:
        path: of the file that is read and appended to. One that was begun with another `key` is begun again. A last
            line cut short by a kill is dropped.
        key: names all that an evaluation depends on: the supernet, the data and their order.
        others: further files that are only read, for example those of shards.

    Raises:
        UserError: naming the file, if a line was altered, or one of `others` has another key.
    """

    def __init__(self, path: pathlib.Path, key: str, others: Sequence[pathlib.Path] = ()):
        self.path = path
        self._files: list[Any] = []
        # digest -> number of the first example that was not known before -> (file, offset)
        self._places: dict[bytes, dict[int, tuple[int, int]]] = {}
        self._known: dict[bytes, int] = {}
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.__exit__)
            for other in others:
                if self._open(other) != key:
                    raise UserError(
                        f"{other}: holds evaluations of another run (another supernet, other data or another seed): "
                        "delete it, or put the shards of this run there"
                    )
                self._index(other)
            if not path.exists() or self._open(path, "r+b") != key:
                path.write_text(_line({"key": key}))
                self._open(path, "r+b")
            self._index(path)
            on_error.pop_all()
        self._own = self._files[-1]

    def __enter__(self) -> Evaluations:
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files:
            file.close()

    @property
    def count(self) -> int:
        """Lines that were found and appended, but for those that say nothing new, or leave a gap before them."""
        return sum(map(len, self._places.values()))

    def known(self, digest: str) -> int:
        """On how many examples from the first on an architecture was evaluated, without a gap."""
        return self._known.get(bytes.fromhex(digest), 0)

    def append(self, digest: str, start: int, losses: np.ndarray, hits: np.ndarray) -> None:
        """Writes an evaluation through to the file.

        Args:
            digest: of the architecture.
            start: number of the first example.
            losses: float32, shape (n,).
            hits: bool, shape (n,).
        """
        record = {
            "digest": digest,
            "start": start,
            "count": len(losses),
            "losses": base64.b64encode(losses.astype("<f4").tobytes()).decode(),
            "hits": base64.b64encode(np.packbits(hits).tobytes()).decode(),
        }
        offset = self._own.seek(0, 2)
        self._own.write(_line(record).encode())
        self._own.flush()
        self._note(record, len(self._files) - 1, offset)

    def read(self, digest: str, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Losses, float32, and hits, bool, of the examples [0, stop), which must be known; shape (stop,) each."""
        places = self._places.get(bytes.fromhex(digest), {})
        losses, hits = np.empty(stop, np.float32), np.empty(stop, bool)
        start = 0
        while start < stop:
            file, offset = places[start]
            self._files[file].seek(offset)
            record = json.loads(self._files[file].readline()[9:])
            known = start - record["start"]
            count = min(record["count"] - known, stop - start)
            part = slice(known, known + count)
            losses[start : start + count] = np.frombuffer(base64.b64decode(record["losses"]), "<f4")[part]
            packed = np.frombuffer(base64.b64decode(record["hits"]), np.uint8)
            hits[start : start + count] = np.unpackbits(packed)[part]
            start += count
        return losses, hits

    def _open(self, path: pathlib.Path, mode: str = "rb") -> str | None:
        """The key that a file was begun with; None if its first line is cut short or something else."""
        self._files.append(open(path, mode))
        first = self._files[-1].readline()
        if not first.endswith(b"\n"):
            return None
        return _parsed(first, path, 1, record(key=text_of()))["key"]

    def _index(self, path: pathlib.Path) -> None:
        """Notes where every evaluation of the file that was opened last stands; drops a line cut short."""
        file = self._files[-1]
        number, offset = 1, file.tell()
        for line in iter(file.readline, b""):
            number += 1
            if not line.endswith(b"\n"):
                if file.writable():
                    file.truncate(offset)
                return
            found = _parsed(line, path, number, _EVALUATION)
            if not _is_whole(found):
                raise UserError(f"{_altered(path, number)} (a digest, and a loss and a hit an example, are expected)")
            self._note(found, len(self._files) - 1, offset)
            offset += len(line)

    def _note(self, record: dict[str, Any], file: int, offset: int) -> None:
        digest = bytes.fromhex(record["digest"])
        known = self._known.get(digest, 0)
        # Files that several machines wrote may overlap.
        if record["start"] <= known < record["start"] + record["count"]:
            self._places.setdefault(digest, {})[known] = (file, offset)
            self._known[digest] = record["start"] + record["count"]


def _line(record: dict[str, Any]) -> str:
    text = json.dumps(record)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _parsed(line: bytes, path: pathlib.Path, number: int, shape: Shape) -> dict[str, Any]:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum.decode(errors="replace") != f"{zlib.crc32(text):08x}":
        raise UserError(f"{_altered(path, number)} (its checksum differs)")
    return read(text, shape, _altered(path, number))


def _altered(path: pathlib.Path, number: int) -> str:
    return f"{path}: line {number} was altered, delete the file to rank again"


def _is_whole(evaluation: Mapping[str, Any]) -> bool:
    """Whether the digest is one, and there are a loss and a hit for each example."""
    try:
        bytes.fromhex(evaluation["digest"])
        losses, hits = (base64.b64decode(evaluation[name], validate=True) for name in ("losses", "hits"))
    except ValueError:
        return False
    return len(losses) == 4 * evaluation["count"] and len(hits) == math.ceil(evaluation["count"] / 8)
