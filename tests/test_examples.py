"""The scripts in examples/ run, with fewer epochs, images and candidates, and are notebooks of percent cells."""

import re

import pytest
from conftest import ROOT

EXAMPLES = sorted(ROOT.glob("examples/*.py"))
SMALLER = {
    "digits_in_five_minutes.py": {"EPOCHS": 1, "RETRAIN_EPOCHS": 1, "CANDIDATES": 5},
    "shrink_mobilenet.py": {"TRAINING_EPOCHS": 1, "EPOCHS": 1, "NUM_IMAGES": 67},
}
# Of their images, so many that an epoch has a few steps.
FEWER = ("((0, 1000), (1000, 1400), (1400, 1797))", "((0, 150), (1000, 1100), (1400, 1500))")


def test_cells_are_code_or_markdown():
    assert [path.name for path in EXAMPLES] == sorted(SMALLER)
    for path in EXAMPLES:
        head, *cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
        assert "format_name: percent" in head
        assert len(cells) > 10
        for cell in cells:
            kind, _, text = cell.partition("\n")
            assert kind in ("", " [markdown]")
            assert all(line.startswith("#") for line in text.split("\n") if line) == (kind == " [markdown]"), text


# tf.data's own functions stay graphs.
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.usefixtures("eager")
@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, monkeypatch, capsys):
    code = path.read_text()
    for name, value in SMALLER[path.name].items():
        code, found = re.subn(rf"^{name} = \d+", f"{name} = {value}", code, flags=re.MULTILINE)
        assert found == 1, name
    assert (FEWER[0] in code) == (path.name == "digits_in_five_minutes.py")
    code = code.replace(*FEWER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    namespace = {"__name__": "__main__"}
    exec(compile(code, path.name, "exec"), namespace)
    assert re.search(r"[\d,]+ parameters(, validation accuracy| -> [\d,]+, )", capsys.readouterr().out)
    assert namespace["small"].count_params() < namespace.get("supernet", namespace["model"]).count_params()
    # What a notebook shows, cell by cell.
    shown = [cell.strip() for cell in re.findall(r"^# %%\n(?:.*\n)*?(\w+(?:\.\w+)?)\n\n", code, re.MULTILINE)]
    assert shown
    for name in shown:
        assert "<svg" in eval(name, namespace)._repr_html_(), name
