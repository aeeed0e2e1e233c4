"""JSON that anybody may have altered: parsed, checked, and made into the records that its writer wrote. No TensorFlow.

What a file holds is said once, by a frozen dataclass that its writer fills and that its reader gets back::

    @dataclasses.dataclass(frozen=True)
    class Layer:
        name: str
        sizes: tuple[Count, ...]
        drop: Share | None = None  # may be absent

    layer = read(to_json(Layer("conv", (3, 2))), Layer, "layer.json: not a layer's JSON")

A field is `str` (printable), `int` (from 0 to 2**53), `float` (finite), `bool`, an enumeration, another record,
`tuple[X, ...]`, `dict[str, X]`, `X | None`, or `Annotated[X, schema]`. A schema is a function of a value and its place
in the file; it returns the value as the record has it, and raises a MismatchError, one line that names the place, what
is expected there and what was received. A record checks what concerns several fields in `__post_init__`, by `expect`.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import math
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from tfnas.common.errors import UserError, brief

Schema = Callable[[Any, str], Any]
MOST = 2**53  # integers up to here are exact as float64 too


class MismatchError(ValueError):
    """A value that is not what is expected at its place in a file."""

    def __init__(self, place: str, value: Any, expected: str):
        super().__init__(f"{brief(place) if place else 'all of it'} must be {expected}. Received: {brief(value)}")
        self.place, self.value, self.expected = place, value, expected


def read(text: str | bytes, kind: Any, title: str) -> Any:
    """The record that JSON text holds.

    Args:
        text: JSON; bytes are UTF-8.
        kind: what it must be: a record's class, or anything else that a field may be.
        title: how the message begins: the thing, and what is wrong with it.

    Raises:
        UserError: if the text is truncated, nested beyond reason, names a key twice, or is anything else.
    """
    try:
        return schema_of(kind)(json.loads(text, object_pairs_hook=_once), "")
    except RecursionError:
        raise UserError(f"{title} (nested too deeply)") from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and MismatchError are
        raise UserError(f"{title} ({error})") from None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of a record, or of anything that JSON has, with records in it; keys keep their order."""
    return json.dumps(value, default=_fields, indent=indent)


def _fields(record: Any) -> dict[str, Any]:
    """A record's fields, without what is cached in it."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


@functools.cache
def schema_of(kind: Any) -> Schema:
    """The schema of what a field may be; a schema is its own."""
    if isinstance(kind, types.FunctionType):
        return kind
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return arguments[1]
    if origin in (types.UnionType, typing.Union):
        return _optional(schema_of(arguments[0]))
    if origin is tuple:
        return list_of(arguments[0])
    if origin is dict:
        return mapping_of(arguments[1], keys=arguments[0])
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind)
    return _PLAIN[kind]


def number(low: float = -math.inf, high: float = math.inf) -> Schema:
    """A finite number in [low, high]."""
    bounds = f" in [{low:g}, {high:g}]" if math.isfinite(high) else f", at least {low:g}" if low > -math.inf else ""

    def check(value: Any, place: str) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Before it is compared with anything else, because an integer may have no float64.
        expect(is_number and -1e308 < value < 1e308 and low <= value <= high, place, value, f"a finite number{bounds}")
        return value

    return check


def loss() -> Schema:
    """A number that may be infinite or NaN, as the loss of a useless candidate is."""
    finite = number()
    return lambda value, place: value if isinstance(value, float) else finite(value, place)


def integer(low: int = 0, high: int = MOST) -> Schema:
    """An integer in [low, high]."""

    def check(value: Any, place: str) -> Any:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        expect(is_integer and low <= value <= high, place, value, f"an integer in [{low}, {high}]")
        return value

    return check


def text_of(*choices: str) -> Schema:
    """Text that can be printed; with `choices`, one of them."""

    def check(value: Any, place: str) -> Any:
        expected = f"one of {', '.join(map(repr, choices))}" if choices else "text"
        expect(isinstance(value, str) and is_plain(value) and (not choices or value in choices), place, value, expected)
        return value

    return check


def list_of(kind: Any, least: int = 0, most: float = math.inf) -> Schema:
    """A list of `least` to `most` values, each of one kind; a tuple in the record."""
    count = f"{least}" if least == most else f"{least} or more"

    def check(value: Any, place: str) -> Any:
        expect(isinstance(value, list) and least <= len(value) <= most, place, value, f"a list of {count}")
        one = schema_of(kind)
        return tuple(one(item, f"{place}[{i}]") for i, item in enumerate(value))

    return check


def mapping_of(kind: Any, least: int = 0, keys: Any = str) -> Schema:
    """`least` or more keys of one kind, each with a value of another."""

    def check(value: Any, place: str) -> Any:
        expect(isinstance(value, Mapping) and len(value) >= least, place, value, f"an object of {least} or more keys")
        name, one = schema_of(keys), schema_of(kind)
        return {name(key, place): one(item, _inside(place, key)) for key, item in value.items()}

    return check


def flag(value: Any, place: str) -> Any:
    """true or false."""
    expect(isinstance(value, bool), place, value, "true or false")
    return value


def anything(value: Any, place: str) -> Any:
    """Whatever JSON has, for its reader to check."""
    return value


def expect(condition: bool, place: str, value: Any, expected: str) -> None:
    """Raises MismatchError unless `condition`."""
    if not condition:
        raise MismatchError(place, value, expected)


def is_plain(text: str) -> bool:
    """Whether text can be shown in a line and name a file.

    It has no control characters, no separators of lines or paragraphs, and no halves of surrogate pairs.
    """
    # Nearly all text is, without a look at each character: of Python's printable ones, none is of these categories.
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in text)


def _record(kind: Any) -> Schema:
    """An object with a record's fields, or without those that have a default; what else it has is ignored."""
    hints = typing.get_type_hints(kind, include_extras=True)
    required = {
        field.name: field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(kind)
    }

    def check(value: Any, place: str) -> Any:
        expect(isinstance(value, Mapping), place, value, f"an object with {', '.join(map(repr, required))}")
        for name, is_required in required.items():
            expect(name in value or not is_required, _inside(place, name), None, "there")
        found = {name: schema_of(hints[name])(value[name], _inside(place, name)) for name in required if name in value}
        try:
            return kind(**found)
        except MismatchError as error:
            raise MismatchError(_inside(place, error.place), error.value, error.expected) from None

    return check


def _optional(schema: Schema) -> Schema:
    return lambda value, place: None if value is None else schema(value, place)


def _member(kind: type[enum.Enum]) -> Schema:
    one = text_of(*(member.value for member in kind))
    return lambda value, place: kind(one(value, place))


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {brief(twice)} is there twice")
    return value


_PLAIN: Mapping[Any, Schema] = {int: integer(), float: number(), str: text_of(), bool: flag, Any: anything}
Count = Annotated[int, integer(1)]
Share = Annotated[float, number(0, 1)]
Amount = Annotated[float, number(0, MOST)]
Loss = Annotated[float, loss()]
