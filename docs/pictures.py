"""Draws the pictures of the documents, as SVG in docs/images.

    .venv/bin/python docs/pictures.py --workdir=runs/digits    # of a run: `make demo` makes this one
    .venv/bin/python docs/pictures.py                          # how the files of tfnas import each other

A run's pictures are its report's own.
"""

import argparse
import ast
import itertools
import pathlib
import re

from tfnas import figures

_DOCS = pathlib.Path(__file__).parent
_ROOT = _DOCS.parent
# Files of docs/images, by what the caption of the report's picture says.
FROM_REPORT = {
    "digits_candidates.svg": "every candidate on the",
    "digits_posterior.svg": "Mean drop probability",
    "digits_architecture.svg": "Share of its input channels",
    "digits_course.svg": "Loss and expected share",
}


def from_report(page: str) -> dict[str, str]:
    """The pictures of a report that the documents show, by their files' names."""
    found = re.findall(r"<figure>(<svg.*?</svg>)\s*<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    pictures = {}
    for file, words in FROM_REPORT.items():
        (pictures[file],) = [svg for svg, caption in found if words in caption]
    return pictures


def areas(text: str) -> dict[str, list[str]]:
    """The modules of each area, both in the order of the map in docs/architecture.md."""
    (listing,) = re.findall(r"^tfnas/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found: dict[str, list[str]] = {}
    for heading, module in re.findall(r"^  (?:# (.+)|(\w+)(?:\.py|/) .+)$", listing, re.MULTILINE):
        if heading:
            found[heading] = []
        else:
            found[list(found)[-1]].append(module)
    return found


def imported(module: str) -> set[str]:
    """The modules of tfnas that a module, or a package's modules, import; itself not."""
    place = _ROOT / "tfnas" / module
    found = set()
    for file in sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tfnas":
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfnas."):
                found.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("tfnas.")}
    return found - {module}


def arrows(of: dict[str, list[str]]) -> dict[tuple[str, str], int]:
    """How many pairs of modules stand behind each import of one area by another; implied ones are left out."""
    home = {module: area for area, modules in of.items() for module in modules}
    count: dict[tuple[str, str], int] = {}
    for module, area in home.items():
        for other in imported(module):
            if home[other] != area:
                count[area, home[other]] = count.get((area, home[other]), 0) + 1
    reached = set(count)
    for through, a, b in itertools.product(of, of, of):
        if (a, through) in reached and (through, b) in reached:
            reached.add((a, b))
    implied = {(a, b) for a, b in count if any((a, c) in reached and (c, b) in reached for c in of)}
    return {pair: number for pair, number in count.items() if pair not in implied}


def imports() -> str:
    """The areas in their order, and an arrow from each to those above that it imports."""
    of = areas((_DOCS / "architecture.md").read_text())
    height = {area: i for i, area in enumerate(of)}

    def draw(figure):
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

        axes = figure.add_subplot()
        axes.set(xlim=(0, 9), ylim=(len(of) - 0.4, -0.6))
        axes.axis("off")
        for area, modules in of.items():
            y = height[area]
            axes.add_patch(
                FancyBboxPatch((0.15, y - 0.33), 6.3, 0.66, boxstyle="round,pad=0.02", fc="#e8f2f8", ec="none")
            )
            axes.text(0.3, y - 0.13, area, fontsize=10, fontweight="bold", va="center")
            axes.text(0.3, y + 0.16, ", ".join(modules), fontsize=7.5, va="center", color="#444444")
        for (area, other), number in sorted(arrows(of).items(), key=lambda item: height[item[0][0]]):
            distance = height[area] - height[other]
            axes.add_patch(
                FancyArrowPatch(
                    (6.5, height[area] - 0.1),
                    (6.5, height[other] + 0.1),
                    connectionstyle=f"arc3,rad={0.7 if distance == 1 else 0.5}",
                    arrowstyle="->",
                    mutation_scale=9,
                    linewidth=0.8 + 0.15 * min(number, 10),
                    color=figures.BLUE if distance == 1 else figures.ORANGE,
                )
            )

    caption = "Areas of tfnas, top down, and which imports which"
    return re.sub(r"^<figure>|<figcaption>.*", "", figures.drawing(draw, (9, 0.62 * len(of)), caption), flags=re.DOTALL)


def main() -> None:
    """Writes the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, help="a finished run, whose report's pictures are taken")
    parser.add_argument("--into", type=pathlib.Path, default=_DOCS / "images")
    options = parser.parse_args()
    if options.workdir:
        pictures = from_report((options.workdir / "report.html").read_text())
    else:
        pictures = {"imports.svg": imports()}
    for name, svg in pictures.items():
        (options.into / name).write_text(svg if svg.endswith("\n") else svg + "\n")
        print(options.into / name)


if __name__ == "__main__":
    main()
