"""Random architectures of channel units within bounds.

As a posterior's candidates do, they keep the units with the highest scores, as many as the bounds allow.
"""

from __future__ import annotations

import numpy as np

from tfnas.runs.sampled import Kind
from tfnas.search_space.architecture import Architecture
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
