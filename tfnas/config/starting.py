"""Config files to start from, written by `tfnas init`."""

from __future__ import annotations

import importlib.resources
import os
import pathlib

from tfnas.common.errors import UserError

FILES = ("my_model.py", "digits.py")  # one's own model and images, and the demo


def write(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Writes the files to `folder`, which is created if it does not exist, and returns their paths.

    Raises:
        UserError: if one of them is already there; none is written then.
    """
    folder = pathlib.Path(folder)
    files = [folder / name for name in FILES]
    for file in files:
        if file.exists():
            raise UserError(f"init: {file} is already there; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    templates = importlib.resources.files("tfnas.config") / "templates"
    for file in files:
        text = (templates / f"{file.name}.txt").read_text(encoding="utf-8")
        file.write_text(text.replace("FOLDER/", f"{folder}/"), encoding="utf-8")
    return files
