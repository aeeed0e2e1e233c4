"""JSON that anybody may have altered: parsed, and checked against the shape that its writer gives it. No TensorFlow.

A shape is a function of a value and its place in the file; it returns nothing, and raises ValueError with one line that
names the place, what is expected there and what was received::

    read(text, record(name=text_of(), sizes=list_of(whole(1))), "layer.json: not a layer's JSON")
"""

from __future__ import annotations

import collections
import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from tfnas.common.errors import UserError, brief

Shape = Callable[[Any, str], None]
MOST = 2**53  # whole numbers up to here are exact as float64 too


def read(text: str | bytes, shape: Shape, title: str) -> Any:
    """The value of JSON text.

    Args:
        text: JSON; bytes are UTF-8.
        shape: what the value must have.
        title: how the message begins: the thing, and what is wrong with it.

    Raises:
        UserError: if the text is truncated, nested beyond reason, names a key twice, or has another shape.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
        shape(value, "")
    except RecursionError:
        raise UserError(f"{title} (nested too deeply)") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise UserError(f"{title} ({error})") from None
    return value


def number(low: float = -math.inf, high: float = math.inf) -> Shape:
    """A finite number in [low, high]."""
    bounds = f" in [{low:g}, {high:g}]" if math.isfinite(high) else f", at least {low:g}" if low > -math.inf else ""

    def check(value: Any, place: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Before it is compared with anything else, because a whole number may have no float64.
        expect(is_number and -1e308 < value < 1e308 and low <= value <= high, place, value, f"a finite number{bounds}")

    return check


def loss() -> Shape:
    """A number that may be infinite or NaN, as the loss of a useless candidate is."""
    finite = number()

    def check(value: Any, place: str) -> None:
        if not isinstance(value, float):
            finite(value, place)

    return check


def whole(low: int = 0, high: int = MOST) -> Shape:
    """A whole number in [low, high]."""

    def check(value: Any, place: str) -> None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        expect(is_whole and low <= value <= high, place, value, f"a whole number in [{low}, {high}]")

    return check


def text_of(*choices: str) -> Shape:
    """Text that can be printed; with `choices`, one of them."""

    def check(value: Any, place: str) -> None:
        expected = f"one of {', '.join(map(repr, choices))}" if choices else "text"
        expect(isinstance(value, str) and is_plain(value) and (not choices or value in choices), place, value, expected)

    return check


def flag() -> Shape:
    """true or false."""

    def check(value: Any, place: str) -> None:
        expect(isinstance(value, bool), place, value, "true or false")

    return check


def optional(shape: Shape) -> Shape:
    """null, or `shape`."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            shape(value, place)

    return check


def list_of(shape: Shape, least: int = 0) -> Shape:
    """A list of `least` or more values, each of one shape."""

    def check(value: Any, place: str) -> None:
        expect(isinstance(value, list) and len(value) >= least, place, value, f"a list of {least} or more")
        for i, item in enumerate(value):
            shape(item, f"{place}[{i}]")

    return check


def mapping_of(shape: Shape, least: int = 0) -> Shape:
    """`least` or more keys of any name, each with a value of one shape."""

    def check(value: Any, place: str) -> None:
        expect(isinstance(value, Mapping) and len(value) >= least, place, value, f"an object of {least} or more keys")
        for key, item in value.items():
            expect(is_plain(key), place, key, "an object whose keys are text")
            shape(item, _inside(place, key))

    return check


def record(_absent: Mapping[str, Shape] | None = None, /, **shapes: Shape) -> Shape:
    """An object with these keys, and perhaps those of the mapping given first; what else it has is not looked at."""

    def check(value: Any, place: str) -> None:
        expect(isinstance(value, Mapping), place, value, f"an object with {', '.join(map(repr, shapes))}")
        for key, shape in shapes.items():
            expect(key in value, _inside(place, key), None, "there")
            shape(value[key], _inside(place, key))
        for key, shape in (_absent or {}).items():
            if key in value:
                shape(value[key], _inside(place, key))

    return check


def expect(condition: bool, place: str, value: Any, expected: str) -> None:
    """Raises ValueError, with the place, what is expected there and what was received, unless `condition`."""
    if not condition:
        raise ValueError(f"{brief(place) if place else 'all of it'} must be {expected}. Received: {brief(value)}")


def is_plain(text: str) -> bool:
    """Whether text can be shown in a line and name a file.

    It has no control characters, no separators of lines or paragraphs, and no halves of surrogate pairs.
    """
    return not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in text)


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {brief(twice)} is there twice")
    return value
