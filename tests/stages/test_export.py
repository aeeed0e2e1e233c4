"""The export stage: warm-up requests, the model card, and no version but a complete one."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from unittest import mock

import keras
import numpy as np
import pytest
import reloading
import tensorflow as tf
from conftest import tiny_config
from scipy.special import softmax

from tfnas import config
from tfnas.common import atomic, digests
from tfnas.common.errors import UserError
from tfnas.data import pipeline
from tfnas.exporting import warmup
from tfnas.gating import saving
from tfnas.reporting import model_card
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Architecture
from tfnas.stages import evaluate, export, retrain, sample, search
from tfnas.training import networks, rivals


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A short run of the digits up to its export, with an ensemble."""
    path = tmp_path_factory.mktemp("exported")
    settings = tiny_config(
        data={"train": "train[:1000]"},
        search={"epochs": 1, "guard": "off"},
        sample={"num_candidates": 5, "num_random": 1, "num_tested": 3, "recalibrate": 100, "parameters": 0.6},
        retrain={"epochs": 0},
        evaluate={"threshold": 0.05},
        export={"version": 3, "uncertainty": 2},
    )
    with reloading.here(), mock.patch.object(rivals, "AT_ONCE", ("curvature",)):
        for stage in (search, sample, retrain, evaluate, export):
            stage.run(settings, path)
    return path, settings


