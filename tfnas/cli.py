"""Find a small, accurate network inside an oversized one.

tfnas init FOLDER       write config files to start from: your own model and images, and the demo
tfnas STAGE --config=configs/NAME.py --workdir=DIR [--config.search.parameters=0.5 ...]

STAGE is one of:
  search    train the supernet and learn the drop probability of each channel
  sample    sample candidates from the posterior and rank them on the validation split
  retrain   cut out the best candidate, retrain it, compare on the test split
  evaluate  compare the network with the thresholds of config.evaluate
  export    write and verify a SavedModel, if the thresholds are met
  report    write report.html
  run       all of these, in this order
or, before a run,
  preview   print the data's sizes, mean and std, and write preview.png, images as the network sees them
  check     build the networks, run some steps, and estimate the resources and time of a run
  tune      search with each of the values in config.tune, and report which found the best network

`tfnas sample --shard=i/n` evaluates one shard of the candidates, on one of several machines; `tfnas sample` then ranks
all. A stage that is up to date is skipped; an interrupted one is resumed.
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
from tfnas.config import starting
from tfnas.runs import provenance, stage_table, workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; created if it does not exist.")
_SHARD = flags.DEFINE_string(
    "shard", "", "For sample: i/n evaluates only shard i of n; without it, the evaluations of all shards are ranked."
)
_VERSION = flags.DEFINE_bool("version", False, "Print the version and exit.")

_PREFIX = "--config."
_BEFORE = ("preview", "check")  # not stages of a run
_TUNE = "tune"  # not a stage either
_INIT = "init"  # nor this, which has a folder instead of settings
_DISTRIBUTED = ("search", "sample", "retrain")  # stages that run in several processes


def cli() -> None:
    """The console script `tfnas`."""
    sys.modules["__main__"].__doc__ = __doc__  # what absl prints for --help
    terminal.define_help()
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags and returns the positional arguments; exits with one line and code 2 on an invalid flag."""
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
    except Exception as error:  # a config file is the user's Python and may raise anything
        if isinstance(error, flags.Error) and "parsing config file" not in str(error):
            fail(str(error), 2)
        # ml_collections and absl wrap the file's error in their own, with the traceback as the message.
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        fail(f"--config: the file could not be read: {user_functions.describe(cause)}", 2)


def _parsed(argv: Sequence[str]) -> list[str]:
    """Parses the flags with absl. An unknown flag is often a setting without its `--config.SECTION.`."""
    try:
        return flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        meant = " or ".join(f"{_PREFIX}{key}" for key in config_lib.keys_named(name.replace("-", "_")))
        if not meant and "Did you mean" in str(error):
            raise  # absl suggests another flag
        hint = f": did you mean {meant}?" if meant else ""
        raise UserError(f"Unknown command line flag '{name}'; settings are --config.SECTION.KEY=VALUE{hint}") from None


def main(argv: Sequence[str]) -> None:
    """Runs the stage that the command line names.

    Exits with one line and code 1 on a user error or a file that cannot be written.
    """
    if _VERSION.value:
        print(f"tfnas {provenance.versions()['tfnas']}")
        return
    with exit_on_error(_WORKDIR.value or "--workdir"):
        _run(argv[1:])


def _run(arguments: Sequence[str]) -> None:
    if arguments[:1] == [_INIT]:
        _init(arguments[1:])
        return
    choices = [*stage_table.STAGES, "run", *_BEFORE, _TUNE, _INIT]
    if len(arguments) != 1 or arguments[0] not in choices:
        raise UserError(f"expected one stage: {', '.join(choices)}. Received: {' '.join(arguments) or 'none'}")
    if _WORKDIR.value is None:
        raise UserError("--workdir=DIR is required, the folder of this run")
    if _CONFIG.value is None:
        raise UserError("--config=FILE is required, for example --config=configs/digits.py")
    # The user's own functions may be in the config file, or next to it.
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
    if not work.writes:  # with several processes, only the chief runs the other stages
        stages = [stage for stage in stages if stage in _DISTRIBUTED]
    with work.hold(_group()):  # held across stages, so that no other command starts in between
        work.claim(config)
        if "export" in stages and config.export.formats:
            _load("conversion", "tfnas.exporting").require(config.export.formats)
        for stage in stages:
            if arguments[0] == "run" and stage == "export" and not _blessed(work):
                print("export    skipped: the network does not meet the thresholds")
                continue
            _run_stage(stage, config, work)
        if arguments[0] == "run" and work.writes:
            _print_summary(work, config)


