"""Layers of users and of other packages, whose rules are registered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError, brief
from tfnas.layers.base import Node
from tfnas.layers.calls import Call
from tfnas.layers.pointwise import is_zero_at_zero
from tfnas.layers.records import Builder, Channels, Folded, State, Value


@dataclasses.dataclass(frozen=True)
class Rule:
    """Treatment of channels by a layer; these are the last axis of its inputs and of its output.

    Attributes:
        mixes: whether each output channel reads all channels of its one input, as in a Dense layer. If not, output
            channel c reads channel c of each input and no other, as an activation or a normalization of channels does.
        writes: by variable, the axis with one entry for each output channel. A variable is named as in its layer, such
            as "scale", or "dense/kernel" in a layer inside.
        reads: by variable, the axis with one entry for each input channel, of a layer that mixes.
        multiplied: variables that are multiplied at every position, for the multiply-adds.
        settings: a function from the number of output channels to settings of `get_config()` that depend on it; None:
            no setting does.
    """

    mixes: bool = False
    writes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiplied: Sequence[str] = ()
    settings: Callable[[int], Mapping[str, Any]] | None = None


_RULES: dict[type, Rule | type[Node]] = {}


def register(layer: type[keras.Layer], rule: Rule | type[Node]) -> None:
    """Registers what a layer does with channels, so that `gate` narrows it under bounds.

    Without a rule, a layer that is not Keras's is taken apart into the Keras layers and keras.ops that its `call` runs;
    one that cannot be taken apart is left whole. With one, it stays a single layer: a subnet has a copy that is made by
    its `from_config`, with slices of its weights. Check a rule with `tfnas.testing.check_layer`.

    Args:
        layer: the class; its subclasses are not registered with it.
        rule: a `Rule`; or a family, a subclass of `tfnas.layers.base.Node`, for what a `Rule` cannot say. It replaces
            an earlier one.

    Raises:
        UserError: if these are something else.
    """
    if not (isinstance(layer, type) and issubclass(layer, keras.Layer)):
        raise UserError(f"register: a subclass of keras.Layer expected. Received: {brief(layer)}")
    if not (isinstance(rule, Rule) or (isinstance(rule, type) and issubclass(rule, Node))):
        raise UserError(f"register: a tfnas.layers.Rule, or a subclass of Node, expected. Received: {brief(rule)}")
    if isinstance(rule, Rule) and rule.reads and not rule.mixes:
        raise UserError(f"register: only a layer that mixes reads. Received: mixes=False, reads={brief(rule.reads)}")
    _RULES[layer] = rule


def registered(layer: Any) -> type[Node] | None:
    """The family of a registered layer; None of any other."""
    rule = _RULES.get(type(layer))
    return Registered if isinstance(rule, Rule) else rule


class Registered(Node):
    """A layer with a `Rule`."""

    full_output = False

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return False  # `registered` says so

    @classmethod
    def check(cls, layer: Any, name: str, record: Any, called: Call) -> None:
        rule, wide = _RULES[type(layer)], record.output_tensors[0].shape[-1]
        if not isinstance(rule, Rule):
            return
        inputs = [tensor.shape[-1] for tensor in record.input_tensors]
        for axes, size in ((rule.writes, wide), (rule.reads, inputs[0])):
            for variable, axis in axes.items():
                found = [tuple(v.shape) for v in layer.weights if _is(v, variable)]
                if len(found) != 1 or not -len(found[0]) <= axis < len(found[0]) or found[0][axis] != size:
                    raise UserError(
                        f"layer '{name}': its rule says that axis {axis} of '{variable}' has its {size} channels. "
                        f"Received: {found or 'no such variable'}"
                    )
        expected = [inputs[0]] if rule.mixes else [wide] * len(inputs)
        if inputs != expected:
            what = "one input" if rule.mixes else f"inputs of {wide} channels, as many as its output has,"
            raise UserError(f"layer '{name}': {what} expected by its rule. Received: {inputs} channels")

    @property
    def _rule(self) -> Rule:
        rule = _RULES[type(self.inner)]
        if not isinstance(rule, Rule):
            raise TypeError(f"{type(self.inner).__name__} has a family of its own")
        return rule

    @property
    def mixes(self) -> bool:
        return self._rule.mixes

    @property
    def zero_to_zero(self) -> bool:
        no_weights = not (self.mixes or self.inner.weights) and len(self.inputs) == 1
        return no_weights and is_zero_at_zero(lambda x: self.call(self.inner, [x]))

    def state(self, sources: Sequence[State], kept: Any) -> State:
        depends, explicit = (np.any([getattr(x, name) for x in sources], axis=0) for name in ("depends", "explicit"))
        if self.mixes:
            return self.everywhere(depends.any(), explicit.any(), False)
        return State(depends, explicit, np.zeros(self.num_channels, bool))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return super().read(live) if self.mixes else [live for _ in self.inputs]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return np.flatnonzero(x.available if self.mixes else x.live)

    def ties(self, j: int) -> np.ndarray | None:
        return None if self.mixes else np.arange(self.num_channels)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        parameters = multiplied = 0
        for part in self.inner._flatten_layers():
            for variable in part._trainable_variables:  # frozen or not
                shape = list(variable.shape)
                for axes, channels in ((self._rule.writes, outputs), (self._rule.reads, inputs)):
                    if (axis := _axis(variable, axes)) is not None:
                        shape[axis] = channels
                size = math.prod(shape)
                parameters += size
                multiplied += size if any(_is(variable, name) for name in self._rule.multiplied) else 0
        return parameters, multiplied

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        reads, makes = super().squared_norms()
        for total, axes in ((reads, self._rule.reads), (makes, self._rule.writes)):
            for variable in self.inner.weights:
                if (axis := _axis(variable, axes)) is not None:
                    squares = np.square(np.asarray(variable, np.float64))
                    total += np.moveaxis(squares, axis, 0).reshape(total.size, -1).sum(1)
        return reads, makes

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        inputs, outputs = self.given(x, 0), self.held(x.live)
        weights = []
        for variable, value in zip(self.inner.weights, self.inner.get_weights(), strict=True):
            for axes, channels in ((self._rule.writes, outputs), (self._rule.reads, inputs)):
                if (axis := _axis(variable, axes)) is not None:
                    value = np.take(value, channels, axis)
            weights.append(value)
        tensors = [build.gather(source, self.given(x, j)) for j, source in enumerate(sources)]
        settings = self._rule.settings(int(outputs.size)) if self._rule.settings else {}
        return self.rebuilt(build, tensors, weights, **settings)


def _is(variable: Any, name: str) -> bool:
    return bool(variable.path == name or variable.path.endswith(f"/{name}"))


def _axis(variable: Any, axes: Mapping[str, int]) -> int | None:
    return next((axis for name, axis in axes.items() if _is(variable, name)), None)
