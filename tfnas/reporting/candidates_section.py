"""The report's section on what sampling found: each kind of candidates, its race and its winner, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnas.common import markup
from tfnas.runs.sampled import SAMPLED, BestOf, Candidate, Comparison, Group, Kind, Paired, Ranked

_COLORS = dict(zip(SAMPLED, (markup.BLUE, markup.ORANGE, markup.GREEN), strict=True))
_HEADINGS = (
    "kind",
    "candidates",
    "mean",
    "evaluated",
    "loss, raced",
    "accuracy, raced",
    "loss, fresh",
    "accuracy, fresh",
    "ties",
)
SIGNIFICANT = 0.05  # p-value below which one network is called better than another
_CLOSE = 0.005  # of accuracy: as good as the best of all


def section(candidates: Sequence[Candidate], ranked: Ranked) -> dict[str, Any]:
    """Returns the contents of candidates.html.

    Args:
        candidates: the records of candidates.jsonl.
        ranked: the record of ranking.json.
    """
    kinds = ranked.kinds
    by_kind = {kind: [c for c in candidates if c.kind == kind and c.share is None] for kind in kinds}
    curves = {kind: group.race.best_of for kind, group in kinds.items() if group.race}
    return {
        "ranked": ranked,
        "verdict": _verdict(ranked.comparisons),
        "left_out": {kind: group.left_out for kind, group in kinds.items() if group.left_out},
        "headings": _HEADINGS,
        "rows": [(kind == Kind.POSTERIOR, _row(kind, group)) for kind, group in kinds.items()],
        "histogram": _histogram(by_kind),
        "scatter": _scatter(by_kind, ranked.race.best),
        "curves": _curves(curves) if all(curves.values()) else "",
        "best_of": _best_of(curves[Kind.POSTERIOR]),
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
    """Whether the posterior's best is better than the best of as many random candidates, by McNemar's test."""
    pairs = {f"'{kind}'": comparison.paired for kind, comparison in comparisons.items()}
    level = [kind for kind, paired in pairs.items() if not significant(paired)]
    worse = [kind for kind, p in pairs.items() if significant(p) and p.only_found < p.only_other]
    if worse:
        return f"Worse than chance, than {' and '.join(worse)}"
    if level:
        return f"Not distinguishable from chance, from {' and '.join(level)}, with so few examples"
    return "Better than chance"


def significant(paired: Paired) -> bool:
    """Whether two networks differ by McNemar's test."""
    return paired.p_value < SIGNIFICANT


def discordant(paired: Paired) -> str:
    """Returns the subject and the result of McNemar's test."""
    p = paired.p_value
    return (
        f"{paired.only_found:,} are right by the former alone, {paired.only_other:,} by the latter alone "
        f"(McNemar's test: p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'})"
    )


def with_interval(accuracy: float, num_examples: int) -> str:
    """An accuracy in percent, in brackets its 95 % interval (Wilson's)."""
    # Imported here because it takes a second, which the terminal's table does not need.
    from tfnas.common.statistics import proportion_interval

    return _interval(accuracy, *proportion_interval(round(accuracy * num_examples), num_examples))


def _row(kind: Kind, group: Group) -> list[str]:
    mean = f"{100 * group.mean_accuracy:.1f} ± {markup.percent(group.std_accuracy)}"
    cells = [str(kind), f"{group.count:,}", mean]
    race = group.race
    if race is None:  # every candidate drops every path to the output
        return cells + ["-"] * (len(_HEADINGS) - len(cells))
    cells += [markup.percent(1 - race.saved, 0) if race.saved else "all"]
    cells += [_loss(race.best.loss), markup.percent(race.best.accuracy)]
    fresh = race.fresh
    cells += [_loss(fresh.loss), with_interval(fresh.accuracy, fresh.num_examples)] if fresh else ["-", "-"]
    return [*cells, f"{len(race.ties):,}"]


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{markup.percent(value)} ({100 * low:.1f} to {100 * high:.1f})"


def _where(by_kind: Mapping[Kind, Sequence[Candidate]]) -> str:
    """The examples that the candidates' own accuracies are on: those that are out of the race have seen fewer."""
    seen = [c.num_examples for found in by_kind.values() for c in found]
    return f"{min(seen):,}" if min(seen) == max(seen) else f"{min(seen):,} to {max(seen):,}"


def _histogram(by_kind: Mapping[Kind, Sequence[Candidate]]) -> str:
    def draw(axes: Any) -> None:
        accuracies = {kind: [100 * c.accuracy for c in found] for kind, found in by_kind.items()}
        every = np.concatenate(list(accuracies.values()))
        bins = np.linspace(every.min() - 0.5, every.max() + 0.5, 41)
        for kind, values in accuracies.items():
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, color=_COLORS[kind], alpha=0.65, label=kind)
        axes.set(xlabel="validation accuracy, %", ylabel="share of candidates, %")
        markup.legend(axes.figure, axes)

    caption = (
        "Histogram of validation accuracy by kind of candidate, each on the "
        f"{_where(by_kind)} examples it was evaluated on"
    )
    return markup.plot(draw, (markup.WIDTH, 3.2), caption)


def _scatter(by_kind: Mapping[Kind, Sequence[Candidate]], best: Candidate) -> str:
    def draw(axes: Any) -> None:
        for kind, found in reversed(list(by_kind.items())):
            x, y = [c.parameters for c in found], [100 * c.accuracy for c in found]
            axes.scatter(x, y, 12, color=_COLORS[kind], alpha=0.5, linewidths=0, label=kind)
        axes.scatter(best.parameters, 100 * best.accuracy, 90, color="black", marker="*", label="found", zorder=3)
        axes.set(xlabel="parameters", ylabel="validation accuracy, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        markup.legend(axes.figure, axes, markerscale=2)

    caption = (
        f"Validation accuracy against parameters, every candidate on the {_where(by_kind)} examples it was evaluated on"
    )
    return markup.plot(draw, (markup.WIDTH, 3.2), caption)


def _best_of(curve: Sequence[BestOf]) -> dict[str, int]:
    """Returns how many candidates suffice for a winner as good as that of all; empty without a comparison.

    Args:
        curve: the posterior's `best_of`, of rising counts.
    """
    if len(curve) < 2:
        return {}
    *fewer, last = curve
    far = [point.count for point in fewer if abs(point.mean - last.mean) > _CLOSE]
    enough = next(point.count for point in curve if not far or point.count > far[-1])
    return {"enough": enough, "all": last.count, "all_but_the_last": fewer[-1].count}


def _curves(curves: Mapping[Kind, Sequence[BestOf]]) -> str:
    def draw(figure: Any) -> None:
        from matplotlib.ticker import NullFormatter

        panels = (("every kind", list(curves)), ("posterior's alone", [Kind.POSTERIOR]))
        for axes, (title, shown) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            for kind in shown:
                counts = [point.count for point in curves[kind]]
                mean = [100 * point.mean for point in curves[kind]]
                low, high = [100 * point.low for point in curves[kind]], [100 * point.high for point in curves[kind]]
                axes.plot(counts, mean, "o-", markersize=3, color=_COLORS[kind], label=kind)
                axes.fill_between(counts, low, high, color=_COLORS[kind], alpha=0.25, linewidth=0)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel="candidates")
            axes.set_title(title, fontsize=9.5)
        figure.axes[0].set_ylabel("accuracy of the best, %")
        markup.legend(figure, figure.axes[0])

    caption = (
        "Fresh accuracy of the best of so many candidates, with 95 % intervals: of every kind, and of the "
        "posterior's alone"
    )
    return markup.drawing(draw, (markup.WIDTH, 3), caption)
