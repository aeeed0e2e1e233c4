"""The sample stage, through the command line where that may matter: shards, budgets, what can be wrong with them."""

import functools
import json
import shutil

import conftest
import pytest
from conftest import PUBLISHED, SAMPLED, TINY, TINY_PUBLISHED, kill_when, lines, tfnas_command, tiny_config

import tfnas
from tfnas.common.errors import UserError
from tfnas.graph import costs
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.runs import stage_table
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import read_posterior
from tfnas.stages import sample, search

pytestmark = pytest.mark.slow
tfnas_stage = functools.partial(conftest.tfnas_stage, settings=TINY)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search, and one sample stage never interrupted."""
    path = tmp_path_factory.mktemp("run") / "searched"
    tfnas_stage("search", path)
    tfnas_stage("sample", path)
    return path


def test_three_shards_one_of_them_killed_end_as_one_run_does(searched, tmp_path, capsys):
    for i in (1, 2, 3):
        shutil.copytree(searched, tmp_path / str(i))
        shutil.rmtree(tmp_path / str(i) / "sample")
    second = tmp_path / "2" / stage_table.SHARDS / "2-of-3.jsonl"
    kill_when("sample", tmp_path / "2", lambda: lines(second) >= 8, "--shard=2/3")
    (tmp_path / "1" / stage_table.SHARDS).mkdir(parents=True)
    for i in (1, 2, 3):
        sample.run(tiny_config(), tmp_path / str(i), f"{i}/3")
        assert f"shard {i} of 3" in capsys.readouterr().out
        assert not (tmp_path / str(i) / stage_table.RANKING).exists()
    for i in (2, 3):
        shutil.copy(tmp_path / str(i) / stage_table.SHARDS / f"{i}-of-3.jsonl", tmp_path / "1" / stage_table.SHARDS)
    sample.run(tiny_config(), tmp_path / "1")
    for name in SAMPLED:
        assert (tmp_path / "1" / name).read_text() == (searched / name).read_text(), name


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "1/0"])
def test_a_shard_that_is_none_is_told(text):
    with pytest.raises(UserError, match=f"--shard: i/n with 1 <= i <= n expected, such as 1/3. Received: '{text}'"):
        sample.Shard.parse(text)


def test_what_is_wrong_with_shards_is_told(searched, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(searched, path)
    done = tfnas_command("retrain", *TINY, f"--workdir={path}", "--shard=1/3")
    assert done.returncode == 1 and "only the stage 'sample' has shards. Received: 'retrain'" in done.stderr
    (path / stage_table.SHARDS).mkdir()
    Evaluations(path / stage_table.SHARDS / "1-of-3.jsonl", "another run").__exit__()
    (path / stage_table.RANKING).unlink()
    done = tfnas_command("sample", *TINY, f"--workdir={path}")
    assert done.returncode == 1 and "1-of-3.jsonl: contains evaluations of another run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published search."""
    path = tmp_path_factory.mktemp("run") / "published"
    search.run(tiny_config(search=PUBLISHED), path)
    return path


def check_front(path, printed, expected):
    """The front that `path` has of three points, two of them at budgets."""
    found = json.loads((path / stage_table.FRONT).read_text())
    assert {point["share"] for point in found["points"]} == {None, *expected}
    for point in found["points"]:
        assert Architecture.from_json(json.dumps(point["architecture"]))
    assert (path / stage_table.FRONT_PLOT).read_bytes().startswith(b"\x89PNG")
    assert "mean of candidates" in printed
    predictive = json.loads((path / stage_table.RANKING).read_text())["predictive"]
    assert list(predictive) == ["found network", "ensemble of the 5 best", "average of 5 posterior samples"]
    for measured in predictive.values():
        assert all(low <= value <= high for value, low, high in (measured["accuracy"], measured["nll"]))
    return found


