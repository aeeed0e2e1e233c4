"""The table and the HTML report, from a run's files that were made by hand."""

import dataclasses
import json
import re

import pytest
from reports import (
    BOUNDED,
    CONFIG,
    FOUND,
    FRONT,
    FULL,
    KINDS,
    MEAN,
    POSTERIOR,
    UNITS,
    Page,
    compared,
    ended,
    epoch,
    left,
    made,
    paired,
    said,
    table,
)

from tfnas import config as config_lib
from tfnas.common.errors import UserError
from tfnas.reporting import report
from tfnas.runs import stage_table, workdir
from tfnas.runs.sampled import Kind
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior


def test_table_shows_what_retrain_measured(tmp_path):
    lines = table(made(tmp_path)).splitlines()
    assert lines[0].split() == ["network", "valid.", "test", "parameters", "mult-adds", "file", "latency"]
    assert re.search(r"budget +99\.0 % +98\.5 % +20,000 +2\.00 M +300 kB +2\.00 ms \(1\.00x\)", lines[1])
    assert re.search(r"mean of 3 +97\.0 % +96\.1 % +5,000 +0\.70 M +- +-", lines[2])
    assert re.search(r"retrained +98\.0 % +97\.8 % +5,000 +0\.50 M +90 kB +1\.00 ms \(0\.50x\)", lines[3])
    assert "of the first 2 candidates" in lines[4]


def test_top_5_has_a_column_where_it_was_measured(tmp_path):
    work = made(tmp_path, rows=(FULL, MEAN, {**FOUND, "test": {"accuracy": 0.9775, "top5_accuracy": 0.9912}}))
    lines = table(work).splitlines()
    assert lines[0].split()[2:5] == ["test", "top-5", "parameters"]
    assert re.search(r"budget +99\.0 % +98\.5 % +- +20,000", lines[1])
    assert re.search(r"retrained +98\.0 % +97\.8 % +99\.1 % +5,000", lines[3])
    page = said(work)
    assert ">top-5</th>" in page and "<td>99.1 %</td>" in page


def test_page_after_a_search_with_bounds(tmp_path):
    work = made(tmp_path, config=BOUNDED, posterior=UNITS, rows=(FULL, FOUND))
    page = Page(report.html(work, BOUNDED))
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert (
        "Width of every group of channel units: before, in the network found, and as the posterior expects it"
        in page.labels
    )
    text = said(work, BOUNDED)
    # 100 / 27 - 18 / 27 = 3.04 units; the branch's two are the least probable.
    assert "3 of 6 channel units are kept; 1 of 2 groups are removed" in text
    assert text.count(">removed</text>") == 1 and ">3 of 4</text>" in text
    assert "5 of 6 units are decided" in text and row(text, "stage1_a_conv1", "2", "0.500")
    # 18 + 27 x 6; 18 + 27 x (3 x 0.982 + 0.5 + 2 x 0.018)
    assert "The full network has 180 weights, of which 112 are expected to be kept" in text
    assert "Random candidates obey the same bounds as the posterior's" in text
    assert "posterior.sample(n, parameters=...)" in text and "layers that change most" in text
    work = made(
        tmp_path / "latency",
        config=BOUNDED,
        posterior=UNITS,
        alter=lambda ranking: ranking.update(latency={"asked": 0.5, "predicted": 0.45, "measured": 0.49}),
    )
    assert "was measured at 49.0 %, as 45.0 % was predicted from its layers" in said(work, BOUNDED)
    assert "candidates within it were drawn" in said(
        made(tmp_path / "front", config=BOUNDED, posterior=UNITS, front=FRONT), BOUNDED
    )


@pytest.mark.parametrize("spread, warned", [(None, False), (2.0, False), (2.46, True)])
def test_latencies_of_a_busy_machine_are_told(tmp_path, spread, warned):
    work = made(tmp_path, spread=spread)
    words = "The machine was busy when latencies were measured: a network's differ by up to 2.5 x between rounds."
    assert (words in table(work)) == warned
    assert (words in said(work)) == warned


def test_table_without_the_full_network(tmp_path):
    assert re.search(r"retrained .* 1\.00 ms\s*$", table(made(tmp_path, rows=(MEAN, FOUND))), re.MULTILINE)


def test_table_needs_retrain(tmp_path):
    with pytest.raises(UserError, match="report needs retrain's retrain/results.json"):
        report.print_table(workdir.Workdir(tmp_path), CONFIG)


