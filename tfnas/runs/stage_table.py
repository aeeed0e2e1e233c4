"""The stages of a run: the settings and files that each depends on, the files that it writes, and their names.

`STAGES` is the one table. From it follow a stage's key, whether it is up to date, and which stage to run for a file
that is missing. `tests/stages/test_stage_settings.py` compares its settings with those that a stage reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import tfnas.config
from tfnas.common import digests

MANIFEST = "manifest.json"
CHECKPOINTS = "search/checkpoints"
WARMUP_CHECKPOINTS = "search/warmup_checkpoints"
HISTORY = "search/history.jsonl"
SUPERNET = "search/supernet.keras"
POSTERIOR = "posterior.json"
EVALUATIONS = "sample/evaluations.jsonl"
SHARDS = "sample/shards"
LATENCIES = "search/latencies.json"
LATENCY_BOUND = "sample/latency_bound.json"
CANDIDATES = "sample/candidates.jsonl"
RANKING = "sample/ranking.json"
FRONT = "sample/front.json"
FRONT_PLOT = "sample/front.png"
ARCHITECTURE = "architecture.json"
CUT_ARCHITECTURE = "retrain/architecture.json"
SUBNET = "retrain/subnet.keras"
RESULTS = "retrain/results.json"
EVALUATION = "evaluation.json"
EXPORT_RESULTS = "export/results.json"
REPORT = "report.html"


@dataclasses.dataclass(frozen=True)
class Stage:
    """The dependencies and outputs of a stage.

    Attributes:
        settings: that change its result: whole sections, or 'section.name'.
        inputs: files of earlier stages.
        outputs: files it writes, besides those it names when it ends.
        optional: files of earlier stages that it reads where they are of the same settings.
        sometimes: files that it writes with some settings only, and then names when it ends.
        foreseen: settings of later stages, read only to refuse what those could not do: they change no result.
    """

    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    sometimes: tuple[str, ...] = ()
    foreseen: tuple[str, ...] = ()


# Of sample's settings, those by which retrain chooses, measures and recalibrates networks. The others it knows by what
# sample wrote.
_MEASURED = (
    *("sample.batch_size", "sample.num_random", "sample.num_tested", "sample.recalibrate"),
    "sample.channel_multiple",
)
TASK = ("task", "loss", "metric", "metric_goal")
# In the order of the run.
STAGES = {
    "search": Stage(
        ("data", "supernet", "search", "training", "seed", *TASK),
        (),
        (SUPERNET, HISTORY, POSTERIOR),
        foreseen=("sample.parameters", "sample.multiply_adds", "sample.latency", "sample.channel_multiple"),
    ),
    "sample": Stage(
        ("data", "sample", "seed", "search.latency_device", *TASK),
        (SUPERNET, POSTERIOR),
        (CANDIDATES, RANKING, ARCHITECTURE),
        sometimes=(FRONT, FRONT_PLOT),
    ),
    "retrain": Stage(
        ("data", "supernet", "search", "retrain", "training", "seed", *TASK, *_MEASURED),
        (SUPERNET, RANKING, ARCHITECTURE),
        (CUT_ARCHITECTURE, SUBNET, RESULTS),
    ),
    "evaluate": Stage(("evaluate", *TASK[:1], *TASK[2:]), (RESULTS,), (EVALUATION,)),
    # The model card tells of all that made the network, so each setting of it counts.
    "export": Stage(
        ("data", "supernet", "search", "sample", "retrain", "training", "evaluate", "export", "seed", *TASK),
        (SUBNET, CUT_ARCHITECTURE, RESULTS, EVALUATION, SUPERNET, POSTERIOR, RANKING),
        (EXPORT_RESULTS,),
    ),
    "report": Stage(
        ("data", "supernet", "search", "sample", "retrain", "training", "evaluate", "export", "seed", *TASK),
        (HISTORY, POSTERIOR, CANDIDATES, RANKING, ARCHITECTURE, RESULTS, EVALUATION),
        (REPORT,),
        (FRONT, EXPORT_RESULTS),
    ),
}
WRITERS = {name: stage for stage, spec in STAGES.items() for name in (*spec.outputs, *spec.sometimes)}
WITHOUT_TENSORFLOW = ("evaluate", "report")  # stages that need not wait for its import
# What a search is: with another value of any of these, the results in a working directory are another run's.
# The location of the data is not part of it, nor the reaction to a failed search, nor how fast and safely it runs: a
# run may be resumed on other devices.
NEUTRAL = (
    "distribution",
    "data.data_dir",
    "search.guard",
    "training.jit_compile",
    "training.checkpoint_minutes",
    "training.checkpoints_kept",
)


def before(stage: str) -> list[str]:
    """All stages that one builds on, in the order of the run."""
    direct = {WRITERS[name] for name in STAGES[stage].inputs}
    every = direct.union(*map(before, direct))
    return [other for other in STAGES if other in every]


def every_setting(config: tfnas.config.Config) -> dict[str, Any]:
    """All settings, by section, as JSON has them: with lists for tuples."""
    return json.loads(json.dumps(tfnas.config.to_dict(config.check())))


def settings(config: tfnas.config.Config, names: Iterable[str]) -> dict[str, Any]:
    """Settings that change a result, by section: of the whole sections named, and those named 'section.name'."""
    values = every_setting(config)
    found: dict[str, Any] = {}
    for name in names:
        section, _, key = name.partition(".")
        if key:
            found.setdefault(section, {})[key] = values[section][key]
        elif isinstance(values[section], Mapping):
            found[section] = {k: v for k, v in values[section].items() if f"{section}.{k}" not in NEUTRAL}
        else:
            found[section] = values[section]
    return found


def config_digest(config: tfnas.config.Config) -> str:
    """Hex SHA-256 of every setting that changes a result of a run."""
    return digests.of_value(settings(config, STAGES["report"].settings))


# Settings of a search whose values follow from others where they are left out.
DERIVED = ("schedule", "warmup_epochs", "cosine_epochs", "weight_decay", "initial_drop")


def recognized(difference: tuple[str, Any, Any]) -> tuple[bool, bool]:
    """Orders differences between two configs: settings that somebody chose before those that follow from others.

    Args:
        difference: a setting, its value in the config that is held, and in the one that is given.
    """
    key, _, given = difference
    section, _, name = key.partition(".")
    left_out = section == "search" and given == getattr(tfnas.config.Search(), name)
    return section == "search" and name in DERIVED, left_out


def followed(key: str, held: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The setting of retrain's that search's `key` follows where it is left out, and its values in two configs.

    None where `key` was set, in one of them, by itself.
    """
    both = (held, current)
    if key == "search.weight_decay":
        name, follows = "weight_decay", [c["retrain"]["weight_decay"] for c in both]
    elif key == "search.cosine_epochs":
        name, follows = "epochs", [c["search"]["epochs"] + c["retrain"]["epochs"] for c in both]
        if held["search"]["epochs"] != current["search"]["epochs"]:
            return None
    else:
        return None
    if follows != [c["search"][key.partition(".")[2]] for c in both]:
        return None
    return f"retrain.{name}", held["retrain"][name], current["retrain"][name]
