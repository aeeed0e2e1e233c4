"""Candidates of the size that was asked for, from Python."""

import keras
import numpy as np
import pytest

import tfnas
from tfnas.common.errors import SearchFailedError
from tfnas.ranking.candidates import Sized


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def searched(rng, **size):
    """A supernet as a search might leave it: its gates undecided, and its expectation nowhere near the size."""
    keras.utils.set_random_seed(0)
    model = tfnas.supernets.multi_branch_resnet(width=8, num_blocks=1, num_classes=10, input_shape=(8, 8, 1))
    supernet = tfnas.gate(model, num_examples=1000, **size)
    for layer in supernet.gated_layers.values():
        layer.drop_logit.assign(rng.normal(-1.5, 1.0, layer.drop_logit.shape))
    return model, supernet


def test_candidates_have_the_size_asked_for_whatever_the_search_arrived_at(rng):
    model, supernet = searched(rng, parameters=0.4, steps=100)
    assert supernet.posterior().expected_kept() > 0.6
    candidates = tfnas.sample(supernet, 40, seed=3)
    sizes = [trainable(tfnas.subnet(supernet, candidate)) for candidate in candidates]
    assert 2 < len(candidates) <= 40 and len({candidate.digest() for candidate in candidates}) == len(candidates)
    assert max(sizes) <= 0.4 * trainable(model)
    assert min(sizes) >= 0.97 * sizes[0] and sizes[0] > 0.39 * trainable(model)
    assert candidates == tfnas.sample(supernet, 40, seed=3)


def test_fewer_than_asked_for_are_told_with_the_reason(rng, capsys):
    _, supernet = searched(rng, parameters=0.4, steps=100)
    candidates = tfnas.sample(supernet, 40, seed=3)
    printed = " ".join(capsys.readouterr().out.split())
    size = Sized.of(supernet.posterior(), supernet.graph, supernet.target)
    sizes = [tfnas.cost(supernet.graph, size.draw(i, 3)).parameters for i in range(40)]
    larger = sum(s > 0.4 * tfnas.cost(supernet.graph).parameters for s in sizes)
    smaller = sum(s < 0.97 * sizes[0] for s in sizes)
    assert len(candidates) == 40 - larger - smaller < 40
    assert f"sample: {len(candidates)} of 40 candidates can be compared; left out: " in printed
    for count, words in ((larger, "larger than was asked for"), (smaller, "more than 3% smaller")):
        assert (f"{count} {words}" in printed) == (count > 0)
    assert "different" not in printed  # they all are


def test_equal_candidates_are_told(rng, capsys):
    _, supernet = searched(rng, ell2=50.0)
    tfnas.sample(supernet, 5, seed=1)
    assert capsys.readouterr().out == ""
    for layer in supernet.gated_layers.values():
        layer.drop_logit.assign(np.full(layer.drop_logit.shape, -30.0))
    tfnas.sample(supernet, 5, seed=1)
    assert "sample: 5 of 5 candidates can be compared, 1 of them different" in capsys.readouterr().out


def test_without_a_size_they_are_the_posteriors_own(rng):
    _, supernet = searched(rng, ell2=50.0)
    assert tfnas.sample(supernet, 5, seed=1) == supernet.posterior().sample(5, seed=1)


def test_a_size_that_leaves_no_network_is_told():
    image = keras.Input((8, 8, 1))
    x = image
    for name in ("stem", "second", "third"):
        x = keras.layers.Conv2D(8, 3, padding="same", name=name)(x)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(x)))
    supernet = tfnas.gate(model, parameters=0.15, steps=100, num_examples=1000)
    # All of the second's channels are more probable than any of the third's, and with one of those it is too large.
    supernet.gated_layers["third"].drop_logit.assign(np.full(8, 5.0))
    words = "sample: no candidate of at most 15.0% of the parameters has a path to the output: gate with a larger share"
    with pytest.raises(SearchFailedError, match=words):
        tfnas.sample(supernet, 5, seed=1)
