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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, cast

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.config import Config
from tfnas.data import pipeline, sources
from tfnas.exporting import savedmodel
from tfnas.tasks.columns import Tally
from tfnas.tasks.functions import in_float32
from tfnas.training import distribution

_TOLERANCE = 1e-5  # of probabilities, between the network and the SavedModel; of larger answers, of the largest
_NEARLY = 1e-3  # share of a metric by which it may differ, where examples are not just right or wrong
_COMPARED = 64  # validation examples whose answers are compared
_BATCH = 64  # test examples that are sent at a time
_NEAR_TIE = 1e-3  # difference of the two largest probabilities whose order may depend on a device's rounding
_PER_DIFFERENCE = 10_000  # test examples per near-tie that may be classified differently, rounded up

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
        name, examples = str(sent["signature"]), [{} for _ in range(sent["number"])]
        wanted = sent["wanted"].tolist()
        for file in sent.files[3:]:
            i, key = file.split("/")
            examples[int(i)][key] = sent[file]
    by_shape = {}
    for i, one in enumerate(examples):
        shapes = tuple((key, array.shape) for key, array in one.items())
        by_shape.setdefault("any" if name == "serve_bytes" else shapes, []).append(i)
    rows, names = [None] * len(examples), [b""] * len(examples)
    for places in by_shape.values():
        group = [examples[i] for i in places]
        if name == "serve_bytes":
            given = {"image_bytes": [tf.io.encode_png(one["image"]).numpy() for one in group]}
        else:
            given = {key: np.stack([one[key] for one in group]) for key in group[0]}
        answer = signatures[name](**{key: tf.constant(values) for key, values in given.items()})
        found = {key: answer[key].numpy() for key in wanted}
        for row, i in enumerate(places):
            rows[i] = {key: values[row] for key, values in found.items()}
        if "classes" in answer:
            for i, first in zip(places, answer["classes"].numpy()[:, 0]):
                names[i] = first
    found = io.BytesIO()
    answers = {"answer/" + key: np.stack([row[key] for row in rows]) for key in wanted}
    np.savez(found, names=np.array(names).astype("S"), **answers)
    sys.stdout.buffer.write(len(found.getvalue()).to_bytes(8, "little") + found.getvalue())
    sys.stdout.buffer.flush()
