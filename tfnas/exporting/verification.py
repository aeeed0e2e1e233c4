"""The gate before an export: a fresh process, which has TensorFlow alone, must answer as the network does here."""

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

_TOLERANCE = 1e-5  # of probabilities, between the network here and the SavedModel there
_COMPARED = 64  # validation images whose probabilities are compared
_BATCH = 64  # test images that are sent at a time
_NEAR_TIE = 1e-3  # between the two largest probabilities: another device's rounding may decide which is the largest
_PER_DIFFERENCE = 10_000  # test images, for every begun number of which one near-tie may fall otherwise

_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
# Neither keras nor tfnas can be imported by the process that reloads: a SavedModel must stand alone.
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
    """Holds a SavedModel, in a process without keras and tfnas, against the network and what was measured of it.

    Both compute on the CPU. Every signature must answer a batch of validation images as `model` does here, or the
    average of `ensemble`; and `serving_default` must classify as many test images correctly as the network did when it
    was evaluated, but for one near-tie in every 10,000, because that may have been on another device. Images are sent
    through pipes, as they lie, of their own sizes: no disk is needed.

    Args:
        model: from standardised images to logits.
        source: of the images, as they lie.
        splits: the same, prepared.
        config: says how.
        path: of the SavedModel, by `signatures.write`.
        correct: test images that the network classified correctly when it was evaluated.
        total: of so many.
        ensemble: what was given to `signatures.write`.

    Returns:
        `largest_difference`, of a validation image's probability from the network's here, over all signatures, and
        `correct`, of so many test images, the `total`.

    Raises:
        UserError: if it answers otherwise.
        RuntimeError: if it cannot be reloaded, or answers nothing.
    """
    images = [image for image, _ in source.splits["validation"].take(_COMPARED).as_numpy_iterator()]
    ((pixels, _),) = pipeline.evaluation_batches(splits.validation.take(_COMPARED), config.data, _COMPARED)

    def probabilities(network: keras.Model) -> np.ndarray:
        with distribution.full_precision(), tf.device("CPU:0"):  # as there: the tolerance leaves no room for another
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
            f"export: the SavedModel classifies {found:,} of {seen:,} test images correctly, and the network did "
            f"{correct:,} of {total:,} when retrain evaluated it: the same expected. If the data has changed since, "
            "run retrain again"
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
    """The largest of a probability. Raises UserError if it is too large, or a name is not the most probable class's."""
    got, names = answer
    largest = float(np.abs(got - expected).max())
    if not largest <= _TOLERANCE:
        raise UserError(
            f"export: {signature} of the reloaded SavedModel differs from the network by {largest:.1e}, at most "
            f"{_TOLERANCE:.0e} expected; please report it with your config"
        )
    _check_names(signature, got, names, splits)
    return largest


def _check_names(signature: str, probabilities: np.ndarray, names: list[str], splits: pipeline.Splits) -> None:
    expected = [splits.label_names[i] for i in probabilities.argmax(-1)]
    if names != expected:
        i = next(i for i, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
        raise UserError(f"export: {signature}: the class {expected[i]!r} expected. Received: {names[i]!r}")


@contextlib.contextmanager
def _fresh_process(path: str | os.PathLike[str]) -> Iterator[_Ask]:
    """A function of a signature's name and images that a process of its own answers: probabilities, first names."""
    command = [sys.executable, "-c", _RELOAD, os.fspath(path)]
    # This process holds the GPU's memory, so that one computes without.
    environment = {**os.environ, **_WITHOUT_GPU, "TF_CPP_MIN_LOG_LEVEL": "3"}
    told: collections.deque[bytes] = collections.deque(maxlen=30)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        into, out, errors = (cast(IO[bytes], end) for end in (process.stdin, process.stdout, process.stderr))
        listener = threading.Thread(target=lambda: told.extend(errors))  # a full pipe would hold the process up
        listener.start()

        def ask(signature: str, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str]]:
            sent = io.BytesIO()
            arrays: dict[str, Any] = {str(i): image for i, image in enumerate(images)}
            np.savez(sent, signature=signature, **arrays)
            with contextlib.suppress(BrokenPipeError):  # it has ended, and told why
                into.write(len(sent.getvalue()).to_bytes(8, "little") + sent.getvalue())
                into.flush()
            size = int.from_bytes(out.read(8), "little")
            if not size:
                listener.join()
                message = b"".join(told).decode(errors="replace")
                raise RuntimeError(f"export: the SavedModel could not be used in a fresh process:\n{message}")
            with np.load(io.BytesIO(out.read(size)), allow_pickle=False) as answer:
                return answer["probabilities"], [name.decode() for name in answer["names"]]

        try:
            yield ask
        finally:
            process.kill()  # it has nothing to finish
            listener.join()
            with contextlib.suppress(BrokenPipeError):
                into.close()
