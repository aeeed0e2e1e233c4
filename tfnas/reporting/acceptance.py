"""Whether a network may be exported: the thresholds of config.evaluate compared with the results. No TensorFlow."""

from __future__ import annotations

import math

from tfnas.common import statistics
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.config import Evaluate
from tfnas.runs.measured import Check, Results, Verdict
from tfnas.tasks.facts import Facts

_FAR = 0.1  # of accuracy, or of an error relatively: a subnet is not better by this much if both were trained alike
_ROUNDING = 1e-9  # of a difference of two fractions


def doubt(results: Results, facts: Facts) -> str:
    """The reason why the full network is not a fair comparison, in one line; empty if it is one or was not trained.

    Args:
        results: of retrain.
        facts: of the task.
    """
    full, metric = results.full_row, facts.headline
    if full is None:
        return ""
    value, found = metric.of(full.test), metric.of(results.chosen_row.test)
    ahead = -metric.drop(found, value)
    if facts.exact and (chance := _at_chance(value, results)):
        why = f"is not distinguishable from always answering the most frequent class ({chance:.1%})"
    elif ahead > _FAR:
        far = f"{100 * ahead:.1f} {'points' if metric.share else '%'}"
        why = f"is {far} {'below' if metric.share else 'worse than'} the network found"
    else:
        return ""
    shown = f"{value:.1%}" if metric.share else f"{metric.title} of {metric.shown(value)}"
    return (
        f"the full network is not a fair comparison: its {shown} on test {why}, so it was not trained well; try "
        "another search.learning_rate or more epochs"
    )


def _at_chance(accuracy: float, results: Results) -> float:
    """Share of the most frequent class, if an accuracy is not distinguishable from it; else 0."""
    total = results.num_examples
    chance = max((sum(row) for row in results.confusion), default=0) / total
    low, _ = statistics.proportion_interval(round(accuracy * total), total, 0.95)
    return chance if low <= chance else 0.0


def judge(settings: Evaluate, results: Results, facts: Facts) -> Verdict:
    """The verdict on the network that retrain chose.

    Args:
        settings: the thresholds; those left at their defaults are not checked.
        results: of retrain.
        facts: of the task.

    Raises:
        UserError: if there is a threshold on the full network's metric, and it was not trained.
    """
    chosen, metric = results.chosen_row, facts.headline
    value = metric.of(chosen.test)
    checks = []
    if (limit := settings.threshold) > 0:
        side = "least" if metric.goal == "max" else "most"
        says = f"a test {metric.title} of {metric.exactly(value)}, at {side} {metric.exactly(limit)} asked"
        margin = value - limit if metric.goal == "max" else limit - value
        checks.append(_check("threshold", value, limit, margin, says))
    if (most := settings.max_drop) < 1:
        full = results.full_row
        if full is None:
            raise UserError(
                f"evaluate.max_drop={most:g}: the full network's {metric.title} expected too. Received: none; "
                "retrain with --config.retrain.baseline=true"
            )
        drop = metric.drop(value, metric.of(full.test))
        worse, better = ("below", "above") if metric.share else ("worse than", "better than")
        side, asked = worse if drop > 0 else better, worse.partition(" ")[0]
        says = f"a test {metric.title} {abs(drop):.2%} {side} the full network's, at most {most:.2%} {asked} asked"
        margin = most - drop
        if doubted := doubt(results, facts):
            margin, says = -math.inf, f"{says}, but {doubted}"
        checks.append(_check("max_drop", drop, most, margin, says))
    for resource in (Resource.PARAMETERS, Resource.MULTIPLY_ADDS):
        if (most := getattr(settings, f"max_{resource}")) < 1:
            share = getattr(chosen, resource) / getattr(results.full, resource)
            says = f"{share:.2%} of the full network's {resource.words}, at most {most:.2%} asked"
            checks.append(_check(f"max_{resource}", share, most, most - share, says))
    return Verdict(all(check.passed for check in checks), tuple(checks))


def findings(verdict: Verdict) -> list[str]:
    """The thresholds that the network does not meet; of a blessed one, those that it meets."""
    says = [check.says for check in verdict.checks if verdict.blessed or not check.passed]
    return says or ["no threshold is set"]


def reasons(verdict: Verdict) -> str:
    """`findings` in one line."""
    return "; ".join(findings(verdict))


def _check(setting: str, value: float, limit: float, margin: float, says: str) -> Check:
    """The record of a threshold, which is met unless its margin is negative."""
    return Check(f"evaluate.{setting}", value, limit, margin >= -_ROUNDING, says)
