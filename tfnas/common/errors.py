"""Errors that the command line reports in one line, without a traceback: user errors and unwritable files."""

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

# Reasons why a file cannot be written: by errno for Python's errors, by message for those of other libraries.
_UNWRITABLE = {
    number: os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
}
_NO_TEMPORARY = "No usable temporary directory found"  # Python's message if all of them are full or read-only


class UserError(Exception):
    """An error that the user can correct. The message names the setting or file, the value received, and what to do.

    Attributes:
        exit_code: exit code of the command line.
    """

    exit_code = 1


class SearchFailedError(UserError):
    """A search that cannot succeed with these settings: everything is dropped, or the loss is not finite."""


class InstallationError(UserError, ImportError):
    """A package that tfnas cannot work without is missing or too old, or Keras has another backend than TensorFlow."""


class PreemptedError(UserError):
    """The process received SIGTERM and has saved its state; the same command resumes."""

    exit_code = 128 + 15


class WorkerLostError(UserError):
    """The cluster has lost a process; all processes must be restarted, and resume."""

    exit_code = 75  # EX_TEMPFAIL: try again


def brief(value: Any) -> str:
    """Returns the `repr` of any value for a message: one line of bounded length and depth."""
    return " ".join(_REPR.repr(value).splitlines())


def plain_message(error: BaseException) -> str:
    """Returns the message of a TensorFlow error in one line of bounded length, without names of graph nodes."""
    words = re.sub(r"\{\{\w+ [^}]*\}\}|\[\[.*|\[Op:.*", "", " ".join(str(error).split()))
    return " ".join(words.split())[:300]


@contextlib.contextmanager
def unwrap_user_errors() -> Iterator[None]:
    """Re-raises a UserError that TensorFlow caught in a data pipeline and wrapped in an error of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # TensorFlow keeps only the name of the type and the message, which is one line.
        inside = re.search(r"UserError: (.*)", str(error))
        if inside is None:
            raise
        raise UserError(inside.group(1).strip()) from None


@contextlib.contextmanager
def add_filename(file: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of `file` to an OSError that names no file, as those of streams do."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(file)
        raise


def unwritable(error: BaseException, otherwise: str) -> str | None:
    """Returns 'FILE: REASON' if `error`, or one of its causes, means that a file could not be written, else None.

    The reasons are a full or read-only disk, missing permission, a quota, and an input/output error.

    Args:
        error: an error of Python, which has an errno, or of TensorFlow, HDF5 or TFDS, which only has a message.
        otherwise: FILE if the error does not name one.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            file = otherwise if cause.filename is None else os.fsdecode(cause.filename)
            return f"{file}: {_UNWRITABLE[cause.errno]}"
        for reason in (*_UNWRITABLE.values(), _NO_TEMPORARY):
            if reason in str(cause):
                named = re.search(rf"(/[^;:'\n]*)[;:'] *{reason}", str(cause))
                return f"{named[1] if named else otherwise}: {reason}"
        cause = cause.__cause__
    return None


@contextlib.contextmanager
def exit_on_error(writes_to: str) -> Iterator[None]:
    """Ends the process with one line and an exit code on a UserError, Ctrl-C, or a file that cannot be written.

    Args:
        writes_to: folder to name if the error does not name a file.
    """
    try:
        yield
    except UserError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("stopped; the same command resumes from the last checkpoint", 128 + 2)
    except Exception as error:
        reason = unwritable(error, f"{writes_to}, or the folder for temporary files")
        if reason is None:
            raise
        sys.unraisablehook = lambda _: None  # closing a partly written file would report the error again
        fail(f"{reason}; finished work is kept, and the same command resumes from there", 1)


def fail(message: str, code: int, program: str = "tfnas") -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(code)
