import itertools
import json
import pathlib

import numpy as np
import pytest
import scipy.optimize
import tensorflow_probability as tfp

import tfnas
from tfnas import supernets
from tfnas.common.errors import UserError
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior

Q = Posterior((LayerGates("a", (3, 2), (0.1, 0.7), 9), LayerGates("b", (4,), (0.4,), 25)))
COSTED = Posterior((LayerGates("a", (3, 2), (0.1, 0.7), 9, 9 * 64), LayerGates("b", (4,), (0.4,), 25, 25 * 16)))
COSTS = [("parameters", (9, 25)), ("multiply_adds", (576, 400))]


def test_log_prob_and_entropy_are_tfps():
    keep = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1])
    drop = np.array([0.1] * 3 + [0.7] * 2 + [0.4] * 4)
    bernoulli = tfp.distributions.Bernoulli(probs=1 - drop)
    architecture = Architecture({"a": keep[:5].astype(bool), "b": keep[5:].astype(bool)})
    assert Q.log_prob(architecture) == pytest.approx(float(bernoulli.log_prob(keep).numpy().sum()), rel=1e-6)
    assert Q.entropy() == pytest.approx(float(bernoulli.entropy().numpy().sum()), rel=1e-6)


def test_certain_gates():
    certain = Posterior((LayerGates("a", (1, 1), (0.0, 1.0), 9),))
    assert certain.entropy() == pytest.approx(0.0, abs=1e-12)
    assert certain.log_prob(Architecture({"a": [True, False]})) == 0.0
    assert certain.log_prob(Architecture({"a": [False, False]})) == -np.inf


def test_samples_have_the_bernoullis_frequencies():
    draws = Q.sample(4000, seed=1)
    frequency = np.mean([np.concatenate([d["a"], d["b"]]) for d in draws], axis=0)
    # 5 standard deviations of a mean of 4,000.
    np.testing.assert_allclose(frequency, [0.9] * 3 + [0.3] * 2 + [0.6] * 4, atol=0.04)


def test_a_candidate_depends_on_seed_and_number_alone():
    assert Q.sample(3, seed=5, first=4) == Q.sample(7, seed=5)[4:]
    assert Q.sample(20, seed=5) != Q.sample(20, seed=6)


def test_undecided_groups_by_hand():
    q = Posterior(
        (
            LayerGates("a", (1, 2, 1, 1), (0.05, 0.3, 0.96, 0.5), 1),
            LayerGates("b", (3,), (0.04,), 1),
            LayerGates("c", (1, 1, 1), (0.7, 0.95, 0.52), 1),
        )
    )
    # 0.3 and 0.7 are as far from 1/2, and so are 0.05 and 0.95.
    expected = [("a", 3, 0.5), ("c", 2, 0.52), ("a", 1, 0.3), ("c", 0, 0.7), ("a", 0, 0.05), ("c", 1, 0.95)]
    assert q.undecided() == expected
    assert q.undecided(2) == expected[:2] and q.undecided(99) == expected
    decided, groups = q.decided()
    assert len(q.undecided()) == groups - decided


def test_expected_sizes_by_hand():
    assert Q.total_parameters() == 5 * 9 + 4 * 25
    assert Q.expected_parameters() == pytest.approx((3 * 0.9 + 2 * 0.3) * 9 + 4 * 0.6 * 25)
    assert Q.mode() == Architecture({"a": [True] * 3 + [False] * 2, "b": [True] * 4})
    assert Posterior((LayerGates("a", (1, 1, 1), (0.01, 0.5, 0.99), 1),)).decided() == (2, 3)


@pytest.mark.parametrize("resource, costs", COSTS)
def test_expected_cost_and_its_deviation_against_monte_carlo(resource, costs):
    draws = COSTED.sample(20_000, seed=2)
    kept = np.array([d["a"].sum() * costs[0] + d["b"].sum() * costs[1] for d in draws])
    assert COSTED.expected_cost(resource) == pytest.approx(kept.mean(), abs=5 * kept.std() / np.sqrt(20_000))
    assert COSTED.cost_deviation(resource) == pytest.approx(kept.std(), rel=0.03)
    assert COSTED.total_cost(resource) == pytest.approx(5 * costs[0] + 4 * costs[1], rel=1e-12)
    assert isinstance(COSTED.total_cost(resource), type(costs[0]))
    assert [COSTED.cost_of(draw, resource) for draw in draws[:50]] == pytest.approx(kept[:50], rel=1e-12)
    assert isinstance(COSTED.cost_of(draws[0], resource), type(costs[0]))


def test_cost_of_another_networks_architecture_is_refused():
    with pytest.raises(UserError, match="cost_of: .* Received: others; 'c' is only in the architecture"):
        Q.cost_of(Architecture({"a": [True] * 5, "b": [True] * 4, "c": [True]}))
    with pytest.raises(UserError, match="cost_of: 'b': a mask of 4 input channels expected. Received: 3"):
        Q.cost_of(Architecture({"a": [True] * 5, "b": [True] * 3}))


