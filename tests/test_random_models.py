"""Random models under random masks: dependence, cost, cut, engine and files agree with the supernet under the mask.

`make test` takes the first few models, with half of the masks; all 300 take

    TF_ENABLE_ONEDNN_OPTS=0 TFNAS_RANDOM_MODELS=300 .venv/bin/python -m pytest -n2 tests/test_random_models.py

without oneDNN, whose convolutions of one channel to one, with a kernel of one position, end in an AbortedError now and
then ("inconsistent src and dst mds" in TensorFlow 2.21's mkl_conv_ops.cc), in plain Keras models too.
"""

import math
import os

import keras
import numpy as np
import pytest
import random_models
import tensorflow as tf
from conftest import random_weights
from exactness import check_cut, check_equal

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting.subnets import subnet
from tfnas.graph.costs import cost
from tfnas.graph.folding import Folding, weights_of
from tfnas.layers import BatchNormalization, Convolution, Input, Pointwise, Separable, Spatial, Uncut
from tfnas.ranking.engine import Engine
from tfnas.ranking.recalibration import Recalibration

NUM_MODELS = int(os.environ.get("TFNAS_RANDOM_MODELS", "4"))
NUM_MASKS = 6 if "TFNAS_RANDOM_MODELS" in os.environ else 3  # of each kind that `masks` has, two or one
# Larger than any axis of a map: where the two are equal, keras.ops.add takes [N, 1, 1, C = 1] for a bias of the rows.
NUM_IMAGES = 29


def values(supernet, images):
    """Output of every node of the supernet's network under its masks, as Keras computes it."""
    found = []
    given = dict(zip(supernet.graph.inputs, images, strict=True))
    for i, node in enumerate(supernet.graph.nodes):
        tensors = [found[j] for j in node.inputs]
        found.append(tf.convert_to_tensor(given[i]) if isinstance(node, Input) else node.call(node.layer, tensors))
    return [np.asarray(value, np.float64) for value in found]


def check_states(supernet, flow, computed, smooth):
    """What the graph says of every channel is so: the same for every input, the same everywhere, zero."""
    constants = Folding(flow, weights_of(supernet.graph)).constants
    for i, (node, value) in enumerate(zip(supernet.graph.nodes, computed, strict=True)):
        near = 1e-5 * max(1.0, np.abs(value).max())
        spread = np.ptp(value, axis=0).reshape(-1, node.num_channels).max(0)  # over the inputs
        assert (spread[~flow.depends[i]] <= near).all(), f"'{node.name}' depends on the input"
        assert not (flow.depends[i] & ~flow.explicit[i]).any(), node.name
        constant = ~flow.explicit[i]
        np.testing.assert_allclose(
            value[..., constant], np.broadcast_to(constants[i][constant], value[..., constant].shape), 1e-4, near
        )
        assert not value[..., flow.zero[i]].any(), node.name
        if smooth and i in supernet.graph.outputs and flow.depends[i].any():
            assert (spread[flow.depends[i]] > 0).any(), f"'{node.name}' is the same for every input"


def check_layers(supernet, architecture, images, expected):
    """The subnet, which is exact and has the layers that work."""
    cut = check_cut(supernet, architecture, images, expected)
    graph = supernet.graph
    flow = graph.flow(architecture)
    layers = {layer.name: layer for layer in cut.layers}
    for i, node in enumerate(graph.nodes):
        always_there = node.kernel_is_cut or isinstance(node, BatchNormalization | Pointwise | Spatial | Uncut)
        if always_there and isinstance(node.inner, keras.Layer):
            assert flow.works(i) == (node.name in layers), node.name
        if isinstance(node, Convolution) and not isinstance(node, Separable) and flow.works(i):
            given = layers[node.name].input.shape[-1]
            assert given - int(flow.reads(i).sum()) in ((0, 1) if node.pads else (0,)), node.name
    return cut


@pytest.mark.parametrize("seed", range(NUM_MODELS))
def test_everything_agrees(seed, tmp_path):
    builder, rng = random_models.Builder(seed), np.random.default_rng(seed)
    model = builder.model()
    random_weights(model, rng)
    supernet = tfnas.gate(
        model, ell2=1, num_examples=10, gate_dense=True, gate_pooling=seed % 2 == 0, exclude=builder.ungateable
    )
    images = [rng.normal(size=(NUM_IMAGES, *i.shape[1:])).astype("float32") for i in model.inputs]
    given = images if len(images) > 1 else images[0]
    for g, e in zip(keras.tree.flatten(supernet(given)), keras.tree.flatten(model(given)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5 * np.abs(e).max())
    assert cost(supernet.graph).parameters == sum(math.prod(v.shape) for v in model.trainable_variables)
    supernet.compile("sgd", loss=["mse"] * len(model.outputs))
    labels = [np.zeros((NUM_IMAGES, 3), "float32") for _ in model.outputs]
    examples = (tuple(images) if len(images) > 1 else images[0], tuple(labels) if len(labels) > 1 else labels[0])
    batches = tf.data.Dataset.from_tensors(examples)
    engine = Engine(supernet, batches, batch_size=11)
    cut = None
    for architecture in random_models.masks(supernet, NUM_MASKS, rng):
        supernet.set_architecture(architecture)
        flow = supernet.graph.flow(architecture)
        computed = values(supernet, images)
        check_states(supernet, flow, computed, builder.smooth)
        expected = [computed[j] for j in supernet.graph.outputs]
        check_equal(engine.outputs(architecture), expected)
        if flow.reaches_outputs():
            cut = check_layers(supernet, architecture, given, expected)
        else:
            with pytest.raises(UserError, match="drops every path to the output"):
                subnet(supernet, architecture)
    if cut is not None:
        cut.save(tmp_path / "cut.keras")
        again = keras.models.load_model(tmp_path / "cut.keras")
        for g, e in zip(keras.tree.flatten(again(given)), keras.tree.flatten(cut(given)), strict=True):
            np.testing.assert_array_equal(g, e)
    supernet.save(tmp_path / "supernet.keras")
    again = tfnas.load(tmp_path / "supernet.keras")
    for g, e in zip(keras.tree.flatten(again(given)), keras.tree.flatten(supernet(given)), strict=True):
        np.testing.assert_array_equal(g, e)
    if seed % 3 == 0:
        recalibration = Recalibration(supernet, given)
        recalibrated = Engine(supernet, batches, batch_size=11, recalibration=recalibration)
        supernet.set_architecture(architecture)
        recalibration.apply(architecture)
        check_equal(recalibrated.outputs(architecture), supernet(given))
