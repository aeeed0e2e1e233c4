"""What every stage reads of the settings, recorded while it runs, against the table of what it depends on.

Of one of these runs, the published search's, all of the trained baselines are looked at too, and its retraining is done
again with an interruption.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import PUBLISHED, ROOT, killed_after_writing, tiny_config
from settings_reads import SECTIONS, Recorder, expanded

import tfnas
from tfnas import config as config_lib
from tfnas.runs import stage_table
from tfnas.search_space.architecture import Architecture
from tfnas.stages import evaluate, export, report, retrain, sample, search
from tfnas.training import networks


def test_the_table_names_settings_that_there_are():
    for stage, spec in stage_table.STAGES.items():
        for name in spec.settings:
            assert name in SECTIONS or name in config_lib.known_keys(), stage
    assert {*stage_table.NEUTRAL} <= {*config_lib.known_keys()}


# Further settings of tests/tiny.py, so that all branches that read some are taken by one or the other.
WAYS = {
    "paper": {
        "data": {"pad_crop": 1},
        "search": {**PUBLISHED, "epochs": 2, "gate_dense": True, "gate_pooling": True},
        "sample": {"num_candidates": 3, "num_random": 2, "num_tested": 2, "budgets": (0.7,)},
        "retrain": {"epochs": 1, "baselines": ("fixed_drop", "single_path", "magnitude_pruning")},
        "evaluate": {"max_drop": 1.0 - 1e-6},
        "tune": {"ell2": (20.0, 80.0)},
    },
    "bounds": {
        # A model that is made of Sequential models.
        "supernet": {"source": "model_kinds:sequential_of_models"},
        "data": {"flip": True, "cutout": 2, "image_size": 8, "random_resized_crop": True},
        "search": {"multiply_adds": 0.6, "epochs": 2, "guard": "warn", "noise": "example", "streams": "yes"},
        "sample": {
            "num_candidates": 4,
            "num_random": 2,
            "num_tested": 2,
            "channel_multiple": 2,
            "budgets": (0.7,),
            "resource": "multiply_adds",
            "rank_by": "accuracy",
            "racing": 0.0,
            "recalibrate": 0,
            "ensemble": 2,
        },
        "retrain": {
            "epochs": 0,
            "baselines": ("norm",),
            "baseline": False,
        },
        "training": {"accumulate": 2, "precision": "mixed_bfloat16"},
        "export": {"formats": ("litert_int8",), "uncertainty": 2, "name": "mine", "version": 2},
        "tune": {"learning_rate": (0.05, 0.2)},
    },
}


def settings_of(way, digits_folder):
    return tiny_config(**{**WAYS[way], "data": {**WAYS[way]["data"], "data_dir": str(digits_folder)}})


def recorded(config, path, after=lambda stage: None):
    """Runs all stages in `path`, calling `after` with each that has run; returns what they read."""
    import reloading

    with pytest.MonkeyPatch.context() as patch, reloading.here():
        recorder = Recorder(patch)
        for stage in (search, sample, retrain, evaluate, export, report):
            stage.run(config, path)
            after(stage)
    assert (path / "report.html").stat().st_size > 0 and list(path.glob("export/*/*/saved_model.pb"))
    return recorder.reads


@pytest.fixture(scope="module")
def paper(tmp_path_factory, digits_folder):
    """A run of the published search with all baselines, the same after sampling, its settings, and what it read."""
    folder = tmp_path_factory.mktemp("paper")
    whole, sampled, config = folder / "whole", folder / "sampled", settings_of("paper", digits_folder)
    reads = recorded(config, whole, lambda stage: stage is sample and shutil.copytree(whole, sampled))
    return whole, sampled, config, reads


@pytest.mark.slow
def test_what_the_stages_of_a_published_search_read_is_what_they_depend_on(paper):
    check_reads("paper", paper[3])


@pytest.mark.slow
def test_what_the_stages_of_a_search_within_bounds_read_is_what_they_depend_on(tmp_path, monkeypatch, digits_folder):
    monkeypatch.syspath_prepend(ROOT / "tests")
    check_reads("bounds", recorded(settings_of("bounds", digits_folder), tmp_path))


def check_reads(way, reads):
    assert list(reads) == list(stage_table.STAGES)
    for stage, names in reads.items():
        depends = set().union(*map(expanded, stage_table.STAGES[stage].settings))
        foreseen = {*stage_table.STAGES[stage].foreseen}
        assert names - depends - foreseen - {*stage_table.NEUTRAL} == set(), stage
    # The recorder sees what surely is read.
    seen = {
        "paper": {
            "search": {"search.temperature", "search.ell2", "data.pad_crop", "seed", "distribution"},
            "sample": {"sample.racing", "sample.budgets", "sample.recalibrate"},
            "retrain": {"retrain.epochs", "sample.num_random", "search.latency_device"},
            "evaluate": {"evaluate.max_drop"},
            "export": {"export.uncertainty"},
        },
        "bounds": {
            "search": {"search.gate_step", "search.guard", "search.streams", "data.cutout", "training.accumulate"},
            "sample": {"sample.latency", "sample.resource", "sample.channel_multiple", "sample.ensemble"},
            "retrain": {"retrain.baseline", "sample.batch_size", "sample.recalibrate", "sample.channel_multiple"},
            "export": {"export.calibration", "export.version", "sample.recalibrate"},
        },
    }
    for stage, names in seen[way].items():
        assert names - reads[stage] == set(), stage
    # What retrain names one by one of sample's, it names because it reads it.
    named = {name for name in stage_table.STAGES["retrain"].settings if name.startswith("sample.")}
    read = {name for name in reads["retrain"] if name.startswith("sample.")}
    assert read == named


def rows_of(path):
    rows = json.loads((path / stage_table.RESULTS).read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "latency_seconds"} for row in rows]


@pytest.mark.slow
def test_all_that_was_trained_for_comparison_has_rows(paper):
    """What is made in the size of the network found has nearly that."""
    whole = paper[0]
    rows = rows_of(whole)
    assert [row["name"] for row in rows] == [
        "full network, same total budget",
        "random, spread evenly, best of 2",
        "random, spread evenly, mean of 2",
        "random, allocated per layer, best of 2",
        "random, allocated per layer, mean of 2",
        "fixed drop, best of 2",
        "fixed drop, mean of 2",
        "fixed drop, fine-tuned",
        "single path, best of 2",
        "single path, fine-tuned",
        "magnitude pruning",
        "magnitude pruning, fine-tuned",
        "deterministic candidate",
        "posterior, mean of 2",
        "found network, before retraining",
        "found network, retrained",
    ]
    assert all(0 < row["test"]["accuracy"] <= 1 for row in rows)
    assert {row["num_tested"] for row in rows if "mean of" in row["name"]} == {2}
    results = json.loads((whole / stage_table.RESULTS).read_text())
    tested = sum(map(sum, results["confusion"]))
    (chosen,) = (row for row in rows if row["name"] == results["chosen"])
    for row in rows:  # whoever is right more often has more examples that it alone has right
        if "mean of" not in row["name"]:
            more = row["paired"]["better"] - row["paired"]["worse"]
            assert more == round(tested * (chosen["test"]["accuracy"] - row["test"]["accuracy"]))
    (found,) = (row["parameters"] for row in rows if row["name"] == "found network, retrained")
    for row in rows:
        if row["name"].startswith(("fixed drop", "magnitude")):
            assert 0.9 * found <= row["parameters"] <= found


@pytest.mark.slow
def test_a_retraining_interrupted_among_the_trained_baselines_ends_the_same(paper, tmp_path, monkeypatch, capsys):
    """Of the rows, those of the networks that this retraining makes."""
    whole, sampled, config, _ = paper
    killed = tmp_path / "killed"
    shutil.copytree(sampled, killed)
    config = without_full_network(config, baselines=("single_path",))
    with killed_after_writing(monkeypatch, networks.retrain_checkpoints("single path")):
        retrain.run(config, killed)
    assert not (killed / stage_table.RESULTS).exists()
    retrain.run(config, killed)
    assert "single path resumes after epoch 1 of 2" in capsys.readouterr().out
    rows = rows_of(killed)
    names = {row["name"] for row in rows}
    assert {"single path, fine-tuned", "found network, retrained", "posterior, mean of 2"} < names
    assert rows == [row for row in rows_of(whole) if row["name"] in names]


@pytest.mark.slow
def test_a_deterministic_candidate_without_a_path_is_left_out(paper, tmp_path, monkeypatch):
    _, sampled, config, _ = paper
    shutil.copytree(sampled, tmp_path / "run")
    mode = tfnas.Posterior.mode
    monkeypatch.setattr(
        tfnas.Posterior, "mode", lambda self: Architecture({name: np.zeros_like(m) for name, m in mode(self).items()})
    )
    retrain.run(without_full_network(config, epochs=0, baselines=()), tmp_path / "run")
    names = [row["name"] for row in rows_of(tmp_path / "run")]
    assert "random, spread evenly, best of 2" in names and "deterministic candidate" not in names


def without_full_network(config, **changed):
    changed = dataclasses.replace(config.retrain, baseline=False, **changed)
    return dataclasses.replace(config, retrain=changed, evaluate=config_lib.Evaluate())
