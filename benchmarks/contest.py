"""Ways to a small network against each other, at equal budget and size: is searching worth more than narrowing by hand?

    .venv/bin/python benchmarks/contest.py --config=configs/contest_16.py --workdir=runs/contest_16 --seeds=0,1,2
        [--arms=narrowed,magnitude] [--decays=0.0005,0.002] [--jobs=1/2] [--decays_from=runs/OTHER/results.json]
        [--ell2=250] [--export=docs/results/contest_16] [--config.data.data_dir=DIR ...]

Every arm ends with one network, trained on the same images for search.epochs + retrain.epochs of the config in all, its
search included, by SGD with one cosine from search.learning_rate to zero, but where an arm says otherwise. It has the
parameters, or the multiply-adds, of the network whose layers are all half as wide ('narrowed'), or half of the full
network's parameters. The weight decay is chosen among --decays for each arm by validation accuracy at the first seed.
Test is read when a run's network is fixed, and chooses nothing.

    full                   the network as it is
    narrowed               every layer half as wide
    narrowed-wide          every layer as narrow as leaves half of the parameters or more
    last-stage             the last stage's gated layers read only their first channels; before it nothing goes but what
                           is then read no more
    last-stage-half        the same, with half of the full network's parameters
    magnitude              full for search.epochs, less the channels of the smallest weights, then trained on
    bn-scale               the same by batch normalisation's scales, under an L1 penalty (arXiv 1708.06519); channels
                           that more than one layer reads have no scale of their own and stay
    random                 full for search.epochs, then the best of 20 random allocations by inherited weights
    paper                  the published search, with a cosine of its own, for 2 search.epochs; candidates of its
                           posterior tilted to this size; the best is trained on, with a cosine of its own
    paper-search-only      the published search for all epochs; the best candidate as it is
    paper-scratch          the network that 'paper' found, its weights new; that search is not counted
    default-parameters     the project's default recipe, to the parameters of 'narrowed'
    default-multiply-adds  to its multiply-adds
    default-half           to half of the full network's parameters

Ranking is timed apart from training; the default recipe's training includes what its stages evaluate.

A run is a file, WORKDIR/ARM/decay-D/seedN.json, and is not repeated; one that was interrupted goes on from its last
checkpoint. --jobs=i/n does every n-th run, so that n processes share the work; where a decay is to be chosen by a run
of another process, it is waited for. The process that ends last writes results.json and table.md. --decays_from takes
the decays that another contest chose. --export=NAME writes NAME.json and NAME.md too.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from scipy import stats

from tfnas import baselines, data, functions, ranking, saving, training, workdir
from tfnas.architecture import Architecture
from tfnas.channels import Graph
from tfnas.config import Config, Search, from_config_dict
from tfnas.controls import mean_magnitude
from tfnas.costs import Cost, cost
from tfnas.errors import UserError
from tfnas.optimizers import Cosine
from tfnas.stages import retrain, sample, search
from tfnas.subnets import subnet
from tfnas.supernet import Supernet

_GATE_LEARNING_RATE = 5.0  # of the published search: runs of few epochs need more than 1
_SCALE_PENALTY = 1e-3  # of 'bn-scale', the larger of the usual two: there are few steps to press in
_RANDOM = 20  # candidates of 'random'
_DRAWN = 100  # candidates of the published search
_NEAR = 0.03  # what counts as the same size
_SECOND_ORDER = 1_000  # added to the seed after the search: not the same order of the images again
# What a target is counted in.
_RESOURCES = {"parameters": "parameters", "multiply_adds": "multiply_adds", "half": "parameters"}
# Settings of the search that are not a recipe's.
_COMMON = (
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "nesterov",
    "example_multiplier",
    "temperature",
    "gate_dense",
    "gate_pooling",
    "include",
    "exclude",
)
_POLL_SECONDS = 5.0
_SECTIONS = ("data", "supernet", "search", "sample", "retrain", "training")  # settings that a contest depends on


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
        self, config: Config, splits: data.Splits, work: workdir.Workdir, folder: pathlib.Path, ell2: float
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
        published = Search(recipe="paper", ell2=self.ell2, gate_learning_rate=_GATE_LEARNING_RATE, **common)
        return dataclasses.replace(self.config, search=published).check()

    def cost_at(self, width: int) -> Cost:
        """Of the network of this width."""
        return cost(Graph(training.network(_with_width(self.config, width), self.splits)))

    def network(self, width: int = 0) -> keras.Model:
        """With new weights, the same whenever it is called; of the config's width if none is given."""
        training.set_seed(self.config.seed)
        return training.network(_with_width(self.config, width or self.config.supernet.width), self.splits)

    def gated(self, model: keras.Model) -> Supernet:
        """`model` with a gate for every source of a layer's input, whose probabilities are not used."""
        return training.gated(self.paper, self.splits, model)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Counts the time meanwhile."""
        start = time.monotonic()
        yield
        self.seconds[phase] += time.monotonic() - start

    def trained(self, model: keras.Model, epochs: int = 0) -> keras.Model:
        """`model`, trained in place for the first epochs of the budget, or for all of it if no number is given."""
        with self.timed("train"):
            training.fit_plain(self.config, self.splits, self.work, model, epochs or self.epochs, self.cosine, "train")
        return model

    def trained_on(
        self, supernet: Supernet, architecture: Architecture, cosine: Cosine | None = None, **facts: Any
    ) -> Found:
        """The network cut out, and trained for what is left of the budget.

        Args:
            supernet: with the weights of the search.
            architecture: what is kept.
            cosine: to its end; None: the whole budget's goes on where the plain search left it.
            facts: what else its record says.
        """
        cosine = cosine or dataclasses.replace(self.cosine, first=self.config.search.epochs)
        model = self.cut(supernet, architecture)
        config = dataclasses.replace(self.config, seed=self.config.seed + _SECOND_ORDER)
        epochs = cosine.epochs - cosine.first
        with self.timed("train"):
            training.fit_plain(config, self.splits, self.work, model, epochs, cosine, "train on")
        return _found(supernet, architecture, model, **facts)

    def cut(self, supernet: Supernet, architecture: Architecture) -> keras.Model:
        """The network that `architecture` keeps, with normalisation statistics of its own."""
        if not supernet.graph.flow(architecture).reaches_outputs():
            raise UserError("contest: what was chosen has no path to the output")
        if recalibration := training.recalibration(self.config, self.splits, supernet):
            recalibration.apply(architecture)
        return subnet(supernet, architecture)

    def best(self, supernet: Supernet, candidates: Sequence[Architecture]) -> Architecture:
        """The candidate of the smallest validation loss with inherited weights and statistics of its own."""
        settings = self.config.sample
        batches = data.evaluation_batches(self.splits.validation, self.config.data, settings.batch_size)
        recalibration = training.recalibration(self.config, self.splits, supernet)
        supernet.compile(loss=training.classification_loss())
        options: dict[str, Any] = {"racing": None, "holdout": 0.0, "batch_size": settings.batch_size}
        return ranking.rank(supernet, candidates, batches, recalibration=recalibration, **options).best

    def published(self, epochs: int) -> tuple[Supernet, Architecture, dict[str, Any]]:
        """The supernet after the published search, the best of its candidates of the size wanted, and facts."""
        config = dataclasses.replace(self.paper, search=dataclasses.replace(self.paper.search, epochs=epochs))
        with self.timed("train"):
            supernet = training.gated(config, self.splits, self.network())
            key = self.work.key("search", config)
            training.fit_gated(config, self.splits, self.work, supernet, workdir.CHECKPOINTS, key, "search")
        with self.timed("rank"):
            candidates = of_equal_size(supernet, self.targets["parameters"], self.config.seed)
            best = self.best(supernet, candidates)
        return supernet, best, {"learned": supernet.posterior().expected_kept(), "candidates": len(candidates)}


def _with_width(config: Config, width: int) -> Config:
    return dataclasses.replace(config, supernet=dataclasses.replace(config.supernet, width=width))


def _found(supernet: Supernet, architecture: Architecture, model: keras.Model, **facts: Any) -> Found:
    return Found(model, cost(supernet.graph, architecture), {**facts, **_described(architecture)})


def _described(architecture: Architecture) -> dict[str, Any]:
    """What a record says of it."""
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
        architecture = baselines.of_size(supernet.graph, thresholds, run.targets[target])
        return _found(supernet, architecture, run.trained(subnet(supernet, architecture)))

    return make


def _magnitude(run: Run) -> Found:
    supernet = run.gated(run.trained(run.network(), run.config.search.epochs))
    scores = {name: mean_magnitude(layer) for name, layer in supernet.gated_layers.items()}
    pruned = baselines.magnitude_candidate(supernet.graph, scores, run.targets["parameters"])
    return run.trained_on(supernet, pruned)


def own_scales(graph: Graph, gated: Sequence[str]) -> dict[str, keras.layers.BatchNormalization]:
    """By gated layer, the normalisation whose output nothing but it reads, and through nothing but activations."""
    readers = collections.Counter(i for node in graph.nodes for i in node.inputs)
    found = {}
    for name in gated:
        (i,) = graph.nodes[graph.index[name]].inputs
        while readers[i] == 1 and graph.nodes[i].kind == "pointwise":
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
    pruned = baselines.magnitude_candidate(supernet.graph, scores, run.targets["parameters"])
    return run.trained_on(supernet, pruned, penalty=_SCALE_PENALTY, scales=sorted(scales))


def _random(run: Run) -> Found:
    supernet = run.gated(run.trained(run.network(), run.config.search.epochs))
    posterior, graph, wanted = supernet.posterior(), supernet.graph, run.targets["parameters"]
    with run.timed("rank"):
        candidates = [
            baselines.random_candidate(posterior, graph, wanted, baselines.ALLOCATED, run.config.seed, i)
            for i in range(_RANDOM)
        ]
        best = run.best(supernet, candidates)
    return run.trained_on(supernet, best)


def of_equal_size(supernet: Supernet, parameters: float, seed: int) -> list[Architecture]:
    """Of 100 candidates those with nearly so many parameters, or the nearest one.

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
    return [candidates[i] for i in np.flatnonzero(off <= _NEAR)] or [candidates[int(np.argmin(off))]]


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


