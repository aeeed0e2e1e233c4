"""Evaluate: whether what retrain measured is good enough to be exported. Reads no data, not even the test split.

The test split has two readers: the final evaluation in `stages/retrain.py`, and export, which scores what it wrote
(`exporting/verification.py`, `exporting/conversion.py`). Neither chooses a network by it.
"""

from __future__ import annotations

import os

from tfnas.common.terminal import warn
from tfnas.config import Config
from tfnas.reporting import acceptance
from tfnas.runs import stage_table, workdir
from tfnas.runs.measured import Results


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Holds the network in `path` against the thresholds of `config.evaluate`; writes evaluation.json.

    Raises:
        UserError: for bad settings or files, or if retrain has not run. A network that is not blessed is not an error.
    """
    config, work = config.check(), workdir.Workdir(path)
    work.run_stage("evaluate", config, lambda: _evaluate(config, work))


def _evaluate(config: Config, work: workdir.Workdir) -> None:
    measured = work.read_json(stage_table.RESULTS, "evaluate", Results)
    verdict = acceptance.judge(config.evaluate, measured, config.facts)
    work.write_json(stage_table.EVALUATION, verdict)
    begins = f"evaluate  {'blessed' if verdict.blessed else 'not blessed'}: "
    print(begins + f";\n{' ' * len(begins)}".join(acceptance.findings(verdict)))
    if doubted := acceptance.doubt(measured, config.facts):
        warn(f"evaluate  {doubted}")
