import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from tfnas.errors import UserError
from tfnas.racing import looks, race


class Table:
    """All values, known beforehand; notes what was evaluated, and hands out nothing that was not."""

    def __init__(self, values, order=None):
        self.values = np.asarray(values, float)
        self.order = np.arange(self.values.shape[1]) if order is None else order
        self.stops = {}
        self.fills = []

    def fill(self, candidates, stop):
        self.fills.append((list(candidates), stop))
        self.stops.update(dict.fromkeys(candidates, stop))

    def read(self, candidate, stop):
        assert stop <= self.stops[candidate]
        return self.values[candidate, self.order[:stop]]


def run(values, **kwargs):
    table = Table(values)
    return race(table, *table.values.shape, **kwargs), table


def lower_bound(worse, leader, num_examples, probability):
    """SciPy's paired interval, its half width shrunk by the finite-population correction."""
    low = stats.ttest_rel(worse, leader, alternative="greater").confidence_interval(probability).low
    difference = np.mean(worse - leader)
    return difference - (difference - low) * math.sqrt(1 - len(worse) / num_examples)


def test_looks_by_hand():
    assert looks(5000) == [157, 313, 625, 1250, 2500, 5000]
    assert looks(318) == [159, 318]
    assert looks(199) == [100, 199] and looks(198) == [198]
    assert looks(50) == [50] and looks(1) == [1]
    assert looks(8, least=1, first=8) == [1, 2, 4, 8]
    assert looks(8, least=1, first=100) == [1, 2, 4, 8]


def test_without_a_confidence_everything_is_evaluated_in_full(rng):
    values = rng.normal(size=(30, 400)) + rng.normal(size=(30, 1))
    outcome, table = run(values, confidence=None)
    assert outcome.order == outcome.survivors == np.argsort(values.mean(1)).tolist()
    assert outcome.winner == np.argmin(values.mean(1))
    assert outcome.num_examples == [400] * 30 and outcome.evaluations == 12000 and outcome.saved == 0
    assert table.fills == [(list(range(30)), 400)]


def test_drop_rule_agrees_with_scipys_paired_interval(rng):
    leader = rng.lognormal(size=200)
    noise = rng.normal(size=(40, 200)) * 0.3
    others = leader + noise - noise[:, :100].mean(1, keepdims=True) + np.linspace(0.001, 0.25, 40)[:, None]
    outcome, table = run([leader, *others], confidence=0.9, tolerance=0.2)
    epsilon = 0.2 * leader[:100].std(ddof=1) / math.sqrt(200)
    bounds = [lower_bound(other[:100], leader[:100], 200, 1 - 0.1 / 40) for other in others]
    expected = [100 if bound > -epsilon else 200 for bound in bounds]
    assert outcome.num_examples == [200, *expected] and {100, 200} == set(expected)
    assert table.fills == [(list(range(41)), 100), ([i for i in range(41) if outcome.num_examples[i] == 200], 200)]
    assert outcome.evaluations == 200 + sum(expected)
    assert outcome.saved == pytest.approx(expected.count(100) * 100 / (41 * 200))


def test_drop_rule_counts_the_looks_and_the_other_candidates(rng):
    """Four looks of 800: on either side of the boundary at the third, and far inside it before."""
    leader, noise = rng.normal(size=800), np.where(np.arange(800) % 2, 1.0, -1.0)
    probability = 1 - 0.05 / (3 * 2)
    epsilon = 0.5 * leader[:400].std(ddof=1) / math.sqrt(800)
    edge = -lower_bound(leader[:400] + noise[:400], leader[:400], 800, probability) - epsilon
    for shift, stopped in ((1e-6, 400), (-1e-6, 800)):
        middle = leader + noise + edge + shift
        bound = lower_bound(middle[:400], leader[:400], 800, probability)
        assert (bound > -epsilon) == (stopped == 400)
        outcome, _ = run([leader, middle, leader + 100])
        assert outcome.num_examples == [800, stopped, 100]