def test_page_answers_the_six_questions_in_order(tmp_path):
    page = Page(report.html(made(tmp_path), CONFIG))
    assert not page.open
    assert page.headings == [
        "What did I get, and what did it cost?",
        "Is it better than chance, and than pruning?",
        "What does the network look like now, and why?",
        "What would a smaller or larger budget give?",
        "How do I serve it?",
        "How do I repeat it?",
    ]


def test_page_has_every_plot_and_loads_nothing(tmp_path):
    page = Page(report.html(made(tmp_path), CONFIG))
    assert page.labels == [
        "Histogram of validation accuracy by kind of candidate, each on the 40 to 80 examples it was evaluated on",
        "Validation accuracy against parameters, every candidate on the 40 to 80 examples it was evaluated on",
        "Fresh accuracy of the best of so many candidates, with 95 % intervals: of every kind, and of the "
        "posterior's alone",
        "Share of its input channels that every gated operation reads in the network found",
        "Mean drop probability over the search, by layer or group",
        "Loss and expected share of what is kept over the search",
    ]
    assert len(page.ids) == len(set(page.ids))
    assert page.links and all(link.startswith(("#", "data:")) for link in page.links)


def test_page_says_the_figures(tmp_path):
    text = said(made(tmp_path))
    assert "A network of 5,000 parameters with 97.8 % on test: 25 % of the full network's parameters" in text
    assert "25 % of its multiply-adds" in text and "the full one reaches 98.5 %" in text
    assert "2 of 3 gates are decided" in text  # 0.02 and 0.99 are, 0.5 is not
    assert "have 72 weights, of which 44 are expected" in text  # 9 x (4 x 0.98 + 2 x 0.5 + 2 x 0.01) = 44.46
    assert "search.ell2</td><td>160" in text


def row(text, *cells):
    """Whether a table of the page has this row."""
    return "".join(f"<td>{cell}</td>" for cell in cells) in text


def test_page_tells_how_each_kind_was_raced(tmp_path):
    text = said(made(tmp_path))
    # Wilson's interval of 17 of 20 is 0.6396 to 0.9476, of 15 of 20 0.5313 to 0.8881.
    first = ("posterior", "3", "90.0 ± 1.0 %", "67 %", "0.250", "90.0 %", "0.375", "85.0 % (64.0 to 94.8)", "1")
    second = (KINDS[1], "3", "80.0 ± 1.0 %", "67 %", "1.250", "80.0 %", "1.375", "75.0 % (53.1 to 88.8)", "1")
    assert row(text, *first) and row(text, *second)
    assert "on 80 examples" in text and "on 20 fresh ones" in text and "the best of many is partly the luckiest" in text
    assert "accuracies of the first 2 candidates that were drawn" in text
    assert "the best of 2 is within half a point of the best of all 3" in text  # 91.6 of 92.0 %; the best of 1 has 90.0


def test_page_of_candidates_evaluated_in_full_without_fresh_examples(tmp_path):
    def alter(ranking):
        for found in ranking["kinds"].values():
            found["race"] |= {"saved": 0.0, "fresh": None, "ties": [], "best_of": []}

    text = said(made(tmp_path, alter=alter))
    assert row(text, "posterior", "3", "90.0 ± 1.0 %", "all", "0.250", "90.0 %", "-", "-", "0")
    assert "No examples were kept from the race" in text and "fresh ones" not in text
    assert "How many samples" not in text
    assert "It was not compared with chance: no examples were kept from the race to do it on (sample.holdout" in text


def test_page_of_a_kind_without_a_winner(tmp_path):
    def alter(ranking):
        ranking["kinds"][KINDS[1]]["race"] = None
        for kind in (KINDS[0], KINDS[2]):
            del ranking["kinds"][kind]["race"]["best_of"][1:]

    work = made(tmp_path, alter=alter)
    assert not Page(report.html(work, CONFIG)).open
    text = said(work)
    assert row(text, KINDS[1], "3", "80.0 ± 1.0 %", "-", "-", "-", "-", "-", "-")
    assert "half a point" not in text  # a single candidate has no curve to read that from


