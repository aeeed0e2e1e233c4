"""Data sets prepared by tensorflow-datasets, and the bundled digits, which are prepared when a run needs them."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import pathlib
import random
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnas import config as config_lib
from tfnas.common import terminal
from tfnas.common.errors import UserError, unwritable
from tfnas.data.sources.splits import SPLITS, Part, Source, parts_of, sizes_of
from tfnas.tasks import network_inputs

tfds.disable_progress_bar()

_NUM_DIGITS_TEST = 400
_CHECKED_BYTES = 1 << 30  # files of a TFDS split with a larger total size are not checked in advance
_RECORDS = 256  # counted at a time


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
        # The original order follows the writers, so without shuffling, the test split would have other writers.
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


def from_tfds(config: config_lib.Data, folder: pathlib.Path) -> Source:
    """Loads a data set prepared by TFDS; the bundled digits are prepared in `folder` if no data_dir is set.

    The files of train and validation are checked to be complete; those of test only by `check_test`.
    """
    builder = _builder(config, folder)
    features = builder.info.features
    keys = builder.info.supervised_keys
    if not keys or len(keys) != 2 or not isinstance(features[keys[1]], tfds.features.ClassLabel):
        raise UserError(
            f"data.name: expected a data set of (image, label) pairs for classification. Received: '{config.name}', "
            f"with {'the pair ' + str(keys) if keys else 'no pairs'}"
        )
    pixels, labels = features[keys[0]], features[keys[1]]
    shape = tuple(pixels.shape)
    if len(shape) != 3 or shape[-1] is None:
        raise UserError(f"data.name: '{config.name}' has images of shape {shape}; expected (height, width, channels)")
    parts = parts_of(config, builder.info.splits)

    _check_records(builder, [*parts["train"], *parts["validation"]])

    def examples(split: str) -> tf.data.Dataset:
        # One file at a time, for the same order on every machine. No cache, here or in TFDS: if a reader stops early,
        # TensorFlow's memory cache may take what was read for the complete data, for all later readers.
        read = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return builder.as_dataset(
            split=getattr(config, split), as_supervised=True, shuffle_files=False, read_config=read
        )

    return Source(
        {split: examples(split) for split in SPLITS}, sizes_of(parts), network_inputs.one(shape), tuple(labels.names)
    )


def check_test(config: config_lib.Data, folder: pathlib.Path) -> None:
    """Raises UserError, naming the file, if a file of the test split is not as TFDS wrote it."""
    builder = _builder(config, folder)
    _check_records(builder, parts_of(config, builder.info.splits)["test"])


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
            f"--config.data.data_dir or TFDS_DATA_DIR to the folder that contains it, or run 'tfds build {config.name}'"
        )
    return builder


def _digits(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Prepares the bundled digits in `folder` unless they exist. Raises UserError if existing ones were altered."""
    place = folder / Digits.name / str(Digits.VERSION)
    sizes = {"train": len(sklearn.datasets.load_digits().target) - _NUM_DIGITS_TEST, "test": _NUM_DIGITS_TEST}
    # TFDS draws the name of a temporary folder from the generator that also initializes weights, which must not
    # depend on whether the digits were already prepared.
    state = random.getstate()
    try:
        builder = Digits(data_dir=folder)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it downloads, which it does not
            builder.download_and_prepare()
        info = builder.info
        found = {name: split.num_examples for name, split in info.splits.items() if _files_of(split)}
        complete = found == sizes and info.supervised_keys == ("image", "label")
    except Exception as error:  # TFDS does not check what it reads
        if unwritable(error, str(folder)):
            raise
        complete = False
    finally:
        random.setstate(state)
    if not complete:
        raise UserError(
            f"{place / 'dataset_info.json'}: truncated or altered: delete {place}, and it is prepared again"
        )
    return builder


def _check_records(builder: tfds.core.DatasetBuilder, part: Part) -> None:
    """Raises UserError, naming the file, if a file of a TFDS split that the part is of is not as TFDS wrote it."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        return
    for name in dict.fromkeys(name for name, _, _ in part):
        files = _files_of(builder.info.splits[name])
        if sum(tf.io.gfile.stat(file).length for file, _ in files if tf.io.gfile.exists(file)) > _CHECKED_BYTES:
            continue
        for file, size in files:
            try:
                with terminal.errors_expected():
                    found = sum(len(batch) for batch in tf.data.TFRecordDataset(file).batch(_RECORDS))
            except tf.errors.OpError:  # every record has a checksum
                found = -1
            if found != size:
                raise UserError(
                    f"{file}: missing, truncated or altered; expected {size:,} complete records. Delete its folder and "
                    "prepare the data set again (the bundled digits are prepared automatically)"
                )


def _files_of(split: tfds.core.SplitInfo) -> list[tuple[str, int]]:
    """Returns the path and the number of records of each file of a split."""
    return [(os.fspath(file), size) for file, size in zip(split.filepaths, split.shard_lengths, strict=True)]
