"""Settings of the data: which images, how they are split and how they are prepared."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tfnas.common import user_functions
from tfnas.common.errors import UserError
from tfnas.config import fields

_RANDOM = ("pad_crop", "flip", "cutout", "random_resized_crop")  # settings that change training images at random


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, how they are split and how they are prepared.

    One of `name`, `folder` and `source` says where they come from. Two of them are an error, except for the default
    name 'digits', which the others replace.
    """

    name: str = "digits"  # a TFDS name, or 'digits': the images bundled with scikit-learn
    data_dir: str = ""  # TFDS folder, for `name`; empty: $TFDS_DATA_DIR, else TFDS's own default
    folder: str = ""  # DIR of DIR/CLASS/*.jpg (all of it the split 'train') or DIR/SPLIT/CLASS/*.jpg; .jpeg, .png too
    # 'package.module:function' that returns the three splits, of images uint8 or of values float32, which the settings
    # below `channels` are not for, or of dicts of them by name; train, validation, test are not used
    source: str = ""
    train: str = "train[:1000]"  # TFDS split expressions; they must not overlap
    validation: str = "train[1000:]"  # ranks the candidates
    test: str = "test"  # read only by retrain's last evaluation and by export's check of the SavedModel
    channels: int = 0  # `folder`: 1 (gray) or 3 (color); 0: color, unless all of train and validation is gray
    image_size: int = 0  # resize to a square of this many pixels; 0 keeps the data set's size
    mean: tuple[float, ...] = (0.5,)  # per channel (or one for all), of pixels scaled to [0, 1]
    std: tuple[float, ...] = (0.25,)
    pad_crop: int = 0  # pad by this many pixels, then crop at random
    flip: bool = False  # mirror left-right at random
    cutout: int = 0  # side of the square blanked out at a random place, pixels
    # Train on random crops of 8 to 100 % of the area, aspect ratio 3/4 to 4/3, resized to image_size. Other images are
    # then resized to image_size / 0.875 on the shorter side and cropped at the center, instead of being squeezed into a
    # square.
    random_resized_crop: bool = False

    @property
    def title(self) -> str:
        """Name of the data set in messages."""
        return self.source or self.folder or self.name

    @property
    def short_name(self) -> str:
        """The title as a file name: the last part of the folder, the function's module, or the TFDS name."""
        if self.source:
            return self.source.partition(":")[0].rpartition(".")[2]
        if self.folder:
            return os.path.basename(os.path.abspath(os.path.expanduser(self.folder))) or "images"
        return self.name.replace("/", "_").replace(":", "_")

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        self._check_origin()
        expected = "1, 3, or 0 to have it found" if self.folder else "left at 0: only data.folder has images of either"
        fields.require(self.channels in ((0, 1, 3) if self.folder else (0,)), "data.channels", self.channels, expected)
        fields.at_least("data.image_size", self.image_size, 0)
        fields.require(
            self.image_size > 0 or not self.random_resized_crop,
            "data.image_size",
            self.image_size,
            "set with data.random_resized_crop, the size that crops are brought to",
        )
        fields.at_least("data.pad_crop", self.pad_crop, 0)
        fields.at_least("data.cutout", self.cutout, 0)
        for field in ("train", "validation", "test"):
            fields.require(
                bool(getattr(self, field)), f"data.{field}", "", "a TFDS split expression such as 'train[:90%]'"
            )
        fields.require(
            len(self.mean) == len(self.std), "data.mean and data.std", (self.mean, self.std), "equal lengths"
        )
        fields.require(all(s > 0 for s in self.std), "data.std", self.std, "positive numbers")

    def check_unprepared(self) -> None:
        """Raises UserError for a setting that prepares images, which `source` does not return."""
        expected = f"left out: '{self.source}' returns values, not images uint8, and they reach the network as they are"
        self._check_default(("image_size", "mean", "std", *_RANDOM), expected)

    def check_unaugmented(self, images: Sequence[str]) -> None:
        """Raises UserError for a setting that changes an image at random, of which `source` returns several."""
        expected = f"left out: '{self.source}' returns several images of an example ({', '.join(images)})"
        self._check_default(_RANDOM, expected)

    def _check_default(self, names: Sequence[str], expected: str) -> None:
        defaults = self._defaults()
        for name in names:
            given = getattr(self, name)
            fields.require(given == defaults[name], f"data.{name}", given, expected)

    def _defaults(self) -> dict[str, Any]:
        return {field.name: field.default for field in dataclasses.fields(self)}

    def _check_origin(self) -> None:
        defaults = self._defaults()
        origins = [k for k in ("folder", "source", "name") if getattr(self, k) not in ("", defaults[k])]
        if len(origins) > 1:
            one, other = (f"data.{key} '{getattr(self, key)}'" for key in origins[:2])
            raise UserError(f"config: {one} and {other} exclude each other: set one of them to nothing")
        fields.require(bool(self.title), "data.name", self.name, "set, or else data.folder or data.source")
        if self.source:
            user_functions.check_name("data.source", self.source)
        unused = ["data_dir"] * bool(self.folder or self.source)
        unused += ["train", "validation", "test"] * bool(self.source)
        for key in unused:
            if getattr(self, key) != defaults[key]:
                raise UserError(
                    f"config: 'data.{key}' says nothing about data.{'source' if self.source else 'folder'} "
                    f"'{self.title}': leave it out. Received: {getattr(self, key)!r}"
                )
