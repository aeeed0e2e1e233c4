"""Registered rules, and the battery that checks them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnas
from tfnas.common.errors import UserError
from tfnas.layers.of_units.registered import _RULES
from tfnas.testing import check_layer

L = keras.layers


@keras.saving.register_keras_serializable("test_testing")
class RunningSum(L.Layer):
    """Sums over rows with a rate for each channel, by a function of TensorFlow that has no like: left whole."""

    def build(self, shape):
        self.rate = self.add_weight(shape=(shape[-1],), initializer="ones", name="rate")

    def call(self, x):
        return tf.math.cumsum(x, axis=1) * self.rate


@keras.saving.register_keras_serializable("test_testing")
class Factored(L.Layer):
    """A matrix product of low rank, with a layer inside."""

    def __init__(self, units, rank, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rank = units, rank
        self.up = L.Dense(units, name="up")

    def build(self, shape):
        self.down = self.add_weight(shape=(self.rank, shape[-1]), name="down")
        self.up.build((*shape[:-1], self.rank))

    def call(self, x):
        return self.up(tf.einsum("...c,rc->...r", x, self.down))

    def get_config(self):
        return {**super().get_config(), "units": self.units, "rank": self.rank}


@keras.saving.register_keras_serializable("test_testing")
class Scan(L.Layer):
    """A running sum along the first axis, by a function of TensorFlow that has no like."""

    def call(self, x):
        return tf.cumsum(x, axis=1)


EACH = tfnas.layers.Rule(writes={"rate": -1})
MIXED = tfnas.layers.Rule(
    mixes=True,
    reads={"down": 1},
    writes={"up/kernel": -1, "up/bias": -1},
    multiplied=("down", "up/kernel"),
    settings=lambda channels: {"units": channels},
)


@pytest.fixture(autouse=True)
def rules_of_its_own():
    known = dict(_RULES)
    yield
    _RULES.clear()
    _RULES.update(known)


def test_registered_layers_are_narrowed():
    with pytest.raises(AssertionError, match="no channel of the layer's input can vanish"):
        check_layer(RunningSum())
    tfnas.layers.register(RunningSum, EACH)
    tfnas.layers.register(Factored, MIXED)
    tfnas.layers.register(Scan, tfnas.layers.Rule())
    assert check_layer(lambda x: Scan()(Factored(7, 3)(RunningSum()(x)))) == 8
    check_layer(lambda x: Factored(6, 2)(x), (5,), units=5)


@pytest.mark.parametrize(
    "layer, rule, message",
    [
        (Scan(), tfnas.layers.Rule(mixes=True), "no subnet can be built of it: .*not compatible"),
        (RunningSum(), tfnas.layers.Rule(), "no subnet can be built of it"),
        (Factored(7, 3), tfnas.layers.Rule(mixes=True, reads={"down": 1}), "no subnet can be built of it"),
    ],
)
def test_wrong_rules_are_noticed(layer, rule, message):
    tfnas.layers.register(type(layer), rule)
    with pytest.raises(AssertionError, match=message):
        check_layer(layer)


def test_the_costs_and_norms_of_a_rule(rng):
    tfnas.layers.register(Factored, MIXED)
    model = tfnas.testing.model_around(Factored(7, 3, name="factored"), (6, 6, 8))
    graph = tfnas.gate(model, parameters=0.9, importance="norm").graph
    node = graph.nodes[graph.index["factored"]]
    assert node.count_of(5, 4) == (3 * 5 + 3 * 4 + 4, 3 * 5 + 3 * 4)
    reads, makes = node.squared_norms()
    down, kernel, bias = model.get_layer("factored").get_weights()
    np.testing.assert_allclose(reads, (down**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(makes, (kernel**2).sum(0) + bias**2, rtol=1e-5)


@pytest.mark.parametrize(
    "rule, message",
    [
        (tfnas.layers.Rule(writes={"phase": 0}), "'phase' has its 8 channels. Received: no such variable"),
        (tfnas.layers.Rule(mixes=True, reads={"rate": 1}), "axis 1 of 'rate' has its 8 channels"),
    ],
)
def test_a_rule_that_does_not_fit_its_layer(rule, message):
    tfnas.layers.register(RunningSum, rule)
    with pytest.raises(UserError, match=message):
        check_layer(RunningSum())


def test_what_is_no_layer_and_no_rule():
    with pytest.raises(UserError, match="a subclass of keras.Layer expected"):
        tfnas.layers.register(RunningSum(), EACH)
    with pytest.raises(UserError, match="a tfnas.layers.Rule, or a subclass of Node, expected"):
        tfnas.layers.register(RunningSum, {"rate": -1})
    with pytest.raises(UserError, match="only a layer that mixes reads"):
        tfnas.layers.register(RunningSum, tfnas.layers.Rule(reads={"rate": 0}))
