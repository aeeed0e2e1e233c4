"""Whether tfnas builds, installs and works on several Pythons, with the newest and the oldest packages.

    python benchmarks/environments.py [CELL ...] [--extras]

It builds the source distribution, and the wheel from that; compares what is in them with the sources; and has
`twine check` look at them. Then, for each cell, it makes an empty virtual environment, installs the wheel into it, and
runs tests/smoke.py, and with --extras once more after adding the extras. A cell is a version of Python and what else is
installed, such as 3.12:oldest:

- newest, oldest: the versions of constraints.txt and constraints-oldest.txt.
- beside: packages that are there before, among them an older TensorFlow. The wheel must not change any of them.

Without cells, it takes newest and oldest on three Pythons, and 3.11:beside. Rows are printed as they are measured. A
Python that is not on this machine is skipped, and the row says so. What fails is followed by the first and last lines
of its output, and the exit code is then 1. Each environment takes up to 4 GB in the folder for temporary files
(TMPDIR), and is deleted before the next one is made. The command needs nothing but Python and a package index.
"""

import argparse
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONSTRAINTS = {"newest": "constraints.txt", "oldest": "constraints-oldest.txt"}
# The oldest TensorFlow refuses the protobuf that kfp needs.
EXTRAS = {"newest": ["formats", "serving", "kfp", "vertex"], "oldest": ["formats", "serving"], "beside": []}
BESIDE = ["tensorflow==2.19.1", "keras==3.15.1", "keras-hub==0.31.0", "pandas==3.1.1"]
BESIDE_TOO = "tf-keras==2.19.*"  # as docs/install.md says
CELLS = [*map(":".join, itertools.product(("3.11", "3.12", "3.13"), CONSTRAINTS)), "3.11:beside"]
TOOLS = ["build==1.6.1", "twine==7.0.0"]
# What a source distribution has besides tfnas/ and its metadata.
BESIDES = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}
BESIDES |= {"PKG-INFO", *CONSTRAINTS.values()}
MINUTES = 30  # for a command; more means that it hangs


def find_python(version):
    """Returns an interpreter of this version, in the path or of pyenv's, or None."""
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:  # pyenv's may only name one
            return candidate
    return None


def run(*command):
    """Runs a command; returns what it printed. Raises RuntimeError with some of its lines if it fails or hangs."""
    command = list(map(str, command))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as empty:  # `python -m build` would rather run a build.py of where it starts
        process = subprocess.Popen(command, **streams, text=True, cwd=empty, start_new_session=True)
        try:
            printed, _ = process.communicate(timeout=60 * MINUTES)
            ended = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            ended = f"killed after {MINUTES} minutes"
    if process.returncode:
        lines = printed.splitlines()
        some = lines if len(lines) <= 60 else [*lines[:20], "...", *lines[-40:]]  # a crash says first what it was
        raise RuntimeError("\n".join([*some, f"{' '.join(command)}: {ended}"]))
    return printed


