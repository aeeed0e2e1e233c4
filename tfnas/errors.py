"""The exceptions that the command line turns into a message without a traceback."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend: the message names the thing, the value received and the value expected.

    Attributes:
        exit_code: of the command line.
    """

    exit_code = 1


class Preempted(UserError):
    """The process was told to end (SIGTERM), and has saved all there was; the same command goes on."""

    exit_code = 128 + 15


class LostWorker(UserError):
    """Another process of the cluster has gone; all must be started again, and go on."""

    exit_code = 75  # EX_TEMPFAIL: worth another try


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
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
