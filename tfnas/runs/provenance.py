"""Versions of Python, this project and packages that the stages of a run used. No TensorFlow."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

_PACKAGES = ("tfnas", "tensorflow", "keras", "tensorflow-probability", "tensorflow-datasets", "numpy")
_THEN = ", then "


def versions() -> dict[str, str]:
    """Versions of what a result depends on, as they are in this process."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def then(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Versions of a stage that was interrupted and resumed under others, as '3.14.0, then 3.15.1'.

    Args:
        before: by package, perhaps of several attempts.
        now: by package.
    """
    found = dict(now)
    for package, earlier in before.items():
        last = now.get(package, "not recorded")
        found[package] = earlier if earlier.split(_THEN)[-1] == last else f"{earlier}{_THEN}{last}"
    return found


def by_package(stages: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the version of each package, or the versions of different stages, as 'search 3.14.0; sample 3.15.1'.

    Args:
        stages: versions by package, by stage, in the order of the run.
    """
    found = {}
    for package in dict.fromkeys(package for of_one in stages.values() for package in of_one):
        by_version: dict[str, list[str]] = {}
        for stage, of_one in stages.items():
            by_version.setdefault(of_one.get(package, "not recorded"), []).append(stage)
        versions_by_stage = [f"{', '.join(names)} {version}" for version, names in by_version.items()]
        found[package] = "; ".join(versions_by_stage) if len(versions_by_stage) > 1 else next(iter(by_version))
    return found


def differences(stages: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the packages of `by_package` whose versions differ between stages, in one line; '' if none do."""
    found = by_package(stages)
    return "; ".join(
        f"{package} ({found[package]})"
        for package in found
        if len({of_one.get(package) for of_one in stages.values()}) > 1
    )