def pip(python, *arguments):
    """Runs pip of an environment."""
    return run(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def distributions(folder):
    """Builds and checks both distributions; returns the wheel. Raises RuntimeError if something is wrong with them."""
    sources = shutil.copytree(ROOT, folder / "sources", ignore=_ignored)  # the tools leave files where they build
    run(sys.executable, "-m", "venv", folder / "tools")
    python = folder / "tools" / "bin" / "python"
    pip(python, "install", "--quiet", *TOOLS)
    run(python, "-m", "build", "--outdir", folder / "dist", sources)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    run(python, "-m", "twine", "check", "--strict", wheel, sdist)
    package = [file for file in (ROOT / "tfnas").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    expected = {str(file.relative_to(ROOT)) for file in package}
    with zipfile.ZipFile(wheel) as archive:
        _compare(wheel, {name for name in archive.namelist() if ".dist-info/" not in name}, expected)
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
        _compare(sdist, {name for name in names if ".egg-info/" not in name}, expected | BESIDES)
    for file in wheel, sdist:
        print(f"{file.name}: {file.stat().st_size / 1e3:,.0f} kB, complete; twine check passed", flush=True)
    return wheel


def _ignored(path, names):
    """Names of caches, and of what is made in the repository's root."""
    made = {"build", "dist", "runs"} if pathlib.Path(path) == ROOT else set()
    return {
        name for name in names if name in made or name == "__pycache__" or name.endswith(".egg-info") or name[0] == "."
    }


def _compare(file, found, expected):
    if found != expected:
        missing, more = sorted(expected - found), sorted(found - expected)
        raise RuntimeError(f"{file.name}: missing: {missing}, and not expected: {more}")


class Environment:
    """A virtual environment, and the table's row of what is installed into it."""

    def __init__(self, folder, python, packages):
        run(python, "-m", "venv", folder)
        self.python = folder / "bin" / "python"
        self.constraints = ["--constraint", ROOT / CONSTRAINTS[packages]] if packages in CONSTRAINTS else []
        self.name = f"{run(self.python, '--version').split()[1]} | {packages}"
        self.before = self.sizes()

    def sizes(self):
        """Returns the number of packages and their megabytes."""
        site = next(self.python.parents[1].glob("lib/*/site-packages"))
        size = sum(
            file.stat().st_size for file in site.rglob("*") if file.is_file() and "__pycache__" not in file.parts
        )
        return len([*site.glob("*.dist-info")]), size / 1e6

    def install(self, *requirements):
        """Installs requirements, and returns cells of a row: packages and megabytes in all, and seconds."""
        start = time.monotonic()
        # Python compiles what it imports: that is a small part of these packages.
        pip(self.python, "install", "--quiet", "--no-compile", *self.constraints, *requirements)
        packages, size = (now - then for now, then in zip(self.sizes(), self.before, strict=True))
        return f"{packages} | {size:,.0f} MB | {time.monotonic() - start:.0f}"

    def installed(self):
        """Returns packages and their versions, as pip lists them."""
        return set(pip(self.python, "freeze", "--all").split("\n"))

    def smoke(self, *extras):
        """Runs the smoke test, and returns what it printed."""
        return run(self.python, ROOT / "tests" / "smoke.py", *extras).splitlines()[-1].removeprefix("smoke: ")


def measure(folder, python, packages, wheel, with_extras):
    """Yields the rows of one cell: Python, set, installed, packages, size, seconds, smoke test."""
    environment = Environment(folder, python, packages)
    if packages == "beside":
        yield f"| {environment.name} | {', '.join(BESIDE)} | {environment.install(*BESIDE)} | |"
        before = environment.installed()
        cells = environment.install(wheel, BESIDE_TOO)
        if changed := before - environment.installed():
            raise RuntimeError(f"changed: {', '.join(sorted(changed))}")
        run(environment.python, "-c", "import keras_hub, pandas, tfnas; tfnas.shrink")
        yield f"| {environment.name} | + core, none of them changed | {cells} | {environment.smoke()} |"
        return
    cells = environment.install(wheel)
    yield f"| {environment.name} | core | {cells} | {environment.smoke()} |"
    if with_extras:
        extras = EXTRAS[packages]
        cells = environment.install(f"{wheel}[{','.join(extras)}]")
        yield f"| {environment.name} | + {', '.join(extras)} | {cells} | {environment.smoke(*extras)} |"


def cell(text):
    """A version of Python and a set, of 'VERSION:SET'. Raises ValueError for anything else."""
    version, packages = text.split(":")
    if packages not in EXTRAS:
        raise ValueError
    return version, packages


def main():
    """Prints a table; exits with code 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", type=cell, default=list(map(cell, CELLS)), metavar="CELL")
    parser.add_argument("--extras", action="store_true", help="Add the extras too.")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the folder is deleted
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        wheel = distributions(folder)
        print("\n| Python | set | installed | packages | size | seconds | smoke test |\n|---|---|---|---|---|---|---|")
        for version, packages in options.cells:
            sys.stdout.flush()
            python = find_python(version)
            if python is None:
                print(f"| {version} | {packages} | skipped: no Python {version} on this machine | | | | |")
                continue
            try:
                for row in measure(folder / "env", python, packages, wheel, options.extras):
                    print(row, flush=True)
            except RuntimeError as error:
                failed = True
                print(f"| {version} | {packages} | FAILED | | | | |\n{error}", flush=True)
            shutil.rmtree(folder / "env", ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
