"""Files that others see whole or not at all, on a disk that may lose its power at any moment. No TensorFlow."""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable

TEMPORARY = ".tfnas-"  # how the name begins of what is not whole yet
SET_ASIDE = ".before-"  # and of a folder while another one takes its place
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def write(
    target: pathlib.Path, writer: Callable[[pathlib.Path], object], top: pathlib.Path, replace: bool = True
) -> None:
    """Lets `writer` fill a temporary file beside `target`, then renames it: readers see the old or the new, whole.

    Args:
        target: the file; its folder is there.
        writer: is given the temporary file's path, which ends as the target's does.
        top: folder that the target lies in, above which no folder was made for it.
        replace: False: a file that is there by then stays, so that of several processes the first one's does.

    Raises:
        OSError: naming the target, for a disk that is full or cannot be written; the old file stays.
    """
    # A name that nobody else has, not even a process of the same id in another container. The suffix stays, because
    # Keras chooses a format by it.
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}.{target.name}")
    try:
        writer(temporary)
        sync(temporary)
        if replace or not _linked(temporary, target):
            os.replace(temporary, target)
        for parent in [parent for parent in target.parents if parent.is_relative_to(top)]:
            sync(parent)  # else a power cut may take the name back, or that of a folder made for it
    except OSError as error:
        # A stream's error has no name, and nobody knows the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a finished file or folder to where it is looked for: there is the old or the new there, whole.

    An old folder is `source` afterwards. Where the file system cannot exchange two folders (NFS), there is none at
    `target` for an instant, and `restore` brings the old one back if the process is killed in it; all local ones of
    Linux can.

    Args:
        source: on the file system of `target`.
        target: a file or folder like it, or nothing.

    Raises:
        OSError: if it cannot be moved; the old one stays.
    """
    for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
        sync(path)
    before = target.with_name(f"{SET_ASIDE}{target.name}")
    if before.is_dir():
        restore(before)
    if not target.is_dir():
        os.replace(source, target)
    elif not _exchanged(source, target):
        os.rename(target, before)  # not into a folder of what is unfinished, which the next process deletes
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(before, target)
            raise
        os.rename(before, source)
    sync(target.parent)


def restore(before: pathlib.Path) -> None:
    """Ends a `replace` that was killed: the folder set aside returns to its place, or goes if the new one is there.

    Args:
        before: a folder whose name begins with `SET_ASIDE`.
    """
    target = before.with_name(before.name.removeprefix(SET_ASIDE))
    if target.exists():
        shutil.rmtree(before)
    else:
        os.rename(before, target)


def _exchanged(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two folders have each the other's name now, with no moment between; not every system can."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if exchange is None:
        return False
    done = exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    if not done and (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), os.fspath(other))
    return done


def sync(path: pathlib.Path) -> None:
    """Brings a file's contents, or the names in a folder, to the disk; a folder only where its file system can."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(file)


def _linked(temporary: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether there is a file at `target`, this one or an earlier; False where the file system has no links."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True
