"""The run's terminal table and its HTML report: one page, pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table

from tfnas import config as config_lib
from tfnas.common import markup, terminal
from tfnas.common.errors import UserError
from tfnas.common.schema import list_of, mapping_of, number, record, whole
from tfnas.reporting import acceptance, candidates_section, pareto_front
from tfnas.reporting import results as results_lib
from tfnas.runs import provenance, stage_table
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import PRICES, Posterior

_MOST_UNDECIDED = 10  # gates listed
_SETTLED = 0.05  # of a drop probability: what it may still move by
_FEW = 3  # layers named in a sentence
_SEVERAL = "they are of several runs; run the stages again, in another --workdir"
# What the networks are that the found one is compared with, by how their rows' names start.
_NOTES = (
    (
        "fixed drop",
        "Fixed drop: the best random candidate of the found network's size, under the weights of a supernet whose "
        "gates all kept one drop probability.",
    ),
    (
        "single path",
        "Single path: where operations compete, one of them, under the weights of a supernet that trained one at a "
        "time; its size is its own.",
    ),
    (
        "magnitude pruning",
        "Magnitude pruning: the full network, trained without gates, less its channels of the smallest weights, at the "
        "found network's size.",
    ),
    ("deterministic", "Deterministic candidate: every channel whose drop probability is below 1/2, as learned."),
)

_BUSY = 2.0  # how many times a network's latencies may differ between rounds without a word of it

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --faint: #555; --line: #ddd; --box: #f5f5f5;
  --chosen: #e8f2f8; --blue: #0072b2; --orange: #e69f00; --green: #009e73; --red: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e6e6e6; --faint: #a8adb5; --line: #3a3f47;
  --box: #22262c; --chosen: #1d3345; --blue: #56b4e9; --orange: #f0b23e; --green: #35c09a; --red: #ff8a4c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1040px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 2px solid var(--blue); }
p { max-width: 52rem; overflow-wrap: break-word; } .lead { font-size: 1.15rem; } .wide { overflow-x: auto; }
.warning { color: var(--red); }
table { border-collapse: collapse; } td, th { padding: .3rem .7rem; text-align: left; vertical-align: top; }
.numbers { font-size: .9rem; font-variant-numeric: tabular-nums; } .numbers :is(td, th) { padding: .3rem .5rem; }
th { vertical-align: bottom; } .words td { overflow-wrap: anywhere; }
.numbers :is(td, th:first-child) { white-space: nowrap; }
.numbers :is(td, th):not(:first-child) { text-align: right; }
@media (max-width: 600px) { .numbers :is(td, th):first-child { white-space: normal; overflow-wrap: anywhere;
  min-width: 8rem; } }
tr { border-bottom: 1px solid var(--line); } tr.chosen { font-weight: 600; background: var(--chosen); }
pre { background: var(--box); padding: .8rem; overflow-x: auto; } code { overflow-wrap: anywhere; }
figure { margin: 1rem 0; max-width: 36rem; } figure svg { display: block; width: 100%; height: auto; }
svg text { fill: currentColor; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 0 2rem; }
figcaption, .note { color: var(--faint); font-size: .92rem; }
summary { cursor: pointer; color: var(--blue); margin: .7rem 0; }
"""


_EPOCH = record(
    epoch=whole(1),
    loss=number(-1e30, 1e30),
    kept=number(0, 2),
    drop_probability=mapping_of(list_of(number(0, 1), 1)),
)


def print_table(work: Workdir, config: config_lib.Config, console: rich.console.Console = terminal.console) -> None:
    """Prints the comparison that retrain left, one network a line, the one chosen in bold.

    Args:
        work: the run's folder.
        config: the run's.
        console: where it is printed.

    Raises:
        UserError: if retrain has not run.
    """
    results = work.read_json(stage_table.RESULTS, "report", results_lib.measured)
    table = rich.table.Table(box=None, padding=(0, 1))
    for i, heading in enumerate(_headings(results["rows"])):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row, cells in _cells(results["rows"]):
        table.add_row(*cells, style="bold" if row["name"] == results["chosen"] else None)
    console.print(table)
    for note in _notes(results, config):
        console.print(note, style="dim")
    if doubted := acceptance.doubt(results):
        terminal.warn(f"Warning: {doubted}.", to=console)


