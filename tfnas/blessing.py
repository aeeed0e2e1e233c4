"""Whether a network may be exported: what was asked for, held against what was measured. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfnas.config import Evaluate
from tfnas.errors import UserError
from tfnas.reading import flag, list_of, number, record, text_of

_ROUNDING = 1e-9  # of a difference of two shares of whole numbers
# Of evaluation.json, as `tfnas.reading` has shapes.
VERDICT = record(
    blessed=flag(),
    checks=list_of(record(setting=text_of(), value=number(), limit=number(), passed=flag(), says=text_of())),
)


def judge(settings: Evaluate, results: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on the network that retrain chose.

    Args:
        settings: the thresholds; those left at their defaults are not held against anything.
        results: of retrain: `rows` of measured networks, the name `chosen` of one of them, and the `full` network's
            parameters and multiply-adds.

    Returns:
        `blessed`, whether every threshold is met; `checks`, one record for each threshold that was set: the setting,
        the value measured, the limit, whether it `passed`, and a line that `says` so.

    Raises:
        UserError: if the full network's accuracy is asked for, and it was not trained.
    """
    rows = results["rows"]
    chosen = next(row for row in rows if row["name"] == results["chosen"])
    accuracy = chosen["test_accuracy"]
    checks = []
    if settings.min_accuracy > 0:
        checks.append(_check("min_accuracy", accuracy, settings.min_accuracy, "a test accuracy of {}, at least {}", 1))
    if settings.max_accuracy_loss < 1:
        full = next((row for row in rows if row["name"].startswith("full")), None)
        if full is None:
            raise UserError(
                "evaluate.max_accuracy_loss: the full network must have been trained too: retrain with "
                "--config.retrain.baseline=true"
            )
        loss = full["test_accuracy"] - accuracy
        text = "a test accuracy {} below the full network's, at most {}"
        checks.append(_check("max_accuracy_loss", loss, settings.max_accuracy_loss, text, -1))
    for name in ("parameters", "multiply_adds"):
        limit = getattr(settings, f"max_{name}")
        if limit < 1:
            share = chosen[name] / results["full"][name]
            text = f"{{}} of the full network's {name.replace('_', '-')}, at most {{}}"
            checks.append(_check(f"max_{name}", share, limit, text, -1))
    return {"blessed": all(check["passed"] for check in checks), "checks": checks}


def reasons(verdict: Mapping[str, Any]) -> str:
    """One line: what the network lacks; of a blessed one, what it has."""
    told = [check["says"] for check in verdict["checks"] if verdict["blessed"] or not check["passed"]]
    return "; ".join(told) or "no threshold is set"


def _check(setting: str, value: float, limit: float, text: str, direction: int) -> dict[str, Any]:
    """A threshold that the value must not be below (`direction` 1) or above (-1)."""
    return {
        "setting": f"evaluate.{setting}",
        "value": value,
        "limit": limit,
        "passed": direction * (value - limit) >= -_ROUNDING,
        "says": text.format(f"{value:.2%}", f"{limit:.2%} asked"),
    }
