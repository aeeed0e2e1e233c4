"""A claim: its measurement for one seed, and the report on the records of all seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import records
from benchmarks.claims.study import Study

HOLDS, FAILS, UNTESTED = "holds", "does not hold here", "cannot be tested here"

Records = Mapping[int, Mapping[str, Any]]  # by seed


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line on a claim.

    Attributes:
        claim: a sentence, the same in every study.
        status: HOLDS, FAILS or UNTESTED.
        numbers: what was seen.
    """

    claim: str
    status: str
    numbers: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The report on the records of a claim.

    Attributes:
        table: Markdown.
        verdicts: one a claim.
        draw: puts a picture on a matplotlib Figure; None: there is none.
    """

    table: str
    verdicts: Sequence[Verdict]
    draw: Callable[[Any], None] | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """One table or figure.

    Attributes:
        title: of its page.
        about: what is measured, a paragraph.
        measure: does so for one seed; what it returns is kept as JSON.
        report: made of the records of all seeds.
        seeded: False: nothing is trained or drawn, one record is all there is.
        beyond: the paper does not claim it.
    """

    title: str
    about: str
    measure: Callable[[Study, int], dict[str, Any]]
    report: Callable[[Records], Report]
    seeded: bool = True
    beyond: bool = False


def decided(claim: str, gains: Sequence[float], unit: str = "points", form: str = "+.2f") -> Verdict:
    """Holds if the mean gain over the seeds is above zero with its whole 95 % t interval.

    Args:
        claim: a sentence, true if the gains are positive.
        gains: one a seed, paired.
        unit: of the gains.
        form: of their figures.
    """
    mean, low, high = records.interval(gains)
    numbers = f"{records.interval_cell(mean, low, high, form)} {unit}"
    if low > 0:
        return Verdict(claim, HOLDS, numbers)
    return Verdict(claim, FAILS, numbers + ", the opposite does" * bool(high < 0))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def column(found: Records, *keys: str) -> list[float]:
    """A number of every seed's record, where it is nested under these keys."""
    values = []
    for record in found.values():
        value: Any = record
        for key in keys:
            value = value[key]
        values.append(value)
    return values


def percent(values: Sequence[float], form: str = ".2f") -> str:
    """A table's mean and deviation of shares."""
    return records.spread_cell([100 * value for value in values], form)


def points(found: Sequence[float], others: Sequence[float]) -> list[float]:
    """Differences of shares, in points."""
    return list(100 * (np.asarray(found) - np.asarray(others)))
