import errno
import subprocess
import sys
import time

import pytest
from absl.testing import flagsaver
from conftest import ROOT, tfnas_script

from tfnas import main

DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}"


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["search", DIGITS, "--config.search.el2=5"], 2, "config: no key 'search.el2'; did you mean 'search.ell2'?"),
        (["search", DIGITS, "--config.search.ell2=big"], 2, "'search.ell2' must be a number. Received: 'big'"),
        (["search", DIGITS, "--workdir=W", "--config.search.ell2=7"], 1, "'search.ell2' must be left out"),
        (["search", DIGITS, "--wrkdir=W"], 2, "Unknown command line flag 'wrkdir'"),
        (["search", "--config=nowhere.py", "--workdir=W"], 2, "nowhere.py"),
        (["search", "--config=README.md", "--workdir=W"], 2, "README.md"),
        (["search", "--workdir=W"], 1, "--config=FILE expected"),
        (["search", DIGITS], 1, "--workdir=DIR expected"),
        (
            ["serach", DIGITS, "--workdir=W"],
            1,
            "one stage expected, of search, sample, retrain, evaluate, export, report, run, preview",
        ),
        ([], 1, "Received: none"),
        (
            ["preview", DIGITS, "--workdir=W", "--config.data.source=nowhere:load"],
            1,
            "data.source: no module 'nowhere'",
        ),
        (["sample", DIGITS, "--workdir=W"], 1, "sample needs search's search/supernet.keras"),
        (["export", DIGITS, "--workdir=W"], 1, "export needs retrain's retrain/subnet.keras"),
        (["search", DIGITS, "--workdir=/dev/null/x"], 1, "workdir /dev/null/x: cannot be written"),
    ],
)
def test_a_users_mistake_gets_one_line(tmp_path, arguments, code, words):
    done = tfnas_script(*[a.replace("--workdir=W", f"--workdir={tmp_path / 'w'}") for a in arguments])
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_and_version():
    done = tfnas_script("--help")
    assert "tfnas STAGE --config=configs/NAME.py --workdir=DIR" in done.stdout
    assert "preview  write preview.png" in done.stdout
    assert tfnas_script("--version").stdout == "tfnas 0.1.0\n"


@pytest.mark.parametrize("flag", ["--help", "--version", "--config.nonsense=1"])
def test_these_answer_without_tensorflow(flag):
    program = (
        "import sys, tfnas.main\n"
        f"sys.argv = ['tfnas', {flag!r}]\n"
        "try:\n    tfnas.main.cli()\n"
        "except SystemExit:\n    pass\n"
        "print('heavy', sorted({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)))\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("heavy []\n"), done.stderr
    assert time.monotonic() - start < 10  # a hang, not a benchmark: loading TensorFlow alone is what is excluded


class _InWords(Exception):
    """As TensorFlow raises them: no number, no file name of its own."""


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "words", "/w/a.json"), "/w/a.json: No space left on device"),
        (OSError(errno.EROFS, "words", "/w/a.json"), "/w/a.json: Read-only file system"),
        (OSError(errno.ENOSPC, "words"), "W, or the folder for temporary files: No space left on device"),
        (_InWords("{{node}} /w/events.v2; No space left on device\n\tFailed"), "/w/events.v2: No space left on device"),
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

    monkeypatch.setattr(main, "_run", fails)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with flagsaver.as_parsed(workdir="W", version="false"), pytest.raises(SystemExit) as ended:
        main.main(["tfnas", "search"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"tfnas: {line}; what was finished is kept, and the same command goes on from there\n"
    )


def test_an_error_of_another_kind_keeps_its_traceback(monkeypatch):
    def fails(arguments):
        raise OSError(errno.ENOENT, "No such file", "a.json")

    monkeypatch.setattr(main, "_run", fails)
    with flagsaver.as_parsed(workdir="W", version="false"), pytest.raises(FileNotFoundError):
        main.main(["tfnas", "search"])
