"""The order of imports: a file imports only files above it, and stages never import each other."""

import ast
import tomllib

from conftest import ROOT

import tfnas
from tfnas.workdir import WITHOUT_TENSORFLOW

ORDER = [
    "errors",
    "terminal",
    "functions",
    "reading",
    "values",
    "config",
    "atomic",
    "locks",
    "holding",
    "provenance",
    "workdir",
    "distribution",
    "checkpoints",
    "figures",
    "architecture",
    "posterior",
    "saving",
    "sources",
    "data",
    "calls",
    "kinds",
    "channels",
    "gates",
    "costs",
    "reach",
    "elbo",
    "optimizers",
    "supernet",
    "sizes",
    "supernets",
    "latencies",
    "folding",
    "subnets",
    "baselines",
    "candidates",
    "inputs",
    "losses",
    "recalibration",
    "program",
    "engine",
    "evaluations",
    "racing",
    "statistics",
    "ranking",
    "guards",
    "loop",
    "checks",
    "training",
    "controls",
    "front",
    "results",
    "chance",
    "blessing",
    "report",
    "model_card",
    "signatures",
    "warmup",
    "reloading",
    "conversion",
    "handover",
    "stages",
    "tuning",
    "main",
    "model_folder",
    "served",
    "server",
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tfnas":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfnas."):
            yield node.module.removeprefix("tfnas.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("tfnas.") for a in node.names if a.name.startswith("tfnas."))


def test_files_import_only_files_above_them():
    package = ROOT / "tfnas"
    files = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    assert len(files) > 20
    for path in files:
        place = path.relative_to(package).parts[0].removesuffix(".py")
        for name in imported(path):
            home = name.split(".")[0]
            inside = place == home and home in ("sources", "supernets")
            assert inside or ORDER.index(home) < ORDER.index(place), f"{path} imports tfnas.{name}"


def test_what_must_not_load_tensorflow_does_not_import_it():
    light = [
        "errors",
        "terminal",
        "functions",
        "reading",
        "config",
        "atomic",
        "locks",
        "holding",
        "provenance",
        "workdir",
        "checkpoints",
        "architecture",
        "posterior",
        "evaluations",
        "racing",
        "statistics",
        "front",
        "figures",
        "results",
        "chance",
        "blessing",
        "report",
        "model_card",
        "handover",
        "main",
        "model_folder",
        *(f"stages/{stage}" for stage in WITHOUT_TENSORFLOW),
        "__init__",
    ]
    for name in light:
        for node in ast.walk(ast.parse((ROOT / "tfnas" / f"{name}.py").read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("tensorflow", "keras", "tensorflow_probability") for n in names), name


def test_the_package_tells_its_version():
    assert tfnas.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
