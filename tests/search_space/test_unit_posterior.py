import dataclasses
import json
import time

import numpy as np
import pytest
import tensorflow_probability as tfp
from forms import closed, cost, forms, masks_of, units_of
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from tfnas.common.errors import UserError
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.closed_form import ClosedForm, Group, Term, Width
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior, read_posterior

MULTIPLES = st.sampled_from([1, 1, 2, 3])


def residual(blocks, width):
    """A residual network on a pinned stream, whose blocks may empty; images get smaller."""
    widths, terms = [Width(1), Width(3), Width(width), Width(10)], []
    for g in range(blocks):
        widths.append(Width(0, ((g, 1),)))
        terms += [Term(f"a{g}", 9, 2, 4 + g, (g,)), Term(f"norm{g}", 2, 4 + g), Term(f"b{g}", 9, 4 + g, 2, (g,))]
    terms += [Term("stem", 27, 2), Term("head", 1, 2, 3)]
    pixels = {f"{kind}{g}": 4.0 ** (5 - 4 * g // blocks) for g in range(blocks) for kind in ("a", "b")}
    adds = [dataclasses.replace(t, coefficient=t.coefficient * pixels.get(t.name, 0)) for t in terms]
    groups = tuple(Group(f"inner{g}", width, True, False) for g in range(blocks))
    resources = {"parameters": tuple(terms), "multiply_adds": tuple(t for t in adds if t.coefficient)}
    return ClosedForm(groups, tuple(widths), resources, ((),) * blocks)


def chain(layers, width):
    """Convolutions one after another, of which none may empty."""
    widths = [Width(1), Width(3), *(Width(0, ((g, 1),)) for g in range(layers)), Width(10)]
    terms = tuple(Term(f"conv{i}", 9, 1 + i, 2 + i) for i in range(layers + 1))
    adds = tuple(dataclasses.replace(t, coefficient=9 * 4.0 ** (layers - i)) for i, t in enumerate(terms))
    groups = tuple(Group(f"g{g}", width, False, False) for g in range(layers))
    return ClosedForm(groups, tuple(widths), {"parameters": terms, "multiply_adds": adds}, ((),) * layers)


def posterior(form, seed=0, spread=2.0, **options):
    return UnitPosterior(form, tuple(np.random.default_rng(seed).normal(1, spread, form.num_units).tolist()), **options)


def mask_of(architecture):
    return np.concatenate(list(architecture.values()))


def shares(q, architecture):
    return {resource: q.cost_of(architecture, resource) / q.form.full(resource) for resource in q.form.terms}


SMALL = posterior(chain(2, 3))


@st.composite
def bounded(draw):
    """A posterior of a small random form, and bounds within reach for a multiple."""
    form, multiple = draw(forms()), draw(MULTIPLES)
    logits = draw(st.lists(st.floats(-6, 6), min_size=form.num_units, max_size=form.num_units))
    bounds = {}
    for resource in draw(st.sampled_from([("parameters",), ("multiply_adds",), ("parameters", "multiply_adds")])):
        least, full = form.least(resource, multiple), form.full(resource)
        bounds[resource] = max(least + draw(st.floats(0, 1)) * (full - least), 1.5)
    return UnitPosterior(form, tuple(logits)), bounds, multiple


def filled(form, scores, bounds, multiple):
    """The mask of one candidate, block after block; a group whose next block does not fit is complete."""
    of, blocks = np.array(units_of(form)), []
    for g, group in enumerate(form.groups):
        best = sorted(np.flatnonzero(of == g), key=lambda u: -scores[u])
        for start in range(0, group.size, multiple):
            blocks.append((-np.mean(scores[best[start : start + multiple]]), start / group.size, g, start))
    entered = [0] * len(form.groups)
    units = [sorted(np.flatnonzero(of == g), key=lambda u: -scores[u]) for g in range(len(form.groups))]

    def mask(counts):
        entering = np.zeros(form.num_units, bool)
        for g, count in enumerate(counts):
            entering[units[g][:count]] = True
        final = np.zeros(form.num_units, bool)
        for g, count in enumerate(closed(form, entering, multiple)):
            final[units[g][:count]] = True
        return final

    last, complete = mask(entered), set()
    for score, _, g, start in sorted(blocks):
        if g in complete or (not bounds and score >= 0):
            continue
        before, entered[g] = entered[g], min(start + multiple, form.groups[g].size)
        further = mask(entered)
        if all(cost(form, closed(form, further, multiple), resource) <= most for resource, most in bounds.items()):
            last = further
        else:
            entered[g] = before
            complete.add(g)
    return last


def expected_candidates(form, logits, bounds, multiple, seed, number):
    """Candidates one after another; one that was there before is drawn again, the noise doubled every 8 times."""
    found = []
    for i in range(number):
        for attempt in range(129):
            rng = np.random.default_rng([seed, i, attempt, 1] if attempt else [seed, i])
            noise = 2.0 ** (attempt // 8) * rng.logistic(size=len(logits)) if i or attempt else 0
            mask = filled(form, logits + noise, bounds, multiple).tolist()
            if mask not in found:
                found.append(mask)
                break
        else:
            return found
    return found


@fuzz(100)
@given(bounded(), st.integers(0, 5))
def test_candidates_fill_the_bounds_and_do_not_exceed_them(problem, seed):
    q, bounds, multiple = problem
    found = q.sample(4, seed, 0, multiple, **bounds)
    logits = np.array(q.tilted(bounds).keep_logits)
    if len(set(logits.tolist())) == len(logits):  # the order of equal ones has a test of its own
        assert [mask_of(a).tolist() for a in found] == expected_candidates(q.form, logits, bounds, multiple, seed, 4)
    for candidate in found:
        kept = closed(q.form, mask_of(candidate), multiple)
        assert kept == [int(part.sum()) for part in candidate.values()]
        assert all(k % multiple == 0 or k == g.size for k, g in zip(kept, q.form.groups, strict=True))
        for resource, most in bounds.items():
            assert cost(q.form, kept, resource) == q.cost_of(candidate, resource) <= most


@fuzz(40)
@given(bounded(), st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))
def test_shards_agree_with_all_candidates(problem, seed, first, number):
    q, bounds, multiple = problem
    together = q.sample(12, seed, 0, multiple, **bounds)
    again = dataclasses.replace(q).sample(number, seed, first, multiple, **bounds)
    assert again == together[first : first + number] and len(set(together)) == len(together)
    assert (
        q.sample(1, seed + 1, 0, multiple, **bounds) == together[:1] == [q.mode(**bounds)] * (multiple == 1)
        or multiple > 1
    )


@fuzz(100)
@given(forms(), st.data())
def test_without_bounds_candidates_are_closed_bernoulli_samples(form, data):
    logits = data.draw(st.lists(st.floats(-6, 6), min_size=form.num_units, max_size=form.num_units))
    found = UnitPosterior(form, tuple(logits)).sample(4, seed=3)
    assert [mask_of(a).tolist() for a in found] == expected_candidates(form, np.array(logits), {}, 1, 3, 4)


def test_frequencies_without_bounds_are_the_keep_probabilities():
    """Of 2,000 candidates of 60 units, which are all distinct: 5 standard deviations of a mean."""
    form = ClosedForm((Group("a", 60, True, False),), (Width(1), Width(0, ((0, 1),))), {"parameters": ()}, ((),))
    q = posterior(form)
    frequency = np.mean([mask_of(a) for a in q.sample(2000, seed=1, first=1)], axis=0)
    np.testing.assert_allclose(frequency, q.keep_probability, atol=5 * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize("multiple", [1, 4, 16])
@pytest.mark.parametrize("form", [residual(6, 80), chain(5, 80)], ids=["residual", "chain"])
@pytest.mark.parametrize(
    "bounds",
    [{r: s} for r in ("parameters", "multiply_adds") for s in (0.1, 0.25, 0.5, 0.75, 0.95)]
    + [{"parameters": 0.3, "multiply_adds": s} for s in (0.1, 0.3, 0.5)],
    ids=str,
)
def test_the_binding_bound_is_met(form, multiple, bounds):
    """Within 1 % in single units; in multiples, within 3 % or what one multiple of the dearest group costs."""
    q = posterior(form)
    for candidate in q.sample(20, seed=2, channel_multiple=multiple, **bounds):
        found = shares(q, candidate)
        assert all(found[resource] <= bound for resource, bound in bounds.items())
        if multiple == 1:
            assert any(found[resource] >= 0.99 * bound for resource, bound in bounds.items())
            continue
        kept = np.array([part.sum() for part in candidate.values()])
        step = {resource: 0.0 for resource in bounds}
        for g in range(len(kept)):
            more = form.counts(form.closed(kept + multiple * (np.arange(len(kept)) == g), multiple))
            for resource in bounds:
                step[resource] = max(step[resource], float(more[resource]) / form.full(resource) - found[resource])
        assert any(found[r] >= 0.97 * bound or found[r] + step[r] > bound for r, bound in bounds.items())


@pytest.mark.parametrize("logits", ["drawn", "equal"])
@pytest.mark.parametrize("form", [residual(6, 40), residual(3, 8), chain(5, 40), chain(4, 12)])
@pytest.mark.parametrize(
    "bounds",
    [{r: s} for r in ("parameters", "multiply_adds") for s in (0.1, 0.25, 0.5, 0.75, 0.95)]
    + [{"parameters": 0.3, "multiply_adds": s} for s in (0.1, 0.25, 0.3, 0.5)],
    ids=str,
)
def test_tilted_probabilities_are_stationary(form, logits, bounds):
    """The shift of the logits is a combination of the gradients, with multipliers of the right sign, found by lstsq."""
    q = posterior(form, spread=2.0 if logits == "drawn" else 0.0)
    tilted = q.tilted(bounds)
    gradients = np.stack([form.expectations[r].gradient(tilted.keep_probability) / form.full(r) for r in bounds], 1)
    shift = np.array(q.keep_logits) - np.array(tilted.keep_logits)
    multipliers = np.linalg.lstsq(gradients, shift)[0]
    np.testing.assert_allclose(gradients @ multipliers, shift, atol=1e-3 * (1 + np.abs(shift).max()))
    for (resource, bound), multiplier in zip(bounds.items(), multipliers, strict=True):
        share = tilted.expected_share(resource)
        assert share <= bound * (1 + 1e-4)
        if len(bounds) == 1:
            assert share == pytest.approx(bound, rel=1e-4)
        else:
            scale = np.abs(gradients).max() / (1 + np.abs(shift).max())
            assert multiplier * scale > -1e-3
            assert share == pytest.approx(bound, rel=1e-4) or abs(multiplier) * scale < 1e-3


def test_a_looser_single_bound_adds_expensive_units_first_and_two_bounds_do_not():
    q = posterior(chain(3, 20)).tilted({"multiply_adds": 0.3})
    looser = np.array(q.tilted({"multiply_adds": 0.6}).keep_logits) - np.array(q.keep_logits)
    early, _, late = (part.mean() for part in np.split(looser, 3))
    assert early > late > 0
    assert q.tilted({"multiply_adds": 0.9, "parameters": 0.9}).keep_logits == q.keep_logits
    assert q.tilted({"multiply_adds": 1}).keep_logits == q.keep_logits


def test_bounds_of_the_posterior_hold_unless_others_are_given():
    q = posterior(chain(3, 20))
    bound = 0.4 * q.form.full("parameters")
    own = dataclasses.replace(q, bounds={"parameters": bound}, channel_multiple=4)
    assert own.sample(5) == q.sample(5, parameters=0.4, channel_multiple=4)
    assert own.sample(5, multiply_adds=0.3, channel_multiple=1) == q.sample(5, multiply_adds=0.3)
    assert own.mode() == own.sample(1, seed=7)[0]
    assert own.tilted().bounds == {"parameters": bound}
    assert all(q.cost_of(a) > bound for a in own.sample(5, parameters=0.9))


def test_equal_scores_enter_evenly_over_the_groups():
    form = residual(4, 10)
    groups = tuple(
        dataclasses.replace(group, size=size) for group, size in zip(form.groups, (10, 10, 20, 5), strict=True)
    )
    even = UnitPosterior(dataclasses.replace(form, groups=groups), (0.0,) * 45)
    kept = [int(part.sum()) for part in even.mode(parameters=0.4).values()]
    assert max(np.abs(np.array(kept) / (10, 10, 20, 5) - 0.4)) < 0.11


def test_all_of_a_small_space_is_found_and_no_more():
    """Bounds on a group of 5 equal units let 2 of them in: 10 candidates, however unlikely some are."""
    form = ClosedForm(
        (Group("a", 5, True, False),), (Width(1), Width(0, ((0, 1),))), {"parameters": (Term("a", 10, 1),)}, ((),)
    )
    q = UnitPosterior(form, (30.0, 20.0, 0.0, -20.0, -30.0))
    found = q.sample(50, seed=1, parameters=25)
    assert len(set(found)) == len(found) == 10 and {a.kept for a in found} == {2}
    assert q.sample(5, seed=1, first=8, parameters=25) == found[8:]
    assert q.sample(5, seed=1, first=20, parameters=25) == []


def test_many_candidates_of_many_units_take_seconds():
    q = posterior(residual(40, 250))
    start = time.process_time()
    assert len(set(q.sample(300, parameters=0.3))) == 300
    assert time.process_time() - start < 6


def test_log_prob_and_entropy_are_tfps(rng):
    keep = rng.integers(0, 2, SMALL.form.num_units)
    bernoulli = tfp.distributions.Bernoulli(logits=SMALL.keep_logits)
    architecture = Architecture({"g0": keep[:3].astype(bool), "g1": keep[3:].astype(bool)})
    assert SMALL.log_prob(architecture) == pytest.approx(float(bernoulli.log_prob(keep).numpy().sum()), rel=1e-5)
    assert SMALL.entropy() == pytest.approx(float(bernoulli.entropy().numpy().sum()), rel=1e-5)
    q = UnitPosterior(SMALL.form, (-4.0, 4.0, 0.1, 2.0, -0.5, 3.0))
    assert q.decided() == (3, 6)
    assert [gate[:2] for gate in q.undecided()] == [("g0", 2), ("g1", 1), ("g1", 0)]
    assert q.undecided(1)[0][2] == pytest.approx(1 / (1 + np.exp(0.1)))


def test_expected_costs_are_the_mean_over_all_masks():
    masks = masks_of(SMALL.form)
    weights = np.prod(np.where(masks, SMALL.keep_probability, 1 - SMALL.keep_probability), axis=1)
    for resource in SMALL.form.terms:
        mean = weights @ [cost(SMALL.form, closed(SMALL.form, mask), resource) for mask in masks]
        assert SMALL.expected_cost(resource) == pytest.approx(mean)
        assert SMALL.expected_share(resource) == pytest.approx(mean / SMALL.form.full(resource))


def test_another_networks_architecture_is_refused():
    with pytest.raises(UserError, match="cost_of: the groups of this posterior expected. .* 'g1' is only in the post"):
        SMALL.cost_of(Architecture({"g0": [True] * 3}))
    with pytest.raises(UserError, match="log_prob: 'g0': a mask of 3 units expected. Received: 2"):
        SMALL.log_prob(Architecture({"g0": [True] * 2, "g1": [True] * 3}))


def test_a_bound_out_of_reach_is_refused_and_the_message_names_what_holds_it():
    # One unit each, or two: 27 + 9 + 90 of 81 + 81 + 270.
    with pytest.raises(
        UserError, match="parameters=125 is out of reach: at least 126 of 432 .* in 'conv2' 90, 'conv0'"
    ):
        SMALL.sample(1, parameters=125)
    assert SMALL.mode(parameters=126).kept == 2
    with pytest.raises(
        UserError, match="=126 is out of reach: at least 270 of 432 .* or lower channel_multiple=2, which holds it"
    ):
        SMALL.sample(1, channel_multiple=2, parameters=126)
    with pytest.raises(
        UserError, match="parameters=0.01 is out of reach: at least 126 of 432 remain, a share of 0.292"
    ):
        SMALL.mode(parameters=0.01)
    with pytest.raises(UserError, match="one of 'parameters', 'multiply_adds', 'latency' expected. Received: 'size'"):
        SMALL.sample(1, size=0.5)
    with pytest.raises(UserError, match="latency is not known"):
        SMALL.tilted({"latency": 0.5})


def test_a_measured_latency_is_a_bound_like_the_others():
    q = posterior(chain(3, 20))
    timed = q.with_latency(
        [Term(t.name, 1e-9 * t.coefficient, t.first, t.second) for t in q.form.terms["multiply_adds"]]
    )
    assert timed.sample(5, latency=0.3) == q.sample(5, multiply_adds=0.3)
    assert timed.expected_cost("latency") == pytest.approx(1e-9 * q.expected_cost("multiply_adds"))
    with pytest.raises(UserError, match=r"bounds: latency must be a share .*, above 0 and at most 1\. Received: 1\.5"):
        timed.sample(1, latency=1.5)
    for bound in (0, -1, float("nan"), float("inf"), True, "half"):
        with pytest.raises(UserError, match="bounds: parameters must be a share .* or a number above 1. Received: "):
            timed.sample(1, parameters=bound)


def test_json_of_either_kind_is_read_back_and_damage_refused():
    q = dataclasses.replace(SMALL, bounds={"parameters": 200.0}, channel_multiple=2)
    q.mode(parameters=300)  # what is cached is not written
    assert UnitPosterior.from_json(q.to_json()) == read_posterior(q.to_json()) == q
    published = Posterior((LayerGates("a", (2, 1), (0.1, 0.7), 9),))
    assert read_posterior(published.to_json()) == published
    for text in (q.to_json()[:-4], "[]", published.to_json()[:-4]):
        with pytest.raises(UserError, match="posterior: not the JSON of a Posterior"):
            read_posterior(text)
    for name, value, message in [
        ("keep_logits", [0.0], "one for each of 6 units"),
        ("bounds", {"latency": 1.0}, "resources whose cost is known, parameters, multiply_adds"),
        ("channel_multiple", 0, r"an integer in \[1"),
    ]:
        damaged = json.loads(q.to_json())
        damaged["unit_posterior"][name] = value
        with pytest.raises(UserError, match=message):
            read_posterior(json.dumps(damaged))


def test_posteriors_print_one_line():
    half = UnitPosterior(SMALL.form, (0.0,) * SMALL.form.num_units)
    form = half.form
    masks = masks_of(form)
    shares = {r: np.mean([cost(form, closed(form, mask), r) for mask in masks]) / form.full(r) for r in form.terms}
    expected = ", ".join(f"{100 * share:.1f} % of the {r.replace('_', '-')}" for r, share in shares.items())
    assert repr(half) == f"<UnitPosterior of {form.num_units} units in {len(form.groups)} groups: {expected} expected>"
    # 9 (2 * 0.9 + 0.3) of 9 * 3
    published = Posterior((LayerGates("a", (2, 1), (0.1, 0.7), 9),))
    assert repr(published) == "<Posterior of 3 channels in 1 layers: 70.0 % of the kernel weights expected>"


def test_a_notebook_shows_the_share_that_each_group_keeps():
    html = SMALL._repr_html_()
    assert "2 groups of channel units" in html and "of multiply-adds" in html and "<svg" in html


@pytest.mark.parametrize(
    "wrong",
    [{"channel_multiple": 0}, {"channel_multiple": 2.5}, {"seed": -1}, {"first": -3}, {"num_candidates": -1}],
)
def test_numbers_out_of_range_are_refused(wrong):
    form = ClosedForm(
        (Group("a", 3, False, False),), (Width(1), Width(0, ((0, 1),))), {"parameters": (Term("a", 1.0, 1),)}, ((),)
    )
    q = UnitPosterior(form, (0.0,) * 3)
    with pytest.raises(UserError, match=f"sample: {next(iter(wrong))} must be an integer of at least"):
        q.sample(**{"num_candidates": 2, **wrong})
