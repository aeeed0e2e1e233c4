"""The report's section on what sampling found: each kind of candidates, its race and its winner, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnas.common import markup
from tfnas.common.schema import Shape, expect, list_of, loss, mapping_of, number, optional, record, text_of, whole
from tfnas.reporting.results import PAIRED

_POSTERIOR = "posterior"  # the kind that the found network is of
_COLOURS = (markup.BLUE, markup.ORANGE, markup.GREEN)  # of the kinds of candidates, in the ranking's order
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


def _three(shape: Shape) -> Shape:
    """A figure and its interval."""

    def check(value: Any, place: str) -> None:
        list_of(shape)(value, place)
        expect(len(value) == 3, place, value, "a figure and the two ends of its interval")

    return check


_SHARE = number(0, 1)
_NEARLY_SHARE = number(-1e-9, 1 + 1e-9)  # a sum of rounded ones
SCORE = record(loss=loss(), accuracy=_SHARE, num_examples=whole(1))
CANDIDATE = record(kind=text_of(), accuracy=_SHARE, parameters=whole(), num_examples=whole(1))
_GROUP = record(
    count=whole(1),
    mean_accuracy=_NEARLY_SHARE,
    std_accuracy=_SHARE,
    num_measured=whole(1),
    able=whole(),
    distinct=whole(),
    left_out=text_of(),
    best=optional(record(loss=loss(), accuracy=_SHARE, num_examples=whole(1), parameters=whole())),
)
_RACED = record(  # what a group has besides, if there is a best one
    fresh=optional(SCORE),
    saved=_NEARLY_SHARE,
    ties=list_of(whole()),
    best_of=list_of(record(count=whole(1), **dict.fromkeys(("mean", "low", "high"), _NEARLY_SHARE))),
)
_COMPARED = record(count=whole(1), num_examples=whole(1), accuracy=_SHARE, other_accuracy=_SHARE)


def _comparison(value: Any, place: str) -> None:
    _COMPARED(value, place)
    PAIRED(value, place)


_RANKING = record(
    rank_by=text_of("loss", "accuracy"),
    reads=mapping_of(optional(whole())),  # input channels of each gated layer of the winner; null: it is not there
    kinds=mapping_of(_GROUP, 1),
    comparisons=mapping_of(_comparison),
    predictive=mapping_of(record(accuracy=_three(_NEARLY_SHARE), nll=_three(loss()), ece=_NEARLY_SHARE)),
)


def ranking_shape(value: Any, place: str) -> None:
    """The shape of ranking.json, as `tfnas.common.schema` has shapes."""
    _RANKING(value, place)
    kinds = value["kinds"]
    expect(len(kinds) == len(_COLOURS), "kinds", list(kinds), f"{len(_COLOURS)} of them")
    expect((kinds.get(_POSTERIOR) or {}).get("best") is not None, f"kinds.{_POSTERIOR}.best", None, "there")
    for kind, group in kinds.items():
        if group["best"]:
            _RACED(group, f"kinds.{kind}")


def section(candidates: Sequence[Mapping[str, Any]], ranking: Mapping[str, Any]) -> dict[str, Any]:
    """What candidates.html shows.

    Args:
        candidates: the records of candidates.jsonl.
        ranking: the content of ranking.json.
    """
    kinds = ranking["kinds"]
    found = kinds[_POSTERIOR]
    by_kind = {kind: [c for c in candidates if c["kind"] == kind] for kind in kinds}
    colours = dict(zip(kinds, _COLOURS, strict=True))
    curves = {kind: group["best_of"] for kind, group in kinds.items() if group["best"]}
    return {
        "found": found,
        "rank_by": ranking["rank_by"],
        "comparisons": ranking["comparisons"],
        "verdict": _verdict(ranking["comparisons"]),
        "left_out": {kind: group["left_out"] for kind, group in kinds.items() if group["left_out"]},
        "headings": _HEADINGS,
        "rows": [(kind == _POSTERIOR, _row(kind, group)) for kind, group in kinds.items()],
        "histogram": _histogram(by_kind, colours),
        "scatter": _scatter(by_kind, colours, found["best"]),
        "curves": _curves(curves, colours) if all(curves.values()) else "",
        "best_of": _best_of(curves[_POSTERIOR]),
        "predictive": [
            (
                False,
                [
                    name,
                    _interval(*values["accuracy"]),
                    "{} ({} to {})".format(*map(_loss, values["nll"])),
                    markup.percent(values["ece"]),
                ],
            )
            for name, values in ranking["predictive"].items()
        ],
    }


def _verdict(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the posterior's best is better than the best of as many random candidates, by McNemar's test."""
    level = [kind for kind, c in comparisons.items() if not significant(c)]
    worse = [kind for kind, c in comparisons.items() if significant(c) and c["only_found"] < c["only_other"]]
    if worse:
        return f"Worse than chance, than {' and '.join(map(repr, worse))}"
    if level:
        return f"Not told apart from chance, from {' and '.join(map(repr, level))}, by so few examples"
    return "Better than chance"


