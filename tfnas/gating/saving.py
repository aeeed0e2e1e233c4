"""Reads `.keras` files, in this file only, without running any code from them."""

from __future__ import annotations

import os
import pathlib
import zipfile
from typing import TypeVar

import keras

from tfnas.common.errors import UserError
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet as UnitSupernet  # so that Keras knows it

_Model = TypeVar("_Model", bound=keras.Model)
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}  # the files in a model that Keras saved
_LONGEST = 300  # characters of Keras's message, which may contain the entire config


def load_model(path: pathlib.Path, kind: type[_Model]) -> _Model:
    """Loads the model in a `.keras` file, which may have been altered.

    Keras's safe mode rejects code in the file (that of a Lambda), and the file can only name classes and functions of
    Keras and those that are registered already: no module of another package is imported. Members other than Keras's
    three, which Keras would unpack to disk, and compressed ones, which may expand without bound, are rejected first.

    Args:
        path: of the file.
        kind: class that the model must be of: `Supernet`, or `keras.Model` for any.

    Raises:
        UserError: naming the file, if it is missing, damaged, unsafe, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        names = sorted(m.filename for m in members if m.compress_type == zipfile.ZIP_STORED)
        if names != sorted(_MEMBERS) or len(members) != len(names):
            raise ValueError(
                f"{', '.join(sorted(_MEMBERS))} expected, uncompressed. Received: {[m.filename for m in members]}"
            )
        model = keras.models.load_model(path, safe_mode=True)
    except Exception as error:  # whatever zipfile, h5py, Keras and its layers raise for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: cannot be loaded as a Keras model ({reason[:_LONGEST]})") from None
    if not isinstance(model, kind):
        raise UserError(f"{path}: a {kind.__name__} expected. Received: {type(model).__name__}")
    return model


def load(path: str | os.PathLike[str]) -> Supernet:
    """Loads a supernet that a search wrote, as WORKDIR/search/supernet.keras, or that `save` did; compiled as before.

    Args:
        path: of the file.

    Raises:
        UserError: naming the file, if it is missing, damaged, unsafe, or holds no supernet.
    """
    return load_model(pathlib.Path(path), Supernet)  # type: ignore[type-abstract]
