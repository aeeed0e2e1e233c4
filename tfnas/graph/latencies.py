"""Latency: seconds of networks and of single layers, measured on a device, as a cost in closed form.

A device is a function from a Keras model to the seconds of one forward pass of one example, and may run it anywhere.
'tensorflow' and 'litert' are this machine: compiled by TensorFlow, or converted to LiteRT (float32) and run by one
thread.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import installation, terminal
from tfnas.common.errors import UserError
from tfnas.graph.channels import Graph
from tfnas.graph.models import functional
from tfnas.graph.units import UnitGraph
from tfnas.layers import BatchNormalization, Convolution, Depthwise, Pointwise
from tfnas.layers.base import Node
from tfnas.layers.calls import copy_of
from tfnas.search_space.closed_form import Term

Device = Callable[[keras.Model], float]
Timer = Callable[[], float]  # seconds of one network, each time it is called
_SECONDS = 0.1  # of timing, at least
_PASSES, _MOST_PASSES = 10, 1_000  # timed, at least and at most: a median of 1,000 is as good as one of many more
_WARM = 3  # passes before those
_TURNS = 3  # of a network or layer that is measured by itself


def _on_tensorflow(model: keras.Model) -> Timer:
    inputs = _packed(model, [tf.zeros((1, *i.shape[1:]), i.dtype) for i in model.inputs])
    compiled = tf.function(lambda x: model(x, training=False), autograph=False)
    return _timer(lambda: keras.tree.map_structure(np.asarray, compiled(inputs)))  # waits for the result


def _on_litert(model: keras.Model) -> Timer:
    installation.require("formats", ["ai_edge_litert"], "latency: device 'litert'")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=_litert(model), num_threads=1)
    interpreter.allocate_tensors()
    return _timer(interpreter.invoke)


def _litert(model: keras.Model) -> bytes:
    """A network as a LiteRT file, for batches of one example."""
    shapes = [tf.TensorSpec((1, *i.shape[1:]), i.dtype) for i in model.inputs]
    serve = tf.function(lambda *x: model(_packed(model, x), training=False), autograph=False)
    with terminal.errors_expected():  # the converter logs what it does not need
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function(*shapes)], model)
        # By way of a SavedModel, weights would remain variables, read in every pass, and no normalization be folded.
        converter.experimental_lower_to_saved_model = False
        return bytes(converter.convert())


def _packed(model: keras.Model, tensors: Sequence[Any]) -> Any:
    """Tensors in the structure of a model's inputs."""
    return keras.tree.pack_sequence_as(functional(model)._inputs_struct, tensors)


def _timer(run: Callable[[], Any]) -> Timer:
    """Times passes, after some to warm up; the median."""

    def seconds() -> float:
        for _ in range(_WARM):
            run()
        passes: list[float] = []
        end = time.perf_counter() + _SECONDS
        while len(passes) < _PASSES or (len(passes) < _MOST_PASSES and time.perf_counter() < end):
            start = time.perf_counter()
            run()
            passes.append(time.perf_counter() - start)
        return statistics.median(passes)

    return seconds


_DEVICES: Mapping[str, Callable[[keras.Model], Timer]] = {"tensorflow": _on_tensorflow, "litert": _on_litert}