def html(work: Workdir, config: config_lib.Config) -> str:
    """The report as one self-contained HTML page.

    Raises:
        UserError: if a stage that it tells of has not run, or left files that were changed since.
    """
    results = work.read_json(stage_table.RESULTS, "report", results_lib.measured)
    history = work.read_lines(stage_table.HISTORY, "report", _EPOCH)
    posterior = Posterior.from_json(work.read(stage_table.POSTERIOR, "report").read_bytes())
    architecture = Architecture.from_json(work.read(stage_table.ARCHITECTURE, "report").read_bytes())
    ranking = work.read_json(stage_table.RANKING, "report", candidates_section.ranking_shape)
    verdict = work.read_json(stage_table.EVALUATION, "report", acceptance.VERDICT)
    candidates = work.read_lines(stage_table.CANDIDATES, "report", candidates_section.CANDIDATE)
    _check_one_run(posterior, architecture, history, ranking, candidates)
    sections = (
        ("What did I get, and what did it cost?", _what(results, work.manifest(), config)),
        (
            "Is it better than chance, and than pruning?",
            candidates_section.section(candidates, ranking) + _pruning(results),
        ),
        ("What does the network look like now, and why?", _look(architecture, ranking["reads"], posterior, history)),
        ("What would a smaller or larger budget give?", _sizes(posterior, _front(work, config))),
        ("How do I serve it?", _serve(work, verdict, config)),
        ("How do I repeat it?", _repeat(work, config)),
    )
    title = f"tfnas: {config.data.title}"
    body = "".join(f"<h2>{markup.text(heading)}</h2>\n{content}\n" for heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup.text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{markup.text(title)}</h1>\n{body}</body></html>\n"
    )


def _has_top5(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row.get("test_top5_accuracy") is not None for row in rows)


def _headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    top5 = ["top-5"] if _has_top5(rows) else []
    return ["network", "valid.", "test", *top5, "parameters", "mult-adds", "file", "latency"]


def _cells(rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Mapping[str, Any], list[str]]]:
    full = results_lib.full(rows)

    def shown(row: Mapping[str, Any], key: str, form: Callable[[Any], str]) -> str:
        return form(row[key]) if row.get(key) is not None else "-"

    def latency(seconds: float) -> str:
        relative = f" ({seconds / full['latency_seconds']:.2f}x)" if full else ""
        return f"{1e3 * seconds:.2f} ms{relative}"

    for row in rows:
        yield (
            row,
            [
                row["name"],
                shown(row, "validation_accuracy", lambda v: f"{100 * v:.1f} %"),
                shown(row, "test_accuracy", lambda v: f"{100 * v:.1f} %"),
                *([shown(row, "test_top5_accuracy", lambda v: f"{100 * v:.1f} %")] if _has_top5(rows) else []),
                shown(row, "parameters", lambda v: f"{v:,.0f}"),
                shown(row, "multiply_adds", lambda v: f"{v / 1e6:,.2f} M"),
                shown(row, "file_bytes", lambda v: f"{v / 1e3:,.0f} kB"),
                shown(row, "latency_seconds", latency),
            ],
        )


def _check_one_run(
    posterior: Posterior,
    architecture: Architecture,
    history: Sequence[Mapping[str, Any]],
    ranking: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
) -> None:
    """Raises UserError unless the files name the same layers, groups and kinds."""
    if {name: mask.size for name, mask in architecture.items()} != {g.name: g.num_channels for g in posterior.layers}:
        raise UserError(
            f"report: the layers of {stage_table.ARCHITECTURE} are not those of {stage_table.POSTERIOR}: {_SEVERAL}"
        )
    epochs = [{name: len(p) for name, p in record["drop_probability"].items()} for record in history]
    alike = all(epoch == epochs[0] for epoch in epochs)
    if not epochs or not alike or list(epochs[0]) != [g.name for g in posterior.layers]:
        raise UserError(
            f"report: the layers of {stage_table.HISTORY} are not those of {stage_table.POSTERIOR} in every epoch: "
            f"{_SEVERAL}"
        )
    if set(ranking["reads"]) != set(architecture):
        raise UserError(
            f"report: the layers of {stage_table.RANKING} are not those of {stage_table.ARCHITECTURE}: {_SEVERAL}"
        )
    missing = set(ranking["kinds"]) - {candidate["kind"] for candidate in candidates}
    if missing:
        raise UserError(f"report: {stage_table.CANDIDATES} has no candidate of the kind '{min(missing)}': {_SEVERAL}")


