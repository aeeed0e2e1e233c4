"""Processes of their own that need not import TensorFlow first, which takes as long as the rest of most tests.

They are forked from a server that has imported `preloaded.py` and done nothing else: nothing is initialized, no device
found. So each has its own exit code, environment, standard output and devices, and can be killed, as one begun by the
console script. That script itself is run by `test_cli.py` and by the whole run of `test_end_to_end.py`. Four things
are not as there: latencies are measured for milliseconds, exports reloaded by the same process (`reloading.py`), one
network from another importance compared, not three, and `cheaper.py` leaves out of tracing what it says.
"""

import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from unittest import mock

ROOT = pathlib.Path(__file__).parents[1]
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["preloaded"])


def _ensure_server():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # The level is what the command line sets before it imports TensorFlow.
    with mock.patch.dict(os.environ, {"TF_CPP_MIN_LOG_LEVEL": "1", "PYTHONPATH": path}):
        forkserver.ensure_running()


def share_server():
    """Lets this process, itself started by `start`, start others by the same server, which it would start anew."""
    multiprocessing.current_process()._config["daemon"] = False  # else it may start none
    globals()["_ensure_server"] = forkserver._forkserver.ensure_running = lambda: None


def start(code, arguments, stdout, stderr, **environment):
    """Runs Python code in a process of its own, in the repository's root.

    Args:
        code: its text.
        arguments: what it finds in `sys.argv[1:]`.
        stdout, stderr: files that it writes; may be one.
        environment: variables it has besides those of this process.

    Returns:
        The multiprocessing.Process.
    """
    _ensure_server()
    streams, environment = (str(stdout), str(stderr)), {**os.environ, **environment}
    # A daemon: gone with this process at the latest.
    process = _FORKED.Process(target=_run, args=(code, list(map(str, arguments)), streams, environment), daemon=True)
    process.start()
    return process


# TensorFlow, once imported, has absl look for devices as soon as a program begins: that is to be as silent as ever.
_TFNAS = """
from tfnas import cli
from tfnas.common import terminal
terminal.load_tensorflow()
cli.cli()
"""


def start_tfnas(arguments, stdout, stderr, **environment):
    """Starts what the console script runs, with these arguments."""
    return start(_TFNAS, arguments, stdout, stderr, **environment)


def _run(code, arguments, streams, environment):
    for descriptor, name in enumerate((os.devnull, *streams)):
        # Appended, as two streams to one file would otherwise write over each other.
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tfnas", *arguments]
    import preloaded  # which the server has

    preloaded.shorten()
    exec(compile(code, "<started>", "exec"), {"__name__": "__main__"})


# What only answers on the command line loads no TensorFlow, but each of its own imports takes a second, and kfp four.
_EACH = """
import importlib, json, os, sys
module, folder, lines = json.loads(sys.argv[1])
cli = importlib.import_module(module).cli
for i, line in enumerate(lines):
    if not (child := os.fork()):
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(folder, f"{i}.{name}"), os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = [module, *line]
        sys.exit(cli())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def answers(module, lines):
    """Runs the `cli` of a module with each list of arguments, in forks of one Python that has imported it.

    Returns:
        A subprocess.CompletedProcess for each.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _EACH, json.dumps([module, folder, lines])]
        codes = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        return [
            subprocess.CompletedProcess(
                line, int(code), *(pathlib.Path(folder, f"{i}.{name}").read_text() for name in ("stdout", "stderr"))
            )
            for i, (line, code) in enumerate(zip(lines, codes, strict=True))
        ]
