"""The one exception that the command line turns into a message without a traceback."""

from __future__ import annotations

import contextlib
import re
import reprlib
from collections.abc import Iterator
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 20


class UserError(Exception):
    """Something the user can mend: the message names the thing, the value received and the value expected."""


def shown(value: Any) -> str:
    """`repr` for a message: one line, of bounded length and depth, whatever the value is."""
    return " ".join(_REPR.repr(value).splitlines())


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
