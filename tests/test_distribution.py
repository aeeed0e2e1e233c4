"""The same training on one device, on two replicas and in two processes; workers that go and come back."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SMALL, lines

from tfnas import distribution
from tfnas.errors import UserError

# A network without normalisation, so that the mean over the global batch is all that replicas must agree on.
TRAIN = """
import sys
import numpy as np, keras, tensorflow as tf
devices, precision, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if devices > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * devices
    )
import tfnas
from tfnas import distribution, loop, training
from tfnas.checkpoints import Checkpoints
from tfnas.workdir import Workdir

rng = np.random.default_rng(0)
images = rng.normal(size=(48, 8, 8, 1)).astype("float32")
labels = rng.integers(0, 3, 48)

def batches(first_step, share):
    data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat(2)
    return data.batch(12 // share.replicas).skip(first_step * share.replicas)

training.set_seed(0)
strategy = distribution.strategy("mirrored" if devices > 1 else "one_device")
assert strategy.num_replicas_in_sync == devices
with strategy.scope():
    x = image = keras.Input((8, 8, 1), name="image")
    for name in ("stem", "one", "two"):
        x = keras.layers.Conv2D(6, 3, activation="relu", name=name)(x)
    end = keras.layers.Dense(3, name="end")(keras.layers.GlobalAveragePooling2D(name="mean")(x))
    supernet = tfnas.gate(keras.Model(image, end), ell2=10, num_examples=100, gate_learning_rate=5.0)
    optimizer = keras.optimizers.SGD(0.1, 0.9, nesterov=True)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    supernet.compile(optimizer, loss=training.classification_loss(), auto_scale_loss=False)
    noise = strategy.run(lambda: supernet.gated_layers["one"].relaxed_gates(12 // devices))
    noise = [part.numpy() for part in strategy.experimental_local_results(noise)]
    checkpoints = Checkpoints(Workdir(out), "checkpoints", "key")
    with training.precision(supernet, precision):
        history = loop.train(loop.Step(supernet), supernet, batches, 12, 2, 4, checkpoints, "search")
np.savez(
    out + "/end.npz",
    noise=np.concatenate(noise),
    loss=[record["loss"] for record in history],
    accuracy=[record["accuracy"] for record in history],
    logits=np.concatenate([np.array(layer.drop_logit) for layer in supernet.gated_layers.values()]),
    kernel=np.array(supernet.gated_layers["two"].layer.kernel),
)
"""


def trained(devices, precision, out):
    command = [sys.executable, "-c", TRAIN, str(devices), precision, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out / "end.npz", allow_pickle=False) as end:
        return dict(end)


@pytest.mark.slow
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("mixed_float16", 1e-2)])
def test_two_replicas_train_as_one_device_on_the_same_global_batch(tmp_path, precision, tolerance):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, two = (trained(devices, precision, tmp_path / str(devices)) for devices in (1, 2))
    assert not np.array_equal(two["noise"][:6], two["noise"][6:])
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=tolerance, atol=tolerance, err_msg=name)
    assert one["loss"][1] < one["loss"][0]


class Workers:
    """Processes on 127.0.0.1 that run one stage of the small run together."""

    def __init__(self, paths, log, *more):
        # Ports that are free now; the servers are gone before the workers need them.
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in paths]
        cluster = {"worker": [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]}
        for server in servers:
            server.close()
        tfnas = str(pathlib.Path(sys.executable).parent / "tfnas")
        self.logs = [log / f"{path.name}-{i}-{time.monotonic_ns()}.log" for i, path in enumerate(paths)]
        self.processes = []
        for i, (path, file) in enumerate(zip(paths, self.logs, strict=True)):
            command = [tfnas, "search", *SMALL, f"--workdir={path}", *more]
            task = {"cluster": cluster, "task": {"type": "worker", "index": i}}
            with open(file, "w") as stream:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**os.environ, "TF_CONFIG": json.dumps(task)},
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self):
        try:
            return [process.wait(150) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()


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
    assert len(history) == 6 and history[-1]["loss"] < history[0]["loss"]

    first = Workers([killed, killed], tmp_path)
    deadline = time.monotonic() + 120
    while lines(killed / "search" / "history.jsonl") < 2:
        assert time.monotonic() < deadline and first.processes[1].poll() is None, first.logs[1].read_text()[-3000:]
        time.sleep(0.01)
    first.processes[1].send_signal(signal.SIGKILL)
    codes = first.wait()
    assert codes == [75, -9]
    assert "another of the 2 processes has gone" in first.logs[0].read_text()
    again = Workers([killed, killed], tmp_path)
    assert again.wait() == [0, 0], again.logs[0].read_text()[-3000:]
    assert "goes on after epoch" in again.logs[0].read_text()
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


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "TF_CONFIG: .*expected. Received: '{'"),
        ("[]", "TF_CONFIG: .*expected"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG: .*expected"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}', "the job 'ps'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}', "no task 3 of 'worker'"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=message):
        distribution.cluster()


def test_a_strategy_that_cannot_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match="'multi_worker' needs a TF_CONFIG"):
        distribution.strategy("multi_worker")
    with pytest.raises(UserError, match="no TPU 'local' could be used"):
        distribution.strategy("tpu")
    two = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(two))
    with pytest.raises(UserError, match="'multi_worker' or 'auto' expected, as TF_CONFIG names 2 processes"):
        distribution.strategy("mirrored")


@pytest.mark.slow
def test_workers_that_do_not_see_one_folder_are_told(whole, tmp_path):
    """Worker 1 has a folder of its own, and so no checkpoint."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shutil.copytree(whole, shared)
    (shared / "manifest.json").unlink()
    apart = Workers([shared, own], tmp_path)
    assert set(apart.wait()) <= {1, 75}
    assert "--workdir must be one folder that all of them see" in apart.logs[0].read_text() + apart.logs[1].read_text()