def test_budgets_make_a_front(searched, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(searched, path)
    sample.run(tiny_config(sample={"budgets": (0.3, 0.6), "resource": "multiply_adds", "ensemble": 5}), path)
    found = check_front(path, capsys.readouterr().out, (0.3, 0.6))
    full = costs.cost(tfnas.load(path / stage_table.SUPERNET)).multiply_adds
    for point in found["points"]:
        if point["share"]:
            assert 0.9 * point["share"] * full < point["best"]["multiply_adds"] <= point["share"] * full
    # What is then sampled within one of the budgets is what the front has there.
    sample.run(tiny_config(sample={"multiply_adds": 0.3}), path)
    assert "sample    of at most 30.0% of the multiply-adds" in capsys.readouterr().out
    (point,) = (point for point in found["points"] if point["share"] == 0.3)
    assert json.loads((path / stage_table.ARCHITECTURE).read_text()) == point["architecture"]


def test_after_a_published_search_the_posterior_is_tilted_to_budgets(published, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(published, path)
    sampling = {"budgets": (0.3, 0.6), "resource": "multiply_adds", "ensemble": 5}
    sample.run(tiny_config(search=PUBLISHED, sample=sampling), path)
    printed = capsys.readouterr().out
    found = check_front(path, printed, (0.3, 0.6))
    assert found["resource"] == "multiply_adds" and "as searched" in printed
    for point in found["points"]:
        if point["share"]:
            expected = point["expected"]
            assert expected["mean"] == pytest.approx(point["share"] * expected["total"], rel=0.01)
    sample.run(tiny_config(search=PUBLISHED, sample={"multiply_adds": 0.3}), path)
    assert "of the gated multiply-adds to 30.0%" in capsys.readouterr().out
    (point,) = (point for point in found["points"] if point["share"] == 0.3)
    assert json.loads((path / stage_table.ARCHITECTURE).read_text()) == point["architecture"]


def test_units_come_in_multiples(searched, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(searched, path)
    sample.run(tiny_config(sample={"channel_multiple": 4, "parameters": 0.7}), path)
    architecture = Architecture.from_json((path / stage_table.ARCHITECTURE).read_text())
    assert all(mask.sum() % 4 == 0 or mask.all() for mask in architecture.values())


def test_a_bound_on_the_latency_holds_as_measured(tmp_path, monkeypatch, capsys):
    """On a device whose passes take as long as the network has parameters, and something besides."""
    timed = []

    def timer(model, device):
        timed.append(model)
        return lambda: 1e-4 + 1e-7 * model.count_params()

    monkeypatch.setattr("tfnas.graph.latencies.timer", timer)
    monkeypatch.setattr("tfnas.cutting.latency_bound.timer", timer)
    config = tiny_config(search={"latency": 0.8, "epochs": 2}, sample={"num_candidates": 10, "num_random": 3})
    search.run(config, tmp_path)
    # Every layer's kind with all and, unless it has one, with half of its inputs; the whole network; one that computes
    # nothing. Not again for the gates after the warm-up.
    assert len(timed) == 11
    sample.run(config, tmp_path)
    measured = len(timed)
    assert 11 + 2 <= measured <= 11 + 1 + 4 * 3  # the full network and up to four others, each up to three times
    ranked = json.loads((tmp_path / stage_table.RANKING).read_text())
    latency = ranked["latency"]
    assert latency["asked"] == 0.8 and 0.7 < latency["measured"] <= 0.8
    posterior = read_posterior((tmp_path / stage_table.POSTERIOR).read_bytes())
    assert ranked["bounds"] == {"latency": pytest.approx(latency["predicted"] * posterior.form.full("latency"))}
    # Sampled again, the bound found is kept.
    sample.run(tiny_config(**{"search": {"latency": 0.8, "epochs": 2}, "sample": {"num_candidates": 5}}), tmp_path)
    assert len(timed) == measured and "predicted from its layers" in capsys.readouterr().out


def test_a_budget_that_no_candidate_can_meet_is_told(searched, published, tmp_path):
    for settings, run, told in (
        (TINY, searched, "bounds: parameters=0.0001 is out of reach: at least"),
        (TINY_PUBLISHED, published, "posterior at 0.01 % of the parameters, every candidate drops every path"),
    ):
        path = tmp_path / run.name
        shutil.copytree(run, path)
        done = tfnas_command("sample", *settings, f"--workdir={path}", "--config.sample.budgets=0.0001")
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr
    bound = "--config.sample.parameters=0.0001"
    done = tfnas_command("sample", *TINY, f"--workdir={tmp_path / searched.name}", bound)
    assert done.returncode == 1 and "bounds: parameters=0.0001 is out of reach: at least" in done.stderr
    done = tfnas_command("sample", *TINY, f"--workdir={path}", "--config.sample.budgets=1.5")
    assert done.returncode == 1 and "'sample.budgets' must be shares in (0, 1). Received: 1.5" in done.stderr


def test_fewer_images_than_a_batch_and_everything_in_full(tmp_path):
    config = tiny_config(
        data={"validation": "train[1000:1020]"},
        search={"epochs": 3},
        sample={"racing": 0.0, "recalibrate": 50, "holdout": 0.0},
    )
    search.run(config, tmp_path)
    sample.run(config, tmp_path)
    kinds = json.loads((tmp_path / stage_table.RANKING).read_text())["kinds"]
    race = kinds["posterior"]["race"]
    assert race["best"]["num_examples"] == 20 and race["saved"] == 0 and race["fresh"] is None
