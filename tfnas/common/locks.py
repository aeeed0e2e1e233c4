"""File locks of the operating system, released when their process ends for any reason, or its machine fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


def try_lock(file: int, how: int) -> bool:
    """Acquires a lock without waiting, and returns whether it was available.

    Args:
        file: descriptor.
        how: `fcntl.LOCK_EX` (exclusive) or `fcntl.LOCK_SH` (shared).

    Raises:
        OSError: if the file system does not support locks.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def exclusive(file: int) -> Iterator[bool]:
    """Waits for an exclusive lock and holds it; yields False if the file system does not support locks.

    Args:
        file: descriptor.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def is_same_file(file: int, path: pathlib.Path) -> bool:
    """Returns whether an open file is still the one at `path`: it may be replaced or deleted before it is locked.

    Args:
        file: descriptor.
        path: path of a file that may no longer exist.
    """
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
