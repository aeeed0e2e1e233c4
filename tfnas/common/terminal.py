"""The shared console, help flags, and a quiet import of TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import rich.console
from absl import app, flags

console = rich.console.Console()
if not console.is_terminal:
    console = rich.console.Console(width=116)  # a log file has no width; the table needs 116 columns


def print_line(message: str, style: str | None = None, to: rich.console.Console = console) -> None:
    """Prints a message without wrapping it, so that commands can be copied."""
    to.print(message, style=style, highlight=False, markup=False, soft_wrap=True)


def warn(message: str, to: rich.console.Console = console) -> None:
    """Prints a warning."""
    print_line(message, style="yellow", to=to)


class _Help(flags.BooleanFlag):
    """A help flag that exits with code 0, unlike absl's own, which exits with 1."""

    def __init__(self, of: Any, short_name: str | None) -> None:
        super().__init__(of.name, False, of.help, short_name, allow_override=True, allow_hide_cpp=True)
        self._of = of

    def parse(self, argument: Any) -> None:
        try:
            self._of.parse(argument)
        except SystemExit:
            sys.exit(0)


def define_help() -> None:
    """Defines --help, -h, -?, --helpshort, --helpfull and --helpxml, so that `app.run` does not define its own."""
    app.define_help_flags()
    for name, short_name in (("help", "?"), ("helpshort", "h"), ("helpfull", None), ("helpxml", None)):
        flags.FLAGS[name] = _Help(flags.FLAGS[name], short_name)


def load_tensorflow() -> Any:
    """Imports TensorFlow, initializes its devices, and returns the module. GPU memory is allocated as needed.

    At import, TensorFlow's C++ code writes about ten lines to standard error, whatever the log level. They are
    suppressed, unless the import fails or there is an NVIDIA device that TensorFlow cannot use.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings stay
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        usable = False
        try:
            tensorflow = importlib.import_module("tensorflow")
            for gpu in tensorflow.config.list_physical_devices("GPU"):
                # By default, TensorFlow allocates all memory, which leaves none to other processes.
                with contextlib.suppress(RuntimeError, ValueError):  # the GPU is already in use
                    tensorflow.config.experimental.set_memory_growth(gpu, True)
            # With several processes, the strategy must be created before the logical devices.
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
    """Suppresses standard error, because TensorFlow also logs errors that are caught."""
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
