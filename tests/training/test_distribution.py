"""The same training on one device, on two replicas and in two processes; workers that go and come back."""

import contextlib
import json
import shutil
import socket
import time

import numpy as np
import processes
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from conftest import TINY, lines

from tfnas import cli, config
from tfnas.common.errors import UserError, WorkerLostError
from tfnas.runs import stage_table, workdir
from tfnas.training import distribution


@pytest.mark.parametrize("before", [True, False])
def test_full_precision_lasts_as_long_as_it_should(before):
    asked = tf.config.experimental.tensor_float_32_execution_enabled
    tf.config.experimental.enable_tensor_float_32_execution(before)
    try:
        with pytest.raises(InterruptedError), distribution.full_precision():
            assert not asked()
            raise InterruptedError
        assert asked() == before
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)


# A network without normalization, so that the mean over the global batch is all that replicas must agree on.
TRAIN = """
import sys
import numpy as np, keras, tensorflow as tf
devices, precision, out, mode = int(sys.argv[1]), *sys.argv[2:]
if devices > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * devices
    )
import tfnas
from tfnas.runs.checkpoints import Checkpoints
from tfnas.runs.workdir import Workdir
from tfnas.gating.optimizers import GATES
from tfnas.training import distribution, loop, networks
from tfnas.training.distillation import Teacher

rng = np.random.default_rng(0)
images = rng.normal(size=(48, 8, 8, 1)).astype("float32")
labels = rng.integers(0, 3, 48)

def batches(first_step, share):
    mine = 12 // share.processes
    data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat(2).batch(12).skip(first_step)
    part = slice(share.process * mine, (share.process + 1) * mine)
    return data.map(lambda x, y: (x[part], y[part])).unbatch().batch(mine // share.replicas)

networks.set_seed(0)
strategy = distribution.strategy("mirrored" if devices > 1 else "auto")
replicas = strategy.num_replicas_in_sync
assert replicas == devices * distribution.cluster().count
with strategy.scope():
    x = image = keras.Input((8, 8, 1), name="image")
    for name in ("stem", "one", "two"):
        x = keras.layers.Conv2D(6, 3, activation="relu", name=name)(x)
    end = keras.layers.Dense(3, name="end")(keras.layers.GlobalAveragePooling2D(name="mean")(x))
    teacher = None
    if mode == "bounds":
        teacher = Teacher(keras.models.clone_model(keras.Model(image, end)), 0.5, 2.0)
        bounds = {"parameters": 0.5, "multiply_adds": 0.6}
        supernet = tfnas.gate(keras.Model(image, end), steps=6, num_examples=100, noise="example", **bounds)
        optimizer = tfnas.GatedOptimizer(keras.optimizers.SGD(0.1, 0.9, nesterov=True, weight_decay=0.01))
    else:
        supernet = tfnas.gate(keras.Model(image, end), ell2=10, num_examples=100)
        rate = keras.optimizers.schedules.CosineDecay(0.1, 20)
        optimizer = tfnas.GatedOptimizer(keras.optimizers.AdamW(rate, weight_decay=0.01), gate_learning_rate=5.0)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(optimizer, loss=loss, auto_scale_loss=False)
    drawing = supernet.draw if mode == "bounds" else supernet.gated_layers["one"]
    noise = strategy.run(lambda: drawing.relaxed_gates(12 // replicas))
    noise = [part.numpy() for part in strategy.experimental_local_results(noise)]
    checkpoints = Checkpoints(Workdir(out), "checkpoints", "key")
    with networks.precision(supernet, precision):
        history = loop.train(loop.Step(supernet, teacher=teacher), supernet, batches, 12, 2, 4, checkpoints, "search")
np.savez(
    out + "/end.npz",
    noise=np.concatenate(noise),
    loss=[record["loss"] for record in history],
    accuracy=[record["accuracy"] for record in history],
    logits=np.concatenate([np.array(v) for v in supernet.trainable_variables if v.name in GATES]),
    kernel=np.array(next(v for v in supernet.trainable_variables if v.path.endswith("two/kernel"))),
    multipliers=np.array(supernet.learning.multipliers) if mode == "bounds" else np.zeros(2),
)
"""


def trained(devices, precision, out, mode="ell2", **environment):
    """Starts a training; returns a function that waits for its end, and gives its figures."""
    out.mkdir()
    arguments, log = [devices, precision, out, mode], out / "log"
    process = processes.start(TRAIN, arguments, log, log, **environment)

    def end():
        process.join(150)
        assert process.exitcode == 0, log.read_text()[-3000:]
        with np.load(out / "end.npz", allow_pickle=False) as figures:
            return dict(figures)

    return end


