"""Runs the pipeline, or writes it as YAML.

python -m pipelines.run --runner=local|kubeflow|vertex --config=configs/NAME.py [--config.KEY=VALUE ...]

local     on this machine, offline, in the folder of --workdir; the same command again reuses finished stages
kubeflow  on the Kubeflow Pipelines of --host
vertex    on Vertex AI, in --project, --location and --bucket
With --compile_to=pipeline.yaml it is written, and only run if --runner is given too. docs/pipelines.md has examples.
"""

import builtins
import contextlib
import dataclasses
import datetime
import importlib.util
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from absl import app, flags
from ml_collections import config_flags

from pipelines import nas_pipeline
from pipelines.options import STAGES, Options
from tfnas import cli as command_line
from tfnas import config as config_lib
from tfnas.common import installation, terminal, user_functions
from tfnas.common.errors import UserError, exit_on_error
from tfnas.runs import holding, stage_table
from tfnas.stages import handover

_DEFAULTS = Options()
_RUNNER = flags.DEFINE_enum("runner", None, ["local", "kubeflow", "vertex"], "Where the pipeline runs.")
_COMPILE_TO = flags.DEFINE_string("compile_to", None, "File that the pipeline is written to, as YAML.")
_NUM_SHARDS = flags.DEFINE_integer("num_shards", 2, "Parts that the candidates are evaluated in, side by side.")
_SCRATCH = flags.DEFINE_string(
    "scratch", None, "Folder on a volume that outlives a task, where an interrupted stage resumes. local: its own."
)
_IMAGE = flags.DEFINE_string("image", _DEFAULTS.image, "Image of all tasks, built from pipelines/Dockerfile.")
_ACCELERATOR_TYPE = flags.DEFINE_string(
    "accelerator_type",
    "",
    "Of tasks that train or rank: nvidia.com/gpu on Kubeflow, such as NVIDIA_TESLA_T4 on Vertex.",
)
_ACCELERATOR_COUNT = flags.DEFINE_integer("accelerator_count", 0, "Accelerators of each such task.")
_CPU = flags.DEFINE_string("cpu", "", "Cores of each task that loads TensorFlow, such as 4.")
_MEMORY = flags.DEFINE_string("memory", "", "Memory of each such task, such as 16G.")
_RETRIES = flags.DEFINE_integer("retries", 0, "How often a task that failed is tried again.")
_BACKOFF = flags.DEFINE_string("backoff", _DEFAULTS.backoff, "Before the first retry; doubled before each further one.")
_UNCACHED = flags.DEFINE_list("uncached", list(_DEFAULTS.uncached), "Stages that always run.")
_HOST = flags.DEFINE_string("host", "", "kubeflow: address of its API, such as http://localhost:8080.")
_NAMESPACE = flags.DEFINE_string("namespace", "kubeflow", "kubeflow: namespace of the run.")
_EXPERIMENT = flags.DEFINE_string("experiment", "tfnas", "kubeflow: experiment of the run.")
_PROJECT = flags.DEFINE_string("project", "", "vertex: Google Cloud project.")
_LOCATION = flags.DEFINE_string("location", "us-central1", "vertex: region.")
_BUCKET = flags.DEFINE_string("bucket", "", "vertex: gs://BUCKET/FOLDER for all artifacts.")
_SERVICE_ACCOUNT = flags.DEFINE_string("service_account", "", "vertex: that the tasks run as; empty: the project's.")

_LOG, _ARTIFACTS = "pipeline.log", "artifacts"
_COLOR = re.compile(r"\x1b\[\d*m")


def cli() -> None:
    """python -m pipelines.run."""
    sys.modules["__main__"].__doc__ = __doc__  # what absl prints for --help
    terminal.define_help()
    app.run(main, flags_parser=command_line.parse_flags)


def main(argv: Sequence[str]) -> None:
    """Runs or compiles the pipeline that the flags name; a user's mistake ends with one line and exit code 1."""
    folder = flags.FLAGS.workdir or "runs/pipeline"
    with exit_on_error(folder):
        if len(argv) > 1:
            raise UserError(f"no argument expected besides flags, such as --config=FILE. Received: {argv[1]!r}")
        if flags.FLAGS.shard:
            raise UserError(f"--shard: --num_shards=N expected, all of which run. Received: {flags.FLAGS.shard!r}")
        if not (_RUNNER.value or _COMPILE_TO.value):
            raise UserError("--runner=local, kubeflow or vertex, or --compile_to=FILE expected. Received: neither")
        config = _config()
        options = Options(
            image=_IMAGE.value,
            accelerator_type=_ACCELERATOR_TYPE.value,
            accelerator_count=_ACCELERATOR_COUNT.value,
            cpu=_CPU.value,
            memory=_MEMORY.value,
            retries=_RETRIES.value,
            backoff=_BACKOFF.value,
            uncached=tuple(_UNCACHED.value),
        ).check(_RUNNER.value or "")
        scratch = _SCRATCH.value or ""
        if _RUNNER.value == "local" and _SCRATCH.value is None:
            scratch = os.path.abspath(os.path.join(folder, "scratch"))
        arguments = nas_pipeline.arguments(config, _NUM_SHARDS.value, scratch)
        if _COMPILE_TO.value:
            compile_to(_COMPILE_TO.value, options, arguments)
            print(f"compiled  {_COMPILE_TO.value}")
        if _RUNNER.value == "local":
            run_locally(options, arguments, folder)
        elif _RUNNER.value == "kubeflow":
            print(
                f"submitted {submit_to_kubeflow(options, arguments, _HOST.value, _NAMESPACE.value, _EXPERIMENT.value)}"
            )
        elif _RUNNER.value == "vertex":
            job = vertex_job(options, arguments, _PROJECT.value, _LOCATION.value, _BUCKET.value)
            print(f"submitted {_submitted(job, _SERVICE_ACCOUNT.value)}")


