"""What a run shows on the terminal: one console for all, and TensorFlow started without its greeting."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import rich.console

console = rich.console.Console()
if not console.is_terminal:
    console = rich.console.Console(width=116)  # a log file has no width; the table needs this one


def load_tensorflow() -> Any:
    """Imports TensorFlow and finds its devices; returns the module.

    TensorFlow's C++ code greets on standard error with some ten lines that no log level silences. They are held back,
    and shown after all if the import fails, or if there is an NVIDIA device that TensorFlow could not use.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings stay
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        usable = False
        try:
            tensorflow = importlib.import_module("tensorflow")
            # Of several processes, a strategy must be made before the devices are.
            kind = "physical" if "TF_CONFIG" in os.environ else "logical"
            devices = getattr(tensorflow.config, f"list_{kind}_devices")("GPU")
            usable = bool(devices) or not os.path.exists("/dev/nvidia0")
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            if not usable:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))
    return tensorflow


@contextlib.contextmanager
def errors_expected() -> Iterator[None]:
    """While it lasts, nothing reaches standard error: TensorFlow logs errors that are caught, as if nobody knew."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
