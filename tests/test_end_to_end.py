"""The whole run on the digits through the command line, killed, damaged and repeated."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SAMPLED, SMALL, TINY, kill_when, lines, tfnas_command, tfnas_script, tfnas_stage

from tfnas.cutting import subnets
from tfnas.runs import stage_table
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import UnitPosterior

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run never interrupted, by the console script, and what it printed."""
    path = tmp_path_factory.mktemp("run") / "whole"
    return path, tfnas_stage("run", path, command=tfnas_script)


def test_output_tells_what_was_done(whole):
    path, printed = whole
    assert "digits: 8x8x1, 10 classes -> train 1,000 / validation 397 / test 400" in printed
    assert "reloaded without tfnas: probabilities equal to" in printed and "test accuracy equal" in printed
    assert f"report    {path / 'report.html'}" in printed
    assert f"model     {path / 'export/digits/1'}" in printed


def test_results_hold_every_arm(whole):
    rows = json.loads((whole[0] / stage_table.RESULTS).read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "full network, same total budget",
        "evenly narrowed, same weights",
        "group norm, same weights",
        "curvature, same weights",
        "found network, before retraining",
        "found network, retrained",
    ]
    for row in rows:
        assert 0 < row["test"]["accuracy"] <= 1
        assert row["parameters"] <= rows[0]["parameters"]
    # So few steps that normalization's moving statistics lag behind; a guess would be right once in ten.
    assert rows[0]["test"]["accuracy"] > 0.6


def test_candidates_and_the_network_found_fill_their_bounds(whole):
    results = json.loads((whole[0] / stage_table.RESULTS).read_text())
    candidates = [json.loads(line) for line in (whole[0] / stage_table.CANDIDATES).read_text().splitlines()]
    bounds = {name: share * results["full"][name] for name, share in (("parameters", 0.25), ("multiply_adds", 0.35))}
    found = next(row for row in results["rows"] if row["name"] == "found network, retrained")
    for network in (*(c for c in candidates if c["kind"] == "posterior"), found):
        assert 0.9 < max(network[name] / bound for name, bound in bounds.items()) <= 1
    history = [json.loads(line) for line in (whole[0] / stage_table.HISTORY).read_text().splitlines()]
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]  # after two without gates
    assert all(len(p) == 1 for p in history[-1]["drop_probability"].values())


def test_saved_model_serves_raw_pixels(whole):
    path = whole[0]
    served = tf.saved_model.load(str(path / "export/digits/1")).signatures["serving_default"]
    assert set(served.structured_input_signature[1]) == {"image"}
    assert set(served.structured_outputs) == {"probabilities", "classes", "scores"}
    model = keras.models.load_model(path / "export/digits/model.keras")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype("uint8")
    answer = served(image=tf.constant(images))
    logits = model((images.astype("float32") / 255 - 0.305) / 0.376).numpy().astype("float64")
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert answer["probabilities"].shape == expected.shape == (5, 10)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    assert answer["classes"].numpy().astype(str).tolist() == np.argsort(-expected)[:, :5].astype(str).tolist()
    np.testing.assert_allclose(answer["scores"], -np.sort(-expected)[:, :5], atol=1e-5)
    assert (path / "export/digits/labels.txt").read_text().split() == [str(i) for i in range(10)]


def test_architecture_json_alone_rebuilds_the_network(whole):
    path = whole[0]
    text = (path / "export/digits/architecture.json").read_text()
    assert Architecture.from_json(text) == Architecture.from_json((path / stage_table.ARCHITECTURE).read_text())
    rebuilt, model = (
        subnets.rebuild(text, source="tiny:wide"),
        keras.models.load_model(path / "export/digits/model.keras"),
    )
    assert [w.shape for w in rebuilt.get_weights()] == [w.shape for w in model.get_weights()]
    # Its weights are fresh, so nothing that is dropped leaves a constant, which a cut network may have besides weights.
    rows = json.loads((path / stage_table.RESULTS).read_text())["rows"]
    constants = sum(int(np.prod(w.shape)) for w in rebuilt.non_trainable_weights)
    assert rebuilt.count_params() == rows[-1]["parameters"] + constants
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
    assert rebuilt(images).shape == model(images).shape


