"""The pipeline: compiled, refused, submitted as far as that goes without a cluster; and run here, killed and repeated.

After a change that is meant, write the golden file again: TFNAS_WRITE_GOLDEN=1 pytest tests/test_pipelines.py -k golden
"""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import processes
import pytest
import yaml
from conftest import ROOT, TINY, load_config

from pipelines import nas_pipeline, run
from pipelines.options import VERTEX_ACCELERATORS, Options
from tfnas.common.errors import UserError
from tfnas.config import Sample
from tfnas.stages import handover

GOLDEN = ROOT / "tests" / "golden" / "nas_pipeline.yaml"
CONFIG = load_config("digits")
# The golden file is about the DAG: settings and code may change.
FIXED = {
    **{name: "{}" for name in nas_pipeline.arguments(CONFIG) if name.endswith("_config")},
    "version": "VERSION",
    "shards": ["1/2", "2/2"],
    "scratch": "/scratch",
}
OPTIONS = Options(
    image="registry.example/tfnas:0.1.0",
    accelerator_type="nvidia.com/gpu",
    accelerator_count=2,
    cpu="4",
    memory="16G",
    retries=3,
    uncached=("search", "report"),
)


def compiled(path, options):
    nas_pipeline.compile_to(path, options.check(), FIXED)
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled") / "pipeline.yaml"


@pytest.fixture(scope="module")
def spec(file):
    return compiled(file, OPTIONS)


