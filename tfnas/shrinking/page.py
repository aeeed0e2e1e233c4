"""A smaller network's report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tfnas.common import markup
from tfnas.reporting import network_section, report
from tfnas.search_space.architecture import Architecture

_COLORS = {"warm-up": markup.GRAY, "search": markup.ORANGE, "retrain": markup.BLUE}


def page(
    title: str,
    lead: str,
    comparison: Markup,
    notes: Sequence[str],
    architecture: Architecture,
    history: Sequence[Mapping[str, Any]],
    metric: str,
) -> str:
    """The page as HTML.

    Args:
        title: name of the model.
        lead: sentence that says what the network is.
        comparison: table of the networks before and after.
        notes: sentences under it.
        architecture: which units are kept.
        history: a record for each epoch, with its phase.
        metric: name of a figure in it that is drawn beside the loss.
    """
    template = markup.environment(report.TEMPLATES).get_template("shrunk.html")
    return template.render(
        title=title,
        lead=lead,
        comparison=comparison,
        notes=notes,
        kept=architecture.kept,
        total=architecture.total,
        groups=len(architecture),
        widths=network_section.widths(architecture),
        course=[_course(history, name) for name in dict.fromkeys(("loss", metric))] if history else [],
    )


def _course(history: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """A figure over all epochs, on training and validation examples."""

    def draw(axes: Any) -> None:
        for phase, color in _COLORS.items():
            records = [record for record in history if record["phase"] == phase]
            for key, style in ((name, "o-"), (f"val_{name}", "o--")):
                points = [(record["epoch"], record[key]) for record in records if key in record]
                if points:
                    label = phase if key == name else f"{phase}, validation"
                    axes.plot(*zip(*points, strict=True), style, markersize=3, color=color, label=label)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        markup.legend(axes.figure, axes)

    return markup.plot(draw, (markup.WIDTH, 2.8), f"{name} by epoch, of search and retraining")