def test_page_shows_a_layer_as_removed_that_keeps_channels_and_does_no_work(tmp_path):
    """Whatever its mask keeps: what ranking.json says that it reads is what the network has."""

    def dead(ranking):
        ranking["reads"] = {name: None for name in ranking["reads"]}

    page = said(made(tmp_path, alter=dead))
    names = [gates.name for gates in POSTERIOR.layers]
    assert f"{len(names)} of {len(names)} operations are removed" in page
    assert page.count(">removed</text>") == len(names)
    work = made(tmp_path / "other", alter=lambda ranking: ranking["reads"].pop(names[0]))
    with pytest.raises(UserError, match="the layers of sample/ranking.json are not those of architecture.json"):
        said(work)


def test_page_measures_probabilities_where_the_run_did(tmp_path):
    measured = {"accuracy": [0.95, 0.9, 0.975], "nll": [0.125, 0.064, 250.0], "ece": 0.04}
    text = said(made(tmp_path / "a", predictive={"ensemble of the 5 best": measured}))
    assert row(text, "ensemble of the 5 best", "95.0 % (90.0 to 97.5)", "0.125 (0.064 to 250)", "4.0 %")
    assert "On the 20 fresh examples" in text and "Monte-Carlo" in text
    assert "Monte-Carlo" not in said(made(tmp_path / "b"))


def test_page_lists_the_undecided_gates(tmp_path):
    text = said(made(tmp_path / "a"))
    assert row(text, "stage1_b_conv1", "0", "0.500")  # of groups 0 and 1; the other has 0.99, the other layer 0.02
    assert "No gate is undecided" not in text
    many = Posterior((LayerGates("a", (4,), (0.02,), 9), LayerGates("b", (1,) * 12, (0.3125,) * 12, 9)))
    text = said(made(tmp_path / "b", posterior=many))
    assert text.count("<td>0.312</td>") == 10 and "the 10 most undecided of 12" in text
    none = Posterior((LayerGates("a", (4,), (0.02,), 9), LayerGates("b", (2, 2), (0.01, 0.99), 9)))
    assert "No gate is undecided" in said(made(tmp_path / "c", posterior=none))


def test_page_shows_the_front_that_sample_measured(tmp_path):
    work = made(tmp_path, front=FRONT)
    text, page = said(work), Page(report.html(work, CONFIG))
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert "Validation accuracy of the networks found against their cost" in page.labels
    assert row(text, "30 %", "30.0 ± 10.0 %", "3,000", "0.30 M", "65.0 %", "70.0 %", "68.0 %")
    assert row(text, "as searched", "60.0 ± 10.0 %", "5,000", "0.50 M", "85.0 %", "90.0 %", "88.0 %")
    assert "multiply-adds of the gated layers" in text
    assert "layers that change most" not in text and "--config.sample.budgets" not in text


def test_page_without_a_front_says_how_to_get_one(tmp_path):
    work = made(tmp_path)
    left(work, FRONT)  # of an earlier run: the manifest does not have it
    text = said(work)
    assert "layers that change most" in text and "--config.sample.budgets=0.3,0.5,0.7" in text
    assert "Validation accuracy of the networks found" not in text


def test_report_is_out_of_date_when_the_front_changes(tmp_path):
    work = made(tmp_path)
    without = work.key("report", CONFIG)
    left(work, FRONT)
    assert work.key("report", CONFIG) == without  # not recorded: of an earlier run
    keys = [without]
    for front in (FRONT, FRONT[:1]):
        left(work, front)
        ended(work, "sample", CONFIG, stage_table.FRONT)
        keys.append(work.key("report", CONFIG))
    assert len(set(keys)) == 3


def test_report_refuses_an_altered_front(tmp_path):
    work = made(tmp_path, front=FRONT)
    left(work, FRONT[:1])
    with pytest.raises(UserError, match=r"front.json: truncated or changed since sample wrote it"):
        work.run_stage("report", CONFIG, lambda: pytest.fail("the front was altered"))


def test_table_and_page_with_every_network_of_a_run(tmp_path):
    kinds = {
        "random, allocated per layer, best of 1,500": Kind.ALLOCATED,
        "fixed drop, best of 1,500": Kind.FIXED_DROP,
        "single path, fine-tuned": Kind.SINGLE_PATH,
        "magnitude pruning, fine-tuned": Kind.MAGNITUDE_PRUNING,
        "deterministic candidate": Kind.DETERMINISTIC,
    }
    large = {**FULL, "parameters": 72_695_194, "multiply_adds": 11_000_000_000, "file_bytes": 300_000_000}
    named = {FULL["name"]: Kind.FULL, **kinds}
    rows = (*({**large, "name": name, "kind": kind, "latency_seconds": 0.1} for name, kind in named.items()), FOUND)
    work = made(tmp_path, rows=rows)
    assert [line.strip() for line in table(work).splitlines()[2:7]] == [
        f"{name:42}  99.0 %  98.5 %  72,695,194  11,000.00 M  300,000 kB  100.00 ms (1.00x)" for name in kinds
    ]
    text = said(work)
    notes = (
        "Fixed drop: the best",
        "Single path: where",
        "Magnitude pruning: the full",
        "Deterministic candidate: every",
    )
    places = [text.index(note) for note in notes]
    assert places == sorted(places)
    assert not any(note in said(made(tmp_path / "other")) for note in notes)


