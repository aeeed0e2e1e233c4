"""Tune: many searches, each with other values, and which of them found the best network. Not a stage of a run.

KerasTuner proposes the values; a trial is the stages search and sample in a working directory of its own, named by the
digest of all that its search depends on. Nothing of KerasTuner's is read from disk: after an interruption it proposes
the same values again, and a trial that is finished answers at once with what its folder holds. KerasTuner 1.4.8 does
not write its files atomically, its grid search cannot be resumed from them, and it could not go on with more values.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import rich.table
import sklearn.exceptions
from keras_tuner.engine import base_tuner

from tfnas.common import digests, markup, schema, terminal
from tfnas.common.errors import SearchFailedError, UserError, unwrap_user_errors
from tfnas.common.schema import loss, number, record, text_of, whole
from tfnas.config import Config
from tfnas.data import sources
from tfnas.graph import costs
from tfnas.reporting import candidates_section
from tfnas.runs import stage_table
from tfnas.runs.workdir import Workdir
from tfnas.stages import sample, search
from tfnas.training import distribution, networks

FOLDER = "tune"
RESULTS = "results.json"
COMPLETE, TOO_LARGE, FAILED = "complete", "over budget", "failed"
_MOST_TICKS = 6  # of an axis that has one at every value
_FAILURE = "failure.json"  # in a trial's folder
_FAILURE_SHAPE = record(message=text_of())
_WITHIN = "within_budget.json"  # in a trial's folder: the score of its best candidate within the budget
_WITHIN_SHAPE = record(number=whole(), ranking=text_of(), score=candidates_section.SCORE)
_KIND = sample.POSTERIOR
_RANKING = record(
    kinds=record(
        **{
            _KIND: record(
                best=record(loss=loss(), accuracy=number(0, 1), num_examples=whole(1), parameters=whole()),
                fresh=schema.optional(candidates_section.SCORE),
                mean_accuracy=number(-1e-9, 1 + 1e-9),
                mean_loss=loss(),
                mean_parameters=number(0),
            )
        }
    )
)
_CANDIDATE = record(
    kind=text_of(),
    number=whole(),
    parameters=whole(),
    able=schema.flag(),
    loss=loss(),
    accuracy=number(0, 1),
    num_examples=whole(1),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One search: what it was given, and the best of its candidates.

    Attributes:
        folder: its working directory, from `WORKDIR/tune` on.
        values: of the settings that are tuned.
        epochs: of the search; fewer than `search.epochs` in Hyperband's first rounds.
        state: 'complete'; 'over budget': no candidate is within `tune.budget`, and the figures are those of the best
            that is not; or 'failed': the search led nowhere, and there are none.
        message: why, unless it is complete.
        found: parameters, loss, accuracy and num_examples of the best candidate; whether those examples are `fresh`,
            so not the race's; mean_loss, mean_accuracy and mean_parameters of the candidates.
    """

    folder: str
    values: Mapping[str, float]
    epochs: int
    state: str
    message: str = ""
    found: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def score(self, objective: str) -> float:
        """What is maximised, in [0, 1]: the accuracy, or exp(-loss), which is in the losses' order; 0 if not complete.

        Bounded, because KerasTuner's Gaussian process takes an infinite loss for 0, which would be the best of all.
        """
        if self.state != COMPLETE:
            return 0.0
        if objective == "accuracy":
            return self.found["accuracy"]
        return 0.0 if math.isnan(self.found["loss"]) else math.exp(-max(0.0, self.found["loss"]))


