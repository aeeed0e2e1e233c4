"""The arguments of a layer's call in a model, so that the call can be repeated on other tensors."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np

from tfnas.common.errors import UserError, brief

# Layers whose output at inference a mask changes, passed by hand or by Keras; they read it as one more input.
_MASKED = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.Softmax,
    keras.layers.RNN,
    keras.layers.Bidirectional,
)


class Call:
    """One call of a layer or operation.

    As in Keras, `training` is what the model is called with; if that is None, what the outermost nested model round the
    layer that was called with a value was called with; else what the layer itself was called with.

    Args:
        record: Keras's record of the call (a node of its graph).
        name: of the layer, for messages.
        training: what the nested models round it were called with; None if with nothing.
        output: which of its outputs is meant.
        before: by input, the call of another one that makes it of the tensor that stands for it; nothing for an input
            that is that tensor.

    Attributes:
        record, output, before: as given.
        inputs: symbolic tensors like those that it is called on again.
        found: what families have found out about it.
        training: True or False by that rule, apart from what the model will be called with; None if unspecified.
        dtype: of its output.
        masked: whether a mask was passed, by hand or by Keras.

    Raises:
        UserError: naming the layer, for an argument that cannot be kept.
    """

    def __init__(
        self,
        record: Any,
        name: str,
        training: bool | None = None,
        output: int = 0,
        before: Mapping[int, Call] | None = None,
    ):
        self.record = record
        self.output = output
        self.before = dict(before or {})
        self.inputs: list[Any] = [
            self.before[j].inputs[0] if j in self.before else tensor for j, tensor in enumerate(record.input_tensors)
        ]
        self.found: dict[str, Any] = {}
        self.dtype: str = record.output_tensors[output].dtype
        # Keras writes into what it was given: the defaults of `training` and of `mask` stand in its record too.
        layer, given = record.operation, dict(record.arguments.kwargs)
        if isinstance(layer, keras.Layer):
            given |= zip(inspect.signature(layer.call).parameters, record.arguments.args, strict=False)
        own = given.get("training")
        if not isinstance(own, bool | np.bool_ | None):
            raise UserError(f"layer '{name}': called with training={brief(own)}; True, False or nothing expected")
        self.training: bool | None = training if training is not None else own if own is None else bool(own)
        by_hand = any(mask is not None for mask in keras.tree.flatten(given.get("mask")))
        # Of a user's own layer, and of an operation, it is one of the inputs.
        self.masked = by_hand and isinstance(layer, keras.Layer) and type(layer).__module__.startswith("keras.")
        if self.masked and not isinstance(layer, _MASKED):
            raise UserError(
                f"layer '{name}': called with mask=..., which is not followed through {type(layer).__name__}: multiply "
                "its input by the mask, or put the layer before or behind the model"
            )

    def again(self, operation: Any, tensors: Sequence[Any], training: bool | None = None, **more: Any) -> Any:
        """The output, the one meant, of the same call on other tensors.

        Args:
            operation: the layer, or one that stands in for it; an operation that is not a layer is called itself.
            tensors: in the order in which the call names its own; fewer for a sum that has lost addends.
            training: what the model is called with; None: nothing.
            more: further arguments, of a layer that stands in.
        """
        if len(tensors) == len(self.record.input_tensors):
            given = enumerate(tensors)
            tensors = [call.again(call.record.operation, [x]) if (call := self.before.get(j)) else x for j, x in given]
            # By position: one tensor that is read twice may have two stand-ins.
            stand_ins = iter(tensors)
            arguments, keywords = self.record.arguments.convert(
                lambda x: next(stand_ins) if isinstance(x, keras.KerasTensor) else x
            )
        else:
            arguments, keywords = (list(tensors),), {}
        if not isinstance(operation, keras.Layer):
            return self._chosen(self.record.operation(*arguments, **keywords))
        keywords = {key: value for key, value in keywords.items() if key != "training"}
        training = self.training if training is None else training
        if training is not None and "training" in inspect.signature(operation.call).parameters:
            keywords["training"] = training
        return self._chosen(operation(*arguments, **keywords, **more))

    def _chosen(self, outputs: Any) -> Any:
        return outputs if len(self.record.output_tensors) == 1 else keras.tree.flatten(outputs)[self.output]


def copy_of(layer: keras.layers.Layer, name: str, **changes: Any) -> keras.layers.Layer:
    """A new layer like another, under a name of its own and with other settings."""
    kind = type(layer)
    if isinstance(layer, keras.layers.Lambda):  # Keras reads no function from a config
        options = {"output_shape": layer._output_shape, "mask": layer.mask, "arguments": layer.arguments}
        return kind(layer.function, name=name, dtype=layer.dtype_policy, **options)

    def made() -> keras.layers.Layer:
        config = layer.get_config()
        if kind.__module__.startswith("keras."):  # of a function Keras keeps at most the code
            config |= {key: given for key in config if inspect.isfunction(given := getattr(layer, key, None))}
        if changes:  # an array that some of its weights began with is too large for fewer; they are set afterwards
            config |= {key: "zeros" for key in config if np.ndim(getattr(getattr(layer, key, None), "value", 0))}
        found: keras.layers.Layer = kind.from_config({**config, "name": name, **changes})
        return found

    try:
        if changes or kind.__module__.startswith("keras.") or _has_same_variables(made(), layer):
            return made()  # not built, so that it may be narrower
        return _duplicate(layer, name)
    except Exception:
        if kind.__module__.startswith("keras."):  # it was given an object, such as a dtype policy, that has no config
            given = {key: getattr(layer, key) for key in inspect.signature(kind).parameters if hasattr(layer, key)}
            return kind(**{**given, "name": name, "dtype": layer.dtype_policy.name, **changes})
        return _duplicate(layer, name)


def _has_same_variables(made: keras.layers.Layer, layer: keras.layers.Layer) -> bool:
    """Builds a layer made from another's config; whether it has the same variables then, if Keras knows how to."""
    config = layer.get_build_config() if layer.built and layer.weights else None
    if not config:
        return True
    made.build_from_config(config)
    return [v.shape for v in made.weights] == [v.shape for v in layer.weights]


def _duplicate(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """A copy, weights and all, of a layer that cannot be made from its config; without the calls of the layer."""
    parts = layer._flatten_layers()
    memo: dict[int, Any] = {id(calls): [] for part in parts for calls in (part._inbound_nodes, part._outbound_nodes)}
    tracking = keras.src.utils.tracking
    # Keras's own way to copy a layer is to save it, for which it needs the config.
    plainly = mock.patch.object(keras.src.saving.keras_saveable.KerasSaveable, "__reduce__", object.__reduce__)
    modules = mock.patch.dict(copy._deepcopy_dispatch, {types.ModuleType: lambda x, _: x})  # type: ignore[attr-defined]
    # What a layer has tracked is copied with it, and not tracked again while its lists are filled.
    lists = mock.patch.object(tracking.TrackedList, "append", list.append)
    dicts = mock.patch.object(tracking.TrackedDict, "__setitem__", dict.__setitem__)
    with plainly, modules, lists, dicts:
        duplicate = copy.deepcopy(layer, memo)
    duplicate.name = name
    return duplicate
