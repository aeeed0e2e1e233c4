"""Posteriors of scores: what is kept, in which order, and how much candidates differ."""

import dataclasses
import time

import numpy as np
import pytest
from test_unit_posterior import chain, mask_of, residual, shares

from tfnas.search_space.scored import posterior_of
from tfnas.search_space.unit_posterior import read_posterior


def absolute(form, **bounds):
    return form.absolute(bounds)


def even(form):
    return -np.concatenate([(np.arange(n) + 0.5) / n for n in form.sizes])


@pytest.mark.parametrize("multiple", [1, 3])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 0.97])
def test_ranks_keep_the_same_share_of_every_group_within_a_unit(share, multiple):
    form = chain(4, 1)
    sizes = (8, 13, 64, 40)
    groups = tuple(dataclasses.replace(g, size=size) for g, size in zip(form.groups, sizes, strict=True))
    form = dataclasses.replace(form, groups=groups)
    q = posterior_of(form, even(form), absolute(form, parameters=share, multiply_adds=0.9), multiple, tilts=False)
    kept = np.array([mask.sum() for mask in q.mode().values()])
    assert (np.maximum(kept - multiple, 0) / sizes).max() <= ((kept + multiple) / sizes).min()
    costs = [q.cost_of(q.mode(), resource) / bound for resource, bound in q.bounds.items()]
    assert 0.75 < max(costs) <= 1 or (kept == multiple).any()
    expected = [part.mean() for part in np.split(q.keep_probability, form.starts[1:])]
    assert max(expected) - min(expected) < 0.05


@pytest.mark.parametrize("tilts", [True, False])
@pytest.mark.parametrize("form", [chain(4, 24), residual(6, 16)], ids=["chain", "residual"])
def test_candidates_obey_the_bounds_and_differ_from_the_most_probable_one_in_some_units(form, tilts):
    rng = np.random.default_rng(3)
    scores = rng.lognormal(0, 1.5, form.num_units) * np.repeat(rng.lognormal(0, 1, len(form.sizes)), form.sizes)
    bounds = absolute(form, parameters=0.4, multiply_adds=0.3)
    q = posterior_of(form, scores, bounds, tilts=tilts)
    for resource, bound in bounds.items():
        assert q.expected_cost(resource) <= bound * (1 + 1e-4)
    assert max(q.expected_cost(resource) / bound for resource, bound in bounds.items()) == pytest.approx(1, rel=1e-4)
    candidates = q.sample(60)
    assert len(candidates) == 60 and q.sample(3, parameters=0.2)
    for candidate in candidates:
        assert all(q.cost_of(candidate, resource) <= bound for resource, bound in bounds.items())
    mode = mask_of(q.mode())
    assert np.mean([mask_of(c) != mode for c in candidates]) == pytest.approx(0.05, abs=0.025)
    assert shares(q, candidates[0])["parameters"] > 0.3 or shares(q, candidates[0])["multiply_adds"] > 0.25
    # Without tilts the best units are kept, whatever they cost; with them no unit is kept for a worse one of its group.
    best = np.sort(scores)[::-1][: mode.sum()].min()
    if not tilts:
        assert (mode == (scores >= best)).all()
    for part, kept in zip(np.split(scores, form.starts[1:]), np.split(mode, form.starts[1:]), strict=True):
        if 0 < kept.sum() < kept.size:
            assert part[kept].min() >= part[~kept].max()
    assert read_posterior(q.to_json()) == q


def test_only_scores_that_compare_are_weighed_against_costs():
    """Of two layers with equal scores, the one that costs more is narrowed more."""
    form = chain(3, 30)
    scores = np.tile(np.random.default_rng(0).lognormal(0, 1, 30), 3)
    bounds = absolute(form, multiply_adds=0.3)
    for tilts in (True, False):
        kept = [mask.sum() for mask in posterior_of(form, scores, bounds, tilts=tilts).mode().values()]
        assert (max(kept) - min(kept) > 5) == tilts
    even_shift = np.diff(np.array(posterior_of(form, scores, bounds, tilts=False).keep_logits).reshape(3, 30), axis=0)
    np.testing.assert_allclose(even_shift, 0, atol=1e-6)


@pytest.mark.parametrize("scores", [np.zeros, np.ones, lambda n: np.arange(n) >= n - 1, lambda n: -np.ones(n)])
def test_scores_without_spread_still_make_a_posterior(scores):
    form = chain(3, 8)
    for tilts in (True, False):
        q = posterior_of(form, np.asarray(scores(form.num_units), float), absolute(form, parameters=0.5), 2, tilts)
        assert q.cost_of(q.mode()) <= q.bounds["parameters"] and len(q.sample(5)) == 5


def test_a_factor_of_the_scores_changes_nothing():
    form = residual(4, 12)
    scores = np.random.default_rng(1).lognormal(0, 2, form.num_units)
    bounds = absolute(form, parameters=0.4, multiply_adds=0.4)
    np.testing.assert_allclose(
        posterior_of(form, 1e-9 * scores, bounds).keep_logits, posterior_of(form, scores, bounds).keep_logits, rtol=1e-6
    )


def test_a_large_network_takes_a_moment():
    form = residual(60, 256)
    scores = np.random.default_rng(1).lognormal(0, 2, form.num_units)
    start = time.process_time()
    posterior_of(form, scores, absolute(form, parameters=0.5, multiply_adds=0.5))
    assert time.process_time() - start < 5