def significant(comparison: Mapping[str, Any]) -> bool:
    """Whether two networks differ by McNemar's test."""
    return comparison["p_value"] < SIGNIFICANT


def discordant(comparison: Mapping[str, Any]) -> str:
    """What McNemar's test is of, and what it says."""
    p = comparison["p_value"]
    return (
        f"{comparison['only_found']:,} are right by the former alone, {comparison['only_other']:,} by the latter alone "
        f"(McNemar's test: p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'})"
    )


def with_interval(accuracy: float, num_examples: int) -> str:
    """An accuracy in percent, in brackets its 95 % interval (Wilson's)."""
    # Here and not above, because it takes a second that the terminal's table need not wait.
    from tfnas.common.statistics import proportion_interval

    return _interval(accuracy, *proportion_interval(round(accuracy * num_examples), num_examples))


def _row(kind: str, group: Mapping[str, Any]) -> list[str]:
    mean = f"{100 * group['mean_accuracy']:.1f} ± {markup.percent(group['std_accuracy'])}"
    cells = [kind, f"{group['count']:,}", mean]
    best, fresh = group["best"], group.get("fresh")
    if best is None:  # every candidate drops every path to the output
        return cells + ["-"] * (len(_HEADINGS) - len(cells))
    cells += [markup.percent(1 - group["saved"], 0) if group["saved"] else "all"]
    cells += [_loss(best["loss"]), markup.percent(best["accuracy"])]
    cells += [_loss(fresh["loss"]), with_interval(fresh["accuracy"], fresh["num_examples"])] if fresh else ["-", "-"]
    return [*cells, f"{len(group['ties']):,}"]


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{markup.percent(value)} ({100 * low:.1f} to {100 * high:.1f})"


def _where(by_kind: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The examples that the candidates' own accuracies are on: those that are out of the race have seen fewer."""
    seen = [c["num_examples"] for found in by_kind.values() for c in found]
    return f"{min(seen):,}" if min(seen) == max(seen) else f"{min(seen):,} to {max(seen):,}"


def _histogram(by_kind: Mapping[str, Sequence[Mapping[str, Any]]], colours: Mapping[str, str]) -> str:
    def draw(axes: Any) -> None:
        accuracies = {kind: [100 * c["accuracy"] for c in found] for kind, found in by_kind.items()}
        every = np.concatenate(list(accuracies.values()))
        bins = np.linspace(every.min() - 0.5, every.max() + 0.5, 41)
        for kind, values in accuracies.items():
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, color=colours[kind], alpha=0.65, label=kind)
        axes.set(xlabel="validation accuracy, %", ylabel="share of candidates, %")
        markup.legend(axes.figure, axes)

    caption = (
        "Histogram of validation accuracy by kind of candidate, each on the "
        f"{_where(by_kind)} examples it was evaluated on"
    )
    return markup.plot(draw, (markup.WIDTH, 3.2), caption)


def _scatter(
    by_kind: Mapping[str, Sequence[Mapping[str, Any]]], colours: Mapping[str, str], best: Mapping[str, Any]
) -> str:
    def draw(axes: Any) -> None:
        for kind, found in reversed(list(by_kind.items())):
            x, y = [c["parameters"] for c in found], [100 * c["accuracy"] for c in found]
            axes.scatter(x, y, 12, color=colours[kind], alpha=0.5, linewidths=0, label=kind)
        x, y = best["parameters"], 100 * best["accuracy"]
        axes.scatter(x, y, 90, color="black", marker="*", label="found", zorder=3)
        axes.set(xlabel="parameters", ylabel="validation accuracy, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        markup.legend(axes.figure, axes, markerscale=2)

    caption = (
        f"Validation accuracy against parameters, every candidate on the {_where(by_kind)} examples it was evaluated on"
    )
    return markup.plot(draw, (markup.WIDTH, 3.2), caption)


def _best_of(curve: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many candidates have a best one as good as that of all; empty if there is nothing to compare.

    Args:
        curve: the posterior's `best_of`, of rising counts.
    """
    if len(curve) < 2:
        return {}
    *fewer, last = curve
    far = [point["count"] for point in fewer if abs(point["mean"] - last["mean"]) > _CLOSE]
    enough = next(point["count"] for point in curve if not far or point["count"] > far[-1])
    return {"enough": enough, "all": last["count"], "all_but_the_last": fewer[-1]["count"]}


def _curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], colours: Mapping[str, str]) -> str:
    def draw(figure: Any) -> None:
        from matplotlib.ticker import NullFormatter

        panels = (("every kind", list(curves)), ("posterior's alone", [_POSTERIOR]))
        for axes, (title, shown) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            for kind in shown:
                counts = [point["count"] for point in curves[kind]]
                mean, low, high = ([100 * point[name] for point in curves[kind]] for name in ("mean", "low", "high"))
                axes.plot(counts, mean, "o-", markersize=3, color=colours[kind], label=kind)
                axes.fill_between(counts, low, high, color=colours[kind], alpha=0.25, linewidth=0)
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
