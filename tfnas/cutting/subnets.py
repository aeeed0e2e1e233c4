"""Cuts an architecture out of its supernet: a plain Keras model with the dropped channels physically gone.

Exact: the subnet's output is the supernet's under the mask. What a dropped operation still contributes is a constant
per channel (batch normalization of zeros), which is folded: into the next normalization, a sum's offset, a kernel's
bias, or, where a kernel pads with zeros and so sees a border, one input channel of ones. Each layer's
family (`tfnas.layers`) defines how it is cut.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import keras
import numpy as np

from tfnas import supernets
from tfnas.common import user_functions
from tfnas.common.errors import UserError, brief
from tfnas.common.schema import integer, list_of, mapping_of, number, read, text_of
from tfnas.config import BUILDERS
from tfnas.cutting import refit as refitting
from tfnas.gating import saving
from tfnas.gating.placement import copy_weights
from tfnas.gating.supernet import Supernet, check_supernet
from tfnas.graph.channels import Flow, Graph
from tfnas.graph.folding import Folding, weights_of
from tfnas.graph.units import UnitGraph
from tfnas.layers.records import Builder, Value
from tfnas.search_space.architecture import Architecture, check_architecture

_SIZE = integer(1, 100_000)  # of an argument: channels, blocks, pixels, classes
_SIZES = list_of(_SIZE)
_SHAPES = mapping_of(_SIZES)  # of several inputs, by name
_SHARE = number(0, 1)


def _argument(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return _SHAPES(value, place)
    return (_SIZES if isinstance(value, list) else _SHARE if isinstance(value, float) else _SIZE)(value, place)


@dataclasses.dataclass(frozen=True)
class _Origin:
    """The supernet that an architecture is of: who builds it, with which arguments."""

    builder: str
    arguments: Annotated[dict[str, Any], mapping_of(_argument)]


@dataclasses.dataclass(frozen=True)
class _Units:
    """Which channels of the supernet are units, as `UnitGraph` takes it."""

    exclude: Annotated[tuple[str, ...], list_of(text_of())]
    streams: bool


@dataclasses.dataclass(frozen=True)
class _Described:
    """Further entries of an architecture's JSON, from which the subnet can be rebuilt."""

    supernet: _Origin
    units: _Units | None = None  # None: the masks are of layers' input channels


def subnet(supernet: Supernet, architecture: Architecture, *, refit: Any = None, name: str = "subnet") -> keras.Model:
    """Builds the network that `architecture` keeps, with the supernet's weights.

    Args:
        supernet: trained or not; not changed.
        architecture: which input channels of which gated layer are kept.
        refit: some hundred to thousand examples as the network sees them in use, without labels or with ones that are
            ignored: arrays in the structure of the model's inputs, or a `tf.data.Dataset` or other iterable of batches;
            the first 1,000 are used. From the first lost channel on, layers are refitted on them to what they give in
            the full network, which is the supernet with all gates open; see `tfnas.cutting.refit`. None: the weights
            are the supernet's.
        name: of the model returned.

    Returns:
        A functional model made of Keras's own layers and operations, same inputs and outputs as the supernet's network;
        one more than 800 layers deep is made of nested models, so that plain Keras can load it. Unless it is refitted,
        its outputs are the supernet's under `architecture`. Where readers of one tensor keep different channels of it,
        each gathers its own.

    Raises:
        UserError: if the architecture is not one of this supernet, or drops every path to an output; if the examples do
            not fit the model.
    """
    check_supernet(supernet, "subnet")
    check_architecture(architecture, "subnet")
    model = cut(supernet.graph, architecture, name)
    return model if refit is None else refitting.refit(supernet.graph, architecture, model, refit)


def cut(graph: Graph, architecture: Mapping[str, np.ndarray], name: str = "subnet") -> keras.Model:
    """Builds the network that `architecture` keeps of a graph, with its layers' weights; see `subnet`."""
    return _Cutter(graph, graph.flow(architecture)).cut(name)


def describe(architecture: Architecture, graph: Graph, builder: str, **arguments: Any) -> str:
    """JSON of an architecture together with the supernet it belongs to, from which `rebuild` makes the model.

    Args:
        architecture: which channels are kept.
        graph: of the supernet.
        builder: as of `builder`.
        arguments: of that function.
    """
    further: dict[str, Any] = {"supernet": {"builder": builder, "arguments": arguments}}
    if isinstance(graph, UnitGraph):
        further["units"] = {"exclude": graph.exclude, "streams": graph.streams}
    return json.dumps({**json.loads(architecture.to_json()), **further})


def rebuild(text: str, name: str = "subnet", source: str = "") -> keras.Model:
    """Builds the network that `describe`'s JSON describes, with fresh weights.

    Weights of a network that was cut can be set in it by their paths; Keras may order them differently, because the
    constants that dropped operations leave (`tfnas.subnet`) are operations of the network that was cut. Those constants
    are not weights and are missing here; the `.keras` file of the network that was cut has both.

    The text is data, and names no code that is run: its supernet is one of `tfnas.supernets`. A function of the
    user's own is called, or a file loaded, only if the caller names it too.

    Args:
        text: the JSON.
        name: of the model returned.
        source: the user's own 'package.module:function' or `.keras` file that the text may name, as `supernet.source`
            in the settings.

    Raises:
        UserError: if the text is not such JSON, or names a supernet that is neither one of `tfnas.supernets` nor
            `source`, or one that takes other arguments or cannot be imported.
    """
    architecture = Architecture.from_json(text)
    described = read(text, _Described, "architecture: names no supernet of tfnas.supernets")
    found, arguments = described.supernet.builder, described.supernet.arguments
    if found != source and found not in BUILDERS:
        raise UserError(
            f"architecture: names the supernet {brief(found)}, one of {', '.join(BUILDERS)} expected"
            + (f", or {source}" if source else "; if it is yours and you trust it, pass it as source=...")
        )
    build = builder(found, "architecture")
    model = user_functions.call("architecture", found, build, **arguments)
    units = described.units
    return cut(UnitGraph(model, units.exclude, units.streams) if units else Graph(model), architecture, name)


