import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tfnas.common.errors import UserError
from tfnas.common.statistics import Paired, best_of, calibration_error, kendall_tau, predictive, proportion_interval


def best_of_all_subsets(scores, measured, count):
    chosen = [min(subset, key=lambda i: scores[i]) for subset in itertools.combinations(range(len(scores)), count)]
    return np.mean([measured[i] for i in chosen])


def test_best_of_is_the_mean_over_all_subsets(rng):
    scores, measured = rng.normal(size=(2, 9))
    scores[7] = np.nan  # never the best, unless alone
    order = np.where(np.isnan(scores), np.inf, scores)
    found = best_of(scores, measured, range(1, 10), repeats=10)
    assert [f["count"] for f in found] == list(range(1, 10))
    for f in found:
        assert f["mean"] == pytest.approx(best_of_all_subsets(order, measured, f["count"]), rel=1e-12)
    assert found[0]["mean"] == pytest.approx(measured.mean())
    assert found[-1]["mean"] == pytest.approx(measured[np.nanargmin(scores)])
    assert best_of(scores, measured, []) == []


def test_best_of_many_does_not_overflow():
    """Measured = rank: the smallest rank of c from N is (N + 1) / (c + 1) on average."""
    ranks = np.arange(1, 20001)
    (few, many) = best_of(-ranks[::-1], ranks, [10, 5000], repeats=2)
    assert few["mean"] == pytest.approx(20001 / 11, rel=1e-8)
    assert many["mean"] == pytest.approx(20001 / 5001, rel=1e-8)


def test_best_of_has_the_interval_of_candidates_drawn_again(rng):
    scores = rng.normal(size=8)
    measured = scores + rng.normal(size=8)
    (found,) = best_of(scores, measured, [3], repeats=3000, level=0.9, seed=1)
    means = []
    for _ in range(1000):
        drawn = rng.choice(8, 8)
        means.append(best_of_all_subsets(scores[drawn], measured[drawn], 3))
    assert (found["low"], found["high"]) == pytest.approx(np.percentile(means, [5, 95]), abs=0.1)
    assert [found] == best_of(scores, measured, [3], repeats=3000, level=0.9, seed=1)
    assert best_of(scores, [2.0] * 8, [3])[0] == pytest.approx({"count": 3, "mean": 2.0, "low": 2.0, "high": 2.0})


def test_kendall_tau_is_scipys_and_its_interval_the_bootstraps(rng):
    a = rng.integers(0, 5, 40)  # ties
    b = a + rng.normal(size=40) * 2
    tau, low, high = kendall_tau(a, b, level=0.9)
    assert tau == pytest.approx(stats.kendalltau(a, b).statistic)
    theirs = stats.bootstrap(
        (a, b),
        lambda a, b: stats.kendalltau(a, b).statistic,
        n_resamples=1000,
        paired=True,
        vectorized=False,
        confidence_level=0.9,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.03)
    assert kendall_tau(a, b, level=0.9) == (tau, low, high)


def test_kendall_tau_by_hand():
    assert kendall_tau([1, 2, 3], [1, 3, 2], repeats=1)[0] == pytest.approx(1 / 3)
    assert kendall_tau([1, 2], [4, 5]) == (1, 1, 1)  # half of the resamples are all tied, and say nothing
    assert all(math.isnan(value) for value in kendall_tau([1, 1, 1], [1, 2, 3]))
    assert kendall_tau([1, 2, math.inf], [1, 2, 3], repeats=1)[0] == pytest.approx(1)


def test_calibration_error_by_hand():
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.55, 0.45], [0.4, 0.6], [0.5, 0.5]]
    # Bins (0.4, 0.6]: confidence .55, .6, .5, hits 1, 0, 1; (0.6, 0.8]: .8, hit; (0.8, 1]: .9, miss.
    expected = (abs(1.65 - 2) + abs(0.8 - 1) + abs(0.9 - 0)) / 5
    assert calibration_error(probabilities, [1, 1, 0, 0, 0], bins=5) == pytest.approx(expected)
    assert calibration_error(probabilities, [1, 1, 0, 0, 0], bins=1) == pytest.approx(abs(3.35 - 3) / 5)
    assert calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0
    assert calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 0]) == 0.5


