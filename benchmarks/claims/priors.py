"""The effects of the prior and the temperature: Table 4, Table 5, the correlated weight term, and budgets by
tilting."""

from __future__ import annotations

from typing import Any

import numpy as np

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
from benchmarks.claims.study import Searched, Study
from tfnas.common import markup

_TEMPERATURES = (0.2, 2 / 3)
_NEAR = 0.02  # of the learned share: to tilt to what it is would be no tilt


def _both(study: Study, searched: Searched, posterior: Any = None) -> dict[str, Any]:
    """Winners and means, with search's statistics and with each candidate's own."""
    names = {False: "search", True: "own"}
    return {name: study.sampled(searched, own, posterior=posterior).summary() for own, name in names.items()}


def _measure_ell2(study: Study, seed: int) -> dict[str, Any]:
    values = study.config.tune.ell2
    return {f"{ell2:g}": _both(study, study.searched(seed, ell2=ell2)) for ell2 in values}


def _report_ell2(found: Records) -> Report:
    values = list(next(iter(found.values())))
    sizes = {v: column(found, v, "search", "parameters") for v in values}
    tests = {v: column(found, v, "search", "test") for v in values}
    own = {v: column(found, v, "own", "test") for v in values}
    rows = [
        (
            v,
            f"{np.mean(sizes[v]):,.0f}",
            percent([1 - t for t in tests[v]]),
            percent([1 - t for t in own[v]]),
            ", ".join(f"{size:,}" for size in sizes[v]),
        )
        for v in values
    ]
    low, high = values[0], values[-1]
    steps = [np.mean(sizes[b]) < np.mean(sizes[a]) for a, b in zip(values, values[1:], strict=False)]
    monotone = sum(all(a > b for a, b in zip(s, s[1:], strict=False)) for s in zip(*sizes.values(), strict=True))
    shrinks = decided(
        "The largest ell2 keeps fewer parameters than the smallest",
        [100 * (a - b) / a for a, b in zip(sizes[low], sizes[high], strict=True)],
        "% of the smallest's",
    )
    order = Verdict(
        "A larger ell2 gives a smaller network, step by step",
        HOLDS if all(steps) else FAILS,
        f"{sum(steps)} of {len(steps)} steps in the mean; all of them at {monotone} of {len(found)} seeds",
    )
    middle = max(values[1:-1], key=lambda v: np.mean(tests[v])) if len(values) > 2 else low
    best = decided(
        "A middle ell2 has the smallest error (the best of them against the better end)",
        points(tests[middle], np.maximum(tests[low], tests[high])),
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        for name, series, color in (("search's", tests, markup.BLUE), ("its own", own, markup.GREEN)):
            for i in range(len(found)):
                axes.plot(
                    [sizes[v][i] for v in values],
                    [100 * (1 - series[v][i]) for v in values],
                    "o-",
                    color=color,
                    alpha=0.6,
                    label=f"{name} statistics" if not i else None,
                )
        axes.set(xlabel="parameters kept", ylabel="test error, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False)

    columns = ("ell2", "parameters", "test error, %", "with own statistics, %", "parameters by seed")
    return Report(markdown(columns, rows), (shrinks, order, best), draw)


def _measure_temperature(study: Study, seed: int) -> dict[str, Any]:
    return {f"{t:.3g}": _both(study, study.searched(seed, temperature=t)) for t in _TEMPERATURES}


def _report_temperature(found: Records) -> Report:
    low, high = (f"{t:.3g}" for t in _TEMPERATURES)
    rows = [
        (
            t,
            f"{np.mean(column(found, t, 'search', 'parameters')):,.0f}",
            percent([1 - v for v in column(found, t, "search", "test")]),
            percent([1 - v for v in column(found, t, "own", "test")]),
        )
        for t in (low, high)
    ]
    verdicts = [
        decided(
            f"A temperature of {low} finds a better network than {high} ({title})",
            points(column(found, low, kind, "test"), column(found, high, kind, "test")),
        )
        for kind, title in (("search", "search's statistics"), ("own", "statistics of its own"))
    ]
    columns = ("temperature", "parameters", "test error, %", "with own statistics, %")
    return Report(markdown(columns, rows), verdicts)


def _measure_correlated(study: Study, seed: int) -> dict[str, Any]:
    correlated, constant = study.searched(seed), study.searched(seed, prior="constant", guard="warn")
    found: dict[str, Any] = {"correlated": _both(study, correlated), "constant": _both(study, constant)}
    wanted, total = correlated.posterior.expected_parameters(), constant.posterior.total_parameters()
    found["kept"] = {"correlated": wanted / total, "constant": constant.posterior.expected_kept()}
    if abs(constant.posterior.expected_kept() - wanted / total) > _NEAR:
        found["tilted"] = _both(study, constant, constant.posterior.tilt(parameters=wanted))
    else:
        found["tilted"] = found["constant"]
    return found


def _report_correlated(found: Records) -> Report:
    names = {
        "correlated": "correlated, (1 - p) m^2",
        "constant": "constant, m^2",
        "tilted": "constant, tilted to the correlated one's size",
    }
    rows = [
        (
            title,
            f"{np.mean(column(found, key, 'search', 'parameters')):,.0f}",
            percent([1 - v for v in column(found, key, "search", "test")]),
            percent([1 - v for v in column(found, key, "own", "test")]),
        )
        for key, title in names.items()
    ]
    verdicts = [
        decided(
            f"The correlated weight term finds a better network than a constant one{where} ({title})",
            points(column(found, "correlated", kind, "test"), column(found, key, kind, "test")),
        )
        for key, where in (("constant", ", each of its own size"), ("tilted", " of equal size"))
        for kind, title in (("search", "search's statistics"), ("own", "statistics of its own"))
    ]
    smaller = decided(
        "and a smaller one",
        points(column(found, "kept", "constant"), column(found, "kept", "correlated")),
        "points of the gated parameters",
    )
    columns = ("weight term", "parameters", "test error, %", "with own statistics, %")
    return Report(markdown(columns, rows), (*verdicts, smaller))


def _measure_front(study: Study, seed: int) -> dict[str, Any]:
    base = study.searched(seed, ell2=min(study.config.tune.ell2))
    found = {}
    for ell2 in study.config.tune.ell2[1:]:
        searched = study.searched(seed, ell2=ell2)
        wanted = searched.posterior.expected_parameters()
        if wanted > base.posterior.expected_parameters():
            continue  # upwards, channels would come back that training gave up
        tilted = base.posterior.tilt(parameters=wanted)
        found[f"{ell2:g}"] = {
            "share": searched.posterior.expected_kept(),
            "searched": study.sampled(searched, True).summary(),
            "tilted": study.sampled(base, True, posterior=tilted).summary(),
        }
    return found


def _report_front(found: Records) -> Report:
    rows, gains = [], []
    for seed, record in found.items():
        for ell2, pair in record.items():
            cells = (f"{100 * pair[key]['test']:.2f}" for key in ("searched", "tilted"))
            rows.append((str(seed), ell2, f"{100 * pair['share']:.1f}", *cells))
        if record:
            gains.append(100 * np.mean([pair["searched"]["test"] - pair["tilted"]["test"] for pair in record.values()]))
    verdict = decided(
        "A search for a size finds a better network than a larger search tilted to that size (mean over sizes)", gains
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        pairs = [pair for record in found.values() for pair in record.values()]
        for key, color in (("searched", markup.BLUE), ("tilted", markup.ORANGE)):
            x, y = [p[key]["parameters"] for p in pairs], [100 * p[key]["test"] for p in pairs]
            axes.scatter(x, y, color=color, label=key)
        axes.set(xlabel="parameters", ylabel="test accuracy, %")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False)

    columns = ("seed", "ell2", "gated parameters kept, %", "searched, test accuracy, %", "tilted, test accuracy, %")
    return Report(markdown(columns, rows), (verdict,), draw)


CLAIMS = {
    "table4": Claim(
        "Table 4: ell2 against error and size",
        "One search for each ell2; the best of its posterior's candidates by validation loss, not fine-tuned.",
        _measure_ell2,
        _report_ell2,
    ),
    "table5": Claim(
        "Table 5: the temperature of the relaxed gates",
        "One search for each temperature; the best candidate by validation loss, not fine-tuned.",
        _measure_temperature,
        _report_temperature,
    ),
    "correlated": Claim(
        "The correlated weight term against a constant one",
        "The paper reports 14.28 against 17.41 % on CIFAR-100. Searches with the same ell2; under the constant term no "
        "probability is pressed by the prior, so its network is also tilted to the correlated one's size.",
        _measure_correlated,
        _report_correlated,
    ),
    "front": Claim(
        "Budgets from one search against a search for each",
        "The posterior of the smallest ell2, tilted to the size that each larger ell2 arrives at, against the search "
        "with that ell2. All candidates have normalization statistics of their own.",
        _measure_front,
        _report_front,
        beyond=True,
    ),
}
