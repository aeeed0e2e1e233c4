"""A run of every task from search to report, measured again from its exported files.

That of the rows of a table and of the regression is reloaded in a process of its own, the others here.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_tasks
from conftest import tfnas_command
from scipy.special import softmax

import tfnas
from tfnas import config
from tfnas.common.errors import UserError
from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet
from tfnas.cutting import subnets
from tfnas.exporting import conversion
from tfnas.reporting.report import config_file
from tfnas.runs import stage_table
from tfnas.serving import servable
from tfnas.stages import check, evaluate, export, preview, report, retrain, sample, search

pytestmark = pytest.mark.usefixtures("one_rival")


def settings(source, model, **changed):
    sections = {
        "search": Search(epochs=2, warmup_epochs=0, batch_size=20, learning_rate=0.01, parameters=0.6),
        "sample": Sample(num_candidates=6, num_random=3, num_tested=2, batch_size=30),
        "retrain": Retrain(epochs=1, batch_size=20),
        **changed,
    }
    return Config(
        data=Data(source=f"tiny_tasks:{source}"),
        supernet=Supernet(source=f"tiny_tasks:{model}"),
        **sections,
    ).check()


def run(settings, path):
    """Runs all stages; returns the row of the exported network, its outputs for the test images, and the answer."""
    for stage in (search, sample, retrain, evaluate, export, report):
        stage.run(settings, path)
    results = json.loads((path / stage_table.RESULTS).read_text())
    row = next(row for row in results["rows"] if row["name"] == results["chosen"])
    exported = path / json.loads((path / stage_table.EXPORT_RESULTS).read_text())["saved_model"]
    images = getattr(tiny_tasks, settings.data.source.partition(":")[2])()
    images = (images[0] if isinstance(images, tuple) else images)["test"][0]
    standard = (images / np.float32(255) - 0.5) / 0.25
    outputs = keras.models.load_model(exported.parent / "model.keras").predict(standard, verbose=0)
    answer = tf.saved_model.load(str(exported)).signatures["serving_default"](image=images)
    return results, row, outputs, {name: value.numpy() for name, value in answer.items()}


def page(path):
    return " ".join((path / stage_table.REPORT).read_text().split())


def card(path):
    return next(path.glob("export/*/model_card.md")).read_text()


def test_rows_of_a_table(tmp_path, capsys):
    """Searched, exported and served as they are; the exported model is reloaded in a process of its own."""
    chosen = settings(
        "rows",
        "perceptron",
        search=Search(epochs=6, warmup_epochs=2, batch_size=20, learning_rate=0.2, parameters=0.6),
        retrain=Retrain(epochs=4, batch_size=20),
        export=config.Export(formats=("litert_int8", "onnx")),
    )
    preview.run(chosen, tmp_path / "preview")
    for stage in (search, sample, retrain, evaluate, export, report):
        stage.run(chosen, tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    table, kinds = tiny_tasks.rows()[0]["test"]
    table = table.astype(np.float32)
    trained = tiny_tasks.rows()[0]["train"][0]
    std = f"std from {trained.std(0).min():.4g} to {trained.std(0).max():.4g} by feature"
    assert "13, 3 classes -> train 100 / validation 38 / test 40; of 100 training examples mean from" in printed
    assert std in printed and "test images" not in printed

    results = json.loads((tmp_path / stage_table.RESULTS).read_text())
    row = next(row for row in results["rows"] if row["name"] == results["chosen"])
    exported = tmp_path / json.loads((tmp_path / stage_table.EXPORT_RESULTS).read_text())["saved_model"]
    network = keras.models.load_model(exported.parent / "model.keras")
    network.compile(metrics=["accuracy"], loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert row["test"]["accuracy"] == pytest.approx(network.evaluate(table, kinds, verbose=0)[1])
    assert row["test"]["accuracy"] > 0.7 and network.count_params() <= 0.6 * (14 * 24 + 25 * 16 + 17 * 3)

    # Answered by the server's code, which also answers the warm-up requests.
    served = servable.Model("rows", exported.parent, 64)
    assert {*served.signature_defs} - {"__saved_model_init_op"} == {"serving_default"}
    request = {"instances": [{"inputs": values} for values in table.tolist()]}
    answer = servable.answer_json(served, request)["predictions"]
    expected = softmax(network.predict(table, verbose=0), -1)
    np.testing.assert_allclose([one["probabilities"] for one in answer], expected, atol=1e-5)
    names = np.array(["red", "white", "rose"])[expected.argmax(-1)]
    assert [one["classes"][0] for one in answer] == names.tolist()
    with pytest.raises(servable.RequestError, match=r"inputs: float32 of shape \(N, 13\) expected"):
        servable.answer_json(served, {"instances": [{"inputs": [1.0, 2.0]}]})
    with pytest.raises(servable.RequestError, match=r"inputs: shape \(N, 13\) of one or more examples .* \[0 13\]"):
        served.predict("", {"inputs": table[:0]}, lambda name, spec, value: tf.constant(value))
    got = conversion.load("onnx", exported.parent / "onnx" / "model.onnx")({"inputs": table})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    text = card(tmp_path)
    for words in ("Classifies examples into 3 classes", "inputs, float32, 13, as they are", "test examples correctly"):
        assert words in text, words
    assert "inputs</code> float32 (N, 13)" in page(tmp_path) and "image" not in text


def test_an_image_and_numbers_on_the_command_line(tmp_path):
    """Several inputs by name: the exported network's answers are those of the Keras model and NumPy."""
    chosen = settings(
        "named",
        "image_and_numbers",
        retrain=Retrain(epochs=1, batch_size=20, distill=0.3),
        export=config.Export(formats=("litert_int8",)),
        training=config.Training(accumulate=2),
    )
    (tmp_path / "config.py").write_text(config_file(chosen))
    path = tmp_path / "run"
    done = tfnas_command("run", f"--config={tmp_path / 'config.py'}", f"--workdir={path}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "tiny_tasks:named: extra 2, image 8x8x1, 3 classes -> train 60" in " ".join(done.stdout.split())

    exported = path / json.loads((path / stage_table.EXPORT_RESULTS).read_text())["saved_model"]
    given, kinds = tiny_tasks.named()[0]["test"]
    network = keras.models.load_model(exported.parent / "model.keras")
    standard = {**given, "image": (given["image"] / np.float32(255) - 0.5) / 0.25}
    expected = softmax(network.predict(standard, verbose=0), -1)
    results = json.loads((path / stage_table.RESULTS).read_text())
    row = next(row for row in results["rows"] if row["name"] == results["chosen"])
    assert row["test"]["accuracy"] == pytest.approx(np.mean(expected.argmax(-1) == kinds))

    served = servable.Model("named", exported.parent, 64)
    assert {*served.signature_defs} - {"__saved_model_init_op"} == {"serving_default"}
    rows = [{"image": a.tolist(), "extra": b.tolist()} for a, b in zip(given["image"], given["extra"], strict=True)]
    answer = servable.answer_json(served, {"instances": rows})["predictions"]
    np.testing.assert_allclose([one["probabilities"] for one in answer], expected, atol=1e-5)
    few = {**given, "extra": given["extra"][:5]}
    with pytest.raises(
        servable.RequestError, match=r"as many of each of extra, image expected. Received: \[5\] \[40\]"
    ):
        served.predict("", few, lambda name, spec, value: tf.constant(value))
    with pytest.raises(servable.RequestError, match="inputs 'extra', 'image' expected. Received: 'image'"):
        servable.answer_json(served, {"instances": [{"image": rows[0]["image"]}]})
    got = conversion.load("litert_int8", exported.parent / "litert_int8" / "model.tflite")(given)
    np.testing.assert_allclose(got, expected, atol=0.1)
    rebuilt = subnets.rebuild((exported.parent / "architecture.json").read_text(), "subnet", chosen.supernet.source)
    rebuilt.set_weights(network.get_weights())
    np.testing.assert_allclose(softmax(rebuilt.predict(standard, verbose=0), -1), expected, atol=1e-6)
    assert "takes <code>extra</code> float32 (N, 2), <code>image</code> uint8 (N, H, W, C), raw pixels" in page(path)
    assert "The network takes extra, float32, 2, image, uint8, 8 x 8 x 1;" in card(path)


def test_a_regression_with_weights_by_the_published_search(tmp_path, capsys, in_this_process):
    published = Search(epochs=2, warmup_epochs=0, batch_size=20, learning_rate=0.002, ell2=1.0, guard="off")
    chosen = settings("numbers", "vector", task="regression", search=published)
    results, row, outputs, answer = run(chosen, tmp_path)
    targets = tiny_tasks.numbers()[0]["test"][1]
    rmse = keras.metrics.RootMeanSquaredError()
    rmse.update_state(targets, outputs)
    assert row["test"] == pytest.approx(
        {"rmse": float(rmse.result()), "mae": np.abs(targets - outputs).mean()}, rel=1e-5
    )
    assert set(answer) == {"values"}
    np.testing.assert_allclose(answer["values"], outputs, rtol=1e-4, atol=1e-5)
    assert results["num_examples"] == 40 and not results["confusion"]
    printed = capsys.readouterr().out
    assert "8x8x1, 2 numbers -> train 60 / validation 30 / test 40" in printed
    assert "values equal to" in printed and " mae " in printed and "accuracy" not in printed
    # The loss that ranks is weighted.
    ranked = json.loads((tmp_path / stage_table.RANKING).read_text())
    assert ranked["rank_by"] == "loss" and set(ranked["kinds"]["posterior"]["race"]["best"]["metrics"]) == {"mae"}
    assert {"mae"} == set(next(r for r in results["rows"] if r["num_tested"])["test"])
    text = page(tmp_path)
    for words in ("test RMSE", "valid. RMSE", "MAE", "sign-flip test", "values float32"):
        assert words in text, words
    assert "ccurac" not in text.replace("accuracy=", ""), text[max(0, text.find("ccurac") - 200) :][:400]
    assert "RMSE" in card(tmp_path) and "2 numbers" in card(tmp_path)


def test_several_labels(tmp_path, in_this_process):
    chosen = settings("labels", "vector", task="multi_label", evaluate=config.Evaluate(threshold=0.01))
    _, row, outputs, answer = run(chosen, tmp_path)
    targets = tiny_tasks.labels()[0]["test"][1].astype(bool)
    areas = []
    for has, scores in zip(targets.T, outputs.T, strict=True):
        with_label, without = scores[has][:, None], scores[~has][None]
        areas.append(((with_label > without) + 0.5 * (with_label == without)).mean())
    assert row["test"] == pytest.approx(
        {"auc": np.mean(areas), "accuracy": ((outputs > 0) == targets).mean()}, rel=1e-4
    )
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-outputs)), rtol=1e-4, atol=1e-6)
    first = np.array(["low", "right", "wide"])[outputs.argmax(1)]
    assert answer["classes"][:, 0].astype(str).tolist() == first.tolist()
    assert "test AUC" in page(tmp_path) and "a test AUC of" in card(tmp_path)


