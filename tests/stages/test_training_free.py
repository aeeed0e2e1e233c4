"""A trained model is cut without an epoch of training, from its file to the report."""

import json

import keras
import numpy as np
import pytest
import tiny
from conftest import tiny_config

from tfnas.data import pipeline
from tfnas.runs import stage_table
from tfnas.stages import evaluate, report, retrain, sample, search


@pytest.mark.slow
def test_without_an_epoch_a_trained_model_is_cut_and_its_full_network_stays_as_it_was(tmp_path):
    model = tiny.build((8, 8, 1), 10)
    config = tiny_config(
        supernet={"source": str(tmp_path / "trained.keras")},
        search={"epochs": 0, "importance": ""},
        sample={"num_candidates": 4, "num_random": 1, "num_tested": 2},
        retrain={"epochs": 0},
    )
    splits = pipeline.load(config.data, tmp_path)
    (images, labels), (tests, answers) = (
        next(iter(pipeline.evaluation_batches(getattr(splits, name), config.data, 400))) for name in ("train", "test")
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, epochs=20, verbose=0)
    model.save(tmp_path / "trained.keras")

    path = tmp_path / "run"
    for stage in (search, sample, retrain, evaluate, report):
        stage.run(config, path)
    assert (path / stage_table.HISTORY).read_text() == ""
    rows = {row["name"]: row for row in json.loads((path / stage_table.RESULTS).read_text())["rows"]}
    assert "found network, retrained" not in rows
    full, found = rows["full network, same total budget"], rows["found network, before retraining"]
    assert full["test"]["accuracy"] == pytest.approx(np.mean(model(tests).numpy().argmax(-1) == answers))
    assert 0.3 < found["parameters"] / full["parameters"] <= 0.5 and found["test"]["accuracy"] > 0.3
    page = (path / "report.html").read_text()
    assert "for no epoch: which channels go follows from the weights" in page and "epoch of search" not in page
