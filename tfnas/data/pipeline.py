"""The input pipeline: resizing, augmentation, and an order that resumes exactly."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfnas import config as config_lib
from tfnas.common.errors import UserError
from tfnas.data import sources
from tfnas.tasks.meanings import CLASSIFICATION
from tfnas.tasks.network_inputs import IMAGE, Input, Inputs
from tfnas.tasks.task import Task

SPLITS = sources.SPLITS

# Limit in bytes on training images that are cached in memory, and on the shuffle buffer of those that are not.
_MEMORY = 4 << 30
_CENTER = 0.875  # share of the shorter side in the center crop, where training uses random crops


@dataclasses.dataclass(frozen=True)
class Splits:
    """Three disjoint splits of a data set. Nothing is read until a split is iterated.

    Attributes:
        train, validation, test: tf.data of (input, target) or (input, target, weight float32 scalar), one example each.
            An input is an image uint8 (H, W, C), an array float32 of any fixed shape, or a dict of such by name; a
            target is as the task's losses take it, such as an int64 scalar. With `random_resized_crop`, train has the
            images in their original sizes, for random crops.
        sizes: number of examples by split name; without 'test' if counting it would require reading it.
        inputs: what a network is given, of fixed shapes.
        label_names: one per class, label or number; none if the task does not know them.
        task: what targets mean.
        output_names: of targets and of a network's outputs, if they are dicts by name.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    sizes: dict[str, int]
    inputs: Inputs
    label_names: tuple[str, ...]
    task: Task = CLASSIFICATION
    output_names: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Number of classes, labels or numbers."""
        return len(self.label_names)

    def summary(self) -> str:
        """Summarizes shape, outputs and sizes in one line."""
        sizes = " / ".join(f"{s} {self.sizes[s]:,}" if s in self.sizes else f"{s} not counted" for s in SPLITS)
        outputs = f", {self.num_outputs} {self.task.nouns}" if self.label_names else ""
        shapes = {name: "x".join(map(str, one.shape)) for name, one in self.inputs.by_name.items()}
        shown = (f"{name} {shape}" if self.inputs.named else shape for name, shape in shapes.items())
        return f"{', '.join(shown)}{outputs} -> {sizes}"

    @property
    def head(self) -> tuple[int | None, ...] | None:
        """Shape of a network's output; None for any."""
        shapes = [self.inputs.by_name[name].shape for name in self.inputs.spatial]
        return self.task.head(shapes[0] if shapes else (), self.num_outputs)

    @property
    def raw(self) -> Any:
        """TensorSpecs of a batch of any size of inputs as they are in the data, named as exported networks do."""
        arrays = self.inputs.by_name.items()
        return self.inputs.packed({n: tf.TensorSpec((None, *one.shape), one.dtype, name=n) for n, one in arrays})


def load(config: config_lib.Data, folder: pathlib.Path, task: Task = CLASSIFICATION) -> Splits:
    """Loads the three splits that `config` names.

    Args:
        config: settings.
        folder: where the bundled digits are prepared if no data_dir is set.
        task: what targets mean.

    Raises:
        UserError: if the data set is unknown or not prepared, images differ in size, there are no labels, or a split
            is unknown, empty or overlaps another.
    """
    return from_source(sources.load(config, folder, task), config, task)


