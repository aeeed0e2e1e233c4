"""Examples returned by a user's function."""

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
from tfnas.tasks.input_kinds import IMAGES, VALUES, InputKind, kind_of
from tfnas.tasks.task import Task

_SHRINK = "call tfnas.shrink from Python, which takes any inputs"


def from_function(config: config_lib.Data, task: Task) -> Source:
    """Calls the user's function and checks its splits. It receives `config` if it has a parameter without a default.

    Train and validation are read once, to count examples and classes, to check that inputs have one shape and finite
    numbers, and to find examples that are in both. Of the test split, only the element type is checked.
    """
    function = user_functions.resolve("data.source", config.source)
    arguments = [config] if _takes_one(function) else []
    returned = user_functions.call("data.source", config.source, function, *arguments)
    given, names = _returned(returned, config.source)
    splits = {}
    for split in SPLITS:
        about = f"data.source: {split} of '{config.source}'"
        splits[split] = _dataset(given[split], about)
        _check_elements(splits[split], about, task)
    kind = _one_kind(splits, config)
    if kind is VALUES:
        config.check_unprepared()
        splits = {split: dataset.map(_in_float32) for split, dataset in splits.items()}
    surveys = {split: _survey(splits[split], split, config, task) for split in ("train", "validation")}

    _check_disjoint(surveys["train"].digests, surveys["validation"].digests, kind, config)
    shape = _one_shape(surveys["train"].shapes | surveys["validation"].shapes, kind, config)
    if not (known := splits["test"].element_spec[0].shape).is_compatible_with(shape):
        raise UserError(f"data.source: test of '{config.source}' has {kind.nouns} of shape {known}; expected {shape}")
    outputs = max(survey.num_outputs for survey in surveys.values())
    names = names or (tuple(str(i) for i in range(outputs)) if task.has_names else ())
    if task.has_names and outputs > len(names):
        raise UserError(
            f"data.source: label {outputs - 1} of '{config.source}' has no name; the function returned {len(names)} "
            "names"
        )

    def checked(split: str) -> tf.data.Dataset:
        # Checked while reading, because the test split must not be read before, and a data set may change between
        # reads.
        about = f"data.source: {split} of '{config.source}' has"

        def check(target: np.ndarray, weight: np.ndarray, actual: np.ndarray, finite: np.ndarray) -> np.ndarray:
            task.check_target(target, len(names), about)
            _check_weight(weight, about)
            _check_finite(finite, about)
            if len(actual) != len(shape) or any(a not in (None, b) for a, b in zip(shape, actual, strict=True)):
                raise UserError(f"{about} an {kind.noun} of shape {tuple(actual.tolist())}; expected {shape}")
            return target

        def example(given: tf.Tensor, target: tf.Tensor, *weight: tf.Tensor) -> tuple[tf.Tensor, ...]:
            weight = tuple(tf.cast(w, tf.float32) for w in weight)
            target = tf.cast(target, tf.int64) if task.integers else target
            weighed = weight[0] if weight else tf.constant(1.0)
            shapes = splits[split].element_spec[1].shape
            finite = tf.reduce_all(tf.math.is_finite(given)) if kind is VALUES else tf.constant(True)
            target = tf.numpy_function(check, [target, weighed, tf.shape(given), finite], target.dtype, stateful=False)
            with tf.control_dependencies([target]):
                return (
                    tf.ensure_shape(tf.identity(given), shape),
                    task.prepared(tf.ensure_shape(target, shapes)),
                    *weight,
                )

        return splits[split].map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    sizes = {split: survey.size for split, survey in surveys.items()}
    if (size := int(splits["test"].cardinality())) >= 0:
        sizes["test"] = size
    return Source({split: checked(split) for split in SPLITS}, sizes, shape, names, kind)


