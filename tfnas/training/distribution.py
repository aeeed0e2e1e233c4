"""The `tf.distribute` strategy of a run, and the coordination of several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from tfnas.common.errors import UserError, WorkerLostError
from tfnas.config import Config
from tfnas.runs.workdir import Workdir

_LEADERS = ("chief", "master")  # jobs of the process that writes the files; worker 0 without them


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that TF_CONFIG names, and the index of this one.

    Attributes:
        index: index of this process among those that train, the chief first.
        count: number of processes that train.
        name: unique name of the cluster, the same in all of its processes; '' for a single process.
    """

    index: int = 0
    count: int = 1
    name: str = ""

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes the run's files."""
        return self.index == 0


def cluster() -> Cluster:
    """Returns the cluster of TF_CONFIG, which Kubernetes' training operators and Vertex AI set; one process without it.

    Raises:
        UserError: if TF_CONFIG is not JSON of a cluster of chief and workers that includes this process.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return Cluster()
    expected = '\'{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}\''
    try:
        value = json.loads(text)
        jobs = value.get("cluster") or {}
        if not jobs:
            return Cluster()
        counts = {job: len(addresses) for job, addresses in jobs.items()}
        kind, index = value["task"]["type"], int(value["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"TF_CONFIG: expected {expected}. Received: {text[:200]!r}") from None
    training = [job for job in (*_LEADERS, "worker") if job in counts]
    if others := sorted(set(counts) - set(training)):
        raise UserError(f"TF_CONFIG: only the jobs chief and worker are supported. Received: the job '{others[0]}'")
    if kind not in training or not 0 <= index < counts[kind]:
        raise UserError(f"TF_CONFIG: its cluster has no task {index} of '{kind}'; it has {counts}")
    before = sum(counts[job] for job in training[: training.index(kind)])
    count = sum(counts.values())
    name = hashlib.sha256(json.dumps(jobs, sort_keys=True).encode()).hexdigest()[:16]
    return Cluster(before + index, count, f"cluster {name}" if count > 1 else "")


@functools.cache
def strategy(name: str) -> tf.distribute.Strategy:
    """Creates the strategy of `config.distribution`, once per process.

    With several processes, it must be created before any TensorFlow operation runs.

    Args:
        name: 'one_device': the first GPU, or the CPU. 'mirrored': all GPUs of this machine, or all its logical CPUs.
            'multi_worker': all GPUs of all processes that TF_CONFIG names. 'tpu': the TPU that TPU_NAME names, or this
            machine's own. 'auto': multi_worker if TF_CONFIG names several processes, else tpu if there is one, mirrored
            if there are several GPUs, one_device otherwise.

    Raises:
        UserError: if there is no such device, or TF_CONFIG cannot be read.
    """
    several = cluster().count > 1
    if name == "auto":
        name = "multi_worker" if several else "tpu" if _has_tpu() else "mirrored" if _several_gpus() else "one_device"
    if several and name != "multi_worker":
        raise UserError(
            f"distribution: must be 'multi_worker' or 'auto', because TF_CONFIG names {cluster().count} processes. "
            f"Received: {name!r}"
        )
    if name == "multi_worker":
        if not several:
            raise UserError(
                "distribution: 'multi_worker' needs a TF_CONFIG that names several processes. "
                f"Received: {'one of a single process' if 'TF_CONFIG' in os.environ else 'none'}"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def ranking_strategy(name: str) -> tf.distribute.Strategy | None:
    """Returns the strategy whose devices evaluate candidates in parallel, or None if this process has only one device.

    Candidates differ in shape, which a TPU does not support: there, the host evaluates them.
    """
    made = strategy(name)
    mirrored = isinstance(made, tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy)
    return made if mirrored and len(made.extended.worker_devices) > 1 else None


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Temporarily disables TF32, to which GPUs otherwise round float32 products (10 bits of mantissa).

    For comparisons with the tolerances of float32.
    """
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def describe(strategy: tf.distribute.Strategy) -> str:
    """Describes a strategy, for example '2 x GPU' or '8 x GPU in 4 processes'."""
    kind = "TPU core"
    if not isinstance(strategy, tf.distribute.TPUStrategy):
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    processes = f" in {cluster().count} processes" if cluster().count > 1 else ""
    return f"{strategy.num_replicas_in_sync} x {kind}{processes}"


