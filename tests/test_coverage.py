"""A slice of `benchmarks.coverage`: networks are exact by its own comparison, and images of any size."""

import keras
import networks
import numpy as np
import pytest
from exactness import check_equal

import tfnas
from benchmarks import coverage
from tfnas.common.errors import UserError

OUTCOMES = {
    "recurrent_behind_convolutions": "partly",
    "shuffled": "exact",
    "spectral": "exact",
    "pooled_by_attention": "exact",
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_network_is_measured(name, eager):
    record, model = coverage.measure(networks.MODELS[name]), networks.MODELS[name]()
    assert record["outcome"] == OUTCOMES[name], record
    assert max(record[key] for key in ("gated", "cut", "engine", "loaded")) < 1e-5
    frozen = sum(v.numpy().size for v in model.non_trainable_weights)
    assert record["built"] and record["parameters"] == record["counted"] == model.count_params() - frozen


def test_images_of_any_size_bound_parameters_alone(rng):
    """tensorflow/model-optimization issue 928."""
    model = networks.super_resolution()
    supernet = tfnas.gate(model, parameters=0.5, steps=10, num_examples=10)
    supernet.compile("adam", loss="mse")
    small, large = (rng.normal(size=(2, size, size, 1)).astype("f4") for size in (6, 9))
    supernet.fit(small, model(small), epochs=1, verbose=0)
    best = supernet.posterior().sample(1, 0)[0]
    cut = tfnas.subnet(supernet, best)
    assert cut.count_params() <= 0.5 * model.count_params()
    supernet.set_architecture(best)
    for images in (small, large):
        check_equal(cut(images), supernet(images))
    with pytest.raises(UserError, match="multiply_adds"):
        tfnas.gate(model, multiply_adds=0.5, steps=10, num_examples=10)


def test_a_builder_s_failure_is_a_record():
    def build():
        raise RuntimeError("no such layer")

    record = coverage._measured(build)
    assert record["outcome"] == "crashed" and record["reason"] == "RuntimeError: no such layer"
    image = keras.Input((4,))
    record = coverage._measured(lambda: keras.Model(image, keras.layers.Dense(2)(image)))
    assert record["outcome"] == "whole" and np.isfinite(record["seconds"])