def default(config: Config, work: workdir.Workdir, resource: str, share: float) -> tuple[Found, dict[str, float]]:
    """The project's default recipe, by its stages, and the seconds of each.

    Args:
        config: says the data, the network, the epochs and the weight decay.
        work: where the stages run.
        resource: 'parameters' or 'multiply_adds'.
        share: of the full network's, that the network found may have.
    """
    target = dataclasses.replace(config.search, **{"parameters": 0.0, "multiply_adds": 0.0, resource: share})
    further = dataclasses.replace(config.retrain, baseline=False, controls=False)
    config = dataclasses.replace(config, search=target, retrain=further)
    for stage in (search, sample, retrain):
        stage.run(config, work.path)
    results = json.loads((work.path / workdir.RESULTS).read_text())
    (row,) = (row for row in results["rows"] if row["name"] == results["chosen"])
    architecture = Architecture.from_json((work.path / workdir.ARCHITECTURE).read_bytes())
    facts = {"chosen": results["chosen"], **_described(architecture)}
    model = saving.load(work.path / workdir.SUBNET, keras.Model)
    seconds = {name: record["seconds"] for name, record in work.manifest()["stages"].items()}
    return Found(model, Cost(row["parameters"], row["multiply_adds"]), facts), seconds


def _default(target: str) -> Callable[[Run], Found]:
    def make(run: Run) -> Found:
        resource = _RESOURCES[target]
        share = run.targets[target] / getattr(run.full, resource)
        found, seconds = default(run.config, run.work, resource, share)
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
    "last-stage-half": Arm(_last_stage("half"), "half", "narrowed-wide"),
    "magnitude": Arm(_magnitude, "parameters"),
    "bn-scale": Arm(_bn_scale, "parameters"),
    "random": Arm(_random, "parameters"),
    "paper": Arm(_paper, "parameters"),
    "paper-search-only": Arm(_paper_search_only, "parameters", decayed=False),
    "paper-scratch": Arm(_paper_scratch, "parameters"),
    "default-parameters": Arm(_default("parameters"), "parameters"),
    "default-multiply-adds": Arm(_default("multiply_adds"), "multiply_adds"),
    "default-half": Arm(_default("half"), "half", "narrowed-wide"),
}


