"""The front of a task's metric against cost that one supernet gives: as JSON, as a table and as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import rich.table

from tfnas.common import markup, terminal
from tfnas.runs import stage_table
from tfnas.runs.sampled import Front, FrontPoint, Score
from tfnas.runs.workdir import Workdir
from tfnas.tasks.facts import Metric

HEADINGS = ("budget", "expected cost", "parameters", "mult-adds", "mean of candidates", "found, raced", "found, fresh")


def write(work: Workdir, front: Front, metric: Metric) -> None:
    """Writes the front's JSON and its plot in a run's folder, and prints its table.

    Args:
        work: the run's folder.
        front: to be shown.
        metric: of candidates.
    """
    work.write_json(stage_table.FRONT, front)
    work.write(stage_table.FRONT_PLOT, lambda path: plot(path, front.points, metric))
    table = rich.table.Table(box=None, padding=(0, 1))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for point in front.points:
        table.add_row(*cells_of(point, metric))
    terminal.console.print(table)


def cells_of(point: FrontPoint, metric: Metric) -> list[str]:
    """A row of the table, under the headings."""
    cost = point.expected
    return [
        _budget(point),
        f"{100 * cost.mean / cost.total:.1f} ± {100 * cost.deviation / cost.total:.1f} %" if cost else "-",
        f"{point.best.parameters:,}",
        f"{point.best.multiply_adds / 1e6:,.2f} M",
        metric.shown(point.mean_metric),
        metric.shown(metric.of(point.best.metrics)),
        metric.shown(metric.of(point.fresh.metrics)) if point.fresh else "-",
    ]


def _budget(point: FrontPoint) -> str:
    return "as searched" if point.share is None else f"{100 * point.share:g} %"


def draw(figure: Any, points: Sequence[FrontPoint], metric: Metric) -> None:
    """Draws the metric of the networks found against their parameters and against their multiply-adds, side by side.

    Args:
        figure: an empty matplotlib Figure whose layout is 'constrained'.
        points: of the front.
        metric: of candidates.
    """

    def height(score: Score) -> float:
        return metric.scale * metric.of(score.metrics)

    panels = (("parameters", 1e3, "parameters, thousands"), ("multiply_adds", 1e6, "multiply-adds, millions"))
    for axes, (name, unit, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        placed = [(getattr(point.best, name) / unit, height(point.best), point) for point in points]
        placed.sort(key=lambda place: place[:2])  # two budgets may find one network
        axes.plot([x for x, _, _ in placed], [y for _, y, _ in placed], "o-", color=markup.BLUE, label="found, raced")
        fresh = [(x, height(point.fresh)) for x, _, point in placed if point.fresh]
        if fresh:
            axes.plot(*zip(*fresh, strict=True), "s", color=markup.ORANGE, label="found, fresh examples")
        for x, y, point in placed:
            # Above and below, because a budget may well find nearly the network that was learned.
            axes.annotate(
                _budget(point),
                (x, y),
                xytext=(4, 6 if point.share is None else -12),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set(xlabel=label, xlim=(0, None))
    figure.axes[0].set_ylabel(f"validation {metric.axis}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper center")


def plot(path: pathlib.Path, points: Sequence[FrontPoint], metric: Metric) -> None:
    """Writes the picture of `draw` as a PNG."""
    # Here and not above, because the command line's start needs no plots.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    draw(figure, points, metric)
    figure.savefig(path, dpi=120, metadata={"Software": None})
