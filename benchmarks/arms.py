"""Ways to a small network that the contest compares: an importance each, with a few settings (docs/method.md)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from benchmarks import records
from tfnas.config import Config, Search
from tfnas.data import pipeline
from tfnas.gating import saving
from tfnas.gating.importances import ROUNDS
from tfnas.gating.supernet import Supernet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import Cost, cost
from tfnas.graph.latencies import compare_latency
from tfnas.ranking import ranking
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Architecture
from tfnas.stages import search
from tfnas.training import building, networks
from tfnas.training.best_cut import Way, cuts
from tfnas.training.schedules import Cosine

_SECOND_ORDER = 1_000  # added to the seed after the search: not the same order of the images again
_EXAMPLES = 512  # training images from which importances, statistics and refits are computed
_GATE_LEARNING_RATE = 5.0  # of the published search: runs of few epochs need more than 1
_DRAWN = 100  # candidates of the published search
_DISTILL = 0.5  # weight of the teacher's logits in the loss
_NEAR = 0.03  # share of the size by which they may differ from it


@dataclasses.dataclass(frozen=True)
class Situation:
    """Start of an arm, and length of its training.

    Attributes:
        epochs: in all, the search included.
        search: the first of them, in which an importance that is learned is learned.
        warmup: the first of those, without gates.
        learning_rate: of SGD, at the start of one cosine to zero.
        trained: whether it starts from the network that the arm 'full' has trained from scratch.
    """

    epochs: int
    search: int
    warmup: int
    learning_rate: float
    trained: bool = True


SITUATIONS = {
    "scratch": Situation(epochs=24, search=6, warmup=2, learning_rate=0.1, trained=False),
    "trained-8": Situation(epochs=8, search=3, warmup=0, learning_rate=0.03),
    "trained-2": Situation(epochs=2, search=1, warmup=0, learning_rate=0.03),
    "trained-0": Situation(epochs=0, search=0, warmup=0, learning_rate=0.03),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to a network.

    Attributes:
        importance: of the channel units; empty: nothing is cut.
        learned: whether it is learned in the search's epochs; else computed from the weights after as much plain
            training, or from those of the trained network at once.
        settings: further ones of the search.
        width: of the network, as a share.
        distilled: whether what is cut learns from the full network's outputs too.
        as_cut: whether it is trained on as it was cut, neither recalibrated nor refitted, as by other tools.
        rounds: of curvature at once.
    """

    importance: str = ""
    learned: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    width: float = 1.0
    distilled: bool = False
    as_cut: bool = False
    rounds: int = 1

    def enters(self, situation: Situation) -> bool:
        """Whether the arm makes sense in a situation: without a search nothing is learned."""
        if self.width < 1 or self.importance == "published":
            return not situation.trained
        if self.importance == "even" or not self.importance:
            return situation.trained or not self.importance
        return bool(situation.epochs or not (self.distilled or self.learned))


ARMS = {
    "full": Arm(),
    "narrowed": Arm(width=0.5),
    "even-streams": Arm("even", settings={"streams": "yes"}),
    "norm": Arm("norm"),
    "norm-streams": Arm("norm", settings={"streams": "yes"}),
    "norm-as-cut": Arm("norm", settings={"streams": "yes"}, as_cut=True),
    "scale": Arm("scale", learned=True, settings={"floor": 0.0}),
    "scale-floor": Arm("scale", learned=True),
    "curvature": Arm("curvature"),
    "curvature-rounds": Arm("curvature", rounds=ROUNDS),
    "curvature-as-cut": Arm("curvature", as_cut=True),
    "curvature-iterative": Arm("curvature", learned=True),
    "gates": Arm("gates", learned=True),
    "gates-example": Arm("gates", learned=True, settings={"noise": "example"}),
    "gates-streams": Arm("gates", learned=True, settings={"streams": "yes"}),
    "published": Arm("published", learned=True),
    "narrowed-distilled": Arm(width=0.5, distilled=True),
    "norm-distilled": Arm("norm", distilled=True),
    "curvature-iterative-distilled": Arm("curvature", learned=True, distilled=True),
    "gates-distilled": Arm("gates", learned=True, distilled=True),
}


