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


def section(candidates: Sequence[Mapping[str, Any]], ranking: Mapping[str, Any]) -> str:
    """The section's HTML.

    Args:
        candidates: the records of candidates.jsonl.
        ranking: the content of ranking.json.
    """
    kinds = ranking["kinds"]
    by_kind = {kind: [c for c in candidates if c["kind"] == kind] for kind in kinds}
    colours = dict(zip(kinds, _COLOURS, strict=True))
    return (
        _answer(ranking["comparisons"], kinds[_POSTERIOR])
        + _short(kinds)
        + _races(ranking)
        + markup.side_by_side(_histogram(by_kind, colours), _scatter(by_kind, colours, kinds[_POSTERIOR]["best"]))
        + _curves(kinds, colours)
        + _predictive(ranking)
    )


def _answer(comparisons: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    """Whether the posterior's best is better than the best of as many random candidates, by McNemar's test.

    Or why that is not known. `found` is what the ranking says of the posterior's candidates.
    """
    if not comparisons:
        why = (
            "no random candidate reaches the output"
            if found["fresh"]
            else "no examples were kept from the race to do it on (sample.holdout is 0)"
        )
        return f"<p>{markup.text(f'It was not compared with chance: {why}.')}</p>"
    level = [kind for kind, c in comparisons.items() if not significant(c)]
    worse = [kind for kind, c in comparisons.items() if significant(c) and c["only_found"] < c["only_other"]]
    if worse:
        verdict = f"Worse than chance, than {' and '.join(map(repr, worse))}"
    elif level:
        verdict = f"Not told apart from chance, from {' and '.join(map(repr, level))}, by so few examples"
    else:
        verdict = "Better than chance"
    compared = "; ".join(
        f"of {c['count']:,} candidates of either kind, the posterior's best has "
        f"{with_interval(c['accuracy'], c['num_examples'])}, the best {kind} "
        f"{with_interval(c['other_accuracy'], c['num_examples'])}: {discordant(c)}"
        for kind, c in comparisons.items()
    )
    examples = next(iter(comparisons.values()))["num_examples"]
    return lead(f"{verdict}: before retraining, on the same {examples:,} fresh examples, {compared}.")


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


def lead(words: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="lead">{markup.text(words)}</p>'


def _short(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """Which kinds have fewer candidates to compare than were asked for, and why."""
    short = [f"{kind}: {group['left_out']}." for kind, group in kinds.items() if group["left_out"]]
    return f'<p class="note">{markup.text(" ".join(short))}</p>' if short else ""


def _races(ranking: Mapping[str, Any]) -> str:
    kinds = ranking["kinds"]
    found = kinds[_POSTERIOR]
    flattered = "flattered, because the best of many is partly the luckiest"
    raced = f"The candidates of each kind are compared on {found['best']['num_examples']:,} examples"
    if found["fresh"]:
        words = (
            f"{raced}, and the winner is measured again on {found['fresh']['num_examples']:,} fresh ones. Its figures "
            f"in the race are {flattered}: believe the fresh ones (in brackets: 95 % intervals)."
        )
    else:
        words = (
            f"{raced}, and the winner's figures there are {flattered}. No examples were kept from the race to measure "
            "it on again: sample.holdout is 0."
        )
    notes = (
        f"Mean: mean and deviation of the accuracies of the first {found['num_measured']:,} candidates that were drawn "
        "(where a size was asked for, the most probable network of that size races too, but is no sample), on all of "
        "the race's examples. Evaluated: share of all evaluations that were made; the race spared those of "
        "candidates that could not win any more. Ties: candidates that a paired t-test does not find worse than the "
        "winner; the smallest or fastest of them may do as well. Of the posterior's candidates, the one of the best "
        f"{ranking['rank_by']} wins; of random ones, the one of the best accuracy. Each random candidate is at most as "
        "large as one posterior candidate, in what the size is asked for, and has the same weights: spread evenly, "
        "every channel is dropped alike; allocated per layer, every layer first draws a keep rate of its own."
    )
    rows = [(kind == _POSTERIOR, _row(kind, group)) for kind, group in kinds.items()]
    return (
        f'<p>{markup.text(words)}</p>{markup.table(_HEADINGS, rows, "numbers")}<p class="note">{markup.text(notes)}</p>'
    )


def _row(kind: str, group: Mapping[str, Any]) -> list[str]:
    mean = f"{100 * group['mean_accuracy']:.1f} ± {100 * group['std_accuracy']:.1f} %"
    cells = [kind, f"{group['count']:,}", mean]
    best = group["best"]
    if best is None:  # every candidate drops every path to the output
        return cells + ["-"] * (len(_HEADINGS) - len(cells))
    cells += [f"{1 - group['saved']:.0%}".replace("%", " %") if group["saved"] else "all"]
    cells += [_loss(best["loss"]), f"{100 * best['accuracy']:.1f} %"]
    fresh = group["fresh"]
    cells += [_loss(fresh["loss"]), _accuracy(fresh)] if fresh else ["-", "-"]
    return [*cells, f"{len(group['ties']):,}"]


def _accuracy(score: Mapping[str, Any]) -> str:
    return with_interval(score["accuracy"], score["num_examples"])


def with_interval(accuracy: float, num_examples: int) -> str:
    """An accuracy in percent, in brackets its 95 % interval (Wilson's)."""
    return _percent(accuracy, *interval(accuracy, num_examples))


def interval(accuracy: float, num_examples: int) -> tuple[float, float]:
    """The ends of the 95 % interval (Wilson's) of an accuracy."""
    # Here and not above, because it takes a second that the terminal's table need not wait.
    from tfnas.common.statistics import proportion_interval

    return proportion_interval(round(accuracy * num_examples), num_examples)


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


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


def _curves(kinds: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    curves = {kind: group["best_of"] for kind, group in kinds.items() if group["best"]}
    if not all(curves.values()):  # no examples were kept from the race
        return ""

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
    *fewer, last = curves[_POSTERIOR]
    words = "How many samples do you need? "
    if fewer:
        far = [point["count"] for point in fewer if abs(point["mean"] - last["mean"]) > _CLOSE]
        enough = next(point["count"] for point in curves[_POSTERIOR] if not far or point["count"] > far[-1])
        words += (
            f"On average, the best of {enough:,} is within half a point of the best of all {last['count']:,}."
            if enough < last["count"]
            else f"More than {fewer[-1]['count']:,}: half a point is still gained up to all {last['count']:,}."
        )
    words += (
        " The candidates are chosen by the race and measured on the fresh examples, so that many are not flattered "
        "by having been chosen; of many, some are measured for those around them in the race's order. The intervals, "
        "over candidates, say little at the right end, where all depends on the one best."
    )
    return f"<p>{markup.text(words)}</p>{markup.drawing(draw, (markup.WIDTH, 3), caption)}"


def _predictive(ranking: Mapping[str, Any]) -> str:
    measured = ranking["predictive"]
    if not measured:
        return ""
    fresh = ranking["kinds"][_POSTERIOR]["fresh"]
    where = f"the {fresh['num_examples']:,} fresh examples" if fresh else "all validation examples, the race's too"
    words = (
        f"How good are its probabilities? On {where}: the network found; the ensemble that averages the probabilities "
        "of the best candidates; and the average of as many posterior samples, unranked, which is the Monte-Carlo "
        "predictive distribution. NLL and expected calibration error: the smaller, the better. In brackets: 95 % "
        "intervals over the examples, Wilson's of the accuracy and the bootstrap's of the NLL. The calibration error "
        "has none, and grows with noise: compare it on the same examples only."
    )
    rows = []
    for name, values in measured.items():
        nll = "{} ({} to {})".format(*map(_loss, values["nll"]))
        ece = f"{100 * values['ece']:.1f} %"
        rows.append((False, [name, _percent(*values["accuracy"]), nll, ece]))
    headings = ("prediction", "accuracy", "NLL, nats", "calibration error")
    return f"<p>{markup.text(words)}</p>{markup.table(headings, rows, 'numbers')}"
