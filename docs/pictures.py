"""Draws the pictures of the documents, as SVG in docs/images.

    .venv/bin/python docs/pictures.py --workdir=runs/digits    # of a run: `make demo` makes this one
    .venv/bin/python docs/pictures.py                          # how the files of tfnas import each other; the contest

A run's pictures are its report's own; that of the contest is made from docs/results/contest_16.json.
"""

import argparse
import ast
import collections
import graphlib
import itertools
import json
import pathlib
import re

from tfnas.common import markup

_DOCS = pathlib.Path(__file__).parent
_ROOT = _DOCS.parent
# Files of docs/images, by what the caption of the report's picture says.
FROM_REPORT = {
    "digits_candidates.svg": "every candidate on the",
    "digits_posterior.svg": "Mean drop probability",
    "digits_architecture.svg": "Width of every group",
    "digits_course.svg": "Loss and expected share",
}


def from_report(page: str) -> dict[str, str]:
    """The pictures of a report that the documents show, by their files' names."""
    found = re.findall(r"<figure>(<svg.*?</svg>)\s*<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    pictures = {}
    for file, words in FROM_REPORT.items():
        (pictures[file],) = [svg for svg, caption in found if words in caption]
    return pictures


def imported(folder: str) -> list[tuple[pathlib.Path, str]]:
    """Returns the imports of a folder of tfnas, or of a file at its root, from other folders: (file, folder)."""
    place = _ROOT / "tfnas" / folder
    found = set()
    for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tfnas":
                found |= {(file, name.name) for name in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfnas."):
                found.add((file, node.module.split(".")[1]))
    return sorted((file, other) for file, other in found if other != folder)


def folders() -> dict[str, list[str]]:
    """The modules of each folder of tfnas, as its table of contents lists them; folders before those they import."""
    package = _ROOT / "tfnas"
    of = {"cli": ["cli.py"]}
    for place in sorted(file.parent for file in package.glob("*/__init__.py")):
        contents = ast.get_docstring(ast.parse((place / "__init__.py").read_text())) or ""
        of[place.name] = re.findall(r"^(\w+)(?:\.py|/) ", contents, re.MULTILINE)
    below = {folder: {other for _, other in imported(folder)} for folder in of}
    below["cli"].add("tuning")  # which it loads by name, as it does the stages
    return {folder: of[folder] for folder in reversed(list(graphlib.TopologicalSorter(below).static_order()))}


def arrows(of: dict[str, list[str]]) -> dict[tuple[str, str], int]:
    """Counts the files behind each import of one folder by another; implied imports are omitted."""
    count = collections.Counter((folder, other) for folder in of for _, other in imported(folder))
    reached = set(count)
    for through, a, b in itertools.product(of, of, of):
        if (a, through) in reached and (through, b) in reached:
            reached.add((a, b))
    implied = {(a, b) for a, b in count if any((a, c) in reached and (c, b) in reached for c in of)}
    return {pair: number for pair, number in count.items() if pair not in implied}


def imports() -> str:
    """The folders from the top down, and an arrow from each to those below that it imports."""
    of = folders()
    height = {folder: i for i, folder in enumerate(of)}

    def draw(figure):
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

        axes = figure.add_subplot()
        axes.set(xlim=(0, 9), ylim=(len(of) - 0.4, -0.6))
        axes.axis("off")
        for folder, modules in of.items():
            y = height[folder]
            axes.add_patch(
                FancyBboxPatch((0.15, y - 0.33), 6.3, 0.66, boxstyle="round,pad=0.02", fc="#e8f2f8", ec="none")
            )
            axes.text(0.3, y - 0.13, folder, fontsize=10, fontweight="bold", va="center")
            axes.text(0.3, y + 0.16, ", ".join(modules), fontsize=7.5, va="center", color="#444444")
        for (folder, other), number in sorted(arrows(of).items(), key=lambda item: height[item[0][0]]):
            distance = height[other] - height[folder]
            axes.add_patch(
                FancyArrowPatch(
                    (6.5, height[folder] + 0.1),
                    (6.5, height[other] - 0.1),
                    connectionstyle=f"arc3,rad={-0.7 if distance == 1 else -0.5}",
                    arrowstyle="->",
                    mutation_scale=9,
                    linewidth=0.8 + 0.15 * min(number, 10),
                    color=markup.BLUE if distance == 1 else markup.ORANGE,
                )
            )

    return _alone(markup.drawing(draw, (9, 0.62 * len(of)), "Folders of tfnas, top down, and which imports which"))


# Arms of the contest: color and marker. One that is distilled is hollow, one that is trained on as it was cut small.
_ARMS = {
    "full": ("black", "s"),
    "narrowed": (markup.GRAY, "D"),
    "even-streams": (markup.GRAY, "v"),
    "norm": (markup.RED, "<"),
    "norm-streams": (markup.RED, "^"),
    "scale": ("#CC79A7", "X"),
    "scale-floor": ("#CC79A7", "P"),
    "curvature": (markup.BLUE, "o"),
    "curvature-rounds": (markup.BLUE, "8"),
    "curvature-iterative": (markup.BLUE, "*"),
    "gates": (markup.ORANGE, "h"),
    "gates-example": (markup.ORANGE, ">"),
    "gates-streams": (markup.ORANGE, "p"),
    "published": (markup.GREEN, "d"),
}


def contest(records: list[dict]) -> str:
    """Test accuracy against multiply-adds of the contest's networks, means over seeds, one plot a situation."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in records:
        point = (100 * record["multiply_adds"], 100 * record["test"]["accuracy"])
        found[record["situation"]][record["arm"], record["bounds"]].append(point)

    def draw(figure):
        shown = set()
        plots = figure.subplots(2, (len(found) + 1) // 2, squeeze=False).ravel()
        for axes in plots[len(found) :]:
            axes.axis("off")
        for axes, (situation, arms) in zip(plots, found.items(), strict=False):
            for (arm, _), points in arms.items():
                x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
                base = arm.removesuffix("-distilled").removesuffix("-as-cut")
                color, marker = _ARMS[base]
                fill, size = "none" if arm.endswith("-distilled") else color, 15 if arm.endswith("-as-cut") else 45
                axes.scatter(x, y, s=size, c=fill, edgecolors=color, marker=marker)
                shown.add(base)
            axes.set(title=situation, xlabel="multiply-adds, %", ylabel="test accuracy, %")
        for arm, (color, marker) in _ARMS.items():
            if arm in shown:
                plots[0].scatter([], [], c=color, marker=marker, label=arm)
        figure.legend(loc="outside lower center", ncols=5, frameon=False)

    return _alone(markup.drawing(draw, (8, 6.5), "Test accuracy against multiply-adds of the contest's networks"))


def _alone(figure: str) -> str:
    """The SVG of a figure, without its caption."""
    return re.sub(r"^<figure>|<figcaption>.*", "", figure, flags=re.DOTALL)


def main() -> None:
    """Writes the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, help="a finished run, whose report's pictures are taken")
    parser.add_argument("--into", type=pathlib.Path, default=_DOCS / "images")
    options = parser.parse_args()
    if options.workdir:
        pictures = from_report((options.workdir / "report.html").read_text())
    else:
        record = json.loads((_DOCS / "results" / "contest_16.json").read_text())
        pictures = {"imports.svg": imports(), "contest_16.svg": contest(record["records"])}
    for name, svg in pictures.items():
        (options.into / name).write_text(svg if svg.endswith("\n") else svg + "\n")
        print(options.into / name)


if __name__ == "__main__":
    main()
