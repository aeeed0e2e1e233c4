"""The run's terminal table and its HTML report: one page, pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import rich.console
import rich.table

from tfnas import config as config_lib
from tfnas.common import markup, terminal
from tfnas.common.errors import UserError
from tfnas.reporting import acceptance, candidates_section, network_section, pareto_front
from tfnas.runs import provenance, stage_table
from tfnas.runs.manifest import Manifest
from tfnas.runs.measured import Exported, Results, Row, Verdict
from tfnas.runs.sampled import Candidate, Epoch, Front, Kind, Ranked
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior, read_posterior
from tfnas.tasks.facts import Facts, Metric

TEMPLATES = pathlib.Path(__file__).parent / "templates"
_SEVERAL = "they are of several runs; run the stages again, in another --workdir"
# What the networks are that the found one is compared with.
_NOTES = {
    Kind.NARROWED: "Evenly narrowed: the first channels of every group, in equal shares.",
    Kind.NORM: "Group norm: the channels with the largest weights in all layers that they go through, in equal shares.",
    Kind.SCALE: "Normalization scale: the channels with the largest scales, with one threshold for all layers (network "
    "slimming).",
    Kind.CURVATURE: "Curvature: the channels without which the loss would grow most by its squared gradients, for what "
    "they cost.",
    Kind.GATES: "Gates: the channels that gates keep, learned with the weights.",
    Kind.FIXED_DROP: "Fixed drop: the best random candidate of equal size, under the weights of a supernet whose gates "
    "all kept one drop probability.",
    Kind.SINGLE_PATH: "Single path: where operations compete, one of them, under the weights of a supernet that "
    "trained one at a time; its size is its own.",
    Kind.MAGNITUDE_PRUNING: "Magnitude pruning: the full network, trained without gates, less its channels of the "
    "smallest weights, at equal size.",
    Kind.DETERMINISTIC: "Deterministic candidate: every channel whose drop probability is below 1/2, as learned.",
}
_PRUNED = (Kind.NARROWED, Kind.NORM, Kind.SCALE, Kind.CURVATURE, Kind.MAGNITUDE_PRUNING)

_BUSY = 2.0  # how many times a network's latencies may differ between rounds without a word of it


def print_table(work: Workdir, config: config_lib.Config, console: rich.console.Console = terminal.console) -> None:
    """Prints the comparison that retrain left, one network a line, the one chosen in bold.

    Args:
        work: the run's folder.
        config: the run's.
        console: where it is printed.

    Raises:
        UserError: if retrain has not run.
    """
    results = work.read_json(stage_table.RESULTS, "report", Results)
    table = rich.table.Table(box=None, padding=(0, 1))
    for i, heading in enumerate(_headings(results, config.facts)):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row, cells in _cells(results, config.facts):
        table.add_row(*cells, style="bold" if row.name == results.chosen else None)
    console.print(table)
    for note in _notes(results, config):
        console.print(note, style="dim")
    if doubted := acceptance.doubt(results, config.facts):
        terminal.warn(f"Warning: {doubted}.", to=console)


def html(work: Workdir, config: config_lib.Config) -> str:
    """The report as one self-contained HTML page.

    Raises:
        UserError: if a stage that it reports on has not run, or its files were changed since.
    """
    results = work.read_json(stage_table.RESULTS, "report", Results)
    history = work.read_lines(stage_table.HISTORY, "report", Epoch)
    posterior = read_posterior(work.read(stage_table.POSTERIOR, "report").read_bytes())
    architecture = Architecture.from_json(work.read(stage_table.ARCHITECTURE, "report").read_bytes())
    ranked = work.read_json(stage_table.RANKING, "report", Ranked)
    verdict = work.read_json(stage_table.EVALUATION, "report", Verdict)
    candidates = work.read_lines(stage_table.CANDIDATES, "report", Candidate)
    _check_one_run(posterior, architecture, history, ranked, candidates)
    facts = config.facts
    interval = functools.partial(candidates_section.with_interval, facts=facts)
    filters: dict[str, Callable[..., str]] = {
        "duration": markup.duration,
        "with_interval": functools.partial(interval, metric=facts.headline),
        "candidates_interval": functools.partial(interval, metric=facts.example),
        "discordant": functools.partial(candidates_section.discordant, facts=facts),
        "metric": lambda row: facts.headline.shown(facts.headline.of(row.test)),
    }
    page = markup.environment(TEMPLATES, filters).get_template("report.html")
    return page.render(
        title=config.data.title,
        facts=facts,
        **_comparison(results, config),
        durations=_durations(work.manifest()),
        candidates=candidates_section.section(candidates, ranked, facts),
        network=network_section.section(architecture, ranked.reads, posterior, history),
        weights=_weights(posterior),
        published=config.search.published,
        results=results,
        front=_front(work, config),
        tilted=_tilted(posterior),
        tilts=not isinstance(posterior, UnitPosterior) or posterior.tilts,
        verdict=verdict,
        reasons=acceptance.reasons(verdict),
        exported=_exported(work, config) if verdict.blessed else None,
        **_repetition(work, config),
    )


def _others(results: Results, facts: Facts) -> list[Metric]:
    """The metrics besides the first one that some network has."""
    return [metric for metric in facts.columns[1:] if any(metric.name in row.test for row in results.rows)]


def _headings(results: Results, facts: Facts) -> list[str]:
    named = "" if facts.exact else f" {facts.headline.title}"
    others = [metric.title for metric in _others(results, facts)]
    return ["network", f"valid.{named}", f"test{named}", *others, "parameters", "mult-adds", "file", "latency"]


def _cells(results: Results, facts: Facts) -> Iterable[tuple[Row, list[str]]]:
    full, others = results.full_row, _others(results, facts)

    def shown(value: float | None, form: Callable[[float], str]) -> str:
        return "-" if value is None else form(value)

    def latency(seconds: float) -> str:
        relative = f" ({seconds / full.latency_seconds:.2f}x)" if full and full.latency_seconds else ""
        return f"{1e3 * seconds:.2f} ms{relative}"

    for row in results.rows:
        yield (
            row,
            [
                f"{row.name} ({row.way})" if row.way else row.name,
                shown(row.validation.get(facts.headline.name), facts.headline.shown),
                shown(row.test.get(facts.headline.name), facts.headline.shown),
                *(shown(row.test.get(metric.name), metric.shown) for metric in others),
                markup.grouped(row.parameters),
                f"{row.multiply_adds / 1e6:,.2f} M",
                shown(row.file_bytes, lambda v: f"{v / 1e3:,.0f} kB"),
                shown(row.latency_seconds, latency),
            ],
        )


def _check_one_run(
    posterior: Posterior | UnitPosterior,
    architecture: Architecture,
    history: Sequence[Epoch],
    ranked: Ranked,
    candidates: Sequence[Candidate],
) -> None:
    """Raises UserError unless the files name the same layers, groups and kinds."""
    if {name: mask.size for name, mask in architecture.items()} != {g.name: g.num_channels for g in posterior.layers}:
        raise UserError(
            f"report: the layers of {stage_table.ARCHITECTURE} are not those of {stage_table.POSTERIOR}: {_SEVERAL}"
        )
    epochs = [{name: len(p) for name, p in epoch.drop_probability.items()} for epoch in history]
    consistent = all(epoch == epochs[0] for epoch in epochs)
    if not consistent or (epochs and list(epochs[0]) not in ([], [g.name for g in posterior.layers])):
        raise UserError(
            f"report: the layers of {stage_table.HISTORY} are not those of {stage_table.POSTERIOR} in every epoch: "
            f"{_SEVERAL}"
        )
    if set(ranked.reads) != set(architecture):
        raise UserError(
            f"report: the layers of {stage_table.RANKING} are not those of {stage_table.ARCHITECTURE}: {_SEVERAL}"
        )
    missing = set(ranked.kinds) - {candidate.kind for candidate in candidates if candidate.share is None}
    if missing:
        raise UserError(f"report: {stage_table.CANDIDATES} has no candidate of the kind '{min(missing)}': {_SEVERAL}")


def _comparison(results: Results, config: config_lib.Config) -> dict[str, Any]:
    """The network found beside the others that were measured."""
    kinds = {row.kind for row in results.rows}
    return {
        "chosen": results.chosen_row,
        "full": results.full_row,
        "doubt": acceptance.doubt(results, config.facts),
        "headings": _headings(results, config.facts),
        "networks": [(row.name == results.chosen, values) for row, values in _cells(results, config.facts)],
        "notes": [*_notes(results, config), *(note for kind, note in _NOTES.items() if kind in kinds)],
        "num_tested": results.num_examples,
        "pruned": _pruned(results, config.facts.headline),
        "same_weights": [row for row in results.rows if row.way and not row.fine_tuned],
    }


def _durations(manifest: Manifest) -> dict[str, float]:
    """Returns the seconds of each stage whose time is not negligible."""
    seconds = {name: stage.seconds for name, stage in manifest.stages.items()}
    # That of the report itself is an earlier one's.
    return {name: taken for name, taken in seconds.items() if taken >= 0.5 and name != "report"}


def _pruned(results: Results, metric: Metric) -> dict[str, Any] | None:
    """The best network of pruning that was trained, and how the network found compares with it; None if none was."""
    trained = [row for row in results.rows if row.fine_tuned or row.kind == Kind.MAGNITUDE_PRUNING]
    pruned = [(row, row.paired) for row in trained if row.kind in _PRUNED and row.paired]
    if not pruned:
        return None
    # By validation: chosen by the test split, the best of several would be flattered there.
    best, paired = pruned[metric.best([metric.of(row.validation) for row, _ in pruned])]
    verdict = "Not distinguishable from pruning, with so few examples"
    if candidates_section.significant(paired):
        better = paired.difference < 0
        verdict = "Better than pruning" if better else "Worse than pruning"
    return {"row": best, "verdict": verdict}


def _notes(results: Results, config: config_lib.Config) -> Iterable[str]:
    """Returns notes on the columns of the table."""
    if tested := max(row.num_tested or 0 for row in results.rows):
        yield (
            f"Test is read only after every choice is made; means are of the first {tested} candidates of a kind, mean "
            "sizes of all."
        )
    else:
        yield (
            "Test is read only after every choice is made. 'Same weights': chosen by another importance, within the "
            "same bounds and from the weights of the search, without training. Of each cut, the best of three by "
            "validation loss: as cut, recalibrated, or refitted."
        )
    yield f"Latency: {config.search.latency_measured}."
    if results.latency_spread > _BUSY:
        yield (
            "The machine was busy when latencies were measured: a network's differ by up to "
            f"{results.latency_spread:.1f} x between rounds."
        )


def _front(work: Workdir, config: config_lib.Config) -> dict[str, Any] | None:
    """Returns the measurements at the budgets of sample; None if it had none, whatever an earlier run left."""
    if not work.has(stage_table.FRONT, config):
        return None
    front = work.read_json(stage_table.FRONT, "report", Front)
    return {
        "resource": front.resource.words,
        "headings": pareto_front.HEADINGS,
        "rows": [(point.share is None, pareto_front.cells_of(point, config.facts.example)) for point in front.points],
        "picture": markup.drawing(
            lambda figure: pareto_front.draw(figure, front.points, config.facts.example),
            (markup.WIDTH, 3),
            f"Validation {config.facts.example.title} of the networks found against their cost",
        ),
    }


def _weights(posterior: Posterior | UnitPosterior) -> tuple[float, float]:
    """Weights of the gated layers, or with bounds of the whole network, and how many are expected to be kept."""
    if isinstance(posterior, UnitPosterior):
        return posterior.form.full("parameters"), posterior.expected_cost("parameters")
    return posterior.total_parameters(), posterior.expected_parameters()


def _tilted(posterior: Posterior | UnitPosterior) -> list[tuple[bool, list[str]]]:
    """Rows of what the posterior would expect at other sizes, and which layers would change most."""
    total, _ = _weights(posterior)
    rows = []
    for share in (0.2, 0.4, 0.6, 0.8):
        try:
            tilted: Posterior | UnitPosterior
            if isinstance(posterior, UnitPosterior):
                tilted = posterior.tilted({"parameters": share * total})
            else:
                tilted = posterior.tilt(parameters=share * total)
        except UserError:
            continue
        kept = {g.name: 1 - g.channel_drop.mean() for g in tilted.layers}
        change = {g.name: kept[g.name] - (1 - g.channel_drop.mean()) for g in posterior.layers}
        first = sorted(change, key=lambda name: -abs(change[name]))[:3]
        moved = ", ".join(f"{name} {100 * change[name]:+.0f} points" for name in first)
        rows.append((False, [markup.percent(share, 0), markup.grouped(_weights(tilted)[1]), moved]))
    return rows


def _exported(work: Workdir, config: config_lib.Config) -> dict[str, Any] | None:
    """Returns the outputs of export and the path of the SavedModel; None if it has not run under these settings."""
    if not work.has(stage_table.EXPORT_RESULTS, config):
        return None
    exported = work.read_json(stage_table.EXPORT_RESULTS, "report", Exported)
    return {**vars(exported), "path": repr(str(work.path / exported.saved_model))}


def _repetition(work: Workdir, config: config_lib.Config) -> dict[str, Any]:
    """Returns the instructions for repeating the run."""
    # The settings of `tune` are not part of a run.
    config = dataclasses.replace(config, tune=config_lib.Tune())
    stages = work.manifest().stages
    ran_with = {stage: stages[stage].versions for stage in stage_table.STAGES if stage in stages and stage != "report"}
    return {
        "seed": config.seed,
        "own_functions": bool(config.data.source or config.supernet.source or config.loss),
        "config_file": config_file(config),
        "versions": [(False, pair) for pair in provenance.by_package(ran_with).items()],
        "different_versions": provenance.differences(ran_with),
        "settings": [
            (False, (f"{section}.{key}" if isinstance(values, dict) else section, value))
            for section, values in config_lib.to_dict(config).items()
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        ],
    }


def config_file(config: config_lib.Config) -> str:
    """Python code of a config file that gives `config`."""
    sections = []
    imported = {"Config", "to_config_dict"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value):
            if value == field.default and field.name != "seed":
                continue
            sections.append(f"            {field.name}={value!r},\n")
            continue
        kind = type(value).__name__
        given = [
            f"{inner.name}={getattr(value, inner.name)!r}"
            for inner in dataclasses.fields(value)
            if getattr(value, inner.name) != inner.default
        ]
        if given:
            imported.add(kind)
            lines = "".join(f"                {setting},\n" for setting in given)
            sections.append(f"            {field.name}={kind}(\n{lines}            ),\n")
    return (
        f"from tfnas.config import {', '.join(sorted(imported))}\n\n\n"
        f"def get_config():\n    return to_config_dict(\n        Config(\n{''.join(sections)}        )\n    )\n"
    )
