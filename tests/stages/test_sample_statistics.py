"""What the sample stage says of its candidates, against what the networks themselves answer."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from conftest import load_config
from scipy import stats

from tfnas.config import Search
from tfnas.data import pipeline
from tfnas.graph import costs
from tfnas.runs import stage_table
from tfnas.search_space.architecture import Architecture
from tfnas.stages import sample, search

pytestmark = pytest.mark.slow
ASKED, RANDOM, MEANS, ENSEMBLE = 40, 6, 4, 3


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A search with a bound, and its candidates evaluated in full: config and folder."""
    config = load_config("tiny", "tests")
    config = dataclasses.replace(
        config,
        search=Search(epochs=2, batch_size=50, learning_rate=0.05, multiply_adds=0.5, warmup_epochs=1),
        sample=dataclasses.replace(
            config.sample,
            num_candidates=ASKED,
            num_random=RANDOM,
            num_tested=MEANS,
            ensemble=ENSEMBLE,
            racing=0.0,
            recalibrate=0,
        ),
    ).check()
    path = tmp_path_factory.mktemp("run") / "run"
    search.run(config, path)
    sample.run(config, path)
    return config, path


@pytest.fixture(scope="module")
def files(ran):
    _, path = ran
    ranking = json.loads((path / stage_table.RANKING).read_text())
    candidates = [json.loads(line) for line in (path / stage_table.CANDIDATES).read_text().splitlines()]
    return ranking, candidates


@pytest.fixture(scope="module")
def answers(ran):
    """A function of an architecture: which of the fresh examples, and which of the race's, its network has right."""
    config, path = ran
    splits = pipeline.load(config.data, path / "tensorflow_datasets")
    batches = list(pipeline.evaluation_batches(splits.validation, config.data, 250))
    images, labels = (np.concatenate([np.asarray(batch[i]) for batch in batches]) for i in range(2))
    supernet = keras.models.load_model(path / stage_table.SUPERNET)
    order = np.random.default_rng(config.seed).permutation(len(labels))
    start = len(labels) - int(config.sample.holdout * len(labels))

    def right(architecture):
        supernet.set_architecture(Architecture.from_json(json.dumps(architecture)))
        correct = np.argmax(supernet.predict(images, verbose=0), -1) == labels
        return correct[order[start:]], correct[order[:start]]

    return right


def test_random_candidates_obey_the_bounds(ran, files):
    config, path = ran
    _, candidates = files
    supernet = keras.models.load_model(path / stage_table.SUPERNET)
    most = 0.5 * costs.cost(supernet.graph).multiply_adds
    drawn = [c["multiply_adds"] for c in candidates if c["kind"] != "posterior"]
    assert len(drawn) == 2 * RANDOM and max(drawn) <= most and np.median(drawn) > 0.9 * most


def test_the_most_probable_network_is_not_averaged_with_samples(files, answers):
    ranking, candidates = files
    posterior = ranking["kinds"]["posterior"]
    assert posterior["num_measured"] == len(posterior["first"]) == MEANS
    digests = [Architecture.from_json(json.dumps(a)).digest() for a in posterior["first"]]
    theirs = {c["number"]: c for c in candidates if c["kind"] == "posterior"}
    assert digests == [theirs[i]["digest"] for i in range(1, MEANS + 1)]
    accuracies = [answers(a)[1].mean() for a in posterior["first"]]
    assert posterior["mean_metric"] == pytest.approx(np.mean(accuracies))
    sizes = [c["parameters"] for i, c in theirs.items() if i]
    assert len(sizes) == ASKED - 1 and posterior["mean_parameters"] == pytest.approx(np.mean(sizes))


def test_as_many_candidates_as_asked_for_obey_the_bounds_and_differ(ran, files):
    config, path = ran
    ranking, candidates = files
    posterior = ranking["kinds"]["posterior"]
    drawn = [c for c in candidates if c["kind"] == "posterior"]
    assert posterior["count"] == posterior["able"] == posterior["distinct"] == len(drawn) == ASKED
    assert len({c["digest"] for c in drawn}) == ASKED and posterior["left_out"] == ""
    most = 0.5 * costs.cost(keras.models.load_model(path / stage_table.SUPERNET)).multiply_adds
    assert max(c["multiply_adds"] for c in drawn) <= most
    assert np.median([c["multiply_adds"] for c in drawn]) > 0.85 * most  # there are 20 units


def test_the_best_of_equally_many_are_compared_on_the_same_examples(files, answers):
    ranking, candidates = files
    assert set(ranking["comparisons"]) == set(ranking["kinds"]) - {"posterior"}
    for kind, found in ranking["comparisons"].items():
        group, pair = ranking["kinds"][kind], found["paired"]
        assert found["count"] == min(ranking["kinds"]["posterior"]["able"], group["able"])
        assert pair["better"] - pair["worse"] == round(
            found["num_examples"] * (found["metric"] - found["other_metric"])
        )
        differ = pair["better"] + pair["worse"]
        p = 2 * stats.binom.cdf(min(pair["better"], pair["worse"]), differ, 0.5)
        assert pair["p_value"] == pytest.approx(min(1, p))
        if found["count"] == group["able"]:  # then the other's is the winner of its kind
            fresh, _ = answers(group["race"]["architecture"])
            assert found["num_examples"] == len(fresh) and found["other_metric"] == pytest.approx(fresh.mean())
        if found["count"] == ranking["kinds"]["posterior"]["able"]:
            fresh, _ = answers(ranking["kinds"]["posterior"]["race"]["architecture"])
            assert found["metric"] == pytest.approx(fresh.mean())


def test_the_curve_is_measured_on_fresh_examples(files, answers):
    ranking, _ = files
    posterior = ranking["kinds"]["posterior"]
    race = posterior["race"]
    last = race["best_of"][-1]
    fresh, _ = answers(race["architecture"])
    assert last["count"] == posterior["able"]
    assert last["mean"] == pytest.approx(fresh.mean()) == pytest.approx(race["fresh"]["metrics"]["accuracy"])


def test_an_ensemble_is_of_those_that_may_win(files):
    ranking, _ = files
    best = min(ENSEMBLE, ranking["kinds"]["posterior"]["able"])
    assert list(ranking["predictive"]) == [
        "found network",
        f"ensemble of the {best} best",
        f"average of {ENSEMBLE} posterior samples",
    ]
    for measured in ranking["predictive"].values():
        accuracy, low, high = measured["accuracy"]
        total = ranking["kinds"]["posterior"]["race"]["fresh"]["num_examples"]
        wilson = stats.binomtest(round(accuracy * total), total).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((wilson.low, wilson.high)) and isinstance(measured["ece"], float)


def test_a_candidate_that_did_not_win_is_measured_as_the_winner_is(ran, files):
    config, path = ran
    ranking, _ = files
    best, fresh = (ranking["kinds"]["posterior"]["race"][name] for name in ("best", "fresh"))
    measured = sample.measure(config, path, best["number"])
    assert measured.loss == pytest.approx(fresh["loss"]) and measured.metrics == pytest.approx(fresh["metrics"])
    assert measured.num_examples == fresh["num_examples"]
    full = dataclasses.replace(config, sample=dataclasses.replace(config.sample, holdout=0.0))
    assert sample.measure(full, path, best["number"]).num_examples == 397
