"""Checks that a subnet, its cost and the supernet under the mask agree."""

import math

import keras
import numpy as np
from conftest import random_weights

from tfnas.cutting.subnets import subnet
from tfnas.graph.costs import cost
from tfnas.testing import check_model

PROJECTIONS = ("query", "key", "value", "output")


def check_equal(got, expected):
    """Outputs are the same but for rounding, of which there is more the larger they are."""
    for g, e in zip(keras.tree.flatten(got), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-4 * max(1e-3, np.abs(e).max()))


def check_cut(supernet, architecture, images, expected):
    """The subnet, which equals the supernet under the mask and costs what was counted."""
    cut = subnet(supernet, architecture)
    check_equal(cut(images), expected)
    counted = cost(supernet.graph, architecture)
    assert (counted.parameters, counted.multiply_adds) == built_cost(cut)
    return cut


def check_units(model, rng, noise="batch", streams=False, everything=True):
    """Checks the supernet of channel units of a model, with random weights; returns it."""
    random_weights(model, rng)
    (image,) = model.inputs
    images = rng.normal(size=(7, *image.shape[1:])).astype("f4")
    if image.dtype == "int32":
        images = rng.integers(0, 9, (7, *image.shape[1:]))
    supernet = check_model(model, images, streams=streams, noise=noise, everything=everything)
    form = supernet.graph.form
    assert form.full("parameters") == cost(supernet.graph).parameters <= model.count_params()
    return supernet


def built_cost(model):
    """Trainable parameters and multiply-adds from the built layers' own weights and shapes."""
    multiply_adds = 0
    for layer in model.layers:
        kernels = [getattr(layer, name, None) for name in ("kernel", "depthwise_kernel", "pointwise_kernel")]
        weights = sum(math.prod(kernel.shape) for kernel in kernels if kernel is not None)
        is_variable = getattr(layer, "equation", "").startswith("zy,y")  # which is multiplied by 1
        if weights and not is_variable:
            transposed = "Transpose" in type(layer).__name__
            multiply_adds += weights * math.prod((layer.input if transposed else layer.output).shape[1:-1])
        if isinstance(layer, keras.layers.RNN):
            kernels = (layer.cell.kernel, layer.cell.recurrent_kernel)
            multiply_adds += layer.input.shape[1] * sum(math.prod(kernel.shape) for kernel in kernels)
        if isinstance(layer, keras.layers.MultiHeadAttention):  # all positions attend to all
            queries, attended = (math.prod(tensor.shape[1:-1]) for tensor in layer.input)
            size = {name: math.prod(getattr(layer, f"_{name}_dense").kernel.shape) for name in PROJECTIONS}
            multiply_adds += queries * (size["query"] + size["output"]) + attended * (size["key"] + size["value"])
            multiply_adds += queries * attended * layer.num_heads * (layer.key_dim + layer.value_dim)
    return sum(math.prod(v.shape) for v in model.trainable_variables), multiply_adds
