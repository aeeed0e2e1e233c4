"""The command: measures, and writes the pages. See `benchmarks.claims`."""

from __future__ import annotations

import collections
import itertools
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import records
from benchmarks.claims import anchors, guided, priors, retraining, sampling
from benchmarks.claims.claim import Claim, markdown
from benchmarks.claims.study import Study
from tfnas.common import user_functions
from tfnas.common.errors import UserError, exit_on_error
from tfnas.config import from_config_dict
from tfnas.runs import workdir

CLAIMS: dict[str, Claim] = {
    **anchors.CLAIMS,
    **guided.CLAIMS,
    **priors.CLAIMS,
    **sampling.CLAIMS,
    **retraining.CLAIMS,
}
_SUMMARY = "claims.md"


def measured(study: Study, name: str, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The records of a claim, by seed; made where they are not there."""
    claim, found = CLAIMS[name], {}
    for seed in seeds if claim.seeded else [0]:
        file = f"records/{name}/seed{seed}.json"
        if not (study.work.path / file).exists():
            print(f"claims    {name}, seed {seed}", flush=True)
            keras.utils.clear_session()
            start = time.monotonic()
            record = claim.measure(study, seed)
            seconds = round(time.monotonic() - start, 1)
            study.work.write_json(file, {"record": record, "seconds": seconds, "commit": records.commit()})
        found[seed] = json.loads((study.work.path / file).read_text())
    return found


def export(name: str, found: Mapping[int, Mapping[str, Any]], command: str, folder: pathlib.Path) -> None:
    """Writes what was measured as FOLDER/NAME.json, and its page."""
    raw = {"command": command, "machine": records.machine(), "seeds": {str(seed): kept for seed, kept in found.items()}}
    workdir.Workdir(folder).write_json(f"{name}.json", raw)
    render(name, folder)


def _kept(name: str, folder: pathlib.Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The raw numbers of a claim, and its records by seed."""
    raw = json.loads((folder / f"{name}.json").read_text())
    return raw, {int(seed): kept["record"] for seed, kept in raw["seeds"].items()}


def render(name: str, folder: pathlib.Path) -> None:
    """Makes FOLDER/NAME.md and NAME.svg from NAME.json."""
    claim = CLAIMS[name]
    raw, found = _kept(name, folder)
    report, work = claim.report(found), workdir.Workdir(folder)
    kept = raw["seeds"]
    seconds = sum(one["seconds"] for one in kept.values())
    commits = ", ".join(sorted({one["commit"] or "unknown" for one in kept.values()}))
    seeds = f"Seeds {', '.join(kept)}. " if claim.seeded else ""
    provenance_line = (
        f"{seeds}{raw['machine']}. Commit {commits}. {seconds:,.0f} s, besides what other claims had done before."
    )
    lines = [f"# {claim.title}", f"`{raw['command']}`", provenance_line, claim.about, report.table.rstrip()]
    if report.draw:
        lines.append(f"![{claim.title}]({name}.svg)")
        work.write(f"{name}.svg", lambda file: _draw(report.draw, name, file))
    lines.append("\n".join(f"- {v.claim}: **{v.status}** ({v.numbers})." for v in report.verdicts))
    text = "\n\n".join(lines) + "\n"
    work.write(f"{name}.md", lambda file: file.write_text(text))


def _draw(draw: Any, name: str, file: pathlib.Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": name, "font.size": 10, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata={"Date": None})


def summary(folder: pathlib.Path) -> str:
    """A line for each claim, with what every study in FOLDER/STUDY says of it."""
    introduction = (
        "One line a claim. It holds in a study if the mean difference over the seeds is above zero with its whole 95 % "
        "t interval; where the interval spans zero it does not, and neither is the opposite shown. Each verdict links "
        "to its table, the command, the commit, the seeds and the raw numbers. A star marks what the paper does not "
        "claim. Some were measured before [faults were fixed](fixed.md). How searching compares with narrowing by "
        "hand and with pruning: [importance.md](importance.md)."
    )
    lines: list[str] = []
    found: collections.Counter[str] = collections.Counter()
    studies = sorted(path for path in folder.iterdir() if path.is_dir())
    for title, seeded in (("Claims on networks that are trained here", True), ("Figures that need no training", False)):
        cells: dict[tuple[str, str], dict[str, str]] = {}  # by table and claim, then by study
        for (name, claim), study in itertools.product(CLAIMS.items(), studies):
            if claim.seeded == seeded and (study / f"{name}.json").exists():
                table = claim.title.partition(":")[0] + " *" * claim.beyond
                for verdict in claim.report(_kept(name, study)[1]).verdicts:
                    link = f"[{verdict.status}]({folder.name}/{study.name}/{name}.md)"
                    found[verdict.status] += 1
                    cells.setdefault((table, verdict.claim), {})[study.name] = f"{link}: {verdict.numbers}"
        if cells:
            columns = sorted({study for row in cells.values() for study in row})
            rows = [(*key, *(row.get(study, "-") for study in columns)) for key, row in cells.items()]
            lines += [f"## {title}", markdown(("table", "claim", *columns), rows).rstrip()]
    counts = ", ".join(f"{number} '{status}'" for status, number in found.most_common())
    question = "# Do the paper's claims hold here?"
    return "\n\n".join([question, f"Of {found.total()} verdicts: {counts}.", introduction, *lines]) + "\n"


def _summarize(folder: pathlib.Path) -> None:
    """Writes the page above the studies that FOLDER is one of."""
    text = summary(folder.parent)
    workdir.Workdir(folder.parent.parent).write(_SUMMARY, lambda file: file.write_text(text))


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Settings of the study: a Python file with get_config().")
    flags.DEFINE_string("workdir", None, "Of the study.")
    flags.DEFINE_list("claims", list(CLAIMS), "What is measured.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "One record of each claim a seed.")
    flags.DEFINE_string("export", None, "Folder of the pages, DIR/STUDY.")
    flags.DEFINE_string("render", None, "Measure nothing: make the pages of this folder again from their JSON.")


def main(_: Sequence[str]) -> None:
    """Measures or renders what the flags say; a user's mistake ends with one line."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    with exit_on_error(flags.FLAGS.workdir or flags.FLAGS.render or os.curdir):
        _run(flags.FLAGS)


def _run(given: Any) -> None:
    if unknown := [name for name in given.claims if name not in CLAIMS]:
        raise UserError(f"--claims: some of {', '.join(CLAIMS)} expected. Received: {unknown[0]!r}")
    if given.render:
        folder = pathlib.Path(given.render)
        for name in given.claims:
            if (folder / f"{name}.json").exists():
                render(name, folder)
        _summarize(folder)
        return
    if not given.config or not given.workdir:
        raise UserError("claims: --config and --workdir expected, or --render")
    user_functions.add_import_folder(os.path.dirname(config_flags.get_config_filename(given["config"])) or os.curdir)
    study = Study(from_config_dict(given.config).check(), given.workdir)
    for name in given.claims:
        found = measured(study, name, [int(seed) for seed in given.seeds])
        report = CLAIMS[name].report({seed: kept["record"] for seed, kept in found.items()})
        print(f"\n{CLAIMS[name].title}\n\n{report.table}")
        for verdict in report.verdicts:
            print(f"- {verdict.claim}: {verdict.status} ({verdict.numbers})")
        if given.export:
            export(name, found, records.command(), pathlib.Path(given.export))
    if given.export:
        _summarize(pathlib.Path(given.export))


if __name__ == "__main__":
    _define_flags()
    app.run(main)
