"""The served signature prepares raw images as ranking and evaluation do."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnas import config, data
from tfnas.stages import export


@pytest.mark.parametrize("changes", [{}, {"image_size": 12}, {"image_size": 12, "random_resized_crop": True}])
def test_original_images_are_answered_as_prepared_ones(tmp_path, rng, changes):
    images = rng.integers(0, 256, (6, 20, 28, 3), np.uint8)
    chosen = dataclasses.replace(config.Data(mean=(0.4, 0.5, 0.6)), std=(0.2, 0.3, 0.4), **changes)
    size = changes.get("image_size", 0)
    shape = (size, size, 3) if size else (20, 28, 3)
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(6, dtype=np.int64)))
    validation = dataset.map(lambda image, label: (data.prepare(image, chosen), label))
    splits = data.Splits(dataset, validation, dataset, {}, shape, tuple("abcdef"))
    model = keras.Sequential([keras.Input(shape, name="image"), keras.layers.Flatten(), keras.layers.Dense(6)])
    export._write_saved_model(model, splits, config.Config(data=chosen), tmp_path / "model")

    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    answer = served(image=tf.constant(images))["probabilities"]
    (batch,) = data.evaluation_batches(splits.validation, chosen, 6)
    np.testing.assert_allclose(answer, tf.nn.softmax(model(batch[0])), atol=1e-5)
    assert export._check_reloaded(model, splits, config.Config(data=chosen), tmp_path / "model") < 1e-5
