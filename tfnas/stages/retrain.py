"""Retrain: cut the winner out, train it further or not at all, and compare on the test split, at the very end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import statistics
from tfnas.config import Config
from tfnas.cutting.subnets import describe, subnet
from tfnas.data import pipeline, sources
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.graph.latencies import compare_latency
from tfnas.graph.models import file_bytes, without_optimizer
from tfnas.ranking import ranking
from tfnas.runs import stage_table, workdir
from tfnas.runs.measured import Results, Row, Size
from tfnas.runs.sampled import RANDOM, Kind, Paired, Ranked
from tfnas.search_space.architecture import Architecture
from tfnas.tasks.columns import Tally
from tfnas.tasks.functions import in_float32
from tfnas.training import building, distribution, networks, rivals, schedules
from tfnas.training.best_cut import check_exact
from tfnas.training.rivals import Arm
from tfnas.training.trained_baselines import Baselines, Means

_BEFORE = f"{Kind.FOUND}, before retraining"


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Cuts, retrains and evaluates the architecture that sample left in `path`.

    Raises:
        UserError: for bad settings or files, if sample has not run, for a loss that is no longer finite, or a network
            that does not compute what was ranked.
    """
    distribution.run_stage("retrain", config, path, _retrain)


def _retrain(config: Config, work: workdir.Workdir) -> None:
    networks.set_seed(config.seed)
    splits = networks.load_data(config, work)
    supernet = building.load_supernet(config, work)
    architecture = Architecture.from_json((work.path / stage_table.ARCHITECTURE).read_bytes())
    ranked = work.read_json(stage_table.RANKING, "retrain", Ranked)
    full = _full(config, splits, work) if config.retrain.baseline else None
    teacher = _teacher(config, splits, full)
    if isinstance(supernet, UnitSupernet):
        found, others = _within_bounds(config, work, splits, supernet, architecture, ranked, teacher)
        means: list[Means] = []
    else:
        found, others, means = _published(config, work, splits, supernet, architecture, ranked, teacher)
    if full:
        others.append(Arm(f"{Kind.FULL}, same total budget", Kind.FULL, full, cost(Graph(full))))

    compared = (*others, *found)
    known = [_known(arm, splits, config) for arm in compared]
    headline = config.facts.headline
    validation = [headline.of(facts["validation"]) for facts in known[len(others) :]]
    # On a tie the later, retrained one.
    chosen = found[::-1][headline.best(validation[::-1])]
    arguments = building.network_arguments(config, splits)
    text = describe(architecture, supernet.graph, building.builder_name(config), **arguments)
    work.write(stage_table.CUT_ARCHITECTURE, lambda file: file.write_text(text))
    work.write(stage_table.SUBNET, without_optimizer(chosen.model).save)
    turns = compare_latency([arm.model for arm in compared], config.search.latency_device)
    # Only now is the test split read, for networks that are all fixed.
    sources.check_test(config.data, work.path / "tensorflow_datasets")
    best = _scored(chosen.model, splits.test, splits, config)
    rows = []
    for arm, facts, taken in zip(compared, known, turns.seconds, strict=True):
        scored = best if arm is chosen else _scored(arm.model, splits.test, splits, config)
        row = Row(
            **facts,
            test=scored.metrics,
            latency_seconds=taken,
            paired=Paired(**statistics.Paired.of(best.errors, scored.errors).record()),
        )
        rows.append(row)
    for _, groups in itertools.groupby(means, key=lambda group: id(group.supernet)):
        rows += _means_on_test(list(groups), splits, config)
    total = cost(supernet.graph)
    results = Results(
        chosen=chosen.name,
        full=Size(total.parameters, total.multiply_adds),
        num_examples=len(best.errors),
        confusion=best.confusion,
        latency_spread=turns.spread,
        rows=tuple(sorted(rows, key=lambda row: (row.kind.place, row.fine_tuned))),
    )
    work.write_json(stage_table.RESULTS, results)


def _within_bounds(
    config: Config,
    work: workdir.Workdir,
    splits: pipeline.Splits,
    supernet: UnitSupernet,
    architecture: Architecture,
    ranked: Ranked,
    teacher: keras.Model | None,
) -> tuple[list[Arm], list[Arm]]:
    """Returns the network found, before and after retraining, and what other importances give within its bounds."""
    cuts = rivals.Cuts(config, splits, supernet, ranked.bounds)
    check_exact(supernet, architecture, subnet(supernet, architecture), _some(splits, config))
    before = cuts.arm(architecture, _BEFORE, Kind.FOUND)
    found = [before, *_retrained(config, work, splits, supernet, architecture, before, teacher)]
    others = rivals.at_once(cuts, config.search.importance)
    for importance in config.retrain.baselines:
        others.append(rivals.trained(config, splits, work, importance, ranked.bounds, teacher))
    return found, others