def builder(name: str, key: str) -> Callable[..., keras.Model]:
    """The function that builds a supernet: one of `tfnas.supernets`, the user's own, or one that loads a file.

    Args:
        name: of one that `config.BUILDERS` has; or of a user's 'package.module:function', whose module is then
            imported; or of a `.keras` file, which is loaded when the function is called, whatever its arguments.
        key: the setting that names it.

    Raises:
        UserError: naming the setting `key`, if a user's function cannot be imported.
    """
    if name in BUILDERS:
        return getattr(supernets, name)
    if name.endswith(".keras"):
        return lambda **arguments: saving.load_model(pathlib.Path(name), keras.Model)
    return user_functions.resolve(key, name)


# Keras traverses a graph with one recursive call per layer, and Python's limit is 1,000; the loader needs the rest.
_DEEPEST = 800


class _Cutter(Builder):
    """Builds the subnet node by node, in parts where it would be too deep for Keras otherwise.

    Attributes:
        values: of the nodes cut so far, in the part in which they were made.
        first: number of the first node of the part that is being built.
        given: the inputs of that part, by the number of the node whose tensor each stands for.
        outer: tensors between the parts, by node number; empty as long as there is one part, which is the model.
    """

    def __init__(self, graph: Graph, flow: Flow):
        self.graph = graph
        self.flow = flow
        self.folding = Folding(flow, weights_of(graph))
        super().__init__(graph.index, self.folding.dtype)
        self.values: list[Value] = []
        self.first = 0
        self.given: dict[int, Any] = {}
        self.outer: dict[int, Any] = {}
        self.num_parts = 0
        self._depths: dict[int, int] = {}

    def cut(self, name: str) -> keras.Model:
        for i in self.graph.outputs:
            if not self.flow.depends[i].any():
                raise UserError(
                    f"architecture: it drops every path to the output '{self.graph.nodes[i].name}', so there is no "
                    "network to cut out; choose another candidate"
                )
        for i, node in enumerate(self.graph.nodes):
            tensor = None
            if not node.inputs or self.flow.works(i):
                tensor = node.cut(self.folding.at(i), [self._value(j) for j in node.inputs], self)
            if not node.inputs and self.num_parts:
                self.outer[i] = tensor
            held, constants = self.flow.held(i), self.folding.constants[i]
            self.values.append(Value(tensor, held, constants, node.spatial, node.called.dtype, node.examples))
            if tensor is not None and self._depth(tensor) > _DEEPEST:
                self._close()
        if self.num_parts:
            self._close()
        ends = {i: self._value(i).tensor for i in self.graph.inputs}
        ends |= {
            i: self.gather(self._value(i), np.arange(self.graph.nodes[i].num_channels)) for i in self.graph.outputs
        }
        model = self.graph.model_of(ends, name)
        for layer, weights in self.weights:
            copy_weights(layer, weights)
        return model

    def _value(self, j: int) -> Value:
        """Returns the output of node `j` in the part that is being built."""
        value = self.values[j]
        if not self.num_parts or value.tensor is None or (j >= self.first and j not in self.outer):
            return value
        if self.first == len(self.graph.nodes):  # all parts are there, and what is built joins them
            return dataclasses.replace(value, tensor=self.outer[j])
        if j not in self.given:
            tensor = self.outer[j]
            name = self.graph.nodes[j].name
            self.given[j] = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
        return dataclasses.replace(value, tensor=self.given[j])

    def _close(self) -> None:
        """Makes a nested model of what was built since the last."""
        end = len(self.values)
        if not self.num_parts:
            for j in (j for j in self.graph.inputs if j < end):
                self.given[j] = self.values[j].tensor
                self.outer[j] = self.graph.nodes[j].cut(self.folding.at(j), [], self)
        later = {*self.graph.outputs, *(j for node in self.graph.nodes[end:] for j in node.inputs)}
        made = [j for j in range(self.first, end) if j in later and j not in self.outer]
        made = [j for j in made if self.values[j].tensor is not None]
        self.num_parts += 1
        self.first = end
        if made:
            part = keras.Model(
                list(self.given.values()), [self.values[j].tensor for j in made], name=f"part_{self.num_parts}"
            )
            self.outer |= zip(made, keras.tree.flatten(part([self.outer[j] for j in self.given])), strict=True)
        self.given = {}

    def _depth(self, tensor: Any) -> int:
        """Number of layers and operations on the longest way to a tensor from the inputs of its part."""
        operation, number, _ = tensor._keras_history
        call = operation._inbound_nodes[number]
        if id(call) not in self._depths:
            self._depths[id(call)] = 1 + max((self._depth(source) for source in call.input_tensors), default=-1)
        return self._depths[id(call)]

    def image(self) -> Any:
        """The first input in the graph's order; others may not be there yet."""
        return self._value(min(self.graph.inputs)).tensor
