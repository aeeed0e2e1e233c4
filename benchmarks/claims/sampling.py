"""The number of candidates and their ranking: Table 6, loss against accuracy, racing, and ensembles."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from benchmarks.claims.claim import (
    FAILS,
    HOLDS,
    Claim,
    Records,
    Report,
    Verdict,
    column,
    decided,
    markdown,
    percent,
    points,
)
from benchmarks.claims.guided import posterior_pool
from benchmarks.claims.study import Pool, Study
from tfnas.common import markup, statistics
from tfnas.ranking import racing

_COUNTS = (1, 10, 50, 100, 500, 1500)
_HALVES = 50  # splits of the validation examples
_SUBSETS = 200  # random subsets of the candidates
_CHOSEN = 50  # candidates in each
_ORDERS = 20  # of the examples, for races
_ENSEMBLE = 20
_KINDS = {"search": False, "own": True}


def _counts(size: int) -> list[int]:
    return [*(count for count in _COUNTS if count < size), size]


def _measure_counts(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    found: dict[str, Any] = {}
    for kind, own in _KINDS.items():
        pool = posterior_pool(study, searched, own)
        curve = statistics.best_of(pool.loss, pool.test, _counts(len(pool.candidates)), repeats=200)
        found[kind] = {
            "curve": curve,
            "distinct": len({candidate.digest() for candidate in pool.candidates}),
            "spread": float(pool.test.std()),
        }
    return found


def _report_counts(found: Records) -> Report:
    rows, verdicts = [], []
    curves = {kind: [record[kind]["curve"] for record in found.values()] for kind in _KINDS}
    least = min(len(curve) for seeds in curves.values() for curve in seeds)
    for i in range(least):
        at = [curves["search"][0][i]["count"], *(curve[i]["count"] for seeds in curves.values() for curve in seeds)]
        name = f"{at[0]:,}" if len(set(at)) == 1 else f"all ({min(at):,} to {max(at):,})"
        rows.append((name, *(percent([1 - curve[i]["mean"] for curve in curves[kind]]) for kind in _KINDS)))
    distinct = [f"{min(column(found, kind, 'distinct')):,}" for kind in _KINDS]
    rows.append(("distinct, at the least", *distinct))
    for kind, title in (("search", "search's statistics"), ("own", "statistics of its own")):
        first, last = ([curve[i]["mean"] for curve in curves[kind]] for i in (1, -1))
        few = curves[kind][0][1]["count"]
        verdicts.append(
            decided(f"The best of all candidates is better than the best of {few} ({title})", points(last, first))
        )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        for (kind, seeds), color in zip(curves.items(), (markup.BLUE, markup.GREEN), strict=True):
            for i, curve in enumerate(seeds):
                x, y = [point["count"] for point in curve], [100 * (1 - point["mean"]) for point in curve]
                label = {"search": "search's statistics", "own": "its own"}[kind] if not i else None
                axes.plot(x, y, "o-", color=color, alpha=0.6, label=label)
        axes.set_xscale("log")
        axes.set(xlabel="candidates", ylabel="test error of the best, %")
        axes.legend(frameon=False)

    columns = ("candidates", "test error of the best, %", "with own statistics, %")
    return Report(markdown(columns, rows), verdicts, draw)


def reliability(values: np.ndarray, rng: np.random.Generator) -> float:
    """Split-half reliability of candidates' means: Pearson's r of two halves of the examples, stepped up.

    Mean over random splits of 2 r / (1 + r) (Spearman and Brown 1910); 0 where the candidates do not differ.

    Args:
        values: of every candidate on every example, shape (C, examples).
        rng: draws the splits.
    """
    found = []
    for _ in range(_HALVES):
        order = rng.permutation(values.shape[1])
        half = len(order) // 2
        a, b = (values[:, part].mean(1, dtype=np.float64) for part in (order[:half], order[half : 2 * half]))
        r = np.corrcoef(a, b)[0, 1] if a.std() and b.std() else 0.0
        found.append(2 * r / (1 + r) if r > -1 else -1.0)
    return float(np.mean(found))


def _measure_ranking(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    found: dict[str, Any] = {}
    for kind, own in _KINDS.items():
        pool = posterior_pool(study, searched, own)
        rng = np.random.default_rng([seed, own])
        scores = {"loss": pool.loss, "accuracy": -pool.accuracy}
        values = {"loss": pool.losses, "accuracy": pool.correct}
        winners: dict[str, list[float]] = {name: [] for name in scores}
        for _ in range(_SUBSETS):
            chosen = rng.permutation(len(pool.candidates))[:_CHOSEN]
            for name, score in scores.items():
                winners[name].append(pool.test[chosen[np.argmin(score[chosen])]])
        found[kind] = {
            name: {
                "reliability": reliability(values[name], rng),
                "winner": float(np.mean(winners[name])),
                "tau": statistics.kendall_tau(score, -pool.test, repeats=1)[0],
            }
            for name, score in scores.items()
        }
    return found


def _report_ranking(found: Records) -> Report:
    rows, verdicts = [], []
    for kind, title in (("search", "search's statistics"), ("own", "statistics of its own")):
        for by in ("loss", "accuracy"):
            taus = [np.nan_to_num(tau) for tau in column(found, kind, by, "tau")]
            rows.append(
                (
                    f"{by}, {title}",
                    f"{np.mean(column(found, kind, by, 'reliability')):.2f}",
                    f"{np.mean(taus):.2f}",
                    percent(column(found, kind, by, "winner")),
                )
            )
        gains = [
            a - b
            for a, b in zip(
                column(found, kind, "loss", "reliability"), column(found, kind, "accuracy", "reliability"), strict=True
            )
        ]
        verdicts += [
            decided(f"Validation loss orders candidates more reliably than accuracy ({title})", gains, "of 1"),
            decided(
                f"and its winner has the better test accuracy ({title})",
                points(column(found, kind, "loss", "winner"), column(found, kind, "accuracy", "winner")),
            ),
        ]
    columns = ("ranked by", "split-half reliability", "Kendall's tau with test accuracy", "winner's test accuracy, %")
    return Report(markdown(columns, rows), verdicts)


class _Replayed:
    """A pool's losses in some order of the examples, as `tfnas.ranking.racing` asks for them."""

    def __init__(self, losses: np.ndarray, order: np.ndarray):
        self._losses, self._order = losses, order

    def fill(self, candidates: Any, stop: int) -> None:
        """All is there."""

    def read(self, candidate: int, stop: int) -> np.ndarray:
        """The first losses of a candidate."""
        return self._losses[candidate, self._order[:stop]]


