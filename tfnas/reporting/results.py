"""What retrain and export measured: the shapes of their results.json, and which row is whose. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tfnas.common.schema import MOST, Shape, expect, list_of, number, optional, record, text_of, whole
from tfnas.config import FORMATS

_MEASURES: dict[str, Shape] = {
    "validation_accuracy": number(0, 1),
    "test_accuracy": number(0, 1),
    "test_top5_accuracy": number(0, 1),  # None with at most 20 classes
    "parameters": number(0, MOST),
    "multiply_adds": number(0, MOST),
    "file_bytes": number(0, MOST),
    "latency_seconds": number(0, 1e9),
}
# Of McNemar's test, `statistics.Paired.record`: the network found and another, on the same examples.
PAIRED = record(only_found=whole(), only_other=whole(), p_value=number(-1e-9, 1 + 1e-9))
_ROW = record(
    {"num_tested": whole(), "paired": PAIRED, **{name: optional(shape) for name, shape in _MEASURES.items()}},
    name=text_of(),
)
_SIZE = record(parameters=whole(1), multiply_adds=whole(1))
_KEYS = record(
    {"latency_spread": number(1, MOST)},  # how many times one network's latencies differ between rounds, at most
    chosen=text_of(),
    full=_SIZE,
    confusion=list_of(list_of(whole()), 1),
    rows=list_of(_ROW, 1),
)
_CHOSEN = record(
    validation_accuracy=number(0, 1), test_accuracy=number(0, 1), parameters=whole(), multiply_adds=whole()
)
_FULL = record(  # what others are told as shares of
    test_accuracy=number(0, 1), parameters=whole(1), multiply_adds=whole(1), latency_seconds=number(1e-12, 1e9)
)
# Of export/results.json: other formats of the network, and all.
CONVERTED = list_of(
    record(
        format=text_of(*FORMATS),
        file=text_of(),
        bytes=whole(1),
        test_accuracy=number(0, 1),
        test_accuracy_change=number(-100, 100),
        largest_difference=number(0, 1),
    )
)
EXPORTED = record(
    {"formats": CONVERTED},
    saved_model=text_of(),
    card=text_of(),
    largest_difference=number(0),
    test_accuracy=number(0, 1),
    served_test_accuracy=number(0, 1),
)


def measured(value: Any, place: str) -> None:
    """The shape of retrain/results.json, as `tfnas.common.schema` has shapes."""
    _KEYS(value, place)
    names = [row["name"] for row in value["rows"]]
    expect(value["chosen"] in names, "chosen", value["chosen"], "one of the rows' names")
    for i, row in enumerate(value["rows"]):
        if row["name"] == value["chosen"]:
            _CHOSEN(row, f"rows[{i}]")
        if _is_full(row):
            _FULL(row, f"rows[{i}]")


def chosen(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of the network that retrain chose."""
    return next(row for row in results["rows"] if row["name"] == results["chosen"])


def full(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the full network, if it was trained too."""
    return next((row for row in rows if _is_full(row)), None)


def _is_full(row: Mapping[str, Any]) -> bool:
    return row["name"].startswith("full")
