"""Missing and old packages, extras, and Keras's backend are reported in one line, with what to do."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, tfnas_script

from tfnas.common import installation
from tfnas.common.errors import InstallationError, UserError

REQUIRED = [
    "absl-py>=2.1",
    "keras>=3.12",
    "tensorflow>=2.18",
    "tensorflow-metadata!=1.21.0",
    'kfp>=2.17; extra == "kfp"',
]
GOOD = {"absl-py": "2.1.0", "keras": "3.12.0", "tensorflow": "2.18.1", "tensorflow-metadata": "1.17.3"}


@pytest.fixture
def installed(monkeypatch):
    """What is installed: a dict of versions, to be changed by the test."""
    versions = dict(GOOD)

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRED)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_packages_that_are_recent_enough(installed):
    installation.check()
    installed.update({"keras": "4.0.0.dev20261101", "absl-py": "2.10", "tensorflow": "2.21.0+local.1"})
    installation.check()


@pytest.mark.parametrize("name", ["tensorflow-cpu", "tf-nightly"])
def test_tensorflow_by_another_name(installed, name):
    del installed["tensorflow"]
    installed[name] = "2.20.0"
    installation.check()
    installed[name] = "2.17.1"
    with pytest.raises(
        ImportError, match=r"^packages missing or too old: tensorflow 2.17.1: pip install 'tensorflow>=2.18'$"
    ):
        installation.check()


def test_missing_and_old_packages_have_one_command(installed):
    del installed["absl-py"], installed["tensorflow-metadata"]
    installed["keras"] = "3.9.2"
    with pytest.raises(InstallationError) as raised:
        installation.check()
    assert str(raised.value) == (
        "packages missing or too old: absl-py missing, keras 3.9.2, tensorflow-metadata missing: "
        "pip install 'absl-py>=2.1' 'keras>=3.12' 'tensorflow-metadata!=1.21.0'"
    )


def test_sources_that_are_not_installed_are_not_checked(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    installation.check()


def test_another_backend_is_reported_at_import(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {"KERAS_HOME": str(tmp_path)}
    message = "Keras's backend must be 'tensorflow': set KERAS_BACKEND=tensorflow, which replaces what is in keras.json"
    for given, received in (({}, "torch"), ({"KERAS_BACKEND": "jax"}, "jax")):
        done = subprocess.run(
            [sys.executable, "-c", "import tfnas"], env=environment | given, capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last == f"tfnas.common.errors.InstallationError: {message}. Received: '{received}'"
        done = tfnas_script("--help", env=environment | given)
        assert (done.returncode, done.stderr) == (1, f"tfnas: {message}. Received: '{received}'\n")


def test_extras_are_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    installation.require("formats", ["json", "os.path"], "a feature")
    with pytest.raises(
        UserError, match=r"^a feature needs nowhere.at_all, onnx, not installed: pip install 'tfnas\[formats\]'$"
    ):
        installation.require("formats", ["onnx", "json", "nowhere.at_all"], "a feature")


def requirements(text):
    """Versions by package of lines such as 'name==1.0; marker'."""
    found = {}
    for line in text.splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        if name and not line.startswith("#"):
            found.setdefault(name, version)  # the first: Python 3.11's
    return found


def test_lower_bounds_are_the_oldest_versions_tested():
    """constraints-oldest.txt has the version that each bound names, and constraints.txt one that is not older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    oldest, newest = (requirements((ROOT / name).read_text()) for name in ("constraints-oldest.txt", "constraints.txt"))
    bounds = [*project["dependencies"], *extras["serving"], *extras["formats"]]
    for name, bound in (line.split(">=") for line in bounds if ">=" in line):
        assert installation._numbers(bound) == installation._numbers(oldest[name])[: len(bound.split("."))], name
        assert installation._numbers(newest[name.replace("_", "-")]) >= installation._numbers(bound)
    for extra in ("kfp", "vertex"):  # need protobuf 6, which TensorFlow 2.18 does not accept
        name, bound = extras[extra][-1].split(">=")
        assert installation._numbers(newest[name]) >= installation._numbers(bound)
    assert installation._numbers(oldest["keras"]) == (3, 12, 0)