class Run:
    """One arm in one situation, within one pair of bounds, at one seed.

    Args:
        config: with this seed.
        splits: the images.
        work: of this run alone.
        situation: of `SITUATIONS`.
        bounds: 'parameters' and 'multiply_adds', shares of the full network's.
        teacher: file of the trained full network; None while there is none.
    """

    def __init__(
        self,
        config: Config,
        splits: pipeline.Splits,
        work: workdir.Workdir,
        situation: Situation,
        bounds: Mapping[str, float],
        teacher: str | None,
    ) -> None:
        self.config, self.splits, self.work = config, splits, work
        self.situation, self.bounds, self.teacher = situation, bounds, teacher
        self.spent = 0.0  # epochs of training, counted in multiply-adds of the full network

    def conduct(self, arm: Arm) -> tuple[dict[str, Any], keras.Model]:
        """Returns what the arm came to, without its scores on test, and its last network."""
        start = time.monotonic()
        full = self._start()
        full_cost = cost(Graph(full))
        if arm.importance:
            model, facts = self._cut(arm, full, full_cost)
        else:
            model = full if arm.width == 1 else self._network(arm.width)
            facts = {}
            self._train(model, 0, cost(Graph(model)).multiply_adds / full_cost.multiply_adds, arm.distilled)
        price = cost(Graph(model))
        seconds = time.monotonic() - start
        turns = compare_latency([full, model], "litert")
        facts |= {
            "parameters": price.parameters / full_cost.parameters,
            "multiply_adds": price.multiply_adds / full_cost.multiply_adds,
            "latency": turns.seconds[1] / turns.seconds[0],
            "epochs_spent": self.spent,
            "seconds": seconds,
        }
        return facts, model

    def _network(self, width: float = 1.0) -> keras.Model:
        supernet = self.config.supernet
        narrowed = dataclasses.replace(supernet, width=round(width * supernet.width))
        networks.set_seed(self.config.seed)
        return building.network(dataclasses.replace(self.config, supernet=narrowed), self.splits)

    def _start(self) -> keras.Model:
        return saving.load_model(self.teacher, keras.Model) if self.situation.trained else self._network()

    def _train(
        self, model: keras.Model, first: int, share: float, distilled: bool = False, end: int | None = None
    ) -> None:
        """Trains `model` from epoch `first` to `end`, or to the last one; `share`: of the full multiply-adds."""
        end = self.situation.epochs if end is None else end
        if end == first:
            return
        cosine = Cosine(self.situation.learning_rate, self.situation.epochs, first)
        retrain = dataclasses.replace(self.config.retrain, distill=_DISTILL)  # without a teacher of no account
        config = dataclasses.replace(self.config, seed=self.config.seed + _SECOND_ORDER * bool(first), retrain=retrain)
        teacher = saving.load_model(self.teacher, keras.Model) if distilled else None
        title = "train on" if first else "train"
        networks.fit_plain(
            config,
            self.splits,
            self.work,
            model,
            end - first,
            cosine.schedule,
            title,
            **({"teacher": teacher} if teacher else {}),
        )
        # A forward pass of the teacher is a third of a step.
        self.spent += (end - first) * (share + distilled / 3)

    def _cut(self, arm: Arm, full: keras.Model, full_cost: Cost) -> tuple[keras.Model, dict[str, Any]]:
        """Searches, cuts, chooses the cut by its loss on validation, and trains on."""
        searched = self.situation.search if arm.learned or not self.situation.trained else 0
        supernet = self._learned(arm) if arm.learned else self._plain(arm, full, searched)
        self.spent += searched * arm.learned
        images = networks.calibration_images(self.config, self.splits, _EXAMPLES)
        if arm.importance == "published":
            architecture = self._published(supernet)
        elif arm.importance == "curvature" and not arm.learned:
            data = pipeline.training_batches(self.splits, self.config.data, 100, 1, self.config.seed).take(20)
            architecture = supernet.posterior("curvature", data, rounds=arm.rounds).mode()
        else:
            architecture = supernet.posterior(None if arm.learned else arm.importance).mode()
        share = cost(supernet.graph, architecture).multiply_adds / full_cost.multiply_adds
        made = cuts(supernet, architecture, images)
        scores = {way: records.scores(model, self.splits, self.config, ["validation"]) for way, model in made.items()}
        allowed = [Way.BARE] if arm.as_cut else list(scores)
        best = min(allowed, key=lambda way: scores[way]["validation"]["loss"])
        after = {way: score["validation"]["accuracy"] for way, score in scores.items()}
        self._train(made[best], searched, share, arm.distilled)
        widths = {name: int(mask.sum()) for name, mask in architecture.items()}
        return made[best], {"after_cut": after, "cut": best, "widths": widths}

    def _settings(self, arm: Arm) -> Config:
        published = arm.importance == "published"
        given: dict[str, Any] = {
            "epochs": self.situation.search,
            "warmup_epochs": self.situation.warmup,
            "cosine_epochs": self.situation.epochs,
            "learning_rate": self.situation.learning_rate,
            **({} if published else self.bounds),
            **arm.settings,
        }
        if arm.learned and not published:
            given["importance"] = arm.importance
        if published:
            given |= {"ell2": self.config.search.ell2 or 250.0, "gate_learning_rate": _GATE_LEARNING_RATE}
        settings = dataclasses.replace(
            Search(batch_size=self.config.retrain.batch_size), schedule="one_cosine", **given
        )
        supernet = self.config.supernet
        if self.situation.trained:
            supernet = dataclasses.replace(supernet, weights=self.teacher)
        retrain = dataclasses.replace(self.config.retrain, epochs=self.situation.epochs - self.situation.search)
        return dataclasses.replace(self.config, search=settings, supernet=supernet, retrain=retrain).check()

    def _learned(self, arm: Arm) -> Supernet:
        search.run(self._settings(arm), self.work.path)
        return saving.load(self.work.path / stage_table.SUPERNET)

    def _plain(self, arm: Arm, full: keras.Model, searched: int) -> Supernet:
        self._train(full, 0, 1.0, end=searched)
        supernet = networks.gated(self._settings(arm), self.splits, full, self.work)
        supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return supernet

    def _published(self, supernet: Supernet) -> Architecture:
        """The best candidate of the published search that has nearly the bound's multiply-adds, by validation loss.

        They are drawn from the posterior tilted until their mean is that number, counted exactly.
        """
        posterior, graph = supernet.posterior(), supernet.graph
        goal = self.bounds["multiply_adds"] * cost(graph).multiply_adds
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            tilted = posterior.tilt(parameters=middle * posterior.total_parameters())
            candidates = tilted.sample(_DRAWN, self.config.seed)
            sizes = np.array([cost(graph, candidate).multiply_adds for candidate in candidates])
            low, high = (middle, high) if sizes.mean() < goal else (low, middle)
        off = np.abs(sizes / goal - 1)
        off[[not graph.flow(candidate).reaches_outputs() for candidate in candidates]] = np.inf
        near = [candidates[i] for i in np.flatnonzero(off <= _NEAR)] or [candidates[int(np.argmin(off))]]
        size = self.config.sample.batch_size
        batches = pipeline.evaluation_batches(self.splits.validation, self.config.data, size)
        supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        statistics = networks.recalibration(self.config, self.splits, supernet)
        options: dict[str, Any] = {"racing": None, "holdout": 0.0, "batch_size": size}
        return ranking.rank(supernet, near, batches, recalibration=statistics, **options).best
