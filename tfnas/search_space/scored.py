"""Makes a posterior of what each channel unit is worth. No TensorFlow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.unit_posterior import UnitPosterior

_DIFFERING = 0.05  # mean share of the units in which a candidate differs from the most probable one
_SHARPNESS = (1e-2, 1e6)  # logits of a score as large as the mean one, at least and at most
_HALVINGS = 14
_MARGIN = 1.0  # smallest logit of the units that stay in the most probable architecture, and of minus that, of others


def posterior_of(
    form: ClosedForm,
    scores: np.ndarray,
    bounds: Mapping[str, float],
    channel_multiple: int = 1,
    tilts: bool = True,
) -> UnitPosterior:
    """The posterior of units with these scores, at its bounds (method.md, "Importances").

    Its logits are N times the scores, tilted or shifted to the bounds. N is a temperature: the larger, the closer are
    candidates to the units with the best scores. It is such that the mean over units of min(q, 1 - q) is 0.05: on
    average a candidate differs from the most probable architecture in 5 % of the units.

    Args:
        form: the groups of units, and what they cost.
        scores: finite, float64, shape (U,); up to a positive factor.
        bounds: largest cost of a candidate by resource, absolute; not empty.
        channel_multiple: as of `UnitPosterior`.
        tilts: as of `UnitPosterior`: whether scores of different groups compare.

    Raises:
        UserError: for a bound that no candidate can meet.
    """
    mean = float(np.abs(scores).mean())
    scaled = scores / mean if mean > 0 else scores

    def at(sharpness: float) -> UnitPosterior:
        logits = tuple((math.exp(sharpness) * scaled).tolist())
        return UnitPosterior(form, logits, dict(bounds), channel_multiple, tilts).tilted()

    low, high = (math.log(sharpness) for sharpness in _SHARPNESS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        q = at(middle).keep_probability
        if np.minimum(q, 1 - q).mean() > _DIFFERING:
            low = middle
        else:
            high = middle
    return at(high)


def intermediate_bounds(form: ClosedForm, bounds: Mapping[str, float], share: float) -> dict[str, float]:
    """Bounds that fall geometrically from the full network's costs to `bounds`, at this share of the way in (0, 1].

    Bounds that bind nothing, above the full network's costs, are left out unless all are.
    """
    if share >= 1:
        return dict(bounds)
    falling = {
        resource: full * (bound / full) ** share
        for resource, bound in bounds.items()
        if (full := form.full(resource)) > bound
    }
    return falling or dict(bounds)


def settled(posterior: UnitPosterior, kept: np.ndarray) -> UnitPosterior:
    """The same posterior, but these units make up its most probable architecture, which obeys the bounds.

    Args:
        posterior: whose logits are within bounds.
        kept: bool, shape (U,).
    """
    logits = np.array(posterior.keep_logits)
    logits = np.where(kept, np.maximum(logits, _MARGIN), np.minimum(logits, -_MARGIN))
    return dataclasses.replace(posterior, keep_logits=tuple(logits.tolist()), tilts=False)