class Contest:
    """A folder of records, one a run.

    Args:
        config: of all runs; the seed and the decays are not used.
        path: the folder. It is this config's from then on.
        options: the weight decays to choose among, by arm.
        seeds: at the first, the decays are chosen.
        ell2: of the published search.

    Raises:
        UserError: if the folder is another contest's, or this network has no width or search to compare.
    """

    def __init__(
        self,
        config: Config,
        path: str | os.PathLike[str],
        options: Mapping[str, Sequence[float]],
        seeds: Sequence[int],
        ell2: float,
    ) -> None:
        if config.supernet.name != "multi_branch_resnet" or config.supernet.source or not config.supernet.width:
            raise UserError("contest: supernet.name 'multi_branch_resnet' with a width expected")
        if config.search.recipe != "target" or config.search.schedule != "one_cosine":
            raise UserError("contest: search.recipe 'target' with one cosine expected, the others are made of it")
        if config.retrain.epochs <= config.search.epochs:
            raise UserError("contest: retrain.epochs above search.epochs expected: 'paper' takes twice those to search")
        self.config, self.options, self.seeds, self.ell2 = config, options, seeds, ell2
        self.work = workdir.Workdir(path)
        self._claim()

    def _claim(self) -> None:
        mine = json.loads(json.dumps({"config": workdir.settings(self.config, _SECTIONS), "ell2": self.ell2}))
        file = self.work.path / "contest.json"
        if file.exists() and json.loads(file.read_text()) != mine:
            raise UserError(f"workdir {self.work.path}: holds a contest with other settings: use another --workdir")
        self.work.write_json(file.name, mine)
        self.settings = mine

    @functools.cached_property
    def _splits(self) -> data.Splits:
        return data.load(self.config.data, self.work.path / "tensorflow_datasets")

    def plan(self) -> list[tuple[str, float | None, int]]:
        """Arm, weight decay and seed of every run; without a decay where it is the one that the first seed chooses."""
        first, *others = self.seeds
        chosen: list[tuple[str, float | None, int]] = [(a, d, first) for a, ds in self.options.items() for d in ds]
        return chosen + [(arm, None, seed) for seed in others for arm in self.options]

    def record(self, arm: str, decay: float, seed: int) -> dict[str, Any] | None:
        """Of a run that is done."""
        file = self.work.path / f"{_folder(arm, decay, seed)}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def decay(self, arm: str) -> float | None:
        """The one of the highest validation accuracy at the first seed, of equals the smaller loss; None: not yet."""
        if len(self.options[arm]) == 1:
            return self.options[arm][0]
        records = [self.record(arm, decay, self.seeds[0]) for decay in self.options[arm]]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            return None
        return min(found, key=lambda r: (-r["validation"]["accuracy"], r["validation"]["loss"]))["decay"]

    def conduct(self, index: int, count: int) -> None:
        """Does part `index` of `count` of the plan, but for what is done; waits for what others have to do first."""
        left = self.plan()[index - 1 :: count]
        told = False
        while left:
            waiting = []
            for arm, given, seed in left:
                decay = self.decay(arm) if given is None else given
                if decay is None:
                    waiting.append((arm, given, seed))
                elif self.record(arm, decay, seed) is None:
                    print(f"contest   {_folder(arm, decay, seed)}", flush=True)
                    self._do(arm, decay, seed)
            if len(waiting) == len(left):
                if not told:
                    print(f"contest   waits for the decays of {', '.join(sorted({arm for arm, *_ in waiting}))}")
                told = True
                time.sleep(_POLL_SECONDS)
            left = waiting

    def _do(self, arm: str, decay: float, seed: int) -> None:
        keras.utils.clear_session()
        name = _folder(arm, decay, seed)
        resumed = (self.work.path / name).exists()
        config = dataclasses.replace(
            self.config,
            seed=seed,
            search=dataclasses.replace(self.config.search, weight_decay=decay),
            retrain=dataclasses.replace(self.config.retrain, weight_decay=decay),
        )
        work = workdir.Workdir(self.work.path / name)
        run = Run(config, self._splits, work, self.work.path, self.ell2)
        found = ARMS[arm].make(run)
        target = ARMS[arm].target
        record = {
            "arm": arm,
            "decay": decay,
            "seed": seed,
            "epochs": run.epochs,
            "parameters": found.cost.parameters,
            "multiply_adds": found.cost.multiply_adds,
            "parameters_share": found.cost.parameters / run.full.parameters,
            "multiply_adds_share": found.cost.multiply_adds / run.full.multiply_adds,
            "target": target,
            "off_target": getattr(found.cost, _RESOURCES[target]) / run.targets[target] - 1 if target else None,
            **_scores(found.model, run),
            "seconds": {phase: round(seconds, 1) for phase, seconds in run.seconds.items()},
            "resumed": resumed,  # its seconds are then only those since
            "commit": _commit(),
            **found.facts,
        }
        self.work.write_json(f"{name}.json", record)
        shutil.rmtree(work.path)

    def results(self, command: str) -> dict[str, Any] | None:
        """All that was found; None while a run is missing."""
        decays = {arm: self.decay(arm) for arm in self.options}
        if None in decays.values():
            return None
        records = [self.record(arm, decays[arm] if decay is None else decay, seed) for arm, decay, seed in self.plan()]
        if None in records:
            return None
        return {
            "command": command,
            "machine": _machine(),
            **self.settings,
            "seeds": list(self.seeds),
            "options": {arm: list(decays) for arm, decays in self.options.items()},
            "decays": decays,
            # Of an architecture the numbers of channels: which ones they are stands in the run's file.
            "records": [{k: v for k, v in record.items() if k != "architecture"} for record in records if record],
        }


