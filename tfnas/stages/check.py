"""Check: what a run will need and cost, before it is begun. Not one of the stages of a run."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnas.common.errors import unwrap_user_errors
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.exporting import conversion
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.costs import cost
from tfnas.ranking.engine import Engine
from tfnas.runs import workdir
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.training import building, distribution, loop, networks, preflight, schedules

_CANDIDATES = 4  # that are timed, after one that is not
_KEPT = 0.95  # share of the gated weights that they keep after a search with ell2, which may keep as much


def run(config: Config, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Builds the networks of `config`, takes steps at full batch size, prints and returns what was found.

    The folder does not become this config's: settings may still change. The test split is not read.

    Returns:
        `data`, what messages call it; `sizes`, number of examples by split ('test' only where it is known unread);
        `input_shape`, of one, or a dict of several by name; `classes`, names; `parameters`, trainable, of the
        supernet, and what its `gates` stand on, in words;
        `up_to_date`, names of the stages that a run would skip; `seconds`, about what those of search, sample and
        retrain will take that it would not.

    Raises:
        UserError: for bad settings, data, files or devices, too little room or memory, or a loss that is not finite.
    """
    config, work = config.check(), workdir.Workdir(path)
    conversion.require(config.export.formats)
    with unwrap_user_errors(), distribution.strategy(config.distribution).scope():
        return _check(config, work)


def _check(config: Config, work: workdir.Workdir) -> dict[str, Any]:
    networks.set_seed(config.seed)
    strategy = tf.distribute.get_strategy()
    _print("devices", distribution.describe(strategy))
    splits = networks.load_data(config, work)
    _print("data", f"{config.data.title}: {splits.summary()}")
    search, retrain = config.search, config.retrain
    plain = building.network(config, splits)
    supernet = networks.gated(config, splits, plain, work)
    parameters = cost(supernet.graph).parameters
    _print("supernet", f"{parameters:,} parameters, {networks.gates_in_words(supernet)}")
    if isinstance(supernet, UnitSupernet):
        _print("", supernet.removable())
    needed, free = preflight.room(work, supernet, config.training.checkpoints_kept)
    _print("folder", f"{work.path}: writable, {_bytes(free)} free, about {_bytes(needed)} needed")
    done = work.up_to_date(config)
    if done:
        _print("", f"up to date there, will not run again, and not counted in all: {', '.join(done)}")

    steps = splits.sizes["train"] // search.batch_size
    networks.compile_gated(config, supernet, schedules.search(config, max(1, steps)))
    gated = _measured("search", config, splits, supernet, search.batch_size)
    networks.compile_plain(config, plain, schedules.search(config, max(1, steps)), retrain.weight_decay)
    gateless = _measured("retrain", config, splits, plain, retrain.batch_size)
    ranked = _measured_ranking(config, splits, supernet)  # last, so that its memory is not counted as training's
    times = preflight.times(config, splits.sizes, gated, gateless, ranked, _devices(config))
    _print_times(config, splits, times, done)
    return {
        "data": config.data.title,
        "sizes": splits.sizes,
        "input_shape": splits.inputs.shapes,
        "classes": list(splits.label_names),
        "parameters": parameters,
        "gates": networks.gates_in_words(supernet),
        "up_to_date": done,
        "seconds": round(sum(time.seconds for stage, time in times.items() if stage not in done), 1),
    }


def _measured(
    title: str, config: Config, splits: pipeline.Splits, model: keras.Model, batch_size: int
) -> preflight.Measured:
    """Steps as the run will take them."""
    settings = config.training

    def batches(first_step: int, share: pipeline.Share) -> tf.data.Dataset:
        return pipeline.training_batches(splits, config.data, batch_size, 100, config.seed, first_step, share)

    def measured(jit_compile: bool) -> preflight.Measured:
        with networks.precision(model, settings.precision):
            return preflight.measure(loop.Step(model, settings.accumulate, jit_compile, task=splits.task), batches)

    found = measured(settings.jit_compile)
    total = preflight.memory_bytes()
    of = f" of {_bytes(total)}" if total else " of the GPU's"
    rate = f"{batch_size / found.seconds:,.0f} {splits.inputs.nouns}/s"
    speed = f"a batch of {batch_size}: {1000 * found.seconds:,.0f} ms, {rate}"
    memory = f"up to {_bytes(found.memory_bytes)}{of} in use"
    _print(title, f"{speed}; {_once(found.tracing)}; {memory}")
    if _may_compile(settings.jit_compile):
        _compare(measured, settings.jit_compile, found)
    return found


