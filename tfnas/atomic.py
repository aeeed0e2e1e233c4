"""Files that others see whole or not at all, on a disk that may lose its power at any moment. No TensorFlow."""

from __future__ import annotations

import os
import pathlib
import uuid
from collections.abc import Callable

TEMPORARY = ".tfnas-"  # how the name begins of what is not whole yet


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
