"""The SavedModel for serving: raw inputs or encoded images in, the task's answers out. It needs no other package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnas.config import Config
from tfnas.data import pipeline, sources
from tfnas.tasks.functions import in_float32
from tfnas.tasks.network_inputs import Input, Inputs
from tfnas.tasks.task import named

DEFAULT, BYTES, UNCERTAINTY = "serving_default", "serve_bytes", "serve_uncertainty"
# By format, the first bytes of its files, and the numbers of channels that TensorFlow decodes them to. Not GIF:
# TensorFlow decodes all of its frames to use one, and no header states how much memory they take.
_FORMATS = {
    "PNG": (b"\x89PNG\r\n\x1a\n", (1, 3, 4)),
    "JPEG": (b"\xff\xd8\xff", (1, 3)),
    "BMP": (b"BM", (3, 4)),
}
_HEADER = 32  # leading bytes that contain the width and height of a PNG or BMP file


def write(
    model: keras.Model,
    splits: pipeline.Splits,
    config: Config,
    path: str | os.PathLike[str],
    ensemble: Sequence[keras.Model] = (),
) -> None:
    """Writes `model` as a SavedModel whose signatures prepare inputs as ranking and evaluation do.

    - `serving_default`: `image` uint8 (N, H, W, C), raw pixels. If `data.image_size` is set, images may have any size
      and are resized; otherwise they must have the data's size. Of data with values, `inputs` float32 (N, ...), which
      reach the network as they are. Of several inputs, all of them by name, images and values likewise.
    - `serve_bytes`: `image_bytes` string (N,), each a file of one of the `formats`, decoded like the data set, one at a
      time, and only if its header states a valid size. If `data.image_size` is set, files may differ in size. Data
      with values, several inputs, or a number of channels that no file format has, such as 2, do not have this
      signature.
    - `serve_uncertainty`, with an `ensemble`: the inputs of `serving_default`.

    The first two return what the task answers (`tfnas.tasks.meanings`). Of a classification, `probabilities` float32
    (N, classes), in the order of the labels, and for the k = min(5, classes) most probable classes in descending order,
    the names `classes` string (N, k) and the probabilities `scores` float32 (N, k); of several labels the same. Of a
    segmentation, `probabilities` (N, H, W, classes) and `mask` int32 (N, H, W); of a regression, `values` float32 (N,
    numbers); of a custom task, `outputs`, or all of them by their names. The third returns, for the average of the
    members, `mean` float32 (N, classes), its `classes` and `scores`, its `entropy` float32 (N,) in nats, and
    `disagreement` float32 (N,), the share of members whose most probable class is not the mean's.

    An empty batch, an input of the wrong shape, an image with more pixels than `export.max_pixels`, and bytes that are
    not an image raise an InvalidArgumentError that states what is expected and what was received.

    Args:
        model: model from float32 inputs (N, ...), of images standardized ones, to the outputs of the task, such as
            logits.
        splits: the splits, whose examples are not read.
        config: settings of the preprocessing.
        path: folder to write.
        ensemble: models like `model`, whose probabilities are averaged.
    """
    task, labels = splits.task, splits.label_names

    def outputs(network: keras.Model, given: Any) -> Any:
        return in_float32(network(pipeline.standardize(given, config.data), training=False))

    def prepared(given: Any) -> Any:
        return pipeline.prepare(_checked(given, splits, config), config.data)

    def answer(given: Any) -> dict[str, tf.Tensor]:
        return task.answer(outputs(model, given), labels)

    def serve(given: Any) -> dict[str, tf.Tensor]:
        return answer(prepared(given))

    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(_decoded(image_bytes, splits, config))

    def serve_uncertainty(given: Any) -> dict[str, tf.Tensor]:
        given = prepared(given)
        members = tf.nn.softmax(tf.stack([outputs(member, given) for member in ensemble]))
        mean = tf.reduce_mean(members, 0)
        differs = tf.argmax(members, -1) != tf.argmax(mean, -1)
        return {
            "mean": mean,
            "entropy": -tf.reduce_sum(tf.math.xlogy(mean, mean), -1),
            "disagreement": tf.reduce_mean(tf.cast(differs, tf.float32), 0),
            **named(mean, labels),
        }

    arrays = {
        name: tf.TensorSpec((None, *_shape(one, config)), one.dtype, name)
        for name, one in splits.inputs.by_name.items()
    }
    raw = [splits.inputs.packed(arrays)]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(DEFAULT, serve, input_signature=raw)
    if BYTES in names(splits, ensemble):
        files = [tf.TensorSpec((None,), tf.string, name="image_bytes")]
        archive.add_endpoint(BYTES, serve_bytes, input_signature=files)
    if ensemble:
        for member in ensemble:
            archive.track(member)
        archive.add_endpoint(UNCERTAINTY, serve_uncertainty, input_signature=raw)
    archive.write_out(os.fspath(path), verbose=False)


def names(splits: pipeline.Splits, ensemble: Sequence[keras.Model] = ()) -> list[str]:
    """Returns the names of the signatures of the SavedModel."""
    return [DEFAULT, *[BYTES] * bool(formats(splits.inputs)), *[UNCERTAINTY] * bool(ensemble)]


def formats(inputs: Inputs) -> list[str]:
    """Returns the file formats that `serve_bytes` reads for such inputs; without any, there is no signature."""
    if not inputs.are_images:
        return []
    channels = inputs.shapes[-1]
    return [name for name, (_, possible) in _FORMATS.items() if channels in possible]


def _shape(one: Input, config: Config) -> tuple[int | None, ...]:
    """Returns the shape of an input; height and width of an image are None for any."""
    return (None, None, one.shape[-1]) if one.is_image and config.data.image_size else one.shape


def _checked(given: Any, splits: pipeline.Splits, config: Config) -> Any:
    """Checks that the shapes of `given` are what the signature declares, because not every server does."""
    inputs = splits.inputs
    arrays = inputs.unpacked(given)
    checked = {
        name: _checked_one(arrays[name], name, one, inputs.nouns, config) for name, one in inputs.by_name.items()
    }
    counts = [tf.shape(x)[0] for x in checked.values()]
    text = f"as many of each of {', '.join(checked)} expected. Received:"
    with tf.control_dependencies([_check(counts[0] == count, text, *counts) for count in counts[1:]]):
        return inputs.packed({name: tf.identity(x) for name, x in checked.items()})


def _checked_one(given: tf.Tensor, name: str, one: Input, nouns: str, config: Config) -> tf.Tensor:
    shape = (None, *_shape(one, config))
    shown = ", ".join("NHW"[i] if size is None else str(size) for i, size in enumerate(shape))
    text = f"{name}: shape ({shown}) of one or more {nouns} expected. Received:"
    # Discards the declared shape, because a check against it would be optimized away when the graph is traced.
    given = tf.raw_ops.PlaceholderWithDefault(input=given, shape=tf.TensorShape(None))
    received = tf.shape(given)
    sizes = tf.concat([received, [0] * len(shape)], 0)[: len(shape)]  # for any rank
    wanted = tf.stack([1 if size is None else size for size in shape])
    exact = [size is not None for size in shape]
    fits = (tf.size(received) == len(shape)) & tf.reduce_all(tf.where(exact, sizes == wanted, sizes >= wanted))
    checks = [_check(fits, text, received)]
    if one.is_image and config.data.image_size:
        text = f"{name}: at most {config.export.max_pixels} pixels expected, {_SCALED}. Received, of height and width:"
        checks.append(_check(~fits | _is_small(sizes[1:3], config), text, sizes[1:3]))
    with tf.control_dependencies(checks):
        # Not `ensure_shape`, from which TensorFlow would infer that the check above always holds, and remove it.
        return tf.reshape(given, [sizes[i] if size is None else size for i, size in enumerate(shape)])


def _decoded(files: tf.Tensor, splits: pipeline.Splits, config: Config) -> tf.Tensor:
    """Decodes files to uint8 images (N, H, W, C), each resized to the network's input."""
    shape = splits.inputs.shapes
    height, width, channels = shape
    taken = formats(splits.inputs)

    def begins(file: tf.Tensor, name: str) -> tf.Tensor:
        mark, _ = _FORMATS[name]
        return tf.strings.substr(file, 0, len(mark)) == mark

    def image(numbered: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        number, file = numbered
        known = tf.reduce_any([begins(file, name) for name in taken])
        text = f"image_bytes: {' or '.join(taken)} files expected. Received another, of number and length:"
        with tf.control_dependencies([_check(known, text, number, tf.strings.length(file))]):
            file = tf.identity(file)
        size = _size_in_header(file, begins(file, "PNG"), begins(file, "JPEG"))
        if config.data.image_size:
            text = f"image_bytes: images of at most {config.export.max_pixels} pixels expected, {_SCALED}."
            fits = _is_small(size, config)
        else:
            text = f"image_bytes: images of {height} x {width} pixels expected."
            fits = tf.reduce_all(size == [height, width])
        with tf.control_dependencies([_check(fits, f"{text} Received, of number and size:", number, size)]):
            pixels = sources.decode(tf.identity(file), channels)
        return pipeline.prepare(pixels, config.data) if config.data.image_size else tf.reshape(pixels, shape)

    count = tf.size(files)
    with tf.control_dependencies([_check(count > 0, "image_bytes: one or more files expected. Received:", count)]):
        numbered = (tf.range(count), tf.identity(files))
    # One at a time, because each may be as large as the limit.
    spec = tf.TensorSpec(shape, tf.uint8)
    return tf.map_fn(image, numbered, fn_output_signature=spec, parallel_iterations=1)


_SCALED = "as sent and as scaled"  # the limit on pixels applies to both


def _is_small(size: tf.Tensor, config: Config) -> tf.Tensor:
    """Whether an image of `size`, int32 (height, width), has at least one pixel and at most `export.max_pixels`.

    The limit applies before and after the resizing that precedes the center crop, which enlarges an image of a single
    row as many times as it is long.
    """
    height, width = tf.unstack(tf.cast(size, tf.float32), 2)
    most = float(config.export.max_pixels)
    fits = (height >= 1) & (width >= 1) & (height * width <= most)
    if config.data.random_resized_crop:
        fits &= pipeline.scaled_pixels(height, width, config.data.image_size) <= most
    return fits


def _size_in_header(file: tf.Tensor, is_png: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    """Reads int32 (height, width) from the header of a PNG, JPEG or BMP file; undefined for a truncated header."""
    head = tf.strings.join([tf.strings.substr(file, 0, _HEADER), tf.constant(b"\0" * _HEADER)])

    def png() -> tf.Tensor:  # width and height are in the first chunk, IHDR
        return tf.io.decode_raw(tf.strings.substr(head, 16, 8), tf.int32, little_endian=False)[::-1]

    def jpeg() -> tf.Tensor:
        return tf.image.extract_jpeg_shape(file)[:2]

    def bmp() -> tf.Tensor:  # in BITMAPINFOHEADER; the height is negative for images stored from the top down
        return tf.abs(tf.io.decode_raw(tf.strings.substr(head, 18, 8), tf.int32)[::-1])

    return tf.ensure_shape(tf.cond(is_png, png, lambda: tf.cond(is_jpeg, jpeg, bmp)), (2,))


def _check(condition: tf.Tensor, text: str, *values: tf.Tensor) -> tf.Operation:
    # An operation of the graph, so that it is part of the SavedModel; dependent operations run after it.
    return tf.debugging.Assert(condition, [text, *values], summarize=10)
