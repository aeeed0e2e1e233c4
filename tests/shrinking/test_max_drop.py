"""The smallest network within a drop: what is measured, what is said of it, and what is refused."""

import copy

import keras
import numpy as np
import pytest
import scipy.stats
from test_shrink import TEST, TRAIN, VALIDATION, classifier, compiled

import tfnas
from tfnas.common.errors import UserError
from tfnas.shrinking.max_drop import upper_bound

OPTIONS = {"epochs": 1, "batch_size": 20, "trained": True, "device": lambda model: 1e-3}


@pytest.fixture(scope="module")
def trained():
    model = compiled(classifier())
    model.fit(*TRAIN, epochs=15, batch_size=20, verbose=0)
    return model


@pytest.mark.parametrize("total, error", [(12, 0.05), (40, 0.1)])
def test_the_upper_bound_of_a_drop_holds_as_often_as_it_says(total, error):
    """By enumeration of all outcomes of N examples, of which the first network alone is correct in some, and so on."""
    known = {}
    for lost in range(total + 1):
        for gained in range(total + 1 - lost):
            before = np.arange(total) < lost
            after = np.arange(total) >= total - gained
            known[lost, gained] = upper_bound(before, after, error)
    for p_lost, p_gained in [(0.0, 0.0), (0.02, 0.0), (0.1, 0.05), (0.3, 0.3), (0.6, 0.1), (1.0, 0.0)]:
        chances = scipy.stats.multinomial(total, [p_lost, p_gained, 1 - p_lost - p_gained])
        held = sum(
            chances.pmf([lost, gained, total - lost - gained])
            for (lost, gained), upper in known.items()
            if upper >= p_lost - p_gained - 1e-12
        )
        assert held >= 1 - error


def test_the_smallest_network_within_a_drop(trained, capsys):
    result = tfnas.shrink(trained, TRAIN, VALIDATION, max_drop=0.05, tries=3, test=TEST, **OPTIONS)
    shares = [one.share for one in result.tries]
    full = tfnas.cost(trained).parameters
    assert len(shares) == 3 and result.after.parameters < full
    # Bisection on a logarithmic scale, between the smallest possible share and 1.
    supernet = tfnas.gate(trained, parameters=1.0, importance="norm")
    low, high = supernet.graph.form.least("parameters") / full, 1.0
    for one in result.tries:
        assert one.share == pytest.approx(np.sqrt(low * high))
        low, high = (low, one.share) if one.drop <= 0.05 else (one.share, high)
    within = [one for one in result.tries if one.drop <= 0.05]
    best = min(within, key=lambda one: one.share)
    assert result.after.parameters <= best.share * full
    # Keras's own accuracies of both networks.
    for data, drop, count in (VALIDATION, result.validation_drop, 60), (TEST, result.test_drop, 50):
        one, other = (compiled(model).evaluate(*data, verbose=0)[1] for model in (trained, result.model))
        assert drop.measured == pytest.approx(one - other, abs=1e-6) and drop.num_examples == count
        right = [np.asarray(model(data[0])).argmax(-1) == data[1] for model in (trained, result.model)]
        assert drop.upper == pytest.approx(upper_bound(*right, 0.05 / (7 if count == 60 else 1)))
        assert drop.exact and drop.upper > drop.measured
    assert result.validation_drop.measured == pytest.approx(best.drop, abs=1e-6) and best.drop <= 0.05
    text = repr(result)
    assert "at most 0.05 asked for" in text and "with 95 % confidence" in text and "Sizes tried" in text
    assert "which chose nothing" in result._repr_html_() and "<table" in result._repr_html_()


def test_a_metric_of_which_less_is_better_has_an_approximate_bound(trained):
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(copy.copy(trained.optimizer), loss)
    result = tfnas.shrink(model, TRAIN, VALIDATION, max_drop=10.0, tries=1, resource="multiply_adds", **OPTIONS)
    drop = result.validation_drop
    assert drop.metric == "loss" and not drop.exact and result.test_drop is None
    losses = [compiled(network).evaluate(*VALIDATION, verbose=0)[0] for network in (model, result.model)]
    assert drop.measured == pytest.approx(losses[1] - losses[0], rel=1e-3) and drop.upper > drop.measured
    assert "(approximately)" in repr(result)


def wrong(labels, outputs):
    """Of which less is better, as Keras cannot know."""
    found = keras.ops.cast(keras.ops.argmax(outputs, -1), "int64") != keras.ops.cast(
        keras.ops.reshape(labels, (-1,)), "int64"
    )
    return keras.ops.cast(found, "float32")


@pytest.mark.parametrize("first", [wrong, keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")])
def test_the_metric_is_the_first_one_compiled_whichever_way_is_better(trained, first):
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[first, "accuracy"])
    images, labels = VALIDATION
    images = images + np.random.default_rng(0).normal(size=images.shape).astype("float32")  # some become wrong
    options = {**OPTIONS, "epochs": 0, "max_drop": 1.0, "tries": 1}
    result = tfnas.shrink(model, TRAIN, (images, labels), **options)
    drop = result.validation_drop
    assert drop.metric == ("wrong" if first is wrong else "top2")
    outputs = [np.asarray(network(images)) for network in (model, result.model)]
    if first is wrong:
        values = [(x.argmax(-1) == labels).mean() for x in outputs]
    else:
        values = [(np.argsort(-x, -1)[:, :2] == labels[:, None]).any(-1).mean() for x in outputs]
    change = values[0] - values[1]
    assert drop.measured == pytest.approx(change, abs=1e-6) and change
    assert list(result.before.metrics) == ["loss", drop.metric, "accuracy"]


def test_without_a_network_within_the_drop_it_is_the_full_one(trained, monkeypatch):
    from tfnas.shrinking import max_drop

    monkeypatch.setattr(max_drop, "_ROUNDING", -10.0)
    result = tfnas.shrink(trained, TRAIN, VALIDATION, max_drop=0.0, tries=1, **{**OPTIONS, "epochs": 0})
    assert result.after.parameters == tfnas.cost(trained).parameters
    assert result.validation_drop.measured == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_drop": -1}, "max_drop must be a number of at least 0"),
        ({"max_drop": 0.1, "parameters": 0.5}, "without bounds. Received: parameters too"),
        ({"max_drop": 0.1, "resource": "latency"}, "'parameters' or 'multiply_adds'"),
        ({"max_drop": 0.1, "tries": 0}, "tries must be a whole number"),
        ({"max_drop": 0.1, "trained": False}, "whose weights must be trained"),
    ],
)
def test_what_does_not_fit_is_one_error(options, message):
    with pytest.raises(UserError, match=message):
        tfnas.shrink(compiled(classifier()), TRAIN, VALIDATION, **{**OPTIONS, **options})
