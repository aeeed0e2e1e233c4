"""Whether a network may be exported: the thresholds of config.evaluate compared with the results. No TensorFlow."""

from __future__ import annotations

import math

from tfnas.common import statistics
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.config import Evaluate
from tfnas.runs.measured import Check, Results, Verdict

_FAR = 0.1  # of accuracy: a subnet is not better than the full network by this much if both were trained alike
_ROUNDING = 1e-9  # of a difference of two fractions


def doubt(results: Results) -> str:
    """The reason why the full network is not a fair comparison, in one line; empty if it is one or was not trained.

    Args:
        results: of retrain.
    """
    full, labels = results.full_row, [sum(row) for row in results.confusion]
    if full is None:
        return ""
    accuracy, total = full.test_accuracy, sum(labels)
    chance = max(labels) / total
    low, _ = statistics.proportion_interval(round(accuracy * total), total, 0.95)
    ahead = results.chosen_row.test_accuracy - accuracy
    if low <= chance:
        why = f"is not distinguishable from always answering the most frequent class ({chance:.1%})"
    elif ahead > _FAR:
        why = f"is {100 * ahead:.1f} points below the network found"
    else:
        return ""
    return (
        f"the full network is not a fair comparison: its {accuracy:.1%} on test {why}, so it was not trained well; try "
        "another search.learning_rate or more epochs"
    )


def judge(settings: Evaluate, results: Results) -> Verdict:
    """The verdict on the network that retrain chose.

    Args:
        settings: the thresholds; those left at their defaults are not checked.
        results: of retrain.

    Raises:
        UserError: if there is a threshold on the full network's accuracy, and it was not trained.
    """
    chosen = results.chosen_row
    accuracy = chosen.test_accuracy
    checks = []
    if (least := settings.min_accuracy) > 0:
        says = f"a test accuracy of {accuracy:.2%}, at least {least:.2%} asked"
        checks.append(_check("min_accuracy", accuracy, least, accuracy - least, says))
    if (most := settings.max_accuracy_loss) < 1:
        full = results.full_row
        if full is None:
            raise UserError(
                f"evaluate.max_accuracy_loss={most:g}: the full network's accuracy expected too. Received: none; "
                "retrain with --config.retrain.baseline=true"
            )
        loss = full.test_accuracy - accuracy
        side = "below" if loss > 0 else "above"
        says = f"a test accuracy {abs(loss):.2%} {side} the full network's, at most {most:.2%} below asked"
        margin = most - loss
        if doubted := doubt(results):
            margin, says = -math.inf, f"{says}, but {doubted}"
        checks.append(_check("max_accuracy_loss", loss, most, margin, says))
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
