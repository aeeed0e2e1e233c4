"""What other importances give within the bounds of the network found, from the same weights or trained as long."""

import json

import pytest
from conftest import killed_after_writing, tiny_config

from tfnas.runs import stage_table
from tfnas.stages import retrain, sample, search
from tfnas.training import networks, rivals

CONFIG = tiny_config(
    search={"epochs": 2, "parameters": 0.6, "multiply_adds": 0.5},
    sample={"num_candidates": 8, "num_random": 4, "num_tested": 2, "channel_multiple": 2},
    retrain={"epochs": 1, "distill": 0.5, "baselines": ("scale",)},
)
WAYS = {"as cut", "recalibrated", "refitted"}


def rows_of(path):
    rows = json.loads((path / stage_table.RESULTS).read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "latency_seconds"} for row in rows]


@pytest.mark.slow
def test_all_obey_the_bounds_and_an_interrupted_retraining_ends_the_same(tmp_path, monkeypatch, capsys):
    for stage in (search, sample):
        stage.run(CONFIG, tmp_path)
    with killed_after_writing(monkeypatch, networks.retrain_checkpoints("normalization scale, fine-tuned")) as patch:
        patch.setattr(rivals, "at_once", lambda *_: [])  # which leaves nothing behind
        retrain.run(CONFIG, tmp_path)
    retrain.run(CONFIG, tmp_path)
    assert "normalization scale resumes after epoch 2 of 2" in " ".join(capsys.readouterr().out.split())
    rows = rows_of(tmp_path)
    names = [row["name"] for row in rows]
    assert names == [
        "full network, same total budget",
        "evenly narrowed, same weights",
        "group norm, same weights",
        "normalization scale, trained alike",
        "curvature, same weights",
        "found network, before retraining",
        "found network, retrained",
    ]
    full = json.loads((tmp_path / stage_table.RESULTS).read_text())["full"]
    for row in rows[1:]:
        shares = row["parameters"] / (0.6 * full["parameters"]), row["multiply_adds"] / (0.5 * full["multiply_adds"])
        assert 0.75 < max(shares) <= 1  # of 20 units, two at a time
        untrained = row["name"].endswith(("same weights", "before retraining"))
        assert (row["way"] in WAYS) == untrained and row["fine_tuned"] == row["name"].endswith("alike")
