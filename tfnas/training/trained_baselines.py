"""Baselines that are trained like the network found, and equally long, but chosen without a posterior.

Each is searched for `search.epochs` in its own way, cut out, and retrained for `retrain.epochs` like the network found.

- Fixed drop: all gates have the same, fixed drop probability (table 3 of the paper, 'random').
- Single path: one of the operations that compete is trained at a time (arXiv 1904.00420). Not after a search with
  bounds, which narrows layers and has no competing operations.
- Magnitude pruning: no gates; the channels with the smallest weights of the full network are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.config import Config
from tfnas.cutting.subnets import subnet
from tfnas.data import pipeline
from tfnas.gating.gates import Gated
from tfnas.gating.supernet import Supernet
from tfnas.graph.costs import Cost, cost
from tfnas.graph.units import UnitGraph
from tfnas.layers import family_of
from tfnas.ranking import ranking, reference_architectures, reference_units
from tfnas.ranking.recalibration import Recalibration
from tfnas.runs.sampled import Kind
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.training import building, networks, schedules

_CERTAIN = 500.0  # logit at which the relaxed gate is exactly 0 or 1 in float32, whatever the noise


@dataclasses.dataclass(frozen=True)
class Arm:
    """One network of the comparison.

    Attributes:
        name: name of its row in the table.
        kind: kind of baseline.
        model: the network.
        cost: cost of the network.
        fine_tuned: whether this is the previous network, retrained.
    """

    name: str
    kind: Kind
    model: keras.Model
    cost: Cost
    fine_tuned: bool = False


@dataclasses.dataclass(frozen=True)
class Means:
    """Candidates of one kind, which are compared by their means.

    Attributes:
        kind: kind of baseline.
        supernet: compiled supernet with the weights that the candidates share.
        first: candidates to measure on the test split too.
        accuracy: mean accuracy of `first` on the validation split.
        parameters: mean over all candidates.
        multiply_adds: mean over all candidates.
        recalibration: recomputes normalization statistics for each candidate; None keeps the supernet's.
    """

    kind: Kind
    supernet: Supernet
    first: Sequence[Architecture]
    accuracy: float
    parameters: float
    multiply_adds: float
    recalibration: Recalibration | None = None


def train(
    config: Config,
    splits: pipeline.Splits,
    work: Workdir,
    posterior: Posterior | UnitPosterior,
    found: Architecture,
    price: Cost,
) -> tuple[list[Arm], list[Means]]:
    """Trains all baselines, starting from their checkpoints, if any; reads the training and validation splits.

    Args:
        config: settings of the run.
        splits: the images.
        work: working directory of the checkpoints.
        posterior: of the search; names what is gated, and has the bounds that candidates obeyed. Its probabilities are
            not used.
        found: the architecture found.
        price: cost of its network. After a search with bounds, baselines that are sampled or pruned obey the same
            bounds; else they have no more parameters than this.

    Returns:
        The networks that have a path to the output, and the means of those that were sampled.

    Raises:
        UserError: if a loss is no longer finite, or a checkpoint cannot be read.
    """
    if isinstance(posterior, UnitPosterior):
        costs = {resource: posterior.cost_of(found, resource) for resource in posterior.bounds}
        drop = reference_units.even_drop(posterior.form, costs)
    else:
        drop = reference_architectures.even_drop(posterior, found)
    arms, means = fixed_drop(config, splits, work, posterior, drop, price)
    if not isinstance(posterior, UnitPosterior):
        arms += single_path(config, splits, work)
    arms += magnitude_pruning(config, splits, work, posterior, price)
    return arms, means


def fixed_drop(
    config: Config,
    splits: pipeline.Splits,
    work: Workdir,
    posterior: Posterior | UnitPosterior,
    drop: float,
    price: Cost,
) -> tuple[list[Arm], list[Means]]:
    """Returns the best random candidate of equal size, in a supernet with a fixed drop probability.

    `drop` is that probability. The other arguments are those of `train`.
    """
    supernet = freeze(_at_start(config, splits, work, drop))
    kind = Kind.FIXED_DROP
    _fit(config, splits, work, supernet, kind)

    def random(i: int) -> Architecture:
        if isinstance(posterior, UnitPosterior):
            return reference_units.random_candidate(posterior, Kind.EVEN, config.seed, i)
        most = price.parameters
        return reference_architectures.random_candidate(posterior, supernet.graph, most, Kind.EVEN, config.seed, i)

    candidates = [random(i) for i in range(config.sample.num_random)]
    recalibration = networks.recalibration(config, splits, supernet)
    scores = [*map(_evaluator(config, splits, supernet, recalibration), candidates)]
    adjust = recalibration.apply if recalibration else _unchanged
    arms = _best(config, splits, work, supernet, candidates, scores, kind, adjust=adjust)
    first = candidates[: config.sample.num_tested]
    prices = [cost(supernet.graph, candidate) for candidate in candidates]
    means = Means(
        kind,
        supernet,
        first,
        accuracy=float(np.mean([score.accuracy for score in scores[: len(first)]])),
        parameters=float(np.mean([price.parameters for price in prices])),
        multiply_adds=float(np.mean([price.multiply_adds for price in prices])),
        recalibration=recalibration,
    )
    return arms, [means]


def single_path(config: Config, splits: pipeline.Splits, work: Workdir) -> list[Arm]:
    """Returns the best uniformly sampled path in a supernet trained on one path per step, if operations compete.

    The moving statistics of batch normalization belong to all paths together, so each path is evaluated, and cut, with
    its own statistics, from one batch of training images (arXiv 1904.00420). The arguments are those of `train`.
    """
    supernet = freeze(_at_start(config, splits, work))
    blocks = reference_architectures.choice_blocks(supernet.graph, supernet.gated_layers)
    if not blocks:
        return []
    kind = Kind.SINGLE_PATH
    _fit(config, splits, work, supernet, kind, before_step=Paths(supernet, blocks, config.seed))
    posterior, count = supernet.posterior(), config.sample.num_random
    # If few operations compete, many samples are the same path.
    paths = list(
        dict.fromkeys(reference_architectures.single_path(posterior, blocks, config.seed, i) for i in range(count))
    )
    recalibration = Recalibration(supernet, networks.calibration_images(config, splits, config.sample.batch_size))
    scores = [*map(_evaluator(config, splits, supernet, recalibration), paths)]
    return _best(config, splits, work, supernet, paths, scores, kind, count, recalibration.apply)


def magnitude_pruning(
    config: Config, splits: pipeline.Splits, work: Workdir, posterior: Posterior | UnitPosterior, price: Cost
) -> list[Arm]:
    """Trains the full network without gates and drops the channels with the smallest weights down to equal size.

    The arguments are those of `train`.
    """
    networks.set_seed(config.seed)
    full = building.network(config, splits)
    kind = Kind.MAGNITUDE_PRUNING
    networks.fit_as_search(config, splits, work, full, kind)
    supernet = networks.gated(config, splits, full, work)
    pruned = _with_largest_weights(supernet, posterior, price)
    if not supernet.graph.flow(pruned).reaches_outputs():
        return []
    if recalibration := networks.recalibration(config, splits, supernet):
        recalibration.apply(pruned)
    return _cut(config, splits, work, supernet, pruned, kind, kind)


def _with_largest_weights(supernet: Supernet, posterior: Posterior | UnitPosterior, price: Cost) -> Architecture:
    graph = supernet.graph
    if isinstance(posterior, UnitPosterior) and isinstance(graph, UnitGraph):
        return reference_units.within(posterior, reference_units.mean_magnitudes(graph))
    scores = {name: mean_magnitude(layer) for name, layer in supernet.gated_layers.items()}
    return reference_architectures.magnitude_candidate(graph, scores, price.parameters)


def freeze(supernet: Supernet) -> Supernet:
    """Freezes the drop probabilities of `supernet`; call it before `compile`."""
    if supernet.bounds:
        supernet.draw.keep_logit.trainable = False
    else:
        for layer in supernet.gated_layers.values():
            layer.drop_logit.trainable = False
    return supernet


def impose(supernet: Supernet, architecture: Architecture) -> None:
    """Makes training use `architecture`, which keeps or drops entire layers: relaxed gates are exactly 1 or 0."""
    for name, layer in supernet.gated_layers.items():
        logit = -_CERTAIN if architecture[name].all() else _CERTAIN
        layer.drop_logit.assign(np.full(layer.drop_logit.shape, logit, np.float32))


class Paths:
    """Samples and imposes a path before every training step; step i uses `reference_architectures.single_path` i.

    Args:
        supernet: the model being trained, with frozen gates.
        blocks: blocks of `reference_architectures.choice_blocks`.
        seed: seed of the samples.
    """

    def __init__(self, supernet: Supernet, blocks: Sequence[Sequence[str]], seed: int):
        self._supernet, self._blocks, self._seed = supernet, blocks, seed
        self._posterior = supernet.posterior()

    def __call__(self, step: int) -> None:
        """Imposes the path of a step."""
        impose(self._supernet, reference_architectures.single_path(self._posterior, self._blocks, self._seed, step))


def mean_magnitude(layer: Gated) -> np.ndarray:
    """Returns the mean absolute weight of each input channel, shape (K,); infinity if the layer has no kernel."""
    kernels = family_of(layer.layer).channel_kernels(layer.layer)
    if not kernels:
        return np.full(sum(layer.group_sizes), np.inf)
    total = sum(np.abs(np.asarray(kernel, np.float64)).reshape(shape).sum((0, 2)) for kernel, shape in kernels)
    return np.asarray(total) / layer.parameters_per_channel()


def _at_start(config: Config, splits: pipeline.Splits, work: Workdir, initial_drop: float | None = None) -> Supernet:
    """Returns a gated supernet with the weights after the warm-up."""
    return networks.gated(config, splits, networks.warmed_up(config, splits, work), work, initial_drop)


def _fit(
    config: Config, splits: pipeline.Splits, work: Workdir, supernet: Supernet, title: str, **options: Any
) -> None:
    folder = networks.retrain_checkpoints(title)
    networks.fit_gated(config, splits, work, supernet, folder, work.key("retrain", config), title, **options)


def _evaluator(
    config: Config, splits: pipeline.Splits, supernet: Supernet, recalibration: Recalibration | None
) -> ranking.Evaluator:
    batches = pipeline.evaluation_batches(splits.validation, config.data, config.sample.batch_size)
    return ranking.Evaluator(supernet, batches, recalibration)


def _unchanged(architecture: Architecture) -> None:
    """Keeps the supernet's normalization statistics."""


