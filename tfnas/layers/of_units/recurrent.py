"""LSTM, GRU and SimpleRNN: a number of the state is a unit, with its rows and columns of both kernels.

Such a layer is two nodes. `States` reads the sequence and makes one channel for each number of the state that is
passed on. `Recurrent` multiplies these numbers by their channels after every step, so that one that vanishes is zero
wherever it is read: by the next step and behind the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Node
from tfnas.layers.calls import Call
from tfnas.layers.of_units.inside import Inside
from tfnas.layers.pointwise import is_pointwise
from tfnas.layers.records import Builder, Channels, Folded, State, Value
from tfnas.layers.uncut import Uncut

_LAYERS = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)


def _num_gates(layer: Any) -> int:
    """Number of columns of both kernels that each unit has: 4, 3 or 1."""
    return layer.cell.kernel.shape[-1] // layer.units


def _steps(spatial: Sequence[int | None]) -> int | None:
    return None if None in spatial else math.prod(size or 0 for size in spatial)


def _by_unit(layer: Any, array: Any) -> np.ndarray:
    """Sums of squares of the columns of each unit, float64, shape (rows, units)."""
    squares = np.square(np.asarray(array, np.float64))
    return squares.reshape(-1, _num_gates(layer), layer.units).sum(1)


class States(Inside):
    """The numbers of a recurrent layer's state."""

    NAME = "states"

    @staticmethod
    def num_units(layer: Any) -> int:
        return int(layer.units)

    @staticmethod
    def sources(record: Any, sources: Sequence[int]) -> tuple[int, ...]:
        return (sources[0],)

    @property
    def positions(self) -> int | None:
        return _steps(self.input_spatial[0])

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        cell = self.inner.cell
        weights = inputs * _num_gates(self.inner) * outputs
        biases = math.prod(cell.bias.shape) // self.inner.units if cell.use_bias else 0
        return weights + biases * outputs, weights

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        cell = self.inner.cell
        kernel = _by_unit(self.inner, cell.kernel)
        bias = _by_unit(self.inner, cell.bias).sum(0) if cell.use_bias else 0
        return kernel.sum(1), kernel.sum(0) + bias


class Recurrent(Node):
    """A recurrent layer that returns its outputs alone, and begins with a state of zeros; apart from its units.

    Its inputs are the channels of `States`, the sequence, and its mask if it has one.
    """

    takes_masks = True
    INSIDE = States
    multiplies = True
    full_output = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        if type(layer) not in _LAYERS or layer.stateful or layer.return_state:
            return False
        activations = (layer.activation, getattr(layer, "recurrent_activation", layer.activation))
        return len(record.input_tensors) == 1 + called.masked and all(map(is_pointwise, activations))

    def call(self, layer: Any, tensors: Sequence[Any], training: bool | None = None) -> Any:
        if len(tensors) < len(self.inputs):  # of a layer that has the units that are left
            return self.called.again(layer, tensors, training)
        units, *others = tensors
        gated = GatedRecurrent(layer, name=f"{self.name}_gated")
        return self.called.again(gated, others, training, units=units)

    def state(self, sources: Sequence[State], kept: Any) -> State:
        return sources[0]

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels) if j == 0 else None

    def pins(self, j: int) -> bool:
        return j > 1  # the sequence is read by `States`

    @property
    def positions(self) -> int | None:
        return _steps(self.input_spatial[1])

    def count(self, x: Channels) -> tuple[int, int]:
        units = int(x.available.sum())
        return self.count_of(units, units)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        weights = inputs * _num_gates(self.inner) * outputs
        return weights, weights

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        kernel = _by_unit(self.inner, self.inner.cell.recurrent_kernel)
        return kernel.sum(1), kernel.sum(0)

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        layer, (units, sequence, *_) = self.inner, sources
        kept = units.channels
        columns = (np.arange(_num_gates(layer))[:, None] * layer.units + kept).reshape(-1)
        kernel, recurrent, *bias = layer.get_weights()
        weights = [kernel[sequence.channels], recurrent[kept], *bias]
        weights = [array[..., columns] for array in weights]
        tensors = [source.tensor for source in sources[1:]]
        output = self.rebuilt(build, tensors, weights, units=int(kept.size))
        return build.take(output, kept, np.flatnonzero(x.live))


class WholeRecurrent(Uncut):
    """A recurrent layer that is left whole, which costs what `States` and `Recurrent` cost together."""

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return type(layer) in _LAYERS

    @property
    def positions(self) -> int | None:
        return _steps(self.input_spatial[0])

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        parameters, _ = super().count_of(inputs, outputs)
        kernels = (self.inner.cell.kernel, self.inner.cell.recurrent_kernel)
        # It computes once what it returns, although each of its outputs is a node.
        return parameters, sum(math.prod(kernel.shape) for kernel in kernels) if self.called.output == 0 else 0


@keras.saving.register_keras_serializable("tfnas")
class GatedRecurrent(keras.layers.Wrapper):
    """A recurrent layer whose outputs are multiplied by gates after every step, as the next step sees them too.

    Args:
        layer: a built LSTM, GRU or SimpleRNN.

    Call arguments:
        units: gates, shape (batch, units).
        all others: as of the layer.
    """

    def __init__(self, layer: Any, **kwargs: Any):
        super().__init__(layer, **{"dtype": layer.dtype_policy, **kwargs})
        self.built = True

    def compute_mask(self, sequences: Any, previous_mask: Any) -> Any:
        """The layer's."""
        return self.layer.compute_mask(sequences, previous_mask)

    def call(self, sequences: Any, mask: Any = None, training: bool | None = None, units: Any = None) -> Any:
        """The layer's outputs."""
        layer, cell = self.layer, self.layer.cell
        loop = keras.layers.RNN(
            _GatedCell(cell),
            return_sequences=layer.return_sequences,
            go_backwards=layer.go_backwards,
            unroll=layer.unroll,
            zero_output_for_mask=layer.zero_output_for_mask,
            dtype=layer.dtype_policy,
        )
        numbers = keras.ops.zeros((keras.ops.shape(sequences)[0], layer.units), cell.compute_dtype)
        states = [numbers] * len(keras.tree.flatten(cell.state_size))
        cell.get_dropout_mask(sequences[:, 0, :])  # the same in all steps, as the layer has it
        cell.get_recurrent_dropout_mask(numbers)
        outputs = loop(sequences, initial_state=[*states, units], mask=mask, training=training)
        cell.reset_dropout_mask()
        cell.reset_recurrent_dropout_mask()
        return outputs

    def compute_output_spec(self, sequences: Any, mask: Any = None, training: Any = None, units: Any = None) -> Any:
        """Shape and dtype of the output."""
        return self.layer.compute_output_spec(sequences)


class _GatedCell(keras.layers.Layer):
    """A cell whose output, the first of its states, is multiplied by gates, which are its last state at each step."""

    def __init__(self, cell: Any):
        super().__init__(dtype=cell.dtype_policy)
        self.cell = cell
        self.state_size = [*keras.tree.flatten(cell.state_size), cell.units]
        self.output_size = cell.units
        self.built = True

    def call(self, inputs: Any, states: Any, training: bool | None = None) -> Any:
        """Output and states of one step."""
        *states, gates = states
        output, (_, *others) = self.cell(inputs, states, training=training)
        gated = output * gates
        return gated, [gated, *others, gates]