def _measure_racing(study: Study, seed: int) -> dict[str, Any]:
    pool = posterior_pool(study, study.searched(seed))
    rng = np.random.default_rng([seed, 2])
    size = pool.losses.shape[1]
    loss, best = pool.loss, pool.winner
    error = float(pool.losses[best].std(ddof=1) / np.sqrt(size))
    share, behind, test = [], [], []
    for _ in range(_ORDERS):
        outcome = racing.race(_Replayed(pool.losses, rng.permutation(size)), len(pool.candidates), size)
        share.append(1 - outcome.saved)
        behind.append(float(loss[outcome.winner] - loss[best]) / error)
        test.append(float(pool.test[outcome.winner]))
    return {
        "share": float(np.mean(share)),
        "behind": float(np.max(behind)),
        "test": float(np.mean(test)),
        "full": float(pool.test[best]),
    }


def _report_racing(found: Records) -> Report:
    rows = [
        (
            str(seed),
            f"{100 * r['share']:.1f}",
            f"{r['behind']:.2f}",
            f"{100 * r['test']:.2f}",
            f"{100 * r['full']:.2f}",
        )
        for seed, r in found.items()
    ]
    spared = decided(
        "A race makes less than half of the evaluations",
        [100 * (0.5 - share) for share in column(found, "share")],
        "points below half",
    )
    most = max(column(found, "behind"))
    within = Verdict(
        "and its winner is within half a standard error of the best, in every order of the examples",
        HOLDS if most <= 0.5 else FAILS,
        f"at most {most:.2f} standard errors behind in {_ORDERS} orders at each of {len(found)} seeds",
    )
    columns = (
        "seed",
        "evaluations made, %",
        "most behind the best, standard errors",
        "test accuracy, raced, %",
        "in full, %",
    )
    return Report(markdown(columns, rows), (spared, within))


