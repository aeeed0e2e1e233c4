"""The contest's arms: ways to a small network. `benchmarks.contest` says what each is."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnas.common.errors import UserError
from tfnas.config import Config, Search
from tfnas.cutting.subnets import subnet
from tfnas.data import pipeline
from tfnas.gating import saving
from tfnas.gating.supernet import Supernet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import Cost, cost
from tfnas.layers import Pointwise
from tfnas.ranking import ranking, reference_architectures
from tfnas.runs import stage_table, workdir
from tfnas.runs.sampled import Kind
from tfnas.search_space.architecture import Architecture
from tfnas.stages import retrain, sample, search
from tfnas.training import building, networks
from tfnas.training.schedules import Cosine
from tfnas.training.trained_baselines import mean_magnitude

_GATE_LEARNING_RATE = 5.0  # of the published search: runs of few epochs need more than 1
_SCALE_PENALTY = 1e-3  # of 'bn-scale', the larger of the usual two: there are few steps to press in
_RANDOM = 20  # candidates of 'random'
_DRAWN = 100  # candidates of the published search
NEAR = 0.03  # what counts as the same size
_SECOND_ORDER = 1_000  # added to the seed after the search: not the same order of the images again
# What a target is counted in.
RESOURCES = {"parameters": "parameters", "multiply_adds": "multiply_adds", "half": "parameters"}
# Settings of the search that both kinds have.
_COMMON = (
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "nesterov",
    "example_multiplier",
    "temperature",
    "exclude",
)


@dataclasses.dataclass(frozen=True)
class Found:
    """The network that an arm ends with, what it costs, and what else its record says."""

    model: keras.Model
    cost: Cost
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Run:
    """One arm, with one weight decay and one seed.

    Args:
        config: with this run's decay and seed.
        splits: the images.
        work: of this run alone.
        folder: of the contest.
        ell2: of the published search.

    Attributes:
        full: cost of the whole network.
        targets: what a network is to have, by the target's name.
        seconds: spent so far on training and on ranking.
    """

    def __init__(
        self, config: Config, splits: pipeline.Splits, work: workdir.Workdir, folder: pathlib.Path, ell2: float
    ) -> None:
        self.config, self.splits, self.work, self.folder, self.ell2 = config, splits, work, folder, ell2
        self.full = self.cost_at(config.supernet.width)
        narrowed = self.cost_at(config.supernet.width // 2)
        self.targets = {
            "parameters": narrowed.parameters,
            "multiply_adds": narrowed.multiply_adds,
            "half": self.full.parameters / 2,
        }
        self.seconds = {"train": 0.0, "rank": 0.0}

    @property
    def epochs(self) -> int:
        """The whole budget."""
        return self.config.search.epochs + self.config.retrain.epochs

    @property
    def cosine(self) -> Cosine:
        """Over the whole budget."""
        return Cosine(self.config.search.learning_rate, self.epochs)

    @property
    def paper(self) -> Config:
        """The config with the published search."""
        common = {name: getattr(self.config.search, name) for name in _COMMON}
        published = Search(ell2=self.ell2, gate_learning_rate=_GATE_LEARNING_RATE, **common)
        return dataclasses.replace(self.config, search=published).check()

    def cost_at(self, width: int) -> Cost:
        """Returns the cost of the network of this width."""
        return cost(Graph(building.network(_with_width(self.config, width), self.splits)))

    def network(self, width: int = 0) -> keras.Model:
        """Builds the network with new, reproducible weights; with the config's width by default."""
        networks.set_seed(self.config.seed)
        return building.network(_with_width(self.config, width or self.config.supernet.width), self.splits)

    def gated(self, model: keras.Model) -> Supernet:
        """`model` with a gate for every source of a layer's input, whose probabilities are not used."""
        return networks.gated(self.paper, self.splits, model, self.work)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Counts the time meanwhile."""
        start = time.monotonic()
        yield
        self.seconds[phase] += time.monotonic() - start

    def trained(self, model: keras.Model, epochs: int = 0) -> keras.Model:
        """`model`, trained in place for the first epochs of the budget, or for all of it if no number is given."""
        with self.timed("train"):
            networks.fit_plain(
                self.config, self.splits, self.work, model, epochs or self.epochs, self.cosine.schedule, "train"
            )
        return model

    def trained_on(
        self, supernet: Supernet, architecture: Architecture, cosine: Cosine | None = None, **facts: Any
    ) -> Found:
        """The network cut out, and trained for what is left of the budget.

        Args:
            supernet: with the weights of the search.
            architecture: what is kept.
            cosine: to its end; None: that of the whole budget continues where the plain search stopped.
            facts: what else its record says.
        """
        cosine = cosine or dataclasses.replace(self.cosine, first=self.config.search.epochs)
        model = self.cut(supernet, architecture)
        config = dataclasses.replace(self.config, seed=self.config.seed + _SECOND_ORDER)
        epochs = cosine.epochs - cosine.first
        with self.timed("train"):
            networks.fit_plain(config, self.splits, self.work, model, epochs, cosine.schedule, "train on")
        return _found(supernet, architecture, model, **facts)

    def cut(self, supernet: Supernet, architecture: Architecture) -> keras.Model:
        """The network that `architecture` keeps, with normalization statistics of its own."""
        if not supernet.graph.flow(architecture).reaches_outputs():
            raise UserError("contest: what was chosen has no path to the output")
        if recalibration := networks.recalibration(self.config, self.splits, supernet):
            recalibration.apply(architecture)
        return subnet(supernet, architecture)

    def best(self, supernet: Supernet, candidates: Sequence[Architecture]) -> Architecture:
        """The candidate of the smallest validation loss with inherited weights and statistics of its own."""
        settings = self.config.sample
        batches = pipeline.evaluation_batches(self.splits.validation, self.config.data, settings.batch_size)
        recalibration = networks.recalibration(self.config, self.splits, supernet)
        supernet.compile(loss=networks.classification_loss())
        options: dict[str, Any] = {"racing": None, "holdout": 0.0, "batch_size": settings.batch_size}
        return ranking.rank(supernet, candidates, batches, recalibration=recalibration, **options).best

    def published(self, epochs: int) -> tuple[Supernet, Architecture, dict[str, Any]]:
        """The supernet after the published search, the best of its candidates of the size wanted, and facts."""
        config = dataclasses.replace(self.paper, search=dataclasses.replace(self.paper.search, epochs=epochs))
        with self.timed("train"):
            supernet = networks.gated(config, self.splits, self.network(), self.work)
            key = self.work.key("search", config)
            networks.fit_gated(config, self.splits, self.work, supernet, stage_table.CHECKPOINTS, key, "search")
        with self.timed("rank"):
            candidates = of_equal_size(supernet, self.targets["parameters"], self.config.seed)
            best = self.best(supernet, candidates)
        return supernet, best, {"learned": supernet.posterior().expected_kept(), "candidates": len(candidates)}


def _with_width(config: Config, width: int) -> Config:
    return dataclasses.replace(config, supernet=dataclasses.replace(config.supernet, width=width))


def _found(supernet: Supernet, architecture: Architecture, model: keras.Model, **facts: Any) -> Found:
    return Found(model, cost(supernet.graph, architecture), {**facts, **_described(architecture)})


def _described(architecture: Architecture) -> dict[str, Any]:
    """Returns the entries of a record."""
    kept = {name: int(mask.sum()) for name, mask in architecture.items()}
    return {"kept": kept, "architecture": json.loads(architecture.to_json())}


def _full(run: Run) -> Found:
    return Found(run.trained(run.network()), run.full)


def _narrowed(run: Run) -> Found:
    width = run.config.supernet.width // 2
    return Found(run.trained(run.network(width)), run.cost_at(width), {"width": width})


def _narrowed_wide(run: Run) -> Found:
    widths = range(2, run.config.supernet.width + 1, 2)
    width = next(width for width in widths if run.cost_at(width).parameters >= run.targets["half"])
    return Found(run.trained(run.network(width)), run.cost_at(width), {"width": width})


def _last_stage(target: str) -> Callable[[Run], Found]:
    def make(run: Run) -> Found:
        supernet = run.gated(run.network())
        channels = {name: sum(layer.group_sizes) for name, layer in supernet.gated_layers.items()}
        thresholds = {name: np.full(count, -np.inf) for name, count in channels.items()}
        last = [name for name in channels if name.startswith("stage3_")]
        for place, name in enumerate(last):
            # One layer after another takes a further channel: in larger steps the size would not be met.
            first = np.arange(channels[name]) + (place + 0.5) / len(last)
            thresholds[name] = first / channels[name]
        architecture = reference_architectures.of_size(
            thresholds, run.targets[target], reference_architectures.counted(supernet.graph)
        )
        return _found(supernet, architecture, run.trained(subnet(supernet, architecture)))

    return make


def _magnitude(run: Run) -> Found:
    supernet = run.gated(run.trained(run.network(), run.config.search.epochs))
    scores = {name: mean_magnitude(layer) for name, layer in supernet.gated_layers.items()}
    pruned = reference_architectures.magnitude_candidate(supernet.graph, scores, run.targets["parameters"])
    return run.trained_on(supernet, pruned)


def own_scales(graph: Graph, gated: Sequence[str]) -> dict[str, keras.layers.BatchNormalization]:
    """Maps each gated layer to the normalization that only it reads, directly or through activations."""
    readers = collections.Counter(i for node in graph.nodes for i in node.inputs)
    found = {}
    for name in gated:
        (i,) = graph.nodes[graph.index[name]].inputs
        while readers[i] == 1 and isinstance(graph.nodes[i], Pointwise):
            (i,) = graph.nodes[i].inputs
        layer = graph.nodes[i].inner
        if readers[i] == 1 and isinstance(layer, keras.layers.BatchNormalization) and layer.scale:
            found[name] = layer
    return found


def _bn_scale(run: Run) -> Found:
    model = run.network()
    scales = own_scales(Graph(model), list(run.gated(model).gated_layers))
    for layer in scales.values():
        layer.gamma.regularizer = keras.regularizers.L1(_SCALE_PENALTY)
    supernet = run.gated(run.trained(model, run.config.search.epochs))
    scores = {
        name: np.abs(np.asarray(scales[name].gamma)) if name in scales else np.full(sum(layer.group_sizes), np.inf)
        for name, layer in supernet.gated_layers.items()
    }
    pruned = reference_architectures.magnitude_candidate(supernet.graph, scores, run.targets["parameters"])
    return run.trained_on(supernet, pruned, penalty=_SCALE_PENALTY, scales=sorted(scales))


def _random(run: Run) -> Found:
    supernet = run.gated(run.trained(run.network(), run.config.search.epochs))
    posterior, graph, wanted = supernet.posterior(), supernet.graph, run.targets["parameters"]
    with run.timed("rank"):
        candidates = [
            reference_architectures.random_candidate(posterior, graph, wanted, Kind.ALLOCATED, run.config.seed, i)
            for i in range(_RANDOM)
        ]
        best = run.best(supernet, candidates)
    return run.trained_on(supernet, best)


def of_equal_size(supernet: Supernet, parameters: float, seed: int) -> list[Architecture]:
    """Selects, from 100 candidates, those with nearly the given number of parameters, or the nearest one.

    They are drawn from the posterior tilted until their mean is that number, counted exactly.
    """
    posterior, graph = supernet.posterior(), supernet.graph

    def drawn(share: float) -> tuple[list[Architecture], np.ndarray]:
        candidates = posterior.tilt(parameters=share * posterior.total_parameters()).sample(_DRAWN, seed)
        return candidates, np.array([cost(graph, candidate).parameters for candidate in candidates])

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        candidates, sizes = drawn(middle)
        low, high = (middle, high) if sizes.mean() < parameters else (low, middle)
    off = np.abs(sizes / parameters - 1)
    off[[not graph.flow(candidate).reaches_outputs() for candidate in candidates]] = np.inf
    return [candidates[i] for i in np.flatnonzero(off <= NEAR)] or [candidates[int(np.argmin(off))]]


def _paper(run: Run) -> Found:
    epochs = 2 * run.config.search.epochs
    supernet, best, facts = run.published(epochs)
    return run.trained_on(supernet, best, Cosine(run.config.search.learning_rate, run.epochs - epochs), **facts)


def _paper_search_only(run: Run) -> Found:
    supernet, best, facts = run.published(run.epochs)
    return _found(supernet, best, run.cut(supernet, best), **facts)


def _paper_scratch(run: Run) -> Found:
    # The search depends on the seed alone: whatever the decay after it was, it found the same.
    records = sorted((run.folder / "paper").glob(f"decay-*/seed{run.config.seed}.json"))
    if records:
        architecture = Architecture.from_json(json.dumps(json.loads(records[0].read_text())["architecture"]))
    else:
        _, architecture, _ = run.published(2 * run.config.search.epochs)
        run.seconds.update(train=0.0, rank=0.0)
    supernet = run.gated(run.network())
    return _found(supernet, architecture, run.trained(subnet(supernet, architecture)))


def default(config: Config, work: workdir.Workdir, bounds: Mapping[str, float]) -> tuple[Found, dict[str, float]]:
    """The project's search with bounds, by its stages, and the seconds of each.

    Args:
        config: says the data, the network, the epochs and the weight decay.
        work: where the stages run.
        bounds: by resource, the share of the full network's that the network found may have.
    """
    target = dataclasses.replace(config.search, **{"parameters": 0.0, "multiply_adds": 0.0, **bounds})
    further = dataclasses.replace(config.retrain, baseline=False)
    config = dataclasses.replace(config, search=target, retrain=further)
    for stage in (search, sample, retrain):
        stage.run(config, work.path)
    results = json.loads((work.path / stage_table.RESULTS).read_text())
    (row,) = (row for row in results["rows"] if row["name"] == results["chosen"])
    architecture = Architecture.from_json((work.path / stage_table.ARCHITECTURE).read_bytes())
    facts = {"chosen": results["chosen"], **_described(architecture)}
    model = saving.load_model(work.path / stage_table.SUBNET, keras.Model)
    seconds = {name: stage.seconds for name, stage in work.manifest().stages.items()}
    return Found(model, Cost(row["parameters"], row["multiply_adds"]), facts), seconds


def _default(*targets: str) -> Callable[[Run], Found]:
    def make(run: Run) -> Found:
        bounds = {RESOURCES[target]: run.targets[target] / getattr(run.full, RESOURCES[target]) for target in targets}
        found, seconds = default(run.config, run.work, bounds)
        run.seconds.update(train=seconds["search"] + seconds["retrain"], rank=seconds["sample"])
        return found

    return make


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to a network.

    Attributes:
        make: does it.
        target: of `Run.targets`, the size that it is to have; empty for none.
        reference: the arm that it is compared with.
        decayed: whether it has a weight decay.
    """

    make: Callable[[Run], Found]
    target: str = ""
    reference: str = "narrowed"
    decayed: bool = True


ARMS = {
    "full": Arm(_full),
    "narrowed": Arm(_narrowed, "parameters"),
    "narrowed-wide": Arm(_narrowed_wide),
    "last-stage": Arm(_last_stage("parameters"), "parameters"),
    "last-stage-half": Arm(_last_stage("half"), "half", "full"),
    "magnitude": Arm(_magnitude, "parameters"),
    "bn-scale": Arm(_bn_scale, "parameters"),
    "random": Arm(_random, "parameters"),
    "paper": Arm(_paper, "parameters"),
    "paper-search-only": Arm(_paper_search_only, "parameters", decayed=False),
    "paper-scratch": Arm(_paper_scratch, "parameters"),
    "default": Arm(_default("parameters", "multiply_adds")),
    "default-parameters": Arm(_default("parameters"), "parameters"),
    "default-multiply-adds": Arm(_default("multiply_adds"), "multiply_adds"),
    "default-half": Arm(_default("half"), "half", "full"),
}
