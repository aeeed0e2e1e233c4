"""The user's own functions, named in the settings as 'package.module:function'."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from tfnas.common.errors import UserError, brief


def add_import_folder(folder: str | os.PathLike[str]) -> None:
    """Adds a folder to the import path, after the installed packages."""
    # Last, so that a user's file cannot shadow a module that installed packages import.
    path = str(pathlib.Path(folder).resolve())
    if path not in sys.path:
        sys.path.append(path)


def check_name(key: str, text: str, others: str = "") -> None:
    """Raises UserError unless `text` looks like 'package.module:function'; it says what `others` may be given."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", text):
        raise UserError(f"config: '{key}' must be 'package.module:function'{others}. Received: {brief(text)}")


def resolve(key: str, text: str) -> Callable[..., Any]:
    """Returns the function that setting `key` names; its module may be in the current folder.

    Raises:
        UserError: if the module is not found or cannot be imported, or has no such function.
    """
    check_name(key, text)
    add_import_folder(os.getcwd())
    module_name, _, name = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{key}: importing '{module_name}' failed: {describe(error)}") from None
        raise UserError(
            f"{key}: no module '{error.name}' for '{text}'; expected in the current folder, next to the config file, "
            "or installed"
        ) from None
    except Exception as error:  # whatever the user's own Python may raise
        raise UserError(f"{key}: importing '{module_name}' failed: {describe(error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(
            f"{key}: expected a function '{name}' in '{module_name}' ({getattr(module, '__file__', 'built in')})."
            f" Received: {'no such name' if function is None else type(function).__name__}"
        )
    return function


def call(key: str, text: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls the user's function; raises UserError with the line of the user's file if it fails."""
    try:
        return function(*arguments, **keywords)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own Python may raise
        raise UserError(f"{key}: '{text}' failed: {describe(error)}") from None


def describe(error: BaseException) -> str:
    """Describes an error in one line: type, message, and the innermost line outside of installed packages."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the package
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(here)]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
