"""Equal-size random candidates: what a ranking is worth is seen against them.

Each random candidate is drawn to have the parameters of one posterior candidate, counted exactly: a common shift of all
keep logits is found by bisection under fixed uniform noise, so that channels are only ever added as the size grows.
"""

from __future__ import annotations

import numpy as np

from tfnas.architecture import Architecture
from tfnas.channels import Graph
from tfnas.costs import cost
from tfnas.posterior import Posterior

EVEN = "random, spread evenly"
ALLOCATED = "random, allocated per layer"


def random_candidate(posterior: Posterior, graph: Graph, parameters: int, kind: str, seed: int, i: int) -> Architecture:
    """Random candidate number `i` with the nearest size to `parameters` at or above it.

    Args:
        posterior: gives the gated layers; its probabilities are not used.
        graph: of the supernet.
        parameters: trainable parameters of the subnet wanted.
        kind: EVEN: every channel alike. ALLOCATED: every group first draws a keep rate of its own, U(0, 1).
        seed: of the whole set of candidates.
        i: number of the candidate; the draw is a function of (seed, kind, i) alone.
    """
    rng = np.random.default_rng([seed, (EVEN, ALLOCATED).index(kind) + 1, i])
    thresholds = {}  # a channel is kept once the shift exceeds its threshold
    for gates in posterior.layers:
        rate = rng.uniform(0.01, 0.99, len(gates.group_sizes)) if kind == ALLOCATED else np.full(1, 0.5)
        logit = np.log(rate) - np.log1p(-rate)
        preference = np.repeat(logit, gates.group_sizes if kind == ALLOCATED else gates.num_channels)
        thresholds[gates.name] = rng.logistic(size=gates.num_channels) - preference

    def at(shift: float) -> Architecture:
        return Architecture({name: threshold < shift for name, threshold in thresholds.items()})

    # Between two neighbouring thresholds nothing changes, so bisect over the sorted thresholds themselves.
    shifts = np.sort(np.concatenate(list(thresholds.values())))
    low, high = -1, len(shifts) - 1  # at(low) is too small (or nothing at all), at(high) is large enough
    while high - low > 1:
        middle = (low + high) // 2
        if cost(graph, at(np.nextafter(shifts[middle], np.inf))).parameters < parameters:
            low = middle
        else:
            high = middle
    return at(np.nextafter(shifts[high], np.inf))