@pytest.mark.slow
def test_warm_up_requests_are_answered(exported):
    """Parsed by TensorFlow Serving's own messages, and sent to the signatures they name."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path, _ = exported
    served = tf.saved_model.load(str(path / "export/digits/3")).signatures
    sizes = []
    for record in tf.data.TFRecordDataset(str(path / "export/digits/3" / warmup.FILE)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert request.model_spec.name == "digits" and log == prediction_log_pb2.PredictionLog(
            predict_log=prediction_log_pb2.PredictLog(
                request=predict_pb2.PredictRequest(
                    model_spec=request.model_spec,
                    inputs={key: tf.make_tensor_proto(value) for key, value in inputs.items()},
                )
            )
        )
        inputs = {key: tf.constant(value) for key, value in inputs.items()}
        answer = served[request.model_spec.signature_name](**inputs)
        ((key, value),) = inputs.items()
        assert answer["scores"].shape == (len(value), 5)
        sizes.append((request.model_spec.signature_name, key, len(value)))
    assert sizes == [
        ("serving_default", "image", 1),
        ("serving_default", "image", 8),
        ("serve_bytes", "image_bytes", 1),
        ("serve_bytes", "image_bytes", 8),
        ("serve_uncertainty", "image", 1),
        ("serve_uncertainty", "image", 8),
    ]


@pytest.mark.slow
def test_uncertainty_is_that_of_the_rankings_best(exported):
    """The members are the supernet under the masks, with statistics of their own."""
    path, settings = exported
    ranked = json.loads((path / stage_table.RANKING).read_text())["kinds"]["posterior"]["race"]
    assert len(ranked["leaders"]) == 3 and ranked["leaders"][0] == ranked["architecture"]
    networks.set_seed(settings.seed)
    splits = pipeline.load(settings.data, path / "tensorflow_datasets")
    supernet = saving.load(path / stage_table.SUPERNET)
    recalibration = networks.recalibration(settings, splits, supernet)
    images = np.stack([image for image, _ in splits.validation.take(30).as_numpy_iterator()])
    expected = []
    for leader in ranked["leaders"][:2]:
        architecture = Architecture.from_json(json.dumps(leader))
        recalibration.apply(architecture)
        supernet.set_architecture(architecture)
        pixels = pipeline.standardize(images, settings.data)
        expected.append(softmax(supernet(pixels, training=False).numpy(), axis=-1))
    served = tf.saved_model.load(str(path / "export/digits/3")).signatures["serve_uncertainty"]
    np.testing.assert_allclose(served(image=tf.constant(images))["mean"], np.mean(expected, axis=0), atol=1e-4)


@pytest.mark.slow
def test_card_says_what_was_measured(exported):
    path, settings = exported
    folder = path / "export/digits/3"
    card = json.loads((folder / "assets.extra" / model_card.JSON).read_text())
    assert card == json.loads((path / "export/digits" / model_card.JSON).read_text())
    results = json.loads((path / stage_table.RESULTS).read_text())
    row = next(row for row in results["rows"] if row["name"] == results["chosen"])
    test = card["metrics"]["test"]
    assert test["accuracy"] == row["test"]["accuracy"] and test["total"] == 400 == card["reloaded"]["total"]
    assert test["correct"] == round(400 * card["reloaded"]["metric"]) == np.trace(card["metrics"]["confusion"])
    n, p, z = 400, test["accuracy"], 1.959963984540054  # Wilson's interval in closed form
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    bounds = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    np.testing.assert_allclose([test["low"], test["high"]], bounds, rtol=1e-9)
    assert card["data"]["sizes"] == {"train": 1000, "validation": 397, "test": 400}
    assert card["network"]["parameters"] == row["parameters"] < card["network"]["full"]["parameters"]
    assert card["versions"]["export"]["tensorflow"] == tf.__version__
    for file, digest in card["sha256"]["saved_model"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert {"saved_model.pb", warmup.FILE} < set(card["sha256"]["saved_model"])
    for file, digest in card["sha256"]["inputs"].items():
        assert hashlib.sha256((path / file).read_bytes()).hexdigest() == digest
    text = (path / "export/digits" / model_card.MARKDOWN).read_text()
    assert text == (folder / "assets.extra" / model_card.MARKDOWN).read_text()
    assert f"| test | {p:.2%} | {bounds[0]:.2%} to {bounds[1]:.2%} | 400 |" in text
    assert "serve\\_uncertainty answers by 2 other networks" in text
    written = json.loads((path / stage_table.EXPORT_RESULTS).read_text())
    assert written["test"] == written["served"] == p


@pytest.mark.slow
def test_no_version_is_left_of_what_does_not_pass(exported, in_this_process):
    path, settings = exported
    other = dataclasses.replace(settings, export=config.Export(version=4))
    work = workdir.Workdir(path)
    results = json.loads((path / stage_table.RESULTS).read_text())
    for row in results["rows"]:
        row["test"]["accuracy"] += -0.05 if row["test"]["accuracy"] > 0.5 else 0.05  # too much for near-ties
    before = {name: (path / name).read_bytes() for name in (stage_table.RESULTS, stage_table.MANIFEST)}
    try:
        digest = digests.of_file(work.write_json(stage_table.RESULTS, results))
        manifest = work.manifest()
        manifest.stages["retrain"].outputs[stage_table.RESULTS] = digest
        manifest.stages["evaluate"].inputs[stage_table.RESULTS] = digest
        work.write_sealed(stage_table.MANIFEST, manifest)
        with pytest.raises(UserError, match="on 400 test images, but the network"):
            export.run(other, path)
    finally:
        for name, content in before.items():
            (path / name).write_bytes(content)
    assert sorted(file.name for file in (path / "export/digits").iterdir()) == [
        "3",
        "architecture.json",
        "labels.txt",
        "model.keras",
        "model_card.json",
        "model_card.md",
    ]


def once(read):
    """`read` for several exports of the same."""
    found = []

    def reads(*arguments):
        if not found:
            found.append(read(*arguments))
        return found[0]

    return reads


class Killed(BaseException):
    """What a SIGKILL leaves behind: nothing is cleaned up after it."""


STEPS = "savedmodel.write warmup.write verification.check conversion.convert".split()
STEPS += "model_card.card model_card.markdown".split()


@pytest.mark.slow
def test_a_failure_at_any_step_leaves_the_served_version_as_it_was(exported, tmp_path, monkeypatch):
    """Each step fails, and each is killed; then the same export ends well. The steps' content is the run's number."""
    path = tmp_path / "run"
    shutil.copytree(exported[0], path)
    folder = path / "export" / "digits"
    for name in ("3", "onnx"):  # short ones; onnx is of an earlier export with another setting
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        (folder / name / "saved_model.pb").write_text("before")
    settings = dataclasses.replace(exported[1], export=config.Export(version=3, formats=("litert",)))
    steps, fails_at, error = [], 0, Killed

    def step(name, work):
        def stepped(*arguments, **named):
            steps.append(name)
            if len(steps) == fails_at:
                if name == "atomic.replace":  # cut off before the change, which is one system call
                    raise error(28, "no space")
                with contextlib.suppress(Exception):
                    work(*arguments, **named)
                raise error("in the middle of it")
            return work(*arguments, **named)

        return stepped

    def saved_model(model, splits, config, target, ensemble):
        (target / "assets.extra").mkdir(parents=True)
        (target / "saved_model.pb").write_text("after")

    def converted(model, splits, config, formats, target):
        (target / "litert").mkdir()
        (target / "litert" / "model.tflite").write_text("after")
        return []

    correct = {"metric": 1.0, "total": 1, "largest_difference": 0.0}
    replacements = {
        "savedmodel.write": saved_model,
        "warmup.write": lambda *_: None,
        "verification.check": lambda *_: correct,
        "conversion.convert": converted,
        "model_card.card": lambda *_, **named: {"files": str(sorted(f.name for f in named["saved_model"].rglob("*")))},
        "model_card.markdown": lambda *_: "after",
        "atomic.replace": export.atomic.replace,
    }
    for name, work in replacements.items():
        module, function = name.split(".")
        monkeypatch.setattr(getattr(export, module), function, step(name, work))
    for module, function in ((export.sources, "load"), (export.pipeline, "from_source"), (export.saving, "load")):
        monkeypatch.setattr(module, function, once(getattr(module, function)))
    number_of_steps = 13  # the first six, and seven moves: LiteRT's, model.keras, four texts and the version
    served = digests.of_file(folder / "3")
    names, loadable = {file.name for file in folder.iterdir()}, set()
    for fails_at in range(1, number_of_steps + 1):
        for error in (OSError, Killed):
            steps.clear()
            with monkeypatch.context() as patched:
                if error is Killed:
                    patched.setattr(export.shutil, "rmtree", lambda *_, **__: None)
                with pytest.raises(error):
                    export.run(settings, path)
            assert len(steps) == fails_at
            assert digests.of_file(folder / "3") == served and (folder / "3" / "saved_model.pb").read_text() == "before"
            visible = {file.name for file in folder.iterdir() if not file.name.startswith(atomic.TEMPORARY)}
            assert visible - {"litert"} == names  # nothing half made under any name
            for file in visible & {"litert"}:
                assert [f.name for f in (folder / file).iterdir()] == ["model.tflite"]
            if (content := (folder / "model.keras").read_bytes()) not in loadable:
                keras.models.load_model(folder / "model.keras")
                loadable.add(content)
            assert error is Killed or visible == {file.name for file in folder.iterdir()}
            assert not workdir.Workdir(path).is_current("export", settings.check())
    steps, fails_at = [], 0
    export.run(settings, path)
    assert steps == [*STEPS, *["atomic.replace"] * 7] and len(steps) == number_of_steps
    assert (folder / "3" / "saved_model.pb").read_text() == "after"
    assert {file.name for file in folder.iterdir()} == names - {"onnx"} | {"litert"}
    assert workdir.Workdir(path).is_current("export", settings.check())
