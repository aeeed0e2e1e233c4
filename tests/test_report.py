"""The table and the HTML report, from a run's files that were made by hand."""

import dataclasses
import html.parser
import io
import json
import re
import zlib

import pytest
import rich.console
from conftest import load_config

from tfnas import report, workdir
from tfnas.errors import UserError
from tfnas.posterior import LayerGates, Posterior

FULL = {
    "name": "full network, same total budget",
    "validation_accuracy": 0.99,
    "test_accuracy": 0.985,
    "parameters": 20_000,
    "multiply_adds": 2_000_000,
    "file_bytes": 300_000,
    "latency_seconds": 0.002,
}
MEAN = {
    "name": "posterior, mean of 3",
    "validation_accuracy": 0.97,
    "test_accuracy": 0.961,
    "num_tested": 2,
    "parameters": 5_000.4,
    "multiply_adds": 700_000.0,
}
FOUND = {
    "name": "found network, retrained",
    "validation_accuracy": 0.98,
    "test_accuracy": 0.9775,
    "parameters": 5_000,
    "multiply_adds": 500_000,
    "file_bytes": 90_000,
    "latency_seconds": 0.001,
}
KINDS = ("posterior", "random, spread evenly", "random, allocated per layer")
POSTERIOR = Posterior(
    (LayerGates("stage1_a_conv1", (4,), (0.02,), 9), LayerGates("stage1_b_conv1", (2, 2), (0.5, 0.99), 9))
)
CONFIG = load_config("digits")


def made(path, rows=(FULL, MEAN, FOUND), config=CONFIG):
    """A working directory as the stages before report leave it."""
    work = workdir.Workdir(path)
    work.claim(config)
    probabilities = {gates.name: list(gates.drop_probability) for gates in POSTERIOR.layers}
    history = [{"epoch": e, "loss": 2 / e, "kept": 0.9, "drop_probability": probabilities} for e in range(1, 6)]
    records = [
        {"kind": kind, "number": i, "accuracy": 0.9 - 0.1 * k, "parameters": 5_000 + i}
        for k, kind in enumerate(KINDS)
        for i in range(3)
    ]
    kinds = {
        kind: {"count": 3, "mean_accuracy": 0.9 - 0.1 * k, "std_accuracy": 0.01, "best": records[3 * k]}
        for k, kind in enumerate(KINDS)
    }
    lines = [json.dumps(line) for line in [{"key": "k"}, *records]]
    contents = {
        workdir.SUPERNET: "",
        workdir.HISTORY: "".join(json.dumps(record) + "\n" for record in history),
        workdir.POSTERIOR: POSTERIOR.to_json(),
        workdir.CANDIDATES: "".join(f"{zlib.crc32(line.encode()):08x} {line}\n" for line in lines),
        workdir.RANKING: json.dumps({"rank_by": "loss", "kinds": kinds}),
        workdir.ARCHITECTURE: POSTERIOR.sample(1, seed=0)[0].to_json(),
        workdir.CUT_ARCHITECTURE: "",
        workdir.SUBNET: "",
        workdir.RESULTS: json.dumps({"chosen": rows[-1]["name"], "rows": list(rows)}),
        workdir.EXPORT_RESULTS: json.dumps({"saved_model": "export/digits/1", "largest_difference": 1e-7}),
    }
    for name, text in contents.items():
        work.file(name).write_text(text)
    manifest = work.manifest()
    for stage, spec in workdir.STAGES.items():
        if stage != "report":
            outputs = {name: workdir.digest(work.path / name) for name in spec.outputs}
            manifest["stages"][stage] = {"key": work.key(stage, config), "outputs": outputs}
    work.write_json("manifest.json", manifest)
    return work


def table(work):
    stream = io.StringIO()
    report.print_table(work, rich.console.Console(file=stream, width=116))
    return stream.getvalue()


