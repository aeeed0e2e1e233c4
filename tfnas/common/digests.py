"""SHA-256 digests of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from tfnas.common.errors import UserError


def of_file(path: pathlib.Path) -> str:
    """Hex SHA-256 of a file, or of a folder's file names and contents.

    Raises:
        UserError: if it is neither, such as a pipe, which may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: a file or a folder expected. Received: neither; delete it")
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            sha.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                sha.update(block)
    return sha.hexdigest()


def of_value(value: Any) -> str:
    """Hex SHA-256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
