"""SGD with Adam for the gates, against Keras's own two; learning rates that go on where another stage stopped."""

import keras
import numpy as np
import pytest

from tfnas import optimizers
from tfnas.config import Config, Retrain, Search


def variables():
    return [keras.Variable([1.0, -2.0], name="kernel"), keras.Variable([0.5, -0.5, 3.0], name="drop_logit")]


def test_gates_take_adams_steps_and_weights_sgds(rng):
    both = variables()
    optimizer = optimizers.GatedSGD(0.1, gate_learning_rate=0.03, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["drop_logit"])
    (kernel, _), (_, logit) = variables(), variables()
    sgd = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    adam = keras.optimizers.Adam(0.03, beta_1=0.9, beta_2=0.99)
    for scale in (1.0, 1e-3, -1e-3, 10.0):
        gradients = [(scale * rng.normal(size=v.shape)).astype("float32") for v in both]
        optimizer.apply(gradients, both)
        sgd.apply(gradients[:1], [kernel])
        adam.apply(gradients[1:], [logit])
    np.testing.assert_allclose(both[0], kernel, rtol=1e-6)
    np.testing.assert_allclose(both[1], logit, rtol=1e-5)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def cosine(step, steps, rate=0.2):
    return rate * (1 + np.cos(np.pi * step / steps)) / 2


def test_one_cosine_runs_through_warm_up_search_and_retraining():
    config = Config(search=Search(epochs=6, learning_rate=0.2), retrain=Retrain(epochs=4)).check()
    assert config.search.warmup_epochs == 2
    # 5 steps an epoch, 50 in all.
    warm_up, gated = optimizers.search(config, 5), optimizers.search(config, 5, 2)
    retrained, plain = optimizers.retraining(config).schedule(5), optimizers.plain_search(config).schedule(5)
    for step in (0, 7, 19):
        assert float(warm_up(step)) == float(plain(step)) == pytest.approx(cosine(step, 50), rel=1e-5)
        assert float(gated(step)) == pytest.approx(cosine(step + 10, 50), rel=1e-5)
        assert float(retrained(step)) == pytest.approx(cosine(step + 30, 50), rel=1e-4)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(gated))
    assert float(again(7)) == float(gated(7))


def test_other_schedules_are_searchs_alone():
    config = Config(search=Search(schedule="cosine", epochs=6), retrain=Retrain(epochs=4, learning_rate=0.2)).check()
    assert float(optimizers.retraining(config).schedule(5)(7)) == pytest.approx(cosine(7, 20), rel=1e-5)
    steps = Config(
        search=Search(recipe="paper", schedule="steps", boundaries=(3.0,), warmup_epochs=2, epochs=6)
    ).check()
    rate = optimizers.search(steps, 5, 2)
    assert [float(rate(step)) for step in (0, 4, 5)] == pytest.approx([0.1, 0.1, 0.01])
