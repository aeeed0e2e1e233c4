"""The one place where `.keras` files are read: nothing that stands in them is run."""

from __future__ import annotations

import os
import pathlib
import zipfile
from typing import TypeVar

import keras

from tfnas.common.errors import UserError
from tfnas.gating.supernet import Supernet

_Model = TypeVar("_Model", bound=keras.Model)
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}  # what Keras writes of a network's layers
_LONGEST = 300  # characters of Keras's message, which may hold the whole config


def load_model(path: pathlib.Path, kind: type[_Model]) -> _Model:
    """The model in a `.keras` file, which anybody may have altered.

    Keras's safe mode refuses code in the file (a Lambda's), and the file names no class or function but Keras's own and
    those that Python code has registered already: no module of another package is imported for it. Members other than
    Keras's three, which are unpacked to disk, and compressed ones, which may grow without end, are refused before.

    Args:
        path: of the file.
        kind: class that the model must be of: `Supernet`, or `keras.Model` for any.

    Raises:
        UserError: naming the file, if it is missing, damaged, unsafe, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        odd = [m.filename for m in members if m.filename not in _MEMBERS or m.compress_type != zipfile.ZIP_STORED]
        if odd or len(members) != len(_MEMBERS):
            raise ValueError(f"{', '.join(sorted(_MEMBERS))} expected in it, each as it is. Received: {odd or members}")
        model = keras.models.load_model(path, safe_mode=True)
    except Exception as error:  # whatever zipfile, h5py, Keras and its layers make of bytes that are not theirs
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: cannot be loaded as a Keras model ({told[:_LONGEST]})") from None
    if not isinstance(model, kind):
        raise UserError(f"{path}: a {kind.__name__} expected. Received: {type(model).__name__}")
    return model


def load(path: str | os.PathLike[str]) -> Supernet:
    """The supernet that a search wrote, as WORKDIR/search/supernet.keras, or that `save` did; compiled as it was.

    Args:
        path: of the file.

    Raises:
        UserError: naming the file, if it is missing, damaged, unsafe, or holds no supernet.
    """
    return load_model(pathlib.Path(path), Supernet)
