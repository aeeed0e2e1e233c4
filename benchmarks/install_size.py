"""Packages and megabytes that the core and each extra bring in, counted from what is installed here.

    .venv/bin/python benchmarks/install_size.py

It follows the requirements in the packages' metadata, and adds up the files that each package has installed.
"""

import importlib.metadata
import pathlib
import re
import tomllib

from absl import app
from packaging.requirements import Requirement

_PROJECT = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def megabytes(name):
    """Size of an installed package, without compiled bytecode."""
    files = [
        file.locate() for file in importlib.metadata.distribution(name).files or () if "__pycache__" not in file.parts
    ]
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6


def closure(requirements):
    """Names of the packages that requirements bring in, directly or not."""
    found, waiting = {}, [Requirement(requirement) for requirement in requirements]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name == "tfnas":  # one extra names others
            waiting += [Requirement(r) for e in requirement.extras for r in _PROJECT["optional-dependencies"][e]]
            continue
        extras = {"", *requirement.extras}
        if extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        for further in map(Requirement, importlib.metadata.requires(name) or ()):
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in found[name]):
                waiting.append(further)
    return set(found)


def main(_):
    """Prints the table."""
    core = closure(_PROJECT["dependencies"])
    print(f"core          {len(core):4d} packages  {sum(map(megabytes, core)):6,.0f} MB")
    for extra, requirements in _PROJECT["optional-dependencies"].items():
        added = closure(requirements) - core
        print(f"+ {extra:10s}  {len(added):4d} packages  {sum(map(megabytes, added)):6,.0f} MB")


if __name__ == "__main__":
    app.run(main)
