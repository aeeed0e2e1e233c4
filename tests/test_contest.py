import dataclasses
import itertools
import json

import numpy as np
import pytest
from conftest import load_config
from scipy import stats

from benchmarks import arms, contest, records
from tfnas.common.errors import UserError


def record(arm, decay, seed, validation=0.5, test=0.5, loss=1.0, **more):
    scores = {"validation": (loss, validation), "train": (0.1, 0.99), "test": (loss, test)}
    return {
        "arm": arm,
        "decay": decay,
        "seed": seed,
        "epochs": 24,
        "parameters_share": 0.28,
        "multiply_adds_share": 0.37,
        "off_target": 0.0,
        "seconds": {"train": 60.0, "rank": 2.0},
        "resumed": False,
        **{split: {"loss": loss, "accuracy": accuracy} for split, (loss, accuracy) in scores.items()},
        **more,
    }


def made(path, options, seeds):
    return contest.Contest(load_config("contest_digits"), path, options, seeds, 250.0)


def keep(mine, *found):
    for r in found:
        mine.work.write_json(f"{r['arm']}/decay-{r['decay']:g}/seed{r['seed']}.json", r)


def test_difference_has_the_paired_t_interval(rng):
    ours, theirs = rng.normal(size=(2, 5))
    found = records.difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    paired = stats.ttest_rel(ours, theirs)
    assert found[0] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found[1:] == pytest.approx(tuple(paired.confidence_interval(0.95)))


def test_difference_is_of_the_seeds_that_both_have():
    assert records.difference({0: 3.0, 1: 5.0, 2: 9.0}, {1: 4.0, 0: 1.0, 7: 0.0})[0] == 1.5
    mean, low, high = records.difference({0: 3.0}, {0: 1.0})
    assert mean == 2.0 and np.isnan([low, high]).all()
    assert np.isnan(records.difference({0: 3.0}, {1: 1.0})).all()


def test_jobs_part_the_plan(tmp_path):
    options = {"narrowed": (0.1, 0.2), "magnitude": (0.1, 0.2), "paper-search-only": (0.0,)}
    plan = made(tmp_path, options, [0, 1, 2]).plan()
    assert len(plan) == len(set(plan)) == 5 + 6
    assert all(decay is not None for _, decay, seed in plan if seed == 0)
    done = []
    for index in (1, 2, 3):
        part = made(tmp_path / str(index), options, [0, 1, 2])
        part.decay = lambda arm: 0.1  # chosen by then
        part._do = lambda *run: done.append(run)
        part.conduct(index, 3)
    chosen = [(arm, 0.1 if decay is None else decay, seed) for arm, decay, seed in plan]
    assert sorted(done) == sorted(chosen)
    assert contest.part("2/3") == (2, 3)
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(UserError, match="--jobs"):
            contest.part(text)


def test_a_run_that_is_there_is_not_run_again(tmp_path):
    mine = made(tmp_path, {"narrowed": (0.1, 0.2)}, [0, 1])
    done = []

    def do(arm, decay, seed):
        done.append((arm, decay, seed))
        keep(mine, record(arm, decay, seed, validation=decay))

    mine._do = do
    keep(mine, record("narrowed", 0.1, 0))
    mine.conduct(1, 1)
    assert done == [("narrowed", 0.2, 0), ("narrowed", 0.1, 1)]  # 0.1 has the higher accuracy
    mine.conduct(1, 1)
    assert len(done) == 2


def test_decay_is_that_of_the_first_seeds_best_validation(tmp_path):
    mine = made(tmp_path, {"full": (0.1, 0.2, 0.3)}, [0, 1])
    keep(mine, record("full", 0.1, 0, 0.7, test=0.9), record("full", 0.2, 0, 0.8, loss=2.0))
    assert mine.decay("full") is None and mine.results("") is None
    keep(mine, record("full", 0.3, 0, 0.8, loss=1.5), record("full", 0.1, 1, 0.99))
    assert mine.decay("full") == 0.3
    assert mine.results("") is None
    keep(mine, record("full", 0.3, 1))
    assert mine.results("")["decays"] == {"full": 0.3}
    assert len(mine.results("")["records"]) == 4