def test_a_segmentation_by_its_pixels_accuracy(tmp_path, in_this_process):
    ranked_by = Sample(num_candidates=6, num_random=3, num_tested=2, batch_size=30, rank_by="accuracy")
    taught = Retrain(epochs=1, batch_size=20, distill=0.5)
    chosen = settings("masks", "per_pixel", task="segmentation", sample=ranked_by, retrain=taught)
    _, row, outputs, answer = run(chosen, tmp_path)
    targets = tiny_tasks.masks()[0]["test"][1]
    iou = keras.metrics.MeanIoU(2, sparse_y_pred=False)
    iou.update_state(targets, outputs)
    right = (outputs.argmax(-1) == targets).mean()
    assert row["test"] == pytest.approx({"mean_iou": float(iou.result()), "accuracy": right}, rel=1e-5)
    assert set(answer) == {"probabilities", "mask"} and answer["mask"].dtype == np.int32
    np.testing.assert_array_equal(answer["mask"], outputs.argmax(-1))
    assert "test mean IoU" in page(tmp_path) and "mean IoU" in card(tmp_path)


@pytest.mark.parametrize("metric, goal", [("worst", "min"), ("R2", "max")])
def test_a_loss_and_a_metric_of_ones_own(tmp_path, in_this_process, metric, goal):
    own = {"task": "custom", "loss": "tiny_tasks:huber", "metric": f"tiny_tasks:{metric}", "metric_goal": goal}
    ranked_by = Sample(num_candidates=4, num_random=2, num_tested=2, batch_size=30, rank_by=metric)
    _, row, outputs, answer = run(settings("numbers", "vector", **own, sample=ranked_by), tmp_path)
    targets = tiny_tasks.numbers()[0]["test"][1]
    expected = np.abs(targets - outputs).max(1).mean()
    if metric == "R2":
        rest, spread = np.square(targets - outputs).sum(0), np.square(targets - targets.mean(0)).sum(0)
        expected = (1 - rest / spread).mean()
    assert row["test"] == pytest.approx({metric: expected}, rel=1e-4)
    np.testing.assert_allclose(answer["outputs"], outputs, rtol=1e-4, atol=1e-5)
    assert f"test {metric}" in page(tmp_path)
    loaded = tfnas.load(tmp_path / stage_table.SUPERNET)
    with pytest.raises(UserError, match="'tiny_tasks:huber': this model was loaded from a file; compile it"):
        loaded.loss(targets, outputs)