def run(config: Config, path: str | os.PathLike[str]) -> Trial:
    """Tries the values of `config.tune` in the folder `tune` of a working directory, and returns the best trial.

    It goes on from where it was; a finished trial is not run again, even if there are now more values, or another
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
        directory: for files that nobody reads.
    """

    def __init__(self, tuning: _Tuning, directory: str):
        self._tuning = tuning
        super().__init__(_oracle(tuning.config), directory=directory)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        """The score of a trial's values. Raises FatalError from anything that is no matter of these values."""
        proposed = trial.hyperparameters.values
        try:
            return self._tuning.run(proposed, proposed.get("tuner/epochs", self._tuning.config.search.epochs))
        except Exception as error:  # KerasTuner takes any other for a failed trial, and goes on
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
    """With these values, in these epochs: a short round of Hyperband's is the whole search in small."""
    search = config.search.resolved(config.retrain).shortened(epochs)
    return dataclasses.replace(config, search=dataclasses.replace(search, **values))


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
        """The score of a trial with these values. Raises UserError for what is no matter of theirs."""
        settings = self.config.tune
        # What is drawn from a range gets three digits, so that it can be told, and typed again.
        drawn = settings.method in ("bayesian", "hyperband")
        values = {name: float(f"{proposed[name]:.3g}") if drawn else proposed[name] for name in self.names}
        config = _with(self.config, values, epochs)
        folder = f"trials/{self.work.key('search', config)[:12]}"
        if folder not in self.trials:
            told = ", ".join(f"{name}={shown(value)}" for name, value in values.items())
            print(f"tune      trial {len(self.trials) + 1}: {told}; {epochs} epochs, {self.work.path / folder}")
            trial = self._trial(config, folder, values, epochs)
            if trial.message:
                print(f"tune      {trial.state}: {trial.message}")
            self.trials[folder] = trial
            self._write()
        return self.trials[folder].score(settings.objective)

    def end(self) -> Trial:
        """Shows all trials; returns the best. Raises UserError if there is none."""
        terminal.console.print(self._table())
        name = self.names[0]
        plotted = [trial for trial in self._longest(self.trials.values()) if trial.found]
        if plotted:
            picture = self.work.write(f"{name}.png", lambda path: self._plot(path, name, plotted))
            print(f"tune      {self.work.path / RESULTS}, {picture}")
        best = self._best()
        if best is None:
            reasons = {trial.state: trial.message for trial in self.trials.values()}
            state = TOO_LARGE if TOO_LARGE in reasons else FAILED  # what is nearer to an answer
            raise UserError(f"tune: none of {len(self.trials)} trials is complete ({state}: {reasons[state]})")
        return best

    def _trial(self, config: Config, folder: str, values: Mapping[str, float], epochs: int) -> Trial:
        work = Workdir(self.work.path / folder)
        failure = work.path / _FAILURE
        if failure.exists() and config.search.guard == "stop":  # with another guard the search may go on
            told = schema.read(failure.read_bytes(), _FAILURE_SHAPE, f"{failure}: altered: delete it")
            return Trial(folder, values, epochs, FAILED, told["message"])
        if work.is_current("search", config) and work.is_current("sample", config):
            print("tune      up to date")
        try:
            for name, stage in (("search", search), ("sample", sample)):
                if not work.is_current(name, config):
                    keras.backend.clear_session()  # of earlier trials: their memory, and their layers' names
                    stage.run(config, work.path)
        except SearchFailedError as error:
            if not work.is_current("search", config):  # else it depends on sample's settings too, and takes little time
                work.write_json(_FAILURE, {"message": str(error)})
            return Trial(folder, values, epochs, FAILED, str(error))
        work.remove(failure)
        ranked = work.read_json(stage_table.RANKING, "tune", _RANKING)["kinds"][_KIND]
        candidates = work.read_lines(stage_table.CANDIDATES, "tune", _CANDIDATE)
        best, message = self._best_candidate(ranked, [c for c in candidates if c["kind"] == _KIND])
        score = best if ranked["fresh"] is None else ranked["fresh"]
        if best is not ranked["best"]:
            score = self._measured(config, work, best["number"])
        found = {
            "parameters": best["parameters"],
            **{name: score[name] for name in ("loss", "accuracy", "num_examples")},
            "fresh": ranked["fresh"] is not None,
            **{name: ranked[name] for name in ("mean_loss", "mean_accuracy", "mean_parameters")},
        }
        return Trial(folder, values, epochs, TOO_LARGE if message else COMPLETE, message, found)

    def _best_candidate(
        self, ranked: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
    ) -> tuple[Mapping[str, Any], str]:
        """The best that may win and is within the budget, and ''; or the best of all, and why it is not within it."""
        most = self.config.tune.budget * self.full_parameters
        winner = ranked["best"]
        if winner["parameters"] <= most:
            return winner, ""
        able = [c for c in candidates if c["able"]]
        within = [c for c in able if c["parameters"] <= most]
        if not within:
            smallest = min(c["parameters"] for c in able) / self.full_parameters
            message = (
                f"no candidate has at most {100 * self.config.tune.budget:g} % of the full network's parameters, the "
                f"smallest has {100 * smallest:.1f} %"
            )
            return winner, message

        def rank(candidate: Mapping[str, Any]) -> tuple[float, float]:
            by_loss = self.config.sample.rank_by == "loss"
            value = candidate["loss"] if by_loss else -candidate["accuracy"]
            # First those that the race kept longest: whoever leaves it is worse than some that stay.
            return -candidate["num_examples"], math.inf if math.isnan(value) else value

        return min(within, key=rank), ""

    @staticmethod
    def _measured(config: Config, work: Workdir, number: int) -> Mapping[str, Any]:
        """The score of a candidate that did not win, on the examples that winners are scored on.

        What it has from its race is neither on the fresh examples, nor on as many.
        """
        key = {"number": number, "ranking": digests.of_file(work.path / stage_table.RANKING)}
        file = work.path / _WITHIN
        if file.exists():
            kept = schema.read(file.read_bytes(), _WITHIN_SHAPE, f"{file}: altered: delete it")
            if {name: kept[name] for name in key} == key:
                return kept["score"]
        keras.backend.clear_session()
        score = sample.measure(config, work.path, number)
        work.write_json(_WITHIN, {**key, "score": score})
        return score

    def _best(self) -> Trial | None:
        def rank(trial: Trial) -> tuple[float, int]:
            return -trial.score(self.config.tune.objective), trial.found["parameters"]

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
                "trials": [dataclasses.asdict(trial) for trial in self.trials.values()],
            },
        )

    def _table(self) -> rich.table.Table:
        best, epochs = self._best(), self.config.tune.method == "hyperband"
        table = rich.table.Table(box=None, padding=(0, 1))
        headings = [*self.names, *["epochs"] * epochs, "kept", "parameters", "error", "loss", "on", "mean error", ""]
        for heading in headings:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for trial in sorted(self.trials.values(), key=lambda trial: (*trial.values.values(), trial.epochs)):
            cells = [shown(value) for value in trial.values.values()] + [str(trial.epochs)] * epochs
            if found := trial.found:
                cells += [
                    f"{self._kept(trial):.1f} %",
                    f"{found['parameters']:,}",
                    f"{_error(found['accuracy']):.2f} %",
                    f"{found['loss']:.4f}",
                    f"{found['num_examples']:,} {'fresh' if found['fresh'] else 'raced'}",
                    f"{_error(found['mean_accuracy']):.2f} %",
                ]
            else:
                cells += ["-"] * 6
            state = "best" if trial is best else "" if trial.state == COMPLETE else trial.state
            table.add_row(*cells, state, style="bold" if trial is best else None)
        return table

    def _kept(self, trial: Trial) -> float:
        return 100 * trial.found["parameters"] / self.full_parameters

    def _plot(self, path: pathlib.Path, name: str, trials: Sequence[Trial]) -> None:
        # Here and not above, because a mistaken setting needs no plots.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.5), layout="constrained")
        error, kept = figure.subplots(1, 2)
        trials = sorted(trials, key=lambda trial: trial.values[name])
        x = [trial.values[name] for trial in trials]
        line = "-" if len(self.names) == 1 else ""  # else other settings differ too between neighbours
        parts = [
            (error, "best candidate", markup.BLUE, [_error(t.found["accuracy"]) for t in trials]),
            (error, "mean of candidates", markup.ORANGE, [_error(t.found["mean_accuracy"]) for t in trials]),
            (kept, "best candidate", markup.BLUE, [self._kept(t) for t in trials]),
        ]
        for axes, label, colour, values in parts:
            axes.plot(x, values, f"o{line}", color=colour, label=label)
        for axes, label in ((error, "validation error, %"), (kept, "parameters kept, %")):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set(xscale="log", xlabel=name, ylabel=label, ylim=(0, None))
            if len(set(x)) <= _MOST_TICKS:
                axes.set_xticks(sorted(set(x)), labels=[shown(value) for value in sorted(set(x))])
                axes.minorticks_off()
        error.legend(frameon=False)
        figure.savefig(path, dpi=120, metadata={"Software": None})


def _full_parameters(config: Config, work: Workdir) -> int:
    """Parameters of the full network; the data is looked into on the way."""
    with unwrap_user_errors(), distribution.strategy(config.distribution).scope():
        networks.set_seed(config.seed)
        splits = networks.load_data(config, work)
        supernet = networks.gated(config, splits, networks.network(config, splits), check_share=True)
        return costs.count(supernet.graph, "parameters")


def _error(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def shown(value: float) -> str:
    """As short as it can be read back."""
    return short if float(short := f"{value:g}") == value else repr(value)
