"""The report's section on what sampling found: each kind of candidates, its race and its winner, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnas.common import markup
from tfnas.runs.sampled import SAMPLED, BestOf, Candidate, Comparison, Group, Kind, Paired, Ranked
from tfnas.tasks.facts import Facts, Metric

_COLORS = dict(zip(SAMPLED, (markup.BLUE, markup.ORANGE, markup.GREEN), strict=True))
SIGNIFICANT = 0.05  # p-value below which one network is called better than another


def section(candidates: Sequence[Candidate], ranked: Ranked, facts: Facts) -> dict[str, Any]:
    """Returns the contents of candidates.html.

    Args:
        candidates: the records of candidates.jsonl.
        ranked: the record of ranking.json.
        facts: of the task.
    """
    kinds, metric = ranked.kinds, facts.example
    headings = ["kind", "candidates", "mean", "evaluated"]
    headings += [f"{name}, {where}" for where in ("raced", "fresh") for name in ("loss", metric.title)]
    by_kind = {kind: [c for c in candidates if c.kind == kind and c.share is None] for kind in kinds}
    curves = {kind: group.race.best_of for kind, group in kinds.items() if group.race}
    return {
        "ranked": ranked,
        "metric": metric,
        "verdict": _verdict(ranked.comparisons),
        "left_out": {kind: group.left_out for kind, group in kinds.items() if group.left_out},
        "headings": [*headings, "ties"],
        "rows": [(kind == Kind.POSTERIOR, _row(kind, group, facts)) for kind, group in kinds.items()],
        "histogram": _histogram(by_kind, metric),
        "scatter": _scatter(by_kind, ranked.race.best, metric),
        "curves": _curves(curves, metric) if all(curves.values()) else "",
        "best_of": _best_of(curves[Kind.POSTERIOR], metric),
        "predictive": [
            (
                False,
                [
                    name,
                    _interval(*measured.accuracy),
                    "{} ({} to {})".format(*map(_loss, measured.nll)),
                    markup.percent(measured.ece),
                ],
            )
            for name, measured in ranked.predictive.items()
        ],
    }


def _verdict(comparisons: Mapping[Kind, Comparison]) -> str:
    """Whether the posterior's best is better than the best of as many random candidates, by the paired test."""
    pairs = {f"'{kind}'": comparison.paired for kind, comparison in comparisons.items()}
    level = [kind for kind, paired in pairs.items() if not significant(paired)]
    worse = [kind for kind, p in pairs.items() if significant(p) and p.difference > 0]
    if worse:
        return f"Worse than chance, than {' and '.join(worse)}"
    if level:
        return f"Not distinguishable from chance, from {' and '.join(level)}, with so few examples"
    return "Better than chance"


def significant(paired: Paired) -> bool:
    """Whether two networks differ by the paired test."""
    return paired.p_value < SIGNIFICANT


def discordant(paired: Paired, facts: Facts) -> str:
    """Returns the subject and the result of the paired test."""
    shown = f"p {f'= {paired.p_value:.3f}' if paired.p_value >= 0.001 else '< 0.001'}"
    if facts.exact:
        return (
            f"{paired.better:,} are right by the former alone, {paired.worse:,} by the latter alone "
            f"(McNemar's test: {shown})"
        )
    return (
        f"on {paired.better:,} the former has the smaller loss, on {paired.worse:,} the latter (sign-flip test of the "
        f"mean loss: {shown})"
    )


def with_interval(value: float, num_examples: int, facts: Facts, metric: Metric) -> str:
    """Returns a metric; if examples are right or wrong, in brackets its 95 % interval (Wilson's)."""
    if not (facts.exact and 0 <= value <= 1):
        return metric.shown(value)
    # Imported here because it takes a second, which the terminal's table does not need.
    from tfnas.common.statistics import proportion_interval

    return _interval(value, *proportion_interval(round(value * num_examples), num_examples))


def _row(kind: Kind, group: Group, facts: Facts) -> list[str]:
    metric = facts.example
    mean = f"{group.mean_metric:.4g} ± {group.std_metric:.2g}"
    if metric.share:
        mean = f"{100 * group.mean_metric:.1f} ± {markup.percent(group.std_metric)}"
    cells = [str(kind), f"{group.count:,}", mean]
    race = group.race
    if race is None:  # every candidate drops every path to the output
        return cells + ["-"] * 6
    cells += [markup.percent(1 - race.saved, 0) if race.saved else "all"]
    cells += [_loss(race.best.loss), metric.shown(metric.of(race.best.metrics))]
    if fresh := race.fresh:
        value = metric.of(fresh.metrics)
        cells += [_loss(fresh.loss), with_interval(value, fresh.num_examples, facts, metric)]
    else:
        cells += ["-", "-"]
    return [*cells, f"{len(race.ties):,}"]


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{markup.percent(value)} ({100 * low:.1f} to {100 * high:.1f})"