def test_several_outputs_of_one_task(tmp_path, in_this_process):
    """A loss and a metric of all outputs together, which are served by their names."""
    own = {"task": "custom", "loss": "tiny_tasks:of_both", "metric": "tiny_tasks:misses", "metric_goal": "min"}
    ranked_by = Sample(num_candidates=4, num_random=2, num_tested=2, batch_size=30, rank_by="misses")
    taught = Retrain(epochs=1, batch_size=20, distill=0.5)
    _, row, outputs, answer = run(
        settings("two_targets", "two_heads", **own, sample=ranked_by, retrain=taught), tmp_path
    )
    targets = tiny_tasks.two_targets()["test"][1]
    wrong = (outputs["wide"][:, 0] > 0) != (targets["wide"] > 0)
    expected = np.linalg.norm(targets["place"] - outputs["place"], axis=1) + 10 * wrong
    assert row["test"] == pytest.approx({"misses": expected.mean()}, rel=1e-4)
    assert set(answer) == {"place", "wide"}
    for name, values in answer.items():
        np.testing.assert_allclose(values, outputs[name], rtol=1e-4, atol=1e-5)
    assert "answer[&#39;place&#39;], answer[&#39;wide&#39;]" in page(
        tmp_path
    ) or "answer['place'], answer['wide']" in page(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"task": "regression", "loss": "", "metric": "", "metric_goal": ""},
            "has the targets place, wide, of several outputs: these",
        ),
        (
            {"model": "vector"},
            "must return a dict of the outputs place, wide, as the targets are named. Received: 1 wit",
        ),
        (
            {"loss": "tiny_tasks:mean_of_both"},
            r"loss: 'tiny_tasks:mean_of_both' must return one number .* shape \(\) for 2",
        ),
        (
            {"export": config.Export(formats=("onnx",))},
            "export.formats: written for networks with one output only; leave",
        ),
    ],
)
def test_what_several_outputs_cannot_have_is_refused_before_training(tmp_path, changes, message):
    own = {"task": "custom", "loss": "tiny_tasks:of_both", "metric": "tiny_tasks:misses", "metric_goal": "min"}
    model = changes.pop("model", "two_heads")
    with pytest.raises(UserError, match=message):
        check.run(settings("two_targets", model, **{**own, **changes}), tmp_path)


def test_one_hot_labels_are_classes(tmp_path):
    from tfnas.data import pipeline

    splits = pipeline.load(Data(source="tiny_tasks:one_hot"), tmp_path)
    places = tiny_tasks.squares(60, 0)[1]
    assert splits.label_names == ("0", "1", "2")
    assert [int(label) for _, label in splits.train] == (places[:, 2] - 2).tolist()
    with pytest.raises(UserError, match="'data.source' must be a function that returns the splits, with task='regr"):
        Config(task="regression").check()
