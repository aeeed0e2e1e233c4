import errno
import os

import numpy as np
import processes
import pytest
from evaluations import A, B, figures, write

from tfnas.common.errors import UserError
from tfnas.ranking.evaluation_log import Evaluations


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "e.jsonl"
    write(path)
    with Evaluations(path, "run") as kept:
        assert (kept.known(A), kept.known(B), kept.known("c" * 64), kept.count) == (9, 3, 0, 3)
        found = kept.read(A, 7)
        expected = figures(np.arange(7, dtype=np.float32) / 7)
        assert list(found) == list(expected)
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name])
            assert values.dtype == np.float32


def test_a_line_cut_short_is_dropped_wherever_it_is_cut(tmp_path):
    path = tmp_path / "e.jsonl"
    write(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        with Evaluations(path, "run") as kept:
            assert kept.known(A) == 5
            kept.append(A, 5, figures(np.arange(5, 9, dtype=np.float32) / 7))
        assert path.read_bytes() == whole


def test_a_first_line_cut_short_begins_again(tmp_path):
    path = tmp_path / "e.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:10])
    with Evaluations(path, "run") as kept:
        assert kept.count == 0
    write(path)
    with Evaluations(path, "run") as kept:
        assert kept.known(A) == 9


def test_an_altered_line_is_refused(tmp_path):
    path = tmp_path / "e.jsonl"
    write(path)
    path.write_bytes(path.read_bytes().replace(b'"start": 5', b'"start": 6'))
    with pytest.raises(
        UserError, match=r"e.jsonl: line 4 was altered, delete the file to rank again \(its checksum differs\)"
    ):
        Evaluations(path, "run")


def test_another_runs_file_is_begun_again_and_another_runs_shard_refused(tmp_path):
    path, shard = tmp_path / "e.jsonl", tmp_path / "1-of-2.jsonl"
    write(path, "other run")
    write(shard, "other run")
    with Evaluations(path, "run") as kept:
        assert kept.count == 0
    with pytest.raises(UserError, match="1-of-2.jsonl: contains evaluations of another run"):
        Evaluations(path, "run", [shard])


def test_files_that_overlap_are_read_as_one(tmp_path):
    path, shard = tmp_path / "e.jsonl", tmp_path / "1-of-2.jsonl"
    for mine, theirs in (([(A, 0, 3), (A, 3, 6)], [(A, 0, 5)]), ([(A, 0, 5), (A, 5, 4)], [(A, 0, 3), (A, 3, 1)])):
        for file, entries in ((path, mine), (shard, theirs)):
            file.unlink(missing_ok=True)
            write(file, entries=entries)
        with Evaluations(path, "run", [shard]) as kept:
            assert kept.known(A) == 9
            for name, values in figures(np.arange(9, dtype=np.float32) / 7).items():
                np.testing.assert_array_equal(kept.read(A, 9)[name], values)


def test_shards_are_read_and_left_as_they_are(tmp_path):
    path, shard = tmp_path / "e.jsonl", tmp_path / "1-of-2.jsonl"
    write(path, entries=[(B, 0, 3)])
    write(shard, entries=[(A, 0, 5)])
    cut = shard.read_bytes() + b"0000 cut sho"
    shard.write_bytes(cut)
    with Evaluations(path, "run", [shard]) as kept:
        assert (kept.known(A), kept.known(B)) == (5, 3)
        kept.append(A, 5, figures(np.ones(2, np.float32)))
        assert kept.read(A, 7)["loss"].tolist() == pytest.approx([0, 1 / 7, 2 / 7, 3 / 7, 4 / 7, 1, 1])
    assert shard.read_bytes() == cut


# Appends evaluations of an architecture of its own once all others are ready; the process id is one that all have.
# Lines are of up to 40 kB: longer than a pipe's, a page's and a stream's buffer.
WRITTEN_BY_ITSELF = """
import os, pathlib, sys, time
import numpy as np
from tfnas.ranking.evaluation_log import Evaluations
os.getpid = lambda: 7
path, ready, writer, writers, count = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:])
digest = f"{writer:064x}"
with Evaluations(path, "run") as kept:
    (ready / str(writer)).touch()
    while len(os.listdir(ready)) < writers:
        time.sleep(0.001)
    for i in range(count):
        kept.append(digest, kept.known(digest), {"loss": np.full(1 + 1000 * (i % 8), writer + 0.5, "f4")})
        assert (kept.read(digest, kept.known(digest))["loss"] == writer + 0.5).all()
"""


def digest_of(writer):
    return f"{writer:064x}"


def test_what_several_processes_append_to_one_file_is_whole(tmp_path):
    path, writers, count = tmp_path / "e.jsonl", 6, 40
    # Begun by a process that was killed in the middle of its last line.
    write(path)
    with open(path, "ab") as file:
        file.write(b"0000 a line cut sho")
    ready, out = tmp_path / "ready", tmp_path / "out"
    ready.mkdir()
    begun = [processes.start(WRITTEN_BY_ITSELF, [path, ready, i, writers, count], out, out) for i in range(writers)]
    for process in begun:
        process.join(60)
    assert [process.exitcode for process in begun] == [0] * writers, out.read_text()
    assert path.read_bytes().count(b"\n") == 1 + 3 + writers * count
    with Evaluations(path, "run") as kept:  # which refuses a line that is not as it was written
        for i in range(writers):
            known = sum(1 + 1000 * (j % 8) for j in range(count))
            assert kept.known(digest_of(i)) == known and (kept.read(digest_of(i), known)["loss"] == i + 0.5).all()
        assert kept.known(A) == 9


def test_a_line_that_another_process_left_unfinished_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "e.jsonl"
    with Evaluations(path, "run") as kept:
        kept.append(A, 0, figures(np.zeros(2, np.float32)))
        with open(path, "ab") as file:
            file.write(b"0000 killed in the midd")
        kept.append(A, 2, figures(np.ones(2, np.float32)))
        assert kept.read(A, 4)["loss"].tolist() == [0, 0, 1, 1]
    with Evaluations(path, "run") as kept:
        assert kept.known(A) == 4


def test_who_still_appends_to_another_runs_file_keeps_that_to_itself(tmp_path):
    path = tmp_path / "e.jsonl"
    with Evaluations(path, "old") as old:
        old.append(A, 0, figures(np.zeros(2, np.float32)))
        write(path, "run")
        old.append(A, 2, figures(np.ones(2, np.float32)))
        assert old.read(A, 4)["loss"].tolist() == [0, 0, 1, 1]
    with Evaluations(path, "run") as kept:
        assert (kept.known(A), kept.known(B)) == (9, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["e.jsonl"]


def test_a_file_system_without_locks_is_written_too(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    path = tmp_path / "e.jsonl"
    write(path)
    with open(path, "ab") as file:
        file.write(b"0000 cut")
    write(path, entries=[(B, 3, 2)])
    with Evaluations(path, "run") as kept:
        assert (kept.known(A), kept.known(B)) == (9, 5)


def test_a_full_disk_leaves_the_lines_before(tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    write(path)
    before, real = path.read_bytes(), os.write
    room = [30]

    def full(file, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, room[0] = room[0], 0
        return real(file, data[:taken])

    with Evaluations(path, "run") as kept:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            kept.append(A, 9, figures(np.ones(2, np.float32)))
    assert path.read_bytes() == before
