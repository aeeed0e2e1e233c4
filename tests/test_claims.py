"""The study of the paper's claims: what decides them, what its pages are made of, and that nothing is done twice."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import ROOT, load_config
from scipy import stats

from benchmarks.claims import __main__ as command
from benchmarks.claims import sampling
from benchmarks.claims.claim import FAILS, HOLDS, UNTESTED, Claim, Report, Verdict, decided, markdown
from benchmarks.claims.study import Pool, Study
from tfnas.common.errors import UserError


def test_a_claim_holds_if_its_whole_interval_is_above_zero(rng):
    for shift in (-2.0, 0.0, 0.4, 2.0):
        gains = rng.normal(shift, 1.0, 6)
        low, high = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
        verdict = decided("more", gains)
        assert verdict.status == (HOLDS if low > 0 else FAILS)
        assert f"{np.mean(gains):+.2f} ({low:+.2f} to {high:+.2f}) points" in verdict.numbers
        assert ("the opposite does" in verdict.numbers) == (high < 0)


def test_one_seed_decides_nothing():
    verdict = decided("more", [3.0])
    assert verdict.status == FAILS and "opposite" not in verdict.numbers


def test_reliability_is_that_of_the_model_it_is_defined_by(rng):
    """Scores of a true value (variance 1) and noise in each of n examples (variance s): 1 / (1 + s / n)."""
    candidates, examples = 20_000, 40
    true = rng.normal(size=(candidates, 1))
    for variance in (4.0, 40.0):
        values = true + np.sqrt(variance) * rng.normal(size=(candidates, examples))
        expected = 1 / (1 + variance / examples)
        assert sampling.reliability(values, rng) == pytest.approx(expected, abs=0.02)
    assert sampling.reliability(np.ones((5, 10)), rng) == 0.0


def test_the_winner_has_the_smallest_validation_loss():
    losses = np.array([[1.0, 3.0], [1.5, 1.0], [0.5, 4.0]], np.float32)
    hits = np.array([[True, False], [False, False], [True, True]])
    pool = Pool([None] * 3, np.array([10, 20, 30]), losses, hits, losses, ~hits)
    assert pool.winner == 1
    assert pool.summary()["test"] == 1.0 and pool.summary()["parameters"] == 20
    assert pool.summary()["mean_test"] == pytest.approx(np.mean([0.5, 1.0, 0.0]))


def test_a_replayed_race_finds_the_best_of_the_pool(rng):
    from tfnas.ranking import racing

    losses = rng.exponential(size=(30, 400)).astype(np.float32)
    losses[17] *= 0.5
    outcome = racing.race(sampling._Replayed(losses, rng.permutation(400)), 30, 400)
    assert outcome.winner == 17 and outcome.saved > 0.1


def _claim(measure):
    def report(found):
        rows = [(str(seed), f"{record['gain']}") for seed, record in found.items()]
        gains = [record["gain"] for record in found.values()]
        return Report(markdown(("seed", "gain"), rows), [decided("It helps", gains)], lambda figure: figure.subplots())

    return Claim("Table 0: a title", "What is measured.", measure, report, beyond=True)


def test_what_is_measured_is_kept_and_pages_are_made_from_it_alone(tmp_path, monkeypatch):
    measured = []

    def measure(study, seed):
        measured.append(seed)
        return {"gain": seed + 1.0}

    monkeypatch.setattr(command, "CLAIMS", {"table0": _claim(measure)})
    study = Study(load_config("claims_quick").check(), tmp_path / "work")
    command.measured(study, "table0", [0, 1])
    found = command.measured(study, "table0", [0, 1, 2])
    assert measured == [0, 1, 2]
    folder = tmp_path / "results" / "claims" / "digits"
    command.export("table0", found, "the command", folder)
    page, picture = (folder / "table0.md").read_text(), (folder / "table0.svg").read_text()
    assert page.startswith("# Table 0: a title\n\n`the command`\n\nSeeds 0, 1, 2. ")
    assert "| 2 | 3.0 |" in page and "- It helps: **does not hold here** (+2.00 (-0.48 to +4.48) points" in page
    assert picture.startswith("<?xml") and "![Table 0: a title](table0.svg)" in page
    raw = json.loads((folder / "table0.json").read_text())
    assert raw["seeds"]["2"]["record"] == {"gain": 3.0} and raw["machine"]
    for made in ("table0.md", "table0.svg"):
        (folder / made).unlink()
    command.render("table0", folder)
    assert (folder / "table0.md").read_text() == page and (folder / "table0.svg").read_text() == picture
    command.export("table0", {0: {**found[0], "record": {"gain": 5.0}}, 1: found[1]}, "it", folder.parent / "other")
    (line,) = (line for line in command.summary(folder.parent).splitlines() if "It helps" in line)
    assert line.startswith(
        "| Table 0 * | It helps | [does not hold here](claims/digits/table0.md): +2.00 (-0.48 to +4.48) points | "
        "[does not hold here](claims/other/table0.md): +3.50 ("
    )


def test_every_published_figure_that_is_not_tested_says_why():
    from benchmarks.claims import anchors

    record = {
        "counts": dict.fromkeys(anchors._NETWORKS, 26.2),
        **{"gated": 6.86, "expected": 6.6, "kept": 6.6, "deviation": 0.0, "dropped": 0.05},
    }
    verdicts = anchors.CLAIMS["anchors"].report({0: record}).verdicts
    by_status = {status: [v for v in verdicts if v.status == status] for status in (HOLDS, FAILS, UNTESTED)}
    assert [v.claim for v in by_status[HOLDS]] == [
        "SupNet-M has 26.2 M parameters",
        "The published posterior of DenseNet-121 keeps 6.6 M weights",
        "The published ranking's best is as far above its mean as the best of 1,500 normal draws",
    ]
    assert len(by_status[UNTESTED]) == 4 and all(v.numbers for v in by_status[UNTESTED])
    assert Verdict("SupNet-E has 4.6 M parameters", FAILS, "26.20 M counted") in by_status[FAILS]


def test_the_published_best_is_compared_with_that_of_normal_draws(rng):
    from benchmarks.claims import anchors

    best = rng.normal(size=(4000, 1500)).max(1)
    numbers = anchors._spread().numbers
    above, low, high = (float(number) for number in re.findall(r"\d\.\d\d", numbers)[:3])
    assert above == pytest.approx(0.17 / 0.06, abs=0.006)
    assert np.quantile(best, [0.025, 0.975]) == pytest.approx([low, high], abs=0.05)


def test_other_settings_and_another_search_are_refused(tmp_path):
    config = load_config("claims_quick").check()
    Study(config, tmp_path)
    other = dataclasses.replace(config, sample=dataclasses.replace(config.sample, num_candidates=7))
    with pytest.raises(UserError, match="holds a study with other settings"):
        Study(other, tmp_path)
    with pytest.raises(UserError, match="the published search expected, with search.ell2. Received: "):
        Study(load_config("digits").check(), tmp_path / "other")


def test_pages_show_what_the_records_have():
    for file in sorted((ROOT / "docs/results/claims").glob("*/*.json")):
        raw, found = command._kept(file.stem, file.parent)
        page, report = file.with_suffix(".md").read_text(), command.CLAIMS[file.stem].report(found)
        assert f"`{raw['command']}`" in page and raw["machine"] in page and report.table.rstrip() in page, file
        for verdict in report.verdicts:
            assert f": **{verdict.status}** ({verdict.numbers}).\n" in page, (file, verdict)
    assert command.summary(ROOT / "docs/results/claims") == (ROOT / "docs/results/claims.md").read_text()
