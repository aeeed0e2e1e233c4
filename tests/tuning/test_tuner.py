"""Tuning: which values are tried, what is made of their results, and what is not done twice."""

import dataclasses
import itertools
import json
import math
import shlex

import pytest
from conftest import PUBLISHED, TINY_PUBLISHED, tfnas_command, tiny_config
from reports import KINDS, candidate, race, ranking_of

from tfnas.common.errors import PreemptedError, SearchFailedError, UserError
from tfnas.config import Config, Search, Tune
from tfnas.runs import stage_table, workdir
from tfnas.runs.sampled import Score
from tfnas.tuning import trials, tuner

FULL = 10_000
ELL2 = (5.0, 50.0, 500.0)
TEMPERATURE = (0.1, 0.2, 0.4)
METHODS = {
    "grid": Tune(ell2=ELL2, temperature=TEMPERATURE),
    "random": Tune(method="random", trials=5, ell2=ELL2, temperature=TEMPERATURE),
    "bayesian": Tune(method="bayesian", trials=4, ell2=ELL2),
    "hyperband": Tune(method="hyperband", ell2=ELL2),
}


def loss_of(search):
    """Least, 0.1, at ell2 = 50 and temperature 0.2."""
    return 0.1 + math.log10(search.ell2 / 50) ** 2 + math.log10(search.temperature / 0.2) ** 2


def accuracy_of(search):
    """Largest where the loss is not: the smaller ell2, the better."""
    return 1 - search.ell2 / 1000


def kept_of(search):
    return 1 / (1 + search.ell2 / 50)


class Stages:
    """In place of the stages search and sample: results in closed form, and the calls that were made."""

    def __init__(self):
        self.calls = []
        self.warmups = set()  # (epochs, epochs of the warm-up)
        self.raises = {}  # by ell2: what the search raises, once it has begun
        self.spread = (1.0,)  # sizes of the candidates; the first wins, in the race a little better than in truth
        self.fresh = True
        self.measured = []  # numbers of the candidates that were measured after their race

    def search(self, config, path):
        config, work = config.check(), workdir.Workdir(path)  # as the stage itself does

        def body():
            self.calls.append((config.search.ell2, config.search.temperature, config.search.epochs))
            self.warmups.add((config.search.epochs, config.search.warmup_epochs))
            if error := self.raises.get(config.search.ell2):
                raise error
            for name in stage_table.STAGES["search"].outputs:
                work.write(name, lambda file: file.write_text(repr(config.search)))

        work.run_stage("search", config, body)

    def sample(self, config, path):
        work = workdir.Workdir(path)

        def body():
            score = {
                "loss": loss_of(config.search),
                "metrics": {"accuracy": accuracy_of(config.search)},
                "num_examples": 80,
            }
            parameters = [round(FULL * kept_of(config.search) * size) for size in self.spread]
            candidates = [
                candidate("posterior", i, score["loss"] * (0.9 + 0.1 * i), score["metrics"]["accuracy"], size, 320 - i)
                for i, size in enumerate(parameters)
            ]
            # Cut off, or of another kind: neither is ever the best, however small.
            others = [{**candidates[0], "parameters": 1, "connected": False}]
            others += [{**candidates[0], "parameters": 1, "kind": kind} for kind in KINDS[1:]]
            work.write_lines(stage_table.CANDIDATES, candidates + others)
            won = {**race(candidates[0], 0.5), "fresh": score if self.fresh else None}
            means = {"mean_metric": 0.5, "mean_loss": 1.0, "mean_parameters": 7.0}
            ranking = ranking_of([candidates[0], *others[1:]], race=won, **means)
            work.write_json(stage_table.RANKING, ranking)
            work.write(stage_table.ARCHITECTURE, lambda file: file.write_text("{}"))

        work.run_stage("sample", config, body)

    def measure(self, config, path, number):
        self.measured.append(number)
        return Score(loss=loss_of(config.search) + number / 100, metrics={"accuracy": 0.5}, num_examples=80)


