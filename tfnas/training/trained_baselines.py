"""Baselines of the published search: trained like the network found, and equally long, but chosen without a posterior.

Each is searched for `search.epochs` in its own way, cut out, and retrained for `retrain.epochs` like the network found.

- Fixed drop: all gates have the same, fixed drop probability (table 3 of the paper, 'random').
- Single path: one of the operations that compete is trained at a time (arXiv 1904.00420).
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
from tfnas.gating.supernet import PublishedSupernet, Supernet
from tfnas.graph.costs import Cost, cost
from tfnas.layers import family_of
from tfnas.ranking import ranking, reference_architectures
from tfnas.ranking.recalibration import Recalibration
from tfnas.runs.sampled import Kind
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.training import building, networks, schedules
from tfnas.training.rivals import Arm

_CERTAIN = 500.0  # logit at which the relaxed gate is exactly 0 or 1 in float32, whatever the noise


@dataclasses.dataclass(frozen=True)
class Means:
    """Candidates of one kind, which are compared by their means.

    Attributes:
        kind: kind of baseline.
        supernet: compiled supernet with the weights that the candidates share.
        first: candidates to measure on the test split too.
        metric: mean over `first` of the task's metric of an example, on the validation split.
        parameters: mean over all candidates.
        multiply_adds: mean over all candidates.
        recalibration: recomputes normalization statistics for each candidate; None keeps the supernet's.
    """

    kind: Kind
    supernet: Supernet
    first: Sequence[Architecture]
    metric: float
    parameters: float
    multiply_adds: float
    recalibration: Recalibration | None = None


class Baselines:
    """Trains baselines, starting from their checkpoints, if any; reads the training and validation splits.

    Args:
        config: settings of the run.
        splits: the images.
        work: working directory of the checkpoints.
        teacher: as of `networks.fit_plain`.
    """

    def __init__(self, config: Config, splits: pipeline.Splits, work: Workdir, teacher: keras.Model | None = None):
        self._config, self._splits, self._work, self._teacher = config, splits, work, teacher

    def train(self, posterior: Posterior, found: Architecture, price: Cost) -> tuple[list[Arm], list[Means]]:
        """Trains those of `retrain.baselines`.

        Args:
            posterior: of the search; names what is gated. Its probabilities are not used.
            found: the architecture found.
            price: cost of its network; baselines that are sampled or pruned have no more parameters.

        Returns:
            The networks that have a path to the output, and the means of those that were sampled.

        Raises:
            UserError: if a loss is no longer finite, or a checkpoint cannot be read.
        """
        arms: list[Arm] = []
        means: list[Means] = []
        for name in self._config.retrain.baselines:
            if name == "fixed_drop":
                drop = reference_architectures.even_drop(posterior, found)
                made, drawn = self.fixed_drop(posterior, drop, price)
                means += drawn
            else:
                made = self.single_path() if name == "single_path" else self.magnitude_pruning(price)
            arms += made
        return arms, means

    def fixed_drop(self, posterior: Posterior, drop: float, price: Cost) -> tuple[list[Arm], list[Means]]:
        """Returns the best random candidate of equal size, in a supernet with a fixed drop probability.

        `drop` is that probability. The other arguments are those of `train`.
        """
        config = self._config
        supernet = freeze(self._at_start(drop))
        kind = Kind.FIXED_DROP
        self._fit(supernet, kind)
        graph, most = supernet.graph, price.parameters
        candidates = [
            reference_architectures.random_candidate(posterior, graph, most, Kind.EVEN, config.seed, i)
            for i in range(config.sample.num_random)
        ]
        recalibration = networks.recalibration(config, self._splits, supernet)
        scores = [*map(self._evaluator(supernet, recalibration), candidates)]
        arms = self._best(supernet, candidates, scores, kind, adjust=recalibration.apply if recalibration else None)
        first = candidates[: config.sample.num_tested]
        prices = [cost(graph, candidate) for candidate in candidates]
        means = Means(
            kind,
            supernet,
            first,
            metric=float(np.mean([score[config.facts.example.name] for score in scores[: len(first)]])),
            parameters=float(np.mean([price.parameters for price in prices])),
            multiply_adds=float(np.mean([price.multiply_adds for price in prices])),
            recalibration=recalibration,
        )
        return arms, [means]

    def single_path(self) -> list[Arm]:
        """Returns the best uniformly sampled path in a supernet trained on one path per step, if operations compete.

        The moving statistics of batch normalization belong to all paths together, so each path is evaluated, and cut,
        with its own statistics, from one batch of training images (arXiv 1904.00420).
        """
        config = self._config
        supernet = freeze(self._at_start())
        blocks = reference_architectures.choice_blocks(supernet.graph, supernet.gated_layers)
        if not blocks:
            return []
        kind = Kind.SINGLE_PATH
        self._fit(supernet, kind, before_step=Paths(supernet, blocks, config.seed))
        posterior, count = supernet.posterior(), config.sample.num_random
        # If few operations compete, many samples are the same path.
        paths = list(
            dict.fromkeys(reference_architectures.single_path(posterior, blocks, config.seed, i) for i in range(count))
        )
        images = networks.calibration_images(config, self._splits, config.sample.batch_size)
        recalibration = Recalibration(supernet, images)
        scores = [*map(self._evaluator(supernet, recalibration), paths)]
        return self._best(supernet, paths, scores, kind, count, recalibration.apply)

    def magnitude_pruning(self, price: Cost) -> list[Arm]:
        """Trains the full network without gates and drops the channels with the smallest weights down to equal size.

        `price` is that of `train`.
        """
        config = self._config
        networks.set_seed(config.seed)
        full = building.network(config, self._splits)
        kind = Kind.MAGNITUDE_PRUNING
        networks.fit_as_search(config, self._splits, self._work, full, kind)
        supernet = networks.gated(config, self._splits, full, self._work)
        scores = {name: mean_magnitude(layer) for name, layer in supernet.gated_layers.items()}
        pruned = reference_architectures.magnitude_candidate(supernet.graph, scores, price.parameters)
        if not supernet.graph.flow(pruned).reaches_outputs():
            return []
        if recalibration := networks.recalibration(config, self._splits, supernet):
            recalibration.apply(pruned)
        return self._cut(supernet, pruned, kind, kind)

    def _at_start(self, initial_drop: float | None = None) -> PublishedSupernet:
        """Returns a gated supernet with the weights after the warm-up."""
        model = networks.warmed_up(self._config, self._splits, self._work)
        return networks.gated(self._config, self._splits, model, self._work, initial_drop)

    def _fit(self, supernet: Supernet, title: str, **options: Any) -> None:
        folder, key = networks.retrain_checkpoints(title), self._work.key("retrain", self._config)
        networks.fit_gated(self._config, self._splits, self._work, supernet, folder, key, title, **options)

    def _evaluator(self, supernet: Supernet, recalibration: Recalibration | None) -> ranking.Evaluator:
        config = self._config
        building.compile_to_rank(config, supernet)
        batches = pipeline.evaluation_batches(self._splits.validation, config.data, config.sample.batch_size)
        return ranking.Evaluator(supernet, batches, recalibration, config.facts.example.name)

    def _best(
        self,
        supernet: Supernet,
        candidates: Sequence[Architecture],
        scores: Sequence[ranking.Score],
        kind: Kind,
        count: int = 0,
        adjust: Callable[[Architecture], None] | None = None,
    ) -> list[Arm]:
        """Cuts out the candidate with the best metric among those with a path to the output, if any."""
        metric = self._config.facts.example
        for i in sorted(range(len(scores)), key=lambda i: (float(metric.errors(scores[i][metric.name])), i)):
            if supernet.graph.flow(candidates[i]).reaches_outputs():
                if adjust:
                    adjust(candidates[i])
                name = f"{kind}, best of {count or len(candidates):,}"
                return self._cut(supernet, candidates[i], name, kind)
        return []

    def _cut(self, supernet: Supernet, architecture: Architecture, name: str, kind: Kind) -> list[Arm]:
        """Returns the network as cut, and the same network retrained."""
        config, price = self._config, cost(supernet.graph, architecture)
        arms = [Arm(name, kind, subnet(supernet, architecture), price)]
        if epochs := config.retrain.epochs:
            tuned = Arm(f"{kind}, fine-tuned", kind, subnet(supernet, architecture), price, fine_tuned=True)
            rates = schedules.retraining(config).schedule
            networks.fit_plain(
                config, self._splits, self._work, tuned.model, epochs, rates, tuned.name, teacher=self._teacher
            )
            arms.append(tuned)
        return arms


def freeze(supernet: PublishedSupernet) -> PublishedSupernet:
    """Freezes the drop probabilities of `supernet`; call it before `compile`."""
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
