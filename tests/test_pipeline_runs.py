"""The pipeline run on this machine: killed, repeated, refused by its thresholds, and failing."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import processes
import pytest
from conftest import ROOT, TINY

# Each stage is a process of its own.
SETTINGS = [
    *TINY,
    "--config.search.epochs=2",
    "--config.sample.num_candidates=10",
    "--config.sample.num_random=2",
    "--config.sample.num_tested=2",
    "--config.retrain.baseline=false",
    "--runner=local",
    "--num_shards=2",
]


def command(*arguments):
    line = [sys.executable, "-m", "pipelines.run", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def artifacts(path):
    """Every artifact's folder or file, and when its last file was written."""
    found = {}
    for file in sorted((path / "artifacts").glob("tfnas-*/**/executor_output.json")):
        for name, value in json.loads(file.read_text()).get("artifacts", {}).items():
            (artifact,) = value["artifacts"]
            place = os.path.relpath(artifact["uri"], path / "artifacts")
            found[place] = (artifact, name, file.stat().st_mtime_ns)
    return found


def stage_of(place):
    return place.split(os.sep)[-2].removesuffix("-2")  # the report of the other branch


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def one(path, stage, name):
    """The latest artifact of a stage: its path and metadata."""
    found = [v[0] for place, v in artifacts(path).items() if stage_of(place) == stage and v[1] == name]
    return found[-1]["uri"], found[-1]["metadata"]


# `python -m pipelines.run` with its tasks forked (processes.py), all in one group, so that they can be killed together.
# Tests of a stage that fails and of thresholds have kfp's own runner, which starts a Python for each.
_PIPELINE = """
import os, sys, tempfile
import processes
from kfp.local import subprocess_task_handler
from pipelines import run
from tfnas.common import terminal

TASK = '''import os, runpy, sys
os.setpgid(0, int(sys.argv.pop(1)))
runpy.run_module('kfp.dsl.executor_main', None, '__main__')'''

def forked(full_command, env_vars=None):
    shell, _, script, code, *arguments = full_command
    assert shell == "sh" and "-m kfp.dsl.executor_main" in script
    with tempfile.TemporaryDirectory() as folder:
        module, out = os.path.join(folder, "ephemeral_component.py"), os.path.join(folder, "out")
        with open(module, "w") as file:
            file.write(code)
        arguments = [os.getpid(), "--component_module_path", module, *arguments]
        process = processes.start(TASK, arguments, out, out, _KFP_RUNTIME="true", **(env_vars or {}))
        process.join()
        with open(out) as said:
            print(said.read())
        return process.exitcode

terminal.load_tensorflow()
os.setpgid(0, 0)
processes.share_server()
subprocess_task_handler.run_local_subprocess = forked
run.cli()
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A pipeline killed, with all its processes, in retrain; what was there then; and the same command again."""
    path = tmp_path_factory.mktemp("pipeline run")
    arguments, out, error = [*SETTINGS, f"--workdir={path}"], path / "stdout", path / "stderr"
    process = processes.start(_PIPELINE, arguments, path / "first.txt", path / "first.txt")
    deadline = time.monotonic() + 400
    while not list((path / "scratch").glob("retrain-*/run/retrain*")):
        assert process.is_alive() and time.monotonic() < deadline, (path / "first.txt").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    before = artifacts(path)
    again = processes.start(_PIPELINE, arguments, out, error)
    again.join()
    return path, before, subprocess.CompletedProcess(arguments, again.exitcode, out.read_text(), error.read_text())


@pytest.mark.slow
def test_killed_and_run_again_ends_with_a_model(killed):
    path, before, done = killed
    assert done.returncode == 0, done.stdout + done.stderr
    *_, report, model = done.stdout.splitlines()
    assert report == f"report    {path}/report.html"
    assert model == f"model     {path}/model/1     (SavedModel; how to serve it: docs/serving.md)"
    assert done.stderr == ""


@pytest.mark.slow
def test_finished_stages_are_not_repeated(killed):
    path, before, done = killed
    assert sorted(map(stage_of, before)) == ["check", "sample", "sample", "search", "search", "select", "select"]
    after = artifacts(path)
    assert {place: after[place] for place in before} == before
    new = {stage_of(place) for place in set(after) - set(before)}
    assert new == {"retrain", "evaluate", "export", "report"}
    for stage in ("check", "search", "sample", "select"):
        assert f"{stage:9s} finished before: its artifacts are taken" in done.stdout
    assert "search    begins" not in done.stdout and "retrain   begins" in done.stdout


