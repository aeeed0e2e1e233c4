"""Fixtures and helpers shared by all tests."""

import contextlib
import gc
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import cheaper
import numpy as np
import processes
import pytest
from processes import ROOT


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def cheaper_graphs():
    """For all tests in this process (see cheaper.py)."""
    cheaper.collection()
    with cheaper.tracing():
        yield


@pytest.fixture(scope="module", autouse=True)
def garbage_of_its_own():
    """What libraries and earlier files have made and kept stays: no garbage collection of this file's looks at it.

    Keras's clear_session collects, and that is before every test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same seeds and the float32 policy."""
    np.random.seed(0)
    if "keras" in sys.modules:
        import keras

        keras.utils.set_random_seed(1)
        keras.mixed_precision.set_global_policy("float32")
        keras.backend.clear_session()


@pytest.fixture(scope="module", autouse=True)
def short_turns():
    """Latencies are measured for milliseconds and not for tenths of a second: hardly any test looks at them.

    In fixtures of a module too, whose runs measure some.
    """
    with pytest.MonkeyPatch.context() as patch:
        if latencies := sys.modules.get("tfnas.graph.latencies"):
            patch.setattr(latencies, "_SECONDS", 0.002)
            patch.setattr(latencies, "_PASSES", 2)
        yield


@pytest.fixture
def eager():
    """Operations one by one: of so few steps, tracing a graph first would take nearly all of the time."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def in_this_process():
    """Exports are reloaded here (see reloading.py)."""
    import reloading

    with reloading.here():
        yield


@pytest.fixture
def one_rival(monkeypatch):
    """Of the importances that retrain compares the search's with, from the same weights, one: with gradients."""
    from tfnas.training import rivals

    monkeypatch.setattr(rivals, "AT_ONCE", ("curvature",))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """Where the bundled digits are prepared once for all tests."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def cifar10_folder():
    """Folder with CIFAR-10 in TFDS's layout, or a skip with the reason."""
    for folder in (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "tensorflow_datasets"):
        if folder and (pathlib.Path(folder) / "cifar10" / "3.0.2" / "dataset_info.json").exists():
            return pathlib.Path(folder)
    pytest.skip("CIFAR-10 is neither in $TFDS_DATA_DIR nor in ../shared/tensorflow_datasets")


def load_config(name, folder="configs"):
    """The checked Config of configs/NAME.py."""
    from tfnas import config

    return config.from_config_dict(config.load_file(ROOT / folder / f"{name}.py"))


def tiny_config(**changed):
    """The checked Config of tests/tiny.py, with the settings changed that are given as section={name: value}."""
    from tfnas import config

    whole = config.load_file(ROOT / "tests" / "tiny.py")
    for name, values in changed.items():
        whole[name].update(values)
    return config.from_config_dict(whole)


def tfnas_script(*arguments, **options):
    """Runs the console script as a user would; returns the finished process."""
    return subprocess.run(
        [str(pathlib.Path(sys.executable).parent / "tfnas"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        **options,
    )


def tfnas_command(*arguments):
    """The same without the wait for TensorFlow's import (see processes.py)."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [pathlib.Path(folder) / name for name in ("stdout", "stderr")]
        process = processes.start_tfnas(arguments, *streams)
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, *(file.read_text() for file in streams))


def random_weights(model, rng):
    """Gives every variable a value that no initializer gives, so that no offset or statistic is 0 or 1 by luck."""
    for variable in model.variables:
        if "moving_variance" in variable.path:
            variable.assign(rng.uniform(0.3, 2.0, variable.shape))
        elif "gamma" in variable.path:
            variable.assign(rng.normal(1.0, 0.5, variable.shape))
        elif any(part in variable.path for part in ("beta", "bias", "moving_mean")):
            variable.assign(rng.normal(0.0, 0.5, variable.shape))


# A run where the network does not matter, through the command line.
TINY = [f"--config={ROOT / 'tests' / 'tiny.py'}"]
# One where it does.
SMALL = [
    *TINY,
    "--config.data.train=train[:1000]",
    "--config.supernet.source=tiny:wide",
    "--config.search.parameters=0.25",
    "--config.search.multiply_adds=0.35",
    "--config.search.warmup_epochs=2",
    "--config.search.latency_device=litert",
    "--config.evaluate.threshold=0.1",
    "--config.evaluate.max_drop=1.0",
    "--config.evaluate.max_parameters=1.0",
]
PUBLISHED = {"ell2": 60.0, "gate_learning_rate": 10.0}  # of search, for the published one
TINY_PUBLISHED = [*TINY, *(f"--config.search.{name}={value}" for name, value in PUBLISHED.items())]
SAMPLED = ("architecture.json", "sample/ranking.json", "sample/candidates.jsonl")


def tfnas_stage(stage, path, *more, settings=SMALL, command=tfnas_command):
    """Runs a stage of a small run, which must succeed; returns what it printed."""
    done = command(stage, *settings, f"--workdir={path}", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_when(stage, path, ready, *more, settings=TINY):
    """Starts a stage and kills it with SIGKILL as soon as `ready()`."""
    process = processes.start_tfnas([stage, *settings, f"--workdir={path}", *more], os.devnull, os.devnull)
    deadline = time.monotonic() + 300
    while not ready():
        assert process.is_alive() and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def lines(file):
    return file.read_text().count("\n") if file.exists() else 0


@contextlib.contextmanager
def killed_after_writing(monkeypatch, prefix):
    """The body, which must end when a file whose name starts so is written to a working directory.

    Yields the patches that end with it.
    """
    from tfnas.runs import workdir

    class KilledError(Exception):
        pass

    write = workdir.Workdir.write

    def write_and_die(self, name, *arguments, **options):
        write(self, name, *arguments, **options)
        if name.startswith(prefix):
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(workdir.Workdir, "write", write_and_die)
        yield patch
