"""Verifies an export: a new process with TensorFlow only must return the predictions of the network."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, cast

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.config import Config
from tfnas.data import pipeline, sources
from tfnas.exporting import savedmodel
from tfnas.training import distribution

_TOLERANCE = 1e-5  # of probabilities, between the network and the SavedModel
_COMPARED = 64  # validation images whose probabilities are compared
_BATCH = 64  # test images that are sent at a time
_NEAR_TIE = 1e-3  # difference of the two largest probabilities whose order may depend on a device's rounding
_PER_DIFFERENCE = 10_000  # test images per near-tie that may be classified differently, rounded up

_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
# The process that reloads cannot import keras or tfnas, because a SavedModel must not need them.
_RELOAD = """
import io
import sys
sys.modules["keras"] = sys.modules["tfnas"] = sys.modules["tensorflow_probability"] = None
import numpy as np
import tensorflow as tf
tf.config.set_visible_devices([], "GPU")
signatures = tf.saved_model.load(sys.argv[1]).signatures
while size := int.from_bytes(sys.stdin.buffer.read(8), "little"):
    with np.load(io.BytesIO(sys.stdin.buffer.read(size)), allow_pickle=False) as sent:
        name, images = str(sent["signature"]), [sent[str(i)] for i in range(len(sent.files) - 1)]
    by_shape = {}
    for i, image in enumerate(images):
        by_shape.setdefault("any" if name == "serve_bytes" else image.shape, []).append(i)
    probabilities, names = [None] * len(images), [None] * len(images)
    for places in by_shape.values():
        group = [images[i] for i in places]
        if name == "serve_bytes":
            answer = signatures[name](image_bytes=tf.stack([tf.io.encode_png(image) for image in group]))
        else:
            answer = signatures[name](image=tf.constant(np.stack(group)))
        found = answer["mean" if name == "serve_uncertainty" else "probabilities"].numpy()
        for i, row, first in zip(places, found, answer["classes"].numpy()[:, 0]):
            probabilities[i], names[i] = row, first
    found = io.BytesIO()
    np.savez(found, probabilities=np.stack(probabilities), names=np.array(names).astype("S"))
    sys.stdout.buffer.write(len(found.getvalue()).to_bytes(8, "little") + found.getvalue())
    sys.stdout.buffer.flush()
