"""The newest version in the folder of an exported model. No TensorFlow: a mistyped path is reported at once."""

from __future__ import annotations

import os
import pathlib

from tfnas.common.errors import UserError

_SAVED_MODEL = "saved_model.pb"


def newest(base_path: str | os.PathLike[str], title: str) -> pathlib.Path:
    """The folder with the highest number in `base_path`, as TensorFlow Serving chooses it.

    Args:
        base_path: folder of the model, with a numbered one for each version.
        title: how the message begins: the flag or the argument that gave `base_path`.

    Raises:
        UserError: if it has no version, or the newest is not a SavedModel; the message names what was
            probably meant.
    """
    folder = pathlib.Path(base_path)
    if not os.path.exists(folder):
        raise UserError(f"{title}: '{folder}' is not there")
    if not os.path.isdir(folder):
        raise UserError(f"{title}: '{folder}' is not a folder")
    versions = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()}
    if versions:
        version = versions[max(versions)]
        if not (version / _SAVED_MODEL).exists():
            raise UserError(f"{title}: '{version}' is not a SavedModel: it has no file '{_SAVED_MODEL}'")
        return version
    if (folder / _SAVED_MODEL).exists():
        if os.path.basename(os.path.abspath(folder)).isdecimal():
            above = os.path.normpath(folder / os.pardir)
            raise UserError(f"{title}: '{folder}' is itself a version: give the folder above it, '{above}'")
        raise UserError(
            f"{title}: '{folder}' is a SavedModel without a version: move its files into a folder in it, "
            f"'{folder / '1'}'"
        )
    # Below an `export`, or a run's working directory.
    found = [*folder.glob(f"*/*/{_SAVED_MODEL}"), *folder.glob(f"export/*/*/{_SAVED_MODEL}")]
    models = sorted(file.parent.parent for file in found if file.parent.name.isdecimal())
    if models:
        inside = models[0].relative_to(folder)
        raise UserError(f"{title}: '{folder}' holds no version, but '{inside}' does: give '{models[0]}'")
    raise UserError(
        f"{title}: '{folder}' holds no version, a numbered folder with a SavedModel, such as tfnas export writes"
    )
