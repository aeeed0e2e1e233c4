"""The SavedModel that is served: raw or encoded images in, named probabilities out. It stands alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfnas.config import Config
from tfnas.data import pipeline, sources

DEFAULT, BYTES, UNCERTAINTY = "serving_default", "serve_bytes", "serve_uncertainty"
_MOST_NAMED = 5  # classes that are answered by name
# By format, how its files begin, and the numbers of channels that TensorFlow decodes them to. Not GIF, of which
# TensorFlow decodes all frames to take one, each of a size of its own, so that no header says how much it will take.
_FORMATS = {
    "PNG": (b"\x89PNG\r\n\x1a\n", (1, 3, 4)),
    "JPEG": (b"\xff\xd8\xff", (1, 3)),
    "BMP": (b"BM", (3, 4)),
}
_HEADER = 32  # bytes that a PNG or BMP file's width and height are among


def write(
    model: keras.Model,
    splits: pipeline.Splits,
    config: Config,
    path: str | os.PathLike[str],
    ensemble: Sequence[keras.Model] = (),
) -> None:
    """Writes `model` as a SavedModel whose signatures prepare images as ranking and evaluation do.

    - `serving_default`: `image` uint8 (N, H, W, C), raw pixels. Where `data.image_size` is set, H and W are any, and
      resizing is inside; else they are the data's.
    - `serve_bytes`: `image_bytes` string (N,), each a file of one of the `formats`, decoded as the data set's were, one
      after the other, and only if its header says that it is of a size that is taken. Where `data.image_size` is set
      they may differ in size. Data whose number of channels no file has, such as 2, has no such signature.
    - `serve_uncertainty`, with an `ensemble`: `image` as above.

    The first two answer `probabilities` float32 (N, classes), in the order of the labels, and of the k = min(5,
    classes) most probable classes, in falling order, the names `classes` string (N, k) and the probabilities `scores`
    float32 (N, k). The third answers of the members' average: `mean` float32 (N, classes), `classes` and `scores` of
    it, its `entropy` float32 (N,) in nats, and `disagreement` float32 (N,), the share of members whose most probable
    class is not the mean's.

    An empty batch, images of another size than the data's, or of more pixels than `export.max_pixels`, and bytes that
    are no image are answered by an InvalidArgumentError that says what is expected and what was received.

    Args:
        model: from standardised float32 images (N, H, W, C) to logits (N, classes).
        splits: only `image_shape` and `label_names` are read.
        config: says how images are prepared.
        path: folder to be written.
        ensemble: models like `model`, whose probabilities are averaged.
    """
    labels = tf.constant(splits.label_names)

    def probabilities(network: keras.Model, image: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(network(pipeline.standardize(image, config.data), training=False))

    def prepared(image: tf.Tensor) -> tf.Tensor:
        return pipeline.prepare(_checked(image, splits, config), config.data)

    def named(found: tf.Tensor) -> dict[str, tf.Tensor]:
        scores, places = tf.math.top_k(found, min(_MOST_NAMED, splits.num_classes))
        return {"classes": tf.gather(labels, places), "scores": scores}

    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = probabilities(model, image)
        return {"probabilities": found, **named(found)}

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(prepared(image))

    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(_decoded(image_bytes, splits, config))

    def serve_uncertainty(image: tf.Tensor) -> dict[str, tf.Tensor]:
        image = prepared(image)
        members = tf.stack([probabilities(member, image) for member in ensemble])
        mean = tf.reduce_mean(members, 0)
        differs = tf.argmax(members, -1) != tf.argmax(mean, -1)
        return {
            "mean": mean,
            "entropy": -tf.reduce_sum(tf.math.xlogy(mean, mean), -1),
            "disagreement": tf.reduce_mean(tf.cast(differs, tf.float32), 0),
            **named(mean),
        }

    channels = splits.image_shape[-1]
    images = [tf.TensorSpec((None, *_size(splits, config), channels), tf.uint8, name="image")]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(DEFAULT, serve, input_signature=images)
    if BYTES in names(splits, ensemble):
        files = [tf.TensorSpec((None,), tf.string, name="image_bytes")]
        archive.add_endpoint(BYTES, serve_bytes, input_signature=files)
    if ensemble:
        for member in ensemble:
            archive.track(member)
        archive.add_endpoint(UNCERTAINTY, serve_uncertainty, input_signature=images)
    archive.write_out(os.fspath(path), verbose=False)


def names(splits: pipeline.Splits, ensemble: Sequence[keras.Model] = ()) -> list[str]:
    """Of the signatures that `write` gives the SavedModel."""
    return [DEFAULT, *[BYTES] * bool(formats(splits.image_shape[-1])), *[UNCERTAINTY] * bool(ensemble)]


def formats(channels: int) -> list[str]:
    """Names of the image files that `serve_bytes` reads for data of so many channels; none: there is no signature."""
    return [name for name, (_, possible) in _FORMATS.items() if channels in possible]


def _size(splits: pipeline.Splits, config: Config) -> tuple[int | None, int | None]:
    """Height and width that are taken; None for any."""
    return (None, None) if config.data.image_size else splits.image_shape[:2]


def _checked(image: tf.Tensor, splits: pipeline.Splits, config: Config) -> tf.Tensor:
    """`image`, once its shape is known to be what the signature declares: not every server looks."""
    shape = (*_size(splits, config), splits.image_shape[-1])
    shown = ", ".join(str(size or name) for size, name in zip(shape, ("H", "W", "C"), strict=True))
    text = f"image: shape (N, {shown}) of one or more images expected. Received:"
    # Forgets the declared shape: checked against that, any image would be taken for right when the graph is made.
    image = tf.raw_ops.PlaceholderWithDefault(input=image, shape=tf.TensorShape(None))
    received = tf.shape(image)
    four = tf.concat([received, [0] * 4], 0)[:4]  # whatever the rank is
    wanted = tf.stack([1 if size is None else size for size in (None, *shape)])
    exact = [False, *(size is not None for size in shape)]
    fits = (tf.size(received) == 4) & tf.reduce_all(tf.where(exact, four == wanted, four >= wanted))
    checks = [_check(fits, text, received)]
    if config.data.image_size:
        text = f"image: at most {config.export.max_pixels} pixels expected, {_SCALED}. Received, of height and width:"
        checks.append(_check(~fits | _is_small(four[1:3], config), text, four[1:3]))
    with tf.control_dependencies(checks):
        # Not `ensure_shape`, from which TensorFlow concludes that the check above always holds, and leaves it out.
        return tf.reshape(image, [four[i] if size is None else size for i, size in enumerate((None, *shape))])


def _decoded(files: tf.Tensor, splits: pipeline.Splits, config: Config) -> tf.Tensor:
    """uint8 images (N, H, W, C) of encoded ones, each by itself brought to the size that the network takes."""
    height, width, channels = splits.image_shape
    taken = formats(channels)

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
        return (
            pipeline.prepare(pixels, config.data) if config.data.image_size else tf.reshape(pixels, splits.image_shape)
        )

    count = tf.size(files)
    with tf.control_dependencies([_check(count > 0, "image_bytes: one or more files expected. Received:", count)]):
        numbered = (tf.range(count), tf.identity(files))
    # One at a time: of several that are decoded together, each may be as large as is allowed.
    spec = tf.TensorSpec(splits.image_shape, tf.uint8)
    return tf.map_fn(image, numbered, fn_output_signature=spec, parallel_iterations=1)


_SCALED = "as sent and as scaled"  # what the limit of pixels holds for


def _is_small(size: tf.Tensor, config: Config) -> tf.Tensor:
    """Whether an image of `size`, int32 (height, width), has at least one pixel and at most `export.max_pixels`.

    Neither before nor after the scaling that `data.prepare` does before it cuts out the centre: an image of one row
    becomes as many times larger as it is long.
    """
    height, width = tf.unstack(tf.cast(size, tf.float32), 2)
    most = float(config.export.max_pixels)
    fits = (height >= 1) & (width >= 1) & (height * width <= most)
    if config.data.random_resized_crop:
        fits &= pipeline.scaled_pixels(height, width, config.data.image_size) <= most
    return fits


def _size_in_header(file: tf.Tensor, is_png: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    """int32 (height, width) by the header of a PNG, JPEG or else BMP file; of one that ends in it, anything."""
    head = tf.strings.join([tf.strings.substr(file, 0, _HEADER), tf.constant(b"\0" * _HEADER)])

    def png() -> tf.Tensor:  # width and height of the chunk IHDR, which is the first
        return tf.io.decode_raw(tf.strings.substr(head, 16, 8), tf.int32, little_endian=False)[::-1]

    def jpeg() -> tf.Tensor:
        return tf.image.extract_jpeg_shape(file)[:2]

    def bmp() -> tf.Tensor:  # of BITMAPINFOHEADER; a negative height is that of an image from the top down
        return tf.abs(tf.io.decode_raw(tf.strings.substr(head, 18, 8), tf.int32)[::-1])

    return tf.ensure_shape(tf.cond(is_png, png, lambda: tf.cond(is_jpeg, jpeg, bmp)), (2,))


def _check(condition: tf.Tensor, text: str, *values: tf.Tensor) -> tf.Operation:
    # An operation of the graph, so that it is in the SavedModel; what depends on it runs after it.
    return tf.debugging.Assert(condition, [text, *values], summarize=10)