def test_errors_imagine_one_more_difference():
    """m = 100 of n = 200; candidate k errs where the leader does, and on k examples more."""
    values = np.zeros((20, 200))
    values[:, :10] = 1
    values[:, 100:] = np.arange(100) % 2
    for k in range(20):
        values[k, 10 : 10 + k] = 1
    outcome, _ = run(values)
    quantile = stats.t.ppf(1 - 0.05 / 19, 99)
    epsilon = 0.5 * math.sqrt(0.1 * 0.9 * 100 / 99) / math.sqrt(200)
    for k in range(1, 20):
        deviation = math.sqrt((k - k * k / 100 + 1) / 99)
        dropped = k / 100 - quantile * deviation * math.sqrt(1 / 100 - 1 / 200) > -epsilon
        assert outcome.num_examples[k] == (100 if dropped else 200), k
    assert set(outcome.num_examples) == {100, 200} and outcome.num_examples[1] == 200


def test_equal_losses_are_a_tie_and_equal_errors_may_still_differ(rng):
    losses = np.tile(rng.normal(size=200), (3, 1))
    outcome, _ = run(losses)
    assert outcome.winner == 0 and outcome.num_examples == [200, 100, 100] and outcome.ties == []
    outcome, _ = run(losses, tolerance=0)
    assert outcome.num_examples == [200] * 3 and outcome.survivors == [0, 1, 2] and outcome.ties == [1, 2]
    outcome, _ = run(np.tile(rng.random(200) < 0.1, (3, 1)))
    assert outcome.num_examples == [200] * 3 and outcome.ties == [1, 2]


def test_who_ever_led_is_never_dropped(rng):
    late = rng.normal(size=400) * 0.1
    early = late - 0.1 + np.where(np.arange(400) % 2, 1.0, -1.0)
    early[100:] += 100
    outcome, _ = run([late, early, late + 50])
    assert outcome.winner == 0 and outcome.num_examples == [400, 400, 100]
    assert outcome.order == [0, 1, 2] and outcome.survivors == [0, 1] and outcome.ties == []


def test_order_puts_those_that_got_further_first_then_the_mean_then_the_number(rng):
    base = rng.normal(size=400) * 0.5
    wiggle = np.where(np.arange(400) % 2, 1.0, -1.0)
    values = [base + 9, base + 0.02 + wiggle, base, base + 9, base + 0.01 + wiggle, base + 8]
    outcome, _ = run(values)
    assert outcome.order == [2, 4, 1, 5, 0, 3]
    assert outcome.num_examples == [100, 400, 400, 100, 400, 100]


def test_excluded_are_seen_once_and_never_lead(rng):
    base = rng.normal(size=400)
    outcome, table = run([base - 5, base + 1, base, base - 6], excluded=[0, 3])
    assert outcome.winner == 2 and outcome.num_examples == [100, 100, 400, 100]
    assert outcome.order == [2, 1, 3, 0] and outcome.survivors == [2]
    outcome, _ = run([base - 5, base + 1, base], excluded=[0], confidence=None)
    assert outcome.winner == 2 and outcome.order == [2, 1, 0] and outcome.survivors == [2, 1]


def test_values_that_are_not_finite_lose(rng):
    base = rng.normal(size=400)
    rows = np.stack([base - 9, base - 8, base, base - 7, base - 6])
    rows[0, 3], rows[1, 4], rows[3, 5], rows[3, 6] = np.nan, -np.inf, np.inf, -np.inf
    rows[4, 350] = np.nan  # leads twice, and so has number 2 dropped, which has to come back
    outcome, table = run(rows)
    assert outcome.winner == 2 and outcome.survivors == [2] and outcome.order == [2, 4, 0, 1, 3]
    assert outcome.num_examples == [100, 100, 400, 100, 400]
    assert table.fills == [([0, 1, 2, 3, 4], 100), ([4], 200), ([4], 400), ([2], 400)]
    outcome, _ = run(rows, confidence=None)
    assert outcome.winner == 2 and outcome.survivors == [2] and outcome.order == [2, 0, 1, 3, 4]


def test_one_candidate_and_one_example():
    outcome, _ = run([[1.0] * 300])
    assert outcome.winner == 0 and outcome.num_examples == [300] and outcome.ties == []
    outcome, _ = run([[2.0], [1.0]])
    assert outcome.winner == 1 and outcome.survivors == [1, 0] and outcome.ties == [0]


