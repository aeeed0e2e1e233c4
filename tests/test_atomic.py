"""Folders that change places: readers see the old or the new."""

import pytest

from tfnas import atomic


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
