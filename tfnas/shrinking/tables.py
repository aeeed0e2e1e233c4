"""Tables of records, as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from tfnas.common import markup


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under headings; the first column is aligned at the left, all others at the right.

    >>> print(Table(("size", "loss"), [("full", "0.25"), ("50 %", "1.5")]))
    size  loss
    full  0.25
    50 %   1.5

    Attributes:
        headings: of the columns.
        rows: as many cells each.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> Markup:
        return markup.table(self.headings, [(False, row) for row in self.rows], "numbers")


def count(number: float) -> str:
    """A count in three digits.

    >>> count(950), count(2257984), count(300774272)
    ('950', '2.26 M', '301 M')
    """
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}" if number < 999.5 * unit else f"{number / unit:.0f}{name}"
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"


def short_time(seconds: float) -> str:
    """Seconds in three digits.

    >>> short_time(0.01234), short_time(1.667), short_time(0.9999)
    ('12.3 ms', '1.67 s', '1 s')
    """
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
