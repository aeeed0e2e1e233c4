"""What the command line tells in one line, without a traceback: a user's mistake, a file that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import reprlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 20

# Why something cannot be written, by the number in Python's errors and in the words of all others'.
_UNWRITABLE = {
    number: os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
}
_NOWHERE = "No usable temporary directory found"  # Python's own words: all of them are full, or cannot be written


class UserError(Exception):
    """Something the user can correct: the message names the thing, the value received and the value expected.

    Attributes:
        exit_code: of the command line.
    """

    exit_code = 1


class SearchFailedError(UserError):
    """A search that cannot succeed with these settings: everything is dropped, or the loss is not finite."""


class PreemptedError(UserError):
    """A process that received SIGTERM and has saved its state; the same command resumes."""

    exit_code = 128 + 15


class WorkerLostError(UserError):
    """A cluster that has lost a process; all of them must be restarted, and resume."""

    exit_code = 75  # EX_TEMPFAIL: worth another try


def brief(value: Any) -> str:
    """`repr` for a message: one line, of bounded length and depth, whatever the value is."""
    return " ".join(_REPR.repr(value).splitlines())


def plain_message(error: BaseException) -> str:
    """The words of TensorFlow's error in one line, of bounded length, without its names for places in the graph."""
    words = re.sub(r"\{\{\w+ [^}]*\}\}|\[\[.*|\[Op:.*", "", " ".join(str(error).split()))
    return " ".join(words.split())[:300]


@contextlib.contextmanager
def unwrap_user_errors() -> Iterator[None]:
    """Raises again, as itself, a UserError that TensorFlow caught inside a data pipeline and wrapped in its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # TensorFlow keeps of it the type's name and the message, which is one line.
        inside = re.search(r"UserError: (.*)", str(error))
        if inside is None:
            raise
        raise UserError(inside.group(1).strip()) from None


@contextlib.contextmanager
def add_filename(file: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError of a stream, which names no file, is raised again with the name of `file`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(file)
        raise


def unwritable(error: BaseException, otherwise: str) -> str | None:
    """'FILE: REASON', if `error`, or what it was raised from, tells that a file could not be written; else None.

    The reasons are a full disk, one that is read-only, no permission, a quota, and an input/output error.

    Args:
        error: Python's own, which has a number, or TensorFlow's, HDF5's or TFDS's, which only say it in words.
        otherwise: what is said for FILE where the error names none.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            file = otherwise if cause.filename is None else os.fsdecode(cause.filename)
            return f"{file}: {_UNWRITABLE[cause.errno]}"
        for reason in (*_UNWRITABLE.values(), _NOWHERE):
            if reason in str(cause):
                named = re.search(rf"(/[^;:'\n]*)[;:'] *{reason}", str(cause))
                return f"{named[1] if named else otherwise}: {reason}"
        cause = cause.__cause__
    return None


@contextlib.contextmanager
def exit_on_error(writes_to: str) -> Iterator[None]:
    """A user's mistake, a stop, and a file that cannot be written end the process with one line and an exit code.

    Args:
        writes_to: the folder that is named where the error names no file.
    """
    try:
        yield
    except UserError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from the last checkpoint", 128 + 2)
    except Exception as error:
        reason = unwritable(error, f"{writes_to}, or the folder for temporary files")
        if reason is None:
            raise
        sys.unraisablehook = lambda _: None  # what is half written would tell it once more when it is closed
        fail(f"{reason}; what was finished is kept, and the same command goes on from there", 1)


def fail(message: str, code: int, program: str = "tfnas") -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(code)