def test_page_compares_with_no_full_network_that_was_not_trained(tmp_path):
    words = "Trained for the same total number of epochs, the full one reaches"
    assert f"{words} 98.5 %." in said(made(tmp_path / "a", rows=(FULL, MEAN, FOUND)))
    untrained = {**FULL, "test": {"accuracy": 0.5}}
    text = said(made(tmp_path / "b", rows=(untrained, MEAN, FOUND)))
    assert words not in text and "25 % of its multiply-adds.</p>" in text and "is not a fair comparison" in text


def test_page_without_baseline_and_retraining(tmp_path):
    before = {**FOUND, "name": "found network, before retraining"}
    text = said(made(tmp_path, rows=(MEAN, before)))
    assert "A network of 5,000 parameters with 97.8 % on test.</p>" in text


def test_page_escapes_what_users_name(tmp_path):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, name="<b>&mine"))
    text = report.html(made(tmp_path, config=config), config)
    assert "<b>" not in text and "<title>tfnas: &lt;b&gt;&amp;mine</title>" in text


def test_page_refuses_an_altered_file(tmp_path):
    work = made(tmp_path)
    (work.path / stage_table.HISTORY).write_text("")
    with pytest.raises(UserError, match="truncated or changed since search wrote it"):
        said(work)


def test_page_says_whether_it_is_better_than_chance(tmp_path):
    def page(name, *pairs):
        def alter(ranking):
            ranking["comparisons"] = dict(zip(KINDS[1:], (compared(*pair) for pair in pairs), strict=False))

        return said(made(tmp_path / name, alter=alter))

    text = page("a", (80, 0, 1e-24), (9, 1, 0.0215))
    assert "Better than chance: before retraining, on the same 100 fresh examples, of 3 candidates of either" in text
    assert "the posterior's best has 90.0 % (82.6 to 94.5)" in text
    assert f"the best {KINDS[1]} 10.0 % (5.5 to 17.4): 80 are right by the former alone, 0 by the latter" in text
    assert "(McNemar's test: p < 0.001)" in text and "p = 0.021" in text
    # One kind that it is not told apart from, or that is better, is enough.
    assert f"Not distinguishable from chance, from '{KINDS[2]}', with" in page("b", (80, 0, 1e-24), (8, 2, 0.109))
    assert f"from '{KINDS[1]}' and '{KINDS[2]}', with" in page("e", (2, 8, 0.109), (8, 2, 0.109))
    assert f"Worse than chance, than '{KINDS[1]}': before" in page("c", (1, 9, 0.0215), (8, 2, 0.109))
    assert "It was not compared with chance: no random candidate reaches the output." in page("d")


def test_page_says_why_there_are_fewer_candidates_than_asked_for(tmp_path):
    def alter(ranking):
        ranking["kinds"]["posterior"] |= {
            "able": 1,
            "left_out": "1 of 3 candidates can be compared; left out: 2 without a path to the output",
        }

    assert "posterior: 1 of 3 candidates can be compared; left out: 2 without a path to the output." in said(
        made(tmp_path, alter=alter), CONFIG
    )


@pytest.mark.parametrize(
    ("pair", "verdict"),
    [((9, 1, 0.0215), "Better than"), ((8, 2, 0.109), "Not distinguishable from"), ((1, 9, 0.0215), "Worse than")],
)
def test_page_says_whether_it_is_better_than_pruning(tmp_path, pair, verdict):
    kind = "magnitude pruning"
    facts = {"kind": kind, "parameters": 4_990, "paired": paired(*pair)}
    pruned = {**FULL, "name": "magnitude pruning, fine-tuned", **facts}
    # The one that is better on validation is compared, not the one that is better on test.
    other = {**pruned, "name": "magnitude pruning", "validation": {"accuracy": 0.5}, "test": {"accuracy": 1.0}}
    text = said(made(tmp_path, rows=(other, pruned, FOUND)))
    # The confusion has 80 test images.
    assert f"{verdict} pruning" in text and "on the same 80 test examples, the network found has 97.8 % (" in text
    assert re.search(r"magnitude pruning, fine-tuned 98\.5 % \([\d.]+ to [\d.]+\) with 4,990 \(in brackets", text)


