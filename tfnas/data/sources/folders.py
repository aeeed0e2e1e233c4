"""A folder of image files, one folder for each class."""

from __future__ import annotations

import hashlib
import os
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnas import config as config_lib
from tfnas.common import terminal
from tfnas.common.errors import UserError
from tfnas.data.sources.splits import SPLITS, Source, parts_of, sizes_of
from tfnas.tasks import network_inputs

_EXTENSIONS = (".jpg", ".jpeg", ".png")
_CLUTTER = ("thumbs.db", "desktop.ini")  # files that Windows adds to folders of images; hidden files are skipped too


def from_folder(config: config_lib.Data) -> Source:
    """Image files in one folder per class, which may themselves be in one folder per split.

    Files are ordered by a hash of their path within the folder: the order is the same on every machine and independent
    of the classes, so that 'train[:80%]' has about 80 % of each. Without image_size, the size is that of the first
    training image. Images are decoded to `channels`; by default in color, unless all of train and validation are gray.

    The files of train and validation are checked to be complete images of one size; those of test when they are read.
    """
    root = pathlib.Path(config.folder).expanduser()
    files = _files(root)
    names = sorted({label for found in files.values() for _, label in found})
    infos = tfds.core.SplitDict(
        [tfds.core.SplitInfo(name=split, shard_lengths=[len(found)], num_bytes=0) for split, found in files.items()]
    )
    parts = parts_of(config, infos)
    chosen = {split: [file for name, a, b in parts[split] for file in files[name][a:b]] for split in SPLITS}
    seen = [path for path, _ in chosen["train"] + chosen["validation"]]
    channels = config.channels or (1 if all(map(_is_gray, seen)) else 3)
    first = seen[0]
    with terminal.errors_expected():
        height, width, _ = _decoded(first, channels).shape
    shape = (None, None, channels) if config.image_size else (height, width, channels)

    def read(path: str | bytes) -> np.ndarray:
        path = os.fsdecode(path)
        image = _decoded(path, channels)
        if None not in shape and image.shape != shape:
            raise UserError(
                f"data.image_size: {first} has {height} x {width} pixels and {path} {image.shape[0]} x "
                f"{image.shape[1]}; set --config.data.image_size to resize all images to one size"
            )
        return image

    # Before training, so that the message is not lost in TensorFlow's output about a failing pipeline. A file's end can
    # be checked without decoding; its size cannot.
    with terminal.errors_expected():
        for path in seen:
            if not config.image_size or not _looks_complete(path):
                read(path)

    def example(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # In Python, because TensorFlow's message does not name the file that cannot be decoded.
        return tf.ensure_shape(tf.numpy_function(read, [path], tf.uint8, stateful=False), shape), label

    def examples(split: str) -> tf.data.Dataset:
        labels = np.array([names.index(label) for _, label in chosen[split]], np.int64)
        pairs = tf.data.Dataset.from_tensor_slices(([path for path, _ in chosen[split]], labels))
        return pairs.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    return Source(
        {split: examples(split) for split in SPLITS}, sizes_of(parts), network_inputs.one(shape), tuple(names)
    )


def decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes the bytes of a JPEG or PNG file to uint8 (H, W, channels), as TFDS does."""
    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def _files(root: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """Returns (path, class) of the images of each split, in the fixed order."""
    if not root.is_dir():
        raise UserError(f"data.folder: expected a folder of DIR/CLASS/*.jpg. Received: '{root}', which does not exist")
    tops = _entries(root)
    for top in tops:
        if not top.is_dir():
            raise UserError(f"data.folder: expected folders of classes in {root}. Received: file {top.name}")
    holds_folders = {top.name: any(entry.is_dir() for entry in _entries(top)) for top in tops}
    if not tops or len(set(holds_folders.values())) > 1:
        found = ", ".join(f"{n} contains {'folders' if deep else 'files'}" for n, deep in holds_folders.items())
        raise UserError(
            f"data.folder: expected {root}/CLASS/*.jpg or {root}/SPLIT/CLASS/*.jpg. Received: {found or 'nothing'}"
        )
    deep = all(holds_folders.values())
    classes = {top.name: _entries(top) for top in tops} if deep else {"train": tops}
    return {
        split: sorted(
            ((str(file), label.name) for label in labels for file in _images(label)),
            # By the path below the root, so that the order stays the same if the folder is moved or a split is added.
            key=lambda pair: hashlib.sha256("/".join((split, *pathlib.Path(pair[0]).parts[-2:])).encode()).digest(),
        )
        for split, labels in classes.items()
    }


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    visible = (e for e in folder.iterdir() if not e.name.startswith(".") and e.name.lower() not in _CLUTTER)
    return sorted(visible, key=lambda entry: entry.name)


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"data.folder: expected folders of classes in {folder.parent}. Received: file {folder.name}")
    files = _entries(folder)
    for file in files:
        if file.suffix.lower() not in _EXTENSIONS or file.is_dir():
            raise UserError(f"data.folder: expected {', '.join(_EXTENSIONS)} files. Received: {file}")
    if not files:
        raise UserError(f"data.folder: {folder} is empty; expected {', '.join(_EXTENSIONS)} files")
    return files


def _looks_complete(path: str) -> bool:
    """Whether a file starts and ends like a JPEG or PNG file. One that does not may still be valid."""
    with open(path, "rb") as stream:
        start = stream.read(8)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 12))
        end = stream.read()
    jpeg = start.startswith(b"\xff\xd8") and end.endswith(b"\xff\xd9")
    return jpeg or (start == b"\x89PNG\r\n\x1a\n" and end[4:8] == b"IEND")


def _is_gray(path: str) -> bool:
    """Whether a file's header declares one channel, besides transparency; False if there is no header."""
    with open(path, "rb") as stream:
        if (begin := stream.read(26)).startswith(b"\x89PNG\r\n\x1a\n"):
            return begin[25:] in (b"\0", b"\4")  # color types: gray, and gray with transparency
        # JPEG: segments of a marker and a length; the frame's has the number of channels after both sizes.
        stream.seek(2)
        while begin.startswith(b"\xff\xd8") and len(head := stream.read(4)) == 4 and head[0] == 0xFF:
            if head[1] == 0xFF:  # padding before the marker
                stream.seek(-3, os.SEEK_CUR)
            elif 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
                return stream.read(6)[5:] == b"\1"
            else:
                stream.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    return False


def _decoded(path: str, channels: int) -> np.ndarray:
    try:
        return decode(tf.io.read_file(path), channels).numpy()
    except tf.errors.OpError:
        raise UserError(f"data.folder: {path} cannot be decoded; expected JPEG or PNG") from None
