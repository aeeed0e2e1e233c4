"""Whether command lines are accepted: each program parses its own, and ends where it would begin to work.

A process for all of them, which imports what they share once, and a fork of it for each.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from unittest import mock

import processes

from tfnas.config import starting


class Accepted(BaseException):
    """Raised in place of the work; no Exception, so that no program takes it for an error."""


def _accept(*_, **__):
    raise Accepted


def _tfnas(argv):
    from tfnas import cli

    # `tfnas run` with other formats would look for their packages, which is work too.
    with (
        mock.patch.object(cli, "_load", _accept),
        mock.patch.object(cli, "_tune", _accept),
        mock.patch.object(starting, "write", _accept),
        mock.patch.object(cli, "_run_stage", _accept),
        mock.patch("tfnas.runs.workdir.Workdir.claim", lambda self, config: config.check()),
    ):
        sys.argv = argv
        cli.cli()


def _pipeline(argv):
    from pipelines import run

    with (
        mock.patch.object(run, "run_locally", _accept),
        mock.patch.object(run, "submit_to_kubeflow", _accept),
        mock.patch.object(run, "vertex_job", _accept),
    ):
        sys.argv = argv
        run.cli()


def _server(argv):
    sys.argv = argv
    with mock.patch("tfnas.serving.versions.newest", _accept):
        runpy.run_module("tfnas.serving.server", run_name="__main__")


def _script(argv, load=runpy.run_path):
    from absl import app, flags

    from tfnas import config

    def parsed(_main, **_options):
        flags.FLAGS(sys.argv)
        if "config" in flags.FLAGS:
            config.from_config_dict(flags.FLAGS.config)
        raise Accepted

    def begun(command, **_options):
        # A script that runs `tfnas` accepts what that does.
        run(["tfnas", *map(str, command[1:])])
        raise Accepted

    parse = argparse.ArgumentParser.parse_args

    def parse_args(self):
        parse(self)
        raise Accepted

    sys.argv = argv
    with (
        mock.patch.object(app, "run", parsed),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        mock.patch.object(subprocess, "run", begun),
    ):
        load(argv[0], run_name="__main__")


def _module(argv):
    _script(argv, runpy.run_module)


_MODULES = {
    "tfnas.serving.server": _server,
    "pipelines.run": _pipeline,
}


def run(words):
    """Runs the program that a command's words name until it would begin to work."""
    program, *rest = words
    name = os.path.basename(program)
    if name == "tfnas":
        with tempfile.TemporaryDirectory() as folder:
            starting.write(folder)  # what `tfnas init search` writes
            _tfnas([word.replace("--config=search/", f"--config={folder}/") for word in words])
    elif name == "python" and rest[0] == "-m" and (rest[1] in _MODULES or rest[1].startswith("benchmarks.")):
        _MODULES.get(rest[1], _module)(rest[1:])
    elif name == "python" and rest[0].startswith("examples/"):
        # These take no flags, and are run by test_examples.py.
        _accept() if os.path.exists(rest[0]) and not rest[1:] else sys.exit("no such example, or flags for it")
    elif name == "python" and rest[0].endswith(".py"):
        _script(rest)
    else:
        raise ValueError("no program whose command line is known here")


def _refusal(words):
    """What a fork of this process says to a command, or nothing if it accepts it."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with os.fdopen(reading) as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        return "" if os.waitstatus_to_exitcode(status) == 0 else said or "refused"
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    try:
        run(words)
    except Accepted:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def main(commands, answers):
    """Writes to the file `answers` what is said to each of the commands in the file `commands`, as JSON."""
    with open(commands) as file:
        refused = [_refusal(words) for words in json.load(file)]
    with open(answers, "w") as file:
        json.dump(refused, file)


def refusals(commands, folder):
    """What is said to each command (a list of words): '' if it is accepted."""
    (folder / "commands.json").write_text(json.dumps(commands))
    # What defines no flags, as those of two programs have the same names.
    code = "import sys, accepted\nimport tfnas.config, pipelines.nas_pipeline\naccepted.main(*sys.argv[1:])"
    arguments = [folder / "commands.json", folder / "answers.json"]
    process = processes.start(code, arguments, folder / "stdout", folder / "stderr")
    process.join()
    assert process.exitcode == 0, (folder / "stderr").read_text()
    return json.loads((folder / "answers.json").read_text())
