"""Losses and accuracies of architectures on numbered examples, in a file that grows by one line an evaluation.

What is in the file is never computed again: a run that was killed, a shard of a run on another machine, and a run with
more candidates or other budgets all go on from what they find. A line is a checksum and JSON; the first names what the
evaluations depend on. Several processes may append to one file: each line is one write, while the file is locked. No
TensorFlow.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np

from tfnas.common import atomic, locks
from tfnas.common.errors import UserError
from tfnas.common.schema import mapping_of, read, to_json, whole

_MOST_EXAMPLES = 2**31
_Line = TypeVar("_Line")


@dataclasses.dataclass(frozen=True)
class _Begin:
    """The first line: what the evaluations depend on."""

    key: str


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """Each further line: the figures of an architecture on `count` examples from number `start` on, encoded."""

    digest: str
    start: int
    count: Annotated[int, whole(1, _MOST_EXAMPLES)]
    figures: Annotated[dict[str, str], mapping_of(str, 1)]


class Evaluations:
    """By architecture, on the examples from the first on.

    Args:
        path: of the file that is read and appended to. One that was begun with another `key` is replaced by a new one:
            a process that still appends to the old one keeps that to itself. A last line cut short by a kill is
            dropped.
        key: names all that an evaluation depends on: the supernet, the data and their order.
        others: further files that are only read, for example those of shards.

    Raises:
        UserError: naming the file, if a line was altered, or one of `others` has another key.
    """

    def __init__(self, path: pathlib.Path, key: str, others: Sequence[pathlib.Path] = ()):
        self.path = path
        self._files: list[Any] = []
        # digest -> number of the first example that was not known before -> (file, offset, bytes of the line)
        self._places: dict[bytes, dict[int, tuple[int, int, int]]] = {}
        self._known: dict[bytes, int] = {}
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.__exit__)
            for other in others:
                self._files.append(open(other, "rb"))
                if _key(self._files[-1], other) != key:
                    raise UserError(
                        f"{other}: holds evaluations of another run (another supernet, other data or another seed): "
                        "delete it, or put the shards of this run there"
                    )
                self._index(other)
            while not self._open_own(key):
                pass
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

    def append(self, digest: str, start: int, figures: Mapping[str, np.ndarray]) -> None:
        """Writes an evaluation through to the file.

        Args:
            digest: of the architecture.
            start: number of the first example.
            figures: of each example, by name, such as 'loss' and 'accuracy'; float32, shape (n,) each.
        """
        encoded = {name: _encoded(values) for name, values in figures.items()}
        evaluation = _Evaluation(digest, start, len(next(iter(figures.values()))), encoded)
        line = _line(evaluation).encode()
        with locks.exclusive(self._own.fileno()) as locked:
            offset = _append(self._own.fileno(), line, locked)
        self._note(evaluation, len(self._files) - 1, offset, len(line))

    def read(self, digest: str, stop: int) -> dict[str, np.ndarray]:
        """Figures that all examples in [0, stop) have, which must be known, by name; float32, shape (stop,) each."""
        places = self._places.get(bytes.fromhex(digest), {})
        figures: dict[str, list[np.ndarray]] = {}
        start = 0
        while start < stop:
            file, offset, size = places[start]
            # Not through the stream's buffer, which may be of before another process appended.
            # Its schema was checked when it was indexed, or it was written since.
            found = json.loads(os.pread(self._files[file].fileno(), size, offset)[9:])
            known = start - found["start"]
            count = min(found["count"] - known, stop - start)
            for name, text in found["figures"].items():
                figures.setdefault(name, []).append(_decoded(text, found["count"])[known : known + count])
            start += count
        joined = {name: np.concatenate(parts) for name, parts in figures.items()}
        return {name: values for name, values in joined.items() if len(values) == stop}

    def _open_own(self, key: str) -> bool:
        """Opens the file that is appended to, begun with `key`; whether it is still the one that lies at `path`."""
        # Unbuffered, so that a line is one write, at the file's end whoever else writes.
        stream = open(self.path, "a+b", buffering=0)
        with contextlib.ExitStack() as on_error:
            on_error.callback(stream.close)
            with locks.exclusive(stream.fileno()):
                if not locks.is_same_file(stream.fileno(), self.path):  # replaced between its opening and its lock
                    return False
                with open(self.path, "rb") as reader:
                    found = _key(reader, self.path)
                if found is not None and found != key:
                    atomic.write(self.path, lambda file: file.write_text(_line(_Begin(key))), self.path.parent)
                    return False
                if found is None:
                    stream.truncate(0)
                    _append(stream.fileno(), _line(_Begin(key)).encode(), True)
                self._files.append(stream)
                self._index(self.path, stream)
            on_error.pop_all()
        return True

    def _index(self, path: pathlib.Path, own: Any = None) -> None:
        """Notes where every evaluation of the file that was opened last stands; drops a line of `own` cut short."""
        with open(path, "rb") as file:
            offset = len(file.readline())
            for number, line in enumerate(iter(file.readline, b""), 2):
                if not line.endswith(b"\n"):
                    if own:
                        own.truncate(offset)
                    return
                found = _parsed(line, path, number, _Evaluation)
                if not _is_whole(found):
                    raise UserError(f"{_altered(path, number)} (a digest, and figures of each example, are expected)")
                self._note(found, len(self._files) - 1, offset, len(line))
                offset += len(line)

    def _note(self, evaluation: _Evaluation, file: int, offset: int, size: int) -> None:
        digest = bytes.fromhex(evaluation.digest)
        known, end = self._known.get(digest, 0), evaluation.start + evaluation.count
        # Files that several machines wrote may overlap.
        if evaluation.start <= known < end:
            self._places.setdefault(digest, {})[known] = (file, offset, size)
            self._known[digest] = end


def _key(file: Any, path: pathlib.Path) -> str | None:
    """The key that a file was begun with; None if its first line is cut short or there is none."""
    first = file.readline()
    if not first.endswith(b"\n"):
        return None
    return _parsed(first, path, 1, _Begin).key


def _append(file: int, line: bytes, alone: bool) -> int:
    """Writes a line at the end, and returns where it begins; a disk that is full leaves the file as it was.

    Args:
        file: descriptor, opened to append.
        line: ends with a newline.
        alone: no other process writes meanwhile, so that what is cut short may be removed.
    """
    end = os.fstat(file).st_size
    if alone and end and os.pread(file, 1, end - 1) != b"\n":
        # Of a process that was killed while it wrote; this line must not become a part of that.
        while end and os.pread(file, 1, end - 1) != b"\n":
            end -= 1
        os.ftruncate(file, end)
    written = os.write(file, line)
    # The descriptor now stands behind what it wrote, wherever other processes had moved the end to.
    begin = os.lseek(file, 0, os.SEEK_CUR) - written
    try:
        while written < len(line):
            written += os.write(file, line[written:])
    except OSError:
        if alone:
            os.ftruncate(file, begin)
        raise
    return begin


def _line(record: _Begin | _Evaluation) -> str:
    text = to_json(record)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _parsed(line: bytes, path: pathlib.Path, number: int, kind: type[_Line]) -> _Line:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum.decode(errors="replace") != f"{zlib.crc32(text):08x}":
        raise UserError(f"{_altered(path, number)} (its checksum differs)")
    return read(text, kind, _altered(path, number))


def _altered(path: pathlib.Path, number: int) -> str:
    return f"{path}: line {number} was altered, delete the file to rank again"


def _encoded(values: np.ndarray) -> str:
    """Base64 of float32, or of bits where all values are 0 or 1, as of most accuracies."""
    bits = values.astype(bool)
    packed = np.packbits(bits) if np.array_equal(bits, values) else values.astype("<f4")
    return base64.b64encode(packed.tobytes()).decode()


def _decoded(text: str, count: int) -> np.ndarray:
    """The values, float32, shape (count,)."""
    packed = base64.b64decode(text, validate=True)
    if len(packed) == 4 * count:
        return np.frombuffer(packed, "<f4")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(np.float32)


def _is_whole(evaluation: _Evaluation) -> bool:
    """Whether the digest is one, and there are a loss and other figures of each example."""
    count = evaluation.count
    try:
        bytes.fromhex(evaluation.digest)
        sizes = [len(base64.b64decode(text, validate=True)) for text in evaluation.figures.values()]
    except ValueError:
        return False
    return "loss" in evaluation.figures and all(size in (4 * count, math.ceil(count / 8)) for size in sizes)
