"""The value of one setting: of its type, read from text, checked; one error for all that is wrong with it."""

from __future__ import annotations

import contextlib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from tfnas.common.errors import UserError, brief
from tfnas.common.resources import Resource


def parsed(expected: Any, text: str, key: str) -> Any:
    """Parses `text` from the command line as a setting of type `expected`. Raises UserError if it cannot."""
    try:
        if expected is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if typing.get_origin(expected) is tuple:
            return tuple(typing.get_args(expected)[0](item) for item in _names(text.strip("()[] ")))
        return expected(text)
    except (KeyError, ValueError):
        raise UserError(f"config: '{key}' must be {_type_name(expected)}. Received: {brief(text)}") from None


def typed(expected: Any, value: Any, key: str) -> Any:
    """Converts `value` to the type `expected`: a number, a text or a tuple of them. Raises UserError if it cannot."""
    if typing.get_origin(expected) is tuple:
        if isinstance(value, list | tuple):
            items = tuple(typed(typing.get_args(expected)[0], item, key) for item in value)
            # ml_collections passes names without quotation marks as one text.
            return _names(",".join(items)) if typing.get_args(expected)[0] is str else items
    elif expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond the largest float
            return float(value)
    elif isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    raise UserError(f"config: '{key}' must be {_type_name(expected)}. Received: {brief(value)}")


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Raises UserError, naming the key, what was received and what was expected, unless `condition` holds."""
    if not condition:
        raise UserError(f"config: '{key}' must be {expected}. Received: {brief(value)}")


def at_least(key: str, value: float, least: float) -> None:
    """Raises UserError for a number below `least`."""
    require(value >= least, key, value, f"at least {least}")


def positive(key: str, value: float) -> None:
    """Raises UserError for a number that is not finite and above 0."""
    require(value > 0 and math.isfinite(value), key, value, "greater than 0")


def check_bounds(section: str, bounds: Mapping[str, float]) -> None:
    """Raises UserError unless bounds, by resource, are shares, or numbers of parameters or multiply-adds."""
    for resource, bound in bounds.items():
        share = 0 < bound < 1
        if resource == Resource.LATENCY:
            require(share, f"{section}.{resource}", bound, "a share of the full network's in (0, 1)")
        else:
            expected = f"a share of the full network's in (0, 1), or a number of {Resource(resource).words} above 1"
            require(share or 1 < bound < math.inf, f"{section}.{resource}", bound, expected)


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError for a text that is not one of `choices`."""
    require(value in choices, key, value, "one of " + ", ".join(repr(c) for c in choices))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for item in text.split(",") if (name := item.strip(" '\"")))


def _type_name(expected: Any) -> str:
    if isinstance(expected, types.GenericAlias):
        return f"{'names' if typing.get_args(expected)[0] is str else 'numbers'} separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[expected]
