"""Retrain: cut the winner out, train it further or not at all, and compare on the test split, once, at the end."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

from tfnas import baselines, data, ranking, training, workdir
from tfnas.architecture import Architecture
from tfnas.channels import Graph
from tfnas.config import Config
from tfnas.costs import Cost, cost, latency
from tfnas.subnets import adapt, describe, subnet
from tfnas.supernet import Supernet

_TOLERANCE = 1e-4  # what a subnet's outputs may differ from its supernet's by, relative to the largest
_RANDOM = (baselines.EVEN, baselines.ALLOCATED)


@dataclasses.dataclass(frozen=True)
class _Arm:
    """One network of the comparison."""

    name: str
    model: keras.Model
    cost: Cost


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Cuts, retrains and evaluates the architecture that sample left in `path`.

    Raises:
        UserError: for bad settings or files, if sample has not run, or a loss that is no longer finite.
    """
    work = workdir.Workdir(path)
    work.run_stage("retrain", config, lambda: _retrain(config, work))


def _retrain(config: Config, work: workdir.Workdir) -> None:
    training.set_seed(config.seed)
    splits = data.load(config.data, work.path / "tensorflow_datasets")
    supernet = keras.models.load_model(work.path / workdir.SUPERNET)
    architecture = Architecture.from_json((work.path / workdir.ARCHITECTURE).read_text())
    kinds = json.loads((work.path / workdir.RANKING).read_text())["kinds"]
    settings = config.retrain

    # What hardware likes may have widened it; from here on that is the architecture.
    architecture = adapt(supernet, architecture, channel_multiple=settings.channel_multiple, layout=settings.layout)
    layout = "mask" if settings.layout == "mask" else "gather"
    price = cost(supernet.graph, architecture, layout)
    before = _Arm("found network, before retraining", subnet(supernet, architecture, layout=layout), price)
    _check_exact(supernet, architecture, before.model, splits, config)
    found = [before]
    if settings.epochs:
        after = _Arm("found network, retrained", subnet(supernet, architecture, layout=layout), price)
        _train(config, splits, work, after.model, settings.epochs, settings.learning_rate, "retrain")
        found.append(after)
    others = []
    if settings.baseline:
        full = training.network(config, splits)
        epochs = config.search.epochs + settings.epochs
        _train(config, splits, work, full, epochs, settings.baseline_learning_rate, "baseline")
        others.append(_Arm("full network, same total budget", full, cost(Graph(full))))
    for kind in _RANDOM:
        if kinds[kind]["architecture"] is None:  # not one of them had a path to the output
            continue
        candidate = Architecture.from_json(json.dumps(kinds[kind]["architecture"]))
        title = f"{kind}, best of {kinds[kind]['count']:,}"
        others.append(_Arm(title, subnet(supernet, candidate), cost(supernet.graph, candidate)))

    validation = {arm.name: _accuracy(arm.model, splits.validation, config) for arm in found}
    # On a tie the later, retrained one.
    chosen = max(reversed(found), key=lambda arm: validation[arm.name])
    arguments = training.network_arguments(config, splits)
    text = describe(architecture, training.builder_name(config), layout, **arguments)
    work.write(workdir.CUT_ARCHITECTURE, lambda file: file.write_text(text))
    work.write(workdir.SUBNET, _without_optimizer(chosen.model).save)
    rows = [_row(arm, splits, config) for arm in (*others, *found)]
    # Only now is the test split read, for networks that are all fixed.
    for row, arm in zip(rows, (*others, *found), strict=False):
        row["test_accuracy"] = _accuracy(arm.model, splits.test, config)
    evaluate = ranking.Evaluator(supernet, data.evaluation_batches(splits.test, config.data, config.sample.batch_size))
    for kind, group in kinds.items():
        tested = [evaluate(Architecture.from_json(json.dumps(candidate))).accuracy for candidate in group["first"]]
        rows.append(
            {
                "name": f"{kind}, mean of {group['count']:,}",
                "validation_accuracy": group["mean_accuracy"],
                "test_accuracy": sum(tested) / len(tested),
                "num_tested": len(tested),
                "parameters": group["mean_parameters"],
                "multiply_adds": group["mean_multiply_adds"],
            }
        )
    work.write_json(workdir.RESULTS, {"chosen": chosen.name, "rows": sorted(rows, key=_place)})


def _place(row: dict[str, Any]) -> int:
    starts = ("full", *_RANDOM, "posterior", "found")
    return next(i for i, start in enumerate(starts) if row["name"].startswith(start))


def _train(
    config: Config,
    splits: data.Splits,
    work: workdir.Workdir,
    model: keras.Model,
    epochs: int,
    learning_rate: float,
    title: str,
) -> None:
    settings = config.retrain
    steps = splits.sizes["train"] // settings.batch_size
    model.compile(
        training.sgd(config.search, training.cosine(learning_rate, max(1, steps * epochs)), settings.weight_decay),
        loss=training.classification_loss(),
        metrics=["accuracy"],
    )
    # Not search's order again: the seed is shifted.
    training.fit(
        model,
        lambda first: data.training_batches(splits, config.data, settings.batch_size, epochs, config.seed + 1, first),
        epochs,
        steps,
        work,
        f"retrain/{title}_checkpoint.npz",
        key=work.key("retrain", config),
        title=title,
    )


def _row(arm: _Arm, splits: data.Splits, config: Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.keras"
        _without_optimizer(arm.model).save(file)
        size = file.stat().st_size
    return {
        "name": arm.name,
        "validation_accuracy": _accuracy(arm.model, splits.validation, config),
        "parameters": arm.cost.parameters,
        "multiply_adds": arm.cost.multiply_adds,
        "file_bytes": size,
        "latency_seconds": latency(arm.model),
    }


def _accuracy(model: keras.Model, dataset: Any, config: Config) -> float:
    correct = total = 0
    for images, labels in data.evaluation_batches(dataset, config.data, config.sample.batch_size):
        correct += int(np.sum(np.argmax(model(images, training=False), -1) == labels.numpy()))
        total += len(labels)
    return correct / total


def _without_optimizer(model: keras.Model) -> keras.Model:
    return keras.Model(model.input, model.outputs[0], name=model.name)


def _check_exact(
    supernet: Supernet, architecture: Architecture, model: keras.Model, splits: data.Splits, config: Config
) -> None:
    """A last check on real images that what was cut is what was ranked."""
    images, _ = next(iter(data.evaluation_batches(splits.validation, config.data, 16)))
    supernet.set_architecture(architecture)
    expected = np.asarray(supernet(images, training=False))
    error = np.abs(np.asarray(model(images, training=False)) - expected).max() / max(np.abs(expected).max(), 1e-6)
    if not error <= _TOLERANCE:
        raise AssertionError(f"subnet differs from its supernet by {error:.1e}, at most {_TOLERANCE:.0e} expected")