class Page(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects what the tests ask for."""

    EMPTY = {"meta", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.labels, self.ids, self.links = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "svg":
            self.labels.append(attributes["aria-label"])
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [v for k, v in attributes.items() if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_table_shows_what_retrain_measured(tmp_path):
    lines = table(made(tmp_path)).splitlines()
    assert lines[0].split() == ["network", "valid.", "test", "parameters", "mult-adds", "file", "latency"]
    assert re.search(r"budget +99\.0 % +98\.5 % +20,000 +2\.00 M +300 kB +2\.00 ms \(1\.00x\)", lines[1])
    assert re.search(r"mean of 3 +97\.0 % +96\.1 % +5,000 +0\.70 M +- +-", lines[2])
    assert re.search(r"retrained +98\.0 % +97\.8 % +5,000 +0\.50 M +90 kB +1\.00 ms \(0\.50x\)", lines[3])
    assert "of the first 2 candidates" in lines[4]


def test_table_without_the_full_network(tmp_path):
    assert re.search(r"retrained .* 1\.00 ms\s*$", table(made(tmp_path, rows=(MEAN, FOUND))), re.MULTILINE)


def test_table_needs_retrain(tmp_path):
    with pytest.raises(UserError, match="report needs retrain's retrain/results.json"):
        report.print_table(workdir.Workdir(tmp_path))


def test_page_answers_the_six_questions_in_order(tmp_path):
    page = Page(report.html(made(tmp_path), CONFIG))
    assert not page.open
    assert page.headings == [
        "What did I get, and what did it cost?",
        "Is it better than chance?",
        "What does the network look like, and why?",
        "What would another size give?",
        "How do I serve it?",
        "How do I repeat it?",
    ]


def test_page_has_every_plot_and_loads_nothing(tmp_path):
    page = Page(report.html(made(tmp_path), CONFIG))
    assert page.labels == [
        "Histogram of validation accuracy by kind of candidate",
        "Validation accuracy against parameters of every candidate",
        "Share of input channels kept in every gated operation",
        "Drop probability of every gate over the search",
        "Loss and expected share of weights kept over the search",
    ]
    assert len(page.ids) == len(set(page.ids))
    assert page.links and all(link.startswith(("#", "data:")) for link in page.links)


def test_page_says_the_figures(tmp_path):
    text = report.html(made(tmp_path), CONFIG)
    assert "A network of 5,000 parameters with 97.8 % on test: 25 % of the full network&#x27;s parameters" in text
    assert "25 % of its multiply-adds" in text and "the full one reaches 98.5 %" in text
    assert "random, spread evenly: mean 80.0 %, deviation 1.0, 3 candidates" in text
    assert "2 of 3 gates are decided" in text  # 0.02 and 0.99 are, 0.5 is not
    assert "have 72 weights, of which 44 are expected" in text  # 9 x (4 x 0.98 + 2 x 0.5 + 2 x 0.01) = 44.46
    assert "search.ell2</td><td>160.0" in text


def test_table_and_page_with_every_network_of_a_run(tmp_path):
    names = (
        "random, allocated per layer, best of 1,500",
        "fixed drop, best of 1,500",
        "single path, fine-tuned",
        "magnitude pruning, fine-tuned",
        "deterministic candidate",
    )
    large = {**FULL, "parameters": 72_695_194, "multiply_adds": 11_000_000_000, "file_bytes": 300_000_000}
    rows = (*({**large, "name": name, "latency_seconds": 0.1} for name in (FULL["name"], *names)), FOUND)
    work = made(tmp_path, rows=rows)
    assert [line.strip() for line in table(work).splitlines()[2:7]] == [
        f"{name:42}  99.0 %  98.5 %  72,695,194  11,000.00 M  300,000 kB  100.00 ms (1.00x)" for name in names
    ]
    text = report.html(work, CONFIG)
    notes = (
        "Fixed drop: the best",
        "Single path: where",
        "Magnitude pruning: the full",
        "Deterministic candidate: every",
    )
    places = [text.index(note) for note in notes]
    assert places == sorted(places)
    assert not any(note in report.html(made(tmp_path / "other"), CONFIG) for note in notes)


def test_page_without_baseline_and_retraining(tmp_path):
    before = {**FOUND, "name": "found network, before retraining"}
    text = report.html(made(tmp_path, rows=(MEAN, before)), CONFIG)
    assert "A network of 5,000 parameters with 97.8 % on test.</p>" in text


def test_page_escapes_what_users_name(tmp_path):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, name="<b>&mine"))
    text = report.html(made(tmp_path, config=config), config)
    assert "<b>" not in text and "<title>tfnas: &lt;b&gt;&amp;mine</title>" in text


def test_page_refuses_an_altered_file(tmp_path):
    work = made(tmp_path)
    (work.path / workdir.HISTORY).write_text("")
    with pytest.raises(UserError, match="truncated or changed since search wrote it"):
        report.html(work, CONFIG)
