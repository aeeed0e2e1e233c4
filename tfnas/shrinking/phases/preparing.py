"""Before a shrinking begins: reads the data, finds out whether the weights are trained, and says what can go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common import terminal
from tfnas.common.errors import UserError
from tfnas.config import Retrain, Search
from tfnas.data import inputs
from tfnas.gating.placement import gate
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.channels import Graph
from tfnas.graph.latencies import Device, Latencies
from tfnas.graph.models import as_functional
from tfnas.ranking.losses import Criterion
from tfnas.shrinking.given import compiling
from tfnas.shrinking.given.compiling import Compiling
from tfnas.shrinking.given.examples import Batches
from tfnas.shrinking.given.trained import looks_trained
from tfnas.shrinking.phases import keeping
from tfnas.shrinking.phases.job import Job
from tfnas.shrinking.phases.keeping import Phases
from tfnas.training.best_cut import check_same, mean_loss

_COMPARED = 8  # examples on which the supernet is compared with the model
_FEW = 100  # examples with numbers that are not finite, whose loss is looked at
_RATES = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The start of a search.

    Attributes:
        job: what all phases share.
        trained: whether the weights are.
        options: further arguments of `gate`, for every supernet of this model.
        latencies: measured ones, if the latency is bounded.
    """

    job: Job
    trained: bool
    options: dict[str, Any]
    latencies: Latencies | None


def prepared(
    model: keras.Model,
    data: tuple[Any, Any],
    batches: Batches,
    sizes: Sequence[Mapping[str, float]],
    options: Mapping[str, Any],
    trained: bool | None,
    epochs: int,
    device: str | Device,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    kept: Phases,
) -> Prepared:
    """Prepares a shrinking, and says what can go; the arguments are those of `tfnas.shrink`.

    Args:
        model: the user's.
        data: train and validation, as given.
        batches: of train.
        sizes: bounds by resource, each.
        options: further arguments of `gate`.
        trained, epochs, device, seed, callbacks: as of `tfnas.shrink`.
        kept: results of phases.
    """
    example = batches.first[0]
    smallest = {resource: min(bounds[resource] for bounds in sizes) for resource in sizes[0]}
    latencies = _latencies(model, example, device, kept) if "latency" in smallest else None
    arguments: dict[str, Any] = {**smallest, **options} | ({} if latencies is None else {"device": latencies})
    probe: Any = gate(model, **arguments, example=example, importance="curvature", iterative=False, seed=seed)
    inputs.check_batch(example, probe.network, "shrink: train")
    few = keras.tree.map_structure(lambda x: x[:_COMPARED], example)
    words = f"shrink: '{model.name}' and the supernet made of it differ"
    check_same(as_functional(model, example), probe, few, words)
    terminal.print_line(f"shrink    '{model.name}': {_size(probe)}; {probe.removable()}")
    for name, why in probe.graph.untraced.items():
        terminal.print_line(f"shrink    left whole: '{name}', because {why}")
    if own := compiling.own_steps(model):
        terminal.warn(
            f"shrink    '{model.name}' has a {' and a '.join(own)} of its own, which is not used: networks are trained "
            "with the compiled loss"
        )
    names = as_functional(model, example).output_names
    given = compiling.as_given(model, names)
    held_out = inputs.read(data[1], probe.network, "shrink: validation")
    found = given or _chosen(probe, batches, False, names)
    if any(isinstance(one, _RATES) for one in callbacks):
        found = dataclasses.replace(found, constant=True)
    found.apply(probe)
    _check_finite("validation", (held_out.inputs, held_out.labels), held_out.take, probe)
    if isinstance(data[0], tuple):
        train_arrays = inputs.arrays(data[0], "shrink")

        def some(rows: np.ndarray) -> inputs.Examples:
            taken = keras.tree.map_structure(lambda x: None if x is None else x[rows], train_arrays)
            return inputs.read(taken, probe.network, "shrink")

        _check_finite("train", train_arrays[:2], some, probe)
    if trained is None:
        trained = looks_trained(probe, held_out, seed)
        words = "trained for these labels" if trained else "not trained for these labels"
        terminal.print_line(f"shrink    by a permutation test, the weights are {words} (trained=)")
    if given is None:
        found = dataclasses.replace(_chosen(probe, batches, trained, names), constant=found.constant)
        terminal.print_line(f"shrink    compiled with {found.words}")
    if words := found.rate_words(epochs * batches.steps):
        terminal.warn(f"shrink    {words}")
    network = probe.graph.model
    # A model that is not trained may have other random weights when it resumes.
    weights = network.get_weights()
    structure = [[node.name, type(node.inner).__name__] for node in probe.graph.nodes]
    structure.append([list(w.shape) for w in weights])
    key = keeping.key(
        structure=structure,
        weights=weights if trained else None,
        trained=trained,
        train=_fingerprint(data[0], batches.first),
        validation=_fingerprint(data[1], held_out.labels),
        numbers=[batches.num_examples, batches.steps, len(held_out), seed],
        objective={name: found.objective.get(name) for name in ("loss", "loss_weights")},
        options={**options},
    )
    if not trained:
        first, _ = kept.arrays("start", key, lambda: (weights, None))
        network.set_weights(first)
    defaults = Search().resolved(Retrain(), trained)
    number = max(defaults.curvature_images, 1)
    job = Job(network, batches, held_out, found, kept, key, number, epochs, device, seed)
    return Prepared(job, trained, {**options, "streams": probe.graph.streams}, latencies)


