"""From a TFDS data set to tf.data: disjoint splits, augmentation, order that resumes exactly, the bundled digits."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import pathlib
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnas import config as config_lib
from tfnas.errors import UserError

tfds.disable_progress_bar()

SPLITS = ("train", "validation", "test")
_NUM_DIGITS_TEST = 400


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


@dataclasses.dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one data set. Nothing is read until a part is iterated.

    Attributes:
        train, validation, test: tf.data of (image uint8 (H, W, C), label int64 scalar), one example each.
        sizes: number of examples by split name.
        image_shape: (H, W, C).
        label_names: one per class.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    sizes: dict[str, int]
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.label_names)


def load(config: config_lib.Data, folder: pathlib.Path) -> Splits:
    """The three splits that `config` names.

    Args:
        config: settings.
        folder: where the bundled digits are prepared when no data_dir is set.

    Raises:
        UserError: for an unknown or absent data set, images without one size, no labels, a split that is unknown,
            empty or overlapping another.
    """
    builder = _builder(config, folder)
    features = builder.info.features
    keys = builder.info.supervised_keys
    if not keys or len(keys) != 2 or not isinstance(features[keys[1]], tfds.features.ClassLabel):
        raise UserError(f"data.name: '{config.name}' has no (image, label) pairs; an image classification set expected")
    pixels, labels = features[keys[0]], features[keys[1]]
    shape = tuple(pixels.shape)
    if config.image_size:
        shape = (config.image_size, config.image_size, shape[-1])
    if len(shape) != 3 or None in shape:
        raise UserError(
            f"data.image_size: the images of '{config.name}' have shape {tuple(pixels.shape)}; "
            "set --config.data.image_size to resize them to one size"
        )
    if len(config.mean) not in (1, shape[-1]):
        raise UserError(f"data.mean: 1 or {shape[-1]} numbers expected, one per channel. Received: {config.mean}")

    expressions = {split: getattr(config, split) for split in SPLITS}
    parts = {split: _intervals(builder, split, text) for split, text in expressions.items()}
    _check_disjoint(expressions, parts)

    def examples(split: str) -> tf.data.Dataset:
        # One file after the other: the same order on every machine. No cache, here or in TFDS: where a reader stops in
        # the middle, TensorFlow's memory cache may take what was read for the whole, and all readers after it see that.
        read = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        dataset = builder.as_dataset(
            split=expressions[split], as_supervised=True, shuffle_files=False, read_config=read
        )
        if config.image_size:
            dataset = dataset.map(lambda image, label: (resize(image, config.image_size), label))
        return dataset

    return Splits(
        **{split: examples(split) for split in SPLITS},
        sizes={split: sum(b - a for _, a, b in parts[split]) for split in SPLITS},
        image_shape=shape,
        label_names=tuple(labels.names),
    )


def standardise(image: tf.Tensor, config: config_lib.Data) -> tf.Tensor:
    """(image / 255 - mean) / std in float32; the one place where pixels become a network's input."""
    return (tf.cast(image, tf.float32) / 255.0 - tf.constant(config.mean)) / tf.constant(config.std)


def evaluation_batches(dataset: tf.data.Dataset, config: config_lib.Data, batch_size: int) -> tf.data.Dataset:
    """Batches of (standardised image, label) in order, the last one possibly smaller."""
    batches = dataset.batch(batch_size).map(lambda image, label: (standardise(image, config), label))
    return batches.prefetch(tf.data.AUTOTUNE)


def training_batches(
    splits: Splits, config: config_lib.Data, batch_size: int, epochs: int, seed: int, first_epoch: int = 0
) -> tf.data.Dataset:
    """Shuffled, augmented batches of the epochs from `first_epoch` to `epochs`, one after another.

    Order and augmentation are functions of (TensorFlow's global seed, seed, epoch, position), so a run that starts
    again at `first_epoch` sees what it would have seen. The global seed must not be 0, see `training.set_seed`.
    Batches are full; the examples left over in an epoch differ from epoch to epoch.

    Raises:
        UserError: if there are fewer training images than one batch.
    """
    size = splits.sizes["train"]
    if size < batch_size:
        raise UserError(f"batch_size: at most the {size} training images expected. Received: {batch_size}")

    def augmented(image: tf.Tensor, label: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _augment(standardise(image, config), config, tf.stack([tf.cast(seed, tf.int64), key])), label

    train = splits.train.cache()  # its only reader shuffles over the whole split, so reads it to the end

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = train.shuffle(size, seed=seed * 1_000_003 + epoch, reshuffle_each_iteration=False)
        keyed = order.enumerate(epoch * size)
        examples = keyed.map(lambda key, pair: augmented(pair[0], pair[1], key), num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size, drop_remainder=True)

    numbers = tf.data.Dataset.range(first_epoch, epochs)
    return numbers.flat_map(epoch_batches).prefetch(tf.data.AUTOTUNE)


def _augment(image: tf.Tensor, config: config_lib.Data, seed: tf.Tensor) -> tf.Tensor:
    height, width, channels = image.shape
    if config.pad_crop:
        pad = config.pad_crop
        padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
        image = tf.image.stateless_random_crop(padded, (height, width, channels), seed)
    if config.flip:
        image = tf.image.stateless_random_flip_left_right(image, seed + [1, 0])
    if config.cutout:
        centre = tf.random.stateless_uniform([2], seed + [2, 0], 0.0, [float(height), float(width)])
        half = config.cutout / 2
        rows = tf.abs(tf.range(height, dtype=tf.float32) + 0.5 - centre[0]) < half
        columns = tf.abs(tf.range(width, dtype=tf.float32) + 0.5 - centre[1]) < half
        hole = rows[:, None, None] & columns[None, :, None]
        image = tf.where(hole, 0.0, image)
    return image


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 images (..., H, W, C) brought to size x size by averaging areas, as in training."""
    resized = tf.image.resize(tf.cast(image, tf.float32), (size, size), method="area")
    return tf.cast(tf.round(resized), tf.uint8)


def _builder(config: config_lib.Data, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    if config.name == Digits.name:
        builder = Digits(data_dir=config.data_dir or folder)
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads, which it does not
            builder.download_and_prepare()
        return builder
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


def _intervals(builder: tfds.core.DatasetBuilder, split: str, text: str) -> list[tuple[str, int, int]]:
    splits = builder.info.splits
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


def _check_disjoint(expressions: dict[str, str], parts: dict[str, list[tuple[str, int, int]]]) -> None:
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            for name, a, b in parts[one]:
                for name2, c, d in parts[other]:
                    if name == name2 and max(a, c) < min(b, d):
                        raise UserError(
                            f"data.{one} '{expressions[one]}' and data.{other} '{expressions[other]}' overlap: both "
                            f"hold {name}[{max(a, c)}:{min(b, d)}]; splits must be disjoint"
                        )
