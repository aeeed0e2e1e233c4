"""The inverse question: the smallest network that loses at most so much of a validation metric.

The units are chosen by curvature at once, so that one full network serves all sizes. Sizes are tried by bisection on a
logarithmic scale: each is cut out, trained further and measured, and the smallest that is within the drop is kept.

What is guaranteed is that the drop on the validation examples is at most `max_drop`. These have also chosen the
network, so that its drop on others tends to be larger. The upper bound that is given for others holds for all sizes
that the bisection may come to at once, 2^tries - 1 of them (Bonferroni), but not for the choices within one size, which
look at the same examples: the way of the cut, whether the retraining is kept, and what the user's callbacks do. The
bound on test examples is free of all this.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from markupsafe import Markup

from tfnas.common import markup, terminal
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.data import inputs
from tfnas.ranking.losses import ACCURACY, Criterion
from tfnas.shrinking.phases.fitting import evaluate
from tfnas.shrinking.phases.job import Job
from tfnas.shrinking.phases.retraining import Cut, cut, results
from tfnas.shrinking.phases.searching import Searched
from tfnas.shrinking.result import Shrunk
from tfnas.training.distillation import Teacher

_LEVEL = 0.95
_BATCH_SIZE = 250
_RESAMPLES = 200
_ROUNDING = 1e-6  # of metrics, which are float32
_CLOSE = 1.05  # ratio of sizes between which no further one is tried


@dataclasses.dataclass(frozen=True)
class Drop:
    """Loss of a metric by a network, on some examples.

    Attributes:
        metric: its name.
        measured: the full network's minus this one's; the other way round where less is better.
        upper: upper bound of the drop on other examples of the same kind.
        level: confidence of the bound.
        exact: whether it holds for any number of examples: the metric is an accuracy of one position. Else it is
            approximate, by the bootstrap.
        num_examples: measured on.
    """

    metric: str
    measured: float
    upper: float
    level: float
    exact: bool
    num_examples: int

    def __str__(self) -> str:
        how = "" if self.exact else " (approximately)"
        return (
            f"{self.measured:.4f} on {self.num_examples:,} examples; on others, at most {self.upper:.4f} with "
            f"{markup.percent(self.level, 0)} confidence{how}"
        )


@dataclasses.dataclass(frozen=True)
class Try:
    """A size that was tried.

    Attributes:
        share: of the full network's cost.
        drop: of the validation metric.
    """

    share: float
    drop: float


@dataclasses.dataclass(frozen=True, repr=False)
class SmallestShrunk(Shrunk):
    """The smallest network within a drop; shows itself as a table and what is known of the drop.

    Attributes:
        max_drop: asked for.
        validation_drop: on the validation examples, which have also chosen the network.
        test_drop: on the test examples, which have not; None without these.
        tries: sizes that were tried, in order.
    """

    max_drop: float
    validation_drop: Drop
    test_drop: Drop | None
    tries: tuple[Try, ...]

    def __repr__(self) -> str:
        return "\n".join([super().__repr__(), "", *self._words()])

    def _repr_html_(self) -> Markup:
        return super()._repr_html_() + Markup("").join(markup.paragraph(line) for line in self._words())

    def _words(self) -> list[str]:
        metric = self.validation_drop.metric
        tried = ", ".join(f"{markup.percent(one.share)} {one.drop:+.4f}" for one in self.tries)
        lines = [
            f"Drop of the validation {metric}, at most {self.max_drop:g} asked for: {self.validation_drop}.",
            f"Sizes tried, and the drop of each: {tried}.",
        ]
        if self.test_drop is not None:
            lines.insert(1, f"Drop of the test {metric}, which chose nothing: {self.test_drop}.")
        return lines


def smallest(
    job: Job,
    searched: Searched,
    epochs: int,
    teacher: Teacher | None,
    callbacks: Sequence[keras.callbacks.Callback],
    max_drop: float,
    resource: str,
    tries: int,
    test: Any,
) -> SmallestShrunk:
    """Finds the smallest network within a drop of the first compiled metric, or of the loss if there is none.

    Args:
        job, searched, epochs, teacher, callbacks: as of `phases.retraining.cut`, for each size.
        max_drop: largest drop on the validation examples, absolute, >= 0.
        resource: that is to be small, 'parameters' or 'multiply_adds'.
        tries: sizes that are tried at most.
        test: as of `shrink`.
    """
    form, full = searched.supernet.form, job.network
    job.prepare(full)
    before = evaluate(full, job.dataset(job.held_out))
    metric, sign = _watched(job, before)
    low, high = form.least(resource, searched.supernet.channel_multiple) / form.full(resource), 1.0
    best: Cut | None = None
    done: list[Try] = []
    while len(done) < tries and high > _CLOSE * low:
        share = math.sqrt(low * high)
        (architecture,) = searched.architectures([{resource: share}], 1)
        own = [copy.copy(one) for one in callbacks]
        found = cut(job, searched, architecture, epochs, teacher, f"retrain/{len(done)}", own)
        drop = sign * (before[metric] - found.metrics[metric])
        done.append(Try(share, drop))
        within = drop <= max_drop + _ROUNDING
        terminal.print_line(
            f"shrink    {markup.percent(share)} of the {Resource(resource).words}: {metric} "
            f"{found.metrics[metric]:.4g}, a drop of {drop:.4f}, {'within' if within else 'above'} {max_drop:g}"
        )
        low, high, best = (low, share, found) if within else (share, high, best)
    if best is None:
        terminal.warn(f"shrink    no size that was tried is within a drop of {max_drop:g}: the network is the full one")
        best = cut(job, searched, searched.supernet.graph.full, 0, None, "retrain/full", ())
    examples = None if test is None else inputs.read(test, full, "shrink: test")
    (result,) = results(job, searched, [best], [{resource: high}], None if examples is None else job.labeled(examples))
    compared = _Compared(job, searched, best.model, metric, sign)
    return SmallestShrunk(
        **{field.name: getattr(result, field.name) for field in dataclasses.fields(Shrunk)},
        max_drop=max_drop,
        validation_drop=compared.on(job.held_out, 2**tries - 1),
        test_drop=None if examples is None else compared.on(examples, 1),
        tries=tuple(done),
    )


def _watched(job: Job, figures: dict[str, float]) -> tuple[str, int]:
    """The name of the metric that may drop, and 1 if more of it is better, else -1.

    Raises UserError if Keras does not say which is better, and the full network, whose weights are trained, does not
    show it either.
    """
    name = next((name for name in figures if not name.endswith("loss")), None)
    if name is None:
        return "loss", -1
    for metric in _flat(job.network.metrics):
        if name == metric.name or name.endswith(f"_{metric.name}"):
            direction = getattr(metric, "_direction", None)  # as Keras's EarlyStopping has it
            if direction in ("up", "down"):
                return name, 1 if direction == "up" else -1
    outputs = _outputs(job, job.network, job.held_out)
    order = np.random.default_rng(0).permutation(len(job.held_out))
    own, shuffled = (_value(job, name, x, job.held_out) for x in (outputs, [x[order] for x in outputs]))
    if own == shuffled or not np.isfinite([own, shuffled]).all():
        raise UserError(
            f"shrink: max_drop limits the first compiled metric, and of '{name}' it is unknown whether more or less of "
            f"it is better: it is {own:.4g} on the validation examples, and {shuffled:.4g} with their labels shuffled; "
            "compile the model with another metric first"
        )
    return name, 1 if own > shuffled else -1


def _flat(metrics: Sequence[Any]) -> list[Any]:
    return [one for m in metrics for one in (_flat(m.metrics) if hasattr(m, "metrics") else [m])]


def _outputs(job: Job, model: keras.Model, examples: inputs.Examples) -> list[np.ndarray]:
    """All outputs of a network, as arrays."""
    parts = []
    for first in range(0, len(examples), _BATCH_SIZE):
        some = examples.take(slice(first, first + _BATCH_SIZE)).inputs
        found = keras.tree.flatten(model(job.packed(some), training=False))
        parts.append([np.asarray(tf.cast(x, tf.float32)) for x in found])
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _value(job: Job, metric: str, outputs: list[np.ndarray], examples: inputs.Examples) -> float:
    """The metric, by Keras."""
    model, structure = job.network, keras.tree.pack_sequence_as(job.network.output, outputs)
    if metric == "loss":
        loss = model.compute_loss(None, examples.labels, structure, examples.weights, training=False)
        return float(loss)
    compiled = model._compile_metrics
    compiled.reset_state()
    compiled.update_state(examples.labels, structure, sample_weight=examples.weights)
    return float(np.asarray(compiled.result()[metric]))


class _Compared:
    """The full network and another one, compared on examples."""

    def __init__(self, job: Job, searched: Searched, model: keras.Model, metric: str, sign: int):
        self._job, self._supernet, self._metric, self._sign = job, searched.supernet, metric, sign
        self._models = (job.network, model)

    def on(self, examples: inputs.Examples, num_compared: int) -> Drop:
        """The drop on these examples, with an upper bound for as many comparisons at once."""
        outputs = [_outputs(self._job, model, examples) for model in self._models]
        error = (1 - _LEVEL) / num_compared
        before, after = (_value(self._job, self._metric, x, examples) for x in outputs)
        measured = self._sign * (before - after)
        correct = self._correct(outputs, examples)
        if correct is not None:
            upper = upper_bound(*correct, error)
        else:
            upper = measured + scipy.stats.norm.isf(error) * self._deviation(outputs, examples)
        return Drop(self._metric, measured, upper, _LEVEL, correct is not None, len(examples))

    def _correct(
        self, outputs: Sequence[list[np.ndarray]], examples: inputs.Examples
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Whether each example is correct by both networks, if the metric is just the share of those."""
        if self._metric != ACCURACY or examples.weights is not None:
            return None
        criterion = Criterion(self._supernet, examples, "shrink")
        if ACCURACY not in criterion.names:
            return None
        found = [
            np.asarray(criterion([tf.convert_to_tensor(x) for x in one], examples.labels)[ACCURACY]) for one in outputs
        ]
        return (found[0] > 0.5, found[1] > 0.5) if all(np.isin(x, (0, 1)).all() for x in found) else None

    def _deviation(self, outputs: Sequence[list[np.ndarray]], examples: inputs.Examples) -> float:
        """Standard deviation of the difference over the bootstrap's resamples."""
        rng, drops = np.random.default_rng(0), []
        for _ in range(_RESAMPLES):
            rows = rng.integers(0, len(examples), len(examples))
            some = examples.take(rows)
            before, after = (_value(self._job, self._metric, [x[rows] for x in one], some) for one in outputs)
            drops.append(before - after)
        return float(np.std(drops, ddof=1))


