"""The scripts in examples/ run, with fewer epochs, images and candidates, and are notebooks of percent cells."""

import re

import jupytext
import nbclient
import pytest
from conftest import ROOT

EXAMPLES = sorted(ROOT.glob("examples/*.py"))
SMALLER = {
    "digits_in_five_minutes.py": {"EPOCHS": 4, "RETRAIN_EPOCHS": 1, "CANDIDATES": 5},
    "shrink_mobilenet.py": {"TRAINING_EPOCHS": 1, "EPOCHS": 1, "NUM_IMAGES": 67},
}
# Networks that are traced in seconds; tests/test_any_model.py cuts the real ones.
SMALL_NETWORKS = {
    "digits_in_five_minutes.py": (
        "tfnas.supernets.multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))",
        "keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), "
        "keras.layers.Conv2D(8, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])",
    ),
    "shrink_mobilenet.py": (
        'keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")',
        "keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), "
        "keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()])",
    ),
}


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


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_as_a_notebook(path, tmp_path, monkeypatch):
    """Without a display, in a kernel of its own; cells that end with a value show a picture or a table."""
    code = path.read_text()
    for name, value in SMALLER[path.name].items():
        code, found = re.subn(rf"^{name} = \d+", f"{name} = {value}", code, flags=re.MULTILINE)
        assert found == 1, name
    assert SMALL_NETWORKS[path.name][0] in code
    notebook = jupytext.reads(code.replace(*SMALL_NETWORKS[path.name]), fmt="py:percent")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell for cell in cells if re.search(r"(^|\n)\w+(\.\w+)?$", cell.source)]
    assert shown
    for cell in shown:
        (html,) = (output.data["text/html"] for output in cell.outputs if output.output_type == "execute_result")
        assert "<svg" in html or "<table" in html, cell.source
    printed = "".join(output.text for output in cells[-1].outputs if output.output_type == "stream")
    big, small = (
        int(number.replace(",", "")) for number in re.search(r"([\d,]+) parameters -> ([\d,]+),", printed).groups()
    )
    assert small < big
