"""Three disjoint splits of raw examples, and the expressions that select them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tensorflow as tf
import tensorflow_datasets as tfds

from tfnas import config as config_lib
from tfnas.common.errors import UserError
from tfnas.tasks.network_inputs import Inputs

SPLITS = ("train", "validation", "test")
# The ranges of one split: (name of a split of the data set, start, end).
Part = list[tuple[str, int, int]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Three disjoint splits of raw examples.

    Attributes:
        splits: by name, tf.data of (input, target) or (input, target, weight float32 scalar), one example each, in a
            fixed order. An input is an image uint8 (H, W, C), an array float32 of any fixed shape, or a dict of such
            by name; a target is as the task's losses take it, of classification an int64 scalar.
        sizes: number of examples by split name; without 'test' if counting it would require reading it.
        inputs: what the inputs are.
        label_names: one per class, label or number.
        output_names: of the targets, if an example has a dict of them by name.
    """

    splits: dict[str, tf.data.Dataset]
    sizes: dict[str, int]
    inputs: Inputs
    label_names: tuple[str, ...]
    output_names: tuple[str, ...] = ()


def parts_of(config: config_lib.Data, splits: Mapping[str, tfds.core.SplitInfo]) -> dict[str, Part]:
    """Returns the ranges of a data set's splits that make up each of the three splits.

    Raises:
        UserError: if an expression of `config` is invalid or empty, or overlaps another.
    """
    expressions = {split: getattr(config, split) for split in SPLITS}
    parts = {split: _intervals(splits, split, text) for split, text in expressions.items()}
    _check_disjoint(expressions, parts)
    return parts


def sizes_of(parts: Mapping[str, Part]) -> dict[str, int]:
    """Number of examples by split."""
    return {split: sum(b - a for _, a, b in part) for split, part in parts.items()}


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
