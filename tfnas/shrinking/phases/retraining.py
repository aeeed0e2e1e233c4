"""After the search of a shrinking: networks are cut out, trained further, and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common import terminal
from tfnas.cutting.subnets import subnet
from tfnas.data import inputs
from tfnas.graph.statistics import settle_statistics, settled_in_words
from tfnas.search_space.architecture import Architecture
from tfnas.shrinking import measuring
from tfnas.shrinking.measuring import Measured
from tfnas.shrinking.phases import keeping
from tfnas.shrinking.phases.fitting import Training, evaluate
from tfnas.shrinking.phases.job import Job
from tfnas.shrinking.phases.searching import Searched
from tfnas.shrinking.result import Shrunk
from tfnas.training import networks
from tfnas.training.best_cut import best_cut, check_exact
from tfnas.training.distillation import Taught, Teacher

_CHECKED = 16  # examples that a cut is compared with its supernet on


@dataclasses.dataclass(frozen=True)
class Cut:
    """A network that was cut out, and trained further if there are epochs for it.

    Attributes:
        architecture: which units it keeps.
        model: compiled.
        way: how it was cut.
        after_cut: metrics on the validation examples, before it is trained further.
        metrics: those of `model`.
        history: of the retraining.
        retrained: whether `model` is what the retraining left.
    """

    architecture: Architecture
    model: keras.Model
    way: str
    after_cut: Mapping[str, float]
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    retrained: bool


def cut(
    job: Job,
    searched: Searched,
    architecture: Architecture,
    epochs: int,
    teacher: Teacher | None,
    name: str,
    callbacks: Sequence[keras.callbacks.Callback],
) -> Cut:
    """Cuts a network out in the best of three ways, and trains it further.

    Args:
        job: what all phases share.
        searched: the supernet.
        architecture: of it.
        epochs: of retraining.
        teacher: from which it also learns in these.
        name: of the network in the working directory.
        callbacks: the user's, for the retraining.
    """
    supernet = searched.supernet
    networks.set_seed(job.seed)
    model = subnet(supernet, architecture, name=job.network.name)
    key = keeping.key(of=searched.key, architecture=architecture.to_json())

    def weights() -> tuple[Sequence[np.ndarray], Any]:
        few = job.packed([x[:_CHECKED] for x in job.held_out.inputs])
        check_exact(supernet, architecture, model, few)
        best = best_cut(supernet, architecture, job.images, job.labeled(job.held_out))
        return best.model.get_weights(), {"way": str(best.way)}

    first, record = job.kept.arrays(f"{name}/cut", key, weights)
    model.set_weights(first)
    held_out = job.dataset(job.held_out)
    before = job.steps - epochs * job.batches.steps
    trained = Taught(model, teacher) if teacher and epochs else model
    job.prepare(trained, job.steps, before)
    metrics = evaluate(trained, held_out)
    if not epochs:
        return Cut(architecture, model, record["way"], metrics, metrics, (), False)
    training = Training("retrain", job.epochs - epochs, epochs, job.batches, held_out, callbacks)
    distill = (teacher.weight, teacher.temperature) if teacher else None
    checkpoints = job.kept.checkpoints(f"{name}/checkpoints", keeping.key(of=key, epochs=epochs, distill=distill))
    history = training.fit(trained, checkpoints)
    if left := settle_statistics(model, epochs * job.batches.steps, lambda: job.few_images):
        terminal.print_line(f"shrink    {settled_in_words(left)}")
    after = evaluate(trained, held_out)
    retrained = after["loss"] <= metrics["loss"]
    if not retrained:
        terminal.warn(
            f"shrink    retraining has raised the validation loss from {metrics['loss']:.4g} to {after['loss']:.4g}; "
            "the network is as it was cut"
        )
        model.set_weights(first)
    return Cut(architecture, model, record["way"], metrics, after if retrained else metrics, history, retrained)


def results(
    job: Job, searched: Searched, cuts: Sequence[Cut], sizes: Sequence[Mapping[str, float]], test: Any
) -> list[Shrunk]:
    """Returns the results of `tfnas.shrink` for each network, once all are final.

    Args:
        job: what all phases share.
        searched: has the history of the search.
        cuts: the networks.
        sizes: bounds of each, by resource.
        test: test examples, which are read here; or None.
    """
    full = job.network
    job.prepare(full)
    models = [full, *(one.model for one in cuts)]
    metrics = [evaluate(full, job.dataset(job.held_out)), *(one.metrics for one in cuts)]
    seconds = measuring.latencies(models, job.device)
    known = [measuring.sizes(model) for model in models]
    tested: list[Mapping[str, float]] = [{} for _ in models]
    if test is not None:
        examples = job.dataset(inputs.read(test, full, "shrink: test"))
        tested = [evaluate(model, examples) for model in models]
    for one in cuts:
        job.prepare(one.model)
    before, *after = (
        Measured(metrics=m, latency=s, test=t, **k) for m, s, t, k in zip(metrics, seconds, tested, known, strict=True)
    )
    return [
        Shrunk(
            one.model,
            (*searched.history, *({"phase": "retrain", **record} for record in one.history)),
            before,
            measured,
            one.architecture,
            dict(bounds),
            one.way,
            one.after_cut,
            one.retrained,
        )
        for one, measured, bounds in zip(cuts, after, sizes, strict=True)
    ]
