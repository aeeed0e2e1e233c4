"""The examples of four tasks, run as they are: their networks before and after `tfnas.shrink`, as one table.

    .venv/bin/python -m benchmarks.shrink_tasks [--record=docs/results/records/tasks.json]

examples/u_net.py, regression.py, several_labels.py and vision_transformer.py say how each network is built, trained and
made smaller. Validation chooses; test is read at the end.
"""

import contextlib
import pathlib
import runpy
import sys
import tempfile

from absl import app

from benchmarks import records
from tfnas.shrinking.result import Shrunk

_RECORD = records.flag()
_FOLDER = pathlib.Path(__file__).parents[1] / "examples"
EXAMPLES = ("u_net", "regression", "several_labels", "vision_transformer")
COLUMNS = ("network", "metric", "validation", "test", "parameters", "multiply-adds", "right after the cut, validation")


def cells(name: str, found: Shrunk) -> list[str]:
    """A row of the table, of the `result` of the example with this name."""
    before, after = found.before, found.after
    metric = next(key for key in after.metrics if key != "loss")
    scores = ((before.metrics, after.metrics), (before.test, after.test))
    sizes = ((before.parameters, after.parameters), (before.multiply_adds, after.multiply_adds))
    return [
        name.replace("_", " "),
        metric,
        *(f"{full[metric]:.3f} -> {small[metric]:.3f}" for full, small in scores),
        *(f"{full:,} -> {small:,}" for full, small in sizes),
        f"{found.after_cut[metric]:.3f}",
    ]


def main(_):
    """Prints the table; what the examples print themselves is on standard error."""
    record = records.Record(_RECORD.value)
    record.heading(*COLUMNS)
    for name in EXAMPLES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            with contextlib.redirect_stdout(sys.stderr):
                found = runpy.run_path(str(_FOLDER / f"{name}.py"))
        record.row(*cells(name, found["result"]))
    record.keep()


if __name__ == "__main__":
    app.run(main)