def test_calibration_error_of_labels_drawn_from_the_probabilities_vanishes(rng):
    probabilities = rng.dirichlet([1, 1, 1], size=100_000)
    labels = (rng.random((100_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert calibration_error(probabilities, labels) < 0.005


def wilson(correct, total, level):
    z, p = stats.norm.ppf((1 + level) / 2), correct / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


def test_predictive_agrees_with_the_closed_forms(rng):
    probabilities = rng.dirichlet([2, 1, 1], size=500)
    labels = rng.choice(3, 500, p=[0.6, 0.2, 0.2])
    found = predictive(probabilities, labels, repeats=2000, level=0.9)
    assert set(found) == {"accuracy", "nll", "ece"}
    hits, surprise = probabilities.argmax(1) == labels, -np.log(probabilities[np.arange(500), labels])
    assert found["accuracy"] == pytest.approx((hits.mean(), *wilson(hits.sum(), 500, 0.9)))
    value, low, high = found["nll"]
    half = stats.norm.ppf(0.95) * surprise.std() / math.sqrt(500)  # the bootstrap of a mean is nearly normal
    assert value == pytest.approx(surprise.mean())
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.15 * half)
    assert found["ece"] == pytest.approx(calibration_error(probabilities, labels))
    assert found == predictive(probabilities, labels, repeats=2000, level=0.9)


def test_an_accuracy_of_all_has_an_interval():
    """Where the bootstrap's would be a point."""
    accuracy = predictive([[0.9, 0.1]] * 20, [0] * 20, repeats=2)["accuracy"]
    assert accuracy == pytest.approx((1, 1 / (1 + stats.norm.ppf(0.975) ** 2 / 20), 1))


def test_mcnemars_test_is_the_binomial_of_those_that_differ():
    def wrong(first, second):
        """Errors of two networks on 30 examples, of which one alone has `first` right, the other alone `second`."""
        return np.arange(30) >= first, (np.arange(30) < first) | (np.arange(30) >= first + second)

    assert Paired.of(*wrong(0, 0)).p_value == 1 and Paired.of(*wrong(4, 4)).p_value == 1
    for first, second in ((10, 2), (2, 10), (0, 6), (7, 5)):
        tail = sum(math.comb(first + second, k) for k in range(min(first, second) + 1)) / 2 ** (first + second)
        found = Paired.of(*wrong(first, second))
        assert found.record() == {
            "better": first,
            "worse": second,
            "difference": pytest.approx((second - first) / 30),
            "p_value": pytest.approx(2 * tail),
        }


def test_losses_are_compared_by_all_choices_of_signs(rng):
    found, other = rng.gamma(2.0, size=12), rng.gamma(2.5, size=12)
    differences = found - other
    sums = np.array(list(itertools.product((-1, 1), repeat=12))) @ differences
    paired = Paired.of(found, other)
    assert (paired.better, paired.worse) == ((found < other).sum(), (found > other).sum())
    assert paired.difference == pytest.approx(found.mean() - other.mean())
    # 9,999 of the 4,096 choices, with replacement: a standard deviation of at most 0.005.
    assert paired.p_value == pytest.approx(np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12), abs=0.02)
    assert Paired.of(found - 100, other).p_value == pytest.approx(2 / 4096, abs=1e-3)
    assert Paired.of([1.0, np.inf], [0.5, 1.0]).p_value == 1  # nothing is known of a loss that is not finite


def test_a_probability_that_underflowed_has_a_finite_likelihood():
    assert predictive([[1.0, 0.0]], [1], repeats=2)["nll"][0] == pytest.approx(-math.log(2.0**-126))


def test_wilsons_interval_against_its_formula():
    assert proportion_interval(45, 50, level=0.9) == pytest.approx(wilson(45, 50, 0.9))
    assert proportion_interval(0, 10)[0] == 0 and proportion_interval(10, 10)[1] == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: best_of([1, 2], [1, 2], [3]), "best_of: counts must be from 1 to 2, .* Received: 3"),
        (lambda: best_of([1, 2], [1, 2], [0]), "best_of: counts must be from 1 to 2, .* Received: 0"),
        (lambda: best_of([1, 2], [1], [1]), r"best_of: .* Received: shapes \(2,\) and \(1,\)"),
        (lambda: best_of([], [], []), "best_of: at least 1 candidate expected. Received: 0"),
        (lambda: best_of([1, 2], [1, math.nan], [1]), "best_of: measured values must be finite"),
        (lambda: kendall_tau([1, 2], [1]), r"kendall_tau: .* Received: shapes \(2,\) and \(1,\)"),
        (lambda: kendall_tau([1], [1]), "kendall_tau: at least 2 candidates expected. Received: 1"),
        (lambda: kendall_tau([1, math.nan], [1, 2]), "kendall_tau: .* NaN"),
        (lambda: kendall_tau([1, 2], [1, 2], repeats=0), "kendall_tau: repeats .* Received: 0"),
        (lambda: kendall_tau([1, 2], [1, 2], level=95), "kendall_tau: level .* Received: 95"),
        (lambda: calibration_error([0.5, 0.5], [0]), r"calibration_error: .* Received: shapes \(2,\) and \(1,\)"),
        (lambda: calibration_error([[0.5, 0.5]], [0, 1]), r"Received: shapes \(1, 2\) and \(2,\)"),
        (lambda: calibration_error(np.zeros((0, 2)), []), "at least one example"),
        (lambda: calibration_error([[3.0, -2.0]], [0]), "calibration_error: probabilities .* add up to 1"),
        (lambda: calibration_error([[0.9, 0.9]], [0]), "calibration_error: probabilities .* add up to 1"),
        (lambda: calibration_error([[math.nan, 0.9]], [0]), "calibration_error: probabilities .* add up to 1"),
        (lambda: calibration_error([[0.5, 0.5]], [2]), "calibration_error: labels must be integers from 0 to 1"),
        (lambda: calibration_error([[0.5, 0.5]], [0.5]), "calibration_error: labels must be integers from 0 to 1"),
        (lambda: calibration_error([[0.5, 0.5]], [0], bins=0), "calibration_error: bins .* Received: 0"),
        (lambda: predictive([[0.5, 0.5]], [2]), "predictive: labels"),
        (lambda: predictive([[0.5, 0.5]], [1], level=0), "predictive: level"),
        (lambda: Paired.of([True] * 2, [True] * 3), r"Paired: .* Received: shapes \(2,\) and \(3,\)"),
        (lambda: proportion_interval(3, 2), "proportion_interval: .* Received: 3 of 2"),
        (lambda: proportion_interval(-1, 2), "proportion_interval: .* Received: -1 of 2"),
        (lambda: proportion_interval(0, 0), "proportion_interval: .* Received: 0 of 0"),
        (lambda: proportion_interval(1, 2, level=1.0), "proportion_interval: level"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
