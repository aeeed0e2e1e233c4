"""A slice of `benchmarks.coverage`: networks are exact by its own comparison, and images of any size."""

import re

import keras
import networks
import numpy as np
import pytest
from exactness import check_equal

import tfnas
from benchmarks import coverage
from tfnas.common.errors import UserError

OUTCOMES = {
    "recurrent_behind_convolutions": "exact",
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


def test_what_rounding_makes_of_a_network_is_no_error(eager):
    """The logistic map, which doubles differences in each of its steps."""

    def chaotic():
        image = keras.Input((64,))
        x = keras.layers.Dense(64, "relu")(image)
        x = keras.layers.Dense(32, "sigmoid")(x)
        for _ in range(22):
            x = 3.9 * (x * (1 - x))
        return keras.Model(image, keras.layers.Dense(3)(x))

    record = coverage._measured(chaotic)
    assert record["outcome"] == "exact" and record["remark"].startswith("in float64; ")
    in_float32, rounding = (float(x) for x in re.findall(r"[\d.]+e[+-]\d+", record["remark"]))
    assert coverage._largest(record) < 1e-6 < coverage._TOLERANCE < in_float32 and rounding > 1e-5
    assert keras.config.floatx() == "float32" and "weights" not in record


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
