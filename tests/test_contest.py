import dataclasses
import json
import runpy

import numpy as np
import pytest
import tiny
from conftest import ROOT, load_config
from scipy import stats

from benchmarks import arms, contest, records
from benchmarks.arms import ARMS, SITUATIONS, Situation
from benchmarks.contest import Key
from tfnas.common.errors import UserError
from tfnas.cutting import subnets


def record(key, test=0.5, **more):
    scores = {split: {"loss": 1.0, "accuracy": test} for split in records.SPLITS}
    shares = {"parameters": 0.28, "multiply_adds": 0.37, "latency": 0.5, "epochs_spent": 12.5}
    return {**dataclasses.asdict(key), **scores, **shares, **more}


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


def test_plan_has_each_arm_where_it_makes_sense():
    keys = contest.plan(list(SITUATIONS), list(ARMS), [0, 1])
    assert len(set(keys)) == len(keys)
    assert [key.seed for key in keys] == sorted(key.seed for key in keys)
    there = {(key.situation, key.bounds, key.arm) for key in keys}
    assert ("scratch", "width", "narrowed") in there and ("trained-8", "width", "narrowed") not in there
    assert ("scratch", "half", "gates") not in there and ("trained-8", "half", "gates") in there
    assert ("trained-0", "width", "norm") in there and ("trained-0", "width", "gates") not in there
    assert ("trained-2", "width", "full") in there and ("trained-2", "half", "full") not in there
    for given in (["scratch"], ["gate"]), (["new"], ["gates"]):
        with pytest.raises(UserError, match=r"'gate'|'new'"):
            contest.plan(*given, [0])


def test_part_is_two_numbers():
    assert contest.part("2/3") == (2, 3)
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(UserError, match="--jobs"):
            contest.part(text)


def made(path, keys):
    return contest.Contest(load_config("contest_digits"), path, keys)


