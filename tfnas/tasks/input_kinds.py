"""Kinds of inputs that a network is given of an example: images and values. No TensorFlow."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class InputKind:
    """A kind of inputs.

    Attributes:
        dtype: of the inputs in the data and of the exported signatures, as NumPy names it.
        name: of the exported signatures' input.
        noun: what messages call an example.
    """

    dtype: str
    name: str
    noun: str

    @property
    def nouns(self) -> str:
        """Several examples."""
        return f"{self.noun}s"


IMAGES = InputKind("uint8", "image", "image")  # (H, W, C), from 0 to 255: resized, augmented and standardized
VALUES = InputKind("float32", "inputs", "example")  # of any fixed shape, which reach the network as they are


def kind_of(dtype: str) -> InputKind:
    """Returns the kind of inputs of a dtype."""
    return IMAGES if dtype == IMAGES.dtype else VALUES