def from_source(source: sources.Source, config: config_lib.Data, task: Task = CLASSIFICATION) -> Splits:
    """Prepares the splits of `sources.load`. Raises UserError if the images differ in size."""
    arrays = source.inputs.by_name.items()
    fixed = {name: Input(one.dtype, _image_shape(one.shape, config)) if one.is_image else one for name, one in arrays}

    def prepared(split: str) -> tf.data.Dataset:
        dataset = source.splits[split]
        if not config.image_size or (split == "train" and config.random_resized_crop):
            return dataset
        return dataset.map(
            lambda given, target, *weight: (prepare(given, config), resized_target(target, config, task), *weight),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    return Splits(
        **{split: prepared(split) for split in SPLITS},
        sizes=source.sizes,
        inputs=dataclasses.replace(source.inputs, by_name=fixed),
        label_names=source.label_names,
        task=task,
        output_names=source.output_names,
    )


def _image_shape(shape: tuple[int | None, ...], config: config_lib.Data) -> tuple[int | None, ...]:
    """Returns the shape of prepared images of a shape. Raises UserError if they differ in size."""
    height, width, channels = shape
    if config.image_size:
        height = width = config.image_size
    if height is None or width is None:
        raise UserError(
            f"data.image_size: images of '{config.title}' have shape {shape}; "
            "set --config.data.image_size to resize them to one size"
        )
    if len(config.mean) not in (1, channels):
        numbers = "1 number" if channels == 1 else f"1 or {channels} numbers"
        raise UserError(f"data.mean and data.std: expected {numbers} each, one per channel. Received: {config.mean}")
    return height, width, channels


def standardize(given: Any, config: config_lib.Data) -> Any:
    """Returns the input of a network, float32: of uint8 images (image / 255 - mean) / std, of values the same."""
    return _of_images(lambda image: _standardized(image, config), given)


def _standardized(image: tf.Tensor, config: config_lib.Data) -> tf.Tensor:
    return (tf.cast(image, tf.float32) / 255.0 - tf.constant(config.mean)) / tf.constant(config.std)


def _of_images(function: Callable[[tf.Tensor], tf.Tensor], given: Any) -> Any:
    """The same structure of arrays with a function's results in place of uint8 images."""
    return tf.nest.map_structure(lambda x: function(x) if tf.as_dtype(x.dtype) == IMAGE else x, given)


def evaluation_batches(dataset: tf.data.Dataset, config: config_lib.Data, batch_size: int) -> tf.data.Dataset:
    """Returns batches of (standardized input, target, maybe weight) in order; the last one may be smaller."""
    batches = dataset.batch(batch_size).map(lambda given, *others: (standardize(given, config), *others))
    return batches.prefetch(tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's share of every global batch: all of it, unless several processes train together.

    A global batch is split into equal, consecutive parts, one per replica; each process has those of its replicas.

    Attributes:
        process: index of this process.
        processes: number of processes.
        replicas: number of replicas of this process.
    """

    process: int = 0
    processes: int = 1
    replicas: int = 1


def training_batches(
    splits: Splits,
    config: config_lib.Data,
    batch_size: int,
    epochs: int,
    seed: int,
    first_step: int = 0,
    share: Share = Share(),  # noqa: B008, frozen
) -> tf.data.Dataset:
    """Returns shuffled, augmented batches from step `first_step` to the end of `epochs`.

    Order and augmentation are functions of (TensorFlow's global seed, seed, epoch, position), so a run that resumes at
    any step, on any devices, sees the same images. The global seed must not be 0 (see `networks.set_seed`). All batches
    are full; the examples left out of an epoch differ between epochs.

    Up to 4 GB of images, estimated from the first ones, are read once, cached, and shuffled as a whole. Larger data
    sets are read again in every epoch and shuffled within a moving buffer of 4 GB: every epoch contains each image
    once, in a new order, and resuming is exact, but images stay close to where they are stored. Both require a data set
    that yields the same images in the same order every time it is read.

    Args:
        splits: the splits, of which only train is read.
        config: settings of the augmentation.
        batch_size: size of the global batch.
        epochs: total number of epochs.
        seed: seed of order and augmentation.
        first_step: index of the first global batch, counted from the start of the first epoch.
        share: share of each global batch to return, as one batch per replica.

    Raises:
        UserError: if there are fewer training images than one batch, or a batch cannot be split equally.
    """
    size = splits.sizes["train"]
    if size < batch_size:
        raise UserError(f"batch_size: must be at most {size}, the number of training examples. Received: {batch_size}")
    parts = share.processes * share.replicas
    if batch_size % parts:
        raise UserError(f"batch_size: must be a multiple of {parts}, the number of replicas. Received: {batch_size}")
    steps = size // batch_size
    first_epoch, skipped = divmod(first_step, steps)

    def augmented(key: tf.Tensor, given: Any, target: tf.Tensor, *weight: tf.Tensor) -> tuple[Any, ...]:
        image_seed = tf.stack([tf.cast(seed, tf.int64), key])

        def of_image(image: tf.Tensor) -> tf.Tensor:
            if config.random_resized_crop:
                image = _random_crop(image, config.image_size, image_seed + [3, 0])
            return _augment(_standardized(image, config), config, image_seed)

        if splits.task.facts.spatial and config.flip:
            target = _flipped(target[..., None], image_seed)[..., 0]
        return _of_images(of_image, given), target, *weight

    train, buffer = splits.train, size
    input_bytes = _input_bytes(splits)
    if size * input_bytes <= _MEMORY:
        train = train.cache()  # shuffling over the whole split reads it to the end
    else:
        buffer = min(size, max(batch_size, _MEMORY // input_bytes))

    def in_share(key: tf.Tensor, example: tuple[tf.Tensor, ...]) -> tf.Tensor:
        return key % size % batch_size // (batch_size // share.processes) == share.process

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = train.shuffle(buffer, seed=seed * 1_000_003 + epoch, reshuffle_each_iteration=False)
        keyed = order.enumerate(epoch * size).take(steps * batch_size)
        keyed = keyed.skip(tf.where(epoch == first_epoch, tf.constant(skipped * batch_size, tf.int64), 0))
        if share.processes > 1:
            keyed = keyed.filter(in_share)
        examples = keyed.map(lambda key, example: augmented(key, *example), num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size // parts, drop_remainder=True)

    numbers = tf.data.Dataset.range(first_epoch, epochs)
    # Nothing here needs AutoGraph, which takes longer than the tracing.
    return numbers.flat_map(tf.autograph.experimental.do_not_convert(epoch_batches)).prefetch(tf.data.AUTOTUNE)


def _input_bytes(splits: Splits) -> int:
    """Bytes of one training input: exact if all have the same shape, else the mean of the first sixteen."""
    specs = tf.nest.flatten(splits.train.element_spec[0])
    if all(spec.shape.is_fully_defined() for spec in specs):
        return sum(math.prod(spec.shape) * spec.dtype.size for spec in specs)
    first = [sum(x.nbytes for x in tf.nest.flatten(given)) for given, *_ in splits.train.take(16).as_numpy_iterator()]
    return max(1, sum(first) // len(first))


def _random_crop(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Crops 8 to 100 % of a uint8 image's area at random, with an aspect ratio of 3/4 to 4/3, and resizes the crop."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
    )
    channels = image.shape[-1]
    return tf.ensure_shape(_scaled(tf.slice(image, begin, extent), size, size), (size, size, channels))


def _augment(image: tf.Tensor, config: config_lib.Data, seed: tf.Tensor) -> tf.Tensor:
    if config.pad_crop:
        pad = config.pad_crop
        padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
        image = tf.image.stateless_random_crop(padded, image.shape, seed)
    if config.flip:
        image = _flipped(image, seed)
    if config.cutout:
        height, width, _ = image.shape
        center = tf.random.stateless_uniform([2], seed + [2, 0], 0.0, [float(height), float(width)])
        half = config.cutout / 2
        rows = tf.abs(tf.range(height, dtype=tf.float32) + 0.5 - center[0]) < half
        columns = tf.abs(tf.range(width, dtype=tf.float32) + 0.5 - center[1]) < half
        hole = rows[:, None, None] & columns[None, :, None]
        image = tf.where(hole, 0.0, image)
    return image


def _flipped(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right at random: an image and its mask, of the same seed, alike."""
    return tf.image.stateless_random_flip_left_right(image, seed + [1, 0])


def resized_target(target: tf.Tensor, config: config_lib.Data, task: Task) -> tf.Tensor:
    """Resizes a target that has a position for each pixel like its image; others stay."""
    if not (task.facts.spatial and config.image_size):
        return target
    return tf.image.resize(target[..., None], (config.image_size, config.image_size), method="nearest")[..., 0]


def prepare(given: Any, config: config_lib.Data) -> Any:
    """Resizes uint8 images (..., H, W, C) of any size to the input of a network, for evaluation and serving."""
    if not config.image_size:
        return given
    resized = _center_crop if config.random_resized_crop else resize
    return _of_images(lambda images: resized(images, config.image_size), given)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes uint8 images (..., H, W, C) to size x size by averaging areas."""
    resized = tf.image.resize(tf.cast(image, tf.float32), (size, size), method="area")
    return tf.cast(tf.round(resized), tf.uint8)


def scaled_pixels(height: tf.Tensor, width: tf.Tensor, size: int) -> tf.Tensor:
    """Approximate number of pixels of an image that `prepare` resized before the center crop; float32."""
    return (size / _CENTER) ** 2 * tf.maximum(height, width) / tf.minimum(height, width)


def _center_crop(images: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes the shorter side to size / 0.875, then crops the center of size x size."""
    extent = tf.shape(images)[-3:-1]
    factor = size / _CENTER / tf.cast(tf.reduce_min(extent), tf.float32)
    height, width = tf.unstack(tf.maximum(tf.cast(tf.round(tf.cast(extent, tf.float32) * factor), tf.int32), size))
    scaled = _scaled(images, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    middle = scaled[..., top : top + size, left : left + size, :]
    return tf.ensure_shape(middle, (*images.shape[:-3], size, size, images.shape[-1]))


def _scaled(images: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    # Not by areas: crops may be enlarged, and areas would produce visible squares.
    scaled = tf.image.resize(tf.cast(images, tf.float32), (height, width), method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(scaled), 0, 255), tf.uint8)
