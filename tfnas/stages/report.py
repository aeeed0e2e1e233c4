"""Report: report.html from the files that the other stages left."""

from __future__ import annotations

import os

from tfnas.config import Config
from tfnas.reporting import report
from tfnas.runs import stage_table, workdir


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes the report of the run in `path`.

    Raises:
        UserError: if a stage that it tells of has not run, or left files that were changed since.
    """
    config, work = config.check(), workdir.Workdir(path)
    work.run_stage("report", config, lambda: _report(config, work))


def _report(config: Config, work: workdir.Workdir) -> None:
    html = report.html(work, config)
    work.write(stage_table.REPORT, lambda file: file.write_text(html, encoding="utf-8"))
