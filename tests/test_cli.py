import errno
import pathlib
import re
import subprocess
import sys
import time

import processes
import pytest
from absl.testing import flagsaver
from conftest import ROOT, tfnas_script

from tfnas import cli
from tfnas.runs import stage_table

TFNAS = str(pathlib.Path(sys.executable).parent / "tfnas")
DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}"


MISTAKES = [
    (["search", DIGITS, "--config.search.el2=5"], 2, "config: no key 'search.el2'; did you mean 'search.ell2'?"),
    (["search", DIGITS, "--config.search.ell2=big"], 2, "'search.ell2' must be a number. Received: 'big'"),
    (
        ["search", DIGITS, "--workdir=W", "--config.search.ell2=7"],
        1,
        "--config.search.parameters=0 --config.search.multiply_adds=0",
    ),
    (
        ["search", DIGITS, "--workdir=W", "--config.supernet.source=nowhere:f"],
        1,
        "no module 'nowhere' for 'nowhere:f'",
    ),
    (["search", DIGITS, "--workdir=W", "--config.supernet.source=os:getcwd"], 1, "add --config.supernet.width=0"),
    (["search", DIGITS, "--wrkdir=W"], 2, "Unknown command line flag 'wrkdir'"),
    (["search", DIGITS, "--wrkdir=W"], 2, "Did you mean: workdir"),
    (
        ["run", DIGITS, "--workdir=W", "--epochs=3"],
        2,
        "Unknown command line flag 'epochs'; settings are --config.SECTION.KEY=VALUE: "
        "did you mean --config.search.epochs or --config.retrain.epochs?\n",
    ),
    (["run", "--seed=3", DIGITS, "--workdir=W"], 2, "SECTION.KEY=VALUE: did you mean --config.seed?\n"),
    (["run", "--sample.budgets=3", DIGITS], 2, "KEY=VALUE: did you mean --config.sample.budgets?\n"),
    (["run", "--num-candidates=3", DIGITS], 2, "KEY=VALUE: did you mean --config.sample.num_candidates?\n"),
    (["run", "--nonsense", DIGITS], 2, "flag 'nonsense'; settings are --config.SECTION.KEY=VALUE\n"),
    (["search", "--config=nowhere.py", "--workdir=W"], 2, "nowhere.py"),
    (["search", "--config=README.md", "--workdir=W"], 2, "README.md"),
    (["search", "--workdir=W"], 1, "--config=FILE"),
    (["search", DIGITS], 1, "--workdir=DIR"),
    (
        ["serach", DIGITS, "--workdir=W"],
        1,
        "search, sample, retrain, evaluate, export, report, run, preview",
    ),
    ([], 1, "search, sample, retrain"),
    (["sample", DIGITS, "--workdir=W"], 1, "sample needs search's results"),
    (["export", DIGITS, "--workdir=W"], 1, "export needs search's results"),
    (["search", DIGITS, "--workdir=/dev/null/x"], 1, "workdir /dev/null/x: cannot be written"),
]


def check_mistake(done, code, words):
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is answered to each mistake, in a folder of its own."""
    folder = tmp_path_factory.mktemp("mistakes")
    lines = [[a.replace("--workdir=W", f"--workdir={folder / str(i)}") for a in m[0]] for i, m in enumerate(MISTAKES)]
    return processes.answers("tfnas.cli", lines)


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(arguments[:1]) for arguments, *_ in MISTAKES])
def test_a_users_mistake_gets_one_line(told, number):
    check_mistake(told[number], *MISTAKES[number][1:])


def test_a_mistake_that_is_found_with_tensorflow_gets_one_line(tmp_path):
    done = tfnas_script("preview", DIGITS, f"--workdir={tmp_path / 'w'}", "--config.data.source=nowhere:load")
    check_mistake(done, 1, "data.source: no module 'nowhere'")


FLAGS = ["--help", "-h", "-?", "--helpshort", "--helpfull", "--helpxml"]
TOLD_BY_HELP = {
    "tfnas.cli": "tfnas STAGE --config=configs/NAME.py --workdir=DIR",
    "tfnas.serving.server": "python -m tfnas.serving.server --model_base_path=",
    "pipelines.run": "python -m pipelines.run --runner=",
}


def check_help(module, flag, done):
    assert (done.returncode, done.stderr) == (0, ""), flag
    assert TOLD_BY_HELP[module] in done.stdout or (flag == "--helpxml" and "<usage>" in done.stdout), flag


@pytest.mark.parametrize("flag", FLAGS)
def test_help_is_no_mistake(flag):
    command = [sys.executable, "-m", "tfnas.serving.server", flag]
    check_help("tfnas.serving.server", flag, subprocess.run(command, capture_output=True, text=True, cwd=ROOT))


@pytest.mark.parametrize("module", ["tfnas.cli", "pipelines.run"])
def test_help_is_no_mistake_where_there_is_a_cli(module):
    for flag, done in zip(FLAGS, processes.answers(module, [[flag] for flag in FLAGS]), strict=True):
        check_help(module, flag, done)


@pytest.mark.parametrize(
    "module, command", [("tfnas.cli", [TFNAS]), ("pipelines.run", [sys.executable, "-m", "pipelines.run"])]
)
def test_help_as_it_is_called(module, command):
    check_help(module, "--help", subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT))


def test_help_lists_every_stage_in_one_column():
    text = tfnas_script("--help").stdout
    found = {line.split()[0]: re.match(r"  \w+ +", line).end() for line in text.splitlines() if line.startswith("  ")}
    assert set(found) == {*stage_table.STAGES, "run", "preview", "check", "tune"}
    assert len(set(found.values())) == 1, found


def test_version():
    assert tfnas_script("--version").stdout == "tfnas 0.1.0\n"


@pytest.mark.parametrize("flag", ["--help", "--version", "--config.nonsense=1"])
def test_these_answer_without_tensorflow(flag):
    program = (
        "import sys, tfnas.cli\n"
        f"sys.argv = ['tfnas', {flag!r}]\n"
        "try:\n    tfnas.cli.cli()\n"
        "except SystemExit:\n    pass\n"
        "print('heavy', sorted({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)))\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("heavy []\n"), done.stderr
    assert time.monotonic() - start < 10  # a hang, not a benchmark: loading TensorFlow alone is what is excluded


class _LibraryError(Exception):
    """As TensorFlow raises them: no number, no file name of its own."""


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "words", "/w/a.json"), "/w/a.json: No space left on device"),
        (OSError(errno.EROFS, "words", "/w/a.json"), "/w/a.json: Read-only file system"),
        (OSError(errno.ENOSPC, "words"), "W, or the folder for temporary files: No space left on device"),
        (
            _LibraryError("{{node}} /w/events.v2; No space left on device\n\tFailed"),
            "/w/events.v2: No space left on device",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "W, or the folder for temporary files: No usable temporary directory found",
        ),
    ],
)
def test_what_cannot_be_written_gets_one_line(monkeypatch, capsys, error, line):
    def fails(arguments):
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("TFDS has its own") from cause

    monkeypatch.setattr(cli, "_run", fails)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with flagsaver.as_parsed(workdir="W", version="false"), pytest.raises(SystemExit) as ended:
        cli.main(["tfnas", "search"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"tfnas: {line}; ")


def test_an_error_of_another_kind_keeps_its_traceback(monkeypatch):
    def fails(arguments):
        raise OSError(errno.ENOENT, "No such file", "a.json")

    monkeypatch.setattr(cli, "_run", fails)
    with flagsaver.as_parsed(workdir="W", version="false"), pytest.raises(FileNotFoundError):
        cli.main(["tfnas", "search"])