def timer(model: keras.Model, device: str | Device) -> Timer:
    """A function that measures the seconds of one forward pass of one example.

    Args:
        model: whose input has a fixed size.
        device: 'tensorflow', 'litert', or a function from a Keras model to seconds.

    Raises:
        UserError: if the device is unknown, what it needs is not installed, or it gives no number of seconds above 0.
    """
    if not callable(device):
        if device not in _DEVICES:
            known = ", ".join(map(repr, _DEVICES))
            raise UserError(f"latency: one of {known}, or a function of your own, expected. Received: {device!r}")
        return _DEVICES[device](model)

    def seconds() -> float:
        value = device(model)
        if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
            raise UserError(f"latency: the device must give a number of seconds above 0. Received: {value!r}")
        return float(value)

    return seconds


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds of networks that were measured in turns.

    Attributes:
        rounds: by round, the seconds of one example in each network.
    """

    rounds: tuple[tuple[float, ...], ...]

    @property
    def seconds(self) -> tuple[float, ...]:
        """The median over the rounds of each network's seconds."""
        return tuple(statistics.median(times) for times in zip(*self.rounds, strict=True))

    @property
    def ratios(self) -> tuple[float, ...]:
        """The median over the rounds of each network's seconds as a multiple of the first one's."""
        return tuple(statistics.median(r[i] / r[0] for r in self.rounds) for i in range(len(self.rounds[0])))

    @property
    def spread(self) -> float:
        """Largest ratio of the longest to the shortest seconds of one network; near 1 on a quiet machine."""
        return max(max(times) / min(times) for times in zip(*self.rounds, strict=True))


def compare_latency(models: Sequence[keras.Model], device: str | Device = "tensorflow", rounds: int = 10) -> Turns:
    """Measures the latency of networks in turns, so that other load on the machine affects all alike.

    Args:
        models: the networks, whose inputs have a fixed size; the first is the one that `ratios` compares with.
        device: as of `timer`.
        rounds: in each, every network has one turn.

    Raises:
        UserError: without a network or a round, and as `timer`.
    """
    if not models or rounds < 1:
        raise UserError(
            "compare_latency: at least one network and one round expected. Received: "
            f"{len(models)} networks, {rounds} rounds"
        )
    return take_turns([timer(model, device) for model in models], rounds)


def take_turns(timers: Sequence[Timer], rounds: int) -> Turns:
    """Measures networks in turns, each by its function of `timer`."""
    return Turns(tuple(tuple(seconds() for seconds in timers) for _ in range(rounds)))


