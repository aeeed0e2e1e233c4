"""Retrain: cut the winner out, train it further or not at all, and compare on the test split, at the very end."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import schema, statistics
from tfnas.common.errors import UserError, add_filename
from tfnas.config import Config
from tfnas.cutting import latencies
from tfnas.cutting.subnets import adapt, describe, subnet
from tfnas.data import pipeline, sources
from tfnas.gating import optimizers, saving
from tfnas.gating.recalibration import Recalibration
from tfnas.gating.supernet import Supernet
from tfnas.graph.channels import Graph, deep
from tfnas.graph.costs import cost
from tfnas.ranking import losses, ranking, reference_architectures
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Architecture
from tfnas.training import distribution, networks, trained_baselines
from tfnas.training.trained_baselines import Arm, Means

_TOLERANCE = 1e-4  # what a subnet's outputs may differ from its supernet's by, relative to the largest
_RANDOM = (reference_architectures.EVEN, reference_architectures.ALLOCATED)
_KINDS = ("posterior", *_RANDOM)
_ANY = schema.mapping_of(lambda value, place: None)  # what `Architecture` reads for itself
_KIND = schema.record(
    architecture=schema.optional(_ANY),
    first=schema.list_of(_ANY, 1),
    count=schema.whole(1),
    num_measured=schema.whole(1),
    mean_accuracy=schema.number(0, 1),
    mean_parameters=schema.number(0, schema.MOST),
    mean_multiply_adds=schema.number(0, schema.MOST),
)
_RANKING = schema.record(kinds=schema.record(**dict.fromkeys(_KINDS, _KIND)))


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
    supernet = saving.load(work.path / stage_table.SUPERNET)
    architecture = Architecture.from_json((work.path / stage_table.ARCHITECTURE).read_bytes())
    ranked = work.read_json(stage_table.RANKING, "retrain", _RANKING)["kinds"]
    kinds = {kind: ranked[kind] for kind in _KINDS}
    settings = config.retrain
    recalibration = networks.recalibration(config, splits, supernet)

    def cut(architecture: Architecture, layout: str = "gather") -> keras.Model:
        if recalibration:
            recalibration.apply(architecture)
        return subnet(supernet, architecture, layout=layout)

    # What hardware likes may have widened it; from here on that is the architecture.
    architecture = adapt(supernet, architecture, channel_multiple=settings.channel_multiple, layout=settings.layout)
    layout = "mask" if settings.layout == "mask" else "gather"
    price = cost(supernet.graph, architecture, layout)
    before = Arm("found network, before retraining", cut(architecture, layout), price)
    _check_exact(supernet, architecture, before.model, splits, config)
    found, rates = [before], optimizers.retraining(config).schedule
    if settings.epochs:
        after = Arm("found network, retrained", cut(architecture, layout), price)
        networks.fit_plain(config, splits, work, after.model, settings.epochs, rates, "retrain")
        found.append(after)
    others = []
    if settings.baseline:
        full = networks.network(config, splits)
        networks.fit_as_search(config, splits, work, full, "baseline")
        if settings.epochs:
            networks.fit_plain(config, splits, work, full, settings.epochs, rates, "baseline, retrained")
        others.append(Arm("full network, same total budget", full, cost(Graph(full))))
    for kind in _RANDOM:
        if kinds[kind]["architecture"] is None:  # not one of them had a path to the output
            continue
        candidate = _architecture(kinds[kind]["architecture"])
        title = f"{kind}, best of {kinds[kind]['count']:,}"
        others.append(Arm(title, cut(candidate), cost(supernet.graph, candidate)))
    posterior = supernet.posterior()
    mode = posterior.mode()
    if supernet.graph.flow(mode).reaches_outputs():
        others.append(Arm("deterministic candidate", cut(mode), cost(supernet.graph, mode)))
    means = [_means(supernet, kind, group, recalibration) for kind, group in kinds.items()]
    if settings.controls:
        arms, drawn = trained_baselines.train(config, splits, work, posterior, architecture, price)
        others += arms
        means += drawn

    validation = {arm.name: _accuracy(arm.model, splits.validation, config) for arm in found}
    # On a tie the later, retrained one.
    chosen = max(reversed(found), key=lambda arm: validation[arm.name])
    arguments = networks.network_arguments(config, splits)
    text = describe(architecture, networks.builder_name(config), layout, **arguments)
    work.write(stage_table.CUT_ARCHITECTURE, lambda file: file.write_text(text))
    work.write(stage_table.SUBNET, _without_optimizer(chosen.model).save)
    compared = (*others, *found)
    seconds, spread = latencies.compared([arm.model for arm in compared])
    rows = [
        {**_row(arm, splits, config), "latency_seconds": taken} for arm, taken in zip(compared, seconds, strict=True)
    ]
    # Only now is the test split read, for networks that are all fixed.
    sources.check_test(config.data, work.path / "tensorflow_datasets")
    labels, best, best_top5 = _classified(chosen.model, splits.test, config)
    for row, arm in zip(rows, compared, strict=True):
        classes, top5 = best, best_top5
        if arm is not chosen:
            _, classes, top5 = _classified(arm.model, splits.test, config)
        row["test_accuracy"] = float(np.mean(classes == labels))
        row["test_top5_accuracy"] = top5
        row["paired"] = statistics.Paired.of(best == labels, classes == labels).record()
    confusion = _matrix(labels, best, chosen.model.output_shape[-1]).tolist()
    for _, groups in itertools.groupby(means, key=lambda group: id(group.supernet)):
        rows += _means_on_test(list(groups), splits, config)
    whole = cost(supernet.graph)
    work.write_json(
        stage_table.RESULTS,
        {
            "chosen": chosen.name,
            "full": {"parameters": whole.parameters, "multiply_adds": whole.multiply_adds},
            "confusion": confusion,
            "latency_spread": spread,
            "rows": sorted(rows, key=_place),
        },
    )


def _architecture(value: dict[str, Any]) -> Architecture:
    return Architecture.from_json(json.dumps(value))


def _means(supernet: Supernet, kind: str, group: dict[str, Any], recalibration: Recalibration | None) -> Means:
    row = {
        "name": f"{kind}, mean of {group['num_measured']:,}",
        "validation_accuracy": group["mean_accuracy"],
        "parameters": group["mean_parameters"],
        "multiply_adds": group["mean_multiply_adds"],
    }
    return Means(supernet, [_architecture(candidate) for candidate in group["first"]], row, recalibration)


def _means_on_test(groups: Sequence[Means], splits: pipeline.Splits, config: Config) -> list[dict[str, Any]]:
    """Rows of groups that share a supernet, and so what is compiled for it."""
    batches = pipeline.evaluation_batches(splits.test, config.data, config.sample.batch_size)
    evaluate = ranking.Evaluator(groups[0].supernet, batches, groups[0].recalibration)
    rows = []
    for group in groups:
        tested = [evaluate(candidate) for candidate in group.first]
        measured = {
            "test_accuracy": _mean(score.accuracy for score in tested),
            "test_top5_accuracy": _mean(score.top5_accuracy for score in tested),
        }
        rows.append({**group.row, **measured, "num_tested": len(tested)})
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _place(row: dict[str, Any]) -> tuple[int, bool]:
    starts = (
        "full",
        *_RANDOM,
        "fixed drop",
        "single path",
        "magnitude pruning",
        "deterministic candidate",
        "posterior",
        "found",
    )
    place = next(i for i, start in enumerate(starts) if row["name"].startswith(start))
    return place, row["name"].endswith("fine-tuned")


def _row(arm: Arm, splits: pipeline.Splits, config: Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, add_filename(folder):
        file = pathlib.Path(folder) / "model.keras"
        _without_optimizer(arm.model).save(file)
        size = file.stat().st_size
    return {
        "name": arm.name,
        "validation_accuracy": _accuracy(arm.model, splits.validation, config),
        "parameters": arm.cost.parameters,
        "multiply_adds": arm.cost.multiply_adds,
        "file_bytes": size,
    }


def _accuracy(model: keras.Model, dataset: Any, config: Config) -> float:
    labels, classes, _ = _classified(model, dataset, config)
    return float(np.mean(classes == labels))


def _classified(model: keras.Model, dataset: Any, config: Config) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Every example's label and most probable class; and the top-5 accuracy, None with few classes."""
    labels, classes = [], []
    among: list[np.ndarray] = []
    with distribution.full_precision():  # export compares
        for images, batch in pipeline.evaluation_batches(dataset, config.data, config.sample.batch_size):
            outputs = tf.cast(model(images, training=False), tf.float32)
            labels.append(batch.numpy())
            classes.append(np.argmax(outputs, -1))
            if (top5 := losses.in_top5(batch, outputs)) is not None:
                among.append(top5.numpy())
    return np.concatenate(labels), np.concatenate(classes), float(np.concatenate(among).mean()) if among else None


def _matrix(labels: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Number of examples by label (rows) and most probable class (columns)."""
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (labels, classes), 1)
    return matrix


def _without_optimizer(model: keras.Model) -> keras.Model:
    with deep():
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _check_exact(
    supernet: Supernet, architecture: Architecture, model: keras.Model, splits: pipeline.Splits, config: Config
) -> None:
    """A last check on real images that what was cut is what was ranked. Raises UserError if it is not."""
    images, _ = next(iter(pipeline.evaluation_batches(splits.validation, config.data, 16)))
    supernet.set_architecture(architecture)
    with distribution.full_precision():
        expected, got = (np.asarray(network(images, training=False)) for network in (supernet, model))
    error = np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-6)
    if not error <= _TOLERANCE:
        raise UserError(
            f"retrain: the network cut out differs from the supernet it was ranked in by {error:.1e} of the largest "
            f"output, at most {_TOLERANCE:.0e} expected; this is a fault of tfnas: please report it with your config"
        )