def upper_bound(before: np.ndarray, after: np.ndarray, error: float) -> float:
    """Upper bound of the drop of an accuracy between two networks, from the same examples; exact for any number.

    The drop is the probability that only the first is correct, minus that only the second is. The bound takes the upper
    limit of the one and the lower limit of the other (Clopper and Pearson 1934), each with half of the error.

    Args:
        before, after: whether each example is correct, bool, shape (N,).
        error: probability with which the bound does not hold, in (0, 1).
    """
    total = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    upper = 1.0 if lost == total else float(scipy.stats.beta.isf(error / 2, lost + 1, total - lost))
    lower = 0.0 if not gained else float(scipy.stats.beta.ppf(error / 2, gained, total - gained + 1))
    return upper - lower


def check(max_drop: float, bounds: dict[str, Any], resource: str, tries: int) -> None:
    """Raises UserError for arguments of `shrink` that do not fit together."""
    is_number = isinstance(max_drop, int | float | np.number) and not isinstance(max_drop, bool)
    if not is_number or not max_drop >= 0:
        raise UserError(f"shrink: max_drop must be a number of at least 0, such as 0.01. Received: {max_drop!r}")
    if bounds:
        raise UserError(f"shrink: max_drop finds the size itself, without bounds. Received: {', '.join(bounds)} too")
    if resource not in (Resource.PARAMETERS, Resource.MULTIPLY_ADDS):
        raise UserError(f"shrink: resource must be 'parameters' or 'multiply_adds'. Received: {resource!r}")
    if not isinstance(tries, int | np.integer) or isinstance(tries, bool) or tries < 1:
        raise UserError(f"shrink: tries must be a whole number of at least 1. Received: {tries!r}")