def _measure_ensembles(study: Study, seed: int) -> dict[str, Any]:
    searched = study.searched(seed)
    found: dict[str, Any] = {}
    for kind, own in _KINDS.items():
        pool: Pool = posterior_pool(study, searched, own)
        order = np.argsort(pool.loss, kind="stable")
        test = study.engines(searched.supernet, own)["test"]
        labels = np.asarray(test.labels())

        def average(numbers: Any, pool: Pool = pool, test: Any = test) -> np.ndarray:
            return np.mean([softmax(test.outputs(pool.candidates[i]), axis=-1) for i in numbers], axis=0)

        predictions = {"single": order[:1], "best": order[:_ENSEMBLE], "samples": range(_ENSEMBLE)}
        found[kind] = {
            name: {measure: float(np.ravel(value)[0]) for measure, value in of_all.items()}
            for name, of_all in (
                (name, statistics.predictive(average(numbers), labels, repeats=1))
                for name, numbers in predictions.items()
            )
        }
    return found


def _report_ensembles(found: Records) -> Report:
    titles = {"single": "the best one", "best": f"the {_ENSEMBLE} best", "samples": f"{_ENSEMBLE} samples, unranked"}
    rows, verdicts = [], []
    for kind, statistics_title in (("search", "search's statistics"), ("own", "statistics of its own")):
        for name, title in titles.items():
            nll, ece = (column(found, kind, name, measure) for measure in ("nll", "ece"))
            cells = (percent(column(found, kind, name, "accuracy")), f"{np.mean(nll):.4f}", percent(ece))
            rows.append((f"{title}, {statistics_title}", *cells))
        single = {measure: np.array(column(found, kind, "single", measure)) for measure in ("nll", "ece")}
        several = {measure: np.array(column(found, kind, "samples", measure)) for measure in ("nll", "ece")}
        verdicts += [
            decided(
                f"An average over the posterior has a smaller negative log-likelihood ({statistics_title})",
                list(single["nll"] - several["nll"]),
                "nats",
                "+.4f",
            ),
            decided(
                f"and a smaller calibration error ({statistics_title})", list(100 * (single["ece"] - several["ece"]))
            ),
        ]
    columns = ("prediction", "test accuracy, %", "negative log-likelihood, nats", "calibration error, %")
    return Report(markdown(columns, rows), verdicts)


CLAIMS = {
    "table6": Claim(
        "Table 6: how many candidates",
        "The test error of the best of so many of the posterior's candidates by validation loss, in expectation over "
        "all subsets of that size.",
        _measure_counts,
        _report_counts,
    ),
    "ranking": Claim(
        "Ranking by loss and by accuracy",
        f"Split-half reliability over {_HALVES} splits of the validation examples, stepped up to all of them; "
        f"Kendall's tau with the candidates' test accuracy; the winner of {_CHOSEN} candidates, mean over "
        f"{_SUBSETS} draws.",
        _measure_ranking,
        _report_ranking,
        beyond=True,
    ),
    "racing": Claim(
        "Racing against evaluating everything",
        f"The race's default settings, {_ORDERS} orders of the validation examples; all candidates were evaluated in "
        "full before.",
        _measure_racing,
        _report_racing,
        beyond=True,
    ),
    "ensembles": Claim(
        "Are averages over the posterior better calibrated?",
        "Probabilities on the test split: of the best candidate, averaged over the best, and over unranked samples.",
        _measure_ensembles,
        _report_ensembles,
        beyond=True,
    ),
}
