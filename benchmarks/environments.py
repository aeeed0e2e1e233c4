"""Whether tfnas installs and works on several Pythons, with the newest and the oldest packages; what it brings in.

    python benchmarks/environments.py [--pythons=3.11,3.12,3.13] [--sets=newest,oldest] [--extras=kfp,serving]

For each Python and set it makes an empty virtual environment, installs the wheel under constraints.txt or
constraints-oldest.txt, runs tests/smoke.py, then adds the extras one by one and runs it again with them. Each row is
printed as it is measured; a Python that is not on this machine is skipped, and says so. Needs nothing but Python.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETS = {"newest": "constraints.txt", "oldest": "constraints-oldest.txt"}


def find_python(version):
    """Returns an interpreter of this version, in the path or of pyenv's, or None."""
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:  # pyenv's may only name one
            return candidate
    return None


def run(*command, **environment):
    """Runs a command. Raises RuntimeError with the last lines that it printed if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tempfile.gettempdir(),
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise RuntimeError("\n".join(done.stdout.splitlines()[-15:]))
    return done.stdout


class Environment:
    """An empty virtual environment, and the table's row of what is installed into it."""

    def __init__(self, folder, python, packages):
        run(python, "-m", "venv", folder)
        self.python = folder / "bin" / "python"
        self.constraints = ROOT / SETS[packages]
        self.name = f"{run(self.python, '--version').split()[1]} | {packages}"
        self.before = self.sizes()

    def sizes(self):
        """Returns the number of packages and their megabytes."""
        site = next(self.python.parents[1].glob("lib/*/site-packages"))
        size = sum(
            file.stat().st_size for file in site.rglob("*") if file.is_file() and "__pycache__" not in file.parts
        )
        return len([*site.glob("*.dist-info")]), size / 1e6

    def install(self, requirement):
        """Installs a requirement, and returns cells of a row: packages, megabytes and seconds."""
        start = time.monotonic()
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run(*pip, "--constraint", self.constraints, requirement)
        packages, size = (now - then for now, then in zip(self.sizes(), self.before, strict=True))
        return f"{packages} | {size:,.0f} MB | {time.monotonic() - start:.0f} s"

    def smoke(self, *extras):
        """Runs the smoke test, and returns what it printed."""
        return run(self.python, ROOT / "tests" / "smoke.py", *extras).splitlines()[-1].removeprefix("smoke: ")


def measure(folder, python, packages, wheel, extras):
    """Yields the rows of one environment: Python, set, installed, packages, size, seconds, smoke test."""
    environment = Environment(folder, python, packages)
    cells = environment.install(wheel)
    yield f"| {environment.name} | core | {cells} | {environment.smoke()} |"
    for i in range(len(extras)):
        installed = environment.install(f"{wheel}[{','.join(extras[: i + 1])}]")
        smoke = environment.smoke(*extras) if i == len(extras) - 1 else ""
        yield f"| {environment.name} | + {extras[i]} | {installed} | {smoke} |"


def main():
    """Prints a table; exits with code 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", default="3.11,3.12,3.13", help="Versions of Python.")
    parser.add_argument("--sets", default="newest,oldest", help="Constraints: newest, oldest, or both.")
    parser.add_argument("--extras", default="", help="Extras added to the core, in this order.")
    options = parser.parse_args()
    failed = False
    print(
        "| Python | set | installed | packages | size | seconds | smoke test |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        sources = shutil.copytree(
            ROOT / "tfnas", folder / "sources" / "tfnas"
        ).parent  # pip leaves files where it builds
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, sources)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheel", sources)
        (wheel,) = (folder / "wheel").iterdir()
        for version in options.pythons.split(","):
            python = find_python(version)
            for packages in options.sets.split(","):
                if python is None:
                    print(
                        f"| {version} | {packages} | skipped: no Python {version} on this machine | | | | |", flush=True
                    )
                    continue
                try:
                    for row in measure(
                        folder / "env", python, packages, wheel, [*filter(None, options.extras.split(","))]
                    ):
                        print(row, flush=True)
                except RuntimeError as error:
                    failed = True
                    print(f"| {version} | {packages} | failed | | | | |\n{error}", flush=True)
                shutil.rmtree(folder / "env", ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
