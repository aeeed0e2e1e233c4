"""The gate of an export: a reloaded SavedModel answers as the network does, or is refused."""

import contextlib
import dataclasses

import numpy as np
import pytest
import reloading
import tensorflow as tf
from classifier import DATA, NAMES, answers, network

from tfnas import config
from tfnas.common.errors import UserError
from tfnas.data import pipeline, sources
from tfnas.exporting import savedmodel, verification
from tfnas.tasks import network_inputs


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    """A SavedModel of data of several sizes whose center is cut out: network, source, splits, config, path, correct."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*rng.integers(14, 40, 2), 3), np.uint8) for _ in range(90)]
    labels = rng.integers(0, 7, len(images))

    def dataset(first, last):
        spec = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int64))
        return tf.data.Dataset.from_generator(
            lambda: zip(images[first:last], labels[first:last], strict=True), output_signature=spec
        )

    parts = {"train": dataset(0, 0), "validation": dataset(0, 10), "test": dataset(10, 90)}
    source = sources.Source(
        parts, {"train": 0, "validation": 10, "test": 80}, network_inputs.one((None, None, 3)), NAMES
    )
    settings = config.Config(data=dataclasses.replace(DATA, image_size=12, random_resized_crop=True))
    splits = pipeline.from_source(source, settings.data)
    model, path = network((12, 12, 3)), tmp_path_factory.mktemp("cropped") / "model"
    savedmodel.write(model, splits, settings, path)
    prepared = [(image, label) for image, label in splits.test.as_numpy_iterator()]
    predicted = answers(model, [image for image, _ in prepared]).argmax(-1)
    return model, source, splits, settings, path, int(np.sum(predicted == [label for _, label in prepared]))


@pytest.mark.slow
def test_gate_lets_out_what_answers_as_the_network_does(cropped, monkeypatch):
    *arguments, correct = cropped
    environments, popen = [], verification.subprocess.Popen
    monkeypatch.setattr(
        verification.subprocess, "Popen", lambda *a, env, **k: environments.append(env) or popen(*a, env=env, **k)
    )
    found = verification.check(*arguments, correct / 80, 80)
    assert environments[0]["CUDA_VISIBLE_DEVICES"] == "-1"  # this process may hold all of a GPU's memory
    assert found["largest_difference"] < 1e-5 and (found["metric"], found["total"]) == (pytest.approx(correct / 80), 80)


@pytest.mark.slow
def test_gate_refuses_another_network_and_what_cannot_be_reloaded(cropped, tmp_path):
    """The one reloaded by this process, which gives what a fresh one does; the other not by a fresh one either."""
    _, *arguments, correct = cropped
    other = network((12, 12, 3))
    other.set_weights([weight + 0.1 for weight in other.get_weights()])
    words = "serving_default of the reloaded SavedModel differs from the network by"
    with reloading.here(), pytest.raises(UserError, match=words):
        verification.check(other, *arguments, correct / 80, 80)
    arguments[3] = tmp_path
    with pytest.raises(RuntimeError, match=r"could not be used in a fresh process:\n(.|\n)*SavedModel file does not"):
        verification.check(cropped[0], *arguments, correct / 80, 80)


def test_gate_compares_on_the_cpu_in_full_precision(cropped, monkeypatch):
    """TF32 rounds to 10 bits, and a GPU sums in another order; neither can be had here, but what is asked for."""
    softmax, device, seen, devices = tf.nn.softmax, tf.device, [], []

    @contextlib.contextmanager
    def on(name):
        devices.append(name)
        with device(name):
            yield
        devices.append("left")

    def seeing(logits):
        seen.append((tf.config.experimental.tensor_float_32_execution_enabled(), devices[-1]))
        return softmax(logits)

    def ask(signature, examples, wanted):
        raise InterruptedError

    monkeypatch.setattr(verification.tf, "device", on)
    monkeypatch.setattr(verification.tf.nn, "softmax", seeing)
    monkeypatch.setattr(verification, "_fresh_process", lambda *_: contextlib.nullcontext(ask))
    with pytest.raises(InterruptedError):
        verification.check(*cropped[:-1], 0.5, 80)
    assert seen == [(False, "CPU:0")] and tf.config.experimental.tensor_float_32_execution_enabled()


def test_gate_refuses_another_number_of_correct_answers(cropped, monkeypatch):
    def ask(signature, examples, wanted):  # as a model does that knows one class
        return {"probabilities": np.eye(7)[[0] * len(examples)]}, [NAMES[0]] * len(examples)

    monkeypatch.setattr(verification, "_fresh_process", lambda *_: contextlib.nullcontext(ask))
    monkeypatch.setattr(verification, "_difference", lambda *_: 0.0)
    words = "on 80 test images, but the network 100.00% on 80"
    with pytest.raises(UserError, match=words):
        verification.check(*cropped[:-1], 1.0, 80)


def test_gate_refuses_other_names(cropped):
    probabilities = {"probabilities": np.eye(7)[[0, 3]]}
    verification._check_names("s", probabilities, ["a", "d"], cropped[2])
    with pytest.raises(UserError, match="s: .*'d'.* Received: 'b'"):
        verification._check_names("s", probabilities, ["a", "b"], cropped[2])
