"""The files of a finished run, made by hand, and readers of its table and page."""

import html
import html.parser
import io
import json

import rich.console
from conftest import load_config

from tfnas.common import digests
from tfnas.reporting import report
from tfnas.runs import stage_table, workdir
from tfnas.runs.manifest import Finished
from tfnas.search_space.closed_form import ClosedForm, Group, Term, Width
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior

FULL = {
    "name": "full network, same total budget",
    "kind": "full network",
    "validation": {"accuracy": 0.99},
    "test": {"accuracy": 0.985},
    "parameters": 20_000,
    "multiply_adds": 2_000_000,
    "file_bytes": 300_000,
    "latency_seconds": 0.002,
}
MEAN = {
    "name": "posterior, mean of 3",
    "kind": "posterior",
    "validation": {"accuracy": 0.97},
    "test": {"accuracy": 0.961},
    "num_tested": 2,
    "parameters": 5_000.4,
    "multiply_adds": 700_000.0,
}
FOUND = {
    "name": "found network, retrained",
    "kind": "found network",
    "validation": {"accuracy": 0.98},
    "test": {"accuracy": 0.9775},
    "parameters": 5_000,
    "multiply_adds": 500_000,
    "file_bytes": 90_000,
    "latency_seconds": 0.001,
}
MEASURED = {
    "full": {"parameters": 20_000, "multiply_adds": 2_000_000},
    "num_examples": 80,
    "confusion": [[39, 1], [0, 40]],
}
EXPORTED = {
    "saved_model": "export/digits/1",
    "card": "export/digits/model_card.md",
    "inputs": {"by_name": {"image": {"dtype": "uint8", "shape": [8, 8, 1]}}, "named": False},
    "outputs": ["probabilities"],
    "largest_difference": 1e-7,
    "test": 0.9875,
    "served": 0.9875,
    "files": [],
    "formats": [],
}
KINDS = ("posterior", "random, spread evenly", "random, allocated per layer")
POSTERIOR = Posterior(
    (LayerGates("stage1_a_conv1", (4,), (0.02,), 9), LayerGates("stage1_b_conv1", (2, 2), (0.5, 0.99), 9))
)
CONFIG = load_config("digits_paper")
# The same after a search with bounds: a group of four units and a branch of two, that may go.
BOUNDED = load_config("digits")
UNITS = UnitPosterior(
    ClosedForm(
        groups=(Group("stage1_a_conv1", 4, False, False), Group("stage1_b_conv1", 2, True, False)),
        widths=(Width(1), Width(3), Width(0, ((0, 1),)), Width(0, ((1, 1),))),
        terms={"parameters": (Term("a", 9, 1, 2), Term("b", 9, 1, 3, needs=(1,)), Term("head", 18, 0))},
        dead=((), ()),
    ),
    keep_logits=(4.0, 4.0, 0.0, 4.0, -4.0, -4.0),
    bounds={"parameters": 100.0},
)


def candidate(kind, number, loss, accuracy, parameters, num_examples, able=True):
    """What candidates.jsonl says of a candidate."""
    return {
        "kind": kind,
        "share": None,
        "number": number,
        "digest": "0" * 64,
        "parameters": parameters,
        "multiply_adds": 100 * parameters,
        "connected": able,
        "loss": loss,
        "metrics": {"accuracy": accuracy},
        "num_examples": num_examples,
    }


FRONT = [
    {
        "share": share,
        "expected": {"mean": 72 * kept, "deviation": 7.2, "total": 72},
        "mean_metric": accuracy - 0.05,
        "best": candidate("posterior", 0, 0.5, accuracy, parameters, 80),
        "fresh": {"loss": 0.6, "metrics": {"accuracy": accuracy - 0.02}, "num_examples": 20},
        "architecture": {},
    }
    for share, kept, parameters, accuracy in ((0.3, 0.3, 3_000, 0.7), (None, 0.6, 5_000, 0.9))
]


def race(best, fresh):
    """What ranking.json says of a race of three candidates on 80 examples."""
    return {
        "best": best,
        "architecture": {},
        # 0.85, 0.75, 0.65 are 17, 15, 13 of 20.
        "fresh": {"loss": best["loss"] + 0.125, "metrics": {"accuracy": fresh}, "num_examples": 20},
        "ties": [1],
        "evaluations": 160,
        "saved": 1 / 3,
        "best_of": [
            {"count": count, "mean": fresh + gain, "low": fresh + gain - 0.01, "high": fresh + gain + 0.01}
            for count, gain in ((1, 0.05), (2, 0.066), (3, 0.07))
        ],
        "leaders": [{}],
    }


