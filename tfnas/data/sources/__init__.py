"""Sources of examples: a TFDS data set or a folder of images, a user's function, the bundled digits.

Each returns a `Source`: three disjoint splits of raw examples, which pipeline.py prepares.
"""

from __future__ import annotations

import pathlib

from tfnas import config as config_lib
from tfnas.data.sources import folders, prepared, returned
from tfnas.data.sources.folders import decode as decode
from tfnas.data.sources.prepared import Digits as Digits
from tfnas.data.sources.splits import SPLITS as SPLITS
from tfnas.data.sources.splits import Source as Source
from tfnas.tasks.meanings import CLASSIFICATION
from tfnas.tasks.task import Task


def load(config: config_lib.Data, folder: pathlib.Path, task: Task = CLASSIFICATION) -> Source:
    """Loads the splits that `config` names. Raises UserError if they are unknown, missing, malformed or overlapping."""
    if config.source:
        return returned.from_function(config, task)
    if config.folder:
        return folders.from_folder(config)
    return prepared.from_tfds(config, folder)


def check_test(config: config_lib.Data, folder: pathlib.Path) -> None:
    """Checks that the files of a test split prepared by TFDS are complete. Called just before the split is read.

    Raises:
        UserError: naming the file that was truncated or altered.
    """
    if not (config.source or config.folder):
        prepared.check_test(config, folder)
