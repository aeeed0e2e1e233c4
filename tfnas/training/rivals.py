"""Networks within the same bounds that other importances of channel units give, from the same weights or trained alike.

From the weights of the search, a cut by another importance takes seconds and no training. As a baseline, an importance
gets what the search's own had: the same epochs with gates, of the same batches, then the same retraining.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras

from tfnas.config import Config
from tfnas.cutting.refit import NUM_EXAMPLES
from tfnas.data import pipeline
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.costs import Cost, cost
from tfnas.runs.sampled import BY_IMPORTANCE, Kind
from tfnas.runs.workdir import Workdir
from tfnas.search_space.architecture import Architecture
from tfnas.training import networks, schedules
from tfnas.training.best_cut import best_cut

AT_ONCE = ("even", "norm", "curvature")  # importances that need no training of their own


@dataclasses.dataclass(frozen=True)
class Arm:
    """One network of the comparison.

    Attributes:
        name: name of its row in the table.
        kind: kind of network.
        model: the network.
        cost: cost of the network.
        fine_tuned: whether it was trained by itself, unlike another of its kind.
        way: how it was cut, where there was a choice.
    """

    name: str
    kind: Kind
    model: keras.Model
    cost: Cost
    fine_tuned: bool = False
    way: str | None = None


class Cuts:
    """Cuts networks within bounds out of one supernet, each in the way with the lowest loss on validation images.

    Args:
        config: settings of the run.
        splits: the images, of which test is not read.
        supernet: compiled and trained; not changed.
        bounds: largest cost by resource.
    """

    def __init__(self, config: Config, splits: pipeline.Splits, supernet: UnitSupernet, bounds: Mapping[str, float]):
        self._config, self._splits, self._supernet, self._bounds = config, splits, supernet, dict(bounds)
        self._images = networks.calibration_images(config, splits, NUM_EXAMPLES)
        self._validation = pipeline.evaluation_batches(splits.validation, config.data, config.sample.batch_size)

    def most_probable(self, importance: str | None = None) -> Architecture:
        """Returns the most probable architecture by an importance, by default the supernet's own, within the bounds."""
        data = networks.curvature_batches(self._config, self._splits) if importance == "curvature" else None
        posterior = self._supernet.posterior(importance, data, bounds=self._bounds)
        return dataclasses.replace(posterior, channel_multiple=self._config.sample.channel_multiple).mode()

    def arm(self, architecture: Architecture, name: str, kind: Kind) -> Arm:
        """Returns the network of an architecture: as cut, with statistics of its own, or refitted."""
        best = best_cut(self._supernet, architecture, self._images, self._validation)
        return Arm(name, kind, best.model, cost(self._supernet.graph, architecture), way=best.way)


def at_once(cuts: Cuts, but: str) -> list[Arm]:
    """Returns what importances that need no training, but for the search's own, give from the same weights."""
    kinds = {importance: BY_IMPORTANCE[importance] for importance in AT_ONCE if importance != but}
    return [cuts.arm(cuts.most_probable(name), f"{kind}, same weights", kind) for name, kind in kinds.items()]


def trained(
    config: Config,
    splits: pipeline.Splits,
    work: Workdir,
    importance: str,
    bounds: Mapping[str, float],
    teacher: keras.Model | None,
) -> Arm:
    """Searches with another importance, cuts and retrains, starting from checkpoints, if any.

    Args:
        config: settings of the run.
        splits: the images, of which test is not read.
        work: working directory of the checkpoints.
        importance: in place of the search's.
        bounds: of the network found, by resource.
        teacher: as of `networks.fit_plain`.

    Raises:
        UserError: if a loss is no longer finite, or a checkpoint cannot be read.
    """
    kind, key = BY_IMPORTANCE[importance], work.key("retrain", config)
    model = networks.warmed_up(config, splits, work)
    supernet = networks.gated(config, splits, model, work, importance=importance)
    networks.fit_gated(config, splits, work, supernet, networks.retrain_checkpoints(kind), key, kind)
    cuts = Cuts(config, splits, supernet, bounds)
    arm = cuts.arm(cuts.most_probable(), f"{kind}, trained alike", kind)
    way = arm.way
    if config.retrain.epochs:
        way = None
        rates = schedules.retraining(config).schedule
        title = f"{kind}, fine-tuned"
        networks.fit_plain(config, splits, work, arm.model, config.retrain.epochs, rates, title, teacher=teacher)
    return dataclasses.replace(arm, fine_tuned=True, way=way)
