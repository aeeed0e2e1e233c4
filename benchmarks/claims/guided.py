"""Is sampling that is guided by the posterior better than chance? Table 3, Table 7, Figures 1 and 2."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.claims.claim import Claim, Records, Report, Verdict, column, decided, markdown, percent, points
from benchmarks.claims.study import Pool, Searched, Study
from tfnas.common import markup
from tfnas.cutting.subnets import subnet
from tfnas.gating.supernet import Supernet
from tfnas.graph.costs import cost
from tfnas.ranking import reference_architectures
from tfnas.runs.sampled import Kind
from tfnas.training import building, networks


def posterior_pool(study: Study, searched: Searched, own: bool = False) -> Pool:
    """The posterior's candidates, as many as the config says."""
    return study.sampled(searched, own, study.config.sample.num_candidates)


def _as_many(study: Study, searched: Searched, own: bool = False) -> Pool:
    """Returns as many of the posterior's candidates as random ones: the best of more would be better by chance."""
    return study.sampled(searched, own, study.config.sample.num_random)


def _random(study: Study, searched: Searched) -> tuple[Supernet, dict[bool, Pool]]:
    """Table 3's 'random': the supernet of one fixed drop probability, and candidates of the found one's size in it."""
    pool = _as_many(study, searched)
    found = pool.candidates[pool.winner]
    posterior, graph = searched.posterior, searched.supernet.graph
    supernet = study.fixed(searched, reference_architectures.even_drop(posterior, found))
    size, seed = int(pool.parameters[pool.winner]), searched.config.seed
    drawn = [
        reference_architectures.random_candidate(posterior, graph, size, Kind.EVEN, seed, i)
        for i in range(study.config.sample.num_random)
    ]
    return supernet, {own: study.pool(searched, "random", drawn, own, supernet) for own in (False, True)}


