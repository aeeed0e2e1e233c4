"""Atomic file writes that survive a loss of power at any time. No TensorFlow."""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable

TEMPORARY = ".tfnas-"  # prefix of files that are being written
SET_ASIDE = ".before-"  # prefix of a folder that is being replaced
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def write(
    target: pathlib.Path, writer: Callable[[pathlib.Path], object], top: pathlib.Path, replace: bool = True
) -> None:
    """Lets `writer` fill a temporary file next to `target`, then renames it: readers see the old or the new file.

    Args:
        target: the file; its folder exists.
        writer: receives the path of the temporary file, which has the target's extension.
        top: folder above the target, above which no folder was created for it.
        replace: False keeps a file that exists by then, so that the first of several processes wins.

    Raises:
        OSError: naming the target, if the disk is full or cannot be written; the old file stays.
    """
    # A unique name, even for processes with the same id in other containers. The suffix stays, because Keras chooses
    # the format by it.
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}.{target.name}")
    try:
        writer(temporary)
        sync(temporary)
        if replace or not _linked(temporary, target):
            os.replace(temporary, target)
        for parent in [parent for parent in target.parents if parent.is_relative_to(top)]:
            sync(parent)  # otherwise a loss of power may undo the rename, or a folder created for it
    except OSError as error:
        # A stream's error names no file, and the temporary name means nothing to the user.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a finished file or folder to `target` atomically.

    An old folder is at `source` afterwards. If the file system cannot exchange two folders (NFS), `target` does not
    exist for an instant, and `restore` brings the old folder back if the process is killed then. All local file
    systems of Linux can exchange them.

    Args:
        source: a file or folder on the file system of `target`.
        target: an existing file or folder of the same kind, or an unused path.

    Raises:
        OSError: if `source` cannot be moved; the old target stays.
    """
    for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
        sync(path)
    before = target.with_name(f"{SET_ASIDE}{target.name}")
    if before.is_dir():
        restore(before)
    if not target.is_dir():
        os.replace(source, target)
    elif not _exchanged(source, target):
        os.rename(target, before)  # not with the prefix of unfinished files, which the next process deletes
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(before, target)
            raise
        os.rename(before, source)
    sync(target.parent)


def restore(before: pathlib.Path) -> None:
    """Completes a `replace` that was killed: restores the old folder, or deletes it if the new one is in place.

    Args:
        before: a folder whose name starts with `SET_ASIDE`.
    """
    target = before.with_name(before.name.removeprefix(SET_ASIDE))
    if target.exists():
        shutil.rmtree(before)
    else:
        os.rename(before, target)


def _exchanged(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two folders atomically, and returns whether the system supports this."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if exchange is None:
        return False
    done = exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    if not done and (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), os.fspath(other))
    return done


def sync(path: pathlib.Path) -> None:
    """Flushes a file's contents, or a folder's entries if its file system supports it, to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(file)


def _linked(temporary: pathlib.Path, target: pathlib.Path) -> bool:
    """Links `temporary` to `target` unless that exists; returns False if the file system does not support links."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True