def assert_same(ours, expected, tolerance, but=()):
    for name in set(expected) - set(but):
        np.testing.assert_allclose(ours[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ell2", "bounds"])
def test_replicas_and_workers_train_as_one_device_on_the_same_global_batch(tmp_path, mode):
    one = trained(1, "float32", tmp_path / "one", mode)()
    assert one["loss"][1] < one["loss"][0] or mode == "bounds"  # whose multipliers rise meanwhile
    assert (one["multipliers"] == 0).all() == (mode == "ell2")
    two = trained(2, "float32", tmp_path / "two", mode)()
    assert not np.array_equal(two["noise"][:6], two["noise"][6:])
    assert_same(two, one, 1e-5)
    # Each worker sees its own noise only; together they have that of one device too.
    cluster = {"worker": free_addresses(2)}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(2)]
    ends = [trained(1, "float32", tmp_path / f"worker{i}", mode, TF_CONFIG=json.dumps(t)) for i, t in enumerate(tasks)]
    workers = [end() for end in ends]
    for worker in workers:
        assert_same(worker, one, 1e-5, but=["noise"])
    np.testing.assert_array_equal(np.concatenate([worker["noise"] for worker in workers]), one["noise"])


@pytest.mark.slow
def test_two_replicas_scale_their_loss_as_one_device(tmp_path):
    one, two = (trained(devices, "mixed_float16", tmp_path / str(devices))() for devices in (1, 2))
    assert_same(two, one, 1e-2)


FIT = """
import sys
import numpy as np, keras, tensorflow as tf
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
import tfnas
strategy = tf.distribute.MirroredStrategy()
with strategy.scope():
    x = image = keras.Input((8, 8, 1))
    for name in ("stem", "one"):
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, name=name)(x)))
    end = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(x))
    supernet = tfnas.gate(keras.Model(image, end), parameters=0.5, steps=8, num_examples=100)
    supernet.compile("sgd", loss="mse")
    images, labels = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32"), np.zeros((16, 1), "float32")
    history = supernet.fit(images, labels, batch_size=4, epochs=2, verbose=0).history

def of_each(function):
    return np.array([np.array(value) for value in strategy.experimental_local_results(strategy.run(function))])

np.savez(
    sys.argv[1] + "/end.npz",
    steps=of_each(lambda: tf.identity(supernet.learning.steps_taken)),
    multipliers=of_each(lambda: tf.identity(supernet.learning.multipliers)),
    logits=of_each(lambda: tf.identity(supernet.draw.keep_logit)),
    noise=of_each(lambda: supernet.draw.relaxed_gates(2)),
    share=history["parameters"],
)
"""


@pytest.mark.slow
def test_replicas_draw_once_each_and_agree_on_the_multipliers(tmp_path):
    """With one draw for the batch, gates are in the normalizations' scale, and training is not that of one device."""
    log = tmp_path / "log"
    process = processes.start(FIT, [tmp_path], log, log)
    process.join(150)
    assert process.exitcode == 0, log.read_text()[-3000:]
    with np.load(tmp_path / "end.npz", allow_pickle=False) as end:
        assert end["steps"].tolist() == [8, 8]  # 4 an epoch
        for name in ("multipliers", "logits"):
            np.testing.assert_array_equal(*end[name])
        assert end["noise"].shape == (2, 1, 8) and not np.array_equal(*end["noise"])
        assert end["share"][1] < end["share"][0] < 1


def free_addresses(count):
    """Ports of this machine that are free now; the servers are gone before they are needed."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    return addresses


class Workers:
    """Processes on 127.0.0.1 that run a search of the tiny run together."""

    def __init__(self, paths, log, *more):
        cluster = {"worker": free_addresses(len(paths))}
        self.logs = [log / f"{path.name}-{i}-{time.monotonic_ns()}.log" for i, path in enumerate(paths)]
        self.processes = []
        for i, (path, file) in enumerate(zip(paths, self.logs, strict=True)):
            task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}})
            arguments = ["search", *TINY, f"--workdir={path}", *more]
            self.processes.append(processes.start_tfnas(arguments, file, file, TF_CONFIG=task))

    def wait(self):
        """Their exit codes; None for one that had to be ended."""
        for process in self.processes:
            process.join(150)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two workers find who are left in peace."""
    logs = tmp_path_factory.mktemp("workers")
    undisturbed = Workers([logs / "whole"] * 2, logs)
    assert undisturbed.wait() == [0, 0], undisturbed.logs[0].read_text()[-3000:]
    return logs / "whole"


@pytest.mark.slow
def test_two_workers_search_and_go_on_after_a_kill(whole, tmp_path):
    killed = tmp_path / "killed"
    history = [json.loads(line) for line in (whole / "search" / "history.jsonl").read_text().splitlines()]
    assert len(history) == 6 and history[-1]["metrics"]["accuracy"] > history[0]["metrics"]["accuracy"]

    first = Workers([killed, killed], tmp_path)
    deadline = time.monotonic() + 120
    while lines(killed / "search" / "history.jsonl") < 2:
        assert time.monotonic() < deadline and first.processes[1].is_alive(), first.logs[1].read_text()[-3000:]
        time.sleep(0.01)
    first.processes[1].kill()
    codes = first.wait()
    assert codes == [75, -9]
    assert "another of the 2 processes has stopped" in first.logs[0].read_text()
    again = Workers([killed, killed], tmp_path)
    assert again.wait() == [0, 0], again.logs[0].read_text()[-3000:]
    assert "resumes after epoch" in again.logs[0].read_text()
    assert (killed / "posterior.json").read_bytes() == (whole / "posterior.json").read_bytes()


@pytest.mark.parametrize(
    "cluster, task, expected",
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), (1, 2)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("worker", 1), (2, 3)),
        ({"worker": ["b:1", "c:1"], "chief": ["a:1"]}, ("chief", 0), (0, 3)),
        ({"master": ["a:1"], "worker": ["b:1"]}, ("worker", 0), (1, 2)),
        ({}, ("worker", 0), (0, 1)),
    ],
)
def test_a_process_knows_its_place(monkeypatch, cluster, task, expected):
    value = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}, "environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    found = distribution.cluster()
    assert (found.index, found.count) == expected and found.is_chief == (expected[0] == 0)
    # All of a cluster hold a folder by one name, which no other cluster has.
    others = {"cluster": cluster, "task": {"type": list(cluster)[-1], "index": 0}} if cluster else value
    monkeypatch.setenv("TF_CONFIG", json.dumps(others))
    assert distribution.cluster().name == found.name and bool(found.name) == (expected[1] > 1)
    monkeypatch.setenv("TF_CONFIG", json.dumps(others).replace(":1", ":2"))
    assert distribution.cluster().name != found.name or not found.name


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections' reading of a config file
@pytest.mark.parametrize("index", [0, 1])
def test_only_the_chief_claims_a_folder_and_does_what_needs_no_training(monkeypatch, tmp_path, index):
    value = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    ran = []
    monkeypatch.setattr(cli, "_run_stage", lambda stage, config, work: ran.append(stage))
    monkeypatch.setattr(cli, "_blessed", lambda work: True)
    monkeypatch.setattr(cli, "_print_summary", lambda work, config: ran.append("end"))
    with flagsaver.as_parsed(config=str(processes.ROOT / "configs" / "digits.py"), workdir=str(tmp_path), shard=""):
        cli._run(["run"])
    stages = list(stage_table.STAGES)
    assert ran == ([*stages, "end"] if index == 0 else ["search", "sample", "retrain"])
    assert (tmp_path / stage_table.MANIFEST).exists() == (index == 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "TF_CONFIG: expected .*Received: '{'"),
        ("[]", "TF_CONFIG: expected"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG: expected"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}', "the job 'ps'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}', "no task 3 of 'worker'"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=message):
        distribution.cluster()


