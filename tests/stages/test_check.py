import collections
import dataclasses
import re
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config

from tfnas import config
from tfnas.common.errors import UserError
from tfnas.data import pipeline
from tfnas.runs.stage_table import STAGES
from tfnas.runs.workdir import Workdir
from tfnas.stages import check, search
from tfnas.tasks import network_inputs
from tfnas.training import building, loop, networks, preflight

usage = collections.namedtuple("usage", "total used free")


@pytest.fixture
def small():
    settings = config.to_dict(load_config("digits"))
    settings["supernet"] |= {"width": 4, "stem_width": 4}
    return config.from_config_dict(settings)


@pytest.mark.slow
def test_check_says_what_a_run_needs_and_leaves_the_folder_as_it_was(small, tmp_path, capsys, monkeypatch):
    read = []
    monkeypatch.setattr(loop.Step, "__call__", _counted(loop.Step.__call__, read))
    found = check.run(small, tmp_path)
    assert found["sizes"]["train"] == 1000 and found["input_shape"] == (8, 8, 1) and len(found["classes"]) == 10
    said = capsys.readouterr().out
    for line in ("devices   1 x CPU", "train 1,000 / validation 397", "groups of channel units", "writable", "in all"):
        assert line in said
    assert len(re.findall(r"a batch of 50: [\d,]+ ms, [\d,]+ images/s", said)) == 2 and len(read) >= 6
    assert "30 epochs of 20 steps" in said and "up to date" not in said and found["up_to_date"] == []
    assert len(re.findall(r"tracing and compiling, once: [\d.]+ s", said)) == 3
    assert "a candidate on 250 images: " in said
    assert re.search(r"\n {10}at most [\d.]+ % of the parameters and [\d.]+ % of the multiply-adds can go\n", said)
    network = building.network(small, pipeline.load(small.data, tmp_path / "tensorflow_datasets"))
    # As the run's table counts them: neither moving statistics nor what the gates are made of.
    parameters = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    assert found["parameters"] == parameters and f"supernet  {parameters:,} parameters, " in said
    assert [path.name for path in tmp_path.iterdir()] == ["tensorflow_datasets"]


def finish(work, stage, settings):
    """As if the stage had run."""

    def body():
        for name in STAGES[stage].outputs:
            work.write(name, lambda file: file.write_text("content"))

    work.run_stage(stage, settings, body)


GATED, PLAIN, RANKED = (
    preflight.Measured(41.0, 1.0, 10**9),
    preflight.Measured(10.5, 0.5, 10**9),
    preflight.Ranked(7, 0.5, 0.25),
)


def test_the_total_has_tracing_and_ranking_and_leaves_out_what_is_up_to_date(
    small, digits_folder, tmp_path, capsys, monkeypatch
):
    (tmp_path / "tensorflow_datasets").symlink_to(digits_folder)
    work = Workdir(tmp_path)

    def checked():
        measured = iter((GATED, PLAIN))
        monkeypatch.setattr(preflight, "measure", lambda step, batches: next(measured))
        monkeypatch.setattr(preflight, "measure_ranking", lambda make, candidates: RANKED)
        found = check.run(small, tmp_path)
        return found, capsys.readouterr().out

    found, said = checked()
    # 30 x 20 steps of 1 s, 40 s and the warm-up's 10 s of tracing; 500 + 2 x 100 candidates, each 0.5 s and two batches
    # of 0.25 s, and 7 s; (50 + 80) x 20 steps of 0.5 s, and twice 10 s.
    assert "search    about 0:10:50, tracing and compiling 0:00:50 of it: 30 epochs of 20 steps\n" in said
    assert "sample    about 0:11:47, tracing and compiling 0:00:07 of it: 700 candidates on 397 images, " in said
    assert "retrain   about 0:22:00, tracing and compiling 0:00:20 of it: " in said
    assert "in all    about 0:44:37, tracing and compiling 0:01:17 of it; left out: " in said
    assert found["seconds"] == 2677 and found["up_to_date"] == []

    for stage in ("search", "sample"):
        finish(work, stage, small)
    capsys.readouterr()
    found, said = checked()
    assert "up to date there, will not run again, and not counted in all: search, sample\n" in said
    assert "in all    about 0:22:00, tracing and compiling 0:00:20 of it; left out: " in said
    assert "search    about" not in said and "sample    about" not in said and "retrain   about 0:22:00" in said
    assert found["seconds"] == 1320 and found["up_to_date"] == ["search", "sample"]


def test_only_stages_before_the_first_that_runs_again_are_up_to_date(small, tmp_path):
    work = Workdir(tmp_path)
    for stage in ("search", "sample", "retrain"):
        finish(work, stage, small)
    assert work.up_to_date(small) == ["search", "sample", "retrain"]
    # Retrain's own settings and files are as they were, but sample will write its inputs anew.
    other = dataclasses.replace(small, sample=dataclasses.replace(small.sample, num_candidates=9))
    assert work.is_current("retrain", other) and work.up_to_date(other) == ["search"]


PAPERS = ("fixed_drop", "single_path", "magnitude_pruning")
PUBLISHED = {"ell2": 5.0, "parameters": 0.0}


