"""Tune: many searches, each with other values, and which of them found the best network. Not a stage of a run.

KerasTuner proposes the values; a trial is the stages search and sample in a working directory of its own, named by the
digest of all that its search depends on. Nothing of KerasTuner's is read from disk: after an interruption it proposes
the same values again, and a trial that is finished answers at once with what its folder holds. KerasTuner 1.4.8 does
not write its files atomically, its grid search cannot be resumed from them, and it could not continue with more values.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras_tuner
import sklearn.exceptions
from keras_tuner.engine import base_tuner

from tfnas.common import terminal
from tfnas.common.errors import UserError, unwrap_user_errors
from tfnas.config import Config
from tfnas.data import sources
from tfnas.graph import costs
from tfnas.runs.workdir import Workdir
from tfnas.training import building, distribution, networks
from tfnas.tuning import overview, trials
from tfnas.tuning.overview import shown
from tfnas.tuning.trials import COMPLETE, FAILED, RUNNING, TOO_LARGE, Trial

FOLDER = "tune"
RESULTS = "results.json"


def run(config: Config, path: str | os.PathLike[str]) -> Trial:
    """Tries the values of `config.tune` in the folder `tune` of a working directory, and returns the best trial.

    It resumes an interrupted trial; a finished trial is not run again, even if there are now more values, or another
    method proposes its own. The best is the one of the highest score, of equals the smallest network, among the trials
    of the most epochs. The test split is not read, and the working directory does not become this config's.

    Writes `tune/results.json` and, for the first setting that is tuned, the picture `tune/NAME.png`.

    Raises:
        UserError: for bad settings, data or files, if several processes are to train, or if no trial found a network
            within the budget.
        PreemptedError: after SIGTERM, once the search that was running has written a checkpoint.
    """
    tuned = config.tune.values()
    if not tuned:
        raise UserError("tune: no values to try: set tune.ell2 or another, for example --config.tune.ell2=20,80,320")
    if distribution.cluster().count > 1:
        raise UserError(f"tune: one process expected. Received: a TF_CONFIG of {distribution.cluster().count}")
    config = dataclasses.replace(config, search=config.check().search)
    for name, values in tuned.items():
        for value in values:
            _with(config, {name: value}, config.search.epochs).check()  # before hours are spent on others
    work = Workdir(pathlib.Path(path) / FOLDER)
    with work.hold():
        return _tuned(config, work)


def _tuned(config: Config, work: Workdir) -> Trial:
    tuning = _Tuning(config, work)
    with tempfile.TemporaryDirectory() as nowhere, warnings.catch_warnings():
        # The Gaussian process says so whenever a length scale ends at its bound, as of a setting without influence.
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        try:
            _Tuner(tuning, directory=nowhere).search(verbose=0)
        except keras_tuner.errors.FatalError as error:
            raise (error.__cause__ or error) from None
    return tuning.end()


class _Tuner(base_tuner.BaseTuner):
    """KerasTuner's loop: asks its oracle for values, runs a trial with them, tells the oracle the score.

    Args:
        tuning: runs the trials.
        directory: for unused files.
    """

    def __init__(self, tuning: _Tuning, directory: str):
        self._tuning = tuning
        super().__init__(_oracle(tuning.config), directory=directory)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        """The score of a trial's values. Raises FatalError from errors that do not depend on them."""
        proposed = trial.hyperparameters.values
        try:
            return self._tuning.run(proposed, proposed.get("tuner/epochs", self._tuning.config.search.epochs))
        except Exception as error:  # KerasTuner treats any other as a failed trial, and continues
            raise keras_tuner.errors.FatalError from error


def _oracle(config: Config) -> keras_tuner.Oracle:
    settings = config.tune
    space = keras_tuner.HyperParameters()
    for name, values in settings.values().items():
        if settings.method in ("grid", "random"):
            space.Choice(name, list(values))
        else:
            space.Float(name, min(values), max(values), sampling="log")
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective("score", "max"),
        "hyperparameters": space,
        "seed": config.seed + 1,  # 0 is none for KerasTuner
    }
    oracles = keras_tuner.oracles
    if settings.method == "hyperband":
        oracle = oracles.HyperbandOracle(max_epochs=config.search.epochs, **common)
        oracle.max_trials = settings.trials or None
        return oracle
    kinds = {
        "grid": oracles.GridSearchOracle,
        "random": oracles.RandomSearchOracle,
        "bayesian": oracles.BayesianOptimizationOracle,
    }
    return kinds[settings.method](max_trials=settings.trials or None, **common)