def group(best, mean):
    """What ranking.json says of a kind of three candidates, raced on 80 examples."""
    return {
        "count": 3,
        "able": 3,
        "distinct": 3,
        "left_out": "",
        "num_measured": 2,
        "num_examples": 80,
        "mean_metric": mean,
        "std_metric": 0.01,
        "mean_loss": 1.0,
        "std_loss": 0.1,
        "mean_parameters": 5_001.0,
        "mean_multiply_adds": 500_100.0,
        "first": [{}, {}],
        "race": race(best, mean - 0.05),
    }


def ranking_of(candidates, **posterior):
    """ranking.json of one candidate of each kind, its winner; what `posterior` says of that kind is said instead."""
    kinds = {kind: group(best, 0.9 - 0.1 * k) for k, (kind, best) in enumerate(zip(KINDS, candidates, strict=True))}
    kinds["posterior"] |= posterior
    return {"rank_by": "loss", "reads": {}, "kinds": kinds, "comparisons": {}, "predictive": {}}


def paired(better, worse, p_value):
    """What a file says of the network found and another one on 100 examples."""
    return {"better": better, "worse": worse, "difference": (worse - better) / 100, "p_value": p_value}


def compared(better, worse, p_value, metric=0.9, other=0.1):
    """What ranking.json says of 3 candidates of the posterior's and of another kind on 100 fresh examples."""
    return {
        "count": 3,
        "num_examples": 100,
        "metric": metric,
        "other_metric": other,
        "paired": paired(better, worse, p_value),
    }


def epoch(number, loss, drop_probability):
    """What history.jsonl says of an epoch."""
    facts = {"metrics": {"accuracy": 0.5}, "kept": 0.9, "decided": "2/3", "drop_probability": drop_probability}
    return {"epoch": number, "loss": loss, **facts}


def made(
    path,
    rows=(FULL, MEAN, FOUND),
    config=CONFIG,
    posterior=POSTERIOR,
    predictive=None,
    front=None,
    alter=lambda ranking: None,
    spread=None,
):
    """A working directory as the stages before report leave it."""
    work = workdir.Workdir(path)
    work.claim(config)
    probabilities = {gates.name: list(gates.drop_probability) for gates in posterior.layers}
    history = [epoch(e, 2 / e, probabilities) for e in range(1, 6)]
    records = [
        candidate(kind, i, 0.25 + k + i, 0.9 - 0.1 * k, 5_000 + i, 40 if i else 80)
        for k, kind in enumerate(KINDS)
        for i in range(3)
    ]
    winner = posterior.sample(1, seed=0)[0]
    reads = {name: int(mask.sum()) or None for name, mask in winner.items()}
    ranking = ranking_of(records[::3]) | {"reads": reads, "predictive": predictive or {}}
    alter(ranking)
    contents = {
        stage_table.SUPERNET: "",
        stage_table.HISTORY: "".join(json.dumps(record) + "\n" for record in history),
        stage_table.POSTERIOR: posterior.to_json(),
        stage_table.CANDIDATES: "".join(json.dumps(record) + "\n" for record in records),
        stage_table.RANKING: json.dumps(ranking),
        stage_table.ARCHITECTURE: winner.to_json(),
        stage_table.CUT_ARCHITECTURE: "",
        stage_table.SUBNET: "",
        stage_table.RESULTS: json.dumps(
            {**MEASURED, "chosen": rows[-1]["name"], "rows": list(rows)}
            | ({"latency_spread": spread} if spread else {})
        ),
        stage_table.EVALUATION: json.dumps({"blessed": True, "checks": []}),
        stage_table.EXPORT_RESULTS: json.dumps(EXPORTED),
    }
    for name, text in contents.items():
        work.file(name).write_text(text)
    if front:
        left(work, front)
    for stage in stage_table.STAGES:
        if stage != "report":
            ended(work, stage, config, *([stage_table.FRONT] if stage == "sample" and front else []))
    return work


def ended(work, stage, config=CONFIG, *further, **facts):
    """Records that a stage ended now."""
    manifest = work.manifest()
    outputs = {name: digests.of_file(work.path / name) for name in (*stage_table.STAGES[stage].outputs, *further)}
    depends = work.dependencies(stage, config)
    facts = {"versions": {"keras": "3.15.1"}, **facts}
    manifest.stages[stage] = Finished(**depends, outputs=outputs, **facts)
    work.write_sealed(stage_table.MANIFEST, manifest)


def left(work, front):
    """Digest of front.json, written."""
    return digests.of_file(work.write_json(stage_table.FRONT, {"resource": "multiply_adds", "points": front}))


def table(work, config=CONFIG):
    stream = io.StringIO()
    report.print_table(work, config, rich.console.Console(file=stream, width=116))
    return stream.getvalue()


def said(work, config=CONFIG):
    """The report's page with entities and line breaks resolved, as a browser shows its words."""
    return " ".join(html.unescape(report.html(work, config)).split())


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