def _config() -> config_lib.Config:
    if flags.FLAGS.config is None:
        raise UserError("--config=FILE is required, for example --config=configs/digits.py")
    user_functions.add_import_folder(_config_folder())
    return config_lib.from_config_dict(flags.FLAGS.config)


def _config_folder() -> str:
    return os.path.dirname(config_flags.get_config_filename(flags.FLAGS["config"])) or os.curdir


def compile_to(file: str, options: Options, arguments: dict[str, Any]) -> None:
    """Writes the pipeline's YAML. Raises UserError for a file name that is not one of YAML, or cannot be written."""
    if not file.endswith((".yaml", ".yml")):
        raise UserError(f"--compile_to: a file name that ends in .yaml expected. Received: {file!r}")
    try:
        nas_pipeline.compile_to(file, options, arguments)
    except OSError as error:
        raise UserError(
            f"--compile_to: a file that can be written expected. Received: {file} ({error.strerror})"
        ) from None


def run_locally(options: Options, arguments: dict[str, Any], folder: str) -> None:
    """Runs the pipeline on this machine, with kfp's own local runner; no container, no network.

    Finished stages are taken from their artifacts in `folder`, interrupted ones resume in `scratch` there. All output
    is in `pipeline.log`; that of the stages is printed too.

    Raises:
        UserError: with the stage's own message, if one fails; if another process runs one in this folder.
    """
    place = pathlib.Path(folder).absolute()
    if (place / stage_table.MANIFEST).exists():
        raise UserError(f"--workdir: {place} holds a run of 'tfnas run': use another, or delete it")
    try:
        place.mkdir(parents=True, exist_ok=True)
        log = open(place / _LOG, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"workdir {place}: cannot be written ({error.strerror})") from None
    with log, holding.held(place):
        _run_in(place, log, options, arguments)


def _run_in(place: pathlib.Path, log: TextIO, options: Options, arguments: dict[str, Any]) -> None:
    from kfp import local

    _let_tasks_import()
    # The report's artifact says where the model is, and a task from the cache leaves none in this run's folder.
    options = dataclasses.replace(options, uncached=(*options.uncached, "report"))
    with tempfile.TemporaryDirectory() as temporary, _relayed(pathlib.Path(temporary), log), _kept_as_it_was(log):
        # About images without Python in their name and about machine sizes, neither of which matters here.
        warnings.simplefilter("ignore")
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(place / _ARTIFACTS),
            workspace_root=tempfile.mkdtemp(dir=temporary),
            enable_caching=True,
        )
        errors = pathlib.Path(temporary) / "stderr"
        try:
            with contextlib.redirect_stdout(_Uncolored(log)):
                nas_pipeline.create_pipeline(options)(**arguments)
        except RuntimeError as error:  # kfp's, for a stage that failed
            reasons = re.findall("^tfnas: (.*)", errors.read_text(), re.MULTILINE)
            unknown = f"{_COLOR.sub('', str(error))} All of its output is in {place / _LOG}"
            raise UserError(reasons[-1] if reasons else unknown) from None
        finally:
            log.write(errors.read_text())
    shutil.rmtree(place / "scratch", ignore_errors=True)
    _print_end(place)


@contextlib.contextmanager
def _relayed(folder: pathlib.Path, log: TextIO) -> Iterator[None]:
    """Prints and logs what tasks write to `folder`/stdout, as they write it; makes `folder`/stderr for their errors."""
    pipe, screen = folder / "stdout", sys.stdout
    os.mkfifo(pipe)
    (folder / "stderr").touch()

    def relay() -> None:
        with open(pipe, encoding="utf-8") as lines:
            for line in lines:
                for stream in (screen, log):
                    stream.write(line)
                    stream.flush()

    reader = threading.Thread(target=relay, daemon=True)
    reader.start()
    os.environ[handover.OUTPUT] = str(folder)
    try:
        with open(pipe, "w"):  # as long as one writer is left, the reader does not end
            yield
    finally:
        reader.join()
        del os.environ[handover.OUTPUT]


class _Uncolored(io.TextIOBase):
    """Writes to a log without the colors that kfp gives its records."""

    def __init__(self, log: TextIO):
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(_COLOR.sub("", text))
        return len(text)

    def flush(self) -> None:
        self._log.flush()


