"""The arguments of a layer's call in a model, so that the call can be repeated on other tensors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError, brief

# Layers whose output at inference a mask that is passed by hand changes; they read it as one more input.
_MASKED = (keras.layers.GlobalAveragePooling1D, keras.layers.Softmax)


class Call:
    """One call of a layer or operation.

    As in Keras, `training` is what the model is called with; if that is None, what the outermost nested model round the
    layer that was called with a value was called with; else what the layer itself was called with.

    Args:
        record: Keras's record of the call (a node of its graph).
        name: of the layer, for messages.
        training: what the nested models round it were called with; None if with nothing.
        output: which of its outputs is meant.

    Attributes:
        record, output: as given.
        found: what families have found out about it.
        training: True or False by that rule, apart from what the model will be called with; None if unspecified.
        dtype: of its output.
        masked: whether a mask was passed by hand.

    Raises:
        UserError: naming the layer, for an argument that cannot be kept.
    """

    def __init__(self, record: Any, name: str, training: bool | None = None, output: int = 0):
        self.record = record
        self.output = output
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
        self.masked = any(mask is not None for mask in keras.tree.flatten(given.get("mask")))
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
    """A new layer like another, under a name of its own and with other settings.

    Raises:
        UserError: for a user's layer whose code cannot make a second one.
    """
    kind = type(layer)
    if isinstance(layer, keras.layers.Lambda):  # Keras reads no function from a config
        options = {"output_shape": layer._output_shape, "mask": layer.mask, "arguments": layer.arguments}
        return kind(layer.function, name=name, dtype=layer.dtype_policy, **options)
    try:
        return kind.from_config({**layer.get_config(), "name": name, **changes})
    except Exception as error:
        if kind.__module__.startswith("keras."):
            raise
        raise UserError(
            f"layer '{name}': no second {kind.__name__} can be made from its get_config() "
            f"({type(error).__name__}: {error}); define it for all arguments of {kind.__name__}"
        ) from None