@pytest.mark.slow
def test_artifacts_hold_what_the_stages_measured(killed):
    path = killed[0]
    retrained, described = one(path, "retrain", "run")
    results = read(f"{retrained}/retrain/results.json")
    chosen = next(row for row in results["rows"] if row["name"] == results["chosen"])
    metrics, logged = one(path, "retrain", "metrics")
    told = read(metrics)
    assert told == logged and told["accuracy"] == chosen["test"]["accuracy"] == described["accuracy"]
    assert told["parameters"] == chosen["parameters"]
    confusion, logged = one(path, "retrain", "confusion")
    matrix = np.array([row["row"] for row in logged["confusionMatrix"]["rows"]])
    assert matrix.shape == (10, 10) and matrix.sum() == 400  # the test split's size
    assert np.trace(matrix) / 400 == pytest.approx(chosen["test"]["accuracy"])
    assert read(confusion) == {"classes": [str(i) for i in range(10)], "rows": matrix.tolist()}
    data, described = one(path, "check", "data")
    assert read(data)["sizes"] == described["sizes"] == {"train": 400, "validation": 397, "test": 400}
    assert described["input_shape"] == [8, 8, 1] and len(described["classes"]) == 10
    for stage, name in (("search", "run"), ("select", "run"), ("export", "model"), ("report", "html")):
        described = one(path, stage, name)[1]
        assert re.fullmatch("[0-9a-f]{64}", described["config_sha256"]) and described["seed"] == 0
        assert described["versions"]["tensorflow"] and described["code"].startswith(described["versions"]["tfnas"])
        assert described["parameters" if stage != "search" else "kept"] > 0
    assert one(path, "search", "run")[1]["config_sha256"] != one(path, "export", "model")[1]["config_sha256"]


@pytest.mark.slow
def test_report_and_model_are_the_runs(killed):
    path = killed[0]
    html = (path / "report.html").read_text()
    assert "What did I get, and what did it cost?" in html and "found network, retrained" in html
    model_path = one(path, "export", "model")[0]
    assert f"{model_path}/1" in html  # and not the working directory, which is gone
    import keras
    import tensorflow as tf

    served = tf.saved_model.load(str(path / "model" / "1")).signatures["serving_default"]
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype("uint8")
    probabilities = served(image=tf.constant(images))["probabilities"].numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    logits = keras.models.load_model(path / "model" / "model.keras")((images.astype("float32") / 255 - 0.305) / 0.376)
    np.testing.assert_allclose(probabilities, keras.ops.softmax(logits), atol=1e-5)
    assert not (path / "scratch").exists()


@pytest.mark.slow
def test_impossible_thresholds_end_green_without_an_export(killed):
    path, before = killed[0], artifacts(killed[0])
    limits = ["--config.evaluate.threshold=1.0", "--config.evaluate.max_parameters=0.01"]
    done = command(*SETTINGS, *limits, f"--workdir={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("model     none: the network is not what was asked for: ")
    assert "at least 100.00% asked" in last and "of the full network's parameters, at most 1.00% asked" in last
    new = {stage_of(place) for place in set(artifacts(path)) - set(before)}
    assert new == {"evaluate", "report"}  # all before is taken from its artifacts
    verdict, metrics = one(path, "evaluate", "metrics")
    assert metrics["blessed"] == 0 and read(verdict) == metrics
    assert "It was not exported" in (path / "report.html").read_text()
    assert not (path / "model").exists()


@pytest.mark.slow
def test_a_failing_stage_fails_the_pipeline_with_its_own_message(tmp_path):
    (tmp_path / "broken.py").write_text("def splits():\n    raise OSError('the disk is on holiday')\n")
    config = tmp_path / "settings.py"
    config.write_text(
        "from tfnas.config import Config, Data, to_config_dict\n"
        "def get_config():\n    return to_config_dict(Config(data=Data(source='broken:splits')))\n"
    )
    done = command("--runner=local", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("tfnas: data.source: 'broken:splits' failed: OSError: the disk is on holiday")
    assert done.stderr.count("\n") == 1 and "search    begins" not in done.stdout
