"""The sample stage, through the command line where that may matter: shards, budgets, what can be wrong with them."""

import functools
import json
import shutil

import conftest
import pytest
from conftest import SAMPLED, TINY, kill_when, lines, tfnas_command, tiny_config

from tfnas.common.errors import UserError
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.runs import stage_table
from tfnas.search_space.architecture import Architecture
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


def test_budgets_make_a_front(searched, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(searched, path)
    sample.run(tiny_config(sample={"budgets": (0.3, 0.6), "resource": "latency", "ensemble": 5}), path)
    printed = capsys.readouterr().out
    found = json.loads((path / stage_table.FRONT).read_text())
    assert found["resource"] == "latency" and {point["share"] for point in found["points"]} == {None, 0.3, 0.6}
    for point in found["points"]:
        if point["share"]:
            expected = point["expected"]
            assert expected["mean"] == pytest.approx(point["share"] * expected["total"], rel=0.01)
        assert Architecture.from_json(json.dumps(point["architecture"]))
    assert (path / stage_table.FRONT_PLOT).read_bytes().startswith(b"\x89PNG")
    assert "mean of candidates" in printed and "as learned" in printed
    predictive = json.loads((path / stage_table.RANKING).read_text())["predictive"]
    assert list(predictive) == ["found network", "ensemble of the 5 best", "average of 5 posterior samples"]
    for measured in predictive.values():
        assert all(low <= value <= high for value, low, high in (measured["accuracy"], measured["nll"]))
    # What is then sampled within one of the budgets is what the front has there.
    sample.run(tiny_config(sample={"latency": 0.3}), path)
    assert "of the gated latency to 30.0%" in capsys.readouterr().out
    (point,) = (point for point in found["points"] if point["share"] == 0.3)
    assert json.loads((path / stage_table.ARCHITECTURE).read_text()) == point["architecture"]


def test_a_budget_that_no_candidate_can_meet_is_told(searched, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(searched, path)
    for options, told in (
        (["--config.sample.budgets=0.0001"], "posterior at 0.01 % of the parameters, every candidate drops every path"),
        (["--config.sample.budgets=1.5"], "'sample.budgets' must be shares in (0, 1). Received: 1.5"),
    ):
        done = tfnas_command("sample", *TINY, f"--workdir={path}", *options)
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr


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