def _takes_one(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C
        return True
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _returned(returned: Any, source: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    expected = "a dict of tf.data.Dataset or tuples of arrays by 'train', 'validation' and 'test' (and 'label_names')"
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


def _dataset(given: Any, about: str) -> tf.data.Dataset:
    """A split as a data set: arrays are sliced into examples."""
    if isinstance(given, tf.data.Dataset):
        return given
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise UserError(
            f"{about} must be a tf.data.Dataset, or a tuple (inputs, targets) or (inputs, targets, weights) of arrays. "
            f"Received: {type(given).__name__}"
        )
    try:
        return tf.data.Dataset.from_tensor_slices(tuple(np.asarray(part) for part in given))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        raise UserError(
            f"{about} must have arrays of numbers, one row per example. Received: shapes "
            f"{[np.shape(part) for part in given]}"
        ) from None


def _check_elements(dataset: tf.data.Dataset, about: str, task: Task) -> None:
    inputs = "image uint8 (height, width, channels) or values float32"
    if task.facts.spatial:
        inputs = "image uint8 or float32 (height, width, channels)"
    expected = f"single ({inputs}, {task.target}) examples"
    spec = dataset.element_spec
    tensors = isinstance(spec, tuple) and all(isinstance(s, tf.TensorSpec) for s in spec)
    if not tensors or len(spec) not in (2, 3):
        raise UserError(
            f"{about} must yield {expected}, as pairs, or with weights as triples. Received: {spec}; for several "
            f"inputs or outputs, {_SHRINK}"
        )
    given, target, *weight = spec
    if not (given.dtype == tf.uint8 or given.dtype.is_floating):
        raise UserError(f"{about} must yield {expected}. Received: inputs of {given.dtype.name}; cast them to either")
    rank, pixels = given.shape.rank, given.dtype == tf.uint8
    fits = rank is None or (rank == 3 if pixels or task.facts.spatial else rank > 0)
    if not fits or target.shape.rank not in task.ranks:
        hint = "; do not batch them" if rank == 4 else "; cast other inputs to float32" if pixels else ""
        raise UserError(
            f"{about} must yield {expected}. Received: inputs {given.dtype.name} {given.shape} and targets "
            f"{target.shape}{'' if fits else hint}"
        )
    if task.integers and target.shape.rank in task.ranks[:1] and not target.dtype.is_integer:
        raise UserError(f"{about} must yield {expected}. Received: targets of {target.dtype.name}")
    if not (target.dtype.is_integer or target.dtype.is_floating or target.dtype.is_bool):
        raise UserError(f"{about} must yield {expected}. Received: targets of {target.dtype.name}")
    if not task.facts.spatial and not target.shape.is_fully_defined():
        raise UserError(f"{about} must yield targets of one known shape. Received: {target.shape}; do not batch them")
    if weight and weight[0].shape.rank != 0:
        raise UserError(f"{about} must yield one weight for each example. Received: weights {weight[0].shape}")
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{about} is infinite; expected one pass over the examples, without repeat()")


def _one_kind(splits: Mapping[str, tf.data.Dataset], config: config_lib.Data) -> InputKind:
    """Returns the kind of inputs that all splits have."""
    dtypes = {split: dataset.element_spec[0].dtype for split, dataset in splits.items()}
    kinds = {kind_of(dtype.name) for dtype in dtypes.values()}
    if len(kinds) > 1:
        found = ", ".join(f"{dtype.name} in {split}" for split, dtype in dtypes.items())
        raise UserError(
            f"data.source: all inputs of '{config.source}' must be images uint8, or all values float32. "
            f"Received: {found}"
        )
    return kinds.pop()


def _in_float32(given: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tf.cast(given, tf.float32), *others


def _check_disjoint(train: set[bytes], validation: set[bytes], kind: InputKind, config: config_lib.Data) -> None:
    # Rows of a table may be equal and yet different examples, unlike images; not all of them.
    common = len(train & validation)
    if common and (kind is IMAGES or common == len(validation)):
        raise UserError(
            f"data.source: {common:,} {kind.nouns} are both in train and in validation of '{config.source}'; splits "
            "must be disjoint"
        )


def _one_shape(shapes: set[tuple[int, ...]], kind: InputKind, config: config_lib.Data) -> tuple[int | None, ...]:
    """Returns the shape of one input; height and width are None if images differ in them."""
    if kind is VALUES:
        if len(shapes) > 1:
            found = " and ".join(str(shape) for shape in sorted(shapes)[:2])
            raise UserError(f"data.source: inputs of '{config.source}' must have one shape. Received: {found}")
        return shapes.pop()
    channels = {shape[-1] for shape in shapes}
    if len(channels) > 1:
        found = " and ".join(str(c) for c in sorted(channels))
        raise UserError(
            f"data.source: expected the same number of channels in all images of '{config.source}'. Received: {found}"
        )
    if config.image_size or len(shapes) > 1:
        return (None, None, channels.pop())
    return shapes.pop()


def _check_weight(weight: Any, about: str) -> None:
    if not (np.isfinite(weight) and weight >= 0):
        raise UserError(f"{about} the weight {weight}; expected a finite number, at least 0")


def _check_finite(finite: Any, about: str) -> None:
    if not finite:
        raise UserError(f"{about} an input with numbers that are not finite")


@dataclasses.dataclass(frozen=True)
class _Survey:
    size: int
    shapes: set[tuple[int, ...]]
    num_outputs: int
    digests: set[bytes]


def _survey(dataset: tf.data.Dataset, split: str, config: config_lib.Data, task: Task) -> _Survey:
    about = f"data.source: {split} of '{config.source}'"
    size, shapes, outputs, digests = 0, set(), 0, set()
    try:
        for given, target, *weight in dataset.as_numpy_iterator():
            target, pixels = np.asarray(target), given.dtype == np.uint8
            if (pixels or task.facts.spatial) and given.ndim != 3:
                raise UserError(
                    f"{about} must yield images (height, width, channels). Received: shapes {given.shape} and "
                    f"{target.shape}"
                )
            if task.facts.spatial and target.shape[:2] != given.shape[:2]:
                raise UserError(
                    f"{about} must yield masks of the image's height and width. Received: shapes {given.shape} and "
                    f"{target.shape}"
                )
            if not pixels:
                _check_finite(np.isfinite(given).all(), f"{about} has")
            task.check_target(target, None, f"{about} has")
            if weight:
                _check_weight(weight[0], f"{about} has")
            size, outputs = size + 1, max(outputs, task.num_outputs(target))
            shapes.add(given.shape)
            digests.add(hashlib.blake2b(repr(given.shape).encode() + given.tobytes(), digest_size=16).digest())
    except tf.errors.OpError as error:
        raise UserError(f"{about} cannot be read: {plain_message(error)}") from None
    if not size:
        raise UserError(f"{about} is empty")
    return _Survey(size, shapes, outputs, digests)
