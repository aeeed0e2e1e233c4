import dataclasses
import html
import importlib.metadata
import platform

from reports import CONFIG, ended, made

from tfnas.common import schema
from tfnas.config import Tune
from tfnas.reporting import model_card, report
from tfnas.runs import provenance, stage_table
from tfnas.runs.measured import Results, Verdict
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.tasks import network_inputs

OLD, NEW = ({"python": "3.11.2", "keras": keras} for keras in ("3.14.0", "3.15.1"))
MIXED = {"search": OLD, "sample": OLD, "retrain": NEW}


def test_versions_are_those_of_this_process():
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    for package in ("tfnas", "tensorflow", "keras", "numpy"):
        assert found[package] == importlib.metadata.version(package)


def test_versions_are_told_by_package():
    assert provenance.by_package({"search": OLD, "sample": OLD}) == OLD
    assert provenance.by_package(MIXED) == {"python": "3.11.2", "keras": "search, sample 3.14.0; retrain 3.15.1"}
    assert provenance.differences(MIXED) == "keras (search, sample 3.14.0; retrain 3.15.1)"
    assert provenance.differences({"search": OLD, "sample": OLD}) == provenance.differences({}) == ""
    assert provenance.by_package({"search": OLD, "retrain": {**OLD, "numpy": "2.4.6"}})["numpy"] == (
        "search not recorded; retrain 2.4.6"
    )


def card(path, versions, **row):
    """Of the run that `made` leaves, whose rows have `row` too."""
    work = made(path)
    results = schema.read((path / stage_table.RESULTS).read_bytes(), Results, "results")
    rows = tuple(dataclasses.replace(each, **row) for each in results.rows)
    results = dataclasses.replace(results, rows=rows)
    return model_card.card(
        CONFIG,
        name="digits",
        inputs=network_inputs.one((8, 8, 1)),
        label_names=[str(i) for i in range(len(results.confusion))],
        sizes={"train": 10, "validation": 10},
        results=results,
        verdict=Verdict(True, ()),
        posterior=Posterior.from_json((work.path / stage_table.POSTERIOR).read_bytes()),
        architecture=Architecture.from_json((work.path / stage_table.ARCHITECTURE).read_bytes()),
        reloaded={"largest_difference": 1e-6, "metric": 0.5, "total": 2},
        signatures=["serving_default"],
        versions=versions,
        saved_model=path,
        made_from={},
    )


def test_the_card_says_where_stages_ran_with_different_versions(tmp_path):
    mixed, alike = (
        card(tmp_path / name, of) for name, of in (("mixed", MIXED), ("alike", {"search": OLD, "export": OLD}))
    )
    assert mixed["versions"] == MIXED
    told = "ran with different versions: keras (search, sample 3.14.0; retrain 3.15.1)"
    assert any(told in limit for limit in mixed["limits"]) and told in model_card.markdown(mixed, CONFIG.facts)
    assert "| keras | search, sample 3.14.0; retrain 3.15.1 |" in model_card.markdown(mixed, CONFIG.facts)
    assert not any("different versions" in limit for limit in alike["limits"])
    assert "| keras | 3.14.0 |" in model_card.markdown(alike, CONFIG.facts)


def test_the_card_has_the_top_5_accuracy_beside_the_accuracy(tmp_path):
    without, found = (
        card(tmp_path / "a", {}),
        card(tmp_path / "b", {}, test={"accuracy": 0.9775, "top5_accuracy": 0.9912}),
    )
    assert found["metrics"]["test"]["top5_accuracy"] == 0.9912 and "(top-5 99.12%)" in model_card.markdown(
        found, CONFIG.facts
    )
    assert "top5_accuracy" not in without["metrics"]["test"] and "top-5" not in model_card.markdown(
        without, CONFIG.facts
    )


def test_the_report_says_where_stages_ran_with_different_versions(tmp_path):
    work = made(tmp_path)
    text = report.html(work, CONFIG)
    assert "different versions" not in text and "<td>3.15.1</td>" in text
    ended(work, "search", versions={"keras": "3.14.0"})
    told = "search 3.14.0; sample, retrain, evaluate, export 3.15.1"
    assert html.unescape(report.html(work, CONFIG)).count(told) == 2  # in a sentence, and in the table


def test_the_report_repeats_a_run_without_what_tune_would_try(tmp_path):
    tuned = dataclasses.replace(CONFIG, tune=Tune(learning_rate=(0.123, 0.2)))
    text = report.html(made(tmp_path), tuned)
    assert "again.py" in text and "0.123" not in text