@pytest.fixture
def stages(monkeypatch):
    made = Stages()
    monkeypatch.setattr(trials.search, "run", made.search)
    monkeypatch.setattr(trials.sample, "run", made.sample)
    monkeypatch.setattr(trials.sample, "measure", made.measure)
    monkeypatch.setattr(tuner, "_full_parameters", lambda config, work: FULL)
    monkeypatch.setattr(trials.keras.backend, "clear_session", lambda: None)  # it takes a second
    return made


def made(tune, **search):
    return Config(search=Search(**{"ell2": 50.0, "epochs": 9, **search}), tune=tune).check()


def results(path):
    return json.loads((path / "tune" / "results.json").read_text())


def test_grid_tries_every_combination_and_finds_the_best(stages, tmp_path, capsys):
    best = tuner.run(made(METHODS["grid"]), tmp_path)
    assert sorted(stages.calls) == sorted((e, t, 9) for e, t in itertools.product(ELL2, TEMPERATURE))
    assert best.values == {"ell2": 50.0, "temperature": 0.2}
    assert best.found.loss == pytest.approx(0.1) and best.found.parameters == FULL / 2
    found = results(tmp_path)
    assert found["best"] == best.folder and found["full_parameters"] == FULL and len(found["trials"]) == 9
    for trial in found["trials"]:
        search = Search(**trial["values"])
        assert trial["state"] == "complete" and trial["epochs"] == 9 and trial["found"]["fresh"]
        assert trial["found"]["loss"] == pytest.approx(loss_of(search))
        assert trial["found"]["parameters"] == round(FULL * kept_of(search))
        assert (tmp_path / "tune" / trial["folder"] / stage_table.RANKING).exists()
    assert (tmp_path / "tune" / "ell2.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    (row,) = [line.split() for line in printed.splitlines() if line.rstrip().endswith("best")]
    # ell2, temperature, kept, parameters, error, loss, examples, mean error
    assert row == "50 0.2 50.0 % 5,000 5.00 % 0.1000 80 fresh 50.00 % best".split()
    # Nothing is this config's but the folder tune: a run may follow.
    assert [file.name for file in tmp_path.iterdir()] == ["tune"]


def test_the_objective_decides(stages, tmp_path):
    settings = Tune(objective="accuracy", ell2=ELL2)
    assert tuner.run(made(settings), tmp_path).values == {"ell2": 5.0}
    assert tuner.run(made(dataclasses.replace(settings, objective="loss")), tmp_path).values == {"ell2": 50.0}
    assert len(stages.calls) == 3  # the same searches


def test_random_tries_some_combinations_once_each(stages, tmp_path):
    tuner.run(made(METHODS["random"]), tmp_path)
    assert len(stages.calls) == len(set(stages.calls)) == 5
    assert {call[:2] for call in stages.calls} <= set(itertools.product(ELL2, TEMPERATURE))
    tuner.run(made(dataclasses.replace(METHODS["random"], trials=50)), tmp_path)
    assert len(stages.calls) == len(set(stages.calls)) <= 9


def test_bayesian_searches_the_range(stages, tmp_path):
    best = tuner.run(made(Tune(method="bayesian", trials=6, ell2=ELL2)), tmp_path)
    values = [ell2 for ell2, _, _ in stages.calls]
    assert len(values) == 6 and all(5 <= value <= 500 and float(f"{value:.3g}") == value for value in values)
    assert not set(values) <= set(ELL2)
    losses = [loss_of(Search(ell2=value)) for value in values]
    assert best.found.loss == min(losses) < 0.15
    drawn, guided = losses[:3], losses[3:]  # three times as many at random as there are settings
    assert sum(guided) / 3 < sum(drawn) / 3


def test_hyperband_gives_the_best_more_epochs(stages, tmp_path):
    best = tuner.run(made(METHODS["hyperband"]), tmp_path)
    assert {epochs for _, _, epochs in stages.calls} == {1, 3, 9}
    tried = {n: {ell2 for ell2, _, epochs in stages.calls if epochs == n} for n in (1, 3, 9)}
    promoted = tried[1] & tried[3]
    assert promoted and tried[1] - promoted
    assert max(loss_of(Search(ell2=e)) for e in promoted) < min(loss_of(Search(ell2=e)) for e in tried[1] - promoted)
    assert best.epochs == 9 and best.found.loss == min(loss_of(Search(ell2=e)) for e in tried[9])
    assert len(stages.calls) == len(set(stages.calls)) == len(results(tmp_path)["trials"])


def test_a_short_round_of_hyperband_has_a_short_warm_up(stages, tmp_path):
    tuner.run(made(METHODS["hyperband"], warmup_epochs=4), tmp_path)
    assert stages.warmups == {(9, 4), (3, 1), (1, 0)}


@pytest.mark.parametrize(
    "method, error", [*((m, KeyboardInterrupt()) for m in METHODS), ("grid", PreemptedError("told to end"))]
)
def test_an_interrupted_one_goes_on_as_if_it_had_not_been(stages, tmp_path, method, error):
    config = made(METHODS[method], epochs=3)
    tuner.run(config, tmp_path / "whole")
    whole, stages.calls = stages.calls, []
    third = whole[2][0]
    stages.raises = {third: error}
    with pytest.raises(type(error)):
        tuner.run(config, tmp_path / "cut")
    begun = stages.calls
    assert begun[-1][0] == third and begun == whole[: len(begun)]
    stages.raises, stages.calls = {}, []
    tuner.run(config, tmp_path / "cut")
    assert stages.calls == whole[len(begun) - 1 :]  # the interrupted one first, and no finished one
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    stages.calls = []
    tuner.run(config, tmp_path / "cut")
    assert stages.calls == []


def test_more_values_are_added(stages, tmp_path):
    tuner.run(made(Tune(ell2=(5.0, 500.0))), tmp_path)
    stages.calls = []
    assert tuner.run(made(Tune(ell2=ELL2)), tmp_path).values == {"ell2": 50.0}
    assert [ell2 for ell2, _, _ in stages.calls] == [50.0]
    # Another search of the same values is another trial.
    tuner.run(made(Tune(ell2=ELL2), epochs=10), tmp_path)
    assert stages.calls[1:] == [(ell2, 0.2, 10) for ell2 in ELL2]


@pytest.mark.parametrize("method", ["grid", "hyperband"])
def test_a_search_that_leads_nowhere_is_one_failed_trial(stages, tmp_path, capsys, method):
    config = made(METHODS[method], epochs=3)
    tuner.run(config, tmp_path / "whole")
    worst = max(ell2 for ell2, _, _ in stages.calls)
    stages.raises, stages.calls = {worst: SearchFailedError("everything is dropped")}, []
    best = tuner.run(config, tmp_path / "run")
    assert best.state == "complete" and best.values["ell2"] < worst
    failed = [trial for trial in results(tmp_path / "run")["trials"] if trial["state"] == "failed"]
    assert failed and all(trial["values"]["ell2"] == worst for trial in failed)
    assert all(trial["message"] == "everything is dropped" and trial["found"] is None for trial in failed)
    assert "tune      failed: everything is dropped" in capsys.readouterr().out
    # It is known, and not run again, unless it now may go on.
    stages.raises, stages.calls = {}, []
    tuner.run(config, tmp_path / "run")
    assert stages.calls == []
    tuner.run(dataclasses.replace(config, search=dataclasses.replace(config.search, guard="warn")), tmp_path / "run")
    assert {ell2 for ell2, _, _ in stages.calls} == {worst}
    tuner.run(config, tmp_path / "run")
    assert {trial["state"] for trial in results(tmp_path / "run")["trials"]} == {"complete"}


def test_a_failure_of_sample_is_asked_for_again(stages, tmp_path, monkeypatch):
    def cut_off(config, path):
        raise SearchFailedError("every candidate drops every path")

    with monkeypatch.context() as patch:
        patch.setattr(trials.sample, "run", cut_off)
        with pytest.raises(UserError, match=r"\(failed: every candidate drops every path\)"):
            tuner.run(made(Tune(ell2=ELL2)), tmp_path)
    # Its settings may have changed; the searches are there.
    assert tuner.run(made(Tune(ell2=ELL2)), tmp_path).values == {"ell2": 50.0}
    assert len(stages.calls) == 3


def test_if_all_fail_the_reason_is_told(stages, tmp_path):
    stages.raises = dict.fromkeys(ELL2, SearchFailedError("everything is dropped"))
    with pytest.raises(UserError, match=r"tune: none of 3 trials is complete \(failed: everything is dropped\)"):
        tuner.run(made(Tune(ell2=ELL2)), tmp_path)
    assert results(tmp_path)["best"] is None
    (file, *_) = (tmp_path / "tune").rglob("failure.json")
    file.write_text('{"message": 3}')
    with pytest.raises(UserError, match=r"failure.json: altered: delete it \('message' must be text. Received: 3\)"):
        tuner.run(made(Tune(ell2=ELL2)), tmp_path)


@pytest.mark.parametrize("error", [UserError("the data is damaged"), OSError(28, "No space left on device")])
def test_what_is_no_matter_of_the_values_ends_all(stages, tmp_path, error):
    stages.raises = dict.fromkeys(ELL2, error)
    with pytest.raises(type(error)) as caught:
        tuner.run(made(Tune(ell2=ELL2)), tmp_path)
    assert caught.value is error and len(stages.calls) == 1
    stages.raises = {}
    assert tuner.run(made(Tune(ell2=ELL2)), tmp_path).values == {"ell2": 50.0}


def test_only_what_is_within_the_budget_counts(stages, tmp_path, capsys):
    # Kept: 91 %, 50 % and 9 %.
    best = tuner.run(made(Tune(ell2=ELL2, budget=0.4)), tmp_path)
    assert best.values == {"ell2": 500.0}
    states = {trial["values"]["ell2"]: trial["state"] for trial in results(tmp_path)["trials"]}
    assert states == {5.0: "over budget", 50.0: "over budget", 500.0: "complete"}
    assert "the smallest has 50.0 %" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"none of 3 .* \(over budget: no candidate has at most 5 % of the full"):
        tuner.run(made(Tune(ell2=ELL2, budget=0.05)), tmp_path)