@contextlib.contextmanager
def _kept_as_it_was(log: TextIO) -> Iterator[None]:
    """Restores what kfp replaces in Python, and in parallel loops leaves as another thread's: print and logging."""
    root, printing = logging.getLogger(), builtins.print
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = [logging.StreamHandler(_Uncolored(log))]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        builtins.print = printing
        root.setLevel(level)
        root.handlers[:] = handlers


def _print_end(place: pathlib.Path) -> None:
    """Prints which stages were not repeated, and where the report and the model are.

    The latter have names in `place` that do not change from run to run.
    """
    run = max((place / _ARTIFACTS).glob(f"{nas_pipeline.NAME}-*"))  # its name is the time
    left = {file.parent.name.removesuffix("-2"): file for file in run.rglob("executor_output.json")}
    (page,) = json.loads(left["report"].read_text())["artifacts"]["html"]["artifacts"]
    saved_model = page["metadata"]["saved_model"]
    for stage in STAGES:
        if stage not in left and (stage != "export" or saved_model):
            print(f"{stage:9s} finished before: its artifacts are taken")
    _link(place / "report.html", page["uri"])
    print(f"report    {place / 'report.html'}")
    _link(place / "model", os.path.dirname(saved_model))
    if saved_model:
        version = os.path.basename(saved_model)
        print(f"model     {place / 'model' / version}     (SavedModel; how to serve it: docs/serving.md)")
    else:
        print(f"model     none: the network is not what was asked for: {page['metadata']['reasons']}")


def _link(link: pathlib.Path, target: str) -> None:
    link.unlink(missing_ok=True)
    if target:
        link.symlink_to(os.path.relpath(target, link.parent))


def _let_tasks_import() -> None:
    """Tasks are processes of this Python: they import this tfnas, and the user's functions beside the config file."""
    spec = importlib.util.find_spec("tfnas")
    home = str(pathlib.Path(spec.origin).parents[1])  # type: ignore[union-attr, arg-type]
    for name, path in (("PYTHONPATH", home), (handover.FUNCTIONS, os.path.abspath(_config_folder()))):
        os.environ[name] = os.pathsep.join(filter(None, (path, os.environ.get(name))))


def submit_to_kubeflow(options: Options, arguments: dict[str, Any], host: str, namespace: str, experiment: str) -> str:
    """Starts a run on Kubeflow Pipelines; returns its address.

    Raises:
        UserError: if there is no Kubeflow Pipelines at `host`, or it refuses the run.
    """
    if not host:
        raise UserError(
            "--host=URL expected: where Kubeflow Pipelines answers, such as http://localhost:8080. Received: none"
        )
    import kfp

    # Silences its messages on each retry and the client's greeting: the reason is reported once, below.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with _compiled(options, arguments) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            client = kfp.Client(host=host, namespace=namespace)
            run = client.create_run_from_pipeline_package(
                file, arguments=arguments, run_name=_run_name(), experiment_name=experiment, namespace=namespace
            )
        except Exception as error:  # whatever the client, urllib3 and the server may raise
            raise UserError(f"--host: Kubeflow Pipelines expected at {host}. Received: {_reason(error)}") from None
    return f"{host.rstrip('/')}/#/runs/details/{run.run_id}"


def vertex_job(
    options: Options,
    arguments: dict[str, Any],
    project: str,
    location: str,
    bucket: str,
    credentials: Any = None,
) -> Any:
    """The google.cloud.aiplatform.PipelineJob, not submitted yet.

    Raises:
        UserError: if a flag is missing, google-cloud-aiplatform is not installed, or it refuses the job.
    """
    if not project or not bucket.startswith("gs://"):
        raise UserError(
            "--project=PROJECT and --bucket=gs://BUCKET/FOLDER expected, for the runner vertex. "
            f"Received: {project!r} and {bucket!r}"
        )
    installation.require("vertex", ["google.cloud.aiplatform"], "--runner=vertex")
    from google.cloud import aiplatform

    with _compiled(options, arguments) as file:
        try:
            return aiplatform.PipelineJob(
                display_name=nas_pipeline.NAME,
                template_path=file,
                job_id=_run_name(),
                pipeline_root=bucket,
                parameter_values=arguments,
                project=project,
                location=location,
                credentials=credentials,
            )
        except Exception as error:  # whatever the library, and the search for credentials, may raise
            raise UserError(f"--runner=vertex: {_reason(error)}") from None


def _submitted(job: Any, service_account: str) -> str:
    try:
        job.submit(service_account=service_account or None)
    except Exception as error:  # whatever the library and the service may raise
        raise UserError(f"--runner=vertex: {_reason(error)}") from None
    return job.resource_name


@contextlib.contextmanager
def _compiled(options: Options, arguments: dict[str, Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "pipeline.yaml")
        nas_pipeline.compile_to(file, options, arguments)
        yield file


def _run_name() -> str:
    return f"{nas_pipeline.NAME}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    cli()