def test_tensorboard_has_the_search(whole):
    (events,) = (whole[0] / "tensorboard").glob("events*")
    (group, *_) = UnitPosterior.from_json((whole[0] / stage_table.POSTERIOR).read_text()).layers
    tags = {v.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for v in event.summary.value}
    assert {"loss", "accuracy", "kept", f"drop_probability/{group.name}/0"} <= tags


def test_again_is_up_to_date(whole):
    before = {p: p.stat().st_mtime_ns for p in whole[0].rglob("*") if p.is_file()}
    printed = tfnas_stage("run", whole[0])
    for stage in stage_table.STAGES:
        assert f"{stage:9s} up to date" in printed
    assert {p: p.stat().st_mtime_ns for p in whole[0].rglob("*") if p.is_file()} == before


def test_another_config_in_the_same_folder_is_refused(whole):
    done = tfnas_command("search", *SMALL, f"--workdir={whole[0]}", "--config.search.parameters=0.7")
    assert done.returncode == 1
    assert "holds a search with search.parameters=0.25, and this config has 0.7: use another --workdir" in done.stderr


@pytest.fixture(scope="module")
def blind(whole, tmp_path_factory):
    """Search and sampling, not interrupted, with the test split's file destroyed."""
    path = tmp_path_factory.mktemp("run") / "blind"
    shutil.copytree(whole[0] / "tensorflow_datasets", path / "tensorflow_datasets")
    (file,) = (path / "tensorflow_datasets").rglob("digits-test*")
    file.write_bytes(b"destroyed")
    for stage in ("search", "sample"):
        assert "up to date" not in tfnas_stage(stage, path, settings=TINY)
    return path


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """A run killed in the middle of search and of sampling, each time started again with the same command."""
    path = tmp_path_factory.mktemp("run") / "killed"
    shutil.copytree(whole[0] / "tensorflow_datasets", path / "tensorflow_datasets")
    kill_when("search", path, lambda: lines(path / stage_table.HISTORY) >= 2, settings=TINY)
    searched = tfnas_stage("search", path, settings=TINY)
    evaluations = path / stage_table.EVALUATIONS
    kill_when("sample", path, lambda: lines(evaluations) >= 15, settings=TINY)
    done_before = evaluations.read_text().splitlines()[:10]
    with open(evaluations, "ab") as stream:
        stream.write(b"0000 a line cut sho")  # what a power cut leaves
    sampled = tfnas_stage("sample", path, settings=TINY)
    return path, searched, sampled, done_before


def test_killed_run_goes_on_and_does_nothing_twice(killed):
    path, searched, sampled, done_before = killed
    assert "search    resumes after epoch" in searched
    assert re.search(r"sample    resumes: \d+ evaluations found", sampled)
    assert (path / stage_table.EVALUATIONS).read_text().splitlines()[:10] == done_before


def test_killed_run_ends_the_same(blind, killed):
    for name in (stage_table.HISTORY, stage_table.POSTERIOR, *SAMPLED):
        assert (killed[0] / name).read_text() == (blind / name).read_text(), name


def test_search_and_sample_never_read_the_test_split(blind):
    """With the test split's file destroyed they have run; the retrain stage's last evaluation does not."""
    untrained = [*TINY, f"--workdir={blind}", "--config.retrain.baseline=false", "--config.retrain.epochs=0"]
    # The search's cosine stays that of the 6 + 2 epochs.
    done = tfnas_command("retrain", *untrained, "--config.search.cosine_epochs=8")
    assert done.returncode != 0 and "digits-test" in done.stderr, done.stderr
    assert not (blind / stage_table.RESULTS).exists()