"""
_Ask = Callable[[str, Sequence[np.ndarray]], tuple[np.ndarray, list[str]]]


def check(
    model: keras.Model,
    source: sources.Source,
    splits: pipeline.Splits,
    config: Config,
    path: str | os.PathLike[str],
    correct: int,
    total: int,
    ensemble: Sequence[keras.Model] = (),
) -> dict[str, Any]:
    """Compares a SavedModel, in a process without keras and tfnas, with the network and its test accuracy.

    Both compute on the CPU. Every signature must return the probabilities of `model`, or the average of `ensemble`, for
    a batch of validation images. `serving_default` must classify as many test images correctly as the network did when
    it was evaluated, except for one near-tie per 10,000, because the evaluation may have run on another device. Raw
    images are sent through pipes in their own sizes, without using the disk.

    Args:
        model: model from standardized images to logits.
        source: source of the raw images.
        splits: the prepared splits of the same images.
        config: settings of the preprocessing.
        path: path of the SavedModel that `savedmodel.write` wrote.
        correct: number of test images that the network classified correctly when it was evaluated.
        total: number of test images.
        ensemble: the ensemble of `savedmodel.write`.

    Returns:
        `largest_difference` between the probabilities of the SavedModel and the network on validation images, over all
        signatures, and the number `correct` of `total` test images.

    Raises:
        UserError: if the predictions differ.
        RuntimeError: if it cannot be reloaded, or does not respond.
    """
    images = [image for image, _ in source.splits["validation"].take(_COMPARED).as_numpy_iterator()]
    ((pixels, _),) = pipeline.evaluation_batches(splits.validation.take(_COMPARED), config.data, _COMPARED)

    def probabilities(network: keras.Model) -> np.ndarray:
        with distribution.full_precision(), tf.device("CPU:0"):  # like the other process: the tolerance is tight
            return tf.nn.softmax(network(pixels, training=False)).numpy()

    expected = dict.fromkeys(savedmodel.names(splits), probabilities(model))
    if ensemble:
        expected[savedmodel.UNCERTAINTY] = np.mean([probabilities(member) for member in ensemble], axis=0)
    with _fresh_process(path) as ask:
        largest = max(_difference(name, wanted, ask(name, images), splits) for name, wanted in expected.items())
        found, near_ties, seen = 0, 0, 0
        for batch in _batches(source.splits["test"].as_numpy_iterator()):
            answered, names = ask(savedmodel.DEFAULT, [image for image, _ in batch])
            _check_names(savedmodel.DEFAULT, answered, names, splits)
            found += int(np.sum(answered.argmax(-1) == [label for _, label in batch]))
            second, first = np.partition(answered, -2, axis=-1)[:, -2:].T if answered.shape[-1] > 1 else (0, 1)
            near_ties += int(np.sum(first - second < _NEAR_TIE))
            seen += len(batch)
    if seen != total or abs(found - correct) > min(near_ties, math.ceil(total / _PER_DIFFERENCE)):
        raise UserError(
            f"export: the SavedModel classifies {found:,} of {seen:,} test images correctly, but the network "
            f"{correct:,} of {total:,} when retrain evaluated it. If the data have changed since, run retrain again"
        )
    return {"largest_difference": largest, "correct": found, "total": seen}


def _batches(examples: Iterable[tuple[np.ndarray, int]]) -> Iterator[list[tuple[np.ndarray, int]]]:
    batch = []
    for example in examples:
        batch.append(example)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _difference(
    signature: str, expected: np.ndarray, answer: tuple[np.ndarray, list[str]], splits: pipeline.Splits
) -> float:
    """Returns the largest difference of a probability. Raises UserError if it is too large, or class names differ."""
    actual, names = answer
    largest = float(np.abs(actual - expected).max())
    if not largest <= _TOLERANCE:
        raise UserError(
            f"export: {signature} of the reloaded SavedModel differs from the network by {largest:.1e}, more than "
            f"{_TOLERANCE:.0e}; please report it with your config"
        )
    _check_names(signature, actual, names, splits)
    return largest


def _check_names(signature: str, probabilities: np.ndarray, names: list[str], splits: pipeline.Splits) -> None:
    expected = [splits.label_names[i] for i in probabilities.argmax(-1)]
    if names != expected:
        i = next(i for i, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
        raise UserError(f"export: {signature}: expected the class {expected[i]!r}. Received: {names[i]!r}")


@contextlib.contextmanager
def _fresh_process(path: str | os.PathLike[str]) -> Iterator[_Ask]:
    """Yields a function from a signature's name and images to probabilities and class names of a new process."""
    command = [sys.executable, "-c", _RELOAD, os.fspath(path)]
    # This process occupies the GPU's memory, so the new one does not use the GPU.
    environment = {**os.environ, **_WITHOUT_GPU, "TF_CPP_MIN_LOG_LEVEL": "3"}
    stderr_lines: collections.deque[bytes] = collections.deque(maxlen=30)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        into, out, errors = (cast(IO[bytes], end) for end in (process.stdin, process.stdout, process.stderr))
        listener = threading.Thread(target=lambda: stderr_lines.extend(errors))  # a full pipe would block the process
        listener.start()

        def ask(signature: str, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str]]:
            sent = io.BytesIO()
            arrays: dict[str, Any] = {str(i): image for i, image in enumerate(images)}
            np.savez(sent, signature=signature, **arrays)
            with contextlib.suppress(BrokenPipeError):  # it has exited, and reported why
                into.write(len(sent.getvalue()).to_bytes(8, "little") + sent.getvalue())
                into.flush()
            size = int.from_bytes(out.read(8), "little")
            if not size:
                listener.join()
                message = b"".join(stderr_lines).decode(errors="replace")
                raise RuntimeError(f"export: the SavedModel could not be used in a fresh process:\n{message}")
            with np.load(io.BytesIO(out.read(size)), allow_pickle=False) as answer:
                return answer["probabilities"], [name.decode() for name in answer["names"]]

        try:
            yield ask
        finally:
            process.kill()  # it has no state to save
            listener.join()
            with contextlib.suppress(BrokenPipeError):
                into.close()
