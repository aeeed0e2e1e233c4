"""Layers that treat each channel by itself; of these pooling, cropping, upsampling, dropout and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Computation, Node
from tfnas.layers.calls import Call
from tfnas.layers.records import Builder, Channels, Folded, State, Value


class Channelwise(Node):
    """Treats each channel by itself."""

    carries = True
    full_output = False

    @property
    def zero_to_zero(self) -> bool:
        return True

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return State(x.depends & kept, x.explicit & kept, (x.zero | ~kept) & self.zero_to_zero)

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        return [live]

    def linked(self, available: Sequence[np.ndarray]) -> Any:
        return available[0]

    def given(self, x: Channels, j: int) -> np.ndarray:
        return self.held(x.live)

    def ties(self, j: int) -> np.ndarray | None:
        return np.arange(self.num_channels)

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        # Each variable has one number a channel.
        return outputs * len(getattr(self.inner, "_trainable_variables", ())), 0

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        reads, makes = super().squared_norms()
        variables = getattr(self.inner, "_trainable_variables", ())  # frozen or not
        return reads, makes + sum(np.square(np.asarray(variable, np.float64)) for variable in variables)

    def settings(self, channels: int) -> dict[str, Any]:
        """Settings of its layer that differ where it has so many channels."""
        return {}

    def constants(self, x: Folded) -> Any:
        return x.kept_constants

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        channels = self.held(x.live)
        weights = [w[channels] for w in self.inner.get_weights()] if getattr(self.inner, "weights", None) else []
        tensor = build.gather(sources[0], self.given(x, 0))
        return self.rebuilt(build, [tensor], weights, **self.settings(channels.size))

    @property
    def computation(self) -> type[Computation]:
        return ChannelwiseComputation


class ChannelwiseComputation(Computation):
    """A layer on the channels that are live, which are all that its input holds."""

    def takes_held(self, source: Node) -> bool:
        return not (self.node.gated or source.holds_more)


# Operations without weights that a gate may keep or drop.
_CHOICES = (
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Identity,
)
_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


class Padding(Channelwise):
    """Zeros round the border, or dropout that is always on: a constant channel stays one only if it is zero."""

    LAYERS = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)
    computation = Computation

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return cls.is_of(layer) or (isinstance(layer, _DROPOUT) and bool(called.training))

    def state(self, sources: Sequence[State], kept: Any) -> State:
        (x,) = sources
        return State(x.depends, ~x.zero, x.zero)

    def constants(self, x: Folded) -> Any:
        return np.float32(0)  # what is not zero is explicit behind it


class Spatial(Channelwise):
    """Pooling, cropping, upsampling, dropout, identity: a constant channel stays what it is."""

    LAYERS = (
        *_CHOICES,
        *_DROPOUT,
        keras.layers.GaussianNoise,
        keras.layers.GlobalAveragePooling1D,
        keras.layers.GlobalAveragePooling2D,
        keras.layers.GlobalAveragePooling3D,
        keras.layers.GlobalMaxPooling1D,
        keras.layers.GlobalMaxPooling2D,
        keras.layers.GlobalMaxPooling3D,
        keras.layers.Cropping1D,
        keras.layers.Cropping2D,
        keras.layers.Cropping3D,
        keras.layers.UpSampling1D,
        keras.layers.UpSampling2D,
        keras.layers.UpSampling3D,
    )

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        return cls.is_of(layer) and not (isinstance(layer, (*_DROPOUT, keras.layers.GaussianNoise)) and called.training)

    @property
    def gateable(self) -> bool:
        return isinstance(self.inner, _CHOICES)