@pytest.mark.parametrize("name, stage", [(stage_table.POSTERIOR, "sample"), (stage_table.ARCHITECTURE, "retrain")])
def test_altered_results_are_refused(whole, name, stage):
    file = whole[0] / name
    content = file.read_text()
    try:
        file.write_text(content.replace("1", "2", 1))
        done = tfnas_command(stage, *SMALL, f"--workdir={whole[0]}")
        assert done.returncode == 1 and "truncated or changed since" in done.stderr and "Traceback" not in done.stderr
    finally:
        file.write_text(content)


def test_altered_evaluations_are_refused(killed):
    file = killed[0] / stage_table.EVALUATIONS
    content = file.read_text()
    (killed[0] / stage_table.RANKING).unlink(missing_ok=True)
    try:
        altered = content.replace('"loss": "', '"loss": "AAAA', 1)
        assert altered != content
        file.write_text(altered)
        done = tfnas_command("sample", *TINY, f"--workdir={killed[0]}")
        assert done.returncode == 1 and "was altered, delete the file" in done.stderr
    finally:
        file.write_text(content)


def test_posterior_is_what_the_history_ends_with(whole):
    posterior = UnitPosterior.from_json((whole[0] / stage_table.POSTERIOR).read_text())
    last = json.loads((whole[0] / stage_table.HISTORY).read_text().splitlines()[-1])
    for gates in posterior.layers:
        assert last["drop_probability"][gates.name] == pytest.approx([gates.channel_drop.mean()])


def test_a_budget_after_the_search(whole, tmp_path):
    """One search serves several sizes: sampled again within a budget, cut, exported."""
    path = tmp_path / "smaller"
    shutil.copytree(whole[0], path)
    options = ["--config.sample.multiply_adds=0.2", "--config.retrain.baseline=false"]
    # The search's cosine stays that of the 6 + 2 epochs.
    options += ["--config.retrain.epochs=0", "--config.search.cosine_epochs=8"]
    options += ["--config.sample.num_candidates=10", "--config.sample.num_random=2", "--config.sample.num_tested=2"]
    printed = tfnas_stage("run", path, *options)
    assert "search    up to date" in printed and "of at most 20.0% of the multiply-adds" in printed
    before, after = (
        json.loads((p / stage_table.RANKING).read_text())["kinds"]["posterior"]["mean_multiply_adds"]
        for p in (whole[0], path)
    )
    assert after < before
    text = (path / "export/digits/architecture.json").read_text()
    rebuilt, model = (
        subnets.rebuild(text, source="tiny:wide"),
        keras.models.load_model(path / "export/digits/model.keras"),
    )
    assert [w.shape for w in rebuilt.get_weights()] == [w.shape for w in model.get_weights()]


def test_a_collapsed_posterior_is_told(tmp_path):
    collapsed = ["--config.search.ell2=60", "--config.search.initial_drop=0.99999"]
    collapsed += ["--config.search.gate_learning_rate=0.001"]
    options = [*TINY, f"--workdir={tmp_path}", *collapsed, "--config.search.epochs=1", "--config.search.guard=off"]
    assert tfnas_command("search", *options).returncode == 0
    done = tfnas_command("sample", *options)
    assert done.returncode == 1 and "every candidate drops every path to the output" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_search_that_collapses_is_stopped(tmp_path):
    options = [*TINY, f"--workdir={tmp_path}", "--config.search.ell2=5000", "--config.search.gate_learning_rate=10"]
    done = tfnas_command("search", *options)
    assert done.returncode == 1 and "(collapsed)" in done.stderr and "Traceback" not in done.stderr
    stopped = int(re.search(r"search stopped at epoch (\d)", done.stderr).group(1))
    assert lines(tmp_path / stage_table.HISTORY) == stopped - 1
    done = tfnas_command("search", *options, "--config.search.guard=warn")
    assert done.returncode == 0 and done.stdout.count("(collapsed)") == 1, done.stderr
    assert lines(tmp_path / stage_table.HISTORY) == 6