def _measured_ranking(config: Config, splits: pipeline.Splits, supernet: Supernet) -> preflight.Ranked:
    """Candidates as sample will evaluate them: as large as the bounds allow, or nearly the whole network."""
    # Gradients are not taken yet, and candidates by any other importance take as long.
    early = "even" if config.search.importance == "curvature" else None
    posterior = supernet.posterior(early) if isinstance(supernet, UnitSupernet) else supernet.posterior()
    size, count = config.sample.batch_size, 1 + _CANDIDATES
    if isinstance(posterior, UnitPosterior):
        multiple = config.sample.channel_multiple
        asked = posterior.form.absolute(config.sample.bounds) or posterior.bounds
        posterior = dataclasses.replace(posterior, bounds=asked, channel_multiple=multiple)
        candidates = posterior.sample(count, config.seed)
    else:
        candidates = posterior.tilt(parameters=_KEPT * posterior.total_parameters()).sample(count, config.seed)
    one_batch = pipeline.evaluation_batches(splits.validation.take(size), config.data, size)
    recalibration = networks.recalibration(config, splits, supernet)
    found = preflight.measure_ranking(
        lambda: Engine(supernet, one_batch, size, config.seed, recalibration=recalibration),
        candidates,
    )
    size = min(size, splits.sizes["validation"])
    seconds = found.candidate_seconds + found.batch_seconds
    _print("sample", f"a candidate on {size} {splits.inputs.nouns}: {1000 * seconds:,.0f} ms; {_once(found.tracing)}")
    return found


def _devices(config: Config) -> int:
    """Number of devices, in all processes, that evaluate candidates in parallel."""
    strategy = distribution.ranking_strategy(config.distribution)
    return distribution.cluster().count * (len(strategy.extended.worker_devices) if strategy else 1)


def _print_times(
    config: Config, splits: pipeline.Splits, times: Mapping[str, preflight.Time], done: Sequence[str]
) -> None:
    """Prints the estimated time of each remaining stage, and the total."""
    search = config.search
    steps = splits.sizes["train"] // search.batch_size
    work = {
        "search": f"{search.epochs:,} epochs of {steps:,} steps",
        "sample": f"{preflight.num_candidates(config):,} candidates on {splits.sizes['validation']:,} "
        f"{splits.inputs.nouns}, if none leaves the race",
        "retrain": "all that is trained, as if it were as large as the full network",
    }
    left = {stage: time for stage, time in times.items() if stage not in done}
    for stage, time in left.items():
        _print(stage, f"{_shown(time)}: {work[stage]}")
    together = preflight.Time(sum(time.seconds for time in left.values()), sum(time.tracing for time in left.values()))
    _print("in all", f"{_shown(together)}; left out: the test {splits.inputs.nouns}, evaluate, export and report")


def _may_compile(jit_compile: bool) -> bool:
    """Whether to try the step with and without XLA: on a GPU, where either may be the faster, or where it is asked."""
    one = tf.distribute.get_strategy().num_replicas_in_sync == 1
    return one and (jit_compile or bool(tf.config.list_physical_devices("GPU")))


def _compare(measured: Callable[[bool], preflight.Measured], jit_compile: bool, found: preflight.Measured) -> None:
    other = measured(not jit_compile)
    ratio = other.seconds / found.seconds
    setting = str(not jit_compile).lower()
    _print("", f"with training.jit_compile={setting} {ratio:.2f} x the time" + (": set it" if ratio < 0.97 else ""))


def _shown(time: preflight.Time) -> str:
    return f"about {_duration(time.seconds)}, tracing and compiling {_duration(time.tracing)} of it"


def _once(seconds: float) -> str:
    return f"tracing and compiling, once: {seconds:.1f} s"


def _print(title: str, text: str) -> None:
    print(f"{title:9s} {text}")


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
