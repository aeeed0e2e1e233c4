"""The JSON files of retrain, evaluate and export: one record for each, for its writer and its readers.

Metrics are those of the task's columns, by name (`tfnas.tasks.facts`); `tfnas.runs.stage_table` has the files' names.
No TensorFlow.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from tfnas.common.schema import MOST, Amount, Count, Loss, expect, list_of, number, text_of
from tfnas.config import FORMATS
from tfnas.runs.sampled import Kind, Metrics, Paired
from tfnas.tasks.network_inputs import Inputs


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a network."""

    parameters: Count
    multiply_adds: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A network of the comparison, or the mean of several.

    Attributes:
        name: that the table shows.
        kind: where it comes from.
        fine_tuned: whether it was trained by itself, unlike another of its kind.
        way: how it was cut, in words, where there is a choice.
        validation: metrics of the network; of a mean, only those that are means over examples.
        test: likewise.
        parameters: of the network, or the mean.
        multiply_adds: likewise.
        file_bytes: of the `.keras` file; None for a mean, as all that follows.
        latency_seconds: of one example.
        paired: this network and the one chosen, on the test split.
        num_tested: networks that a mean on test is over; None for one network.
    """

    name: str
    kind: Kind
    fine_tuned: bool = False
    way: str | None = None
    validation: Metrics
    test: Metrics
    parameters: Amount
    multiply_adds: Amount
    file_bytes: int | None = None
    latency_seconds: Annotated[float, number(1e-12, 1e9)] | None = None
    paired: Paired | None = None
    num_tested: int | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """retrain/results.json.

    Attributes:
        chosen: name of the row that is exported.
        full: the whole supernet's size.
        num_examples: of the test split.
        rows: of the table.
        confusion: the chosen one's test examples by label (rows) and most probable class (columns); empty unless each
            has one class.
        latency_spread: how many times one network's latencies differ between rounds, at most.
    """

    chosen: str
    full: Size
    num_examples: Count
    rows: Annotated[tuple[Row, ...], list_of(Row, 1)]
    confusion: tuple[tuple[int, ...], ...] = ()
    latency_spread: Annotated[float, number(1, MOST)] = 1.0

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        expect(self.chosen in names, "chosen", self.chosen, "one of the rows' names")
        counted = sum(map(sum, self.confusion))
        expect(not counted or counted == self.num_examples, "confusion", counted, f"of {self.num_examples} examples")

    @property
    def chosen_row(self) -> Row:
        """The row of the network that is exported."""
        return next(row for row in self.rows if row.name == self.chosen)

    @property
    def full_row(self) -> Row | None:
        """The row of the full network, if it was trained too."""
        return next((row for row in self.rows if row.kind == Kind.FULL), None)


@dataclasses.dataclass(frozen=True)
class Check:
    """A threshold of `config.evaluate` that was set.

    Attributes:
        setting: its name, with the section.
        value: measured.
        limit: asked for.
        passed: whether it is met.
        says: all of that, in a line.
    """

    setting: str
    value: float
    limit: float
    passed: bool
    says: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """evaluation.json: whether every threshold is met, and each of them."""

    blessed: bool
    checks: tuple[Check, ...]


@dataclasses.dataclass(frozen=True)
class Converted:
    """The network in another format.

    Attributes:
        format: its name.
        file: in the working directory.
        bytes: its size.
        test: first metric of the task.
        change: less the network's own.
        largest_difference: of a probability, or a number, from the network's.
    """

    format: Annotated[str, text_of(*FORMATS)]
    file: str
    bytes: Count
    test: Loss
    change: Loss
    largest_difference: Annotated[float, number(0)]


@dataclasses.dataclass(frozen=True)
class Exported:
    """export/results.json.

    Attributes:
        saved_model: folder of the version, in the working directory, as all files.
        card: for readers.
        inputs: what the network takes of an example, before it is prepared.
        outputs: names of what it answers, as far as they are compared with the network's.
        largest_difference: of a probability, or a number, of the reloaded SavedModel from the network's.
        test: first metric of the task, as retrain measured it.
        served: that of the reloaded SavedModel.
        files: further ones of the network.
        formats: others that were asked for.
    """

    saved_model: str
    card: str
    inputs: Inputs
    outputs: tuple[str, ...]
    largest_difference: Annotated[float, number(0)]
    test: Loss
    served: Loss
    files: tuple[str, ...]
    formats: tuple[Converted, ...]
