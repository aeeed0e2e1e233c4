"""Retrain's measurements, without training anything."""

import types

import numpy as np
import tensorflow as tf

from tfnas import config
from tfnas.stages import retrain


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
    settings = config.Config()
    retrain._check_exact(Network(), "found", Network(), types.SimpleNamespace(validation=validation), settings)
    found = retrain._classified(Network(), validation, settings)
    np.testing.assert_array_equal(found[:2], [labels, [0, 1, 1, 2]])
    assert seen == [False] * 3 and asked()
