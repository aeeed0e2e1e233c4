"""Which version of an exported model is served, and what a wrong path is told."""

import pathlib

import pytest

from tfnas.common.errors import UserError
from tfnas.serving import versions


def version(folder):
    """Makes what is taken for a version as long as it is not loaded."""
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()


def test_a_path_without_a_version_is_told_with_the_way_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version(tmp_path / "run/export/digits/1")
    version(tmp_path / "run/export/digits/12")
    version(tmp_path / "two/b/1")
    version(tmp_path / "two/a/3")
    version(tmp_path / "small_model")
    for other in ("run/export/digits/13.part", "run/search/checkpoints/7", "none"):
        (tmp_path / other).mkdir(parents=True)
    assert versions.newest("run/export/digits", "F") == pathlib.Path("run/export/digits/12")
    for path, words in [
        ("run/export/digitz", "'run/export/digitz' is not there"),
        ("small_model/saved_model.pb", "'small_model/saved_model.pb' is not a folder"),
        (
            "run/export/digits/1/",
            "'run/export/digits/1' is itself a version: give the folder above it, 'run/export/digits'",
        ),
        ("run/export", "'run/export' holds no version, but 'digits' does: give 'run/export/digits'"),
        ("run", "'run' holds no version, but 'export/digits' does: give 'run/export/digits'"),
        ("two", "'two' holds no version, but 'a' does: give 'two/a'"),
        ("run/search/checkpoints", "'run/search/checkpoints/7' is not a SavedModel: it has no file 'saved_model.pb'"),
        ("none", "'none' holds no version, a numbered folder with a SavedModel, such as tfnas export writes"),
        (
            "small_model",
            "'small_model' is a SavedModel without a version: move its files into a folder in it, 'small_model/1'",
        ),
    ]:
        with pytest.raises(UserError) as raised:
            versions.newest(path, "--model_base_path")
        assert str(raised.value) == f"--model_base_path: {words}"
    monkeypatch.chdir(tmp_path / "run/export/digits/1")
    with pytest.raises(UserError, match=r"'\.' is itself a version: give the folder above it, '\.\.'$"):
        versions.newest(".", "F")
    assert versions.newest("..", "F") == pathlib.Path("../12")
