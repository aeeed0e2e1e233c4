"""Units inside a layer, such as heads of attention or numbers of a recurrent state, as channels of a node before it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from tfnas.layers.base import Node
from tfnas.layers.records import Builder, Folded, State, Value


class Inside(Node, abc.ABC):
    """One channel for each unit of a layer, 1 in the full network.

    It reads what the layer reads. The layer's own node reads these channels first, and multiplies what each unit has
    found by its channel.
    """

    NAME: ClassVar[str]  # of its units, behind the layer's name
    inside = True
    full_output = False
    mixes = True

    @staticmethod
    @abc.abstractmethod
    def num_units(layer: Any) -> int:
        """Number of the layer's units."""

    @staticmethod
    @abc.abstractmethod
    def sources(record: Any, sources: Sequence[int]) -> tuple[int, ...]:
        """Returns, of the nodes that a call reads, those that its units read."""

    def call(self, layer: Any, tensors: Sequence[Any], training: bool | None = None) -> Any:
        return AtFirst(self.num_channels, name=self.name)(tensors[0])

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return self.everywhere(any(x.depends.any() for x in sources), True, False)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        return sources[0].tensor  # which the layer's own node does not look at: it has the units that are left


@keras.saving.register_keras_serializable("tfnas")
class AtFirst(keras.layers.Layer):
    """Ones for the units inside a layer, float32, shape (batch, units), of any tensor of that batch."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.units = units

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Returns None: the units are those of all steps."""

    def call(self, inputs: Any) -> Any:
        """The ones."""
        return keras.ops.ones((keras.ops.shape(inputs)[0], self.units), "float32")

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and dtype of the output."""
        return keras.KerasTensor((inputs.shape[0], self.units), "float32")

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same layer."""
        return {**super().get_config(), "units": self.units}