@pytest.mark.parametrize("resource, per_channel", COSTS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.95])
def test_tilt_is_the_exponential_tilting_of_all_architectures(resource, per_channel, share):
    """All 512 architectures written out, weighted by exp(-lambda cost), lambda by another root finder."""
    masks = np.array(list(itertools.product([0, 1], repeat=9)))
    drop = np.array([0.1] * 3 + [0.7] * 2 + [0.4] * 4)
    cost = masks @ np.array([per_channel[0]] * 5 + [per_channel[1]] * 4)
    probability = np.prod(np.where(masks, 1 - drop, drop), axis=1)

    def tilted(strength):
        weights = probability * np.exp(-strength * (cost - cost.mean()))
        return weights / weights.sum()

    budget = share * cost.max()
    end = 20 / min(per_channel)
    strength = scipy.optimize.brentq(lambda s: tilted(s) @ cost - budget, -end, end, xtol=1e-15)
    marginals = tilted(strength) @ masks
    ours = COSTED.tilt(**{resource: budget})
    assert ours.expected_cost(resource) == pytest.approx(budget, rel=1e-9)
    np.testing.assert_allclose(np.concatenate([1 - g.channel_drop for g in ours.layers]), marginals, rtol=1e-6)


def test_tilt_moves_certain_gates_too_and_leaves_what_costs_nothing():
    certain = Posterior(
        (LayerGates("a", (2,), (0.0,), 9), LayerGates("b", (2,), (1.0,), 1), LayerGates("c", (3,), (0.3,), 0))
    )
    for budget in (0.5, 10.0, 19.5):
        tilted = certain.tilt(parameters=budget)
        assert tilted.expected_cost() == pytest.approx(budget, rel=1e-6)
        assert tilted.layers[2].drop_probability == pytest.approx((0.3,))


@pytest.mark.parametrize("parameters", [0, -1, 145, 1000])
def test_tilt_refuses_what_cannot_be(parameters):
    with pytest.raises(UserError, match="strictly between 0 and 145"):
        Q.tilt(parameters=parameters)


def test_tilt_needs_one_known_resource():
    expected = "tilt: exactly one of parameters, multiply_adds expected. Received: "
    with pytest.raises(UserError, match=expected + "none of them"):
        Q.tilt()
    with pytest.raises(UserError, match=expected + "parameters=3, multiply_adds=5"):
        Q.tilt(parameters=3, multiply_adds=5)
    with pytest.raises(UserError, match="multiply_adds are not known, because the model's input has no fixed size"):
        Q.tilt(multiply_adds=5)
    with pytest.raises(UserError, match="one of 'parameters', 'multiply_adds' expected. Received: 'time'"):
        Q.expected_cost("time")


def test_json_round_trip_is_exact_and_damage_refused():
    for multiply_adds in (None, 90):
        q = Posterior((LayerGates("a", (3,), (1 / 3,), 9, multiply_adds),))
        assert Posterior.from_json(q.to_json()) == q
    with pytest.raises(UserError, match="not the JSON of a Posterior"):
        Posterior.from_json(q.to_json()[:-4])


def test_wrong_gates_are_refused():
    with pytest.raises(ValueError, match="one drop probability per group"):
        LayerGates("a", (3, 2), (0.1,), 9)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        LayerGates("a", (3,), (1.1,), 9)


def test_published_posterior_of_densenet121():
    """Its expected kept parameters are the paper's Table 8: 6.6 M of the 6.86 M in the gated convolutions."""
    text = (pathlib.Path(__file__).parent / "pgnas_densenet121_imagenet_posterior.json").read_text()
    supernet = tfnas.gate(supernets.densenet121(), ell2=200, num_examples=1.2e6)
    published = Posterior.from_reference(text, supernet.posterior())
    assert (len(published.layers), published.total_parameters()) == (119, 6_860_800)
    # Summed here from the file and the structure that method.md gives, without the code under test.
    raw, expected, channels = json.loads(text)["drop_probability"], 0.0, 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        sources = [channels]
        for layer in range(1, layers + 1):
            name = f"denseblock{block}.denselayer{layer}.conv"
            expected += sum((1 - p) * k * 128 for p, k in zip(raw[name + "1"], sources, strict=True))
            expected += (1 - raw[name + "2"][0]) * 128 * 9 * 32
            sources.append(32)
        channels = sum(sources)
        if block < 4:
            channels //= 2
            expected += sum(
                (1 - p) * k * channels for p, k in zip(raw[f"transition{block}.conv"], sources, strict=True)
            )
    assert published.expected_parameters() == pytest.approx(expected, rel=1e-9)
    assert published.expected_parameters() == pytest.approx(6.60e6, abs=0.005e6)
    assert published.sample(1, seed=0)[0].total == sum(sum(g.group_sizes) for g in published.layers)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "not the JSON of a published posterior"),
        ('{"drop_probability": {"a": [0.1]}}', "layers differ, first 'b', which is only among the layers of the"),
        (
            '{"drop_probability": {"a": [0.1], "b": [0.1], "c": [1]}}',
            "first 'c', which is only among the published layers",
        ),
        (
            '{"drop_probability": {"a": [0.1], "b": [0.1, 0.2]}}',
            "'b' has 1 sources, one value each expected. Received: 2",
        ),
        (
            '{"drop_probability": {"a": [0.1], "b": [1.5]}}',
            r"'drop_probability.b\[0\]' must be a finite number in \[0, 1\]",
        ),
    ],
)
def test_published_posteriors_that_do_not_fit(text, message):
    like = Posterior((LayerGates("a", (2,), (0.5,), 3), LayerGates("b", (2,), (0.5,), 3)))
    with pytest.raises(UserError, match=message):
        Posterior.from_reference(text, like)
