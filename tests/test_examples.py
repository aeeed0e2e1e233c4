"""The scripts in examples/ run, with fewer epochs, images and candidates, and are notebooks of percent cells."""

import ast
import contextlib
import io
import re

import jupytext
import matplotlib.pyplot as plt
import nbclient
import pytest
from conftest import ROOT

from benchmarks import shrink_tasks

EXAMPLES = sorted(ROOT.glob("examples/*.py"))
FEW = {"TRAINING_EPOCHS": 1, "EPOCHS": 0}
SMALLER = {
    "digits_in_five_minutes": {"EPOCHS": 1, "RETRAIN_EPOCHS": 1, "CANDIDATES": 5},
    "regression": FEW,
    "several_labels": {**FEW, "NUM_IMAGES": 60, "WIDTHS": (4, 4)},
    "shrink_mobilenet": {**FEW, "NUM_IMAGES": 67},
    "u_net": {**FEW, "NUM_IMAGES": 50, "WIDTHS": (4, 4)},
    "vision_transformer": {**FEW, "NUM_IMAGES": 60, "BLOCKS": 1},
}
# Networks that are traced in seconds; tests/test_any_model.py cuts the real ones.
SMALL_NETWORKS = {
    "digits_in_five_minutes": (
        "tfnas.supernets.multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))",
        "keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), "
        "keras.layers.Conv2D(8, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])",
    ),
    "shrink_mobilenet": (
        'keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")',
        "keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), "
        "keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()])",
    ),
}
# A kernel takes longer to start than an example to run, and one shows that notebooks run: the one that saves no time
# when operations run one by one.
IN_A_KERNEL = "digits_in_five_minutes"


@pytest.fixture
def quickly(eager, monkeypatch):
    """Operations one by one, and of the importances that `shrink` compares the first; tests/shrinking has them all."""
    from tfnas.shrinking.phases import searching
    from tfnas.training.best_cut import AtOnce

    monkeypatch.setattr(searching, "best_at_once", lambda supernet, posterior, *_: AtOnce("curvature", posterior, {}))


def code_cells(name):
    """The notebook of an example made smaller, and its code cells."""
    code = (ROOT / f"examples/{name}.py").read_text()
    for constant, value in SMALLER[name].items():
        code, found = re.subn(rf"^{constant} = (\d+|\(.+?\))", f"{constant} = {value}", code, flags=re.MULTILINE)
        assert found == 1, constant
    given, small = SMALL_NETWORKS.get(name, ("", ""))
    assert given in code
    notebook = jupytext.reads(code.replace(given, small) if given else code, fmt="py:percent")
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def check(shown, printed):
    """What cells that end with a value show as HTML, and what the last cell prints."""
    assert shown and all("<svg" in html or "<table" in html for html in shown)
    big, small = (
        int(number.replace(",", "")) for number in re.search(r"([\d,]+) parameters -> ([\d,]+),", printed).groups()
    )
    assert small < big


def test_cells_are_code_or_markdown():
    assert [path.stem for path in EXAMPLES] == sorted(SMALLER)
    for path in EXAMPLES:
        head, *cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
        assert "format_name: percent" in head
        assert len(cells) > 10
        for cell in cells:
            kind, _, text = cell.partition("\n")
            assert kind in ("", " [markdown]")
            assert all(line.startswith("#") for line in text.split("\n") if line) == (kind == " [markdown]"), text


def run(name):
    """Runs an example in this process, cell by cell; returns its names, what cells show, and what the last prints."""
    namespace, shown = {"__name__": "__main__"}, []
    for cell in code_cells(name)[1]:
        *statements, last = ast.parse(cell.source).body
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if isinstance(last, ast.Expr) and isinstance(last.value, ast.Name | ast.Attribute):
                exec(compile(ast.Module(statements, []), name, "exec"), namespace)
                shown.append(eval(ast.unparse(last), namespace)._repr_html_())
            else:
                exec(cell.source, namespace)
    return namespace, shown, printed.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the .tf.config")  # of the fixture `eager`
@pytest.mark.parametrize("name", sorted({*SMALLER} - {IN_A_KERNEL}))
def test_examples_of_shrink_run(name, tmp_path, monkeypatch, quickly):
    """Without a warning, without a display; the benchmark makes its table of their results."""
    monkeypatch.chdir(tmp_path)
    namespace, shown, printed = run(name)
    check(shown, printed)
    if name in shrink_tasks.EXAMPLES:
        row = shrink_tasks.cells(name, namespace["result"])
        assert row[0] == name.replace("_", " ") and len(row) == len(shrink_tasks.COLUMNS)
        assert all(re.fullmatch(r"[\d.,]+ -> [\d.,]+", cell) for cell in row[2:-1])
    if name == "u_net":
        assert (tmp_path / "masks.png").exists()
        plt.close("all")


@pytest.mark.slow
def test_an_example_runs_as_a_notebook(tmp_path, monkeypatch):
    """In a kernel of its own, without a display; a cell that ends with a name shows its value."""
    notebook, cells = code_cells(IN_A_KERNEL)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        output.data["text/html"]
        for cell in cells
        for output in cell.outputs
        if output.output_type == "execute_result" and re.search(r"(^|\n)\w+(\.\w+)?$", cell.source)
    ]
    printed = "".join(output.text for output in cells[-1].outputs if output.output_type == "stream")
    check(shown, printed)


def test_the_benchmark_names_examples():
    assert set(shrink_tasks.EXAMPLES) <= {path.stem for path in EXAMPLES}
