"""Shared by all phases of a shrinking: the model, its data, how networks are compiled, and where results are kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnas.data import inputs
from tfnas.graph.latencies import Device
from tfnas.graph.statistics import NUM_EXAMPLES
from tfnas.shrinking.given.compiling import Compiling, build_metrics
from tfnas.shrinking.given.examples import Batches, loader, tuples
from tfnas.shrinking.phases.keeping import Phases

_BATCH_SIZE = 250
_FEW = 2  # examples by which losses and metrics are built


@dataclasses.dataclass(frozen=True)
class Job:
    """See the module.

    Attributes:
        network: the given model without gates, functional, with weights of its own.
        batches: training examples.
        held_out: validation examples.
        compiling: how networks are compiled.
        kept: results of phases.
        key: digest of the model and its data, on which every phase depends.
        num_some: training examples that are read for statistics, refitting and gradients.
        epochs: of all trainings.
        device: where latencies are measured.
        seed: of everything that is random.
    """

    network: keras.Model
    batches: Batches
    held_out: inputs.Examples
    compiling: Compiling
    kept: Phases
    key: str
    num_some: int
    epochs: int
    device: str | Device
    seed: int

    @property
    def steps(self) -> int:
        """Steps of all trainings."""
        return self.epochs * self.batches.steps

    def prepare(self, model: keras.Model, steps: int = 0, first: int = 0) -> None:
        """Compiles a network for `steps` of all trainings, of which it begins with the `first`."""
        self.compiling.apply(model, steps, first)
        build_metrics(model, self.labeled(self.held_out.take(slice(0, _FEW))))

    @functools.cached_property
    def some(self) -> inputs.Examples:
        """Some training examples, in an order that no training has."""
        size = len(keras.tree.flatten(self.batches.first[0])[0])
        few = self.batches.dataset(self.epochs).take(max(1, min(self.batches.steps, -(-self.num_some // size))))
        return inputs.read(few, self.network, "shrink")

    @property
    def images(self) -> Any:
        """The inputs of these examples, in the model's structure."""
        return self.packed(self.some.inputs)

    @property
    def few_images(self) -> Any:
        """Inputs of as many training examples as statistics are taken of."""
        return self.packed([tf.convert_to_tensor(x[:NUM_EXAMPLES]) for x in self.some.inputs])

    def packed(self, arrays: Sequence[Any]) -> Any:
        """Inputs in the model's structure."""
        return keras.tree.pack_sequence_as(self.network.input, [*arrays])

    def labeled(self, examples: inputs.Examples) -> tuple[Any, ...]:
        """Examples as `fit` and `rank` take them."""
        weights = () if examples.weights is None else (examples.weights,)
        return (self.packed(examples.inputs), examples.labels, *weights)

    def dataset(self, examples: inputs.Examples) -> tf.data.Dataset:
        """Batches of examples, for `evaluate`."""

        def fetch(first: Any) -> Any:
            return self.labeled(examples.take(slice(int(first), int(first) + _BATCH_SIZE)))

        load = loader(tuples(self.labeled(examples.take(slice(0, 1)))), fetch)
        return tf.data.Dataset.range(0, len(examples), _BATCH_SIZE).map(load).prefetch(1)