def _check_finite(name: str, arrays: Any, take: Callable[[np.ndarray], inputs.Examples], probe: UnitSupernet) -> None:
    """Raises UserError if examples have numbers that are not finite, and the model gives them no finite loss either.

    Args:
        name: of the split.
        arrays: a structure of inputs and labels, shape (N, ...) each.
        take: gives the examples of these indices.
        probe: compiled supernet.
    """
    floating = [x for x in map(np.asarray, keras.tree.flatten(arrays)) if np.issubdtype(x.dtype, np.floating)]
    bad = [~np.isfinite(x).reshape(len(x), -1).all(1) for x in floating]
    rows = np.flatnonzero(np.any(bad, 0)) if bad else np.array([], int)
    if not rows.size:
        return
    few = take(rows[:_FEW])
    loss = mean_loss(probe.graph.model, few, Criterion(probe, few, "shrink"))
    if not np.isfinite(loss):
        raise UserError(
            f"shrink: {name} has {rows.size:,} of {bad[0].size:,} examples with numbers that are not finite, and their "
            f"loss is {loss}: fill them in, or leave these examples out"
        )


def _latencies(model: keras.Model, example: Any, device: str | Device, kept: Phases) -> Latencies:
    """The layers' latencies, measured once for a working directory."""
    graph = Graph(model, example)
    key = keeping.key(names=[node.name for node in graph.nodes], device=device)
    found = kept.json("latencies", key, lambda: dataclasses.asdict(Latencies.measure(graph, device)))
    return Latencies(**found)


def _chosen(probe: UnitSupernet, batches: Batches, trained: bool, names: Sequence[str]) -> Compiling:
    settings = Search(parameters=0.5).resolved(Retrain(), trained)
    found = compiling.chosen(probe.graph.model, batches.first[1], trained, settings)
    return dataclasses.replace(found, output_names=names)


def _size(probe: UnitSupernet) -> str:
    form = probe.form
    counted = [f"{form.full('parameters'):,.0f} parameters"]
    if "multiply_adds" in form.terms:
        counted.append(f"{form.full('multiply_adds') / 1e6:,.2f} M multiply-adds")
    return ", ".join(counted)


def _fingerprint(data: Any, some: Any) -> Any:
    """Identifies data: arrays by some values, anything else, which may be random, by shapes."""
    if isinstance(data, tuple):
        return some
    return keras.tree.map_structure(lambda x: [str(x.dtype), *np.shape(x)[1:]], some)
