"""Find a small, accurate network inside a big one.

tfnas STAGE --config=configs/NAME.py --workdir=DIR [--config.search.parameters=0.5 ...]

STAGE is one of:
  search    train the super-network and learn how likely each channel is to be dropped
  sample    draw candidates from that posterior and rank them on the validation split
  retrain   cut the best one out, train it further, compare on the test split
  evaluate  hold it against the thresholds of config.evaluate
  export    write and check a SavedModel, if it meets them
  report    write report.html
  run       all of these, in this order
or, before them,
  preview   write preview.png, images as the network will see them, and print the data's sizes, mean and std
  check     build the networks, take some steps, and say what the run will need and how long it will take
  tune      search with each of the values that config.tune names, and say which found the best network

`tfnas sample --shard=i/n` evaluates one part of the candidates, for several machines; `tfnas sample` then ranks all.
A stage that is up to date is skipped; an interrupted one goes on from where it was.
`--config.KEY=VALUE` overrides any setting; tfnas/config/sections lists them all.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from tfnas import config as config_lib
from tfnas.common import terminal, user_functions
from tfnas.common.errors import UserError, brief, exit_on_error, fail
from tfnas.runs import provenance, stage_table, workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it does not exist.")
_SHARD = flags.DEFINE_string(
    "shard", "", "Of sample: i/n evaluates part i of n only; without it, what all parts evaluated is ranked."
)
_VERSION = flags.DEFINE_bool("version", False, "Print the version and end.")

_PREFIX = "--config."
_BEFORE = ("preview", "check")  # what is no stage of a run
_TUNE = "tune"  # nor is this
_DISTRIBUTED = ("search", "sample", "retrain")  # stages that several processes share


def cli() -> None:
    """The console script `tfnas`."""
    sys.modules["__main__"].__doc__ = __doc__  # what absl prints for --help
    terminal.define_help()
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The positional arguments; a mistake in a flag ends the process with one line and exit code 2."""
    try:
        for argument in argv[1:]:
            if argument.startswith(_PREFIX) or argument.startswith(_PREFIX[1:]):
                key, _, value = argument.lstrip("-").removeprefix("config.").partition("=")
                config_lib.parse_value(key, value)
            elif argument.startswith(_PREFIX[:-1] + "=") and not os.path.exists(argument.partition("=")[2]):
                raise UserError(
                    f"--config: a Python file expected, such as configs/digits.py. Received: "
                    f"{brief(argument.partition('=')[2])}, which is not there"
                )
        return _parsed(argv)
    except UserError as error:
        fail(str(error), 2)
    except Exception as error:  # whatever a config file, which is the user's own Python, may raise
        if isinstance(error, flags.Error) and "parsing config file" not in str(error):
            fail(str(error), 2)
        # Of what the file raised, ml_collections and absl make errors of their own, with the traceback as message.
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        fail(f"--config: the file could not be read: {user_functions.describe(cause)}", 2)


def _parsed(argv: Sequence[str]) -> list[str]:
    """What absl makes of the flags; one that it does not know is often a setting without its `--config.SECTION.`."""
    try:
        return flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        meant = " or ".join(f"{_PREFIX}{key}" for key in config_lib.keys_named(name.replace("-", "_")))
        if not meant and "Did you mean" in str(error):
            raise  # another flag is near
        hint = f": did you mean {meant}?" if meant else ""
        raise UserError(f"Unknown command line flag '{name}'; settings are --config.SECTION.KEY=VALUE{hint}") from None


def main(argv: Sequence[str]) -> None:
    """Runs the stage that the command line names.

    A user's mistake, and a file that cannot be written, end with one line and exit code 1.
    """
    if _VERSION.value:
        print(f"tfnas {provenance.versions()['tfnas']}")
        return
    with exit_on_error(_WORKDIR.value or "--workdir"):
        _run(argv[1:])