def test_within_the_budget_a_smaller_candidate_than_the_winner_may_be_the_best(stages, tmp_path):
    stages.spread = (1.0, 0.9, 0.7, 0.75)
    best = tuner.run(made(Tune(ell2=ELL2, budget=0.4)), tmp_path)
    # Of 50 %: neither is 45 % within 40 %, and of 35 % and 37.5 % the former was raced longer.
    assert best.values == {"ell2": 50.0} and best.found.parameters == 3500
    # Scored on the fresh examples, as every trial's winner is, and not by what it had in its race: 0.09 x 1.1.
    assert stages.measured == [2] and best.found.fresh and best.found.num_examples == 80
    assert best.found.loss == pytest.approx(0.1 + 0.02)
    tuner.run(made(Tune(ell2=ELL2, budget=0.4)), tmp_path)
    assert stages.measured == [2]  # once
    file = tmp_path / "tune" / best.folder / "within_budget.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"within_budget.json: altered: delete it \('number' must be there"):
        tuner.run(made(Tune(ell2=ELL2, budget=0.4)), tmp_path)


def test_without_fresh_examples_the_races_count(stages, tmp_path):
    stages.fresh = False
    best = tuner.run(made(Tune(ell2=ELL2)), tmp_path)
    assert best.found.loss == pytest.approx(0.09) and best.found.num_examples == 320 and not best.found.fresh


@pytest.mark.parametrize(
    "found, objective, score",
    [
        ({"loss": 0.5, "metric": 0.25}, "loss", math.exp(-0.5)),
        ({"loss": 0.5, "metric": 0.25}, "accuracy", 0.25),
        ({"loss": math.inf, "metric": 0.25}, "loss", 0.0),
        ({"loss": math.nan, "metric": 0.25}, "loss", 0.0),
    ],
)
def test_the_score_is_bounded(found, objective, score):
    means = {"mean_loss": 1.0, "mean_metric": 0.5, "mean_parameters": 7.0}
    found = trials.Found(parameters=1, num_examples=1, fresh=True, **found, **means)
    metric = Config().facts.example
    assert trials.Trial("f", {}, 1, trials.COMPLETE, "", found).score(objective, metric) == pytest.approx(score)
    assert trials.Trial("f", {}, 1, trials.TOO_LARGE, "", found).score(objective, metric) == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(method="annealing"), "'tune.method' must be one of 'grid', 'random', 'bayesian', 'hyperband'"),
        (dict(trials=-1), "'tune.trials' must be at least 0"),
        (dict(method="random"), "'tune.trials' must be at least 1 with the method 'random'. Received: 0"),
        (dict(objective="test"), "'tune.objective' must be one of 'loss', 'accuracy'. Received: 'test'"),
        (dict(budget=0.0), r"'tune.budget' must be a share in \(0, 1\]"),
        (dict(ell2=(50.0, 0.0)), "'tune.ell2' must be greater than 0. Received: 0.0"),
        (dict(ell2=(50.0, 50.0)), "'tune.ell2' must be values each given once"),
        (dict(initial_drop=(0.1, 1.0)), r"'tune.initial_drop' must be numbers strictly in \(0, 1\). Received: 1.0"),
        (dict(method="hyperband", ell2=(50.0,)), "'tune.ell2' must be two ends of a range with the method 'hyperband'"),
    ],
)
def test_a_bad_value_is_told(settings, message):
    with pytest.raises(UserError, match=message):
        Config(tune=Tune(**settings)).check()