def test_a_run_that_is_there_is_not_run_again_and_others_are_waited_for(tmp_path, monkeypatch, capsys):
    keys = contest.plan(["scratch", "trained-0"], ["full", "narrowed", "norm"], [0])
    mine, done, waits = made(tmp_path, keys), [], []
    mine.work.write_json(f"{keys[0]}.json", record(keys[0]))  # by another process, which has not saved the network yet
    assert keys[0] == Key("scratch", "width", "full", 0)

    def do(key):
        done.append(key)
        mine.work.write_json(f"{key}.json", record(key))

    def other_process(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            mine.teacher(0).touch()

    mine._do = do
    monkeypatch.setattr(contest.time, "sleep", other_process)
    mine.conduct(1, 1)
    assert done == keys[1:] and len(waits) == 2
    assert [key.situation for key in done] == sorted(key.situation for key in done)  # those that need none come first
    assert capsys.readouterr().out.count("waits for the full network of seed 0") == 1
    mine.conduct(1, 1)
    assert done == keys[1:]
    assert len(mine.results("")["records"]) == len(keys)


def test_jobs_part_the_plan(tmp_path):
    keys = contest.plan(["scratch"], list(ARMS), [0, 1])
    done = []
    for index in (1, 2, 3):
        part = made(tmp_path / str(index), keys)
        part._needs_teacher = lambda key: False
        part._do = done.append
        part.record = lambda key: {} if key in done else None
        part.conduct(index, 3)
    assert sorted(done) == sorted(keys)


def test_another_contests_folder_is_refused(tmp_path):
    made(tmp_path, [])
    config = load_config("contest_digits")
    wider = dataclasses.replace(config, supernet=dataclasses.replace(config.supernet, width=20))
    with pytest.raises(UserError, match="other settings"):
        contest.Contest(wider, tmp_path, [])
    other = dataclasses.replace(config, supernet=dataclasses.replace(config.supernet, name="enas"))
    with pytest.raises(UserError, match="a width expected"):
        contest.Contest(other, tmp_path / "other", [])


def test_table():
    tests = {"full": (0.6, 0.62), "narrowed": (0.5, 0.52), "gates": (0.55, 0.55)}
    found = [
        record(Key("scratch", "width", arm, seed), test, **({"after_cut": {"as cut": 0.1}} if arm == "gates" else {}))
        for arm, accuracies in tests.items()
        for seed, test in enumerate(accuracies)
    ]
    found.append(record(Key("trained-0", "width", "gates", 0), 0.99))
    found.append(record(Key("scratch", "half", "gates", 0), 0.99))
    results = {"records": found, "command": "contest.py", "machine": "2 cores"}
    lines = contest.table(results, "scratch", "width").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["full", "narrowed", "gates"]
    assert "| narrowed | 51.00 ± 1.41 | 50.0 / 52.0 | - | - | - | - | 28.0 | 37.0 | 50.0 | 12.5 |" in lines
    mean, low, high = records.difference({0: 55.0, 1: 55.0}, {0: 50.0, 1: 52.0})
    assert f"| {mean:+.2f} ({low:+.2f} to {high:+.2f}) | 10.0 | - | - |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1
    text = contest.page(results, "small")
    assert all(line in text for line in lines) and "`contest.py`" in text and "trained-0" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
def test_arms_on_the_digits(tmp_path, monkeypatch, eager):
    """Every kind of arm, from new and from trained weights, with a network that is traced in a second."""
    config = load_config("contest_digits")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train="train[:300]"))

    def build(num_classes, input_shape, width, **_):
        return tiny.build(input_shape, num_classes, times=width / 8)

    monkeypatch.setattr(subnets, "builder", lambda name, setting: build)
    short = {
        "scratch": Situation(epochs=2, search=1, warmup=0, learning_rate=0.1, trained=False),
        "trained-2": Situation(epochs=2, search=1, warmup=0, learning_rate=0.03),
        "trained-0": Situation(epochs=0, search=0, warmup=0, learning_rate=0.03),
    }
    monkeypatch.setattr(contest, "SITUATIONS", short)
    monkeypatch.setattr(arms, "_EXAMPLES", 64)
    keys = [
        Key("scratch", "width", "full", 0),
        Key("scratch", "width", "published", 0),
        Key("trained-2", "width", "gates-distilled", 0),
        Key("trained-0", "half", "curvature-as-cut", 0),
    ]
    mine = contest.Contest(config, tmp_path, keys)
    mine.conduct(1, 1)
    full, published, gates, curvature = mine.results("contest.py")["records"]
    assert full["parameters"] == full["multiply_adds"] == 1 and full["epochs_spent"] == 2
    shares = mine.bounds["width"]
    assert published["multiply_adds"] < 1
    for found, bounds in (gates, shares), (curvature, dict.fromkeys(shares, 0.5)):
        assert all(0.5 * bounds[name] < found[name] <= bounds[name] for name in bounds)
        assert found["cut"] in found["after_cut"] and set(found["after_cut"]) == set(contest.Way)
    assert gates["epochs_spent"] == pytest.approx(1 + gates["multiply_adds"] + 1 / 3)
    assert curvature["epochs_spent"] == 0 and curvature["cut"] == "as cut"
    assert all(0 <= found[split]["accuracy"] <= 1 for found in (full, gates) for split in records.SPLITS)
    assert not (tmp_path / "trained-2" / "width" / "gates-distilled" / "seed0").exists()  # what is left is the record


def test_page_and_picture_show_what_the_record_has():
    file = ROOT / "docs/results/contest_16.json"
    record = json.loads(file.read_text())
    assert contest.page(record, file.stem) == file.with_suffix(".md").read_text()
    picture = runpy.run_path(ROOT / "docs/pictures.py")["contest"](record["records"])
    assert picture.strip() == (ROOT / "docs/images/contest_16.svg").read_text().strip(), "run docs/pictures.py"


def test_record_keeps_the_rows_and_what_made_them(tmp_path, monkeypatch, capsys):
    words = ["python", "-u", "-m", "benchmarks.bounds", "--shares=0.1, 0.5", "--workdir=/there", "--record=it.json"]
    monkeypatch.setattr(records.sys, "orig_argv", words)
    record = records.Record(str(tmp_path / "records" / "bounds.json"))
    record.heading("network", "held")
    record.row("chain", "5 ± 1")
    record.keep(share=0.5)
    kept = json.loads((tmp_path / "records" / "bounds.json").read_text())
    assert kept.pop("date") and (kept.pop("commit"), kept.pop("machine")) == (records.commit(), records.machine())
    assert kept == {
        "command": ".venv/bin/python -m benchmarks.bounds '--shares=0.1, 0.5' --workdir=DIR",
        "rows": ["| network | held |", "| chain | 5 ± 1 |"],
        "figures": {"share": 0.5},
    }
    assert capsys.readouterr().out == '\n| network | held |\n| --- | --- |\n| chain | 5 ± 1 |\n{"share": 0.5}\n'
    assert [file.name for file in tmp_path.rglob("*.json")] == ["bounds.json"]