def _published(
    config: Config,
    work: workdir.Workdir,
    splits: pipeline.Splits,
    supernet: Supernet,
    architecture: Architecture,
    ranked: Ranked,
    teacher: keras.Model | None,
) -> tuple[list[Arm], list[Arm], list[Means]]:
    """Returns the network found, before and after retraining, and the paper's comparisons: networks and means."""
    recalibration = networks.recalibration(config, splits, supernet)

    def cut(architecture: Architecture, name: str, kind: Kind) -> Arm:
        if recalibration:
            recalibration.apply(architecture)
        return Arm(name, kind, subnet(supernet, architecture), cost(supernet.graph, architecture))

    before = cut(architecture, _BEFORE, Kind.FOUND)
    check_exact(supernet, architecture, before.model, _some(splits, config))
    found = [before, *_retrained(config, work, splits, supernet, architecture, before, teacher)]
    others = []
    for kind in RANDOM:
        if race := ranked.kinds[kind].race:  # else not one of them had a path to the output
            name = f"{kind}, best of {ranked.kinds[kind].count:,}"
            others.append(cut(_architecture(race.architecture), name, kind))
    posterior = supernet.posterior()
    mode = posterior.mode()
    if supernet.graph.flow(mode).reaches_outputs():
        others.append(cut(mode, Kind.DETERMINISTIC, Kind.DETERMINISTIC))
    means = [
        Means(
            kind,
            supernet,
            [_architecture(candidate) for candidate in group.first],
            group.mean_metric,
            group.mean_parameters,
            group.mean_multiply_adds,
            recalibration,
        )
        for kind, group in ranked.kinds.items()
    ]
    arms, drawn = Baselines(config, splits, work, teacher).train(posterior, architecture, before.cost)
    return found, others + arms, means + drawn


def _retrained(
    config: Config,
    work: workdir.Workdir,
    splits: pipeline.Splits,
    supernet: Supernet,
    architecture: Architecture,
    before: Arm,
    teacher: keras.Model | None,
) -> list[Arm]:
    """Returns the network found, trained further; nothing without epochs."""
    epochs = config.retrain.epochs
    if not epochs:
        return []
    model = subnet(supernet, architecture)
    model.set_weights(before.model.get_weights())
    rates = schedules.retraining(config).schedule
    networks.fit_plain(config, splits, work, model, epochs, rates, "retrain", teacher=teacher)
    return [Arm(f"{Kind.FOUND}, retrained", Kind.FOUND, model, before.cost)]


def _full(config: Config, splits: pipeline.Splits, work: workdir.Workdir) -> keras.Model:
    """Returns the full network, trained like search and retraining together."""
    full = building.network(config, splits)
    networks.fit_as_search(config, splits, work, full, "baseline")
    rates = schedules.retraining(config).schedule
    networks.fit_plain(config, splits, work, full, config.retrain.epochs, rates, "baseline, retrained")
    return full


def _teacher(config: Config, splits: pipeline.Splits, full: keras.Model | None) -> keras.Model | None:
    """Returns the trained supernet, or else the full network, if retraining is to learn from a teacher."""
    if not (config.retrain.distill and config.retrain.epochs):
        return None
    return building.network(config, splits) if config.supernet.trained else full


def _architecture(value: Mapping[str, Any]) -> Architecture:
    return Architecture.from_json(json.dumps(value))


def _means_on_test(groups: Sequence[Means], splits: pipeline.Splits, config: Config) -> list[Row]:
    """Rows of groups that share a supernet, and so what is compiled for it."""
    batches = pipeline.evaluation_batches(splits.test, config.data, config.sample.batch_size)
    evaluate = ranking.Evaluator(groups[0].supernet, batches, groups[0].recalibration, config.facts.example.name)
    rows = []
    for group in groups:
        tested = [evaluate(candidate).figures()["metrics"] for candidate in group.first]
        row = Row(
            name=f"{group.kind}, mean of {len(tested):,}",
            kind=group.kind,
            validation={config.facts.example.name: group.metric},
            test={name: float(np.mean([score[name] for score in tested])) for name in tested[0]},
            parameters=group.parameters,
            multiply_adds=group.multiply_adds,
            num_tested=len(tested),
        )
        rows.append(row)
    return rows


def _known(arm: Arm, splits: pipeline.Splits, config: Config) -> dict[str, Any]:
    """Returns the part of a network's row that does not need the test split."""
    return {
        "name": arm.name,
        "kind": arm.kind,
        "fine_tuned": arm.fine_tuned,
        "way": arm.way,
        "validation": _scored(arm.model, splits.validation, splits, config).metrics,
        "parameters": arm.cost.parameters,
        "multiply_adds": arm.cost.multiply_adds,
        "file_bytes": file_bytes(arm.model),
    }


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A network's metrics on a split, by name, the errors that paired tests compare, shape (n,), and confusion."""

    metrics: dict[str, float]
    errors: np.ndarray
    confusion: tuple[tuple[int, ...], ...]


def _scored(model: keras.Model, dataset: Any, splits: pipeline.Splits, config: Config) -> _Scored:
    task, errors = splits.task, []
    tally, confusion = Tally(task, splits.num_outputs), task.confusion(splits.num_outputs)
    with distribution.full_precision():  # export compares
        for images, targets, *_ in pipeline.evaluation_batches(dataset, config.data, config.sample.batch_size):
            outputs = in_float32(model(images, training=False))
            tally.update(targets, task.judged(outputs))
            errors.append(task.errors(targets, outputs).numpy())
            if confusion is not None:
                np.add.at(confusion, (targets.numpy(), np.argmax(outputs, -1)), 1)
    matrix = () if confusion is None else tuple(map(tuple, confusion.tolist()))
    return _Scored(tally.metrics(), np.concatenate(errors), matrix)


def _some(splits: pipeline.Splits, config: Config) -> tf.Tensor:
    """A few validation inputs."""
    return next(iter(pipeline.evaluation_batches(splits.validation, config.data, 16)))[0]
