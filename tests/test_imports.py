"""The order of imports: a folder imports only folders below it, a file only files that its folder lists above it."""

import ast
import re
import tomllib

import pytest
from conftest import ROOT

import tfnas
from tfnas.runs.stage_table import WITHOUT_TENSORFLOW

PACKAGE = ROOT / "tfnas"
# From the bottom up: what a folder may import.
FOLDERS = """
  common       -
  supernets    -
  tasks        common
  config       common tasks
  runs         common config tasks
  serving      common
  search_space common
  layers       common
  graph        common layers search_space
  data         common config tasks
  gating       common config graph layers search_space
  cutting      common config data gating graph layers search_space supernets
  ranking      common config data gating graph layers runs search_space tasks
  testing      cutting gating graph ranking search_space
  training     common config cutting data gating graph layers ranking runs search_space tasks
  reporting    common config runs search_space tasks
  shrinking    common config cutting data gating graph layers ranking reporting runs search_space tasks training
  exporting    common config data runs training tasks
  stages common config cutting data exporting gating graph ranking reporting runs search_space training shrinking tasks
  tuning       common config data graph runs stages training tasks
  cli          common config reporting runs training
"""
MAY_IMPORT = {line.split()[0]: set(line.split()[1:]) - {"-"} for line in FOLDERS.strip().splitlines()}


def imported(path):
    """The dotted names below tfnas that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tfnas":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfnas."):
            yield from (f"{node.module.removeprefix('tfnas.')}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("tfnas.") for a in node.names if a.name.startswith("tfnas."))


def files_of(folder):
    """Python files of a folder of tfnas; of the command line its one."""
    return sorted((PACKAGE / folder).rglob("*.py")) or [PACKAGE / f"{folder}.py"]


def contents(folder):
    """The files and folders of a folder, from the table of contents in its docstring: name -> what it has."""
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    return dict(re.findall(r"^(\w+)(?:\.py|/) +(.+)$", text, re.MULTILINE))


def test_folders_import_only_folders_below_them():
    below = set()
    for folder, allowed in MAY_IMPORT.items():
        assert allowed <= below, f"{folder} is listed below what it imports"
        below.add(folder)
        found = {name.split(".")[0] for path in files_of(folder) for name in imported(path)} - {folder}
        assert found == allowed, folder
    places = [*PACKAGE.glob("*.py"), *(file.parent for file in PACKAGE.glob("*/__init__.py"))]
    assert below == {path.stem for path in places} - {"__init__"}


@pytest.mark.parametrize("folder", [folder for folder in MAY_IMPORT if (PACKAGE / folder).is_dir()])
def test_files_import_only_files_listed_above_them(folder):
    listed = list(contents(folder))
    here = {path.stem for path in (PACKAGE / folder).iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert set(listed) == here and len(listed) <= 12
    for place, name in enumerate(listed):
        for path in [*(PACKAGE / folder).glob(f"{name}.py"), *(PACKAGE / folder / name).glob("*.py")]:
            for other in imported(path):
                home, _, rest = other.partition(".")
                if home == folder and (module := rest.split(".")[0]) != name:
                    assert module in listed[:place], f"{path} imports tfnas.{other}"


def test_stages_never_import_each_other():
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("stages.")]


def test_what_must_not_load_tensorflow_does_not_import_it():
    folders = ("common", "config", "runs", "search_space", "reporting")
    light = [path for folder in folders for path in files_of(folder)]
    light += [PACKAGE / f"tasks/{name}.py" for name in ("facts", "network_inputs")]
    light += [PACKAGE / f"ranking/{name}.py" for name in ("evaluation_log", "racing")]
    light += [PACKAGE / f"stages/{name}.py" for name in (*WITHOUT_TENSORFLOW, "handover")]
    light += [PACKAGE / "serving/versions.py", PACKAGE / "cli.py", PACKAGE / "__init__.py"]
    for path in light:
        if path.name == "terminal.py":  # starts TensorFlow, when asked to
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("tensorflow", "keras", "tensorflow_probability") for n in names), path


def test_the_package_tells_its_version():
    assert tfnas.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_files_that_are_not_python_are_packaged():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tfnas"]
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == {path for pattern in patterns for path in PACKAGE.glob(pattern)}
