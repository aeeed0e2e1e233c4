"""Locks of a working directory: held by one process, or by several of one group.

The hold is a lock of the system on the file `holders.jsonl` in the folder, so it ends with its process, however that
ends, and with its machine. Each line of the file says, as JSON, who holds it: `host`, `process` (its id there),
`command`, `since` (UTC) and `group`. The last one to go deletes the file; one that a killed process left does not hold
up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

from tfnas.common import locks
from tfnas.common.errors import UserError, brief
from tfnas.common.schema import read, to_json

NAME = "holders.jsonl"
_PATIENCE = 1.0  # seconds: locks are held for a moment only while a group comes together and parts
_PAUSE = 0.02

_guard = threading.Lock()
_held_here: dict[tuple[int, int], _Hold] = {}  # by device and inode: what this process holds


@dataclasses.dataclass(frozen=True)
class _Holder:
    """A line of the file."""

    host: str
    process: int
    command: str
    since: str
    group: str


@contextlib.contextmanager
def held(folder: pathlib.Path, group: str = "") -> Iterator[None]:
    """Holds a folder while it lasts; within a hold of this process it adds nothing.

    Without locks in the file system, no process is kept out.

    Args:
        folder: which is there.
        group: '' to be alone; else others of the same group may hold it too.

    Raises:
        UserError: if another process holds it, which is named.
    """
    place = folder.stat()
    key = (place.st_dev, place.st_ino)
    with _guard:
        hold = _held_here.get(key) or _Hold(folder, group)
        _held_here[key] = hold
        hold.count += 1
    try:
        yield
    finally:
        with _guard:
            hold.count -= 1
            if not hold.count:
                del _held_here[key]
                hold.release()


class _Hold:
    """The lock of this process, from its creation to `release`.

    Attributes:
        count: uses of it, one within another.
    """

    def __init__(self, folder: pathlib.Path, group: str):
        self.count = 0
        self._folder, self._path, self._group = folder, folder / NAME, group
        self._file: int | None = None
        until = time.monotonic() + _PATIENCE
        while not self._take():
            if time.monotonic() > until:
                raise self._refusal()
            time.sleep(_PAUSE)

    def release(self) -> None:
        """Lets others take it."""
        if self._file is None:
            return
        # Of a group only the last one gets the lock for itself. Nobody else may delete the file: he would make way for
        # a second one, with a lock of its own.
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink()
        os.close(self._file)

    def _take(self) -> bool:
        """Whether it could be taken, perhaps on a file system without locks."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, file)
            try:
                taken = self._lock(file)
            except OSError:
                self._path.unlink(missing_ok=True)
                return True
            # By now the file may have been deleted, with all that it was worth.
            if not taken or not locks.is_same_file(file, self._path):
                return False
            self._file = file
            closing.pop_all()
        return True

    def _lock(self, file: int) -> bool:
        """Whether the file is locked, with this process written into it. Raises OSError where there are no locks."""
        if locks.try_lock(file, fcntl.LOCK_EX):
            os.ftruncate(file, 0)  # of holders that are gone
            self._write(file)
            return not self._group or locks.try_lock(file, fcntl.LOCK_SH)
        if not self._group or not locks.try_lock(file, fcntl.LOCK_SH):
            return False
        if any(holder.group != self._group for holder in _holders(self._path)):
            return False
        self._write(file)
        return True

    def _write(self, file: int) -> None:
        command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
        since = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S}"
        holder = _Holder(socket.gethostname(), os.getpid(), command, since, self._group)
        # On a full disk, the holder cannot be recorded, but the lock holds nevertheless.
        with contextlib.suppress(OSError):
            os.write(file, (to_json(holder) + "\n").encode())

    def _refusal(self) -> UserError:
        holder = "another process works in it"
        # While one of a group keeps the lock, the file also keeps the lines of those that have left or were killed.
        by_process = {(one.host, one.process): one for one in _holders(self._path) if not _is_gone(one)}
        holders = [*by_process.values()]
        if holders:
            first = holders[0]
            more = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
            holder = (
                f"process {first.process} on {first.host}{more} works in it since {first.since} UTC: "
                f"{brief(first.command)}"
            )
        return UserError(f"workdir {self._folder}: {holder}; wait until that ends, or use another --workdir")


def _is_gone(holder: _Holder) -> bool:
    """Whether it was this process, or one of this machine that has ended; unknown for other machines."""
    if holder.host != socket.gethostname():
        return False
    if holder.process == os.getpid():
        return True
    try:
        os.kill(holder.process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # another user's
    return False


def _holders(path: pathlib.Path) -> list[_Holder]:
    """Those that the file names, without lines that were written only in part."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(UserError):
                found.append(read(line, _Holder, "holder"))
    return found
