import json

import numpy as np
import pytest
from forms import closed, cost, forms, masks_of
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from tfnas.common.errors import UserError
from tfnas.common.schema import read, to_json
from tfnas.search_space.closed_form import ClosedForm, Group, Term, Width

# A residual branch: stream of 8 pinned channels -> inner group of 4 -> squeeze of 2 inside the branch -> stream.
BRANCH = ClosedForm(
    groups=(Group("inner", 4, True, False), Group("squeeze", 2, False, False)),
    widths=(Width(1), Width(8), Width(0, ((0, 1),)), Width(0, ((1, 1),))),
    terms={
        "parameters": (
            Term("stem", 27, 1),
            Term("expand", 9, 1, 2, (0,)),
            Term("squeeze", 1, 2, 3, (0,)),
            Term("excite", 1, 3, 2, (0,)),
            Term("project", 9, 2, 1, (0,)),
        )
    },
    dead=((), (0,)),
)


@fuzz(100)
@given(forms(), st.data())
def test_counts_of_all_masks_by_brute_force(form, data):
    masks = masks_of(form)
    units = np.split(masks, form.starts[1:], axis=1)
    kept = form.closed(np.stack([mask.sum(1) for mask in units], axis=1))
    by_hand = [closed(form, mask) for mask in masks]
    assert kept.tolist() == by_hand
    counts = form.counts(kept)
    for resource in form.terms:
        assert counts[resource].tolist() == [cost(form, one, resource) for one in by_hand]
        assert form.full(resource) == cost(form, closed(form, masks[-1]), resource)
        assert form.least(resource) == min(counts[resource])
        i = data.draw(st.integers(0, len(masks) - 1))
        held = form.holders(resource, kept[i])
        assert sum(held.values()) == counts[resource][i] and 0 not in held.values()
        assert list(held.values()) == sorted(held.values(), reverse=True)


@fuzz(100)
@given(forms(), st.integers(2, 4))
def test_the_least_cost_with_multiples(form, multiple):
    smallest = closed(form, np.zeros(form.num_units, bool), multiple)
    assert form.closed(np.zeros(len(form.groups), int), multiple).tolist() == smallest
    assert form.least("parameters", multiple) == cost(form, smallest, "parameters")


def probabilities(form, data):
    """Of each unit, that it is kept; certain ones among them."""
    probability = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99))
    return np.array(data.draw(st.lists(probability, min_size=form.num_units, max_size=form.num_units)))


@fuzz(100)
@given(forms(), st.data())
def test_the_expectation_is_the_mean_over_all_masks(form, data):
    q, masks = probabilities(form, data), masks_of(form)
    weights = np.prod(np.where(masks, q, 1 - q), axis=1)
    kept = [closed(form, mask) for mask in masks]
    for resource, expectation in form.expectations.items():
        mean = weights @ [cost(form, one, resource) for one in kept]
        assert expectation.value(q) == pytest.approx(mean, rel=1e-9, abs=1e-9)


@fuzz(100)
@given(forms(), st.data())
def test_the_gradient_is_the_difference_that_each_unit_makes(form, data):
    """E[cost] is linear in each unit's own probability, so that the difference of its two ends is the derivative."""
    q, masks = probabilities(form, data), masks_of(form)
    costs = {r: np.array([cost(form, closed(form, mask), r) for mask in masks]) for r in form.terms}
    for resource, expectation in form.expectations.items():
        gradient = expectation.gradient(q)
        assert (gradient >= -1e-9).all()
        for u in range(form.num_units):
            others = np.delete(np.where(masks, q, 1 - q), u, axis=1).prod(1)
            difference = (np.where(masks[:, u], 1, -1) * others) @ costs[resource]
            assert gradient[u] == pytest.approx(difference, rel=1e-9, abs=1e-7)
        value, same = expectation.value_and_gradient(q)
        assert value == pytest.approx(expectation.value(q), rel=1e-12) and (same == gradient).all()