def _what(results: Mapping[str, Any], manifest: Mapping[str, Any], config: config_lib.Config) -> str:
    rows = results["rows"]
    chosen = results_lib.chosen(results)
    lead = f"A network of {chosen['parameters']:,.0f} parameters with {100 * chosen['test_accuracy']:.1f} % on test"
    full = results_lib.full(rows)
    if full:
        lead += (
            f": {100 * chosen['parameters'] / full['parameters']:.0f} % of the full network's parameters and "
            f"{100 * chosen['multiply_adds'] / full['multiply_adds']:.0f} % of its multiply-adds"
        )
    doubted = acceptance.doubt(results)
    if full and not doubted:
        lead += (
            f". Trained for the same total number of epochs, the full one reaches {100 * full['test_accuracy']:.1f} %"
        )
    warning = f'<p class="lead warning">Warning: {markup.text(doubted)}.</p>' if doubted else ""
    cells = [(row["name"] == results["chosen"], values) for row, values in _cells(rows)]
    notes = (
        *_notes(results, config),
        *(note for start, note in _NOTES if any(r["name"].startswith(start) for r in rows)),
    )
    return (
        f'<p class="lead">{markup.text(lead)}.</p>{warning}{markup.table(_headings(rows), cells, "numbers")}'
        f'<p class="note">{markup.text(" ".join(notes))}</p>{_cost(manifest)}'
    )