def _with(config: Config, values: Mapping[str, Any], epochs: int) -> Config:
    """Returns a config, whose search is resolved, with these values and epochs.

    A short round of Hyperband is a complete, shorter search.
    """
    search = dataclasses.replace(config.search.shortened(epochs), **values)
    return dataclasses.replace(config, search=search)


class _Tuning:
    """Runs trials and keeps what they found.

    Args:
        config: with the section `tune`.
        work: the folder `tune`.
    """

    def __init__(self, config: Config, work: Workdir):
        self.work = work
        data = config.data
        if data.name == sources.Digits.name and not (data.folder or data.source or data.data_dir):
            # Prepared once, where each trial would have a copy of its own.
            data = dataclasses.replace(data, data_dir=str(work.path / "tensorflow_datasets"))
        self.config = dataclasses.replace(config, data=data)
        self.names = list(config.tune.values())
        self.full_parameters = _full_parameters(self.config, work)
        self.trials: dict[str, Trial] = {}  # by folder, in the order of their beginning

    def run(self, proposed: Mapping[str, Any], epochs: int) -> float:
        """The score of a trial with these values. Raises UserError for errors that do not depend on them."""
        settings = self.config.tune
        # What is drawn from a range gets three digits, so that it can be read and typed.
        drawn = settings.method in ("bayesian", "hyperband")
        values = {name: float(f"{proposed[name]:.3g}") if drawn else proposed[name] for name in self.names}
        config = _with(self.config, values, epochs)
        folder = f"trials/{self.work.key('search', config)[:12]}"
        if folder not in self.trials:
            described = ", ".join(f"{name}={shown(value)}" for name, value in values.items())
            print(f"tune      trial {len(self.trials) + 1}: {described}; {epochs} epochs, {self.work.path / folder}")
            trial = Trial(folder, values, epochs, RUNNING)
            trial = trials.run(config, Workdir(self.work.path / folder), trial, self.full_parameters)
            if trial.message:
                print(f"tune      {trial.state}: {trial.message}")
            self.trials[folder] = trial
            self._write()
        return self.trials[folder].score(settings.objective, self.config.facts.example)

    def end(self) -> Trial:
        """Shows all trials; returns the best. Raises UserError if there is none."""
        best, every, full = self._best(), list(self.trials.values()), self.full_parameters
        terminal.console.print(overview.table(self.names, every, best, full, self.config.facts.example))
        name = self.names[0]
        plotted = [trial for trial in self._longest(self.trials.values()) if trial.found]
        if plotted:
            metric = self.config.facts.example
            picture = self.work.write(
                f"{name}.png", lambda path: overview.plot(path, self.names, plotted, full, metric)
            )
            print(f"tune      {self.work.path / RESULTS}, {picture}")
        if best is None:
            reasons = {trial.state: trial.message for trial in self.trials.values()}
            state = TOO_LARGE if TOO_LARGE in reasons else FAILED  # what is nearer to an answer
            raise UserError(f"tune: none of {len(self.trials)} trials is complete ({state}: {reasons[state]})")
        return best

    def _best(self) -> Trial | None:
        def rank(trial: Trial) -> tuple[float, int]:
            score = trial.score(self.config.tune.objective, self.config.facts.example)
            return -score, trial.found.parameters if trial.found else 0

        complete = [trial for trial in self.trials.values() if trial.state == COMPLETE]
        return min(self._longest(complete), key=rank) if complete else None

    @staticmethod
    def _longest(trials: Iterable[Trial]) -> list[Trial]:
        """The trials of the most epochs: the others are Hyperband's first rounds."""
        trials = list(trials)
        most = max((trial.epochs for trial in trials), default=0)
        return [trial for trial in trials if trial.epochs == most]

    def _write(self) -> None:
        settings, best = self.config.tune, self._best()
        self.work.write_json(
            RESULTS,
            {
                **{name: getattr(settings, name) for name in ("method", "objective", "budget")},
                "full_parameters": self.full_parameters,
                "best": best and best.folder,
                "trials": [*self.trials.values()],
            },
        )


def _full_parameters(config: Config, work: Workdir) -> int:
    """Parameters of the full network; the data is looked into on the way."""
    with unwrap_user_errors(), distribution.strategy(config.distribution).scope():
        networks.set_seed(config.seed)
        splits = networks.load_data(config, work)
        supernet = networks.gated(config, splits, building.network(config, splits), work)
        return costs.count(supernet.graph, "parameters")