@pytest.mark.parametrize("confidence", [0.9, None])
def test_ties_are_those_that_a_paired_t_test_cannot_tell_from_the_winner(rng, confidence):
    winner = rng.normal(size=90)  # one look: everything survives
    noise = rng.normal(size=(20, 90)) * 0.5
    others = winner + noise - noise.mean(1, keepdims=True) + np.linspace(0.02, 0.4, 20)[:, None]
    outcome, _ = run([winner, *others], confidence=confidence)
    level = 1 - (1 - (confidence or 0.95)) / 20
    expected = [
        i
        for i in outcome.survivors[1:]
        if stats.ttest_rel(others[i - 1], winner, alternative="greater").pvalue >= 1 - level
    ]
    assert outcome.winner == 0 and outcome.ties == expected and 2 < len(expected) < 18


def losses(rng, num_candidates, num_examples, spread):
    """Heavy tails: examples differ in difficulty, for all alike, and candidates in how they take the difficult ones."""
    difficulty = rng.lognormal(sigma=1.0, size=num_examples)
    effect = rng.normal(size=(num_candidates, 1)) * spread
    return difficulty * np.exp(effect + 0.5 * rng.normal(size=(num_candidates, num_examples)))


def errors(rng, num_candidates, num_examples, spread):
    """0 or 1: a latent normal of example, candidate and both above a threshold."""
    latent = rng.normal(size=num_examples) + rng.normal(size=(num_candidates, 1)) * spread
    return (latent + 0.5 * rng.normal(size=(num_candidates, num_examples)) > 0.8).astype(float)


@pytest.mark.parametrize("draw, spread, saving", [(losses, 0.1, 0.7), (errors, 0.2, 0.7)])
def test_winner_is_within_the_tolerance_as_often_as_promised(rng, draw, spread, saving):
    values = draw(rng, 200, 2000, spread)
    means, deviations = values.mean(1), values.std(1, ddof=1)
    good, saved = 0, []
    for _ in range(200):
        outcome = race(Table(values, rng.permutation(2000)), 200, 2000)
        good += means[outcome.winner] - means.min() <= 0.5 * deviations[outcome.winner] / math.sqrt(2000)
        saved.append(outcome.saved)
    assert good / 200 >= 0.95
    assert np.mean(saved) > saving


def test_confidence_is_used_up_where_two_candidates_are_all_but_equal(rng):
    """One look at half of the examples: a tenth of the races drop the best, neither more nor, as would be without the
    finite-population correction, 3.5 %."""
    first, second = rng.normal(size=(2, 200))
    values = np.stack([first, second - second.mean() + first.mean() - 1e-9])
    races = [race(Table(values, rng.permutation(200)), 2, 200, confidence=0.9, tolerance=0) for _ in range(2000)]
    assert np.mean([outcome.winner == 0 for outcome in races]) == pytest.approx(0.1, abs=0.02)


def test_outcome_is_frozen():
    outcome, _ = run([[1.0, 2.0]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.winner = 1


def test_mistakes_are_named():
    table = Table([[1.0, 2.0], [2.0, 3.0]])
    for confidence in (0.0, 1.0, 95, float("nan")):
        with pytest.raises(UserError, match="race: confidence .* between 0 and 1"):
            race(table, 2, 2, confidence=confidence)
    for tolerance in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="race: tolerance .* Received"):
            race(table, 2, 2, tolerance=tolerance)
    with pytest.raises(UserError, match="at least one candidate expected. Received: 0"):
        race(table, 0, 2)
    with pytest.raises(UserError, match="at least one example expected. Received: 0"):
        race(table, 2, 0)
    with pytest.raises(UserError, match="all 2 candidates are excluded"):
        race(table, 2, 2, excluded={0, 1})
    with pytest.raises(UserError, match=r"excluded .* 0 to 1. Received: \[2\]"):
        race(table, 2, 2, excluded=[2])
    with pytest.raises(UserError, match="finite"):
        run([[np.nan, 1.0], [np.inf, 1.0]])
