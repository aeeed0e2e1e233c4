"""What a run shows on the terminal: one console for all, help, and TensorFlow started without its greeting."""

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
    console = rich.console.Console(width=116)  # a log file has no width; the table needs this one


def print_line(message: str, style: str | None = None, to: rich.console.Console = console) -> None:
    """Prints a line unbroken, so that commands can be copied from it."""
    to.print(message, style=style, highlight=False, markup=False, soft_wrap=True)


def warn(message: str, to: rich.console.Console = console) -> None:
    """Prints a warning."""
    print_line(message, style="yellow", to=to)


class _Help(flags.BooleanFlag):
    """A help flag that ends with exit code 0. absl's own ends with 1, as if it were a mistake to ask."""

    def __init__(self, of: Any, short_name: str | None) -> None:
        super().__init__(of.name, False, of.help, short_name, allow_override=True, allow_hide_cpp=True)
        self._of = of

    def parse(self, argument: Any) -> None:
        try:
            self._of.parse(argument)
        except SystemExit:
            sys.exit(0)


def define_help() -> None:
    """Defines --help, -h, -?, --helpshort, --helpfull and --helpxml; `app.run` then leaves out its own."""
    app.define_help_flags()
    for name, short_name in (("help", "?"), ("helpshort", "h"), ("helpfull", None), ("helpxml", None)):
        flags.FLAGS[name] = _Help(flags.FLAGS[name], short_name)


def load_tensorflow() -> Any:
    """Imports TensorFlow and finds its devices; returns the module. Of a GPU's memory it then takes what it needs.

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
            for gpu in tensorflow.config.list_physical_devices("GPU"):
                # Else all of it is taken at once, and no other process on this machine finds any.
                with contextlib.suppress(RuntimeError, ValueError):  # whoever has begun to use it has decided
                    tensorflow.config.experimental.set_memory_growth(gpu, True)
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
