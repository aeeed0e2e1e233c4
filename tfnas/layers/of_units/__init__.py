"""Families that only channel units cut, since what they do depends on which channels exist together.

arrays.py         sums, products and filters of a tensor and an array of numbers
attention.py      MultiHeadAttention and GroupQueryAttention, whose units are heads
einsum.py         EinsumDense
grouped.py        grouped convolutions
inside.py         units inside a layer, as channels of a node before it
rearranging.py    data movement (ops.transpose, stack, split, slices, ...) and reductions over space (ops.mean, ...)
products.py       attention that is written by hand: ops.matmul, ops.einsum, Dot, dot_product_attention
recurrent.py      LSTM, GRU and SimpleRNN, whose units are numbers of the state
reductions.py     reductions over channels (ops.mean, ops.max, ... with axis=-1)
registered.py     layers of users and of other packages, by rules that they register
statistics.py     normalizations by statistics over channels: LayerNormalization, GroupNormalization, ...
weighted.py       Embedding, PReLU, GlobalAveragePooling1D with a mask
"""

from __future__ import annotations

from tfnas.layers.base import Node
from tfnas.layers.of_units.arrays import Filtered, WithArray
from tfnas.layers.of_units.attention import Attention
from tfnas.layers.of_units.attention import WholeAttention as WholeAttention
from tfnas.layers.of_units.einsum import Einsum
from tfnas.layers.of_units.einsum import WholeEinsum as WholeEinsum
from tfnas.layers.of_units.einsum import known_sizes as known_sizes
from tfnas.layers.of_units.einsum import says_less as says_less
from tfnas.layers.of_units.grouped import Grouped
from tfnas.layers.of_units.products import Contraction, DotProductAttention, WeightedSum
from tfnas.layers.of_units.rearranging import Rearranged, Regrouped, Selected, Shuffled, layout, moves
from tfnas.layers.of_units.rearranging import Shuffle as Shuffle
from tfnas.layers.of_units.recurrent import Recurrent
from tfnas.layers.of_units.recurrent import WholeRecurrent as WholeRecurrent
from tfnas.layers.of_units.reductions import Reduction, reduced
from tfnas.layers.of_units.registered import Registered, Rule, register, registered
from tfnas.layers.of_units.statistics import GroupStatistics, Statistics, normalized
from tfnas.layers.of_units.weighted import Embedding, MaskedAverage, Parametric

__all__ = ["OF_UNITS", "Contraction", "Registered", "Rule"]
__all__ += ["layout", "moves", "normalized", "reduced", "register", "registered"]

# A layer is of the first family that takes it, or else of one of `layers.FAMILIES`.
OF_UNITS: list[type[Node]] = [
    Attention,
    Recurrent,
    DotProductAttention,
    Contraction,
    WeightedSum,
    Grouped,
    Einsum,
    GroupStatistics,
    Statistics,
    Reduction,
    WithArray,
    Filtered,
    Rearranged,
    Selected,
    Regrouped,
    Shuffled,
    Embedding,
    Parametric,
    MaskedAverage,
]