@dataclasses.dataclass(frozen=True)
class Latencies:
    """Measured seconds of one forward pass of one example.

    A layer with a kernel is timed together with the normalization and the activation behind it, which devices compute
    along with it, once with all of its input channels and once with half of them. The overhead is taken off each time.

    Attributes:
        full: of the whole network, the shortest of several turns.
        overhead: of a pass through a network that computes next to nothing.
        products: of each layer with a kernel, what is proportional to the number of its input channels times that of
            its output channels; layers of one configuration and input shape are measured once.
        outputs: likewise what is proportional to the number of its output channels.
    """

    full: float
    overhead: float
    products: Mapping[str, float]
    outputs: Mapping[str, float]

    @classmethod
    def measure(cls, graph: Graph, device: str | Device = "tensorflow") -> Latencies:
        """Measures a network on a device.

        Args:
            graph: of a model whose input has a fixed size.
            device: as of `timer`.

        Raises:
            UserError: if the input has no fixed size, and as `timer`.
        """
        for node in graph.nodes:
            if None in node.spatial:
                raise UserError(
                    f"latency: layer '{node.name}': a fixed spatial size expected. Received: {node.spatial}; give the "
                    "model's input one, such as keras.Input((32, 32, 3))"
                )

        network = timer(graph.model, device)
        first = _fastest(network)
        tensor = keras.Input((1,))
        overhead = min(first, _fastest(timer(keras.Model(tensor, keras.layers.ReLU()(tensor)), device)))
        known: dict[str, float] = {}

        def seconds(chain: Sequence[Node], channels: int) -> float:
            alone = _alone(chain, channels)
            layers = (f"{layer.__class__.__name__} {_settings(layer)}" for layer in alone.operations[1:])
            key = f"{', '.join(layers)} {alone.input_shape}"
            if key not in known:
                known[key] = max(0.0, _fastest(timer(alone, device)) - overhead)
            return known[key]

        products, outputs = {}, {}
        for head, *followers in _chains(graph):
            node = graph.nodes[head]
            chain = [node, *(graph.nodes[i] for i in followers)]
            (channels,) = node.input_channels
            complete = node.examples * seconds(chain, channels)
            product = 0.0 if isinstance(node, Depthwise) else complete
            if isinstance(node, Convolution) and channels > 1:  # not of groups, whose channels stay in their group
                fewer = channels // 2
                saved = (complete - node.examples * seconds(chain, fewer)) * channels / (channels - fewer)
                product = min(max(0.0, saved), complete)
            products[node.name], outputs[node.name] = product, complete - product
        return cls(min(first, _fastest(network)), overhead, products, outputs)

    def terms(self, graph: UnitGraph) -> tuple[Term, ...]:
        """Latency as a cost in closed form, in seconds.

        What the layers leave of the whole network's seconds is what other operations take (sums, products, pooling),
        each in proportion to the size of its output. If the layers alone take longer than the whole, each has its
        share of that. The overhead is constant.

        Args:
            graph: of the same network.
        """
        chains = {chain[0]: chain for chain in _chains(graph) if chain[0] in graph.extents}
        inside = {i for chain in chains.values() for i in chain}
        others = {
            i: node.num_channels * node.examples * math.prod(size or 1 for size in node.spatial)
            for i, node in enumerate(graph.nodes)
            if i in graph.extents and i not in inside
        }
        names = {i: graph.nodes[i].name for i in (*chains, *others)}
        alone = sum(self.products[names[i]] + self.outputs[names[i]] for i in chains)
        left = self.full - self.overhead
        scale = min(1.0, left / alone) if alone else 0.0
        each = (left - scale * alone) / sum(others.values()) if others else 0.0

        sizes = [group.size for group in graph.form.groups]
        widths = [width.pinned + sum(m * sizes[g] for g, m in width.members) for width in graph.form.widths]

        def term(i: int, seconds: float, first: int, second: int) -> Term:
            coefficient = seconds / (widths[first] * widths[second])
            return Term(names[i], coefficient, first, second, graph.extents[i].needs)

        found = []
        for i in chains:
            inputs, outputs, _ = graph.extents[i]
            found.append(term(i, scale * self.products[names[i]], inputs, outputs))
            found.append(term(i, scale * self.outputs[names[i]], 0, outputs))
        found += [term(i, each * size, 0, graph.extents[i].outputs) for i, size in others.items()]
        counted = sum(t.coefficient * widths[t.first] * widths[t.second] for t in found)
        rest = Term("a pass", max(0.0, self.full - counted), 0)
        return (*(t for t in found if t.coefficient), rest)


def _fastest(seconds: Timer) -> float:
    """The shortest of several turns: what a machine takes that does nothing else at the time."""
    return min(seconds() for _ in range(_TURNS))


def _chains(graph: Graph) -> list[list[int]]:
    """Numbers of each layer with a kernel and of what a device computes along with it.

    These are normalizations and activations, as long as nothing else reads what is in front of them.
    """
    readers: dict[int, list[int]] = {i: [] for i in range(len(graph.nodes))}
    for i, node in enumerate(graph.nodes):
        for j in node.inputs:
            readers[j].append(i)
    chains = []
    for i, node in enumerate(graph.nodes):
        if not node.has_kernel:
            continue
        chain = [i]
        while chain[-1] not in graph.outputs and len(behind := readers[chain[-1]]) == 1:
            if not isinstance(graph.nodes[behind[0]], BatchNormalization | Pointwise):
                break
            chain += behind
        chains.append(chain)
    return chains


def _alone(chain: Sequence[Node], channels: int) -> keras.Model:
    """A model of the layers of a chain, with new weights, on an input of so many channels."""
    (spatial,) = chain[0].input_spatial
    x = tensor = keras.Input((*spatial, channels))
    for node in chain:
        layer = copy_of(node.inner, node.name) if isinstance(node.inner, keras.Layer) else node.inner
        x = node.call(layer, [x])
    return keras.Model(tensor, x)


def _settings(layer: Any) -> str:
    config = layer.get_config() if isinstance(layer, keras.Layer) else vars(layer)
    return repr(sorted((key, repr(value)) for key, value in config.items() if key != "name"))