def _folder(arm: str, decay: float, seed: int) -> str:
    return f"{arm}/decay-{decay:g}/seed{seed}"


def _scores(model: keras.Model, run: Run) -> dict[str, Any]:
    """Loss and accuracy on each split, without augmentation; test comes last."""
    model.compile(loss=training.classification_loss(), metrics=["accuracy"])
    found = {}
    for split in ("validation", "train", "test"):
        images = getattr(run.splits, split)
        batches = data.evaluation_batches(images, run.config.data, run.config.sample.batch_size)
        scores = model.evaluate(batches, verbose=0, return_dict=True)
        found[split] = {"loss": float(scores["loss"]), "accuracy": float(scores["accuracy"])}
    return found


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = pathlib.Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _machine() -> str:
    versions = workdir.versions()
    names = ", ".join(f"{name} {versions[name.lower()]}" for name in ("Python", "TensorFlow", "Keras"))
    return f"{os.cpu_count()} cores ({platform.machine()}), {names}"


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean difference over the seeds that both have, and its 95 % t interval; NaN without two of them."""
    pairs = np.array([[ours[seed], theirs[seed]] for seed in ours if seed in theirs]).reshape(-1, 2)
    found = pairs[:, 0] - pairs[:, 1]
    if not len(found):
        return np.nan, np.nan, np.nan
    mean = float(found.mean())
    if len(found) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return mean, mean - half, mean + half


def table(results: Mapping[str, Any]) -> str:
    """Markdown of `Contest.results`, with notes under it."""
    decays = results["decays"]
    chosen: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in decays}
    for record in results["records"]:
        if record["decay"] == decays[record["arm"]]:
            chosen[record["arm"]][record["seed"]] = record
    columns = (
        "network",
        "test accuracy, %",
        "parameters, %",
        "multiply-adds, %",
        "training accuracy, %",
        "difference, points (95 %)",
        "to",
        "weight decay",
        "epochs",
        "training, s",
        "ranking, s",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    notes = []
    for arm, runs in chosen.items():
        records, reference = list(runs.values()), ARMS[arm].reference
        uninterrupted = [r["seconds"] for r in records if not r["resumed"]]
        compared = reference != arm and reference in chosen
        cells = (
            arm,
            _spread([100 * r["test"]["accuracy"] for r in records]),
            _mean([100 * r["parameters_share"] for r in records], ".1f"),
            _mean([100 * r["multiply_adds_share"] for r in records], ".1f"),
            _mean([100 * r["train"]["accuracy"] for r in records], ".2f"),
            _interval(*difference(_accuracies(runs), _accuracies(chosen[reference]))) if compared else "-",
            reference if compared else "-",
            f"{decays[arm]:g}" if ARMS[arm].decayed else "-",
            str(records[0]["epochs"]),
            _mean([s["train"] for s in uninterrupted], ".0f"),
            _mean([s["rank"] for s in uninterrupted], ".0f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
        off = {seed: r["off_target"] for seed, r in runs.items() if abs(r["off_target"] or 0.0) > _NEAR}
        if off:
            told = ", ".join(f"{100 * value:+.1f} % at seed {seed}" for seed, value in off.items())
            notes.append(f"{arm} is more than {100 * _NEAR:.0f} % off the size asked for: {told}.")
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _accuracies(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: 100 * record["test"]["accuracy"] for seed, record in runs.items()}


def _mean(values: Sequence[float], form: str) -> str:
    return f"{np.mean(values):{form}}" if values else "-"


def _spread(values: Sequence[float]) -> str:
    return _mean(values, ".2f") + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.2f}" + ("" if np.isnan(low) else f" ({low:+.2f} to {high:+.2f})")


def export(results: Mapping[str, Any], target: pathlib.Path) -> None:
    """Writes what was found as TARGET.json, and as a page, TARGET.md."""
    work = workdir.Workdir(target.parent)
    work.write_json(f"{target.name}.json", results)
    decays = sorted({decay for arm, tried in results["options"].items() if ARMS[arm].decayed for decay in tried})
    lines = (
        f"# Ways to a small network: {target.name}",
        f"`{results['command']}`",
        f"Seeds: {_listed(results['seeds'])}. {results['machine']}. Shares are of the full network. Weight decays: "
        f"{_listed(decays)}, chosen by validation accuracy at seed {results['seeds'][0]}.",
        table(results),
    )
    text = "\n\n".join(lines)
    work.write(f"{target.name}.md", lambda file: file.write_text(text))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def part(text: str) -> tuple[int, int]:
    """i and n of 'i/n'. Raises UserError for anything but two numbers, 1 <= i <= n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--jobs: i/n with 1 <= i <= n expected, such as 1/2. Received: {text!r}")
    return int(match[1]), int(match[2])


