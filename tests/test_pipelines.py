"""The pipeline: compiled, refused, and submitted as far as that goes without a cluster.

After a change that is meant, write the golden file again: TFNAS_WRITE_GOLDEN=1 pytest tests/test_pipelines.py -k golden
"""

import io
import json
import os
import re
import subprocess
import sys
import types

import processes
import pytest
import yaml
from conftest import ROOT, load_config

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


def test_mistakes_are_told_in_one_line(tmp_path):
    (tmp_path / "manifest.json").touch()
    lines = [[a.replace("WORKDIR", str(tmp_path)) for a in arguments] for arguments, _, _ in MISTAKES]
    for done, (arguments, code, message) in zip(processes.answers("pipelines.run", lines), MISTAKES, strict=True):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), arguments
        assert done.stderr.startswith("tfnas: ") and message in done.stderr, arguments


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
