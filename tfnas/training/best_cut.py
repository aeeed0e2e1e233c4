"""Chooses by held-out loss between a network as it was cut, with statistics of its own, and refitted.

Refitting brings layers back to what they gave in the full network. That is right for weights that were trained without
gates; once weights have adapted to gates or to a cut, the full network is a worse teacher than the cut one
(docs/method.md). So held-out examples decide.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common.errors import UserError
from tfnas.cutting.refit import NUM_EXAMPLES, refit
from tfnas.cutting.subnets import subnet
from tfnas.data import inputs
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph import statistics
from tfnas.ranking.losses import LOSS, Criterion
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.training import distribution

TOLERANCE = 1e-4  # what a subnet's outputs may differ from its supernet's by, relative to the largest
_BATCH_SIZE = 250


class Way(enum.StrEnum):
    """Treatment of a network after the cut."""

    BARE = "as cut"
    RECALIBRATED = "recalibrated"
    REFITTED = "refitted"


@dataclasses.dataclass(frozen=True)
class BestCut:
    """The best network that was made of an architecture without training.

    Attributes:
        model: the network.
        way: how it was made.
        losses: mean held-out loss of each way, NaN if it is not finite.
    """

    model: keras.Model
    way: Way
    losses: dict[Way, float]


def best_cut(
    supernet: Supernet, architecture: Architecture, images: Any, validation: Any, name: str = "subnet"
) -> BestCut:
    """Cuts an architecture out in three ways, and chooses by the held-out loss.

    Args:
        supernet: compiled; not changed. Its statistics should be those of its training, not of an architecture
            (`Recalibration.apply`), because refitting compares with the supernet whose gates are all open.
        architecture: one of its architectures.
        images: training examples without labels or with ones that are ignored, as for `tfnas.subnet`; 1,000 are used
            for refitting, and 250 for statistics.
        validation: held-out examples with labels, as for `tfnas.rank`.
        name: of the model.

    Raises:
        UserError: as `tfnas.subnet`; if the supernet is not compiled, the examples do not fit it, or no way gives a
            finite loss.
    """
    held_out = inputs.read(validation, supernet.network, "best_cut")
    criterion = Criterion(supernet, held_out, "best_cut")
    models = cuts(supernet, architecture, images, name)
    losses = {way: mean_loss(model, held_out, criterion) for way, model in models.items()}
    finite = {way: loss for way, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        raise UserError("best_cut: no network with a finite loss could be cut out; choose another architecture")
    best = min(finite, key=finite.__getitem__)
    return BestCut(models[best], best, losses)


@dataclasses.dataclass(frozen=True)
class AtOnce:
    """The best of the importances that need no training.

    Attributes:
        importance: which one, in words.
        posterior: its own.
        losses: mean held-out loss of each importance's most probable network, right after the best cut.
    """

    importance: str
    posterior: UnitPosterior
    losses: dict[str, float]

    def __str__(self) -> str:
        compared = ", ".join(f"{importance} {loss:.4g}" for importance, loss in self.losses.items())
        return f"chosen by {self.importance}; held-out loss right after the cut: {compared}"


def best_at_once(
    supernet: UnitSupernet, posterior: UnitPosterior, data: Iterable[Any], images: Any, validation: Any
) -> AtOnce:
    """Chooses by held-out loss between curvature, in rounds or of the full network, and norms.

    Weights that have not adapted to a cut tell little about candidates before that. Gradients of the full network
    alone are as good as those of rounds, or better, if few layers are left to choose from; strong cuts of deep
    networks need rounds. Where gradients say little, as those of an overfitted network, norms keep the same share of
    every layer.

    Args:
        supernet: compiled, and trained without gates; not changed.
        posterior: its own by curvature, in rounds; all obey its bounds.
        data: batches from whose gradients curvature is computed, as of `UnitSupernet.posterior`.
        images: as of `best_cut`.
        validation: as of `best_cut`.

    Raises:
        UserError: as `best_cut`.
    """
    posteriors = {
        "curvature": posterior,
        "curvature of the full network": supernet.posterior("curvature", data, rounds=1, bounds=posterior.bounds),
        "norm": supernet.posterior("norm", bounds=posterior.bounds),
    }
    losses = {}
    for importance, each in posteriors.items():
        cut = best_cut(supernet, each.mode(), images, validation)
        losses[importance] = cut.losses[cut.way]
    best = min(losses, key=losses.__getitem__)
    return AtOnce(best, posteriors[best], losses)


def cuts(supernet: Supernet, architecture: Architecture, images: Any, name: str = "subnet") -> dict[Way, keras.Model]:
    """Cuts an architecture out in each way; arguments and errors as of `best_cut`."""
    examples = inputs.read_inputs(images, supernet.network, "best_cut", NUM_EXAMPLES)
    bare, recalibrated = (subnet(supernet, architecture, name=name) for _ in range(2))
    few = [tf.convert_to_tensor(x[: statistics.NUM_EXAMPLES]) for x in examples]
    statistics.recompute_statistics(recalibrated, keras.tree.pack_sequence_as(bare.input, few))
    refitted = refit(supernet.graph, architecture, bare, keras.tree.pack_sequence_as(bare.input, examples))
    return {Way.BARE: bare, Way.RECALIBRATED: recalibrated, Way.REFITTED: refitted}


def check_exact(supernet: Supernet, architecture: Architecture, model: keras.Model, examples: Any) -> None:
    """Checks on real examples that what was cut is what was ranked.

    Args:
        supernet: its masks are set to the architecture.
        architecture: by which `model` was cut.
        model: as cut, neither refitted nor with other statistics.
        examples: inputs in the model's structure.

    Raises:
        UserError: as `check_same`.
    """
    supernet.set_architecture(architecture)
    check_same(supernet, model, examples, "the network cut out differs from the supernet that it belongs to")


def check_same(expected: keras.Model, other: keras.Model, examples: Any, words: str) -> None:
    """Checks on real examples that two models give the same outputs.

    Args:
        expected: outputs that it draws at random itself, as variational autoencoders do, are not compared.
        other: of the same inputs and outputs.
        examples: inputs in the models' structure.
        words: that they differ, for the message.

    Raises:
        UserError: if an output differs by more than 1e-4 of the largest one.
    """

    def run(network: keras.Model) -> list[np.ndarray]:
        with distribution.full_precision():
            return [np.asarray(x) for x in keras.tree.flatten(network(examples, training=False))]

    first, found = run(expected), run(other)
    largest = [max(np.abs(x).max(), 1e-6) for x in first]
    errors = [np.abs(y - x).max() / most for x, y, most in zip(first, found, largest, strict=True)]
    if all(error <= TOLERANCE for error in errors):
        return
    for x, again, error, most in zip(first, run(expected), errors, largest, strict=True):
        if not error <= TOLERANCE and np.abs(again - x).max() <= TOLERANCE * most:
            raise UserError(
                f"{words} by {error:.1e} of the largest output, at most {TOLERANCE:.0e} expected; this is a fault of "
                "tfnas: please report it with your model"
            )


def mean_loss(model: keras.Model, examples: inputs.Examples, criterion: Criterion) -> float:
    """Mean loss of the examples, without regularizers.

    Args:
        model: of the same inputs and outputs as the supernet of `criterion`.
        examples: labeled.
        criterion: the loss of each example.
    """
    total = 0.0
    for first in range(0, len(examples), _BATCH_SIZE):
        part = examples.take(slice(first, first + _BATCH_SIZE))
        outputs = model(keras.tree.pack_sequence_as(model.input, part.inputs), training=False)
        found = criterion.traced(
            [tf.cast(x, tf.float32) for x in keras.tree.flatten(outputs)], part.labels, part.weights
        )
        total += float(tf.reduce_sum(found[LOSS]))
    return total / len(examples)
