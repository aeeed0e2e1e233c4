"""The pieces of an HTML page: templates, tables, and drawings as SVG inside it."""

from __future__ import annotations

import io
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
# Okabe and Ito's palette, which color-blind readers can distinguish too.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#E69F00", "#009E73", "#999999"
RED = "#D55E00"
WIDTH = 4.8  # inches of a picture: on a telephone its words are then still of some ten pixels
# The report's own colors, which are others where the reader has asked for a dark page; on any other page, such as a
# notebook's, these. As matplotlib writes them.
_PAGE_COLORS = {
    "#000000": "currentColor",
    BLUE.lower(): f"var(--blue, {BLUE})",
    ORANGE.lower(): f"var(--orange, {ORANGE})",
    GREEN.lower(): f"var(--green, {GREEN})",
    RED.lower(): f"var(--red, {RED})",
}


def environment(
    folder: pathlib.Path = _TEMPLATES,
    filters: Mapping[str, Callable[..., str]] | None = None,
    finalize: Callable[[Any], Any] | None = None,
) -> jinja2.Environment:
    """The templates in `folder`, which may import those of this package. Values are escaped in those named *.html.

    Args:
        folder: of the templates.
        filters: by their names in templates, besides this module's `grouped` and `percent`.
        finalize: applied to every value before it is written.
    """
    # Here and not above, because the command line's start needs no pages.
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _TEMPLATES]),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    made.filters |= {"grouped": grouped, "percent": percent, **(filters or {})}
    return made


def grouped(number: float) -> str:
    """A number to its integer part, its digits grouped: '72,695,194'."""
    return f"{number:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent: '97.8 %'."""
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(45), duration(400), duration(9000)
    ('45 s', '7 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def paragraph(text: str) -> Markup:
    """A paragraph of plain text."""
    return Markup("<p>{}</p>").format(text)


def table(headings: Iterable[str], rows: Iterable[tuple[bool, Sequence[str]]], kind: str = "words") -> Markup:
    """The macro `table` of pieces.html, for pages without a template of their own."""
    pieces: Any = environment().get_template("pieces.html").module
    return pieces.table(headings, rows, kind)


def legend(figure: Any, *axes: Any, **options: Any) -> None:
    """One legend of all these `axes`, above them, where it hides nothing."""
    handles, labels = zip(
        *(pair for one in axes for pair in zip(*one.get_legend_handles_labels(), strict=True)), strict=True
    )
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, **options)


def plot(draw: Callable[[Any], None], size: tuple[float, float], caption: str) -> Markup:
    """Returns the drawing of `draw` on a matplotlib Axes, as `drawing` does."""

    def on_axes(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)

    return drawing(on_axes, size, caption)


def bars(
    names: Sequence[str],
    shares: Sequence[float],
    words: Sequence[str],
    label: str,
    caption: str,
    ends: Sequence[int] = (),
) -> Markup:
    """A horizontal bar for each name, the first on top.

    Args:
        names: each once.
        shares: how long the bars are, in [0, 1].
        words: what stands behind them.
        label: of the axis, which is in per cent.
        caption: unlike that of any other picture on the page.
        ends: numbers of the names that a line is drawn under.
    """

    def draw(axes: Any) -> None:
        axes.barh(names, [100] * len(names), color=GRAY, alpha=0.2)
        axes.barh(names, [100 * share for share in shares], color=BLUE)
        for y, (share, word) in enumerate(zip(shares, words, strict=True)):
            axes.text(101, y, word, va="center", fontsize=8, color="black" if share else RED)
        axes.invert_yaxis()
        axes.tick_params("y", labelsize=8)
        axes.set(xlabel=label, xlim=(0, 130), xticks=range(0, 101, 50))
        for y in ends:
            axes.axhline(y + 0.5, color=GRAY, linewidth=0.6)

    return plot(draw, (WIDTH, 0.6 + 0.24 * len(names)), caption)


def drawing(draw: Callable[[Any], None], size: tuple[float, float], caption: str) -> Markup:
    """Returns the drawing of `draw` on a matplotlib Figure, as SVG with a caption.

    Args:
        draw: is given the empty figure.
        size: width and height in inches, of letters of 9.5 points; the picture is as wide as the page lets it be.
        caption: unlike that of any other picture on the page.
    """
    # Here and not above, because the terminal's table needs no plots.
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": caption, "font.size": 9.5, "font.family": "sans-serif"}
    settings["text.parse_math"] = False  # a layer's name may have dollars
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids are made unique, because several pictures share one page.
    prefix = f"f{zlib.crc32(caption.encode()):08x}"
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub("|".join(_PAGE_COLORS), lambda color: _PAGE_COLORS[color[0]], svg)
    return Markup('<figure><svg role="img" aria-label="{}"{}<figcaption>{}</figcaption></figure>').format(
        caption, Markup(svg.removeprefix("<svg")), caption
    )
