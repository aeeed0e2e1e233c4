"""Examples returned by a user's function."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnas import config as config_lib
from tfnas.common import user_functions
from tfnas.common.errors import UserError, plain_message
from tfnas.data.sources.splits import SPLITS, Source
from tfnas.tasks import network_inputs
from tfnas.tasks.network_inputs import IMAGE, VALUES, Input, Inputs
from tfnas.tasks.task import Task


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
    inputs, output_names = _one_structure(splits, config), _output_names(splits, config)
    _check_settings(inputs, config)
    if len(inputs.images) < len(inputs.by_name):
        splits = {split: dataset.map(_in_float32) for split, dataset in splits.items()}
    surveys = {split: _survey(splits[split], split, inputs, config, task) for split in ("train", "validation")}

    _check_disjoint(surveys["train"].digests, surveys["validation"].digests, inputs, config)
    shapes = {name: surveys["train"].shapes[name] | surveys["validation"].shapes[name] for name in inputs.by_name}
    fixed = {
        name: Input(array.dtype, _one_shape(shapes[name], name, inputs, config))
        for name, array in inputs.by_name.items()
    }
    inputs = dataclasses.replace(inputs, by_name=fixed)
    for name, spec in inputs.unpacked(splits["test"].element_spec[0]).items():
        if not spec.shape.is_compatible_with(inputs.by_name[name].shape):
            what = f"'{name}'" if inputs.named else inputs.nouns
            raise UserError(
                f"data.source: test of '{config.source}' has {what} of shape {spec.shape}; expected "
                f"{inputs.by_name[name].shape}"
            )
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
        about, spec = f"data.source: {split} of '{config.source}' has", splits[split].element_spec[1]

        def check(weight: np.ndarray, finite: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
            shapes, targets = others[: len(inputs.by_name)], others[len(inputs.by_name) :]
            task.check_target(tf.nest.pack_sequence_as(spec, targets), len(names), about)
            _check_weight(weight, about)
            _check_finite(finite, about)
            for (name, array), actual in zip(inputs.by_name.items(), shapes, strict=True):
                wanted = array.shape
                if len(actual) != len(wanted) or any(a not in (None, b) for a, b in zip(wanted, actual, strict=True)):
                    what = f"an input '{name}'" if inputs.named else f"an {inputs.noun}"
                    raise UserError(f"{about} {what} of shape {tuple(actual.tolist())}; expected {wanted}")
            return list(targets)

        def example(given: Any, target: Any, *weight: tf.Tensor) -> tuple[Any, ...]:
            arrays = inputs.unpacked(given)
            weight = tuple(tf.cast(w, tf.float32) for w in weight)
            target = tf.cast(target, tf.int64) if task.integers else target
            weighed = weight[0] if weight else tf.constant(1.0)
            values = [tf.reduce_all(tf.math.is_finite(x)) for x in arrays.values() if x.dtype.is_floating]
            shapes = [tf.shape(arrays[name]) for name in inputs.by_name]
            flat = tf.nest.flatten(target)
            facts = [weighed, tf.reduce_all(values), *shapes, *flat]
            # Through it, because TensorFlow leaves out what nothing takes a value from.
            flat = tf.numpy_function(check, facts, [x.dtype for x in flat], stateful=False)
            with tf.control_dependencies(flat):
                fixed = {n: tf.ensure_shape(tf.identity(arrays[n]), array.shape) for n, array in inputs.by_name.items()}
                known = [tf.ensure_shape(x, s.shape) for x, s in zip(flat, tf.nest.flatten(spec), strict=True)]
                return inputs.packed(fixed), task.prepared(tf.nest.pack_sequence_as(spec, known)), *weight

        return splits[split].map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    sizes = {split: survey.size for split, survey in surveys.items()}
    if (size := int(splits["test"].cardinality())) >= 0:
        sizes["test"] = size
    return Source({split: checked(split) for split in SPLITS}, sizes, inputs, names, output_names)


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
    parts = tuple(dict(part) if isinstance(part, Mapping) else part for part in given)
    _check_named(parts[0], about)
    try:
        return tf.data.Dataset.from_tensor_slices(tuple(_arrays(part) for part in parts))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        shapes = [{n: np.shape(x) for n, x in p.items()} if isinstance(p, dict) else np.shape(p) for p in parts]
        raise UserError(
            f"{about} must have arrays of numbers, one row per example. Received: shapes {shapes}"
        ) from None


def _arrays(part: Any) -> Any:
    return {name: np.asarray(x) for name, x in part.items()} if isinstance(part, dict) else np.asarray(part)


def _check_named(given: Any, about: str) -> None:
    if isinstance(given, tuple):
        raise UserError(
            f"{about} has several inputs without names: make them a dict, whose keys are the names of the model's "
            "inputs, such as {'image': ..., 'age': ...}"
        )


def _check_elements(dataset: tf.data.Dataset, about: str, task: Task) -> None:
    inputs = "image uint8 (height, width, channels) or values float32"
    if task.facts.spatial:
        inputs = "image uint8 or float32 (height, width, channels)"
    expected = f"single ({inputs}, {task.target}) examples"
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise UserError(f"{about} must yield {expected}, as pairs, or with weights as triples. Received: {spec}")
    given, target, *weight = spec
    _check_named(given, about)
    arrays = given if isinstance(given, dict) else {"": given}
    if not arrays or not all(isinstance(s, tf.TensorSpec) for s in arrays.values()):
        raise UserError(f"{about} must yield {expected}, the inputs a tensor or a dict of them. Received: {given}")
    for name, array in arrays.items():
        _check_array(name, array, target, f"{about} must yield {expected}", task.facts.spatial and len(arrays) == 1)
    if isinstance(target, dict) and not task.by_name:
        raise UserError(
            f"{about} has the targets {', '.join(map(str, target))}, of several outputs: these need task='custom', "
            f"whose loss and metric are given all of them. Received: task='{task.facts.name}'"
        )
    for name, one in target.items() if isinstance(target, dict) else [("", target)]:
        _check_name(name, f"{about} must yield {expected}")
        _check_target(one, about, expected, task)
    if weight and not (isinstance(weight[0], tf.TensorSpec) and weight[0].shape.rank == 0):
        raise UserError(f"{about} must yield one weight for each example. Received: weights {weight[0]}")
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{about} is infinite; expected one pass over the examples, without repeat()")


def _check_target(target: Any, about: str, expected: str, task: Task) -> None:
    if not isinstance(target, tf.TensorSpec):
        raise UserError(f"{about} must yield {expected}. Received: targets {target}")
    if target.shape.rank not in task.ranks:
        raise UserError(f"{about} must yield {expected}. Received: targets {target.shape}")
    if task.integers and target.shape.rank in task.ranks[:1] and not target.dtype.is_integer:
        raise UserError(f"{about} must yield {expected}. Received: targets of {target.dtype.name}")
    if not (target.dtype.is_integer or target.dtype.is_floating or target.dtype.is_bool):
        raise UserError(f"{about} must yield {expected}. Received: targets of {target.dtype.name}")
    if not task.facts.spatial and not target.shape.is_fully_defined():
        raise UserError(f"{about} must yield targets of one known shape. Received: {target.shape}; do not batch them")


def _check_array(name: Any, array: tf.TensorSpec, target: Any, expected: str, is_image: bool) -> None:
    """Raises UserError for an input that is neither an image nor values; one that has a name, with that."""
    _check_name(name, expected)
    what = f"input '{name}'" if name else "inputs"
    if not (array.dtype == tf.uint8 or array.dtype.is_floating):
        raise UserError(
            f"{expected}. Received: {what} of {array.dtype.name}; cast {'it' if name else 'them'} to either"
        )
    rank, pixels = array.shape.rank, array.dtype == tf.uint8
    if rank is not None and not (rank == 3 if pixels or is_image else rank > 0):
        hint = "; do not batch them" if rank == 4 else "; cast other inputs to float32" if pixels else ""
        raise UserError(
            f"{expected}. Received: {what} {array.dtype.name} {array.shape} and targets "
            f"{getattr(target, 'shape', target)}{hint}"
        )


def _check_name(name: Any, expected: str) -> None:
    if name and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)):
        raise UserError(f"{expected}, with names of letters, digits and underscores. Received: {name!r}")


def _one_structure(splits: Mapping[str, tf.data.Dataset], config: config_lib.Data) -> Inputs:
    """Returns the inputs that all splits have, whose shapes are not known yet."""
    found = {split: dataset.element_spec[0] for split, dataset in splits.items()}
    named = {split: isinstance(given, dict) for split, given in found.items()}
    names = {split: tuple(sorted(given)) if named[split] else () for split, given in found.items()}
    if len(set(names.values())) > 1:
        shown = ", ".join(f"{' and '.join(given) or 'one without a name'} in {split}" for split, given in names.items())
        raise UserError(f"data.source: all splits of '{config.source}' must have the same inputs. Received: {shown}")
    by_name = {}
    for name in names["train"] or [""]:
        dtypes = {split: (given[name] if name else given).dtype for split, given in found.items()}
        if len({dtype == tf.uint8 for dtype in dtypes.values()}) > 1:
            shown = ", ".join(f"{dtype.name} in {split}" for split, dtype in dtypes.items())
            what = f"inputs '{name}'" if name else "inputs"
            raise UserError(
                f"data.source: all {what} of '{config.source}' must be images uint8, or all values float32. "
                f"Received: {shown}"
            )
        by_name[name] = Input(IMAGE if dtypes["train"] == tf.uint8 else VALUES, ())
    return Inputs(by_name, named=True) if named["train"] else network_inputs.one((), by_name[""].dtype)


def _output_names(splits: Mapping[str, tf.data.Dataset], config: config_lib.Data) -> tuple[str, ...]:
    """Returns the names of the targets that all splits have; none if they have one target without a name."""
    targets = {split: dataset.element_spec[1] for split, dataset in splits.items()}
    names = {split: tuple(sorted(target)) if isinstance(target, dict) else () for split, target in targets.items()}
    if len(set(names.values())) > 1:
        shown = ", ".join(f"{' and '.join(given) or 'one without a name'} in {split}" for split, given in names.items())
        raise UserError(f"data.source: all splits of '{config.source}' must have the same targets. Received: {shown}")
    if len(names["train"]) == 1:
        raise UserError(
            f"data.source: the targets of '{config.source}' are a dict with one key, {names['train'][0]!r}: return "
            "them without it, because dicts are for several outputs"
        )
    return names["train"]


def _check_settings(inputs: Inputs, config: config_lib.Data) -> None:
    """Raises UserError for settings of images that these inputs are not."""
    if not inputs.images:
        config.check_unprepared()
    elif len(inputs.images) > 1:
        config.check_unaugmented(inputs.images)


def _in_float32(given: Any, *others: tf.Tensor) -> tuple[Any, ...]:
    """The example with values in float32."""
    return tf.nest.map_structure(lambda x: x if x.dtype == tf.uint8 else tf.cast(x, tf.float32), given), *others


def _check_disjoint(train: set[bytes], validation: set[bytes], inputs: Inputs, config: config_lib.Data) -> None:
    # Rows of a table may be equal and yet different examples, unlike images; not all of them.
    common = len(train & validation)
    if common and (inputs.images or common == len(validation)):
        raise UserError(
            f"data.source: {common:,} {inputs.nouns} are both in train and in validation of '{config.source}'; splits "
            "must be disjoint"
        )


def _one_shape(
    shapes: set[tuple[int, ...]], name: str, inputs: Inputs, config: config_lib.Data
) -> tuple[int | None, ...]:
    """Returns the shape of one input; height and width are None if images differ in them."""
    if not inputs.by_name[name].is_image:
        if len(shapes) > 1:
            found = " and ".join(str(shape) for shape in sorted(shapes)[:2])
            what = f"inputs '{name}'" if inputs.named else "inputs"
            raise UserError(f"data.source: {what} of '{config.source}' must have one shape. Received: {found}")
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
    shapes: dict[str, set[tuple[int, ...]]]  # by name of the input
    num_outputs: int
    digests: set[bytes]


def _survey(dataset: tf.data.Dataset, split: str, inputs: Inputs, config: config_lib.Data, task: Task) -> _Survey:
    about = f"data.source: {split} of '{config.source}'"
    size, outputs, digests = 0, 0, set()
    shapes: dict[str, set[tuple[int, ...]]] = {name: set() for name in inputs.by_name}
    try:
        for given, target, *weight in dataset.as_numpy_iterator():
            target, digest = tf.nest.map_structure(np.asarray, target), hashlib.blake2b(digest_size=16)
            arrays = inputs.unpacked(given)
            _check_images(arrays, target, inputs, about, task)
            if not all(np.isfinite(array).all() for array in arrays.values()):
                _check_finite(False, f"{about} has")
            task.check_target(target, None, f"{about} has")
            if weight:
                _check_weight(weight[0], f"{about} has")
            size, outputs = size + 1, max(outputs, task.num_outputs(target))
            for name, array in arrays.items():
                shapes[name].add(array.shape)
                digest.update(repr(array.shape).encode() + array.tobytes())
            digests.add(digest.digest())
    except tf.errors.OpError as error:
        raise UserError(f"{about} cannot be read: {plain_message(error)}") from None
    if not size:
        raise UserError(f"{about} is empty")
    return _Survey(size, shapes, outputs, digests)


def _check_images(arrays: Mapping[str, np.ndarray], target: Any, inputs: Inputs, about: str, task: Task) -> None:
    """Raises UserError for an image without three axes, or a mask that fits no input."""
    spatial = [array for array in arrays.values() if array.ndim == 3]
    if any(arrays[name].ndim != 3 for name in inputs.images) or task.facts.spatial and not spatial:
        shapes = " and ".join(str(array.shape) for array in (*arrays.values(), *tf.nest.flatten(target)))
        raise UserError(f"{about} must yield images (height, width, channels). Received: shapes {shapes}")
    if not task.facts.spatial:
        return
    if len(spatial) > 1:
        raise UserError(
            f"{about} must yield one input (height, width, channels), which the mask belongs to. Received: "
            f"{len(spatial)}; stack them along the channels"
        )
    if target.shape[:2] != spatial[0].shape[:2]:
        raise UserError(
            f"{about} must yield masks of the image's height and width. Received: shapes {spatial[0].shape} and "
            f"{target.shape}"
        )