def test_a_strategy_that_cannot_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match="'multi_worker' needs a TF_CONFIG .* Received: none"):
        distribution.strategy("multi_worker")
    with pytest.raises(UserError, match="TPU 'local' cannot be used"):
        distribution.strategy("tpu")
    two = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(two))
    with pytest.raises(UserError, match="'multi_worker' or 'auto'.* 2 processes"):
        distribution.strategy("mirrored")


@pytest.mark.parametrize("finished", [True, False])
def test_a_process_that_ends_first_is_missed_only_if_the_stage_is_not_whole(monkeypatch, tmp_path, finished):
    """At the end all wait for all, and one may have gone before another has heard of the last of them."""

    def gone(name):
        raise tf.errors.UnavailableError(None, None, "Socket closed")

    def body(config, work):
        for name in stage_table.STAGES["search"].outputs:
            work.write(name, lambda path: path.write_text("x"))

    two = distribution.Cluster(0, 2)
    monkeypatch.setattr(distribution, "cluster", lambda: two)
    monkeypatch.setattr(distribution, "strategy", lambda name: tf.distribute.get_strategy())
    monkeypatch.setattr(distribution, "wait_for_all", gone)
    if not finished:
        monkeypatch.setattr(workdir.Workdir, "is_current", lambda self, stage, config: False)
    with contextlib.nullcontext() if finished else pytest.raises(WorkerLostError, match="before search was finished"):
        distribution.run_stage("search", config.Config(), tmp_path, body)


@pytest.mark.slow
def test_workers_that_do_not_see_one_folder_are_told(whole, tmp_path):
    """Worker 1 has a folder of its own, and so no checkpoint."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shutil.copytree(whole, shared)
    (shared / "manifest.json").unlink()
    apart = Workers([shared, own], tmp_path)
    assert set(apart.wait()) <= {1, 75}
    logs = apart.logs[0].read_text() + apart.logs[1].read_text()
    assert "--workdir must be one folder that all of them share" in logs
