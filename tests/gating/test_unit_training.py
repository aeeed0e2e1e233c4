"""What `fit` does for each importance: plain training, a penalty, or fewer and fewer units."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights
from gate_gradients import gradients

import tfnas
from tfnas.common.errors import UserError
from tfnas.gating import unit_training
from tfnas.gating.supernet import Supernet

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STEPS = 20


def model_of(dropout=0.0):
    """Two residual blocks whose branches may vanish, on a stream."""
    keras.utils.set_random_seed(3)
    x = image = keras.Input((6, 6, 2))
    x = L.BatchNormalization(name="stem_bn")(L.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x))
    for i in range(2):
        y = L.ReLU()(L.BatchNormalization(name=f"in{i}_bn")(L.Conv2D(6, 3, padding="same", name=f"in{i}")(x)))
        x = L.ReLU()(
            L.Add()([x, L.BatchNormalization(name=f"out{i}_bn")(L.Conv2D(4, 3, padding="same", name=f"out{i}")(y))])
        )
    x = L.Dropout(dropout, seed=4, name="dropout")(L.GlobalAveragePooling2D()(x))
    model = keras.Model(image, L.Dense(3, name="end")(x))
    random_weights(model, np.random.default_rng(7))
    return model


def gated(importance, dropout=0.0, **options):
    options = {"parameters": 0.6, "multiply_adds": 0.65, "steps": STEPS, "importance": importance, **options}
    return tfnas.gate(model_of(dropout), num_examples=50 if importance == "gates" else None, **options)


def data(size=24):
    rng = np.random.default_rng(1)
    return tf.data.Dataset.from_tensor_slices(
        (rng.normal(size=(size, 6, 6, 2)).astype("f4"), rng.integers(3, size=size))
    ).batch(8)


def compiled(model, rate=0.05, **options):
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), LOSS, **options)
    return model


def by_place(graph):
    return np.arange(graph.num_units, dtype=float)


def values(model):
    """The weights of the network without gates, by path."""
    plain = model.graph.model if isinstance(model, Supernet) else model
    return {v.path: np.array(v) for v in plain.variables if "seed" not in v.path}


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.usefixtures("eager")
def test_importances_of_weights_train_the_network_as_it_is():
    model, supernet = compiled(model_of(0.2)), compiled(gated("norm", dropout=0.2))
    before = supernet.posterior()
    supernet.set_architecture(before.mode())  # which is of inference alone
    expected = model.fit(data(), verbose=0, shuffle=False)
    got = supernet.fit(data(), verbose=0, shuffle=False)
    assert sorted(got.history) == ["loss"]
    np.testing.assert_allclose(got.history["loss"], expected.history["loss"], rtol=1e-5)
    for path, value in values(model).items():
        np.testing.assert_allclose(values(supernet)[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    assert "without gates in training; bounds: 60.0 % of the parameters" in repr(supernet)


def test_every_importance_is_saved_but_a_function(tmp_path):
    images = next(iter(data()))[0]
    for importance in ("even", by_place, "curvature"):
        supernet = gated(importance, **({"iterative": False} if importance == "curvature" else {}))
        assert not any(v.name == "squared_gradients" for v in supernet.trainable_variables)
        compiled(supernet).save(tmp_path / "s.keras")
        again = tfnas.load(tmp_path / "s.keras")
        np.testing.assert_array_equal(again(images), supernet(images))
        if importance == "even":
            assert again.posterior() == supernet.posterior()
        elif importance == "curvature":
            assert again.posterior("curvature", data()) == supernet.posterior("curvature", data())
            with pytest.raises(UserError, match="posterior: importance 'curvature' needs data"):
                again.posterior()
        else:
            assert again.posterior(by_place) == supernet.posterior()
            with pytest.raises(UserError, match="gated with a function as its importance, which is not saved"):
                again.posterior()


def test_scales_are_pulled_to_zero_by_their_sum():
    supernet = gated("scale", scale_penalty=0.3, floor=0.25)
    default = float(gated("scale").learning.regularizer())
    assert default == pytest.approx(2 / STEPS / 0.3 * float(supernet.learning.regularizer()), rel=1e-5)
    assert unit_training.scale_penalty(10**6) == 1e-4
    inner = [np.array(supernet.graph.model.get_layer(f"in{i}_bn").gamma) for i in range(2)]
    assert float(supernet.regularizer()) == pytest.approx(0.3 * sum(np.abs(g).sum() for g in inner), rel=1e-5)
    compiled(supernet).fit(data(), epochs=8, verbose=0, shuffle=False)
    free = compiled(gated("scale", scale_penalty=0.0))
    free.fit(data(), epochs=8, verbose=0, shuffle=False)
    pulled, others = ([np.abs(m.graph.model.get_layer(f"in{i}_bn").gamma) for i in range(2)] for m in (supernet, free))
    assert np.sum(pulled) < 0.5 * np.sum(others)
    assert supernet.posterior() == supernet.posterior("scale", floor=0.25) != supernet.posterior("scale", floor=0.0)


def test_squared_gradients_are_averaged_over_steps():
    """At a learning rate of 0 they are those of the same network; of its gates in normalizations, by Keras's layers."""
    supernet, model = compiled(gated("curvature", steps=1000), rate=0.0), model_of()
    average = np.zeros(12)
    for images, labels in data():
        gates = gradients(model, ["in0_bn", "in1_bn"], LOSS, images, labels, training=True).reshape(-1)
        average += 0.01 * (gates**2 - average)
    supernet.fit(data(), verbose=0, shuffle=False)
    np.testing.assert_allclose(supernet.draw.squared_gradients, average, rtol=1e-3, atol=1e-3 * average.max())
    scored = supernet.posterior()
    expected = unit_training.posterior_of(supernet.form, average, supernet.bounds)
    np.testing.assert_allclose(scored.keep_logits, expected.keep_logits, rtol=0.02, atol=0.02)