def test_an_emptied_branch_costs_nothing_and_takes_its_squeeze_with_it():
    assert BRANCH.full("parameters") == 27 * 8 + 9 * 8 * 4 * 2 + 4 * 2 * 2
    assert BRANCH.closed(np.array([[0, 2], [3, 0], [0, 0]])).tolist() == [[0, 0], [3, 1], [0, 0]]
    assert BRANCH.least("parameters") == 27 * 8
    assert BRANCH.holders("parameters", np.array([4, 2])) == {
        "expand": 288,
        "project": 288,
        "stem": 216,
        "squeeze": 8,
        "excite": 8,
    }


def test_bounds_are_shares_or_costs():
    assert BRANCH.absolute({"parameters": 0.5}) == {"parameters": BRANCH.full("parameters") / 2}
    assert BRANCH.absolute({"parameters": 300}) == {"parameters": 300}
    timed = BRANCH.with_latency([Term("expand", 1e-4, 1, 2, (0,))])
    assert timed.full("latency") == pytest.approx(32e-4)
    assert timed.absolute({"latency": 0.25}) == {"latency": pytest.approx(8e-4)}


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf"), "half", True, None])
def test_a_bound_that_is_not_a_positive_number_is_refused(bound):
    with pytest.raises(UserError, match="bounds: parameters must be a share of the full network's, above 0"):
        BRANCH.absolute({"parameters": bound})


def test_a_bound_out_of_reach_names_the_layers_that_hold_it():
    with pytest.raises(UserError, match="parameters=100 is out of reach: at least 216 of 808 remain, .* in 'stem' 216"):
        BRANCH.check_reach({"parameters": 100})
    # As it was given, with the smallest share that is possible.
    for bound, told in [
        (0.001, "parameters=0.001 is out of reach: at least 216 of 808 remain, a share of 0.268, .* raise the bound$"),
        (1.5, "parameters=1.5 is out of reach: .* raise the bound; did you mean a share, at most 1?"),
    ]:
        with pytest.raises(UserError, match=told):
            BRANCH.check_reach(BRANCH.absolute({"parameters": bound}), given={"parameters": bound})
    BRANCH.check_reach(BRANCH.absolute({"parameters": 0.268}))
    BRANCH.check_reach({"parameters": 216})
    timed = BRANCH.with_latency([Term("stem", 1e-4, 1), Term("expand", 1e-4, 1, 2, (0,))])
    with pytest.raises(
        UserError, match=r"latency=0.125 is out of reach: at least 0.2 of the full network's, .* in 'stem' 0.2;"
    ):
        timed.check_reach({"latency": 5e-4})


def test_resources_that_are_not_known():
    with pytest.raises(UserError, match="one of 'parameters', 'multiply_adds', 'latency' expected. Received: 'time'"):
        BRANCH.full("time")
    with pytest.raises(UserError, match="multiply_adds are not known, because the model's input has no fixed size"):
        BRANCH.absolute({"multiply_adds": 0.5})
    with pytest.raises(UserError, match="latency is not known: measure it first"):
        BRANCH.least("latency")


@fuzz(100)
@given(forms())
def test_json_round_trip(form):
    form.full("parameters")  # what is cached is not written
    assert read(to_json(form), ClosedForm, "form") == form


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda form: form["groups"].append(form["groups"][0]), "groups with names of their own, 2"),
        (lambda form: form["widths"].pop(0), r"widths\[0\]' must be the constant 1"),
        (lambda form: form["dead"].pop(), "an entry for each of 2 groups"),
        (lambda form: form["dead"].__setitem__(0, [2]), "numbers of 2 groups"),
        (lambda form: form["terms"]["parameters"][0].update(first=4), "numbers of 4 widths"),
        (lambda form: form["terms"]["parameters"][0].update(coefficient=-1), "coefficient' must be .* at least 0"),
        (lambda form: form["terms"].update(time=[]), "one of parameters, multiply_adds, latency"),
        (lambda form: form["terms"].pop("parameters"), "there for 'parameters'"),
        (lambda form: form["widths"][2].update(members=[[0, 1, 2]]), "a group and a multiplicity"),
    ],
)
def test_a_form_that_does_not_fit_together_is_refused(change, message):
    value = json.loads(to_json(BRANCH))
    change(value)
    with pytest.raises(UserError, match=f"form .*{message}"):
        read(json.dumps(value), ClosedForm, "form")
