"""Who works in a folder, tried with processes of their own."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, tfnas_script

from tfnas import config as config_lib
from tfnas.common.errors import UserError
from tfnas.runs import holding, workdir
from tfnas.runs.manifest import Manifest

# Holds a folder until its standard input is closed.
HOLDER = """
import pathlib, sys
from tfnas.runs import holding
folder, group = sys.argv[1:]
with holding.held(pathlib.Path(folder), group):
    print("held", flush=True)
    sys.stdin.read()
"""
# Counts in a file, which only one process at a time may do: read, wait a moment, write.
COUNTER = """
import pathlib, sys, time
from tfnas.common import errors
from tfnas.runs import holding
file, count = pathlib.Path(sys.argv[1]) / "count", int(sys.argv[2])
while count:
    try:
        with holding.held(file.parent):
            before = int(file.read_text())
            time.sleep(0.002)
            file.write_text(str(before + 1))
            count -= 1
    except errors.UserError:
        pass
"""


def started(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@contextlib.contextmanager
def holder(folder, group=""):
    """A process that holds a folder meanwhile."""
    process = started(HOLDER, folder, group)
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def free(folder, group=""):
    """Whether this process could hold it."""
    try:
        with holding.held(folder, group):
            return True
    except UserError:
        return False


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(holding, "_PATIENCE", 0.2)


def test_one_holds_it_and_the_other_is_told_who(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(UserError) as refused, holding.held(tmp_path):
            pass
        assert f"process {process.pid} on {socket.gethostname()} works in it since 20" in str(refused.value)
        assert f"'-c {tmp_path} '" in str(refused.value)  # its command line
        assert not free(tmp_path, "a group")
    assert free(tmp_path)
    assert not list(tmp_path.iterdir())  # nothing is left of a hold


def test_a_process_that_is_killed_holds_nobody_up(tmp_path):
    for group in ("", "a group"):
        with holder(tmp_path, group) as process:
            assert not free(tmp_path)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert (tmp_path / holding.NAME).exists()
            assert free(tmp_path)


def test_a_group_works_side_by_side_and_keeps_others_out(tmp_path):
    with holder(tmp_path, "shards") as first, holder(tmp_path, "shards") as second:
        named = [json.loads(line) for line in (tmp_path / holding.NAME).read_text().splitlines()]
        assert [one["process"] for one in named] == [first.pid, second.pid]
        assert free(tmp_path, "shards") and not free(tmp_path) and not free(tmp_path, "another cluster")
        with (
            pytest.raises(UserError, match=f"process {first.pid} on [^ ]* and 1 more works in it"),
            holding.held(tmp_path),
        ):
            pass
        first.kill()
        first.wait()
        assert free(tmp_path, "shards") and not free(tmp_path)
        # The one who is named is one who works there, not the first who ever did.
        with pytest.raises(UserError, match=f"process {second.pid} on [^ ]* works in it"), holding.held(tmp_path):
            pass
    assert free(tmp_path) and not list(tmp_path.iterdir())


def test_a_process_of_another_machine_is_named_for_nobody_knows_whether_it_is_gone(tmp_path):
    with holder(tmp_path, "shards"), holder(tmp_path, "shards"):
        line, second = (tmp_path / holding.NAME).read_text().splitlines()
        elsewhere = {**json.loads(line), "host": "node-3", "process": 2**22 + 1}  # more than any process's id here
        gone = {**elsewhere, "host": socket.gethostname()}
        more = [json.dumps(one) for one in (gone, elsewhere)]
        (tmp_path / holding.NAME).write_text("\n".join([*more, line, second]) + "\n")
        with pytest.raises(UserError, match="process 4194305 on node-3 and 2 more works in it"), holding.held(tmp_path):
            pass


def test_a_hold_within_a_hold_is_one(tmp_path):
    with holding.held(tmp_path):
        with holding.held(tmp_path), holding.held(tmp_path, "a group"):
            pass
        with holding.held(pathlib.Path(os.path.relpath(tmp_path))):  # the same folder by another name
            assert (tmp_path / holding.NAME).exists()
        probe = started("import sys; sys.argv[0] = 'x'\n" + HOLDER, tmp_path, "")
        assert probe.wait() == 1
        probe.stdin.close(), probe.stdout.close()
    with holder(tmp_path):
        pass


def test_only_one_of_many_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    counters = [started(COUNTER, tmp_path, 25) for _ in range(4)]
    for process in counters:
        process.communicate()
    assert [process.returncode for process in counters] == [0] * 4
    assert (tmp_path / "count").read_text() == "100"
    assert [file.name for file in tmp_path.iterdir()] == ["count"]


def test_what_an_earlier_process_left_and_a_full_disk_are_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / holding.NAME).write_text('{"host": "gone"}\nhalf a li')
    with holder(tmp_path):
        pass

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with holding.held(tmp_path):
        assert (tmp_path / holding.NAME).read_text() == ""
        # Who it is cannot be said, but he is there.
        probe = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path), ""],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert "another process works in it; wait until" in probe.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch, number):
    def none(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    with holding.held(tmp_path), holding.held(tmp_path, "a group"):
        assert not list(tmp_path.iterdir())
    workdir.Workdir(tmp_path).write_json("a.json", 1)


def test_it_is_waited_for_who_lets_go_in_a_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "_PATIENCE", 10.0)
    with holder(tmp_path) as process:
        threading.Timer(0.3, process.stdin.close).start()
        start = time.monotonic()
        assert free(tmp_path) and time.monotonic() - start > 0.1


def test_a_second_run_is_told_who_works_there(tmp_path):
    """By the command line, in one line, and without waiting for TensorFlow; readers are not kept out."""
    with holder(tmp_path) as process:
        done = tfnas_script("run", f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={tmp_path}")
        assert done.returncode == 1 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"tfnas: workdir {tmp_path}: process {process.pid} on ") and "--workdir" in line
        assert workdir.Workdir(tmp_path).manifest() == Manifest()


def test_shards_share_a_folder_and_a_whole_sample_does_not(tmp_path):
    from tfnas.stages import sample

    config = config_lib.Config()
    with holder(tmp_path, sample.SHARDS):
        with pytest.raises(UserError, match="sample needs search's results"):  # it was let in
            sample.run(config, tmp_path, "1/2")
        with pytest.raises(UserError, match="works in it since"):
            sample.run(config, tmp_path)
    with holder(tmp_path), pytest.raises(UserError, match="works in it since"):
        sample.run(config, tmp_path, "1/2")


def test_one_that_reads_and_one_that_tunes(tmp_path):
    """Tune has a folder of its own in the working directory, and each of its trials too."""
    from tfnas.tuning import tuner

    tuned = config_lib.Config(tune=config_lib.Tune(learning_rate=(0.1, 0.2)))
    (tmp_path / tuner.FOLDER).mkdir()
    with holder(tmp_path / tuner.FOLDER), pytest.raises(UserError, match="tune: process .* works in it since"):
        tuner.run(tuned, tmp_path)
    with holder(tmp_path):
        assert workdir.Workdir(tmp_path).manifest().stages == {}


def test_two_pipelines_of_one_folder(tmp_path):
    from pipelines import run
    from pipelines.options import Options

    with holder(tmp_path), pytest.raises(UserError, match="works in it since"):
        run.run_locally(Options(), {}, str(tmp_path))