def test_page_says_how_to_compare_with_pruning(tmp_path):
    text = said(made(tmp_path))
    assert "not compared with pruning" in text and "--config.retrain.baselines=magnitude_pruning" in text


def test_page_and_table_show_other_cuts_within_the_same_bounds(tmp_path):
    norm = {
        **FOUND,
        "name": "group norm, same weights",
        "kind": "group norm",
        "way": "refitted",
        "test": {"accuracy": 0.5},
    }
    before = {**FOUND, "name": "found network, before retraining", "way": "as cut"}
    trained = {
        **norm,
        "name": "group norm, trained alike",
        "way": None,
        "fine_tuned": True,
        "paired": paired(9, 1, 0.0215),
    }
    work = made(tmp_path, rows=(norm, trained, before, FOUND), config=BOUNDED, posterior=UNITS)
    text = said(work, BOUNDED)
    words = "same weights and without any training, group norm has 50.0 % on test (refitted), found network has 97.8 %"
    assert words in text and "Group norm: the channels with the largest weights" in text
    assert "Better than pruning" in text and "group norm, trained alike 50.0 %" in text
    assert re.search(r"group norm, same weights \(refitted\) +98\.0 % +50\.0 %", table(work, BOUNDED))
    assert "means are of" not in text


def test_page_says_what_the_run_took(tmp_path):
    work = made(tmp_path)
    (tmp_path / stage_table.REPORT).write_text("an earlier one")
    for stage, seconds in (("search", 51.8), ("retrain", 7300.0), ("evaluate", 0.0), ("report", 9.0)):
        ended(work, stage, CONFIG, seconds=seconds)
    text = said(work)
    assert "It took 2 h 3 min on the machine" in text and "search 52 s, retrain 2 h 2 min." in text
    assert "It took" not in said(made(tmp_path / "unknown"))


def test_page_says_which_layers_were_decided_early_and_which_are_open(tmp_path):
    # 'early' stays where it starts, 'late' moves until the fourth of five epochs.
    posterior = Posterior((LayerGates("early", (4,), (0.02,), 9), LayerGates("late", (2, 2), (0.5, 0.99), 9)))
    work = made(tmp_path, posterior=posterior)
    history = [
        epoch(e, 1, {"early": [0.02], "late": [0.5, p]}) for e, p in enumerate((0.1, 0.3, 0.9, 0.97, 0.99), start=1)
    ]
    work.file(stage_table.HISTORY).write_text("".join(json.dumps(record) + "\n" for record in history))
    ended(work, "search")
    text = said(work)
    assert "first quarter of the search: 1 of 2 layers; last: late (epoch 4)." in text
    assert "Most gates still open: late (1)." in text
    assert row(text, "1", "0", "1") and row(text, "4", "1", "2")  # settled in, open, gates


def test_page_has_a_config_file_that_repeats_the_run(tmp_path):
    other = config_lib.from_config_dict(
        {
            **config_lib.to_dict(BOUNDED),
            "seed": 7,
            "search": {"epochs": 12, "boundaries": (3.0, 6.0), "schedule": "steps"},
        }
    )
    for config in (CONFIG, BOUNDED, other):
        scope = {}
        exec(report.config_file(config), scope)
        assert config_lib.from_config_dict(scope["get_config"]()) == config
    assert "seed=7" in report.config_file(other) and "threshold=0.9" in report.config_file(other)
    text = said(made(tmp_path, config=BOUNDED, posterior=UNITS), BOUNDED)
    assert " ".join(report.config_file(BOUNDED).split()) in text and "--config=again.py" in text


def test_two_budgets_may_find_one_network(tmp_path):
    twice = [FRONT[0], {**FRONT[0], "share": 0.4}, FRONT[1]]
    assert "40 %" in said(made(tmp_path, front=twice))


def test_page_does_not_tell_of_an_export_of_other_settings(tmp_path):
    work = made(tmp_path)
    assert "serving_default" in said(work)
    other = dataclasses.replace(CONFIG, export=dataclasses.replace(CONFIG.export, version=2))
    text = said(work, other)
    assert "It has not been exported yet" in text and "serving_default" not in text
