"""Search: train the supernet on the ELBO; leaves the trained supernet and its posterior."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from tfnas.common import terminal
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.config import Config
from tfnas.cutting.refit import NUM_EXAMPLES
from tfnas.data import pipeline
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.costs import cost
from tfnas.runs import stage_table, workdir
from tfnas.runs.sampled import Epoch
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.training import building, distribution, networks
from tfnas.training.best_cut import best_at_once
from tfnas.training.collapse_guard import Guard

_MISSED = 1.05  # times the bound: an expected cost above that is worth a warning


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Trains the supernet of `config` in the working directory `path`, from its last checkpoint if there is one.

    Raises:
        UserError: for bad settings, data or files, a loss that is no longer finite, or a posterior that has
            collapsed.
    """
    distribution.run_stage("search", config, path, _search)


def _search(config: Config, work: workdir.Workdir) -> None:
    splits = networks.load_data(config, work)
    print(f"{config.data.title}: {splits.summary()}")
    if tf.distribute.has_strategy():
        print(f"devices   {distribution.describe(tf.distribute.get_strategy())}")
    networks.set_seed(config.seed)
    # What is refused is refused now, not after the warm-up.
    first = networks.gated(config, splits, building.network(config, splits), work)
    _check_reach(config, first)
    if config.search.importance not in ("gates", "curvature"):
        first.posterior()
    supernet = networks.gated(config, splits, networks.warmed_up(config, splits, work), work)
    _print_size(supernet, config)
    guard = Guard(config.search, supernet, config.seed)
    guard.begin()
    writer = tf.summary.create_file_writer(str(work.path / "tensorboard")) if work.writes else None

    metric = config.facts.example.name

    def write_history(history: list[dict[str, Any]]) -> None:
        work.write_lines(stage_table.HISTORY, (_epoch(record, metric) for record in history))

    def on_epoch(history: list[dict[str, Any]]) -> None:
        write_history(history)
        if writer:
            _write_tensorboard(writer, history[-1], metric)

    history = networks.fit_gated(
        config,
        splits,
        work,
        supernet,
        stage_table.CHECKPOINTS,
        key=work.key("search", config),
        title="search",
        describe=lambda: _describe(supernet),
        check=guard.check,
        on_epoch=on_epoch,
    )
    write_history(history)  # the file may be of before an interruption
    found = _posterior(config, splits, supernet)
    if isinstance(found, UnitPosterior) and config.search.importance == "gates":
        _report_size(found, config)
    work.write(stage_table.SUPERNET, supernet.save)
    posterior = found.to_json()
    work.write(stage_table.POSTERIOR, lambda file: file.write_text(posterior))


def _posterior(config: Config, splits: pipeline.Splits, supernet: Supernet) -> Posterior | UnitPosterior:
    """The posterior after training. What single gradients choose without it is compared with norms."""
    settings = config.search
    if not (isinstance(supernet, UnitSupernet) and settings.plain and settings.importance == "curvature"):
        return supernet.posterior()
    data = networks.curvature_batches(config, splits)
    images = networks.calibration_images(config, splits, NUM_EXAMPLES)
    validation = pipeline.evaluation_batches(splits.validation, config.data, settings.batch_size)
    found = best_at_once(supernet, supernet.posterior(data=data), data, images, validation)
    print(f"search    {found}")
    return found.posterior


def _check_reach(config: Config, supernet: Supernet) -> None:
    """Raises UserError if sample could not draw a candidate within its bounds: before training, not after it."""
    if not isinstance(supernet, UnitSupernet):
        return
    settings, form = config.sample, supernet.form
    bounds = form.absolute(settings.bounds) if settings.bounds else supernet.bounds
    try:
        form.check_reach(bounds, settings.channel_multiple, settings.bounds)
    except UserError as error:
        given = {**settings.bounds, "channel_multiple": settings.channel_multiple}
        words = ", ".join(f"sample.{name}={value}" for name, value in given.items())
        raise UserError(f"{error}; sample is to draw candidates with {words}") from None


def _print_size(supernet: Supernet, config: Config) -> None:
    full = cost(supernet.graph)
    settings = config.supernet
    given = ", ".join(f"{name}={value}" for name, value in settings.arguments().items())
    weights = f" with the weights of {settings.weights}" if settings.weights else ""
    print(
        f"supernet {settings.source or f'{settings.name}({given})'}{weights}: "
        f"{full.parameters:,} parameters, {networks.gates_in_words(supernet)}, "
        f"{full.multiply_adds / 1e6:.2f} M multiply-adds"
    )


def _report_size(posterior: UnitPosterior, config: Config) -> None:
    """Prints what the gates have come to beside what was asked for; candidates obey the bounds in any case."""
    for resource, bound in posterior.bounds.items():
        most, expected = bound / posterior.form.full(resource), posterior.expected_share(resource)
        line = f"search    {Resource(resource).words}: {expected:.1%} expected, at most {most:.1%} asked for"
        if expected < _MISSED * most:
            print(line)
            continue
        terminal.warn(
            f"{line}; the gates had too few steps, so cutting down to the bound chooses channels less well. Usually a "
            f"larger --config.search.epochs or --config.search.gate_step={2 * config.search.gate_step:g} helps, in "
            "another --workdir"
        )


def _describe(supernet: Supernet) -> dict[str, Any]:
    if isinstance(supernet, UnitSupernet) and supernet.importance != "gates":
        return _describe_kept(supernet)
    posterior = supernet.posterior()
    decided, gates = posterior.decided()
    if isinstance(posterior, UnitPosterior):
        drop = {gates.name: [float(gates.channel_drop.mean())] for gates in posterior.layers}
        kept = float(posterior.keep_probability.mean())
    else:
        drop, kept = supernet.source_drop(), posterior.expected_kept()
    return {
        **{resource: posterior.expected_share(resource) for resource in supernet.bounds},
        "kept": kept,
        "decided": f"{decided}/{gates}",
        "drop_probability": drop,
    }


def _describe_kept(supernet: UnitSupernet) -> dict[str, Any]:
    """Describes which units are trained, where gates have no probabilities."""
    shares = supernet.learning.expected_shares()
    if shares is None:
        return {"kept": 1.0}
    architecture = supernet.architecture()
    return {
        **dict(zip(supernet.bounds, shares.numpy().tolist(), strict=True)),
        "kept": architecture.kept / architecture.total,
        "drop_probability": {name: [float(1 - mask.mean())] for name, mask in architecture.items()},
    }


def _epoch(record: dict[str, Any], metric: str) -> Epoch:
    """The record of an epoch, whose metric has its own name in the loop's."""
    others = {name: value for name, value in record.items() if name != metric}
    return Epoch(**others, metrics={metric: record[metric]} if metric in record else {})


def _write_tensorboard(writer: Any, record: dict[str, Any], metric: str) -> None:
    with writer.as_default(step=record["epoch"]):
        for name in ("loss", metric, "kept"):
            if name in record:
                tf.summary.scalar(name, record[name])
        for layer, probabilities in record.get("drop_probability", {}).items():
            for group, p in enumerate(probabilities):
                tf.summary.scalar(f"drop_probability/{layer}/{group}", p)
    writer.flush()
