"""Folders that change places: readers see the old or the new."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from tfnas.common import atomic
from tfnas.runs import workdir

# Is killed before it renames for the n-th time, on a file system that cannot exchange two folders.
KILLED = """
import os, pathlib, signal, sys
from tfnas.common import atomic
source, target, last = sys.argv[1:]
rename, calls = os.rename, []
def renamed(*names):
    calls.append(names)
    if len(calls) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
os.rename, atomic._exchanged = renamed, lambda one, other: False
atomic.replace(pathlib.Path(source), pathlib.Path(target))
"""


def folder(path, content):
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text(content)
    return path


def content(path):
    return (path / "inner" / "file").read_text()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_anothers_place(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    new, old = folder(tmp_path / "aside", "new"), folder(tmp_path / "1", "old")
    if can_exchange:  # in one step, in which nothing else is renamed
        monkeypatch.setattr(atomic.os, "rename", None)
    atomic.replace(new, old)
    assert (content(old), content(new)) == ("new", "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "aside"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_is_not_there_yet_and_files(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    atomic.replace(folder(tmp_path / "aside", "new"), tmp_path / "1")
    assert content(tmp_path / "1") == "new" and not (tmp_path / "aside").exists()
    for text in ("one", "other"):
        (tmp_path / "aside").write_text(text)
        atomic.replace(tmp_path / "aside", tmp_path / "labels.txt")
        assert (tmp_path / "labels.txt").read_text() == text


def test_the_old_one_stays_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    new, old = folder(tmp_path / "aside", "new"), folder(tmp_path / "1", "old")
    with pytest.raises(FileNotFoundError):
        atomic._exchanged(tmp_path / "not-there", old)
    rename, calls = atomic.os.rename, []

    def fails(*names):
        calls.append(names)
        if len(calls) == 2:
            raise PermissionError(13, "no")
        rename(*names)

    monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(atomic.os, "rename", fails)
    with pytest.raises(PermissionError):
        atomic.replace(new, old)
    assert (content(old), content(new)) == ("old", "new") and len(calls) == 3


@pytest.mark.parametrize("last, served", [(1, "old"), (2, "old"), (3, "new")])
def test_what_was_served_is_not_lost_with_a_process_killed_between_two_renames(tmp_path, last, served):
    served_at = tmp_path / "export" / "digits"
    new, old = folder(served_at / f"{atomic.TEMPORARY}export-x" / "1", "new"), folder(served_at / "1", "old")
    arguments = [sys.executable, "-c", KILLED, str(new), str(old), str(last)]
    killed = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert old.exists() == (last != 2)
    workdir.Workdir(tmp_path)  # as any command begins
    assert content(old) == served
    assert [path.name for path in served_at.iterdir()] == ["1"]


def test_a_folder_set_aside_is_no_obstacle_to_the_next(tmp_path):
    """Where no locks are, nothing is tidied up before."""
    before = folder(tmp_path / f"{atomic.SET_ASIDE}1", "old")
    for there in (False, True):
        if there:
            folder(before, "oldest")
        new = folder(tmp_path / f"aside{there}", "new")
        atomic.replace(new, tmp_path / "1")
        assert content(tmp_path / "1") == "new" and not before.exists()
        assert content(new) == ("new" if there else "old")
