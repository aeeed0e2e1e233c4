"""Three disjoint splits of images as they are, and the expressions that say which images they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tensorflow as tf
import tensorflow_datasets as tfds

from tfnas import config as config_lib
from tfnas.common.errors import UserError

SPLITS = ("train", "validation", "test")
# Of one split: pieces (name of a split that the data set has, from, to).
Part = list[tuple[str, int, int]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Three disjoint splits of images as they are.

    Attributes:
        splits: by name, tf.data of (image uint8 (H, W, C), label int64 scalar), one example each, in a fixed order.
        sizes: number of examples by split name; without 'test' where only reading that split would tell.
        image_shape: (H, W, C); H and W are None where images may differ.
        label_names: one per class.
    """

    splits: dict[str, tf.data.Dataset]
    sizes: dict[str, int]
    image_shape: tuple[int | None, int | None, int]
    label_names: tuple[str, ...]


def parts_of(config: config_lib.Data, splits: Mapping[str, tfds.core.SplitInfo]) -> dict[str, Part]:
    """What each of the three splits takes of the splits that a data set has.

    Raises:
        UserError: if an expression of `config` is none, is empty, or has examples of another's.
    """
    expressions = {split: getattr(config, split) for split in SPLITS}
    parts = {split: _intervals(splits, split, text) for split, text in expressions.items()}
    _check_disjoint(expressions, parts)
    return parts


def sizes_of(parts: Mapping[str, Part]) -> dict[str, int]:
    """Number of examples by split."""
    return {split: sum(b - a for _, a, b in pieces) for split, pieces in parts.items()}


def _intervals(splits: Mapping[str, tfds.core.SplitInfo], split: str, text: str) -> Part:
    try:
        instructions = tfds.core.ReadInstruction.from_spec(text).to_absolute(splits)
        parts = [
            (part.splitname, part.from_ or 0, splits[part.splitname].num_examples if part.to is None else part.to)
            for part in instructions
        ]
    except (ValueError, AssertionError, KeyError) as error:
        raise UserError(f"data.{split}: '{text}' is not a split of {sorted(splits)} ({error})") from None
    if sum(max(0, b - a) for _, a, b in parts) == 0:
        raise UserError(
            f"data.{split}: '{text}' is empty; {dict((k, s.num_examples) for k, s in splits.items())} exist"
        )
    return parts


def _check_disjoint(expressions: dict[str, str], parts: dict[str, Part]) -> None:
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            for name, a, b in parts[one]:
                for name2, c, d in parts[other]:
                    if name == name2 and max(a, c) < min(b, d):
                        raise UserError(
                            f"data.{one} '{expressions[one]}' and data.{other} '{expressions[other]}' overlap: both "
                            f"hold {name}[{max(a, c)}:{min(b, d)}]; splits must be disjoint"
                        )
