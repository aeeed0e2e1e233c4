"""Thresholds compared with results whose shares can be computed in the head."""

import dataclasses
import json

import pytest
from reports import CONFIG, FOUND, FULL, MEAN, MEASURED, Page, ended, made, said, table

from tfnas.common import schema
from tfnas.common.errors import UserError
from tfnas.config import Evaluate
from tfnas.reporting import acceptance, report
from tfnas.runs import stage_table
from tfnas.runs.measured import Results, Verdict
from tfnas.stages import evaluate


# Found: 97.75 % and a quarter of the full network's parameters and multiply-adds; full: 98.5 %.
def results_of(*rows, confusion=MEASURED["confusion"]):
    value = {**MEASURED, "chosen": FOUND["name"], "rows": rows, "confusion": confusion}
    return schema.read(json.dumps(value), Results, "results")


FACTS = CONFIG.facts
RESULTS = results_of(FULL, MEAN, FOUND)


def test_nothing_asked_is_blessed():
    verdict = acceptance.judge(Evaluate(), RESULTS, FACTS)
    assert verdict == Verdict(True, ()) and acceptance.reasons(verdict) == "no threshold is set"


@pytest.mark.parametrize(
    "setting, met, missed, said",
    [
        ("threshold", 0.97, 0.98, "a test accuracy of 97.75%, at least 98.00% asked"),
        (
            "max_drop",
            0.0075,
            0.005,
            "a test accuracy 0.75% below the full network's, at most 0.50% below asked",
        ),
        ("max_parameters", 0.25, 0.2, "25.00% of the full network's parameters, at most 20.00% asked"),
        ("max_multiply_adds", 0.3, 0.1, "25.00% of the full network's multiply-adds, at most 10.00% asked"),
    ],
)
def test_each_threshold(setting, met, missed, said):
    assert acceptance.judge(Evaluate(**{setting: met}), RESULTS, FACTS).blessed
    verdict = acceptance.judge(Evaluate(**{setting: missed}), RESULTS, FACTS)
    assert not verdict.blessed and [c.setting for c in verdict.checks] == [f"evaluate.{setting}"]
    assert acceptance.reasons(verdict) == said


# 80 test images of two classes, 40 of each. By Wilson 95 % intervals, 48 right of 80 are not told from the 40 of a
# constant answer (49.0 to 70.0 %), 49 are (50.3 to 71.2 %); 10 points below the 97.75 % found is 87.75 %.
@pytest.mark.parametrize(
    "right, confusion, why",
    [
        (79, [[39, 1], [0, 40]], ""),
        (71, [[39, 1], [0, 40]], ""),
        (70, [[39, 1], [0, 40]], "points below the network found, so"),
        (49, [[39, 1], [0, 40]], "is 36.5 points below"),
        (
            48,
            [[39, 1], [0, 40]],
            "its 60.0% on test is not distinguishable from always answering the most frequent class (50.0%)",
        ),
        # Nine in ten images are of one class.
        (
            72,
            [[71, 1], [0, 8]],
            "its 90.0% on test is not distinguishable from always answering the most frequent class (90.0%)",
        ),
    ],
)
def test_a_full_network_that_was_not_trained_blesses_nothing(tmp_path, capsys, right, confusion, why):
    full = {**FULL, "test": {"accuracy": right / 80}}
    results = results_of(full, FOUND, confusion=confusion)
    doubted = acceptance.doubt(results, FACTS)
    assert why in doubted and bool(why) == bool(doubted)
    by_full = acceptance.judge(Evaluate(max_drop=0.05), results, FACTS)
    assert by_full.blessed == (not why) and why in acceptance.reasons(by_full)
    assert acceptance.judge(Evaluate(threshold=0.9, max_parameters=0.3), results, FACTS).blessed
    assert acceptance.doubt(results_of(FOUND, confusion=confusion), FACTS) == ""
    if confusion == MEASURED["confusion"]:
        work = made(tmp_path, rows=(full, FOUND))
        page, shown = said(work), " ".join(table(work).split())
        assert (why in page) and (why in shown) and ("Warning: the full network" in page) == bool(why)
        manifest = work.manifest()
        del manifest.stages["evaluate"]
        work.write_sealed(stage_table.MANIFEST, manifest)
        evaluate.run(CONFIG, tmp_path)
        printed = capsys.readouterr().out
        assert ("not a fair comparison" in printed) == ("not blessed" in printed) == bool(why)


def test_a_better_network_than_the_full_one():
    results = results_of({**FULL, "test": {"accuracy": 0.9675}}, FOUND)  # 1 point: no more than chance
    verdict = acceptance.judge(Evaluate(max_drop=0.0), results, FACTS)
    said = "a test accuracy 1.00% above the full network's, at most 0.00% below asked"
    assert verdict.blessed and acceptance.reasons(verdict) == said


def test_only_what_failed_is_listed_of_one_not_blessed():
    verdict = acceptance.judge(Evaluate(threshold=0.5, max_parameters=0.1), RESULTS, FACTS)
    assert [c.passed for c in verdict.checks] == [True, False]
    assert "accuracy" not in acceptance.reasons(verdict)


def test_the_full_network_must_have_been_trained():
    results = results_of(MEAN, FOUND)
    assert acceptance.judge(Evaluate(max_parameters=0.3), results, FACTS).blessed
    with pytest.raises(UserError, match="evaluate.max_drop=0.1: .* Received: none; retrain with --config"):
        acceptance.judge(Evaluate(max_drop=0.1), results, FACTS)


@pytest.mark.parametrize("asked, blessed", [(0.9, True), (0.99, False)])
def test_the_stage_writes_what_export_and_report_read(tmp_path, capsys, asked, blessed):
    config = dataclasses.replace(CONFIG, evaluate=Evaluate(threshold=asked))
    work = made(tmp_path, config=config)
    manifest = work.manifest()
    del manifest.stages["evaluate"]
    work.write_sealed(stage_table.MANIFEST, manifest)
    evaluate.run(config, tmp_path)
    assert work.read_json(stage_table.EVALUATION, "export", Verdict).blessed == blessed
    assert f"evaluate  {'blessed' if blessed else 'not blessed'}: a test accuracy of 97.75%" in capsys.readouterr().out
    ended(work, "export", config)  # of this verdict
    page = report.html(work, config)
    assert ("serving_default" in page) == blessed and ("It was not exported" in page) != blessed
    Page(page)
