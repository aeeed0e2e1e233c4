"""Arbitrary and damaged JSON and files for property tests, and the one-line errors that they may end in."""

import copy
import json
import os
import pathlib
import tempfile
import unicodedata

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from tfnas.common.errors import UserError

# Not in the repository.
set_hypothesis_home_dir(pathlib.Path(tempfile.gettempdir()) / "tfnas-hypothesis")


# How many times as many cases as `make test` takes, which are the same each time.
TIMES = int(os.environ.get("TFNAS_FUZZ", "1"))


def fuzz(cases):
    # A fixture's folder is shared by all cases, each of which writes its file anew.
    too_slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=cases * TIMES, derandomize=True, deadline=30_000, database=None, suppress_health_check=too_slow
    )


text = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "..", "/", "../../x", "/etc/passwd", "a\0b", "\ud800", "a\nb", "x" * 5_000, "results.json"]),
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([2**31, 2**53, 2**63, -(2**63), 10**30, 10**400, -(10**400), 5e-324, 1e308, -0.0, 1e-9]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
values = st.one_of(
    scalars,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=8
    ),
    st.sampled_from([20, 100]).map(lambda depth: nested(depth)),
)


def nested(depth):
    value = 0
    for i in range(depth):
        value = [value] if i % 2 else {"layers": value}
    return value


def places(value, path=()):
    """Every place in a JSON value, outermost first."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def altered(draw, valid):
    """A valid value with one to three places replaced, dropped, doubled, or given another name."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        everywhere = list(places(value))
        path = everywhere[draw(st.integers(0, len(everywhere) - 1))]
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(values)
            continue
        *outer, last = path
        owner = value
        for key in outer:
            owner = owner[key]
        change = draw(st.sampled_from(["replace", "replace", "replace", "drop", "double", "rename", "scale"]))
        if change == "replace":
            owner[last] = draw(values)
        elif change == "drop":
            del owner[last]
        elif change == "scale" and isinstance(owner[last], int | float) and abs(owner[last]) < 1e300:
            owner[last] *= draw(st.sampled_from([-1, 0, 0.5, 2, 10**9]))
        elif isinstance(owner, list):
            owner.insert(last, copy.deepcopy(owner[last]))
        else:
            owner[draw(text)] = owner.pop(last) if change == "rename" else copy.deepcopy(owner[last])
    return value


@st.composite
def damaged(draw, valid):
    """Bytes cut short, with bits flipped, or a piece overwritten, doubled or dropped."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["cut", "flip", "write", "double", "drop"]))
        if change == "cut":
            del data[at:]
        elif change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "write":
            data[at : at + 4] = draw(
                st.binary(max_size=6) | st.sampled_from([b"NaN", b"-", b"[" * 30, b"\xff", b"1e999"])
            )
        elif change == "double":
            data[at:at] = data[at : at + 20]
        elif change == "drop":
            del data[at : at + 8]
    return bytes(data)


def contents(valid):
    """JSON of altered values, damaged bytes of the valid one, and arbitrary JSON, as bytes."""
    whole = json.dumps(valid).encode()
    return st.one_of(altered(valid).map(dumped), altered(valid).map(dumped), damaged(whole), values.map(dumped))


def dumped(value):
    # A float that is written as 1e999 is read as infinity, without the name that only Python's JSON has.
    return json.dumps(value).replace("Infinity", "1e999").encode()


def answer(function, *arguments):
    """What the function returns, or None after a UserError of one line, which can be shown, of bounded length."""
    try:
        return function(*arguments)
    except UserError as error:
        message = str(error)
        # Of what no printer knows, such as letters that Unicode may yet assign, a name may have some.
        assert all(c.isprintable() or unicodedata.category(c) in ("Cf", "Cn", "Co", "Zs") for c in message), message
        assert 10 < len(message) < 2_000, message
        message.encode()
        return None