def _where(by_kind: Mapping[Kind, Sequence[Candidate]]) -> str:
    """The examples that the candidates' own figures are on: those that are out of the race have seen fewer."""
    seen = [c.num_examples for found in by_kind.values() for c in found]
    return f"{min(seen):,}" if min(seen) == max(seen) else f"{min(seen):,} to {max(seen):,}"


def _height(metric: Metric, candidate: Candidate) -> float:
    """Metric of a candidate as plots show it."""
    return metric.scale * metric.of(candidate.metrics)


def _histogram(by_kind: Mapping[Kind, Sequence[Candidate]], metric: Metric) -> str:
    def draw(axes: Any) -> None:
        heights = {kind: [_height(metric, c) for c in found] for kind, found in by_kind.items()}
        every = np.array([value for values in heights.values() for value in values if np.isfinite(value)] or [0.0])
        margin = 0.5 if metric.share else 0.02 * float(np.ptp(every)) + 1e-9
        bins = np.linspace(every.min() - margin, every.max() + margin, 41)
        for kind, values in heights.items():
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, color=_COLORS[kind], alpha=0.65, label=kind)
        axes.set(xlabel=f"validation {metric.axis}", ylabel="share of candidates, %")
        markup.legend(axes.figure, axes)

    caption = (
        f"Histogram of validation {metric.title} by kind of candidate, each on the "
        f"{_where(by_kind)} examples it was evaluated on"
    )
    return markup.plot(draw, (markup.WIDTH, 3.2), caption)


def _scatter(by_kind: Mapping[Kind, Sequence[Candidate]], best: Candidate, metric: Metric) -> str:
    def draw(axes: Any) -> None:
        for kind, found in reversed(list(by_kind.items())):
            x, y = [c.parameters for c in found], [_height(metric, c) for c in found]
            axes.scatter(x, y, 12, color=_COLORS[kind], alpha=0.5, linewidths=0, label=kind)
        axes.scatter(best.parameters, _height(metric, best), 90, color="black", marker="*", label="found", zorder=3)
        axes.set(xlabel="parameters", ylabel=f"validation {metric.axis}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        markup.legend(axes.figure, axes, markerscale=2)

    examples = _where(by_kind)
    caption = (
        f"Validation {metric.title} against parameters, every candidate on the {examples} examples it was evaluated on"
    )
    return markup.plot(draw, (markup.WIDTH, 3.2), caption)


def _best_of(curve: Sequence[BestOf], metric: Metric) -> dict[str, int]:
    """Returns how many candidates suffice for a winner as good as that of all; empty without a comparison.

    Args:
        curve: the posterior's `best_of`, of rising counts.
        metric: of candidates.
    """
    if len(curve) < 2:
        return {}
    *fewer, last = curve
    far = [point.count for point in fewer if not metric.close(point.mean, last.mean)]
    enough = next(point.count for point in curve if not far or point.count > far[-1])
    return {"enough": enough, "all": last.count, "all_but_the_last": fewer[-1].count}


def _curves(curves: Mapping[Kind, Sequence[BestOf]], metric: Metric) -> str:
    def draw(figure: Any) -> None:
        from matplotlib.ticker import NullFormatter

        panels = (("every kind", list(curves)), ("posterior's alone", [Kind.POSTERIOR]))
        for axes, (title, shown) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            for kind in shown:
                counts = [point.count for point in curves[kind]]
                mean, low, high = (
                    [metric.scale * getattr(point, name) for point in curves[kind]] for name in ("mean", "low", "high")
                )
                axes.plot(counts, mean, "o-", markersize=3, color=_COLORS[kind], label=kind)
                axes.fill_between(counts, low, high, color=_COLORS[kind], alpha=0.25, linewidth=0)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel="candidates")
            axes.set_title(title, fontsize=9.5)
        figure.axes[0].set_ylabel(f"{metric.title} of the best{', %' * metric.share}")
        markup.legend(figure, figure.axes[0])

    caption = (
        f"Fresh {metric.title} of the best of so many candidates, with 95 % intervals: of every kind, and of the "
        "posterior's alone"
    )
    return markup.drawing(draw, (markup.WIDTH, 3), caption)
