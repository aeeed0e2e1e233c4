"""Retrain's measurements, without training anything."""

import numpy as np
import pytest
import tensorflow as tf

from tfnas import config
from tfnas.common.errors import UserError
from tfnas.data import pipeline
from tfnas.stages import retrain
from tfnas.tasks import network_inputs
from tfnas.training.best_cut import check_exact


def test_what_is_compared_is_computed_in_full_precision():
    """A GPU's TF32 rounds to 10 bits: neither a comparison to 1e-4 nor the one that export makes would hold."""
    asked, seen = tf.config.experimental.tensor_float_32_execution_enabled, []

    class Network:
        output_shape = (None, 3)

        def __call__(self, images, training):
            seen.append(asked())
            return np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]

        def set_architecture(self, architecture):
            assert architecture == "found"

    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 2, 2])
    validation = tf.data.Dataset.from_tensor_slices((images, labels))
    settings, parts = config.Config(), dict.fromkeys(("train", "validation", "test"), validation)
    splits = pipeline.Splits(
        **parts, sizes={"train": 4}, inputs=network_inputs.one((2, 2, 1)), label_names=("a", "b", "c")
    )
    check_exact(Network(), "found", Network(), images)
    found = retrain._scored(Network(), validation, splits, settings)
    assert found.metrics["accuracy"] == 0.75 and found.confusion == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    np.testing.assert_array_equal(found.errors, [0, 0, 1, 0])
    assert seen == [False] * 3 and asked()


@pytest.mark.parametrize("error, words", [(0.0, None), (1.9e-4, None), (2.1e-4, "1.[01]e-04"), (np.nan, "nan")])
def test_a_network_that_computes_otherwise_than_what_was_ranked_is_not_retrained(error, words):
    class Network:
        def __init__(self, error):
            self.outputs = np.float32([[-2.0, 1.0 + error]])  # the largest is 2

        def __call__(self, images, training):
            return self.outputs

        def set_architecture(self, architecture):
            pass

    arguments = (Network(0.0), None, Network(error), np.zeros((1, 2, 2, 1), np.uint8))
    if words is None:
        check_exact(*arguments)
    else:
        with pytest.raises(UserError, match=f"differs .* by {words} .*at most 1e-04 expected; .* report it"):
            check_exact(*arguments)
