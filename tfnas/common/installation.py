"""Checks of the environment: packages of the versions that the metadata names, Keras on TensorFlow, and extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable

from tfnas.common.errors import InstallationError, UserError, fail

# Distributions that contain the module tensorflow. pip cannot express that one of them is needed.
_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu", "tensorflow-rocm")


def check() -> None:
    """Checks the packages and Keras's backend, without importing any of them.

    Raises:
        InstallationError: if a package is missing or too old, or Keras is set to another backend than TensorFlow. The
            command `tfnas` ends with one line and exit code 1 instead.
    """
    try:
        _check_packages()
        _check_backend()
    except InstallationError as error:
        if os.path.basename((sys.argv or [""])[0]) == "tfnas":
            fail(str(error), 1)  # the script imports the package before it runs anything that could catch the error
        raise


def require(extra: str, modules: Iterable[str], feature: str) -> None:
    """Checks that `modules`, which the extra contains, are installed, without importing them.

    Args:
        feature: what needs them, with which the message begins.

    Raises:
        UserError: naming the missing modules and the command that installs them.
    """
    missing = sorted(module for module in modules if not _has(module))
    if missing:
        raise UserError(f"{feature} needs {', '.join(missing)}, not installed: pip install 'tfnas[{extra}]'")


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


def _check_packages() -> None:
    try:
        requirements = importlib.metadata.requires("tfnas") or []
    except importlib.metadata.PackageNotFoundError:  # used from a folder of sources
        return
    found, command = [], []
    for requirement in requirements:
        name, _, minimum = re.findall(r"^([\w.-]+)([^;>]*>=([\d.]+))?", requirement)[0]
        if "extra ==" in requirement:
            continue
        version = _version(name)
        if version is None or (minimum and _numbers(version) < _numbers(minimum)):
            found.append(f"{name} {version or 'missing'}")
            command.append(f"'{requirement.partition(';')[0].strip()}'")
    if found:
        raise InstallationError(f"packages missing or too old: {', '.join(found)}: pip install {' '.join(command)}")


def _version(name: str) -> str | None:
    """Returns the installed version of a distribution, or None."""
    for one in _TENSORFLOW if name == "tensorflow" else (name,):
        try:
            return importlib.metadata.version(one)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers that a version begins with: (2, 22, 0) of '2.22.0.dev20261101'."""
    return tuple(int(number) for number in re.findall(r"^\d+|(?<=\.)\d+", version.partition("+")[0])[:3])


def _check_backend() -> None:
    if keras := sys.modules.get("keras"):
        backend = keras.config.backend()
        when = "before keras is imported"
    else:  # as Keras will find it
        file = pathlib.Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"), "keras.json")
        try:
            backend = json.loads(file.read_text()).get("backend", "tensorflow")
        except (OSError, ValueError):
            backend = "tensorflow"
        backend = os.environ.get("KERAS_BACKEND") or backend
        when = "which replaces what is in keras.json"
    if backend != "tensorflow":
        raise InstallationError(
            f"Keras's backend must be 'tensorflow': set KERAS_BACKEND=tensorflow, {when}. Received: '{backend}'"
        )
