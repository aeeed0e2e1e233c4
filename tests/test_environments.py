"""The benchmark of environments runs its commands where nothing else is found. No TensorFlow."""

import sys

from benchmarks import environments


def test_commands_do_not_run_what_others_left(tmp_path, monkeypatch):
    """`python -m build` runs a build.py that lies where it is started, such as in the folder for temporary files."""
    (tmp_path / "build.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # tempfile reads TMPDIR once
    monkeypatch.chdir(tmp_path)
    assert environments.run(sys.executable, "-c", "import os; print(os.listdir())").strip() == "[]"
