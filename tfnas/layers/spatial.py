"""Pooling, cropping, upsampling, dropout and padding: each channel by itself, but not each number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfnas.layers.base import Computation
from tfnas.layers.calls import Call
from tfnas.layers.channelwise import Channelwise
from tfnas.layers.records import Folded, State

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