def test_golden_yaml(file, spec):
    text = re.sub(r"^sdkVersion: .*\n", "", file.read_text(), flags=re.MULTILINE)
    if os.environ.get("TFNAS_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "if the change is meant: see the docstring of this file"


def depends(tasks, name):
    return set(tasks[name].get("dependentTasks", ()))


def test_the_dag(spec):
    tasks = spec["root"]["dag"]["tasks"]
    assert depends(tasks, "search") == {"check"}
    assert depends(tasks, "for-loop-1") == {"search"} and depends(tasks, "evaluate") == {"retrain"}
    assert depends(tasks, "select") == {"for-loop-1", "search"}
    assert depends(tasks, "retrain") == {"check", "search", "select"}
    branches = spec["components"]["comp-condition-branches-2"]["dag"]["tasks"]
    conditions = {name: task["triggerPolicy"]["condition"] for name, task in branches.items()}
    yes, no = (name for name in sorted(conditions))
    assert "== true" in conditions[yes] and conditions[no].startswith("!(")
    inside = {name: set(spec["components"][f"comp-{name}"]["dag"]["tasks"]) for name in (yes, no)}
    assert inside == {yes: {"export", "report"}, no: {"report-2"}}


def test_artifacts_are_typed(spec):
    components = spec["components"]

    def kinds(name):
        return {
            key: value["artifactType"]["schemaTitle"].removeprefix("system.")
            for key, value in components[f"comp-{name}"]["outputDefinitions"]["artifacts"].items()
        }

    assert kinds("check") == {"data": "Dataset"}
    assert kinds("search") == {"run": "Model", "metrics": "Metrics"}
    assert kinds("retrain") == {"run": "Model", "metrics": "Metrics", "confusion": "ClassificationMetrics"}
    assert kinds("export")["model"] == "Model" and kinds("report") == {"html": "HTML"}


def test_no_stage_depends_on_settings_of_later_ones(spec):
    """So that other thresholds repeat no training: the engine's key is of the arguments."""
    components = spec["components"]
    order = ["search", "sample", "retrain", "evaluate", "export"]
    for name, last in (("search", 0), ("sample", 1), ("select", 1), ("retrain", 2), ("evaluate", 3), ("export", 4)):
        parameters = components[f"comp-{name}"]["inputDefinitions"]["parameters"]
        assert {p for p in parameters if p.endswith("_config")} == {f"{part}_config" for part in order[: last + 1]}
        assert "version" in parameters


def test_options_reach_every_task(spec):
    containers = {n: e["container"] for n, e in spec["deploymentSpec"]["executors"].items()}
    assert {c["image"] for c in containers.values()} == {OPTIONS.image}
    with_gpu = {n.removeprefix("exec-") for n, c in containers.items() if "accelerator" in c.get("resources", {})}
    assert with_gpu == {"check", "search", "sample", "select", "retrain"}
    limits = containers["exec-search"]["resources"]
    assert limits["accelerator"]["resourceType"] == "nvidia.com/gpu" and limits["accelerator"]["resourceCount"] == "2"
    assert limits["resourceCpuLimit"] == "4" and limits["resourceMemoryLimit"] == "16G"
    tasks = dict(spec["root"]["dag"]["tasks"])
    for component in spec["components"].values():
        tasks |= component.get("dag", {}).get("tasks", {})
    stages = {name: task for name, task in tasks.items() if "cachingOptions" in task and "retryPolicy" in task}
    assert set(stages) == {"check", "search", "sample", "select", "retrain", "evaluate", "export", "report", "report-2"}
    assert all(task["retryPolicy"]["maxRetryCount"] == 3 for task in stages.values())
    uncached = {name for name, task in stages.items() if not task["cachingOptions"].get("enableCache")}
    assert uncached == {"search", "report", "report-2"}


def test_without_options_tasks_ask_for_nothing(tmp_path):
    bare = compiled(tmp_path / "pipeline.yaml", Options())
    assert "resources" not in bare["deploymentSpec"]["executors"]["exec-search"]["container"]


@pytest.mark.parametrize(
    "runner, change, message",
    [
        (
            "vertex",
            {"accelerator_type": "NVIDIA_TESLA_T5", "accelerator_count": 1},
            "NVIDIA_TESLA_T4.*'NVIDIA_TESLA_T5'",
        ),
        ("kubeflow", {"accelerator_type": "NVIDIA_TESLA_T4", "accelerator_count": 1}, "one of nvidia.com/gpu expected"),
        ("local", {"accelerator_type": "nvidia.com/gpu", "accelerator_count": 1}, "this machine's devices"),
        ("", {"accelerator_type": "gpu", "accelerator_count": 1}, "nvidia.com/gpu, NVIDIA_TESLA_K80"),
        ("vertex", {"accelerator_type": "NVIDIA_L4"}, "--accelerator_count: one of 1, 2, 4, 8, 16.*Received: 0"),
        ("vertex", {"accelerator_count": 2}, "--accelerator_type: one of .*Received: ''"),
        ("", {"cpu": "four"}, "--cpu: cores such as '4'.*'four'"),
        ("", {"memory": "16"}, "--memory: .*'16G'.*'16'"),
        ("", {"retries": -1}, "--retries: from 0 to 10.*-1"),
        ("", {"backoff": "1 minute"}, "--backoff: seconds such as '60s'"),
        ("", {"image": "no image"}, "--image: .*NAME:TAG.*'no image'"),
        ("", {"uncached": ("train",)}, "--uncached: stages of check, search.*'train'"),
    ],
)
def test_bad_options_are_told(runner, change, message):
    with pytest.raises(UserError, match=message):
        Options(**change).check(runner)


def test_accelerators_are_those_of_vertex():
    types = pytest.importorskip("google.cloud.aiplatform_v1.types.accelerator_type")
    assert set(VERTEX_ACCELERATORS) == {a.name for a in types.AcceleratorType} - {"ACCELERATOR_TYPE_UNSPECIFIED"}


def test_arguments():
    found = nas_pipeline.arguments(CONFIG, 3, "/scratch")
    assert found["shards"] == ["1/3", "2/3", "3/3"] and found["scratch"] == "/scratch"
    for shards in (0, 501):
        with pytest.raises(UserError, match=f"--num_shards: from 1 to the number of candidates, 500.*{shards}"):
            nas_pipeline.arguments(CONFIG, shards)
    settings = {**vars(CONFIG), "sample": Sample(latency=0.5)}
    with pytest.raises(UserError, match="--num_shards: 1 expected with a bound or budget of latency"):
        nas_pipeline.arguments(type(CONFIG)(**settings), 2)


def command(*arguments, **options):
    line = [sys.executable, "-m", "pipelines.run", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, **options)


def test_compiling_needs_no_tensorflow(tmp_path):
    file = tmp_path / "pipeline.yaml"
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; "
        f"sys.argv = ['run', '--config=configs/digits.py', '--config.search.parameters=0.7', '--compile_to={file}']; "
        "from pipelines import run; run.cli()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"compiled  {file}\n", done.stderr
    parameters = yaml.safe_load(file.read_text())["root"]["inputDefinitions"]["parameters"]
    assert json.loads(parameters["search_config"]["defaultValue"])["search"]["parameters"] == 0.7
    assert parameters["shards"]["defaultValue"] == ["1/2", "2/2"]


MISTAKES = [
    (["--config=configs/digits.py"], 1, "--runner=local, kubeflow or vertex, or --compile_to=FILE expected"),
    (["--runner=local"], 1, "--config=FILE is required, for example --config=configs/digits.py"),
    (["--runner=local", "--config=none.py"], 2, "--config: a Python file expected, such as configs/digits.py"),
    (
        ["--runner=local", "--config=configs/digits.py", "--config.search.el2=3"],
        2,
        "config: no key 'search.el2'; did you mean 'search.ell2'?",
    ),
    (["--runner=kubeflow", "--config=configs/digits.py"], 1, "--host=URL expected: where Kubeflow Pipelines answers"),
    (["--runner=vertex", "--config=configs/digits.py"], 1, "--project=PROJECT and --bucket=gs://BUCKET/FOLDER"),
    (["--compile_to=x.json", "--config=configs/digits.py"], 1, "--compile_to: a file name that ends in .yaml"),
    (["--compile_to=/no/such/x.yaml", "--config=configs/digits.py"], 1, "Received: /no/such/x.yaml (No such file"),
    (["--runner=local", "--config=configs/digits.py", "search"], 1, "no argument expected besides flags"),
    (["--runner=local", "--config=configs/digits.py", "--shard=1/2"], 1, "--shard: --num_shards=N expected"),
    (["--runner=local", "--config=configs/digits.py", "--workdir=WORKDIR"], 1, "holds a run of 'tfnas run'"),
    (["--runner=local", "--config=configs/digits.py", "--workdir=/dev/null/x"], 1, "/dev/null/x: cannot be written"),
]
# All of them in one process, which forks, because importing kfp takes seconds.
_EACH = """
import json, os, sys
from pipelines import run
for arguments in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        sys.argv = ["run", *arguments]
        run.cli()
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""


def test_mistakes_are_told_in_one_line(tmp_path):
    (tmp_path / "manifest.json").touch()
    text = json.dumps([arguments for arguments, _, _ in MISTAKES]).replace("WORKDIR", str(tmp_path))
    line = [sys.executable, "-c", _EACH, text]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert done.stdout == "" and len(said) == 2 * len(MISTAKES), done.stderr
    for i, (arguments, code, message) in enumerate(MISTAKES):
        assert said[2 * i].startswith("tfnas: ") and message in said[2 * i], arguments
        assert said[2 * i + 1] == f"exit {code}", arguments


def test_a_host_that_is_not_there_is_told():
    words = "--host: Kubeflow Pipelines expected at http://127.0.0.1:1. Received: .*Connection refused"
    with pytest.raises(UserError, match=words) as raised:
        run.submit_to_kubeflow(Options(), FIXED, "http://127.0.0.1:1", "kubeflow", "tfnas")
    assert "\n" not in str(raised.value)


def test_vertex_is_not_there_or_refuses(monkeypatch):
    aiplatform = pytest.importorskip("google.cloud.aiplatform")

    def refuse(*arguments, **keywords):
        raise ValueError("no such\nproject")

    with (
        monkeypatch.context() as patched,
        pytest.raises(UserError, match="--runner=vertex: ValueError: no such project"),
    ):
        patched.setattr(aiplatform, "PipelineJob", refuse)
        run.vertex_job(Options(), FIXED, "project", "us-central1", "gs://bucket/tfnas")
    with pytest.raises(UserError, match="--runner=vertex: ValueError: no such project"):
        run._submitted(types.SimpleNamespace(submit=refuse), "")
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform", None)
    monkeypatch.delattr("google.cloud.aiplatform", raising=False)
    with pytest.raises(
        UserError, match=r"--runner=vertex needs google.cloud.aiplatform, not installed: pip install 'tfnas\[vertex\]'"
    ):
        run.vertex_job(Options(), FIXED, "project", "us-central1", "gs://bucket/tfnas")


def test_what_vertex_is_sent():
    pytest.importorskip("google.cloud.aiplatform")
    from google.auth.credentials import AnonymousCredentials

    options = Options(accelerator_type="NVIDIA_L4", accelerator_count=1).check("vertex")
    job = run.vertex_job(options, FIXED, "project", "us-central1", "gs://bucket/tfnas", AnonymousCredentials())
    assert re.fullmatch(r"tfnas-\d{8}-\d{6}", job.job_id)
    sent = job.runtime_config
    assert sent.gcs_output_directory == "gs://bucket/tfnas"
    assert set(sent.parameter_values) == set(FIXED) and list(sent.parameter_values["shards"]) == ["1/2", "2/2"]


def test_dockerfile_copies_what_is_there_and_installs_what_is_pinned():
    text = (ROOT / "pipelines" / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"configs", "pipelines", "tfnas", "pyproject.toml", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    pinned = (ROOT / "constraints.txt").read_text().split()
    assert {"tensorflow", "kfp"} <= {line.partition("==")[0] for line in pinned}
    assert 'RUN python -m pip install --constraint constraints.txt "${TENSORFLOW}" kfp\n' in text
    assert "FROM ${BASE}" in text and "constraints.txt ." in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ".venv" in ignored and not set(copied) & set(ignored)


def test_tf_config_of_the_training_operator(monkeypatch):
    """As the operator makes it of the job: one host a replica, and the key 'environment'."""
    from tfnas.training import distribution

    job = yaml.safe_load((ROOT / "pipelines" / "multi_worker_search.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    name, replicas = job["metadata"]["name"], job["spec"]["tfReplicaSpecs"]
    cluster = {
        kind.lower(): [f"{name}-{kind.lower()}-{i}.default.svc:2222" for i in range(spec["replicas"])]
        for kind, spec in replicas.items()
    }
    for kind, index, place in (("chief", 0, 0), ("worker", 0, 1), ("worker", 2, 3)):
        task = {"cluster": cluster, "task": {"type": kind, "index": index}, "environment": "cloud"}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        found = distribution.cluster()
        assert (found.index, found.count) == (place, 4)
    for spec in replicas.values():
        (container,) = spec["template"]["spec"]["containers"]
        assert container["name"] == "tensorflow" and container["ports"][0]["name"] == "tfjob-port"
        stage, *options = container["command"][1:]
        assert stage == "search" and "--config.distribution=multi_worker" in options
        assert (ROOT / options[0].removeprefix("--config=")).exists()
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"/shared"} and "--workdir=/shared/cifar10_supnet_m" in options


def test_what_stages_print_is_relayed_and_how_they_fail_kept(tmp_path, capsys):
    part, log = nas_pipeline.arguments(CONFIG)["search_config"], io.StringIO()
    with run._relayed(tmp_path, log):
        with handover.task("evaluate", [part]):
            print("evaluate  a line\nand another")
        print("the engine's own")
        with pytest.raises(SystemExit), handover.task("evaluate", [part], shard="1/2"):
            raise UserError("posterior.json: no such file")
    shown = "evaluate  begins\nevaluate  a line\nand another\nevaluate  begins with shard 1/2\n"
    out, error = capsys.readouterr()
    assert log.getvalue() == shown and out.replace("the engine's own\n", "") == shown and error == ""
    assert (tmp_path / "stderr").read_text() == "tfnas: posterior.json: no such file\n"
    assert handover.OUTPUT not in os.environ


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
    assert described["image_shape"] == [8, 8, 1] and len(described["classes"]) == 10
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