def test_others_are_waited_for(tmp_path, monkeypatch, capsys):
    mine = made(tmp_path, {"full": (0.1, 0.2)}, [0, 1])
    keep(mine, record("full", 0.1, 0))
    waits = []

    def other_process(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            keep(mine, record("full", 0.2, 0, validation=0.9))

    monkeypatch.setattr(contest.time, "sleep", other_process)
    mine._do = lambda arm, decay, seed: keep(mine, record(arm, decay, seed))
    mine.conduct(1, 2)
    assert len(waits) == 2 and mine.record("full", 0.2, 1)
    assert capsys.readouterr().out.count("waits for the decays of full") == 1


def test_decays_of_another_contest():
    assert contest.options(["full", "paper-search-only"], [0.1, 0.2]) == {
        "full": (0.1, 0.2),
        "paper-search-only": (0.0,),
    }
    assert contest.options(["full"], [0.1, 0.2], {"full": 0.2}) == {"full": (0.2,)}
    with pytest.raises(UserError, match="has no 'full'"):
        contest.options(["full"], [0.1], {})
    with pytest.raises(UserError, match="'half'"):
        contest.options(["half"], [0.1])


def test_another_contests_folder_is_refused(tmp_path):
    made(tmp_path, {"full": (0.1,)}, [0])
    made(tmp_path, {"narrowed": (0.1,)}, [0, 1])
    config = load_config("contest_digits")
    longer = dataclasses.replace(config, retrain=dataclasses.replace(config.retrain, epochs=99))
    with pytest.raises(UserError, match="other settings"):
        contest.Contest(longer, tmp_path, {"full": (0.1,)}, [0], 250.0)
    shorter = dataclasses.replace(config, retrain=dataclasses.replace(config.retrain, epochs=8))
    with pytest.raises(UserError, match="retrain.epochs above search.epochs"):
        contest.Contest(shorter, tmp_path / "shorter", {"full": (0.1,)}, [0], 250.0)


def test_table(tmp_path):
    narrowed = [record("narrowed", 0.1, seed, test=accuracy) for seed, accuracy in enumerate((0.5, 0.52, 0.51))]
    paper = [
        record("paper", 0.2, 0, test=0.55, off_target=0.04),
        record("paper", 0.2, 1, test=0.55, resumed=True, seconds={"train": 1.0, "rank": 0.0}),
        record("paper", 0.2, 2, test=0.52),
        record("paper", 0.1, 0, test=0.99),  # not the decay chosen
    ]
    results = {"decays": {"narrowed": 0.1, "paper": 0.2}, "records": [*narrowed, *paper], "seeds": [0, 1, 2]}
    results |= {"command": "contest.py", "machine": "2 cores", "options": {"narrowed": (0.1,), "paper": (0.1, 0.2)}}
    lines = contest.table(results).splitlines()
    assert lines[2] == "| narrowed | 51.00 ± 1.00 | 28.0 | 37.0 | 99.00 | - | - | 0.1 | 24 | 60 | 2 |"
    mean, low, high = records.difference({0: 55.0, 1: 55.0, 2: 52.0}, {0: 50.0, 1: 52.0, 2: 51.0})
    assert f"| +3.00 ({low:+.2f} to {high:+.2f}) | narrowed | 0.2 | 24 | 60 | 2 |" in lines[3]
    assert lines[4:] == ["", "paper is more than 3 % off the target size: +4.0 % at seed 0."]
    assert len({line.count("|") for line in lines[:4]}) == 1

    contest.export(results, tmp_path / "results" / "small")
    page = (tmp_path / "results" / "small.md").read_text()
    assert "`contest.py`" in page and "2 cores" in page and lines[3] in page
    assert "Seeds: 0, 1, 2." in page and "Weight decays: 0.1, 0.2, chosen" in page
    assert json.loads((tmp_path / "results" / "small.json").read_text()) == json.loads(json.dumps(results))


def test_own_scales_are_those_that_one_layer_reads():
    from tfnas.graph.channels import Graph
    from tfnas.supernets.multi_branch_resnet import multi_branch_resnet

    graph = Graph(multi_branch_resnet(2, 2, input_shape=(8, 8, 1)))
    convolutions = [node.name for node in graph.nodes if "_conv" in node.name and not node.name.startswith("stem")]
    stages = itertools.product((1, 2, 3), (1, 2), (1, 2))
    expected = {f"stage{s}_block{b}_path{p}_conv2": f"stage{s}_block{b}_path{p}_bn1" for s, b, p in stages}
    assert {name: layer.name for name, layer in arms.own_scales(graph, convolutions).items()} == expected


def test_candidates_are_of_equal_size(monkeypatch):
    import tfnas
    from tfnas.supernets.multi_branch_resnet import multi_branch_resnet

    monkeypatch.setattr(arms, "_DRAWN", 20)
    supernet = tfnas.gate(multi_branch_resnet(8, 1, input_shape=(8, 8, 1)), num_examples=1e4, ell2=50.0)
    whole = tfnas.cost(supernet.graph).parameters
    for share in (0.3, 0.6):
        candidates = arms.of_equal_size(supernet, share * whole, seed=0)
        sizes = [tfnas.cost(supernet.graph, candidate).parameters / whole for candidate in candidates]
        assert len(sizes) > 1 and sizes == pytest.approx([share] * len(sizes), rel=0.03)
    monkeypatch.setattr(arms, "NEAR", 0.0)
    assert len(arms.of_equal_size(supernet, 0.6 * whole + 0.5, seed=0)) == 1  # the nearest


@pytest.mark.slow
def test_two_arms_on_the_digits(tmp_path):
    config = load_config("contest_digits")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train="train[:300]"),
        supernet=dataclasses.replace(config.supernet, width=4, stem_width=4),
        search=dataclasses.replace(config.search, epochs=2, warmup_epochs=1),
        retrain=dataclasses.replace(config.retrain, epochs=3),
    )
    options = {"narrowed": (1e-3,), "bn-scale": (1e-3,)}
    mine = contest.Contest(config, tmp_path, options, [0], 250.0)
    mine.conduct(1, 1)
    results = mine.results("contest.py")
    narrowed, pruned = results["records"]
    assert narrowed["width"] == 2 and narrowed["off_target"] == 0
    assert -0.2 < pruned["off_target"] <= 0  # at most what was asked for
    assert pruned["epochs"] == 5 and not pruned["resumed"]
    assert pruned["kept"]["stage1_block1_path1_conv1"] == 4 and pruned["kept"]["stage3_block1_path1_conv2"] < 16
    assert all(0 <= pruned[split]["accuracy"] <= 1 for split in ("validation", "train", "test"))
    assert "| bn-scale |" in contest.table(results)
    assert not (tmp_path / "bn-scale" / "decay-0.001" / "seed0").exists()  # what is left is the record
