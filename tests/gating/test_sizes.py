"""What a search reports about its target size, on a network whose parameters can be counted in the head."""

import keras
import numpy as np
import pytest

import tfnas
from tfnas.config import Config, Search
from tfnas.gating.sizes import size_reached
from tfnas.stages import search


def chain(**prior):
    """Two gated convolutions after a stem, of 8 channels each, 1x1, without biases: 8 + 64 + 64 + 8 parameters."""
    x = image = keras.Input((4, 4, 1))
    for name in ("stem", "one", "two"):
        x = keras.layers.Conv2D(8, 1, use_bias=False, name=name)(x)
    end = keras.layers.Dense(1, use_bias=False)(keras.layers.GlobalAveragePooling2D()(x))
    return tfnas.gate(keras.Model(image, end), num_examples=100, **prior)


def drop(supernet, counts):
    """Of each gated layer's 8 input channels so many are dropped for certain, the others kept."""
    for layer, count in zip(supernet.gated_layers.values(), counts, strict=True):
        layer.drop_logit.assign(np.where(np.arange(8) < count, 50.0, -50.0))


# What is left of 144 parameters where layer 'one' reads a, and 'two' b of its 8 channels: a + a b + 8 b + 8.
@pytest.mark.parametrize(
    "share, a, b, what",
    [
        (0.5, 4, 4, "target size 50.0% of the parameters, reached 41.7%; filling up to the target keeps"),
        (0.4, 4, 4, "target size 40.0% of the parameters, reached 41.7%\n"),
        (0.39, 4, 4, "target size 39.0% of the parameters, reached 41.7%; the gates had too few steps"),
        (0.95, 7, 7, "target size 95.0% of the parameters, reached 83.3%; filling up"),
        (0.95, 8, 8, "target size 95.0% of the parameters, reached 100.0%; the gates had too few steps"),
    ],
)
def test_what_was_asked_and_what_is_reached_is_said_in_one_line(capsys, share, a, b, what):
    supernet = chain(parameters=share, steps=40)
    drop(supernet, (8 - a, 8 - b))
    left = a + a * b + 8 * b + 8
    callback = tfnas.UpdateCosts()
    callback.set_model(supernet)
    callback.on_train_end()
    size, printed = size_reached(supernet), capsys.readouterr().out
    assert size.share == pytest.approx(left / 144)
    assert size.missed == (abs(left / 144 / share - 1) >= 0.05) and what in printed and printed.count("\n") == 1
    assert ("gate_step" in printed) == size.above == (left / 144 >= 1.05 * share)


def test_without_a_size_nothing_is_said():
    assert size_reached(chain(ell2=1)) is None


def test_fit_says_when_it_starts_that_it_has_too_few_steps(capsys, rng):
    supernet = chain(parameters=0.5, steps=40)
    supernet.compile("sgd", loss="mse")
    x, y = rng.normal(size=(8, 4, 4, 1)), rng.normal(size=(8, 1))

    class First(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.told = getattr(self, "told", capsys.readouterr().out)

    for epochs, words in ((5, "fit takes 10 steps, of 40"), (20, "")):
        first = First()
        supernet.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=[tfnas.UpdateCosts(), first])
        assert words in first.told and bool(words) == bool(first.told)
        capsys.readouterr()


def test_search_says_it_at_its_end_with_the_settings_that_help(capsys):
    settings = Config(search=Search(parameters=0.39)).check()
    for a, advice in ((4, "--config.search.epochs or --config.search.gate_step=0.1 helps"), (3, "")):
        supernet = chain(parameters=0.39, steps=40)
        drop(supernet, (8 - a, 4))
        search._report_size(supernet, settings)
        printed = capsys.readouterr().out
        assert printed.startswith("search    target size 39.0% of the parameters, ") and printed.count("\n") == 1
        assert advice in printed and bool(advice) == ("gate_step" in printed)
