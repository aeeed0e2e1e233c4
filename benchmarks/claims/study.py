"""Shared by the claims: one search for each setting and seed, and pools of candidates evaluated once.

All of it is kept in the study's folder, and nothing that is there is done again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from benchmarks import records
from tfnas.common.errors import UserError
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.gating import saving
from tfnas.gating.supernet import Supernet
from tfnas.graph.costs import cost
from tfnas.graph.statistics import recompute_statistics
from tfnas.ranking.engine import Engine
from tfnas.ranking.recalibration import Recalibration
from tfnas.runs import stage_table, workdir
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.stages import search
from tfnas.training import networks, trained_baselines
from tfnas.training.schedules import Cosine

_RECALIBRATE = 250  # training images
_FIXED = "fixed/checkpoints"


@dataclasses.dataclass(frozen=True)
class Searched:
    """A trained supernet and where it lies."""

    config: Config
    work: workdir.Workdir
    supernet: Supernet

    @property
    def posterior(self) -> Posterior:
        """Returns the posterior of its gates."""
        return self.supernet.posterior()


@dataclasses.dataclass(frozen=True)
class Pool:
    """Candidates that reach the output, and how they did on every example of validation and test.

    Attributes:
        candidates: C of them.
        parameters: of each, shape (C,).
        losses: on validation, nats, shape (C, examples).
        correct: on validation, bool, shape (C, examples).
        test_losses: shape (C, examples of test).
        test_correct: bool, shape (C, examples of test).
    """

    candidates: Sequence[Architecture]
    parameters: np.ndarray
    losses: np.ndarray
    correct: np.ndarray
    test_losses: np.ndarray
    test_correct: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """Mean validation loss of each candidate."""
        return self.losses.mean(1, dtype=np.float64)

    @property
    def accuracy(self) -> np.ndarray:
        """Validation accuracy of each candidate."""
        return self.correct.mean(1)

    @property
    def test(self) -> np.ndarray:
        """Test accuracy of each candidate."""
        return self.test_correct.mean(1)

    @property
    def winner(self) -> int:
        """The number of the candidate with the smallest validation loss."""
        return int(np.argmin(self.loss))

    def summary(self) -> dict[str, float]:
        """The winner's test accuracy and size, and the candidates' means."""
        return {
            "test": float(self.test[self.winner]),
            "parameters": int(self.parameters[self.winner]),
            "mean_test": float(self.test.mean()),
            "deviation": float(self.accuracy.std()),
            "mean_validation": float(self.accuracy.mean()),
            "candidates": len(self.candidates),
        }


class Study:
    """A folder of searches, pools and records.

    Args:
        config: of all; the seed is not used.
        path: the folder. It is this config's from then on.

    Raises:
        UserError: if the folder is another study's, or this search is not the published one.
    """

    def __init__(self, config: Config, path: str | os.PathLike[str]) -> None:
        if not config.search.published:
            raise UserError(
                f"claims: the published search expected, with search.ell2. Received: {config.search.bounds}"
            )
        self.config, self.work = config, workdir.Workdir(path)
        records.claim(self.work, "study.json", config, "study")

    @functools.cached_property
    def splits(self) -> pipeline.Splits:
        """The images."""
        return pipeline.load(self.config.data, self.work.path / "tensorflow_datasets")

    @property
    def epochs(self) -> int:
        """Total epochs of a network: search and retraining."""
        return self.config.search.epochs + self.config.retrain.epochs

    @property
    def few(self) -> int:
        """Candidates of a pool that is one of many."""
        return self.config.sample.num_random

    def searched(self, seed: int, **settings: Any) -> Searched:
        """The supernet of this seed, of the study's search with some settings changed; trained if it is not there."""
        changed = dataclasses.replace(self.config.search, **settings)
        config = dataclasses.replace(self.config, seed=seed, search=changed).check()
        material = json.dumps([seed, stage_table.settings(config, ("search",))], sort_keys=True)
        folder = self.work.path / "searches" / hashlib.sha256(material.encode()).hexdigest()[:12]
        work = workdir.Workdir(folder)
        search.run(config, folder)
        return Searched(config, work, saving.load(folder / stage_table.SUPERNET))

    def fixed(self, searched: Searched, drop: float) -> Supernet:
        """A supernet trained as long under gates of one drop probability, never learned (Table 3's 'random')."""
        config, work = searched.config, searched.work
        model = networks.warmed_up(config, self.splits, work)
        supernet = trained_baselines.freeze(networks.gated(config, self.splits, model, work, drop))
        key = work.key("search", config)
        networks.fit_gated(config, self.splits, work, supernet, _FIXED, f"{key} {drop}", "fixed drop")
        return supernet

    def pool(
        self, searched: Searched, name: str, candidates: Sequence[Architecture], own: bool, supernet: Any = None
    ) -> Pool:
        """Evaluates candidates in full, but for those that have no path to the output.

        Args:
            searched: where the evaluations are kept, and whose supernet it is.
            name: of the pool, in that folder.
            candidates: to be evaluated.
            own: whether each gets normalization statistics of its own.
            supernet: with other weights; None: the search's.
        """
        supernet = supernet or searched.supernet
        connected = [c for c in candidates if supernet.graph.flow(c).reaches_outputs()]
        if not connected:
            raise UserError(f"claims: pool '{name}': no candidate has a path to the output")
        digest = hashlib.sha256("".join(c.digest() for c in connected).encode()).hexdigest()
        file = searched.work.path / "pools" / f"{name}-{'own' if own else 'supernet'}-{digest[:12]}.npz"
        if not file.exists():
            arrays = self._evaluated(supernet, connected, own)
            searched.work.write(f"pools/{file.name}", lambda path: np.savez(path, **arrays))
        with np.load(file) as kept:
            return Pool(connected, **kept)

    def engines(self, supernet: Supernet, own: bool) -> dict[str, Engine]:
        """Creates the engines for validation and test, in the order of the examples."""
        supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        statistics = None
        if own:
            images = networks.calibration_images(self.config, self.splits, _RECALIBRATE)
            statistics = Recalibration(supernet, images)
        size = self.config.sample.batch_size
        return {
            split: Engine(
                supernet,
                pipeline.evaluation_batches(getattr(self.splits, split), self.config.data, size),
                size,
                recalibration=statistics,
            )
            for split in ("validation", "test")
        }

    def _evaluated(self, supernet: Supernet, candidates: Sequence[Architecture], own: bool) -> dict[str, np.ndarray]:
        parameters = [cost(supernet.graph, candidate).parameters for candidate in candidates]
        arrays: dict[str, np.ndarray] = {"parameters": np.array(parameters)}
        numbers: dict[str, int] = {}  # of the first of equal candidates, which are evaluated once
        for candidate in candidates:
            numbers.setdefault(candidate.digest(), len(numbers))
        distinct = {candidate.digest(): candidate for candidate in candidates}
        place = [numbers[candidate.digest()] for candidate in candidates]
        for split, engine in self.engines(supernet, own).items():
            losses = np.empty((len(distinct), engine.num_examples), np.float32)
            correct = np.empty(losses.shape, bool)
            for e in engine.evaluate(list(distinct.values())):
                part = slice(e.start, e.start + len(e.figures["loss"]))
                losses[e.number, part], correct[e.number, part] = e.figures["loss"], e.figures["accuracy"]
            prefix = "test_" if split == "test" else ""
            arrays |= {f"{prefix}losses": losses[place], f"{prefix}correct": correct[place]}
        return arrays

    def sampled(self, searched: Searched, own: bool, count: int = 0, posterior: Posterior | None = None) -> Pool:
        """The pool of the posterior's first `count` candidates, few if no number is given; or of another posterior."""
        drawn = (posterior or searched.posterior).sample(count or self.few, searched.config.seed)
        return self.pool(searched, "tilted" if posterior else "posterior", drawn, own)

    def trained(
        self,
        searched: Searched,
        model: keras.Model,
        epochs: int,
        rate: float,
        title: str,
        recalibrate: bool = False,
    ) -> dict[str, dict[str, float]]:
        """Trains a network without gates by one cosine from `rate`, and scores it; test comes last.

        Args:
            searched: whose seed and folder are used.
            model: trained in place.
            epochs: of the training.
            rate: the learning rate at the start.
            title: names the checkpoints, so unique in that folder.
            recalibrate: evaluate it with recomputed normalization statistics.
        """
        networks.fit_plain(
            searched.config, self.splits, searched.work, model, epochs, Cosine(rate, epochs).schedule, title
        )
        if recalibrate:
            recompute_statistics(model, networks.calibration_images(self.config, self.splits, _RECALIBRATE))
        return records.scores(model, self.splits, self.config)
