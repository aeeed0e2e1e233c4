"""All trials at a glance: a table for the terminal, and a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import rich.table

from tfnas.common import markup
from tfnas.tasks.facts import Metric
from tfnas.tuning.trials import COMPLETE, Trial

_MOST_TICKS = 6  # of an axis that has one at every value


def table(
    names: Sequence[str], trials: Sequence[Trial], best: Trial | None, full_parameters: int, metric: Metric
) -> rich.table.Table:
    """A line for each trial, in the order of its values, the best one in bold.

    Args:
        names: of the settings that are tuned.
        trials: to be shown.
        best: of them; None if none is complete.
        full_parameters: of the full network.
        metric: of candidates.
    """
    error = _error_name(metric)
    rounds = len({trial.epochs for trial in trials}) > 1
    made = rich.table.Table(box=None, padding=(0, 1))
    headings = [*names, *["epochs"] * rounds, "kept", "parameters", error, "loss", "on", f"mean {error}", ""]
    for heading in headings:
        made.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for trial in sorted(trials, key=lambda trial: (*trial.values.values(), trial.epochs)):
        cells = [shown(value) for value in trial.values.values()] + [str(trial.epochs)] * rounds
        if found := trial.found:
            cells += [
                f"{100 * found.parameters / full_parameters:.1f} %",
                f"{found.parameters:,}",
                _error(found.metric, metric),
                f"{found.loss:.4f}",
                f"{found.num_examples:,} {'fresh' if found.fresh else 'raced'}",
                _error(found.mean_metric, metric),
            ]
        else:
            cells += ["-"] * 6
        state = "best" if trial is best else "" if trial.state == COMPLETE else trial.state
        made.add_row(*cells, state, style="bold" if trial is best else None)
    return made


def plot(
    path: pathlib.Path, names: Sequence[str], trials: Sequence[Trial], full_parameters: int, metric: Metric
) -> None:
    """Writes a PNG: errors and parameters of the trials that found a network against the first setting tuned.

    Arguments as for `table`.
    """
    # Here and not above, because a mistaken setting needs no plots.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    error, kept = figure.subplots(1, 2)
    name, line = names[0], "-" if len(names) == 1 else ""  # else other settings differ too between neighbors
    found = sorted(((trial.values[name], trial.found) for trial in trials if trial.found), key=lambda pair: pair[0])
    x = [value for value, _ in found]
    parts = [
        (error, "best candidate", markup.BLUE, [metric.error(f.metric) for _, f in found]),
        (error, "mean of candidates", markup.ORANGE, [metric.error(f.mean_metric) for _, f in found]),
        (kept, "best candidate", markup.BLUE, [100 * f.parameters / full_parameters for _, f in found]),
    ]
    for axes, label, color, values in parts:
        axes.plot(x, values, f"o{line}", color=color, label=label)
    validation = f"validation {_error_name(metric)}{', %' * metric.share}"
    for axes, label in ((error, validation), (kept, "parameters kept, %")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xscale="log", xlabel=name, ylabel=label, ylim=(0, None))
        if len(set(x)) <= _MOST_TICKS:
            axes.set_xticks(sorted(set(x)), labels=[shown(value) for value in sorted(set(x))])
            axes.minorticks_off()
    error.legend(frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def shown(value: float) -> str:
    """Returns the shortest text that parses to the same value."""
    return short if float(short := f"{value:g}") == value else repr(value)


def _error_name(metric: Metric) -> str:
    return "error" if metric.share else metric.title


def _error(value: float, metric: Metric) -> str:
    return f"{metric.error(value):.2f} %" if metric.share else metric.shown(value)
