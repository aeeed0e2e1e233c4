"""What other importances give within the bounds of the network found, from the same weights."""

import json

import pytest
from conftest import tiny_config

from tfnas.runs import stage_table
from tfnas.stages import retrain, sample, search

CONFIG = tiny_config(
    search={"epochs": 2, "parameters": 0.6, "multiply_adds": 0.5},
    sample={"num_candidates": 8, "num_random": 4, "num_tested": 2, "channel_multiple": 2},
    retrain={"epochs": 1, "distill": 0.5},
)
WAYS = {"as cut", "statistics recomputed", "refitted"}


def rows_of(path):
    rows = json.loads((path / stage_table.RESULTS).read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "latency_seconds"} for row in rows]


@pytest.mark.slow
def test_all_obey_the_bounds(tmp_path):
    for stage in (search, sample, retrain):
        stage.run(CONFIG, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["name"] for row in rows] == [
        "full network, same total budget",
        "evenly narrowed, same weights",
        "group norm, same weights",
        "curvature, same weights",
        "found network, before retraining",
        "found network, retrained",
    ]
    full = json.loads((tmp_path / stage_table.RESULTS).read_text())["full"]
    for row in rows[1:]:
        shares = row["parameters"] / (0.6 * full["parameters"]), row["multiply_adds"] / (0.5 * full["multiply_adds"])
        assert 0.75 < max(shares) <= 1  # of 20 units, two at a time
        assert (row["way"] in WAYS) == row["name"].endswith(("same weights", "before retraining"))
