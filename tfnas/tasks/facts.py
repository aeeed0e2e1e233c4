"""Facts about tasks: names, directions and forms of their metrics, and what a run may ask for. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfnas.common import markup, user_functions
from tfnas.common.errors import UserError

GOALS = ("max", "min")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of networks or candidates.

    Attributes:
        name: in files.
        title: in tables and sentences.
        goal: 'max' if higher is better, else 'min'.
        share: whether it is a share in [0, 1], shown in percent.
        defined: whether it is one for any network and data; else it may be NaN.
    """

    name: str
    title: str
    goal: str = "max"
    share: bool = True
    defined: bool = True

    @property
    def scale(self) -> float:
        """Factor from values to what plots show."""
        return 100.0 if self.share else 1.0

    @property
    def axis(self) -> str:
        """Title with its unit, for an axis."""
        return f"{self.title}, %" if self.share else self.title

    @property
    def plural(self) -> str:
        """Title of several values."""
        return f"{self.title[:-1]}ies" if self.title.endswith("y") else self.title

    @property
    def nearly(self) -> str:
        """Difference that `close` allows, in words."""
        return "half a point" if self.share else "half a percent"

    def of(self, values: Mapping[str, float]) -> float:
        """Returns the value among a record's. Raises UserError if it is not there, or a share that is none."""
        value = values.get(self.name)
        fits = value is not None and (not self.share or 0 <= value <= 1 or (not self.defined and value != value))
        if not fits:
            expected = f"the metric '{self.name}' of the task{', a share in [0, 1],' * self.share}"
            received = ", ".join(f"{name}={found:g}" for name, found in values.items()) or "none"
            raise UserError(
                f"results: {expected} expected. Received: {received}; run the stages again, in another --workdir"
            )
        return values[self.name]

    def shown(self, value: float) -> str:
        """Returns the value as tables show it."""
        return markup.percent(value) if self.share else f"{value:.4g}"

    def exactly(self, value: float) -> str:
        """Returns the value as sentences show it: with more digits."""
        return f"{value:.2%}" if self.share else f"{value:.5g}"

    def changed(self, change: float) -> str:
        """Returns a difference of two values with its sign: of shares, in points."""
        return f"{100 * change:+.2f} points" if self.share else f"{change:+.4g}"

    def close(self, value: float, other: float) -> bool:
        """Whether two values are as good as equal: shares to half a point, numbers to half a percent."""
        return abs(value - other) <= 0.005 * (1.0 if self.share else abs(other))

    def error(self, value: float) -> float:
        """Returns a value as tables of errors have it: of shares the rest to 1 in percent, of others the value."""
        return 100 * (1 - value) if self.share else value

    def errors(self, values: Any) -> Any:
        """Returns values of which lower is better: of shares the rest to 1."""
        values = np.asarray(values)
        return values if self.goal == "min" else 1.0 - values if self.share else -values

    def drop(self, value: float, full: float) -> float:
        """Returns by how much a value is worse than the full network's: a difference of shares, or a relative one."""
        worse = full - value if self.goal == "max" else value - full
        return worse if self.share else worse / max(abs(full), 1e-12)

    def best(self, values: Any) -> int:
        """Index of the best value; of equal ones the first."""
        return int(np.argmin(self.errors(values)))


@dataclasses.dataclass(frozen=True)
class Facts:
    """Measurements of a task's runs.

    Attributes:
        name: of the task, as in the settings.
        words: what the model card calls it, with a place for what an example is called, in the plural.
        example: metric that is a mean over examples: of training, of candidates, and what `sample.rank_by` may name.
        columns: metrics of networks, in the order of the report's table; the first one decides.
        primary: name of what a served network answers, which is measured and compared.
        answers: all that it answers, in words.
        use: what that says of an example, in words, with places for what that is called and the number of outputs.
        exact: whether an example is either right or wrong, so that tests and intervals of proportions apply.
        classes: whether a network answers with probabilities of classes of which an example has one, which can be
            averaged over networks.
        spatial: whether targets have a position for each pixel, so that they follow every shift of the image.
    """

    name: str
    words: str
    example: Metric
    columns: tuple[Metric, ...]
    primary: str
    answers: str
    use: str
    exact: bool = False
    classes: bool = False
    spatial: bool = False

    @property
    def headline(self) -> Metric:
        """The metric that decides."""
        return self.columns[0]


_ACCURACY = Metric("accuracy", "accuracy")
_MAE = Metric("mae", "MAE", "min", share=False)
_KNOWN = {
    facts.name: facts
    for facts in (
        Facts(
            "classification",
            "classification of {examples}, each into one of the classes",
            _ACCURACY,
            (_ACCURACY, Metric("top5_accuracy", "top-5")),
            "probabilities",
            "probabilities float32 (N, classes), and of the most probable classes the names, classes string (N, k), "
            "and scores float32 (N, k)",
            "Every {example} is assigned one of the {count} classes, even if it is of none of them: there is no class "
            "for anything else.",
            exact=True,
            classes=True,
        ),
        Facts(
            "multi_label",
            "classification of {examples}, each with any number of the labels",
            _ACCURACY,
            (Metric("auc", "AUC", defined=False), _ACCURACY),
            "probabilities",
            "probabilities float32 (N, labels), and of the most probable labels the names, classes string (N, k), and "
            "scores float32 (N, k)",
            "Every {example} is assigned a probability of each of the {count} labels, independent of the others; which "
            "are enough for a label is left to you.",
        ),
        Facts(
            "regression",
            "regression: numbers from {examples}",
            _MAE,
            (Metric("rmse", "RMSE", "min", share=False), _MAE),
            "values",
            "values float32 (N, numbers)",
            "Every {example} is assigned {count} numbers, even if it is unlike all that they were measured of.",
        ),
        Facts(
            "segmentation",
            "segmentation: a class for every pixel of an image",
            _ACCURACY,
            (Metric("mean_iou", "mean IoU"), Metric("accuracy", "pixel accuracy")),
            "probabilities",
            "probabilities float32 (N, height, width, classes), and the most probable class of each pixel, mask int32 "
            "(N, height, width)",
            "Every pixel is assigned one of the {count} classes, even if it shows none of them: there is no class for "
            "anything else.",
            spatial=True,
        ),
    )
}
CUSTOM = "custom"
NAMES = (*_KNOWN, CUSTOM)


def facts_of(task: str, metric: str = "", goal: str = "") -> Facts:
    """Returns the facts of a task.

    Args:
        task: one of `NAMES`.
        metric: of a custom task, 'package.module:metric'.
        goal: of that metric, one of `GOALS`.

    Raises:
        UserError: if the metric has no name of that form, or one that figures of another kind have.
    """
    if task != CUSTOM:
        return _KNOWN[task]
    user_functions.check_name("metric", metric)
    name = metric.partition(":")[2]
    if name in ("loss", "accuracy", "top5_accuracy"):
        raise UserError(f"config: 'metric' must be named otherwise than 'loss' and accuracies. Received: '{name}'")
    own = Metric(name, name.replace("_", " "), goal, share=False)
    answers = "outputs float32 (N, ...), or several by their names, as the network gives them"
    return Facts(CUSTOM, f"a task of its own, measured by {own.title}", own, (own,), "outputs", answers, answers)
