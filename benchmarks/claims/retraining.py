"""The value of inherited weights: retraining from them, from scratch, and whether the ranking survives it."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.claims.claim import Claim, Records, Report, column, decided, markdown, percent, points
from benchmarks.claims.guided import posterior_pool
from benchmarks.claims.study import Searched, Study
from tfnas.common import statistics
from tfnas.cutting.subnets import subnet
from tfnas.gating.supernet import Supernet
from tfnas.training import building, networks

_CANDIDATES = 8
_SHARES = (0.4, 1.0)  # of the learned size
_EPOCHS = 0.25  # of retraining's, for each of several candidates


def _new(study: Study, searched: Searched) -> Supernet:
    """The study's supernet with new weights."""
    model = building.network(searched.config, study.splits)
    return networks.gated(searched.config, study.splits, model, searched.work)


def _measure_weights(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    pool = posterior_pool(study, searched)
    found, settings = pool.candidates[pool.winner], study.config.retrain
    tests = {}
    for name, epochs, rate in (
        ("inherited", settings.epochs, settings.learning_rate),
        ("scratch", study.epochs, study.config.search.learning_rate),
        ("scratch, short", settings.epochs, study.config.search.learning_rate),
    ):
        supernet = searched.supernet
        if name != "inherited":
            networks.set_seed(seed)
            supernet = _new(study, searched)
        title = f"from {name.replace(', ', ' ')}"
        scores = study.trained(searched, subnet(supernet, found), epochs, rate, title)
        tests[name] = {"test": scores["test"]["accuracy"], "epochs": epochs}
    tests["as it is"] = {"test": float(pool.test[pool.winner]), "epochs": 0}
    return tests


def _report_weights(found: Records) -> Report:
    titles = {
        "as it is": "inherited weights, as they are",
        "inherited": "inherited weights, retrained",
        "scratch": "new weights, search's epochs too",
        "scratch, short": "new weights, retraining's epochs alone",
    }
    rows = [
        (title, str(column(found, name, "epochs")[0]), percent(column(found, name, "test")))
        for name, title in titles.items()
    ]
    tests = {name: column(found, name, "test") for name in titles}
    verdicts = (
        decided(
            "At equal total budget, retraining the inherited weights beats training the same network from scratch",
            points(tests["inherited"], tests["scratch"]),
        ),
        decided(
            "With retraining's epochs alone, inherited weights beat new ones",
            points(tests["inherited"], tests["scratch, short"]),
        ),
        decided("Retraining improves the network found", points(tests["inherited"], tests["as it is"])),
    )
    return Report(markdown(("the network found", "epochs after search", "test accuracy, %"), rows), verdicts)


def _measure_tau(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    posterior, settings = searched.posterior, study.config.retrain
    expected = posterior.expected_parameters()
    drawn = [
        posterior.tilt(parameters=share * expected).sample(1, seed, first=i)[0]
        for i, share in enumerate(np.linspace(*_SHARES, _CANDIDATES))
    ]
    pool = study.pool(searched, "sizes", drawn, True)
    epochs = max(1, round(_EPOCHS * settings.epochs))
    retrained = []
    for i, candidate in enumerate(pool.candidates):
        model = subnet(searched.supernet, candidate)
        title = f"candidate {'abcdefgh'[i]}"
        scores = study.trained(searched, model, epochs, settings.learning_rate, title, recalibrate=True)
        retrained.append(scores["validation"]["loss"])
    return {
        "epochs": epochs,
        "candidates": len(pool.candidates),
        "loss": statistics.kendall_tau(pool.loss, retrained, repeats=1)[0],
        "size": statistics.kendall_tau(-pool.parameters, retrained, repeats=1)[0],
    }


def _report_tau(found: Records) -> Report:
    rows = [(str(seed), f"{r['loss']:.2f}", f"{r['size']:.2f}") for seed, r in found.items()]
    taus, sizes = column(found, "loss"), column(found, "size")
    rows.append(("mean", f"{np.mean(taus):.2f}", f"{np.mean(sizes):.2f}"))
    verdicts = (
        decided("Inherited weights order candidates of mixed sizes as retraining does", taus, "Kendall's tau"),
        decided(
            "and better than their number of parameters does",
            [a - b for a, b in zip(taus, sizes, strict=True)],
            "of Kendall's tau",
        ),
    )
    return Report(markdown(("seed", "tau, inherited loss", "tau, parameters alone"), rows), verdicts)


CLAIMS = {
    "weights": Claim(
        "Inherited weights against training from scratch",
        "The network found by PGNAS: retrained from the weights of the search, and the same network from new weights, "
        "for search's and retraining's epochs together and for retraining's alone.",
        _measure_weights,
        _report_weights,
        beyond=True,
    ),
    "tau": Claim(
        "Does the ranking survive retraining?",
        f"{_CANDIDATES} candidates between {_SHARES[0]:.0%} and all of the learned size, ranked by validation loss "
        "with inherited weights and statistics of their own, and again after a quarter of retraining's epochs, with "
        "recomputed statistics.",
        _measure_tau,
        _report_tau,
        beyond=True,
    ),
}