def _run(arguments: Sequence[str]) -> None:
    choices = [*stage_table.STAGES, "run", *_BEFORE, _TUNE]
    if len(arguments) != 1 or arguments[0] not in choices:
        raise UserError(f"one stage expected, of {', '.join(choices)}. Received: {' '.join(arguments) or 'none'}")
    if _WORKDIR.value is None:
        raise UserError("--workdir=DIR expected, the folder of this run. Received: none")
    if _CONFIG.value is None:
        raise UserError("--config=FILE expected, for example --config=configs/digits.py. Received: none")
    # The user's own functions may stand beside the config file, or in it.
    user_functions.add_import_folder(
        os.path.dirname(config_flags.get_config_filename(flags.FLAGS["config"])) or os.curdir
    )
    config = config_lib.from_config_dict(_CONFIG.value)
    work = workdir.Workdir(_WORKDIR.value, writes=_is_chief())
    if arguments[0] in _BEFORE:
        _load(arguments[0]).run(config, work.path)
        return
    if arguments[0] == _TUNE:
        _tune(config, work)
        return
    if _SHARD.value:
        if arguments[0] != "sample":
            raise UserError(f"--shard: only the stage 'sample' has shards. Received: '{arguments[0]}'")
        _load("sample").run(config, work.path, _SHARD.value)
        return
    stages = list(stage_table.STAGES) if arguments[0] == "run" else [arguments[0]]
    if not work.writes:  # of several processes only the chief does what needs no training
        stages = [stage for stage in stages if stage in _DISTRIBUTED]
    with work.hold(_group()):  # as a whole: nobody else works between two stages
        work.claim(config)
        if "export" in stages and config.export.formats:
            _load("conversion", "tfnas.exporting").require(config.export.formats)
        for stage in stages:
            if arguments[0] == "run" and stage == "export" and not _blessed(work):
                print("export    left out: the network is not what was asked for")
                continue
            _run_stage(stage, config, work)
        if arguments[0] == "run" and work.writes:
            _say_end(work, config)


def _tune(config: config_lib.Config, work: workdir.Workdir) -> None:
    tuning = _load("tuner", "tfnas.tuning")
    best = tuning.run(config, work.path)
    given = config_flags.get_override_values(flags.FLAGS["config"])
    chosen = {key: value for key, value in given.items() if not key.startswith("tune.")}
    chosen |= {f"search.{name}": tuning.shown(value) for name, value in best.values.items()}
    options = [f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}"]
    options.append(f"--workdir={work.path / tuning.FOLDER / best.folder}")
    options += [f"--config.{key}={_typed(value)}" for key, value in chosen.items()]
    print(f"next      tfnas run {shlex.join(options)}     (its search is there)")


def _typed(value: Any) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run_stage(stage: str, config: config_lib.Config, work: workdir.Workdir) -> None:
    # Asked here first, because importing a stage loads TensorFlow, which takes longer than saying 'up to date'.
    work.check_upstream(stage, config)
    if work.is_current(stage, config):
        print(f"{stage:9s} up to date")
        return
    _load(stage).run(config, work.path)


def _blessed(work: workdir.Workdir) -> bool:
    from tfnas.reporting import acceptance

    return work.read_json(stage_table.EVALUATION, "run", acceptance.VERDICT)["blessed"]


def _is_chief() -> bool:
    return _in_cluster(True, lambda cluster: cluster.is_chief)


def _group() -> str:
    """Of the processes that may work in the folder beside this one."""
    return _in_cluster("", lambda cluster: cluster.name)


def _in_cluster(alone: Any, asked: Callable[[Any], Any]) -> Any:
    if "TF_CONFIG" not in os.environ:  # there is no other process, and no need to load what would look for them
        return alone
    terminal.load_tensorflow()
    from tfnas.training import distribution

    return asked(distribution.cluster())


def _load(name: str, package: str = "tfnas.stages") -> Any:
    if name not in stage_table.WITHOUT_TENSORFLOW:
        terminal.load_tensorflow()
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    return importlib.import_module(f"{package}.{name}")


def _say_end(work: workdir.Workdir, config: config_lib.Config) -> None:
    from tfnas.reporting import report, results

    report.print_table(work, config)
    print(f"report    {work.path / stage_table.REPORT}")
    if _blessed(work):
        exported = work.read_json(stage_table.EXPORT_RESULTS, "run", results.EXPORTED)
        print(f"model     {work.path / exported['saved_model']}     (SavedModel; how to serve it: docs/serving.md)")
    print("next      your own model and data: docs/your_model.md")


if __name__ == "__main__":
    cli()
