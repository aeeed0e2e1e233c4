"""Reference architectures of channel units within bounds: random ones, and those with the largest weights.

As a posterior's candidates do, they keep the units with the highest scores, as many as the bounds allow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfnas.graph.units import PINNED, UnitGraph
from tfnas.layers import family_of
from tfnas.runs.sampled import Kind
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.filling import Filling
from tfnas.search_space.unit_posterior import UnitPosterior

_DRAWS = {Kind.EVEN: 1, Kind.ALLOCATED: 2}  # index of a kind in the seed of a sample


def random_candidate(posterior: UnitPosterior, kind: Kind, seed: int, i: int) -> Architecture:
    """Returns random candidate `i`, as large as the posterior's bounds allow.

    Args:
        posterior: has the bounds and the multiple of units by which widths grow; its probabilities are not used.
        kind: EVEN keeps every unit with the same probability. ALLOCATED first draws a keep rate from U(0, 1) for every
            group.
        seed: seed of the set of candidates.
        i: index of the candidate; the sample is a function of (seed, kind, i) only.
    """
    form = posterior.form
    rng = np.random.default_rng([seed, _DRAWS[kind], i])
    rates = rng.uniform(0.01, 0.99, len(form.sizes)) if kind == Kind.ALLOCATED else np.full(len(form.sizes), 0.5)
    preference = np.repeat(np.log(rates) - np.log1p(-rates), form.sizes)
    return within(posterior, rng.logistic(size=form.num_units) + preference)


def within(posterior: UnitPosterior, scores: np.ndarray) -> Architecture:
    """Returns the architecture of the units with the highest scores, as many as the posterior's bounds allow.

    Args:
        posterior: has the bounds and the multiple of units by which widths grow; its probabilities are not used.
        scores: one per unit, float64, shape (U,).
    """
    form = posterior.form
    (kept,) = Filling(form, posterior.bounds, posterior.channel_multiple).keep(scores[None])
    masks = np.split(kept, form.starts[1:])
    return Architecture({group.name: mask for group, mask in zip(form.groups, masks, strict=True)})


def even_drop(form: ClosedForm, costs: Mapping[str, float]) -> float:
    """Returns the smallest common drop probability of all units under which no expected cost exceeds `costs`.

    Args:
        form: of the supernet.
        costs: by resource.

    Returns:
        A number in [1e-6, 1 - 1e-6], because the gates of a supernet are never exactly certain.
    """
    low, high = 1e-6, 1 - 1e-6
    for _ in range(60):
        drop = (low + high) / 2
        keep = np.full(form.num_units, 1 - drop)
        holds = all(form.expectations[resource].value(keep) <= most for resource, most in costs.items())
        low, high = (low, drop) if holds else (drop, high)
    return high


def mean_magnitudes(graph: UnitGraph) -> np.ndarray:
    """Returns for each unit the mean absolute value of the weights that read it, float64, shape (U,).

    Infinity where no weight does.
    """
    total, count = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for node in graph.nodes:
        if not node.mixes:
            continue
        of = graph.of[node.inputs[0]]
        for kernel, shape in family_of(node.inner).channel_kernels(node.inner):
            sums = np.abs(np.asarray(kernel, np.float64)).reshape(shape).sum((0, 2))
            np.add.at(total, of[of != PINNED], sums[of != PINNED])
            np.add.at(count, of[of != PINNED], shape[0] * shape[2])
    return np.divide(total, count, out=np.full_like(total, np.inf), where=count > 0)
