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
from tfnas.layers.base import Node
from tfnas.search_space.closed_form import ClosedForm, Term

Device = Callable[[keras.Model], float]
Timer = Callable[[], float]  # seconds of one network, each time it is called
_SECONDS = 0.1  # of timing, at least
_PASSES = 10  # timed, at least
_WARM = 3  # passes before those
_TURNS = 3  # of a network or layer that is measured by itself


def _on_tensorflow(model: keras.Model) -> Timer:
    images = [tf.zeros((1, *i.shape[1:]), i.dtype) for i in model.inputs]
    inputs = images if len(images) > 1 else images[0]
    compiled = tf.function(lambda x: model(x, training=False), autograph=False)
    return _timer(lambda: keras.tree.map_structure(np.asarray, compiled(inputs)))  # waits for the result


def _on_litert(model: keras.Model) -> Timer:
    installation.require("formats", ["ai_edge_litert"], "latency: device 'litert'")
    from ai_edge_litert.interpreter import Interpreter

    shapes = [tf.TensorSpec((1, *i.shape[1:]), i.dtype) for i in model.inputs]
    serve = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False), autograph=False)
    with terminal.errors_expected():  # the converter logs what it does not need
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function(*shapes)], model)
        interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
        interpreter.allocate_tensors()
    return _timer(interpreter.invoke)


def _timer(run: Callable[[], Any]) -> Timer:
    """Times passes, after some to warm up; the median."""

    def seconds() -> float:
        for _ in range(_WARM):
            run()
        passes: list[float] = []
        while len(passes) < _PASSES or sum(passes) < _SECONDS:
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
    timers = [timer(model, device) for model in models]
    return Turns(tuple(tuple(seconds() for seconds in timers) for _ in range(rounds)))


@dataclasses.dataclass(frozen=True)
class Latencies:
    """Measured seconds of one forward pass of one example.

    Attributes:
        full: of the whole network, the shortest of three turns.
        layers: likewise of each layer with a kernel, alone; those of one configuration and input shape are one.
    """

    full: float
    layers: Mapping[str, float]

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

        known: dict[str, float] = {}
        layers = {}
        for node in graph.nodes:
            if node.has_kernel:
                alone = _alone(node)
                key = f"{alone.layers[-1].__class__.__name__} {_settings(alone.layers[-1])} {alone.input_shape}"
                if key not in known:
                    known[key] = _fastest(timer(alone, device))
                layers[node.name] = known[key] * node.examples
        return cls(_fastest(timer(graph.model, device)), layers)

    def terms(self, form: ClosedForm) -> tuple[Term, ...]:
        """Latency as a cost in closed form, in seconds.

        What a layer takes is proportional to the number of its input channels times that of its output channels, as
        its multiply-adds are; what the layers leave of the whole network's seconds is constant. Where the layers alone
        take longer than the whole network, each has its share of that.

        Args:
            form: of the same network's parameters.
        """
        scale = min(1.0, self.full / sum(self.layers.values()))
        kernels: dict[str, Term] = {}
        for term in form.terms["parameters"]:
            if term.name in self.layers:  # of its terms the kernel's, which has the most widths
                kernels[term.name] = max(
                    kernels.get(term.name, term), term, key=lambda t: (t.first > 0) + (t.second > 0)
                )
        full = [group.size for group in form.groups]
        widths = [width.pinned + sum(m * full[g] for g, m in width.members) for width in form.widths]
        terms = [
            dataclasses.replace(
                term, coefficient=scale * self.layers[name] / (widths[term.first] * widths[term.second])
            )
            for name, term in kernels.items()
        ]
        rest = self.full - scale * sum(self.layers[name] for name in kernels)
        return (*terms, Term("the rest", max(0.0, rest), 0, 0, ()))


def _fastest(seconds: Timer) -> float:
    """The shortest of several turns: what a machine takes that does nothing else at the time."""
    return min(seconds() for _ in range(_TURNS))


def _alone(node: Node) -> keras.Model:
    """A model of a node's layer alone, with all of its channels and new weights."""
    (spatial,), (channels,) = node.input_spatial, node.input_channels
    layer = node.inner.__class__.from_config(node.inner.get_config())
    tensor = keras.Input((*spatial, channels))
    return keras.Model(tensor, node.call(layer, [tensor]))


def _settings(layer: keras.Layer) -> str:
    return repr(sorted((key, repr(value)) for key, value in layer.get_config().items() if key != "name"))