def _cost(manifest: Mapping[str, Any]) -> str:
    """How long each stage took, of those whose time is recorded."""
    seconds = {name: stage["seconds"] for name, stage in manifest["stages"].items() if "seconds" in stage}
    seconds.pop("report", None)  # of an earlier report
    seconds = {name: taken for name, taken in seconds.items() if taken >= 0.5}
    if not seconds:
        return ""
    stages = ", ".join(f"{name} {_duration(taken)}" for name, taken in seconds.items())
    return (
        f"<p>It took {_duration(sum(seconds.values()))} on the machine that it ran on: {stages}. Of a stage that was "
        "interrupted, only the time since it last went on is counted.</p>"
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _pruning(results: Mapping[str, Any]) -> str:
    """The network found against magnitude pruning, if that was trained; else how to have it trained."""
    pruned = [
        row
        for row in results["rows"]
        if row["name"].startswith("magnitude pruning") and row.get("validation_accuracy") and row.get("paired")
    ]
    if not pruned:
        return (
            "<p>It was not compared with pruning. <code>tfnas retrain ... --config.retrain.controls=true</code> trains "
            "networks to compare it with, among them the full one, pruned by magnitude to this size. They take about "
            "as long as three more searches.</p>"
        )
    tested = sum(map(sum, results["confusion"]))
    # By validation: chosen by the test split, the best of several would be flattered there.
    mine, best = results_lib.chosen(results), max(pruned, key=lambda row: row["validation_accuracy"])
    paired = best["paired"]
    verdict = "Not told apart from pruning, by so few examples"
    if candidates_section.significant(paired):
        better = paired["only_found"] > paired["only_other"]
        verdict = "Better than pruning" if better else "Worse than pruning"
    shown = [candidates_section.with_interval(row["test_accuracy"], tested) for row in (mine, best)]
    return candidates_section.lead(
        f"{verdict}: on the same {tested:,} test examples, the network found has {shown[0]} with "
        f"{mine['parameters']:,.0f} parameters, {best['name']} {shown[1]} with {best['parameters']:,.0f} (in brackets: "
        f"95 % intervals); {candidates_section.discordant(paired)}."
    )


def _notes(results: Mapping[str, Any], config: config_lib.Config) -> Iterable[str]:
    """What the table does not say of its columns."""
    tested = max(row.get("num_tested", 0) for row in results["rows"])
    means = (
        f"Test is read only after every choice is made; means are of the first {tested} candidates of a kind, mean "
        "sizes of all."
    )
    if config.search.target and not any(getattr(config.sample, resource) for resource in PRICES):
        means += (
            " The posterior's are drawn by the size of their gated layers alone: those that are larger in all than was "
            "asked for cannot win. The most probable network of that size races with them, and is not in their means."
        )
    yield means
    spread = results.get("latency_spread", 1.0)
    if spread > _BUSY:
        yield (
            f"The machine was busy when latencies were measured: a network's differ by up to {spread:.1f} x between "
            "rounds."
        )


def _look(
    architecture: Architecture,
    reads: Mapping[str, int | None],
    posterior: Posterior,
    history: Sequence[Mapping[str, Any]],
) -> str:
    names = list(architecture)
    shares = [(reads[name] or 0) / architecture[name].size for name in names]
    words = ["removed" if reads[n] is None else f"{reads[n]} of {architecture[n].size}" for n in names]
    ends = [i for i, (name, after) in enumerate(zip(names, names[1:], strict=False)) if _block(name) != _block(after)]
    sources = [
        (f"{name}{f'[{i}]' if len(p) > 1 else ''}", name, i)
        for name, p in history[0]["drop_probability"].items()
        for i in range(len(p))
    ]
    over_time = np.array([[record["drop_probability"][name][i] for record in history] for _, name, i in sources])

    def heat(axes: Any) -> None:
        extent = (0.5, len(history) + 0.5, len(sources) - 0.5, -0.5)
        image = axes.imshow(
            over_time, aspect="auto", cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest"
        )
        axes.set(xlabel="epoch of search", yticks=range(len(sources)), yticklabels=[label for label, _, _ in sources])
        axes.tick_params("y", labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.figure.colorbar(image, ax=axes, shrink=min(1, 2 / axes.figure.get_figheight()), anchor=(0, 1))

    def course(axes: Any) -> None:
        epochs = [record["epoch"] for record in history]
        axes.plot(epochs, [record["loss"] for record in history], color=markup.ORANGE, label="loss (ELBO)")
        axes.set(xlabel="epoch of search", ylabel="loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        other = axes.twinx()
        other.plot(
            epochs, [100 * record["kept"] for record in history], color=markup.BLUE, label="expected share kept, %"
        )
        other.set(ylabel="kept, %", ylim=(0, 103))
        other.spines["top"].set_visible(False)
        markup.legend(axes.figure, axes, other)

    decided, total = posterior.decided()
    still_open = "the other one is" if total - decided == 1 else f"the other {total - decided} are"
    removed = [name for name in names if reads[name] is None]
    return (
        f"<p>{architecture.kept} of {architecture.total} gated channels are kept; "
        f"{len(removed)} of {len(names)} operations are removed, those included that keep channels of which nothing is "
        f"left, or that nobody reads. {decided} of {total} gates are decided "
        f"(p below 0.05 or above 0.95); {still_open} open, so the candidates differ there.</p>"
        + _settled(architecture, posterior, history)
        + markup.side_by_side(
            markup.bars(
                names,
                shares,
                words,
                "input channels read, %",
                "Share of its input channels that every gated operation reads in the network found",
                ends,
            ),
            markup.plot(
                heat,
                (markup.WIDTH, 0.6 + 0.24 * len(sources)),
                "Mean drop probability of every layer's gates over the search",
            ),
        )
        + markup.plot(course, (markup.WIDTH, 2.8), "Loss and expected share of weights kept over the search")
        + _undecided(posterior)
    )


def _settled(architecture: Architecture, posterior: Posterior, history: Sequence[Mapping[str, Any]]) -> str:
    """When each layer was decided, and how many of its gates still are not."""
    epochs = {}
    for name in architecture:
        course = np.array([record["drop_probability"][name] for record in history])
        moving = np.flatnonzero((np.abs(course - course[-1]) > _SETTLED).any(axis=1))
        epochs[name] = int(history[moving[-1] + 1]["epoch"] if len(moving) else history[0]["epoch"])
    undecided = collections.Counter(name for name, _, _ in posterior.undecided())
    early = [name for name in epochs if epochs[name] <= max(1, len(history) // 4)]
    late = sorted((name for name in epochs if name not in early), key=lambda name: -epochs[name])[:_FEW]
    words = (
        f"A layer counts as settled from the epoch on after which the mean of its gates moves by no more than "
        f"{_SETTLED:g}. Settled in the first quarter of the search: {len(early)} of {len(epochs)} layers"
    )
    words += f"; last: {', '.join(f'{name} (epoch {epochs[name]})' for name in late)}." if late else "."
    if undecided:
        most = ", ".join(f"{name} ({count})" for name, count in undecided.most_common(_FEW))
        words += f" Most gates still open: {most}."
    rows = [
        (
            False,
            [
                g.name,
                f"{architecture[g.name].sum()} of {g.num_channels}",
                *map(str, (epochs[g.name], undecided[g.name], len(g.group_sizes))),
            ],
        )
        for g in posterior.layers
    ]
    headings = ("layer", "channels kept", "settled in epoch", "gates open", "gates")
    return f"<p>{markup.text(words)}</p>" + markup.details(
        "Every layer: what is kept of it, and since when", markup.table(headings, rows, "numbers")
    )


def _undecided(posterior: Posterior) -> str:
    every = posterior.undecided()
    if not every:
        return "<p>No gate is undecided (p from 0.05 to 0.95): all candidates are nearly the same network.</p>"
    shown = every[:_MOST_UNDECIDED]
    which = f"the {len(shown)} most undecided of {len(every)}, " if len(shown) < len(every) else ""
    words = (
        f"Where candidates differ: the undecided gates (p from 0.05 to 0.95), {which}those nearest to 1/2 first. "
        "Groups of a layer's channels are numbered from 0."
    )
    rows = [(False, [name, f"{group}", f"{p:.3f}"]) for name, group, p in shown]
    return f"<p>{words}</p>{markup.table(('layer', 'group', 'drop probability'), rows, 'numbers')}"


def _front(work: Workdir, config: config_lib.Config) -> Mapping[str, Any] | None:
    """What sample measured at its budgets; None if it had none, whatever an earlier run of it left."""
    return (
        work.read_json(stage_table.FRONT, "report", pareto_front.shape) if work.has(stage_table.FRONT, config) else None
    )


def _sizes(posterior: Posterior, measured: Mapping[str, Any] | None) -> str:
    total = posterior.total_parameters()
    learned = (
        f"The gated layers have {total:,} weights, of which {posterior.expected_parameters():,.0f} are expected to be "
        "kept."
    )
    return _measured(learned, measured) if measured else _what_if(learned, posterior)


def _measured(learned: str, measured: Mapping[str, Any]) -> str:
    rows = measured["rows"]
    words = (
        f"{learned} For each budget, a share of the {measured['resource'].replace('_', '-')} of the gated layers, the "
        "posterior was tilted to expect it (± the deviation over candidates), sampled and raced again. Parameters and "
        "multiply-adds are those of the network found there; its accuracy in the race is flattered, on fresh examples "
        "it is not. All share the weights of the one search, which trained them for the size it learned: far from "
        "that, they fit less, and a search for that size is the fairer test."
    )
    return (
        f"<p>{markup.text(words)}</p>"
        + markup.table(
            pareto_front.HEADINGS, [(row["share"] is None, pareto_front.cells_of(row)) for row in rows], "numbers"
        )
        + markup.drawing(
            lambda figure: pareto_front.draw(figure, rows),
            (markup.WIDTH, 3),
            "Validation accuracy of the networks found against their cost",
        )
    )


def _what_if(learned: str, posterior: Posterior) -> str:
    rows = []
    for share in (0.2, 0.4, 0.6, 0.8):
        try:
            tilted = posterior.tilt(parameters=share * posterior.total_parameters())
        except UserError:
            continue
        kept = {g.name: 1 - g.channel_drop.mean() for g in tilted.layers}
        change = {g.name: kept[g.name] - (1 - g.channel_drop.mean()) for g in posterior.layers}
        first = sorted(change, key=lambda name: -abs(change[name]))[:3]
        moved = ", ".join(f"{name} {100 * change[name]:+.0f} points" for name in first)
        rows.append((False, [f"{100 * share:.0f} %", f"{tilted.expected_parameters():,.0f}", moved]))
    return (
        f"<p>{markup.text(learned)} <code>posterior.tilt(parameters=...)</code> moves every keep logit in proportion "
        "to what its channel costs, until another size is expected; these layers would change most. For measured "
        "accuracies, sample again with <code>--config.sample.budgets=0.3,0.5,0.7</code>: then this section has the "
        "network found at each of these sizes.</p>"
        + markup.table(("share kept", "expected weights", "layers that change most"), rows)
    )


def _serve(work: Workdir, verdict: Mapping[str, Any], config: config_lib.Config) -> str:
    told = markup.text(acceptance.reasons(verdict))
    if not verdict["blessed"]:
        return f"<p>It was not exported, as it is not what was asked for: {told}.</p>"
    if not work.has(stage_table.EXPORT_RESULTS, config):
        return f"<p>It has not been exported yet, and may be: {told}.</p>"
    exported = work.read_json(stage_table.EXPORT_RESULTS, "report", results_lib.EXPORTED)
    code = (
        "import tensorflow as tf\n"
        f"serve = tf.saved_model.load({str(work.path / exported['saved_model'])!r}).signatures['serving_default']\n"
        "answer = serve(image=images)      # uint8 (N, H, W, C), raw pixels\n"
        "answer['classes'], answer['scores']    # the most probable first; answer['probabilities'] of all"
    )
    served, measured = (f"{100 * exported[key]:.2f} %" for key in ("served_test_accuracy", "test_accuracy"))
    return (
        "<p>The SavedModel takes raw pixels, <code>image</code> uint8 (N, H, W, C), and answers "
        "<code>probabilities</code> float32 (N, classes), and of the most probable classes the names, "
        "<code>classes</code> string (N, k), and <code>scores</code> float32 (N, k). The signature "
        "<code>serve_bytes</code> takes encoded files instead, <code>image_bytes</code> string (N). Reloaded in a "
        f"process without tfnas and keras, its probabilities were equal to {exported['largest_difference']:.0e}, and "
        f"it classified {served} of the test images correctly, where the network had {measured}. "
        f"Its model card: <code>{markup.text(exported['card'])}</code>.</p>"
        f"<pre>{markup.text(code)}</pre>"
    )


def _repeat(work: Workdir, config: config_lib.Config) -> str:
    # What `tune` would try is no part of a run.
    config = dataclasses.replace(config, tune=config_lib.Tune())
    stages = work.manifest()["stages"]
    ran_with = {
        stage: stages[stage]["versions"] for stage in stage_table.STAGES if stage in stages and stage != "report"
    }
    settings = [
        (False, [f"{section}.{key}" if isinstance(values, dict) else section, str(value)])
        for section, values in config_lib.to_dict(config).items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    ]
    versions = [(False, [name, version]) for name, version in provenance.by_package(ran_with).items()]
    own = config.data.source or config.supernet.source
    different = provenance.differences(ran_with)
    return (
        "<p>Save this as <code>again.py</code>: it has every setting that is not its default, and the seed, "
        f"{config.seed}."
        + (" Your own functions, which it names, are looked for in its folder and in the current one." * bool(own))
        + f"</p><pre>{markup.text(config_file(config))}</pre>"
        "<pre>tfnas run --config=again.py --workdir=runs/again</pre>"
        "<p>With the versions below, on a machine like this one, and if the images are the same, its figures are, but "
        "for the latencies.</p>"
        + (f"<p>The stages ran with different versions: {markup.text(different)}.</p>" if different else "")
        + markup.table(("package", "version"), versions)
        + markup.details("Every setting", markup.table(("setting", "value"), settings))
    )


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


def _block(name: str) -> str:
    return name.rsplit("_", 2)[0]