def run_stage(
    stage: str, config: Config, path: str | os.PathLike[str], body: Callable[[Config, Workdir], object]
) -> None:
    """Runs a stage's body in every process of the cluster, in the scope of the strategy; only the chief writes.

    All processes see one working directory. They finish the stage together, so that the next one finds its files.

    Args:
        stage: name of the stage.
        config: settings, which include the strategy.
        path: path of the working directory.
        body: function of the checked config and the working directory that does the work of the stage; returns the
            names of further files, or None, as for `Workdir.run_stage`.

    Raises:
        UserError: as `Workdir.run_stage` and `strategy`.
        WorkerLostError: if another process of the cluster has stopped.
    """
    config = config.check()
    work = Workdir(path, writes=cluster().is_chief)

    def in_scope() -> Iterable[str] | None:
        with strategy(config.distribution).scope():
            return body(config, work)  # type: ignore[return-value]

    with _detect_lost_workers():
        if work.run_stage(stage, config, in_scope, group=cluster().name):
            with contextlib.suppress(WorkerLostError), _detect_lost_workers():
                wait_for_all(config.distribution)
                return
            # The first process to finish may end before the others notice; this is fine if the stage is complete.
            if not work.is_current(stage, config):
                raise WorkerLostError(
                    f"another of the {cluster().count} processes has stopped before {stage} was finished: start all of "
                    "them again, with the same commands; they resume from the last checkpoint"
                )


@contextlib.contextmanager
def chief_first(name: str) -> Iterator[None]:
    """Lets the chief run first, so that the other processes find what it prepares on disk.

    Args:
        name: name of the strategy, as for `strategy`.
    """
    if not cluster().is_chief:
        wait_for_all(name)
    yield
    if cluster().is_chief:
        wait_for_all(name)


def wait_for_all(name: str) -> None:
    """Waits until every process of the cluster has called this function."""
    if cluster().count == 1:
        return
    made = strategy(name)

    @tf.function(autograph=False)
    def meet() -> tf.Tensor:
        ones = made.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones([])))
        return made.reduce("MEAN", ones, axis=None)

    float(meet())


def agree(step: int) -> None:
    """Raises UserError unless all processes of the cluster resume from the same step, as they do in a shared folder."""
    if cluster().count == 1:
        return
    made = tf.distribute.get_strategy()

    @tf.function(autograph=False)
    def total() -> tf.Tensor:
        return made.reduce("SUM", made.run(lambda: tf.constant(step, tf.float64)), axis=None)

    mean = float(total()) / made.num_replicas_in_sync
    if mean != step:
        raise UserError(
            f"process {cluster().index} of {cluster().count} resumes from step {step}, and others from another "
            f"(on average {mean:g}): --workdir must be one folder that all of them share"
        )


@contextlib.contextmanager
def _detect_lost_workers() -> Iterator[None]:
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.CancelledError) as e:
        if cluster().count == 1:
            raise
        reason = str(e).partition("\n")[0][:200]
        raise WorkerLostError(
            f"another of the {cluster().count} processes has stopped ({reason}): start all of them again, with the "
            "same commands; they resume from the last checkpoint"
        ) from None


def _several_gpus() -> bool:
    return len(tf.config.list_physical_devices("GPU")) > 1


def _has_tpu() -> bool:
    return bool(os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"))


def _tpu() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver, the network and the runtime may raise anything
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"distribution: TPU '{name}' cannot be used ({type(error).__name__}: {reason})") from None
    return tf.distribute.TPUStrategy(resolver)