def options(
    arms: Sequence[str], decays: Sequence[float], others: Mapping[str, float] | None = None
) -> dict[str, tuple[float, ...]]:
    """The weight decays of each arm: none, all of `decays`, or the one that another contest chose.

    Raises:
        UserError: for an arm that is not known, or that the other contest did not have.
    """
    if odd := [arm for arm in arms if arm not in ARMS]:
        raise UserError(f"--arms: some of {', '.join(ARMS)} expected. Received: {odd[0]!r}")
    found: dict[str, tuple[float, ...]] = {}
    for arm in arms:
        if not ARMS[arm].decayed:
            found[arm] = (0.0,)
        elif others is None:
            found[arm] = tuple(decays)
        elif arm in others:
            found[arm] = (others[arm],)
        else:
            raise UserError(f"--decays_from: has no '{arm}'")
    return found


def _command() -> str:
    """As it was given, without where things lie and how they were shared out."""
    left_out = ("--workdir", "--jobs", "--export", "--config.data.data_dir")
    given = [a for a in sys.argv[1:] if not a.startswith(tuple(f"{name}=" for name in left_out))]
    return shlex.join([".venv/bin/python", "benchmarks/contest.py", *given])


def _define_flags() -> None:
    # Not at import: the command line's, `tfnas.main`'s, may be defined in the same process.
    config_flags.DEFINE_config_file("config", None, "Settings: a Python file with get_config().")
    flags.DEFINE_string("workdir", None, "Of the contest.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "One run of each arm a seed.")
    flags.DEFINE_list("arms", list(ARMS), "What is compared.")
    flags.DEFINE_list("decays", ["0.0005", "0.002"], "Weight decays to choose among.")
    flags.DEFINE_string("decays_from", None, "Another contest's results.json, which says the decays.")
    flags.DEFINE_string("jobs", "1/1", "i/n: do part i of n.")
    flags.DEFINE_float("ell2", 250.0, "Of the published search.", lower_bound=0.0)
    flags.DEFINE_string("export", None, "Where to write the results too, without suffix.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(_: Sequence[str]) -> None:
    """Does this process's runs; prints the table if all are done."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    given = flags.FLAGS
    functions.look_in(os.path.dirname(config_flags.get_config_filename(given["config"])) or os.curdir)
    config = from_config_dict(given.config)
    others = json.loads(pathlib.Path(given.decays_from).read_text())["decays"] if given.decays_from else None
    decays = options(given.arms, [float(decay) for decay in given.decays], others)
    contest = Contest(config, given.workdir, decays, [int(seed) for seed in given.seeds], given.ell2)
    contest.conduct(*part(given.jobs))
    results = contest.results(_command())
    if results is None:
        print("contest   other runs are not done: the table is made when they are")
        return
    contest.work.write_json("results.json", results)
    text = table(results)
    contest.work.write("table.md", lambda file: file.write_text(text))
    print(f"\n{text}")
    if given.export:
        export(results, pathlib.Path(given.export))


if __name__ == "__main__":
    _define_flags()
    app.run(main)
