"""A trained model is cut without an epoch of training, from its file to the report."""

import json
import re

import keras
import numpy as np
import pytest
import tiny
from conftest import tiny_config

import tfnas
from tfnas.data import pipeline
from tfnas.runs import stage_table
from tfnas.search_space.unit_posterior import read_posterior
from tfnas.stages import evaluate, report, retrain, sample, search
from tfnas.training import networks
from tfnas.training.best_cut import best_cut


@pytest.mark.slow
def test_without_an_epoch_a_trained_model_is_cut_and_its_full_network_stays_as_it_was(tmp_path, capsys):
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
    # As `shrink` does, it compares norms, and gradients of the full network alone with those of rounds.
    best, compared = re.search(
        r"chosen by (.+?); held-out loss right after the cut: (.+)", capsys.readouterr().out
    ).groups()
    losses = {name: float(loss) for name, loss in re.findall(r"([a-z][a-z ]+) ([\d.e-]+)", compared)}
    assert len(losses) == 3 and losses[best] == min(losses.values())
    supernet = tfnas.load(path / stage_table.SUPERNET)
    supernet.compile(loss=model.loss)
    architecture = read_posterior((path / stage_table.POSTERIOR).read_bytes()).mode()
    held_out = next(iter(pipeline.evaluation_batches(splits.validation, config.data, 400)))
    cut = best_cut(supernet, architecture, networks.calibration_images(config, splits, 1000), held_out)
    assert min(cut.losses.values()) == pytest.approx(losses[best], rel=1e-3)
    rows = {row["name"]: row for row in json.loads((path / stage_table.RESULTS).read_text())["rows"]}
    assert "found network, retrained" not in rows
    full, found = rows["full network, same total budget"], rows["found network, before retraining"]
    assert full["test"]["accuracy"] == pytest.approx(np.mean(model(tests).numpy().argmax(-1) == answers))
    assert 0.3 < found["parameters"] / full["parameters"] <= 0.5 and found["test"]["accuracy"] > 0.3
    page = (path / "report.html").read_text()
    assert "for no epoch: which channels go follows from the weights" in page and "epoch of search" not in page
