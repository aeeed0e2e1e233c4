"""Functional, Sequential and nested models, in every function; models of other kinds in one line."""

import keras
import model_kinds
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfnas
from tfnas.common.errors import UserError
from tfnas.graph import models
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost

# `functional` is what all other tests are of.
KINDS = ("sequential", "built", "nested", "sequential_of_models")
GROUPS = {"stem", "path", "last"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_function(kind, tmp_path, rng):
    model = getattr(model_kinds, kind)((8, 8, 1), 3)
    assert 4 * model.count_params() < models.file_bytes(model) < 100 * model.count_params()
    images, labels = rng.normal(size=(24, 8, 8, 1)).astype("f4"), rng.integers(0, 3, 24)
    supernet = tfnas.gate(model, parameters=0.6, steps=4, num_examples=24)
    groups = supernet.graph.groups
    assert {group.name.removeprefix("body_").removeprefix("head_") for group in groups} == GROUPS
    np.testing.assert_allclose(supernet(images), model(images), rtol=1e-5, atol=1e-6)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(keras.optimizers.SGD(0.01), loss=loss)
    supernet.fit(images, labels, batch_size=12, epochs=1, verbose=0)
    path = tmp_path / "supernet.keras"
    supernet.save(path)
    np.testing.assert_array_equal(tfnas.load(path)(images), supernet(images))
    candidates = [supernet.graph.closed({g.name: rng.random(g.size) < 0.6 for g in groups}) for _ in range(3)]
    ranking = tfnas.rank(supernet, candidates, tf.data.Dataset.from_tensors((images, labels)), holdout=0, racing=None)
    best = ranking.candidates[ranking.outcome.winner]
    cut = tfnas.subnet(supernet, best)
    supernet.set_architecture(best)
    np.testing.assert_allclose(cut(images), supernet(images), rtol=1e-4, atol=1e-5)
    assert cost(supernet.graph, best).parameters == cost(Graph(cut)).parameters
    cut.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(images), supernet(images), rtol=1e-4, atol=1e-5)


def test_models_of_keras_2_are_refused_and_what_is_advised_works(rng):
    """tensorflow/model-optimization issue 1172."""
    body = [tf_keras.layers.Conv2D(8, 3, activation="relu"), tf_keras.layers.Conv2D(8, 3)]
    head = [tf_keras.layers.GlobalAveragePooling2D(), tf_keras.layers.Dense(3)]
    old = tf_keras.Sequential([tf_keras.layers.Input((8, 8, 3)), *body, *head])
    image = tf_keras.Input((8, 8, 3))
    for model in (old, tf_keras.Model(image, old(image))):
        with pytest.raises(UserError, match="a model of tf_keras .Keras 2., and one of Keras 3 is needed"):
            tfnas.gate(model, ell2=1, num_examples=10)
    body = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Conv2D(8, 3)]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    new = keras.Sequential([keras.Input((8, 8, 3)), *body, *head])
    new.set_weights(old.get_weights())
    images = rng.normal(size=(2, 8, 8, 3)).astype("f4")
    np.testing.assert_allclose(tfnas.gate(new, ell2=1, num_examples=10)(images), old(images), rtol=1e-4, atol=1e-5)


def test_a_saved_model_as_a_layer_is_refused(tmp_path):
    model = model_kinds.sequential((8, 8, 1), 3)
    tf.saved_model.save(model, tmp_path)
    layer = keras.layers.TFSMLayer(tmp_path, call_endpoint="serving_default", name="saved")
    image = keras.Input((8, 8, 1))
    with pytest.raises(UserError, match="layer 'saved': a TFSMLayer, which holds a SavedModel"):
        tfnas.gate(keras.Model(image, layer(image)), ell2=1, num_examples=10)