@pytest.fixture(scope="module")
def tightened():
    """Trained to the bounds; the costs after every epoch, and the weights of the units at its 10th step."""
    supernet = compiled(gated("curvature"))
    history = supernet.fit(data(), epochs=7, verbose=0, shuffle=False).history  # 21 steps
    return supernet, history


def test_kept_units_fall_to_the_bounds_and_are_the_most_probable_network(tightened):
    supernet, history = tightened
    kept = np.array(supernet.learning.kept) > 0.5
    for resource, share in (("parameters", 0.6), ("multiply_adds", 0.65)):
        assert all(a >= b for a, b in zip(history[resource], history[resource][1:], strict=False))
        assert history[resource][0] > history[resource][-1] <= share
    q = supernet.posterior()
    mode = np.concatenate([*q.mode().values()])
    assert (mode | ~kept).all() and mode.sum() <= kept.sum() + 1
    cost = tfnas.cost(supernet.graph, supernet.graph.closed(supernet.architecture()))
    assert cost.parameters / supernet.form.full("parameters") == pytest.approx(history["parameters"][-1], rel=1e-5)
    candidates = q.sample(20)
    assert len(candidates) > 10 and len(set(candidates)) == len(candidates)
    for candidate in candidates:
        assert all(q.cost_of(candidate, resource) <= bound for resource, bound in q.bounds.items())
    # A dropped unit has no gradient, so its average only fades.
    squares = np.array(supernet.draw.squared_gradients)
    before = supernet.get_weights()
    supernet.train_on_batch(*next(iter(data())))
    np.testing.assert_allclose(np.array(supernet.draw.squared_gradients)[~kept], 0.99 * squares[~kept], rtol=1e-5)
    assert (np.array(supernet.draw.squared_gradients)[kept] != 0.99 * squares[kept]).any()
    supernet.set_weights(before)


def test_the_network_of_the_kept_units_is_what_is_trained(tightened):
    """One step of the supernet, whose masks were others meanwhile, and one of the network that is cut out."""
    supernet, _ = tightened
    before, images_and_labels = supernet.get_weights(), next(iter(data()))
    kept = supernet.architecture()
    cut = compiled(tfnas.subnet(supernet, kept))
    loss = cut.train_on_batch(*images_and_labels)
    supernet.set_architecture({name: np.ones_like(mask) for name, mask in kept.items()})
    assert supernet.train_on_batch(*images_and_labels, return_dict=True)["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert supernet.architecture() == kept
    supernet.set_weights(before)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.usefixtures("eager")
def test_a_reloaded_supernet_goes_on_dropping_units_as_if_it_had_not_been_saved(tmp_path):
    whole, part = (compiled(gated("curvature", steps=9)) for _ in range(2))
    part.fit(data(), epochs=1, verbose=0, shuffle=False)
    part.save(tmp_path / "s.keras")
    again = tfnas.load(tmp_path / "s.keras")
    assert again.architecture() == part.architecture() and again.posterior() == part.posterior()
    again.fit(data(), epochs=2, verbose=0, shuffle=False)
    whole.fit(data(), epochs=3, verbose=0, shuffle=False)
    for made, other in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(made, other)
    for made, other in zip(whole.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(made, other)
    assert whole.posterior() == again.posterior()


def test_several_steps_at_once_drop_units_too():
    supernet = compiled(gated("curvature"), steps_per_execution=3)
    supernet.fit(data(), epochs=7, verbose=0, shuffle=False)
    assert tfnas.cost(supernet.graph, supernet.architecture()).parameters <= supernet.bounds["parameters"]


@pytest.mark.parametrize(
    "importance, options, message",
    [
        ("taylor", {}, "gate: importance must be one of 'gates', 'curvature'.* Received: 'taylor'"),
        ("norm", {"noise": "example"}, "gate: noise belongs to importance 'gates'. Received: noise='example' and"),
        ("even", {"floor": 0.5}, "gate: floor belongs to importance 'scale'. Received: floor=0.5 and"),
        ("scale", {"iterative": False}, "gate: iterative belongs to importance 'curvature'"),
        ("scale", {"floor": 1.5}, r"gate: floor must be in \[0, 1\]. Received: floor=1.5"),
        ("scale", {"scale_penalty": -1}, "gate: scale_penalty must be at least 0"),
        ("scale", {"steps": 0}, "gate: steps must be at least 1"),
        ("curvature", {"steps": 0}, "gate: steps must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(importance, options, message):
    with pytest.raises((UserError, ValueError), match=message):
        gated(importance, **options)


def test_what_is_missing_is_asked_for():
    with pytest.raises(UserError, match="gate: num_examples, .* expected with importance 'gates'"):
        tfnas.gate(model_of(), parameters=0.6, steps=9)
    with pytest.raises(UserError, match="gate: num_examples, .* expected with ell2"):
        tfnas.gate(model_of(), ell2=1.0)
    with pytest.raises(UserError, match="gate: importance belongs to a search with bounds"):
        tfnas.gate(model_of(), ell2=1.0, num_examples=5, importance="norm")
    supernet = tfnas.gate(model_of(), parameters=0.6, importance="even")
    with pytest.raises(UserError, match="'gates' is learned by training with gates, and this supernet's is 'even'"):
        supernet.posterior("gates")
    with pytest.raises(UserError, match="'curvature' has no gradients yet: call fit first, or give data"):
        gated("curvature").posterior()
