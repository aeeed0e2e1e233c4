"""Records read from JSON: what is accepted, and the one line that says what is wrong where."""

import dataclasses
import enum
import math
import re
from typing import Annotated

import pytest

from tfnas.common import schema
from tfnas.common.errors import UserError
from tfnas.common.schema import Count, Loss, Share, expect, list_of


class Color(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Part:
    color: Color
    sizes: Annotated[tuple[Count, ...], list_of(Count, 1)]


@dataclasses.dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...]
    chosen: Color
    shares: dict[Color, Share]
    loss: Loss
    kept: bool
    number: int | None = None
    empty: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        expect(self.chosen in [part.color for part in self.parts], "chosen", self.chosen, "a part's color")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: dict[str, Whole]


WHOLE = Whole("a", (Part(Color.RED, (1, 2)),), Color.RED, {Color.BLUE: 0.5}, math.inf, True)


def test_what_is_written_is_read_back_with_its_types():
    found = schema.read(schema.to_json(Outer({"x": WHOLE})), Outer, "t")
    assert found == Outer({"x": WHOLE}) and isinstance(found.inner["x"].parts[0].color, Color)
    assert list(found.inner["x"].shares) == [Color.BLUE] and found.inner["x"].parts[0].sizes == (1, 2)


def text(**changes):
    return schema.to_json({"inner": {"x": {**vars(WHOLE), **changes}}})


def test_what_has_a_default_may_be_absent_and_what_is_unknown_is_ignored():
    values = {name: value for name, value in vars(WHOLE).items() if name not in ("number", "empty")}
    assert schema.read(schema.to_json({**values, "more": [1]}), Whole, "t") == WHOLE


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"name": "a\nb"}, "'inner.x.name' must be text. Received: 'a\\nb'"),
        ({"parts": {}}, "'inner.x.parts' must be a list of 0 or more. Received: {}"),
        ({"parts": [{"color": "red"}]}, "'inner.x.parts[0].sizes' must be there. Received: None"),
        ({"parts": [{"color": "red", "sizes": []}]}, "'inner.x.parts[0].sizes' must be a list of 1 or more. Received"),
        ({"parts": [{"color": "red", "sizes": [True]}]}, "'inner.x.parts[0].sizes[0]' must be an integer in [1, "),
        ({"parts": [3]}, "'inner.x.parts[0]' must be an object with 'color', 'sizes'. Received: 3"),
        ({"chosen": "green"}, "'inner.x.chosen' must be one of 'red', 'blue'. Received: 'green'"),
        ({"chosen": "blue"}, "'inner.x.chosen' must be a part's color. Received: <Color.BLUE: 'blue'>"),
        ({"shares": {"blue": 1.5}}, "'inner.x.shares.blue' must be a finite number in [0, 1]. Received: 1.5"),
        ({"shares": {"green": 1}}, "'inner.x.shares' must be one of 'red', 'blue'. Received: 'green'"),
        ({"loss": None}, "'inner.x.loss' must be a finite number. Received: None"),
        ({"kept": 1}, "'inner.x.kept' must be true or false. Received: 1"),
        ({"number": -1}, "'inner.x.number' must be an integer in [0, 9007199254740992]. Received: -1"),
    ],
)
def test_anything_else_is_refused_by_its_place(changes, says):
    with pytest.raises(UserError, match=re.escape(f"file.json: altered ({says}")):
        schema.read(text(**changes), Outer, "file.json: altered")


@pytest.mark.parametrize(
    "data, says",
    [(b'{"inner": {}, "inner": {}}', "key 'inner' is there twice"), (b"[" * 100_000, "nested"), (b"\xff", "utf-8")],
)
def test_what_is_no_such_json_is_refused(data, says):
    with pytest.raises(UserError, match=f"t \\(.*{says}"):
        schema.read(data, Outer, "t")
