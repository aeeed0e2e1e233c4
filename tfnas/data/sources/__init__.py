"""Where images come from: a TFDS data set, a folder of files, a function of the user's, the bundled digits.

Each gives a `Source`: three disjoint splits of the images as they are. Preparing them is data.py's part.
"""

from __future__ import annotations

import pathlib

from tfnas import config as config_lib
from tfnas.data.sources import folders, prepared, returned
from tfnas.data.sources.folders import decode as decode
from tfnas.data.sources.prepared import Digits as Digits
from tfnas.data.sources.splits import SPLITS as SPLITS
from tfnas.data.sources.splits import Source as Source


def load(config: config_lib.Data, folder: pathlib.Path) -> Source:
    """The splits that `config` names. Raises UserError for what is unknown, absent, malformed or overlapping."""
    if config.source:
        return returned.from_function(config)
    if config.folder:
        return folders.from_folder(config)
    return prepared.from_tfds(config, folder)


def check_test(config: config_lib.Data, folder: pathlib.Path) -> None:
    """Sees that the files of the test split are whole, where TFDS prepared them: before it is read, and not sooner.

    Raises:
        UserError: naming the file that was truncated or altered.
    """
    if not (config.source or config.folder):
        prepared.check_test(config, folder)
