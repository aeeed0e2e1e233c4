"""`tfnas.shrink`: a smaller network within bounds, from a Keras model and its data, in one call."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import terminal
from tfnas.common.errors import UserError, brief
from tfnas.graph.latencies import Device
from tfnas.shrinking import max_drop as drops
from tfnas.shrinking.given.examples import Batches
from tfnas.shrinking.phases import keeping
from tfnas.shrinking.phases.preparing import prepared
from tfnas.shrinking.phases.retraining import cut, results
from tfnas.shrinking.phases.searching import Searched
from tfnas.shrinking.plan import plan, plan_at_once
from tfnas.shrinking.result import Shrunk, Sizes
from tfnas.training import networks
from tfnas.training.distillation import Teacher

# Callbacks that look at validation figures, which a search does not have, or stop it before it has reached the bounds.
_OF_RETRAINING = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.BackupAndRestore,
    keras.callbacks.ReduceLROnPlateau,
)


def shrink(
    model: keras.Model,
    train: Any,
    validation: Any,
    *,
    parameters: float | Sequence[float] | None = None,
    multiply_adds: float | Sequence[float] | None = None,
    latency: float | Sequence[float] | None = None,
    max_drop: float | None = None,
    resource: str = "parameters",
    tries: int = 4,
    epochs: int = 20,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    test: Any = None,
    distill: float = 0.0,
    temperature: float = 4.0,
    trained: bool | None = None,
    strategy: tf.distribute.Strategy | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    device: str | Device = "tensorflow",
    exclude: str | Sequence[str] = (),
    streams: bool | None = None,
    channel_multiple: int = 1,
    candidates: int = 200,
    importance: str = "curvature",
) -> Shrunk | Sizes:
    """Makes a model smaller: searches for a network within bounds, cuts it out, and trains it.

    The losses, metrics and optimizer are those that the model is compiled with: the optimizer's class and settings, not
    its state. A constant learning rate falls to zero along one cosine over all epochs. A model that is not compiled
    gets losses and metrics by its outputs and the labels, and the optimizer of a search. The model is not changed.

    Args:
        model: any that `gate` takes, trained or not.
        train: a tuple of arrays (inputs, labels) or (inputs, labels, sample weights), or of structures of arrays; a
            `tf.data.Dataset` of such batches, a `keras.utils.PyDataset`, a list or a generator of them.
        validation: held-out examples in the same forms, finite; they choose among networks, so are not to be the test
            examples.
        parameters: bound on the parameters: a share of the model's if at most 1, else a number. Or several, for as many
            networks from one search.
        multiply_adds: on the multiply-adds of one example, likewise.
        latency: on the seconds of one example, as a share of the model's in (0, 1), or several.
        max_drop: in place of bounds: the network is to be as small as possible, and to lose at most so much of the
            first compiled metric (or of the loss, if there is none) on the validation examples, absolute: 0.01 of an
            accuracy of 0.95 leaves 0.94. The model must be trained. Sizes are tried by bisection, each with all epochs.
        resource: with max_drop, what is to be small: 'parameters' or 'multiply_adds'.
        tries: with max_drop, sizes that are tried at most.
        epochs: of search and retraining together. 0: no training at all; the network is cut by curvature, and refitted.
        steps_per_epoch: batches in an epoch; None: all. Needed where their number is not known.
        batch_size: where train is a tuple of arrays; None: 128, or a tenth of the examples if that is less.
        test: examples that are read once, at the very end, by the networks before and after.
        distill: weight in [0, 1] of learning from the given model's outputs in the retraining, beside the labels; 0:
            off. The model must be trained.
        temperature: of that, by which logits are divided, > 0.
        trained: whether the model's weights are trained for these labels. None: found out by a permutation test on
            the validation examples (`tfnas.shrinking.given.trained`).
        strategy: of `tf.distribute`, in whose scope all networks are made and trained. None: the one in use.
        callbacks: for the retraining, and copies of them for the search. EarlyStopping, ModelCheckpoint,
            BackupAndRestore and ReduceLROnPlateau are for the retraining only. With a callback that sets the learning
            rate, a constant one does not fall otherwise.
        seed: of Python, NumPy, Keras and TensorFlow, all of which are seeded.
        workdir: folder in which each phase leaves its result: after an interruption, the same call resumes. Batches of
            a data set or generator begin again where it resumes.
        device: where latencies are measured: 'tensorflow', 'litert', or a function from a model to seconds.
        exclude, streams, channel_multiple: as of `gate`.
        candidates: networks of each size that are ranked by validation loss, after a search with gates.
        importance: what decides between channel units: 'curvature', or 'gates', the variational dropout of the paper,
            which needs some hundred steps of search.

    Returns:
        A `Shrunk`, or with several sizes a `Sizes` of one for each, in their order; with max_drop a `SmallestShrunk`,
        which says what is known of the drop on other examples (`tfnas.shrinking.max_drop`).

    Raises:
        UserError: as `gate`; for bounds, data or an importance of another form, labels that do not fit the loss,
            max_drop and weights that are not trained, or a workdir that cannot be used.
        SearchFailedError: if the loss is no longer finite.
    """
    asked = {"parameters": parameters, "multiply_adds": multiply_adds, "latency": latency}
    bounds = {name: value for name, value in asked.items() if value is not None}
    if max_drop is not None:
        drops.check(max_drop, bounds, resource, tries)
        bounds = {resource: 1.0}
    sizes = _sizes(bounds)
    for name, value, least in (("epochs", epochs, 0), ("candidates", candidates, 1), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise UserError(f"shrink: {name} must be a whole number of at least {least}. Received: {value!r}")
    if not (0 <= distill <= 1 and temperature > 0):
        raise UserError(
            "shrink: distill must be in [0, 1], and temperature above 0. Received: "
            f"distill={distill}, temperature={temperature}"
        )
    if importance not in ("curvature", "gates") or (importance == "gates" and (not epochs or max_drop is not None)):
        raise UserError(
            "shrink: importance must be 'curvature', or 'gates' with at least one epoch and without max_drop. "
            f"Received: {importance!r}"
        )
    options = {"exclude": exclude, "channel_multiple": channel_multiple, "streams": streams}
    with (strategy or tf.distribute.get_strategy()).scope(), keeping.opened(workdir) as kept:
        networks.set_seed(seed)
        batches = Batches(train, batch_size, steps_per_epoch, seed)
        start = prepared(
            model, (train, validation), batches, sizes, options, trained, epochs, device, seed, callbacks, kept
        )
        job = start.job
        largest = {resource: max(bounds[resource] for bounds in sizes) for resource in sizes[0]}
        if max_drop is None:
            planned = plan(epochs, start.trained, largest, importance)
        elif start.trained:
            planned = plan_at_once(epochs, largest)
        else:
            raise UserError(
                "shrink: max_drop compares with the given model, whose weights must be trained for these labels: train "
                "it first, or pass trained=True if they are"
            )
        terminal.print_line(f"shrink    {planned.words()}")
        teacher = None
        if distill:
            if not start.trained:
                raise UserError(
                    "shrink: distill needs a model whose weights are trained for these labels; pass trained=True if "
                    f"they are. Received: distill={distill}"
                )
            teacher = Teacher(job.network, distill, temperature, job.compiling.kinds)
        copies = [copy.copy(one) for one in callbacks if not isinstance(one, _OF_RETRAINING)]
        num_networks = len(sizes) if max_drop is None else tries
        searched = Searched(job, planned, start.options, start.latencies, copies, num_networks, teacher is not None)
        if max_drop is not None:
            return drops.smallest(job, searched, planned.retrain, teacher, callbacks, max_drop, resource, tries, test)
        cuts = []
        for i, architecture in enumerate(searched.architectures(sizes, candidates)):
            own = [copy.copy(one) for one in callbacks] if len(sizes) > 1 else callbacks
            cuts.append(cut(job, searched, architecture, planned.retrain, teacher, f"retrain/{i}", own))
        found = results(job, searched, cuts, sizes, test)
    return Sizes(found) if _several(parameters, multiply_adds, latency) else found[0]


def _several(*bounds: Any) -> bool:
    return any(isinstance(bound, Sequence | np.ndarray) for bound in bounds)


def _sizes(bounds: Mapping[str, Any]) -> list[dict[str, float]]:
    """Bounds by resource, of each size. Raises UserError for none, or numbers that do not fit together."""
    lists = {name: list(value) for name, value in bounds.items() if _several(value) and not isinstance(value, str)}
    lengths = {len(values) for values in lists.values()}
    if not bounds or len(lengths) > 1 or 0 in lengths:
        raise UserError(
            "shrink: bounds expected (parameters, multiply_adds, latency), each a number, or several with as many "
            f"numbers each. Received: {brief(bounds)}"
        )
    for name, value in bounds.items():
        for number in lists.get(name, [value]):
            fits = isinstance(number, int | float | np.number) and not isinstance(number, bool)
            if not fits or not number > 0 or (name == "latency" and number >= 1):
                expected = "a share in (0, 1)" if name == "latency" else "a share, or a number above 1"
                raise UserError(f"shrink: {name} must be {expected}. Received: {number!r}")
    return [
        {name: float(lists[name][i] if name in lists else value) for name, value in bounds.items()}
        for i in range(max(lengths, default=1))
    ]