"""
_Example = Mapping[str, np.ndarray]  # inputs by name
_Answer = Mapping[str, np.ndarray]  # parts of the answers that are compared, by name
_Ask = Callable[[str, Sequence[_Example], Sequence[str]], tuple[_Answer, list[str]]]


def check(
    model: keras.Model,
    source: sources.Source,
    splits: pipeline.Splits,
    config: Config,
    path: str | os.PathLike[str],
    measured: float,
    total: int,
    ensemble: Sequence[keras.Model] = (),
) -> dict[str, Any]:
    """Compares a SavedModel, in a process without keras and tfnas, with the network and its test metric.

    Both compute on the CPU. Every signature must return the answers of `model`, or the average of `ensemble`, for a
    batch of validation examples. `serving_default` must reach on the test examples the first metric of the task that
    the network did when it was evaluated: of a classification, as many correct examples, except for one near-tie per
    10,000, because the evaluation may have run on another device; of other tasks, to a thousandth. Raw inputs are sent
    through pipes in their own sizes, without using the disk.

    Args:
        model: model from standardized inputs to the task's outputs.
        source: source of the raw inputs.
        splits: the prepared splits of the same examples.
        config: settings of the preprocessing.
        path: path of the SavedModel that `savedmodel.write` wrote.
        measured: first metric of the task of the network on the test examples, when it was evaluated.
        total: number of test examples.
        ensemble: the ensemble of `savedmodel.write`.

    Returns:
        `largest_difference` between the answers of the SavedModel and the network on validation examples, over all
        signatures, the `metric` on the `total` test examples.

    Raises:
        UserError: if the predictions differ.
        RuntimeError: if it cannot be reloaded, or does not respond.
    """
    inputs = splits.inputs
    raw = [inputs.unpacked(given) for given, *_ in source.splits["validation"].take(_COMPARED).as_numpy_iterator()]
    ((standard, *_),) = pipeline.evaluation_batches(splits.validation.take(_COMPARED), config.data, _COMPARED)
    task, facts = splits.task, splits.task.facts

    def answers(network: keras.Model) -> _Answer:
        with distribution.full_precision(), tf.device("CPU:0"):  # like the other process: the tolerance is tight
            outputs = in_float32(network(standard, training=False))
            compared = task.compared(task.answer(outputs, splits.label_names))
            return {name: part.numpy() for name, part in compared.items()}

    own = answers(model)
    expected = dict.fromkeys(savedmodel.names(splits), own)
    if ensemble:
        mean = np.mean([answers(member)[task.primary] for member in ensemble], axis=0)
        expected[savedmodel.UNCERTAINTY] = {"mean": mean}
    tally = Tally(task, splits.num_outputs)
    with _fresh_process(path) as ask:
        largest = max(_difference(name, wanted, ask(name, raw, [*wanted]), splits) for name, wanted in expected.items())
        near_ties, seen = 0, 0
        pairs = source.splits["test"].map(
            lambda given, target, *_: (given, pipeline.resized_target(target, config.data, task))
        )
        for batch in _batches(pairs.as_numpy_iterator()):
            examples = [inputs.unpacked(given) for given, _ in batch]
            found, names = ask(savedmodel.DEFAULT, examples, [*own])
            answered = task.answered(found)
            _check_names(savedmodel.DEFAULT, found, names, splits)
            targets = keras.tree.map_structure(lambda *parts: np.stack(parts), *[target for _, target in batch])
            tally.update(targets, keras.tree.map_structure(tf.constant, answered))
            if facts.exact:
                second, first = np.partition(answered, -2, axis=-1)[:, -2:].T if answered.shape[-1] > 1 else (0, 1)
                near_ties += int(np.sum(first - second < _NEAR_TIE))
            seen += len(batch)
    metric = facts.headline.of(tally.metrics())
    allowed = _NEARLY * max(abs(measured), abs(metric))
    if facts.exact:
        allowed = min(near_ties, math.ceil(total / _PER_DIFFERENCE)) / total + 1e-9
    # Neither is a number if the network is useless.
    if seen != total or not (abs(metric - measured) <= allowed or math.isnan(metric) and math.isnan(measured)):
        raise UserError(
            f"export: the SavedModel has {facts.headline.title} {facts.headline.exactly(metric)} on {seen:,} test "
            f"{inputs.nouns}, but the network {facts.headline.exactly(measured)} on {total:,} when retrain "
            "evaluated it. If the data have changed since, run retrain again"
        )
    return {"largest_difference": largest, "metric": metric, "total": seen}


def _batches(examples: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    batch = []
    for example in examples:
        batch.append(example)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _difference(signature: str, expected: _Answer, answer: tuple[_Answer, list[str]], splits: pipeline.Splits) -> float:
    """Returns the largest difference of an answer. Raises UserError if it is too large, or class names differ."""
    actual, names = answer
    differences = {name: float(np.abs(actual[name] - part).max()) for name, part in expected.items()}
    for name, part in expected.items():
        if not differences[name] <= _TOLERANCE * max(1.0, float(np.abs(part).max())):
            raise UserError(
                f"export: {signature} of the reloaded SavedModel differs from the network by {differences[name]:.1e}, "
                f"more than {_TOLERANCE:.0e}; please report it with your config"
            )
    _check_names(signature, actual, names, splits)
    return max(differences.values())


def _check_names(signature: str, answer: _Answer, names: list[str], splits: pipeline.Splits) -> None:
    if not any(names):  # the task has none
        return
    (probabilities,) = answer.values()
    expected = [splits.label_names[i] for i in probabilities.argmax(-1)]
    if names != expected:
        i = next(i for i, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
        raise UserError(f"export: {signature}: expected the class {expected[i]!r}. Received: {names[i]!r}")


@contextlib.contextmanager
def _fresh_process(path: str | os.PathLike[str]) -> Iterator[_Ask]:
    """Yields a function by which a new process answers.

    It takes the name of a signature, examples, and the names of outputs; it returns these outputs, and class names.
    """
    command = [sys.executable, "-c", _RELOAD, os.fspath(path)]
    # This process occupies the GPU's memory, so the new one does not use the GPU.
    environment = {**os.environ, **_WITHOUT_GPU, "TF_CPP_MIN_LOG_LEVEL": "3"}
    stderr_lines: collections.deque[bytes] = collections.deque(maxlen=30)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        into, out, errors = (cast(IO[bytes], end) for end in (process.stdin, process.stdout, process.stderr))
        listener = threading.Thread(target=lambda: stderr_lines.extend(errors))  # a full pipe would block the process
        listener.start()

        def ask(signature: str, examples: Sequence[_Example], wanted: Sequence[str]) -> tuple[_Answer, list[str]]:
            sent = io.BytesIO()
            arrays: dict[str, Any] = {
                f"{i}/{key}": array for i, one in enumerate(examples) for key, array in one.items()
            }
            np.savez(sent, signature=signature, number=len(examples), wanted=wanted, **arrays)
            with contextlib.suppress(BrokenPipeError):  # it has exited, and reported why
                into.write(len(sent.getvalue()).to_bytes(8, "little") + sent.getvalue())
                into.flush()
            size = int.from_bytes(out.read(8), "little")
            if not size:
                listener.join()
                message = b"".join(stderr_lines).decode(errors="replace")
                raise RuntimeError(f"export: the SavedModel could not be used in a fresh process:\n{message}")
            with np.load(io.BytesIO(out.read(size)), allow_pickle=False) as answer:
                return {name: answer[f"answer/{name}"] for name in wanted}, [name.decode() for name in answer["names"]]

        try:
            yield ask
        finally:
            process.kill()  # it has no state to save
            listener.join()
            with contextlib.suppress(BrokenPipeError):
                into.close()
