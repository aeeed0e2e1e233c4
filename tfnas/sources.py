"""Where images come from: a TFDS data set, a folder of files, a function of the user's, the bundled digits.

Each gives a `Source`: three disjoint splits of the images as they are. Preparing them is data.py's part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import io
import os
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnas import config as config_lib
from tfnas import functions, terminal
from tfnas.errors import UserError, plain, unwritable

tfds.disable_progress_bar()

SPLITS = ("train", "validation", "test")
# Of one split: pieces (name of a split that the data set has, from, to).
_Part = list[tuple[str, int, int]]
_NUM_DIGITS_TEST = 400
_ENDINGS = (".jpg", ".jpeg", ".png")
_CHECKED_BYTES = 1 << 30  # files of a TFDS split that are larger together are not read through before they are used
_CLUTTER = ("thumbs.db", "desktop.ini")  # what Windows leaves in folders of pictures; hidden files are passed over too


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


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 images of handwritten digits that come with scikit-learn: 8 x 8, one channel, 10 classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Optical recognition of handwritten digits (UCI), the copy bundled with scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # already in a fixed random order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        digits = sklearn.datasets.load_digits()
        # The original order follows the writers, so an unshuffled tail would be a test on others' handwriting.
        order = np.random.default_rng(0).permutation(len(digits.target))
        images = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)[..., None]
        labels = digits.target[order]
        cut = len(labels) - _NUM_DIGITS_TEST
        return {
            "train": self._generate_examples(images[:cut], labels[:cut]),
            "test": self._generate_examples(images[cut:], labels[cut:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Any:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def load(config: config_lib.Data, folder: pathlib.Path) -> Source:
    """The splits that `config` names. Raises UserError for what is unknown, absent, malformed or overlapping."""
    if config.source:
        return from_function(config)
    if config.folder:
        return from_folder(config)
    return from_tfds(config, folder)


def check_test(config: config_lib.Data, folder: pathlib.Path) -> None:
    """Sees that the files of the test split are whole, where TFDS prepared them: before it is read, and not sooner.

    Raises:
        UserError: naming the file that was truncated or altered.
    """
    if not (config.source or config.folder):
        builder = _builder(config, folder)
        _check_records(builder, _parts(config, builder.info.splits)["test"])


def from_tfds(config: config_lib.Data, folder: pathlib.Path) -> Source:
    """A data set prepared by TFDS; the bundled digits are prepared in `folder` if no data_dir is set.

    The files of train and validation are looked at for being whole; those of test only by `check_test`.
    """
    builder = _builder(config, folder)
    features = builder.info.features
    keys = builder.info.supervised_keys
    if not keys or len(keys) != 2 or not isinstance(features[keys[1]], tfds.features.ClassLabel):
        raise UserError(
            f"data.name: a set of (image, label) pairs for classification expected. Received: '{config.name}', with "
            f"{'the pair ' + str(keys) if keys else 'no pairs'}"
        )
    pixels, labels = features[keys[0]], features[keys[1]]
    shape = tuple(pixels.shape)
    if len(shape) != 3 or shape[-1] is None:
        raise UserError(f"data.name: '{config.name}' has images of shape {shape}; (height, width, channels) expected")
    parts = _parts(config, builder.info.splits)

    for split in ("train", "validation"):
        _check_records(builder, parts[split])

    def examples(split: str) -> tf.data.Dataset:
        # One file after the other: the same order on every machine. No cache, here or in TFDS: where a reader stops in
        # the middle, TensorFlow's memory cache may take what was read for the whole, and all readers after it see that.
        read = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return builder.as_dataset(
            split=getattr(config, split), as_supervised=True, shuffle_files=False, read_config=read
        )

    return Source({split: examples(split) for split in SPLITS}, _sizes(parts), shape, tuple(labels.names))


def from_folder(config: config_lib.Data) -> Source:
    """Image files in one folder per class, which may themselves be in one folder per split.

    A split's order is that of a digest of each file's place under the folder: the same on every machine and file
    system, and unrelated to the classes, so that 'train[:80%]' has about 80 % of each. Channels, and the size where no
    image_size is set, are those of the first training image.

    Files of train and validation are looked at for being whole images of one size; those of test when they are read.
    """
    root = pathlib.Path(config.folder).expanduser()
    files = _files(root)
    names = sorted({label for found in files.values() for _, label in found})
    infos = tfds.core.SplitDict(
        [tfds.core.SplitInfo(name=split, shard_lengths=[len(found)], num_bytes=0) for split, found in files.items()]
    )
    parts = _parts(config, infos)
    chosen = {split: [file for name, a, b in parts[split] for file in files[name][a:b]] for split in SPLITS}
    first = chosen["train"][0][0]
    with terminal.errors_expected():
        height, width, channels = _decoded(first, 0).shape
    channels = 1 if channels < 3 else 3  # without transparency
    shape = (None, None, channels) if config.image_size else (height, width, channels)

    def read(path: str | bytes) -> np.ndarray:
        path = os.fsdecode(path)
        image = _decoded(path, channels)
        if None not in shape and image.shape != shape:
            raise UserError(
                f"data.image_size: {first} has {height} x {width} pixels and {path} {image.shape[0]} x "
                f"{image.shape[1]}; set --config.data.image_size to bring all to one size"
            )
        return image

    # Before anything is trained, so that the message is not lost in what TensorFlow says of a pipeline that fails. All
    # that is learned without decoding is whether a file ends where it should; sizes are compared by decoding.
    with terminal.errors_expected():
        for path, _ in chosen["train"] + chosen["validation"]:
            if not config.image_size or not _looks_whole(path):
                read(path)

    def example(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Through Python, because TensorFlow's own message would not say which file it is that cannot be decoded.
        return tf.ensure_shape(tf.numpy_function(read, [path], tf.uint8, stateful=False), shape), label

    def examples(split: str) -> tf.data.Dataset:
        labels = np.array([names.index(label) for _, label in chosen[split]], np.int64)
        pairs = tf.data.Dataset.from_tensor_slices(([path for path, _ in chosen[split]], labels))
        return pairs.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    return Source({split: examples(split) for split in SPLITS}, _sizes(parts), shape, tuple(names))


def from_function(config: config_lib.Data) -> Source:
    """What the user's function returns, checked. It is given `config` if it has a parameter without a default.

    Train and validation are read through once: to count examples and classes, to see that images have one shape, and
    to find images that both have. Of the test split only the element type is looked at.
    """
    function = functions.resolve("data.source", config.source)
    arguments = [config] if _takes_one(function) else []
    returned = functions.call("data.source", config.source, function, *arguments)
    splits, names = _returned(returned, config.source)
    for split in SPLITS:
        _check_elements(splits[split], f"data.source: {split} of '{config.source}'")
    surveys = {split: _survey(splits[split], split, config) for split in ("train", "validation")}

    common = len(surveys["train"].digests & surveys["validation"].digests)
    if common:
        raise UserError(
            f"data.source: {common:,} images are both in train and in validation of '{config.source}'; disjoint "
            "splits expected"
        )
    shapes = surveys["train"].shapes | surveys["validation"].shapes
    channels = {shape[-1] for shape in shapes}
    if len(channels) > 1:
        found = " and ".join(str(c) for c in sorted(channels))
        raise UserError(f"data.source: one number of channels expected. Received: {found} of '{config.source}'")
    shape = shapes.pop() if len(shapes) == 1 else (None, None, channels.pop())
    if config.image_size:
        shape = (None, None, shape[-1])
    if not (known := splits["test"].element_spec[0].shape).is_compatible_with(shape):
        raise UserError(f"data.source: test of '{config.source}' has images of shape {known}; {shape} expected")
    largest = max(survey.largest_label for survey in surveys.values())
    names = names or tuple(str(label) for label in range(largest + 1))
    if largest >= len(names):
        raise UserError(f"data.source: label {largest} of '{config.source}' has no name; {len(names)} names were given")

    def checked(split: str) -> tf.data.Dataset:
        # As it is read, because the test split is not to be read before, and a data set may change between readings.
        def check(label: np.ndarray, got: np.ndarray) -> np.ndarray:
            about = f"data.source: {split} of '{config.source}' has"
            if not 0 <= label < len(names):
                raise UserError(f"{about} the label {label}; 0 to {len(names) - 1} expected")
            if len(got) != 3 or any(w not in (None, g) for w, g in zip(shape, got, strict=True)):
                raise UserError(f"{about} an image of shape {tuple(got.tolist())}; {shape} expected")
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


def decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 (H, W, channels) of a JPEG or PNG file's bytes, by TensorFlow's decoder as TFDS calls it."""
    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def _builder(config: config_lib.Data, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    if config.name == Digits.name:
        return _digits(pathlib.Path(config.data_dir or folder))
    data_dir = config.data_dir or os.environ.get("TFDS_DATA_DIR") or None
    try:
        builder = tfds.builder(config.name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError):
        near = difflib.get_close_matches(config.name, tfds.list_builders(with_community_datasets=False), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"data.name: no TFDS data set '{config.name}'{hint}") from None
    if not builder.info.splits:
        raise UserError(
            f"data.data_dir: '{config.name}' is not prepared in {builder.data_path.parent.parent}: set "
            f"--config.data.data_dir or TFDS_DATA_DIR to the folder that holds it, or run 'tfds build {config.name}'"
        )
    return builder


def _digits(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    """The bundled digits, prepared in `folder` unless they are there. Raises UserError if what is there was altered."""
    place = folder / Digits.name / str(Digits.VERSION)
    sizes = {"train": len(sklearn.datasets.load_digits().target) - _NUM_DIGITS_TEST, "test": _NUM_DIGITS_TEST}
    # TFDS draws the name of a temporary folder. Weights are drawn from the same generator, and are not to depend on
    # whether the digits had been prepared before.
    state = random.getstate()
    try:
        builder = Digits(data_dir=folder)
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads, which it does not
            builder.download_and_prepare()
        info = builder.info
        found = {name: split.num_examples for name, split in info.splits.items() if _files_of(split)}
        whole = found == sizes and info.supervised_keys == ("image", "label")
    except Exception as error:  # TFDS checks nothing of what it reads
        if unwritable(error, str(folder)):
            raise
        whole = False
    finally:
        random.setstate(state)
    if not whole:
        raise UserError(f"{place / 'dataset_info.json'}: truncated or altered: delete {place}, and it is made again")
    return builder


def _check_records(builder: tfds.core.DatasetBuilder, part: _Part) -> None:
    """Raises UserError, naming the file, if one that holds a part of a split is not what TFDS wrote."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        return
    names = dict.fromkeys(name for name, _, _ in part)
    files = {file: size for name in names for file, size in _files_of(builder.info.splits[name])}
    if sum(tf.io.gfile.stat(file).length for file in files if tf.io.gfile.exists(file)) > _CHECKED_BYTES:
        return
    for file, size in files.items():
        try:
            with terminal.errors_expected():
                found = sum(1 for _ in tf.data.TFRecordDataset(file))
        except tf.errors.OpError:  # a record has a checksum
            found = -1
        if found != size:
            raise UserError(
                f"{file}: missing, truncated or altered, {size:,} whole records expected: delete its folder, and "
                "prepare the data set again (the bundled digits prepare themselves)"
            )


def _files_of(split: tfds.core.SplitInfo) -> list[tuple[str, int]]:
    """Path and number of records of each file of a split."""
    return [(os.fspath(file), size) for file, size in zip(split.filepaths, split.shard_lengths, strict=True)]


def _parts(config: config_lib.Data, splits: Mapping[str, tfds.core.SplitInfo]) -> dict[str, _Part]:
    expressions = {split: getattr(config, split) for split in SPLITS}
    parts = {split: _intervals(splits, split, text) for split, text in expressions.items()}
    _check_disjoint(expressions, parts)
    return parts


def _sizes(parts: Mapping[str, _Part]) -> dict[str, int]:
    return {split: sum(b - a for _, a, b in pieces) for split, pieces in parts.items()}


def _intervals(splits: Mapping[str, tfds.core.SplitInfo], split: str, text: str) -> _Part:
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


def _check_disjoint(expressions: dict[str, str], parts: dict[str, _Part]) -> None:
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            for name, a, b in parts[one]:
                for name2, c, d in parts[other]:
                    if name == name2 and max(a, c) < min(b, d):
                        raise UserError(
                            f"data.{one} '{expressions[one]}' and data.{other} '{expressions[other]}' overlap: both "
                            f"hold {name}[{max(a, c)}:{min(b, d)}]; splits must be disjoint"
                        )


def _files(root: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """By split: (path, class) of its images, in the fixed order."""
    if not root.is_dir():
        raise UserError(f"data.folder: a folder of DIR/CLASS/*.jpg expected. Received: '{root}', which is not there")
    tops = _entries(root)
    for top in tops:
        if not top.is_dir():
            raise UserError(f"data.folder: folders of classes expected in {root}. Received: file {top.name}")
    holds_folders = {top.name: any(entry.is_dir() for entry in _entries(top)) for top in tops}
    if not tops or len(set(holds_folders.values())) > 1:
        what = ", ".join(f"{n} holds {'folders' if deep else 'files'}" for n, deep in holds_folders.items())
        raise UserError(
            f"data.folder: {root}/CLASS/*.jpg or {root}/SPLIT/CLASS/*.jpg expected. Received: {what or 'nothing'}"
        )
    deep = all(holds_folders.values())
    classes = {top.name: _entries(top) for top in tops} if deep else {"train": tops}
    return {
        split: sorted(
            ((str(file), label.name) for label in labels for file in _images(label)),
            # With the split's name, not the root's: the order stays where the folder is moved or a split is added.
            key=lambda pair: hashlib.sha256("/".join((split, *pathlib.Path(pair[0]).parts[-2:])).encode()).digest(),
        )
        for split, labels in classes.items()
    }


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    visible = (e for e in folder.iterdir() if not e.name.startswith(".") and e.name.lower() not in _CLUTTER)
    return sorted(visible, key=lambda entry: entry.name)


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"data.folder: folders of classes expected in {folder.parent}. Received: file {folder.name}")
    files = _entries(folder)
    for file in files:
        if file.suffix.lower() not in _ENDINGS or file.is_dir():
            raise UserError(f"data.folder: {', '.join(_ENDINGS)} files expected. Received: {file}")
    if not files:
        raise UserError(f"data.folder: {folder} is empty; {', '.join(_ENDINGS)} files expected")
    return files


def _looks_whole(path: str) -> bool:
    """Whether a file begins as a JPEG or PNG file and ends as one. One that does not may still be fine."""
    with open(path, "rb") as stream:
        begin = stream.read(8)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 12))
        end = stream.read()
    jpeg = begin.startswith(b"\xff\xd8") and end.endswith(b"\xff\xd9")
    return jpeg or (begin == b"\x89PNG\r\n\x1a\n" and end[4:8] == b"IEND")


def _decoded(path: str, channels: int) -> np.ndarray:
    try:
        return decode(tf.io.read_file(path), channels).numpy()
    except tf.errors.OpError:
        raise UserError(f"data.folder: {path} is no image that TensorFlow can decode; JPEG or PNG expected") from None


def _takes_one(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some that are written in C
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
            raise UserError(f"data.source: label_names of '{source}' must be a list of texts. Received: {names!r}")
        if not names or len(set(names)) < len(names):
            raise UserError(f"data.source: label_names of '{source}' must be distinct names. Received: {names!r}")
    return splits, tuple(names or ())


def _check_elements(dataset: Any, about: str) -> None:
    expected = "single (image uint8 (height, width, channels), label integer) examples"
    if not isinstance(dataset, tf.data.Dataset):
        raise UserError(f"{about} must be a tf.data.Dataset. Received: {type(dataset).__name__}")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not all(isinstance(s, tf.TensorSpec) for s in spec):
        raise UserError(f"{about} must give {expected}, so pairs. Received: {spec}")
    image, label = spec
    if image.dtype != tf.uint8:
        raise UserError(f"{about} must give {expected}. Received: images of {image.dtype.name}; do not scale them")
    if image.shape.rank not in (3, None) or label.shape.rank not in (0, None):
        batched = image.shape.rank == 4
        hint = "; do not batch them" if batched else ""
        raise UserError(f"{about} must give {expected}. Received: images {image.shape} and labels {label.shape}{hint}")
    if not label.dtype.is_integer:
        raise UserError(f"{about} must give {expected}. Received: labels of {label.dtype.name}")
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{about} never ends; one pass over the examples expected, without repeat()")


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
                    f"{about} must give images (height, width, channels) and scalar labels. Received: shapes "
                    f"{image.shape} and {np.shape(label)}"
                )
            if label < 0:
                raise UserError(f"{about} has the label {label}; labels from 0 on expected")
            size, largest = size + 1, max(largest, int(label))
            shapes.add(image.shape)
            digests.add(hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest())
    except tf.errors.OpError as error:
        raise UserError(f"{about} cannot be read: {plain(error)}") from None
    if not size:
        raise UserError(f"{about} is empty; examples expected")
    return _Survey(size, shapes, largest, digests)
