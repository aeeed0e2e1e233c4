"""Inputs of a network: of each example one array, or several by name; images or values. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

IMAGE, VALUES = "uint8", "float32"  # dtypes, as NumPy names them
_NAMES = {IMAGE: "image", VALUES: "inputs"}  # in the exported signatures, of the only array


@dataclasses.dataclass(frozen=True)
class Input:
    """One array of an example.

    Attributes:
        dtype: in the data and in the exported signatures: 'uint8' of an image (H, W, C) with pixels from 0 to 255,
            which is resized, augmented and standardized; 'float32' of values, which reach the network as they are.
        shape: of one example; H and W of an image are None if images may differ in size.
    """

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def is_image(self) -> bool:
        """Whether it is an image."""
        return self.dtype == IMAGE

    @property
    def words(self) -> str:
        """Dtype and shape of a batch, for readers."""
        if self.is_image:
            return f"{self.dtype} (N, H, W, C), raw pixels"
        return f"{self.dtype} (N, {', '.join(map(str, self.shape))})"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a network, of one example.

    Attributes:
        by_name: the arrays by their names in the exported signatures.
        named: whether an example is a dict of arrays by these names, which are those of the network's inputs; else it
            is the only array.
    """

    by_name: dict[str, Input]
    named: bool = False

    @property
    def noun(self) -> str:
        """Name of an example in messages."""
        return "image" if self.are_images else "example"

    @property
    def nouns(self) -> str:
        """Several examples."""
        return f"{self.noun}s"

    @property
    def are_images(self) -> bool:
        """Whether an example is an image and nothing else."""
        return not self.named and bool(self.images)

    @property
    def images(self) -> list[str]:
        """Names of those that are images."""
        return [name for name, one in self.by_name.items() if one.is_image]

    @property
    def spatial(self) -> list[str]:
        """Names of those that a mask may belong to: images, and values of the shape (H, W, C)."""
        return [name for name, one in self.by_name.items() if len(one.shape) == 3]

    @property
    def shapes(self) -> Any:
        """Shapes in the structure of an example."""
        return self.packed({name: one.shape for name, one in self.by_name.items()})

    def packed(self, values: Mapping[str, Any]) -> Any:
        """Returns something of each array, by name, in the structure of an example."""
        return dict(values) if self.named else values[next(iter(self.by_name))]

    def unpacked(self, example: Any) -> dict[str, Any]:
        """Returns by name what is in the structure of an example."""
        return example if self.named else {next(iter(self.by_name)): example}


def one(shape: tuple[int | None, ...], dtype: str = IMAGE) -> Inputs:
    """Returns the inputs of a network that is given one array, of this shape without the axis of examples."""
    return Inputs({_NAMES[dtype]: Input(dtype, shape)})