def _init(folders: Sequence[str]) -> None:
    if len(folders) != 1:
        received = " ".join(folders) or "none"
        raise UserError(f"init: one folder expected, for example: tfnas init search. Received: {received}")
    own, demo = starting.write(folders[0])
    print(f"wrote     {own}     (your own model and images: change what is marked)")
    print(f"wrote     {demo}     (the demo, runs as it is)")
    options = [f"--config={demo}", f"--workdir={demo.with_suffix('')}"]
    print(f"next      tfnas run {shlex.join(options)}")


def _tune(config: config_lib.Config, work: workdir.Workdir) -> None:
    tuning = _load("tuner", "tfnas.tuning")
    best = tuning.run(config, work.path)
    given = config_flags.get_override_values(flags.FLAGS["config"])
    chosen = {key: value for key, value in given.items() if not key.startswith("tune.")}
    chosen |= {f"search.{name}": tuning.shown(value) for name, value in best.values.items()}
    options = [f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}"]
    options.append(f"--workdir={work.path / tuning.FOLDER / best.folder}")
    options += [f"--config.{key}={_typed(value)}" for key, value in chosen.items()]
    print(f"next      tfnas run {shlex.join(options)}     (reuses its search)")


def _typed(value: Any) -> str:
    """Formats a setting's value for the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run_stage(stage: str, config: config_lib.Config, work: workdir.Workdir) -> None:
    # Checked first, because importing a stage loads TensorFlow, which takes seconds.
    work.check_upstream(stage, config)
    if work.is_current(stage, config):
        print(f"{stage:9s} up to date")
        return
    _load(stage).run(config, work.path)


def _blessed(work: workdir.Workdir) -> bool:
    from tfnas.runs.measured import Verdict  # its records take --help longer than all else of runs/

    return work.read_json(stage_table.EVALUATION, "run", Verdict).blessed


def _is_chief() -> bool:
    return _in_cluster(True, lambda cluster: cluster.is_chief)


def _group() -> str:
    """Name of the group of processes that may use the folder together."""
    return _in_cluster("", lambda cluster: cluster.name)


def _in_cluster(default: Any, query: Callable[[Any], Any]) -> Any:
    if "TF_CONFIG" not in os.environ:  # a single process: no need to load TensorFlow
        return default
    terminal.load_tensorflow()
    from tfnas.training import distribution

    return query(distribution.cluster())


def _load(name: str, package: str = "tfnas.stages") -> Any:
    if name not in stage_table.WITHOUT_TENSORFLOW:
        terminal.load_tensorflow()
    logging.set_verbosity(logging.WARNING)  # TFDS logs every file that it opens
    return importlib.import_module(f"{package}.{name}")


def _print_summary(work: workdir.Workdir, config: config_lib.Config) -> None:
    from tfnas.reporting import report
    from tfnas.runs.measured import Exported

    report.print_table(work, config)
    print(f"report    {work.path / stage_table.REPORT}")
    if _blessed(work):
        exported = work.read_json(stage_table.EXPORT_RESULTS, "run", Exported)
        print(f"model     {work.path / exported.saved_model}     (SavedModel; how to serve it: docs/serving.md)")
    print("next      your own model and data: docs/your_model.md")


if __name__ == "__main__":
    cli()