def test_what_cannot_be_tuned_is_told(stages, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tune: no values to try: set tune.ell2 or another"):
        tuner.run(made(Tune()), tmp_path)
    # A value that does not go with the others is told before the first search.
    config = made(
        Tune(learning_rate=(0.1, 0.001)), schedule="cosine_restarts", minimum_learning_rate=0.005, learning_rate=0.05
    )
    with pytest.raises(UserError, match="'search.minimum_learning_rate' must be .* less than search.learning_rate"):
        tuner.run(config, tmp_path)
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with pytest.raises(UserError, match="tune: one process expected. Received: a TF_CONFIG of 2"):
        tuner.run(made(Tune(ell2=ELL2)), tmp_path)
    assert stages.calls == []


@pytest.mark.slow
def test_on_the_digits(tmp_path):
    options = [*TINY_PUBLISHED, "--config.search.epochs=2", "--config.tune.ell2=20,600"]
    done = tfnas_command("tune", *options, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "KerasTuner" not in done.stdout
    found = results(tmp_path)
    small, large = sorted(found["trials"], key=lambda trial: trial["found"]["parameters"])
    assert (small["values"], large["values"]) == ({"ell2": 600.0}, {"ell2": 20.0})  # Table 4's direction
    assert found["full_parameters"] == 3314 and large["found"]["parameters"] <= 3314
    assert large["found"]["fresh"] and large["found"]["num_examples"] == 79
    # The digits are prepared once, and what is told next goes on from the winner's search.
    assert [file.parent.name for file in tmp_path.rglob("dataset_info.json")] == ["1.0.0"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("next")]
    command = shlex.split(line.partition("(")[0])[1:]
    assert command[:2] == ["tfnas", "run"] and "--config.search.epochs=2" in command
    again = tfnas_command("search", *command[2:])
    assert again.stdout.split() == ["search", "up", "to", "date"], again.stderr

    # A trial is the search that these values give by themselves, whatever ran before it in the process.
    from tfnas.stages import search

    second = found["trials"][1]
    settings = tiny_config(search={**PUBLISHED, "epochs": 2, **second["values"]})
    search.run(settings, tmp_path / "alone")
    alone, theirs = (tmp_path / "alone", tmp_path / "tune" / second["folder"])
    assert (alone / stage_table.POSTERIOR).read_text() == (theirs / stage_table.POSTERIOR).read_text()
    assert sorted(p.name for p in (tmp_path / "tune").iterdir()) == [
        "ell2.png",
        "results.json",
        "tensorflow_datasets",
        "trials",
    ]