def _best(
    config: Config,
    splits: pipeline.Splits,
    work: Workdir,
    supernet: Supernet,
    candidates: Sequence[Architecture],
    scores: Sequence[ranking.Score],
    kind: Kind,
    count: int = 0,
    adjust: Callable[[Architecture], None] = _unchanged,
) -> list[Arm]:
    """Cuts out the candidate with the highest accuracy among those with a path to the output, if any."""
    for i in sorted(range(len(scores)), key=lambda i: (-(scores[i].accuracy or 0.0), i)):
        if supernet.graph.flow(candidates[i]).reaches_outputs():
            adjust(candidates[i])
            name = f"{kind}, best of {count or len(candidates):,}"
            return _cut(config, splits, work, supernet, candidates[i], name, kind)
    return []


def _cut(
    config: Config,
    splits: pipeline.Splits,
    work: Workdir,
    supernet: Supernet,
    architecture: Architecture,
    name: str,
    kind: Kind,
) -> list[Arm]:
    """Returns the network as cut, and the same network retrained."""
    price, settings = cost(supernet.graph, architecture), config.retrain
    arms = [Arm(name, kind, subnet(supernet, architecture), price)]
    if settings.epochs:
        tuned = Arm(f"{kind}, fine-tuned", kind, subnet(supernet, architecture), price, fine_tuned=True)
        networks.fit_plain(
            config, splits, work, tuned.model, settings.epochs, schedules.retraining(config).schedule, tuned.name
        )
        arms.append(tuned)
    return arms
