"""Results of `tfnas.shrink`: a network of one size, or one of each of several sizes and their front."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from markupsafe import Markup

from tfnas.common import atomic, markup
from tfnas.common.resources import Resource
from tfnas.reporting import network_section
from tfnas.search_space.architecture import Architecture
from tfnas.shrinking.measuring import Measured
from tfnas.shrinking.page import page
from tfnas.shrinking.tables import Table, count, short_time

_WAYS = {"as cut": "as it was", "recalibrated": "and recalibrated", "refitted": "and refitted"}


@dataclasses.dataclass(frozen=True, repr=False)
class Shrunk:
    """A smaller network; shows itself as a table, in a notebook with the widths of its layers.

    Attributes:
        model: the network, a plain functional `keras.Model`, compiled as the user's was.
        history: a record for each epoch of all trainings: `phase` ('warm-up', 'search' or 'retrain'), `epoch`, counted
            over all of them, and what `fit` logs.
        before, after: the given model and the smaller one, as measured.
        architecture: which channel units it keeps of the given model.
        bounds: asked for, by resource: shares of the given model's costs, or numbers.
        way: how it was cut: 'as cut', 'recalibrated' or 'refitted'.
        after_cut: compiled loss and metrics right after that, before retraining, on the validation examples.
        retrained: whether `model` has been trained after the cut. It has not without epochs for it, or where they
            raised the validation loss.
    """

    model: keras.Model
    history: Sequence[Mapping[str, Any]]
    before: Measured
    after: Measured
    architecture: Architecture
    bounds: Mapping[str, float]
    way: str
    after_cut: Mapping[str, float]
    retrained: bool

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> Markup:
        return self._table()._repr_html_() + Markup(network_section.widths(self.architecture))

    def _table(self) -> Table:
        return _table([("before", self.before), ("after", self.after)])

    def report(self, path: str | os.PathLike[str]) -> None:
        """Writes a self-contained HTML page: the comparison, the widths of all layers, and the course of training."""
        file = pathlib.Path(path)
        share = markup.percent(self.after.parameters / self.before.parameters, 0)
        lead = f"A network of {self.after.parameters:,} parameters, {share} of the {self.before.parameters:,} before."
        notes = [
            f"Asked for: at most {_asked(self.bounds)}. Cut out {_WAYS[self.way]}"
            f"{', and trained further' if self.retrained else ', not trained further'}.",
            "Losses and metrics are those of the validation examples, by which the network was chosen"
            + (", and of the test examples, which were read once." if self.after.test else "."),
        ]
        text = page(
            self.model.name,
            lead,
            self._table()._repr_html_(),
            notes,
            self.architecture,
            self.history,
            _metric(self.before),
        )
        atomic.write(file, lambda temporary: temporary.write_text(text), file.parent)


class Sizes(tuple[Shrunk, ...]):
    """Smaller networks, one of each size asked for; shows itself as a table and the front."""

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> Markup:
        return self._table()._repr_html_() + _front(self)

    def _table(self) -> Table:
        return _table([("before", self[0].before), *((_asked(one.bounds), one.after) for one in self)])


def _asked(bounds: Mapping[str, float]) -> str:
    """Bounds in words: '25 % of the parameters'."""
    return ", ".join(
        f"{markup.percent(bound, 0) if bound <= 1 else count(bound)} of the {Resource(resource).words}"
        for resource, bound in bounds.items()
    )


def _table(networks: Sequence[tuple[str, Measured]]) -> Table:
    first = networks[0][1]
    headings = [
        "network",
        *first.metrics,
        *(f"test {name}" for name in first.test),
        "parameters",
        "multiply-adds",
        "file",
        "latency",
    ]
    rows = []
    for name, one in networks:
        cells = [name, *(f"{value:.4g}" for value in one.metrics.values())]
        cells += [f"{value:.4g}" for value in one.test.values()]
        cells += [f"{one.parameters:,}", "-" if one.multiply_adds is None else count(one.multiply_adds)]
        cells += ["-" if one.file_bytes is None else f"{count(one.file_bytes)}B"]
        cells += ["-" if one.latency is None else short_time(one.latency)]
        rows.append(cells)
    return Table(headings, rows)


def _metric(measured: Measured) -> str:
    """Name of the first metric, or of the loss."""
    return next((name for name in measured.metrics if not name.endswith("loss")), "loss")


def _front(networks: Sequence[Shrunk]) -> Markup:
    """The front as a picture: the first metric, or the loss, against the costs."""
    first = networks[0].before
    metric = _metric(first)
    costs = [("parameters", [one.parameters for one in _all(networks)])]
    counted = [one.multiply_adds for one in _all(networks)]
    if None not in counted:
        costs.append(("multiply-adds", [int(n or 0) for n in counted]))
    values = [one.metrics[metric] for one in _all(networks)]

    def draw(figure: Any) -> None:
        for i, (name, numbers) in enumerate(costs):
            axes = figure.add_subplot(1, len(costs), i + 1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.plot(numbers[1:], values[1:], "o-", color=markup.BLUE, label="smaller")
            axes.plot(numbers[:1], values[:1], "s", color=markup.GRAY, label="before")
            axes.set(xlabel=name, ylabel=metric if not i else "", xlim=(0, None))
        figure.axes[0].legend(frameon=False)

    return markup.drawing(draw, (markup.WIDTH * 1.5, 2.8), f"{metric} against costs, before and at each size")


def _all(networks: Sequence[Shrunk]) -> list[Measured]:
    """The network before, and the others, the smallest first."""
    return [networks[0].before, *sorted((one.after for one in networks), key=lambda one: one.parameters)]
