"""The front of accuracy against cost that one supernet gives: as JSON, as a table and as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from tfnas.common import markup, terminal
from tfnas.common.schema import MOST, list_of, number, optional, record, text_of, whole
from tfnas.runs import stage_table
from tfnas.runs.workdir import Workdir
from tfnas.search_space.posterior import PRICES

HEADINGS = ("budget", "expected cost", "parameters", "mult-adds", "mean of candidates", "found, raced", "found, fresh")
Row = Mapping[str, Any]
_EXPECTED = {"expected": number(0, MOST), "deviation": number(0, MOST), "total": number(1e-30, MOST)}
_SHAPE = record(
    resource=text_of(*PRICES),
    rows=list_of(
        record(
            share=optional(number(0, 1)),
            expected=optional(number()),
            mean_accuracy=number(0, 1),
            parameters=whole(),
            multiply_adds=whole(),
            accuracy=number(0, 1),
            fresh=optional(record(accuracy=number(0, 1))),
        ),
        1,
    ),
)


def shape(value: Any, place: str) -> None:
    """The shape of front.json, as `tfnas.common.schema` has shapes."""
    _SHAPE(value, place)
    for i, row in enumerate(value["rows"]):
        if row["expected"] is not None:
            record(**_EXPECTED)(row, f"rows[{i}]")


def write(work: Workdir, rows: Sequence[Row], resource: str) -> None:
    """Writes the front's JSON and its plot, and prints its table.

    Args:
        work: the run's folder.
        rows: one a budget, the posterior as learned among them, as `tfnas.stages.sample` makes them.
        resource: that the budgets are shares of.
    """
    ordered = sorted(rows, key=lambda row: (row["parameters"], row["multiply_adds"]))
    work.write_json(stage_table.FRONT, {"resource": resource, "rows": ordered})
    work.write(stage_table.FRONT_PLOT, lambda path: plot(path, ordered))
    table = rich.table.Table(box=None, padding=(0, 1))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for cells in map(cells_of, ordered):
        table.add_row(*cells)
    terminal.console.print(table)


def cells_of(row: Row) -> list[str]:
    """A row of the table, under the headings."""
    expected = "-"
    if row["expected"] is not None:
        expected = f"{100 * row['expected'] / row['total']:.1f} ± {100 * row['deviation'] / row['total']:.1f} %"
    return [
        "as learned" if row["share"] is None else f"{100 * row['share']:g} %",
        expected,
        f"{row['parameters']:,}",
        f"{row['multiply_adds'] / 1e6:,.2f} M",
        markup.percent(row["mean_accuracy"]),
        markup.percent(row["accuracy"]),
        markup.percent(row["fresh"]["accuracy"]) if row["fresh"] else "-",
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Accuracy of the networks found against their parameters and against their multiply-adds, side by side.

    Args:
        figure: an empty matplotlib Figure whose layout is 'constrained'.
        rows: as `write` has them.
    """
    panels = (("parameters", 1e3, "parameters, thousands"), ("multiply_adds", 1e6, "multiply-adds, millions"))
    for axes, (name, unit, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        points = [(row[name] / unit, 100 * row["accuracy"], row) for row in rows]
        points.sort(key=lambda point: point[:2])  # two budgets may find one network
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=markup.BLUE, label="found, raced")
        fresh = [(x, 100 * row["fresh"]["accuracy"]) for x, _, row in points if row["fresh"]]
        if fresh:
            axes.plot(*zip(*fresh, strict=True), "s", color=markup.ORANGE, label="found, fresh examples")
        for x, y, row in points:
            learned = row["share"] is None
            # Above and below, because a budget may well find nearly the network that was learned.
            axes.annotate(
                "as learned" if learned else f"{100 * row['share']:g} %",
                (x, y),
                xytext=(4, 6 if learned else -12),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set(xlabel=label, xlim=(0, None))
    figure.axes[0].set_ylabel("validation accuracy, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper center")


def plot(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes the picture of `draw` as a PNG."""
    # Here and not above, because the command line's start needs no plots.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    draw(figure, rows)
    figure.savefig(path, dpi=120, metadata={"Software": None})