def of_times(search=None, retrain=None, devices=1):
    settings = config.Config(
        search=config.Search(**{"epochs": 3, "batch_size": 10, "parameters": 0.5, "warmup_epochs": 1} | (search or {})),
        sample=config.Sample(num_candidates=8, num_random=3, budgets=(0.5,), batch_size=20),
        retrain=config.Retrain(**{"epochs": 4, "batch_size": 25} | (retrain or {})),
    ).check()
    gated, plain = preflight.Measured(100.0, 2.0, 0), preflight.Measured(21.0, 1.0, 0)
    found = preflight.times(settings, {"train": 105, "validation": 50}, gated, plain, RANKED, devices)
    return {stage: (time.seconds, time.tracing) for stage, time in found.items()}


def test_times_are_those_of_the_steps_and_of_tracing_each_network_once():
    # 3 x 10 steps of 2 s, 98 s of tracing and the warm-up's 20; 8 candidates, 8 at a budget and 2 x 3 random ones, each
    # 0.5 s and three batches of 0.25 s; (4 + 7) x 4 steps of 1 s, and two networks are traced.
    assert of_times() == {"search": (178.0, 118.0), "sample": (34.5, 7.0), "retrain": (84.0, 40.0)}
    assert of_times(search={"warmup_epochs": 0})["search"] == (158.0, 98.0)
    assert of_times(devices=2)["sample"] == (20.75, 7.0)
    assert of_times(retrain={"baseline": False})["retrain"] == (36.0, 20.0)
    assert of_times(retrain={"epochs": 0})["retrain"] == (32.0, 20.0)  # the full network only, for search's epochs
    # Further, without gates 3 + 3 x 4 epochs of 4 steps and four networks, and twice 2 gated epochs of 10 steps.
    assert of_times(retrain={"baselines": PAPERS}, search=PUBLISHED)["retrain"] == (
        84 + 60 + 80 + 80 + 2 * 98,
        40 + 80 + 2 * 98,
    )
    # Two more searches and retrainings, and the teacher of three, whose forward pass is a third of a step.
    rivals = {"baselines": ("norm", "scale"), "distill": 0.5}
    assert of_times(retrain=rivals)["retrain"] == (44 + 80 + 32 + 16 + 80 + 2 * 98, 80 + 2 * 98)
    # Nothing is fine-tuned then: 3 epochs of the full network, 3 of the one to be pruned, two searches.
    assert of_times(retrain={"baselines": PAPERS, "epochs": 0}, search=PUBLISHED)["retrain"] == (
        32 + 32 + 80 + 196,
        40 + 196,
    )


def test_a_first_step_as_fast_as_the_others_traced_nothing():
    assert preflight.Measured(1.0, 1.5, 0).tracing == 0


def test_ranking_is_timed_candidate_by_candidate(monkeypatch):
    clock = [0.0]
    taken = iter([5.0, 3.0, 1.0, 4.0, 1.5, 3.5, 2.0])  # the first to trace; then each twice
    asked = []

    class Engine:
        def __init__(self):
            clock[0] += 20.0

        def evaluate(self, candidates):
            asked.append(list(candidates))
            clock[0] += next(taken)
            yield from ()

    monkeypatch.setattr(preflight, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    # Medians: 3.5 of 3, 4 and 3.5; 1.5 of 1, 1.5 and 2.
    assert preflight.measure_ranking(Engine, ["a", "b", "c", "d", "e"]) == preflight.Ranked(20 + 5 - 3.5, 2.0, 1.5)
    assert asked == [["a"], ["b"], ["b"], ["c"], ["c"], ["d"], ["d"]]  # 15 s are enough


def _counted(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call


def test_too_little_room_is_told_before_the_first_step(tmp_path, monkeypatch):
    import keras

    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(100, use_bias=False)])
    work = Workdir(tmp_path)
    # 1,000 weights and as many of momentum, 4 bytes each; three checkpoints, one in writing, three models.
    assert preflight.room(work, model, 3)[0] == 2 * 1000 * 4 * 7
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * 1000 * 4 * 7 - 1))
    with pytest.raises(UserError, match=r"workdir .*: 0 MB .* 3 checkpoints and the models"):
        preflight.room(work, model, 3)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_told(split, label):
    def of(labels):
        return tf.data.Dataset.from_tensor_slices((np.zeros((3, 4, 4, 1), np.uint8), labels))

    parts = {name: of([0, 2, label if name == split else 1]) for name in ("train", "validation", "test")}
    splits = pipeline.Splits(
        **parts, sizes={"train": 3}, inputs=network_inputs.one((4, 4, 1)), label_names=("a", "b", "c")
    )
    with pytest.raises(UserError, match=f"{split} .*label {label}; .*0 to 2"):
        preflight.examples(splits)


def test_a_bound_out_of_reach_is_told_by_check_and_before_the_warm_up(small, tmp_path, monkeypatch):
    settings = dataclasses.replace(small, search=dataclasses.replace(small.search, parameters=0.001)).check()
    words = "bounds: parameters=.* is out of reach: at least .* remain, a share of .*, the most in "
    with pytest.raises(UserError, match=words):
        check.run(settings, tmp_path)
    assert settings.search.warmup_epochs > 0
    monkeypatch.setattr(networks, "_fit", lambda *arguments: pytest.fail("trained"))
    with pytest.raises(UserError, match=words):
        search.run(settings, tmp_path)
