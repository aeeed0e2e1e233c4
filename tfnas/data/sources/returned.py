"""Images returned by a user's function."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas import config as config_lib
from tfnas.common import user_functions
from tfnas.common.errors import UserError, plain_message
from tfnas.data.sources.splits import SPLITS, Source


def from_function(config: config_lib.Data) -> Source:
    """Calls the user's function and checks its splits. It receives `config` if it has a parameter without a default.

    Train and validation are read once, to count examples and classes, to check that images have one shape, and to find
    images that are in both. Of the test split, only the element type is checked.
    """
    function = user_functions.resolve("data.source", config.source)
    arguments = [config] if _takes_one(function) else []
    returned = user_functions.call("data.source", config.source, function, *arguments)
    splits, names = _returned(returned, config.source)
    for split in SPLITS:
        _check_elements(splits[split], f"data.source: {split} of '{config.source}'")
    surveys = {split: _survey(splits[split], split, config) for split in ("train", "validation")}

    common = len(surveys["train"].digests & surveys["validation"].digests)
    if common:
        raise UserError(
            f"data.source: {common:,} images are both in train and in validation of '{config.source}'; splits must be "
            "disjoint"
        )
    shapes = surveys["train"].shapes | surveys["validation"].shapes
    channels = {shape[-1] for shape in shapes}
    if len(channels) > 1:
        found = " and ".join(str(c) for c in sorted(channels))
        raise UserError(
            f"data.source: expected the same number of channels in all images of '{config.source}'. Received: {found}"
        )
    shape = shapes.pop() if len(shapes) == 1 else (None, None, channels.pop())
    if config.image_size:
        shape = (None, None, shape[-1])
    if not (known := splits["test"].element_spec[0].shape).is_compatible_with(shape):
        raise UserError(f"data.source: test of '{config.source}' has images of shape {known}; expected {shape}")
    largest = max(survey.largest_label for survey in surveys.values())
    names = names or tuple(str(label) for label in range(largest + 1))
    if largest >= len(names):
        raise UserError(
            f"data.source: label {largest} of '{config.source}' has no name; the function returned {len(names)} names"
        )

    def checked(split: str) -> tf.data.Dataset:
        # Checked while reading, because the test split must not be read before, and a data set may change between
        # reads.
        def check(label: np.ndarray, actual: np.ndarray) -> np.ndarray:
            about = f"data.source: {split} of '{config.source}' has"
            if not 0 <= label < len(names):
                raise UserError(f"{about} the label {label}; expected 0 to {len(names) - 1}")
            if len(actual) != 3 or any(a not in (None, b) for a, b in zip(shape, actual, strict=True)):
                raise UserError(f"{about} an image of shape {tuple(actual.tolist())}; expected {shape}")
            return label

        def example(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            label = tf.numpy_function(check, [tf.cast(label, tf.int64), tf.shape(image)], tf.int64, stateful=False)
            with tf.control_dependencies([label]):
                return tf.ensure_shape(tf.identity(image), shape), tf.ensure_shape(label, ())

        return splits[split].map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    sizes = {split: survey.size for split, survey in surveys.items()}
    if (size := int(splits["test"].cardinality())) >= 0:
        sizes["test"] = size
    return Source({split: checked(split) for split in SPLITS}, sizes, shape, names)


def _takes_one(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C
        return True
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _returned(returned: Any, source: str) -> tuple[dict[str, tf.data.Dataset], tuple[str, ...]]:
    expected = "a dict of tf.data.Dataset by 'train', 'validation' and 'test' (and 'label_names')"
    splits, names = returned, None
    if isinstance(returned, tuple) and len(returned) == 2:
        splits, names = returned
    if not isinstance(splits, Mapping):
        raise UserError(f"data.source: '{source}' must return {expected}. Received: {type(splits).__name__}")
    splits = dict(splits)
    names = splits.pop("label_names", names)
    missing, others = [s for s in SPLITS if s not in splits], [str(s) for s in splits if s not in SPLITS]
    if missing or others:
        raise UserError(
            f"data.source: '{source}' must return {expected}. "
            + (f"Missing: {', '.join(missing)}" if missing else f"Received: {', '.join(others)} besides")
        )
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise UserError(f"data.source: label_names of '{source}' must be a list of strings. Received: {names!r}")
        if not names or len(set(names)) < len(names):
            raise UserError(f"data.source: label_names of '{source}' must be distinct. Received: {names!r}")
    return splits, tuple(names or ())


def _check_elements(dataset: Any, about: str) -> None:
    expected = "single (image uint8 (height, width, channels), label integer) examples"
    if not isinstance(dataset, tf.data.Dataset):
        raise UserError(f"{about} must be a tf.data.Dataset. Received: {type(dataset).__name__}")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not all(isinstance(s, tf.TensorSpec) for s in spec):
        raise UserError(f"{about} must yield {expected}, as pairs. Received: {spec}")
    image, label = spec
    if image.dtype != tf.uint8:
        raise UserError(f"{about} must yield {expected}. Received: images of {image.dtype.name}; do not scale them")
    if image.shape.rank not in (3, None) or label.shape.rank not in (0, None):
        batched = image.shape.rank == 4
        hint = "; do not batch them" if batched else ""
        raise UserError(f"{about} must yield {expected}. Received: images {image.shape} and labels {label.shape}{hint}")
    if not label.dtype.is_integer:
        raise UserError(f"{about} must yield {expected}. Received: labels of {label.dtype.name}")
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{about} is infinite; expected one pass over the examples, without repeat()")


@dataclasses.dataclass(frozen=True)
class _Survey:
    size: int
    shapes: set[tuple[int, int, int]]
    largest_label: int
    digests: set[bytes]


def _survey(dataset: tf.data.Dataset, split: str, config: config_lib.Data) -> _Survey:
    about = f"data.source: {split} of '{config.source}'"
    size, shapes, largest, digests = 0, set(), -1, set()
    try:
        for image, label in dataset.as_numpy_iterator():
            if image.ndim != 3 or np.ndim(label) != 0:
                raise UserError(
                    f"{about} must yield images (height, width, channels) and scalar labels. Received: shapes "
                    f"{image.shape} and {np.shape(label)}"
                )
            if label < 0:
                raise UserError(f"{about} has the label {label}; expected labels of at least 0")
            size, largest = size + 1, max(largest, int(label))
            shapes.add(image.shape)
            digests.add(hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest())
    except tf.errors.OpError as error:
        raise UserError(f"{about} cannot be read: {plain_message(error)}") from None
    if not size:
        raise UserError(f"{about} is empty")
    return _Survey(size, shapes, largest, digests)
