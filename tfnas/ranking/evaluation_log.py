"""A log of the losses and accuracies of architectures on numbered examples, with one line per evaluation.

Logged evaluations are not repeated: a run that was killed, a shard on another machine, and a run with more candidates
or other budgets all reuse them. A line is a checksum and JSON; the first line identifies what the evaluations depend
on. Several processes may append to a file: each line is a single write, while the file is locked. No TensorFlow.
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
from tfnas.common.schema import integer, mapping_of, read, to_json

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
    count: Annotated[int, integer(1, _MOST_EXAMPLES)]
    figures: Annotated[dict[str, str], mapping_of(str, 1)]


class Evaluations:
    """Evaluations by architecture, on examples counted from the first one.

    Args:
        path: file to read and append to. A file with another `key` is replaced; processes that still append to the old
            file do not affect the new one. A truncated last line is dropped.
        key: identifies everything that an evaluation depends on: the supernet, the data and their order.
        others: further files to read, for example those of shards.

    Raises:
        UserError: naming the file, if a line was altered, or one of `others` has another key.
    """

    def __init__(self, path: pathlib.Path, key: str, others: Sequence[pathlib.Path] = ()):
        self.path = path
        self._files: list[Any] = []
        # digest -> index of the first new example -> (file, offset, bytes of the line)
        self._places: dict[bytes, dict[int, tuple[int, int, int]]] = {}
        self._known: dict[bytes, int] = {}
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.__exit__)
            for other in others:
                self._files.append(open(other, "rb"))
                if _key(self._files[-1], other) != key:
                    raise UserError(
                        f"{other}: contains evaluations of another run (another supernet, other data or another seed): "
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
        """Number of lines read and appended, except those that add nothing, or follow a gap."""
        return sum(map(len, self._places.values()))

    def known(self, digest: str) -> int:
        """Returns on how many consecutive examples, from the first one, an architecture was evaluated."""
        return self._known.get(bytes.fromhex(digest), 0)

    def append(self, digest: str, start: int, figures: Mapping[str, np.ndarray]) -> None:
        """Appends an evaluation to the file.

        Args:
            digest: digest of the architecture.
            start: index of the first example.
            figures: values of each example by name, such as 'loss' and 'accuracy'; float32, shape (n,) each.
        """
        encoded = {name: _encoded(values) for name, values in figures.items()}
        evaluation = _Evaluation(digest, start, len(next(iter(figures.values()))), encoded)
        line = _line(evaluation).encode()
        with locks.exclusive(self._own.fileno()) as locked:
            offset = _append(self._own.fileno(), line, locked)
        self._note(evaluation, len(self._files) - 1, offset, len(line))

    def read(self, digest: str, stop: int) -> dict[str, np.ndarray]:
        """Returns the figures of examples [0, stop), which must be known, by name; float32, shape (stop,) each."""
        places = self._places.get(bytes.fromhex(digest), {})
        figures: dict[str, list[np.ndarray]] = {}
        start = 0
        while start < stop:
            file, offset, size = places[start]
            # Not through the stream's buffer, which may predate what another process appended.
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
        """Opens the file with `key` to append to; returns whether it is still the file at `path`."""
        # Unbuffered, so that a line is a single write at the end of the file, even with other writers.
        stream = open(self.path, "a+b", buffering=0)
        with contextlib.ExitStack() as on_error:
            on_error.callback(stream.close)
            with locks.exclusive(stream.fileno()):
                if not locks.is_same_file(stream.fileno(), self.path):  # replaced before it was locked
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
        """Indexes the evaluations of the last opened file; drops a truncated line of `own`."""
        with open(path, "rb") as file:
            offset = len(file.readline())
            for number, line in enumerate(iter(file.readline, b""), 2):
                if not line.endswith(b"\n"):
                    if own:
                        own.truncate(offset)
                    return
                found = _parsed(line, path, number, _Evaluation)
                if not _is_complete(found):
                    raise UserError(f"{_altered(path, number)} (expected a digest, and figures of each example)")
                self._note(found, len(self._files) - 1, offset, len(line))
                offset += len(line)

    def _note(self, evaluation: _Evaluation, file: int, offset: int, size: int) -> None:
        digest = bytes.fromhex(evaluation.digest)
        known, end = self._known.get(digest, 0), evaluation.start + evaluation.count
        # Files of several machines may overlap.
        if evaluation.start <= known < end:
            self._places.setdefault(digest, {})[known] = (file, offset, size)
            self._known[digest] = end


def _key(file: Any, path: pathlib.Path) -> str | None:
    """Returns the key in a file's first line; None if there is no complete first line."""
    first = file.readline()
    if not first.endswith(b"\n"):
        return None
    return _parsed(first, path, 1, _Begin).key


def _append(file: int, line: bytes, alone: bool) -> int:
    """Appends a line and returns its offset; a full disk leaves the file unchanged.

    Args:
        file: descriptor, opened to append.
        line: line that ends with a newline.
        alone: whether no other process writes at the same time, so that a truncated line may be removed.
    """
    end = os.fstat(file).st_size
    if alone and end and os.pread(file, 1, end - 1) != b"\n":
        # Left by a process that was killed while writing; the new line must not be joined to it.
        while end and os.pread(file, 1, end - 1) != b"\n":
            end -= 1
        os.ftruncate(file, end)
    written = os.write(file, line)
    # The descriptor is now after what it wrote, even if other processes had moved the end.
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
    """Encodes float32 values in base64, or bits if all values are 0 or 1, as for most accuracies."""
    bits = values.astype(bool)
    packed = np.packbits(bits) if np.array_equal(bits, values) else values.astype("<f4")
    return base64.b64encode(packed.tobytes()).decode()


def _decoded(text: str, count: int) -> np.ndarray:
    """Decodes the values, float32, shape (count,)."""
    packed = base64.b64decode(text, validate=True)
    if len(packed) == 4 * count:
        return np.frombuffer(packed, "<f4")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(np.float32)


def _is_complete(evaluation: _Evaluation) -> bool:
    """Whether there are a valid digest, and a loss and other figures of each example."""
    count = evaluation.count
    try:
        bytes.fromhex(evaluation.digest)
        sizes = [len(base64.b64decode(text, validate=True)) for text in evaluation.figures.values()]
    except ValueError:
        return False
    return "loss" in evaluation.figures and all(size in (4 * count, math.ceil(count / 8)) for size in sizes)
