"""The rules of Keras layers for channels: one class per family of layers.

Users register a rule for a layer of their own with `register`. To support another one of Keras's, name it in the class
of its family, or write a class that answers where `base.Node`'s answers do not fit, and add it to FAMILIES and to
tests/layers/test_families.py. Where its rule holds for channel units alone, add it to OF_UNITS and to
tests/layers/test_families_of_units.py.

calls.py          how a layer was called in its model, so that it can be called so again
records.py        what rules take: channels under an architecture, constants, the tools that build a subnet
base.py           a node of the graph: the questions that a family answers
channelwise.py    layers that treat each channel by itself, of these pooling, cropping, upsampling, dropout, padding
normalization.py  BatchNormalization, LayerScale
merging.py        Add, Multiply, ... and Concatenate
pointwise.py      activations and other functions of each number by itself
convolution.py    convolutions, transposed ones, Dense
depthwise.py      depthwise and separable convolutions
reshaping.py      Reshape, Flatten
uncut.py          a model's inputs, trained tensors, and what has no rule and is left whole
of_units/         families that only channel units cut; published gates, one for each reader, leave them whole
"""

from __future__ import annotations

from typing import Any

import keras

from tfnas.common.errors import UserError
from tfnas.layers.base import Node, gates_units, is_gate
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Padding, Spatial
from tfnas.layers.convolution import Convolution, TransposedConvolution
from tfnas.layers.depthwise import Depthwise, Separable
from tfnas.layers.merging import Concatenation, Merge
from tfnas.layers.normalization import BatchNormalization, Scale
from tfnas.layers.of_units import OF_UNITS, Shuffle, WholeAttention, WholeEinsum, WholeRecurrent, registered
from tfnas.layers.of_units import Contraction as Contraction
from tfnas.layers.of_units import Rule as Rule
from tfnas.layers.of_units import layout as layout
from tfnas.layers.of_units import register as register
from tfnas.layers.pointwise import Pointwise
from tfnas.layers.reshaping import Flatten, Reshape
from tfnas.layers.uncut import Input, Uncut, Variable

# A layer is of the first family that takes it.
FAMILIES: list[type[Node]] = [
    Input,
    Convolution,
    TransposedConvolution,
    Variable,
    Separable,
    Depthwise,
    BatchNormalization,
    Scale,
    Pointwise,
    Padding,
    Spatial,
    Flatten,
    Reshape,
    Merge,
    Concatenation,
    WholeAttention,
    WholeEinsum,
    WholeRecurrent,
    Uncut,
]


def family_of(layer: Any) -> type[Node]:
    """The family of a built layer that a gate may wrap; it does not depend on how the layer is called."""
    return next((family for family in FAMILIES if family.is_of(layer)), Uncut)


def refuse_unit_gates(model: Any) -> None:
    """Raises UserError for the network of a supernet of channel units, with the gates in it."""
    if any(gates_units(layer) for layer in getattr(model, "layers", ())):
        raise UserError(
            f"model '{model.name}': the network of a supernet, with its gates: pass the supernet, or to gate a model "
            "without gates"
        )


def family_of_call(layer: Any, name: str, record: Any, called: Call, of_units: bool = False) -> type[Node]:
    """Returns the family of a layer or operation, with or without a gate round it, under one call.

    Args:
        layer: built.
        name: for messages.
        record: Keras's record of the call, with its input and output tensors.
        called: the same with its arguments checked.
        of_units: whether what vanishes are channel units.

    Raises:
        UserError: naming the layer and what to do, if channels cannot be followed past it.
    """
    layer = layer.layer if is_gate(layer) else layer
    if (family := registered(layer)) is not None:
        found = family if of_units and not called.masked else Uncut
        found.check(layer, name, record, called)
        return found
    if not type(layer).__module__.startswith("keras.") and not isinstance(layer, Shuffle):
        return Uncut  # also where it inherits from one of Keras's: what it does may be another thing
    if getattr(layer, "data_format", None) == "channels_first":
        raise UserError(
            f"layer '{name}': data_format must be 'channels_last'. Received: {layer.data_format!r}; build the model "
            "again with 'channels_last', which takes the same weights: new.set_weights(old.get_weights())"
        )
    if isinstance(layer, keras.layers.TFSMLayer):
        raise UserError(
            f"layer '{name}': a TFSMLayer, which holds a SavedModel: its operations are fixed and cannot be cut. Gate "
            "the Keras model that it was made from, from its .keras or .h5 file"
        )
    families = [*OF_UNITS, *FAMILIES] if of_units else FAMILIES
    able = (family for family in families if not called.masked or family.takes_masks)
    found = next(family for family in able if family.takes(layer, record, called))
    found.check(layer, name, record, called)
    return found
