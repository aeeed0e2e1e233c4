"""Published figures that need no training."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from scipy import stats

from benchmarks import published_posterior
from benchmarks.claims.claim import FAILS, HOLDS, UNTESTED, Claim, Records, Report, Verdict, markdown
from benchmarks.claims.study import Study
from tfnas import supernets

_SAMPLES = 1500
_WITHIN = 0.01  # what counts as the published number
_RANKING = (73.26, 0.06, 73.43)  # top-1 on ImageNet of D-121's samples, %: mean, deviation and best
# Supernet, published parameters in M, and how it is made.
_NETWORKS: dict[str, tuple[float, Any]] = {
    "SupNet-M": (26.2, lambda: supernets.multi_branch_resnet()),
    "SupNet-MI": (72.7, lambda: supernets.multi_branch_resnet(width=160)),
    "SupNet-E": (4.6, lambda: supernets.enas()),
    "SupNet-EI": (15.3, lambda: supernets.enas(width=72)),
    "SupNet-R-50": (44.0, lambda: supernets.resnet50()),
}
_UNTESTED = {
    "CIFAR-10: a test error of 2.06 % with SupNet-MI": "1,800 epochs of 72.7 M parameters take GPU days",
    "CIFAR-100: 14.28 %; ImageNet: 24.8 % with D-121, 22.73 % with R-50": "no such data or GPU here",
    "On ImageNet D-121's samples have a mean of {:.2f} %, a deviation of {:.2f}, and the best {:.2f} %".format(
        *_RANKING
    ): ("needs ImageNet and the released weights"),
    "Something-Something v1: 44.2 % with a 3-D DenseNet-121": "no such data or GPU here",
}


def _parameters(model: keras.Model) -> int:
    """Trainable ones."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _spread() -> Verdict:
    """Whether the published ranking's best is one that chance gives among as many normal draws."""
    mean, deviation, best = _RANKING
    above = (best - mean) / deviation
    low, high = stats.norm.ppf(np.array([0.025, 0.975]) ** (1 / _SAMPLES))  # P(all of n <= x) = P(one <= x)^n
    return Verdict(
        f"The published ranking's best is as far above its mean as the best of {_SAMPLES:,} normal draws",
        HOLDS if low <= above <= high else FAILS,
        f"{above:.2f} deviations above, {low:.2f} to {high:.2f} in 95 of 100 such draws: to choose gains "
        f"{best - mean:.2f} points over an average sample",
    )


def _measure(study: Study, seed: int) -> dict[str, Any]:
    counts = {name: _parameters(build()) / 1e6 for name, (_, build) in _NETWORKS.items()}
    _, published = published_posterior.published()
    candidates = published.sample(_SAMPLES, seed=seed)
    kept = [published.cost_of(candidate) / 1e6 for candidate in candidates]
    return {
        "counts": counts,
        "gated": published.total_parameters() / 1e6,
        "expected": published.expected_parameters() / 1e6,
        "kept": float(np.mean(kept)),
        "deviation": float(np.std(kept)),
        "dropped": float(np.mean([1 - c.kept / c.total for c in candidates])),
    }


def _report(found: Records) -> Report:
    (record,) = found.values()
    rows, verdicts = [], []
    for name, (published, _) in _NETWORKS.items():
        counted = record["counts"][name]
        rows.append((name, f"{published:.1f}", f"{counted:.2f}"))
        same = abs(counted / published - 1) <= _WITHIN
        numbers = f"{counted:.2f} M counted"
        verdicts.append(Verdict(f"{name} has {published:.1f} M parameters", HOLDS if same else FAILS, numbers))
    rows.append(("D-121, gated convolutions", "6.86", f"{record['gated']:.2f}"))
    rows.append(("D-121, kept by the published posterior", "6.6", f"{record['expected']:.3f}"))
    same = abs(record["expected"] / 6.6 - 1) <= _WITHIN
    verdicts.append(
        Verdict(
            "The published posterior of DenseNet-121 keeps 6.6 M weights",
            HOLDS if same else FAILS,
            f"{record['expected']:.3f} M expected of {record['gated']:.3f} M; {_SAMPLES:,} samples have "
            f"{record['kept']:.4f} ± {record['deviation']:.4f} M and drop {record['dropped']:.1%} of the channels",
        )
    )
    verdicts.append(_spread())
    verdicts += [Verdict(claim, UNTESTED, why) for claim, why in _UNTESTED.items()]
    return Report(markdown(("network", "published, M", "counted, M"), rows), verdicts)


CLAIMS = {
    "anchors": Claim(
        "Published figures that need no training",
        "Parameters of the supernets as their builders make them, and of the released posterior of DenseNet-121.",
        _measure,
        _report,
        seeded=False,
    ),
}