def _measure_table(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    settings = study.config.retrain
    fixed, random = _random(study, searched)
    rows: dict[str, Any] = {}
    sources = {"random": (fixed, random), "PGNAS": (searched.supernet, {})}
    for name, (supernet, pools) in sources.items():
        pools = pools or {own: _as_many(study, searched, own) for own in (False, True)}
        for own, pool in pools.items():
            rows[f"{name}, {'own' if own else 'search'}"] = pool.summary()
        pool = pools[False]
        chosen = pool.candidates[pool.winner]
        price = cost(supernet.graph, chosen)
        model = subnet(supernet, chosen)
        scores = study.trained(searched, model, settings.epochs, settings.learning_rate, f"{name} fine tuned")
        tuned = {"test": scores["test"]["accuracy"], "parameters": price.parameters}
        rows[f"{name}, tuned"] = {**tuned, "multiply_adds": price.multiply_adds}
    networks.set_seed(seed)
    full = building.network(searched.config, study.splits)
    price = cost(searched.supernet.graph)
    scores = study.trained(searched, full, study.epochs, searched.config.search.learning_rate, "full network")
    rows["full"] = {
        "test": scores["test"]["accuracy"],
        "parameters": price.parameters,
        "multiply_adds": price.multiply_adds,
        "train": scores["train"]["accuracy"],
    }
    return rows


_ROWS = {
    "full": "full network, the whole budget",
    "random, search": "random, fixed drop, no fine-tuning",
    "random, own": "the same, each with statistics of its own",
    "random, tuned": "random, fixed drop, fine-tuned",
    "PGNAS, search": "PGNAS, no fine-tuning",
    "PGNAS, own": "the same, each with statistics of its own",
    "PGNAS, tuned": "PGNAS, fine-tuned",
}


def _report_table(found: Records) -> Report:
    full = np.mean(column(found, "full", "parameters"))
    rows = []
    for key, name in _ROWS.items():
        kept = np.array(column(found, key, "parameters")) / full
        tests = column(found, key, "test")
        error = percent([1 - test for test in tests])
        means = percent(column(found, key, "mean_test")) if "tuned" not in key and key != "full" else "-"
        rows.append((name, error, percent(list(kept), ".1f"), means))
    tests = {key: column(found, key, "test") for key in _ROWS}
    verdicts = (
        decided(
            "Without fine-tuning, the network found by PGNAS is better than the best random one of its size",
            points(tests["PGNAS, search"], tests["random, search"]),
        ),
        decided(
            "The same where every candidate has normalization statistics of its own",
            points(tests["PGNAS, own"], tests["random, own"]),
        ),
        decided(
            "Fine-tuned, it is better than the random one, fine-tuned too",
            points(tests["PGNAS, tuned"], tests["random, tuned"]),
        ),
        decided(
            "Without fine-tuning, PGNAS is better than the random one fine-tuned",
            points(tests["PGNAS, search"], tests["random, tuned"]),
        ),
        decided(
            "Without fine-tuning, it is better than the full network", points(tests["PGNAS, search"], tests["full"])
        ),
        decided("Fine-tuned, it is better than the full network", points(tests["PGNAS, tuned"], tests["full"])),
    )
    columns = ("network", "test error, %", "parameters, %", "test accuracy, mean of all candidates, %")
    return Report(markdown(columns, rows), verdicts)


def _measure_histogram(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    _, random = _random(study, searched)
    pools = {"posterior": posterior_pool(study, searched), "random": random[False]}
    own = {"posterior": posterior_pool(study, searched, True), "random": random[True]}
    return {
        "search": {name: np.round(pool.accuracy, 5).tolist() for name, pool in pools.items()},
        "own": {name: np.round(pool.accuracy, 5).tolist() for name, pool in own.items()},
    }


def _report_histogram(found: Records) -> Report:
    rows, verdicts = [], []
    for kind, title in (("search", "search's statistics"), ("own", "statistics of its own")):
        values = {name: [np.array(record[kind][name]) for record in found.values()] for name in ("posterior", "random")}
        means = {name: [v.mean() for v in seeds] for name, seeds in values.items()}
        deviations = {name: [v.std() for v in seeds] for name, seeds in values.items()}
        for name in values:
            rows.append((f"{name}, {title}", percent(means[name]), percent(deviations[name])))
        verdicts += [
            decided(
                f"Samples of the posterior have a higher mean accuracy than random ones ({title})",
                points(means["posterior"], means["random"]),
            ),
            decided(
                f"and a smaller deviation ({title})", points(deviations["random"], deviations["posterior"]), "points"
            ),
        ]

    def draw(figure: Any) -> None:
        for axes, kind in zip(figure.subplots(1, 2), ("search", "own"), strict=True):
            every = [value for record in found.values() for values in record[kind].values() for value in values]
            bins = np.linspace(100 * min(every), 100 * max(every) + 1e-6, 41)
            axes.spines[["top", "right"]].set_visible(False)
            for name, color in (("posterior", markup.BLUE), ("random", markup.ORANGE)):
                values = 100 * np.concatenate([record[kind][name] for record in found.values()])
                weights = np.full(len(values), 100 / len(values))
                axes.hist(values, bins, weights=weights, color=color, alpha=0.65, label=name)
            axes.set(xlabel="validation accuracy, %", title={"search": "search's statistics", "own": "its own"}[kind])
        figure.axes[0].set_ylabel("share of candidates, %")
        figure.axes[0].legend(frameon=False)

    columns = ("candidates", "mean validation accuracy, %", "its deviation over candidates, points")
    return Report(markdown(columns, rows), verdicts, draw)


def _winner(study: Study, seed: int) -> tuple[Searched, Any]:
    searched = study.searched(seed)
    pool = posterior_pool(study, searched)
    return searched, pool.candidates[pool.winner]


def _measure_dropped(study: Study, seed: int) -> dict[str, Any]:
    searched, found = _winner(study, seed)
    channels, operations = searched.supernet.graph.flow(found).shares_read(found)
    return {"channels": 1 - channels, "operations": 1 - operations}


def _report_dropped(found: Records) -> Report:
    channels, operations = column(found, "channels"), column(found, "operations")
    rows = [(str(seed), f"{record['channels']:.2f}", f"{record['operations']:.2f}") for seed, record in found.items()]
    published = [("paper, MI", ".44", ".26"), ("paper, M", ".18", ".10"), ("paper, E", ".33", ".19")]
    verdict = decided(
        "More of the channels are dropped than of the operations, so layers are narrowed too, not only removed",
        points(channels, operations),
    )
    return Report(markdown(("seed", "channels dropped", "operations dropped"), [*rows, *published]), (verdict,))


def _measure_layers(study: Study, seed: int) -> dict[str, Any]:
    searched, found = _winner(study, seed)
    reads = searched.supernet.graph.flow(found).reads_of(found)
    layers = []
    for name, layer in searched.supernet.gated_layers.items():
        size, made = len(found[name]), getattr(layer.layer, "filters", None)
        layers.append({"name": name, "read": size, "made": made, "kept": (reads[name] or 0) / size})
    return {"layers": layers}


def _report_layers(found: Records) -> Report:
    first = next(iter(found.values()))["layers"]
    kept = np.array([[layer["kept"] for layer in record["layers"]] for record in found.values()])
    widens = np.array([bool(layer["made"]) and layer["made"] > layer["read"] for layer in first])
    rows = [
        (layer["name"], str(layer["read"]), str(layer["made"] or "-"), percent(list(kept[:, i]), ".0f"))
        for i, layer in enumerate(first)
    ]
    claim = "Layers that widen keep more of their input channels than the others (Figure 2)"
    if widens.any() and not widens.all():
        verdict = decided(claim, points(kept[:, widens].mean(1), kept[:, ~widens].mean(1)))
    else:
        verdict = Verdict(claim, "cannot be tested here", "no layer of this network widens")

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        places = np.arange(len(first))
        colors = [markup.ORANGE if wide else markup.BLUE for wide in widens]
        axes.bar(places, 100 * kept.mean(0), color=colors)
        axes.set_xticks(places, [layer["name"] for layer in first], rotation=90, fontsize=7)
        axes.set(ylabel="input channels kept, %", title="orange: layers that widen")

    return Report(markdown(("layer", "reads", "makes", "kept, %"), rows), (verdict,), draw)


CLAIMS = {
    "table3": Claim(
        "Table 3: posterior-guided sampling against random sampling",
        "Random is the paper's: a supernet trained under one fixed drop probability, the best of random candidates of "
        "at most the size that PGNAS found, by validation loss, and as many candidates as PGNAS has here. Candidates "
        "are evaluated with search's normalization statistics, as in the paper, and in further rows with statistics of "
        "their own from 250 training images. All networks that are trained on have search's and retraining's epochs in "
        "all, the full network too.",
        _measure_table,
        _report_table,
    ),
    "figure1": Claim(
        "Figure 1: samples of the posterior and random samples",
        "Validation accuracy of the posterior's candidates under their supernet, and of random ones of the winner's "
        "size under theirs, with search's statistics and with statistics of their own.",
        _measure_histogram,
        _report_histogram,
    ),
    "table7": Claim(
        "Table 7: what is dropped",
        "Of the network found: the share of gated input channels that is dropped, and of operations (all channels of "
        "one source in one convolution); what is kept of a layer that nothing is left for, or that is not read, "
        "counts as dropped.",
        _measure_dropped,
        _report_dropped,
    ),
    "figure2": Claim(
        "Figure 2: what the network found looks like",
        "The share of its input channels that each gated layer of the network found keeps, mean over seeds.",
        _measure_layers,
        _report_layers,
    ),
}
