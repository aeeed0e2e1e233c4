"""Locks of the system on open files, which end with their process, however that ends, and with its machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


def try_lock(file: int, how: int) -> bool:
    """Whether a lock was to be had at once.

    Args:
        file: descriptor.
        how: `fcntl.LOCK_EX`, for one process alone, or `fcntl.LOCK_SH`.

    Raises:
        OSError: where the file system has no locks.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def exclusive(file: int) -> Iterator[bool]:
    """Waits for the lock and holds it while it lasts; False where the file system has no locks.

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
    """Whether an open file is the one at `path`: between opening and lock it may be replaced or deleted.

    Args:
        file: descriptor.
        path: of a file, or of nothing any more.
    """
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
