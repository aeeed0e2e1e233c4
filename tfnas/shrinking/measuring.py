"""Measurements of networks, before and after: metrics, parameters, multiply-adds, file size and latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfnas.common.errors import UserError
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost, count
from tfnas.graph.latencies import Device, compare_latency
from tfnas.graph.models import file_bytes


@dataclasses.dataclass(frozen=True)
class Measured:
    """One network, as measured.

    Attributes:
        metrics: compiled loss and metrics on the validation examples, by name, as Keras's `evaluate` has them.
        parameters: number of them, as `tfnas.cost` counts.
        multiply_adds: of one example; None if the input has no fixed size.
        file_bytes: of the `.keras` file without the optimizer's state; None if the network cannot be saved.
        latency: seconds of one example; None if the input has no fixed size.
        test: as `metrics`, on the test examples; empty without these.
    """

    metrics: Mapping[str, float]
    parameters: int
    multiply_adds: int | None
    file_bytes: int | None
    latency: float | None
    test: Mapping[str, float] = dataclasses.field(default_factory=dict)


def sizes(model: keras.Model) -> dict[str, Any]:
    """Returns the part of `Measured` that needs no data, of a functional network."""
    graph = Graph(model)
    try:
        known = dataclasses.asdict(cost(graph))
    except UserError:  # no fixed size
        known = {"parameters": count(graph, "parameters"), "multiply_adds": None}
    try:
        size = file_bytes(model)
    except (TypeError, ValueError, NotImplementedError):  # a user's layer without a config
        size = None
    return {**known, "file_bytes": size}


def latencies(models: Sequence[keras.Model], device: str | Device) -> Sequence[float | None]:
    """Seconds of one example in each network, measured in turns; None if the inputs have no fixed size."""
    if any(None in x.shape[1:] for model in models for x in model.inputs):
        return [None] * len(models)
    return compare_latency(models, device, rounds=3).seconds
