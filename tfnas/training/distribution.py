"""Which devices a run trains and ranks on: the `tf.distribute` strategy, and what several processes must agree on."""

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

_LEADERS = ("chief", "master")  # job names of the process that writes the files; without one, worker 0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that TF_CONFIG names, and which of them this one is.

    Attributes:
        index: of this process among those that train, the chief first.
        count: of those that train.
        name: the same in all of them, and in no other cluster; '' for one process.
    """

    index: int = 0
    count: int = 1
    name: str = ""

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes the run's files."""
        return self.index == 0


def cluster() -> Cluster:
    """The cluster of TF_CONFIG, as Kubernetes' training operators and Vertex AI set it; one process without it.

    Raises:
        UserError: if TF_CONFIG is no JSON of a cluster of chief and workers, or this process is none of them.
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
        raise UserError(f"TF_CONFIG: {expected} expected. Received: {text[:200]!r}") from None
    training = [job for job in (*_LEADERS, "worker") if job in counts]
    if others := sorted(set(counts) - set(training)):
        raise UserError(
            f"TF_CONFIG: only chief and workers train here, every one of them alike. Received: the job '{others[0]}'"
        )
    if kind not in training or not 0 <= index < counts[kind]:
        raise UserError(f"TF_CONFIG: its cluster has no task {index} of '{kind}'; it has {counts}")
    before = sum(counts[job] for job in training[: training.index(kind)])
    count = sum(counts.values())
    name = hashlib.sha256(json.dumps(jobs, sort_keys=True).encode()).hexdigest()[:16]
    return Cluster(before + index, count, f"cluster {name}" if count > 1 else "")


@functools.cache
def strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of `config.distribution`, made once in a process.

    With several processes this must come before any other operation of TensorFlow's.

    Args:
        name: 'one_device': the first GPU, or the CPU. 'mirrored': all GPUs of this machine, or all its logical CPUs.
            'multi_worker': all GPUs of all processes that TF_CONFIG names. 'tpu': the TPU that TPU_NAME names, or this
            machine's own. 'auto': multi_worker where TF_CONFIG names several processes, else tpu where there is one,
            mirrored where there are several GPUs, one_device otherwise.

    Raises:
        UserError: if there is no such device, or TF_CONFIG cannot be read.
    """
    several = cluster().count > 1
    if name == "auto":
        name = "multi_worker" if several else "tpu" if _has_tpu() else "mirrored" if _several_gpus() else "one_device"
    if several and name != "multi_worker":
        raise UserError(
            f"distribution: 'multi_worker' or 'auto' expected, as TF_CONFIG names {cluster().count} processes. "
            f"Received: {name!r}"
        )
    if name == "multi_worker":
        if not several:
            raise UserError(
                "distribution: for 'multi_worker', a TF_CONFIG that names several processes expected. "
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
    """The strategy whose devices evaluate candidates side by side; None where this process has one device for that.

    Candidates differ in their shapes, which a TPU cannot take: there its host evaluates them.
    """
    made = strategy(name)
    mirrored = isinstance(made, tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy)
    return made if mirrored and len(made.extended.worker_devices) > 1 else None


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """While it lasts, float32 is multiplied as float32: GPUs otherwise round to TF32, 10 bits after the first.

    For comparisons, whose tolerances are those of float32, and for what they compare with.
    """
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def describe(strategy: tf.distribute.Strategy) -> str:
    """For a message, such as '2 x GPU' or '8 x GPU in 4 processes'."""
    kind = "TPU core"
    if not isinstance(strategy, tf.distribute.TPUStrategy):
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    processes = f" in {cluster().count} processes" if cluster().count > 1 else ""
    return f"{strategy.num_replicas_in_sync} x {kind}{processes}"


def run_stage(
    stage: str, config: Config, path: str | os.PathLike[str], body: Callable[[Config, Workdir], object]
) -> None:
    """Runs a stage's body in every process of the cluster, in the scope of the strategy; only the chief writes.

    All processes see one working directory. They leave the stage together, so that the next one finds its files.

    Args:
        stage: its name.
        config: names the strategy.
        path: the working directory.
        body: given the config, checked, and the working directory, does the stage's work; returns the names of further
            files, or None, as `Workdir.run_stage` wants it.

    Raises:
        UserError: as `Workdir.run_stage` and `strategy`.
        WorkerLostError: if another process of the cluster has gone.
    """
    config = config.check()
    work = Workdir(path, writes=cluster().is_chief)

    def in_scope() -> Iterable[str] | None:
        with strategy(config.distribution).scope():
            return body(config, work)  # type: ignore[return-value]

    with _workers_may_go():
        if work.run_stage(stage, config, in_scope, group=cluster().name):
            with contextlib.suppress(WorkerLostError), _workers_may_go():
                wait_for_all(config.distribution)
                return
            # Whoever passed first may have ended before the others heard of it: that is no loss if all is written.
            if not work.is_current(stage, config):
                raise WorkerLostError(
                    f"another of the {cluster().count} processes has gone before {stage} was finished: start all of "
                    "them again, with the same commands; they go on from the last checkpoint"
                )


@contextlib.contextmanager
def chief_first(name: str) -> Iterator[None]:
    """Lets the chief pass first, and then the other processes: what it prepares on disk, they find.

    Args:
        name: as for `strategy`.
    """
    if not cluster().is_chief:
        wait_for_all(name)
    yield
    if cluster().is_chief:
        wait_for_all(name)


def wait_for_all(name: str) -> None:
    """Returns when every process of the cluster has come here."""
    if cluster().count == 1:
        return
    made = strategy(name)

    @tf.function
    def meet() -> tf.Tensor:
        ones = made.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones([])))
        return made.reduce("MEAN", ones, axis=None)

    float(meet())


def agree(step: int) -> None:
    """Raises UserError unless every process of the cluster goes on from this step, as all that see one folder do."""
    if cluster().count == 1:
        return
    made = tf.distribute.get_strategy()

    @tf.function
    def total() -> tf.Tensor:
        return made.reduce("SUM", made.run(lambda: tf.constant(step, tf.float64)), axis=None)

    mean = float(total()) / made.num_replicas_in_sync
    if mean != step:
        raise UserError(
            f"process {cluster().index} of {cluster().count} goes on from step {step}, and others from another "
            f"(on average {mean:g}): --workdir must be one folder that all of them see"
        )


@contextlib.contextmanager
def _workers_may_go() -> Iterator[None]:
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.CancelledError) as e:
        if cluster().count == 1:
            raise
        reason = str(e).partition("\n")[0][:200]
        raise WorkerLostError(
            f"another of the {cluster().count} processes has gone ({reason}): start all of them again, with the same "
            "commands; they go on from the last checkpoint"
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
    except Exception as error:  # whatever the resolver, the network and the runtime may raise
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"distribution: no TPU '{name}' could be used ({type(error).__name__}: {reason})") from None
    return tf.distribute.TPUStrategy(resolver)
