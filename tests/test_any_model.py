"""Any Keras model: gated, cut exactly, and counted as built, those of keras.applications among them.

`make test` takes two of those, whose layers no other test has; all nine take

    TFNAS_ALL_APPLICATIONS=1 .venv/bin/python -m pytest -n 2 tests/test_any_model.py -k applications
"""

import itertools
import math
import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights
from exactness import built_cost
from random_models import connected
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import tfnas
from tfnas import supernets
from tfnas.common.errors import UserError
from tfnas.cutting.subnets import describe, rebuild, subnet
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.ranking.engine import Engine
from tfnas.search_space.architecture import Architecture

# The smallest image each takes.
APPLICATIONS = {"MobileNetV3Small": 32, "ConvNeXtTiny": 32}
if os.environ.get("TFNAS_ALL_APPLICATIONS"):
    APPLICATIONS |= {
        "ResNet50": 32,
        "DenseNet121": 32,
        "MobileNetV2": 32,
        "EfficientNetB0": 32,
        "Xception": 71,
        "InceptionV3": 75,
        "NASNetMobile": 32,
    }
DROPS = (0.1, 0.3, 0.5, 0.7, 0.9)


def candidates(supernet, rng, drops=DROPS):
    """Random architectures, from mild to brutal; where half of the channels go or more, whole operations do as well."""
    for drop in drops:
        keep = {}
        for name, layer in supernet.gated_layers.items():
            gone = drop >= 0.5 and rng.random() < 0.5 * drop
            keep[name] = np.zeros(layer.mask.shape, bool) if gone else rng.random(layer.mask.shape[0]) >= drop
        yield connected(supernet, keep, rng)


def largest_difference(cut, supernet, architecture, x):
    supernet.set_architecture(architecture)
    expected = keras.tree.flatten(supernet(x))
    got = keras.tree.flatten(cut(x))
    return max(
        float(np.abs(np.asarray(g) - np.asarray(e)).max() / max(np.abs(np.asarray(e)).max(), 1e-6))
        for g, e in zip(got, expected, strict=True)
    )


def parameters(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def check_exact(supernet, architecture, x):
    cut = subnet(supernet, architecture)
    assert largest_difference(cut, supernet, architecture, x) <= 1e-4
    price = cost(supernet.graph, architecture)
    assert (price.parameters, price.multiply_adds) == built_cost(cut)
    return cut


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_are_cut_exactly(name, rng):
    size = APPLICATIONS[name]
    arguments = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
    model = getattr(keras.applications, name)(**arguments)
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    x = rng.uniform(0, 255, size=(2, size, size, 3)).astype("float32")
    np.testing.assert_allclose(supernet(x), model(x), rtol=1e-4, atol=1e-4 * np.abs(model(x)).max())
    assert cost(Graph(model)).parameters == parameters(model)
    for architecture in candidates(supernet, rng, (0.3, 0.7)):
        check_exact(supernet, architecture, x)


# Every supernet of the paper, narrow and shallow.
SUPERNETS = {
    "multi_branch_resnet": {"width": 4, "num_blocks": 1, "input_shape": (12, 8, 3), "stem_width": 4},
    "enas": {"width": 4, "num_blocks": 1, "input_shape": (8, 12, 3), "drop_path": 0.4},
    "resnet50": {"width": 4, "num_blocks": 1, "input_shape": (40, 33, 3)},
    "densenet121": {"width": 3, "num_blocks": 2, "input_shape": (40, 33, 3)},
    "densenet121_3d": {"width": 3, "num_blocks": 2, "input_shape": (8, 40, 33, 3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPERNETS)
def test_supernets_are_cut_exactly_and_rebuilt(name, rng):
    """Dilated, strided, separable and 3-D convolutions among those that are cut, with whole layers gone."""
    arguments = {**SUPERNETS[name], "num_classes": 5}
    model = getattr(supernets, name)(**arguments)
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, gate_pooling=True)
    x = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
    for architecture in candidates(supernet, rng, (0.2, 0.7)):
        cut = check_exact(supernet, architecture, x)
        assert parameters(cut) < parameters(model)
    again = rebuild(describe(architecture, supernet.graph, name, **arguments))
    # By name: their order is Keras's, and may differ.
    assert {v.path: v.shape for v in again.weights} == {v.path: v.shape for v in cut.weights}
    if name == "enas":  # an argument that is a share, where others are numbers
        assert {layer.rate for layer in again.layers if re.match("cell5_.*droppath", layer.name)} == {0.4}


def everything(x, grouped=True):
    """One of each kind of layer, in places where constants, zeros and gathers meet them."""
    layers = keras.layers
    x = layers.Rescaling(2.0, name="rescaling")(x)
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    a = layers.BatchNormalization(name="bn_a")(layers.Conv2D(6, 1, name="conv_a")(x))
    b = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="depth_b")(a)
    b = layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, name="separable_b")(b)
    c = layers.ZeroPadding2D(1, name="padding_c")(layers.BatchNormalization(name="bn_c")(a))
    c = layers.DepthwiseConv2D(3, activation="tanh", name="depth_c")(c)
    squeezed = layers.GlobalAveragePooling2D(name="squeeze")(c)
    squeezed = layers.Reshape((1, 1, 6), name="to_map")(squeezed)
    squeezed = layers.Conv2D(6, 1, activation="sigmoid", name="excite")(squeezed)
    c = layers.Multiply(name="scale_c")([c, squeezed])
    if grouped:  # one filter a channel, as a grouped convolution writes it
        d = layers.Conv2D(6, 3, padding="same", groups=6, use_bias=False, name="grouped_d")(x)
    else:
        d = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="grouped_d")(x)
    d = layers.LayerNormalization(name="layer_norm")(d)
    d = layers.SeparableConv2D(6, 3, padding="same", use_bias=False, name="separable_d")(d)
    x = layers.Add(name="sum")([b, c, d])
    x = layers.Average(name="average")([x, a])
    attention = layers.Conv2D(1, 1, activation="sigmoid", name="where")(x)
    x = x * attention
    x = layers.Activation("hard_silu", name="silu")(x + 1.5)
    x = layers.MaxPooling2D(3, 2, padding="same", name="pool")(x)
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same", name="up")(x)
    y = layers.UpSampling2D(2, name="upsample")(layers.AveragePooling2D(2, name="average_pool")(a))
    y = layers.Conv2D(4, 3, padding="same", activation="elu", name="conv_y")(y)
    x = layers.Concatenate(name="concat")([x, y])
    x = layers.Maximum(name="maximum")(
        [layers.Conv2D(7, 1, name="conv_m")(x), layers.Conv2D(7, 3, padding="same", name="conv_n")(x)]
    )
    return layers.Subtract(name="minus")([x, layers.Conv2D(7, 1, use_bias=False, name="conv_o")(x)])


def small_model(grouped=True):
    image = keras.Input((8, 8, 3), name="image")
    x = everything(image, grouped)
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")(keras.layers.Flatten(name="flatten")(x))
    return keras.Model(image, keras.layers.Dense(3, activation="softmax", name="classifier")(hidden))


def test_every_kind_of_layer(rng):
    model = small_model()
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, gate_dense=True, gate_pooling=True)
    assert {"up", "depth_b", "separable_d", "grouped_d", "pool", "hidden"} <= set(supernet.gated_layers)
    assert not {"stem", "classifier", "flatten"} & set(supernet.gated_layers)
    x = rng.normal(size=(3, 8, 8, 3)).astype("float32")
    for architecture in candidates(supernet, rng):
        check_exact(supernet, architecture, x)


def test_one_dimension_and_three(rng):
    for rank, conv, depthwise in (
        (1, keras.layers.Conv1D, keras.layers.DepthwiseConv1D),
        (3, keras.layers.Conv3D, None),
    ):
        image = keras.Input((8,) * rank + (2,))
        x = conv(4, 3, padding="same", name="stem")(image)
        x = keras.layers.BatchNormalization(name="bn")(conv(4, 3, padding="same", name="a")(x))
        if depthwise:
            x = depthwise(3, name="b")(x)
            x = keras.layers.SeparableConv1D(5, 3, padding="same", name="c")(x)
            x = conv(4, 2, padding="causal", name="d")(x)
        x = getattr(keras.layers, f"Conv{rank}DTranspose")(3, 2, strides=2, name="e")(x)
        x = getattr(keras.layers, f"GlobalMaxPooling{rank}D")()(x)
        model = keras.Model(image, keras.layers.Dense(2, name="classifier")(x))
        random_weights(model, rng)
        supernet = tfnas.gate(model, ell2=1, num_examples=10)
        data = rng.normal(size=(2, *[8] * rank, 2)).astype("float32")
        for architecture in candidates(supernet, rng):
            check_exact(supernet, architecture, data)


# Others are among the random models' merges.
@pytest.mark.parametrize("merge", ("Add", "Multiply"))
def test_a_map_that_has_become_constant_keeps_its_size(merge, rng):
    """Beside one position, beside one channel, and as the other operand."""
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 1, name="stem")(image)
    heads = []
    for i, (swapped, bias) in enumerate(itertools.product((False, True), repeat=2)):
        y = keras.layers.Conv2D(5, 3, padding="same", use_bias=bias, name=f"map{i}")(x)
        one = keras.layers.Conv2D(5, 1, name=f"one{i}")(keras.layers.GlobalMaxPooling2D(keepdims=True)(x))
        plane = keras.layers.Conv2D(1, 1, name=f"plane{i}")(x)
        for other in (one, plane):
            both = getattr(keras.layers, merge)()([y, other][:: -1 if swapped else 1])
            heads.append(keras.layers.Conv2D(2, 3, padding="same")(both))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Concatenate()(heads))))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    supernet.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = rng.normal(size=(3, 6, 6, 3)).astype("float32")
    data = tf.data.Dataset.from_tensors((x, np.zeros(3, np.int64)))
    whole = {name: np.ones(layer.mask.shape[0], bool) for name, layer in supernet.gated_layers.items()}
    maps = [name for name in whole if name.startswith("map")]
    some = {name: rng.random(whole[name].size) < 0.5 for name in whole if name.startswith("conv2d")}
    engine = Engine(supernet, data)
    for dropped in ({name: ~whole[name] for name in maps}, {name: ~whole[name] for name in maps[::2]} | some):
        architecture = Architecture({**whole, **dropped})
        check_exact(supernet, architecture, x)
        supernet.set_architecture(architecture)
        np.testing.assert_allclose(engine.outputs(architecture), supernet(x), rtol=1e-4, atol=1e-4)


def test_constants_are_written_out_before_a_second_input_is_read(rng):
    late, early = keras.Input((6, 6, 1)), keras.Input((6, 6, 3))  # in the graph the deeper one comes first
    x = keras.layers.Conv2D(4, 1, name="stem")(early)
    gone = keras.layers.Conv2D(4, 1, name="gone")(x)
    x = keras.layers.Concatenate()([keras.layers.Conv2D(3, 3, padding="same", name="border")(gone), x])
    x = keras.layers.Conv2D(3, 1, name="last")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Concatenate()([x, late]))
    model = keras.Model([late, early], keras.layers.Dense(2)(x))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    keep = {name: np.full(layer.mask.shape[0], name != "gone") for name, layer in supernet.gated_layers.items()}
    check_exact(supernet, Architecture(keep), [rng.normal(size=(2, 6, 6, n)).astype("f4") for n in (1, 3)])


def test_a_constant_map_of_unknown_size_is_refused():
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 1, name="stem")(image)
    one = keras.layers.Conv2D(4, 1, name="one")(keras.layers.GlobalMaxPooling2D(keepdims=True)(x))
    x = keras.layers.Add()([keras.layers.Conv2D(4, 1, name="map")(x), one])
    supernet = tfnas.gate(keras.Model(image, keras.layers.Conv2D(2, 1)(x)), ell2=1, num_examples=10)
    with pytest.raises(UserError, match="leaves a constant where the spatial size is not known"):
        subnet(supernet, Architecture({"one": np.ones(4, bool), "map": np.zeros(4, bool)}))


def test_several_inputs_and_outputs_nested_models_and_names(tmp_path, rng):
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(4, 3, padding="same", name="conv"),
            keras.layers.BatchNormalization(name="bn"),
        ],
        name="block",
    )
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 1), name="right")
    a = keras.layers.Conv2D(4, 1, name="stem_left")(left)
    b = keras.layers.Conv2D(4, 1, name="stem_right")(right)
    x = inner(keras.layers.Add(name="sum")([a, b]))
    inner.trainable = False
    heads = {
        "map": keras.layers.Conv2D(2, 1, name="map_head")(x),
        "label": keras.layers.Dense(3, name="label_head")(
            keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3, name="last")(x))
        ),
    }
    model = keras.Model({"left": left, "right": right}, heads)
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    assert set(supernet.gated_layers) == {"block_conv", "last"}
    x = {"left": rng.normal(size=(2, 8, 8, 3)).astype("f4"), "right": rng.normal(size=(2, 8, 8, 1)).astype("f4")}
    for head in ("map", "label"):
        np.testing.assert_allclose(supernet(x)[head], model(x)[head], rtol=1e-5, atol=1e-5)
    # A frozen backbone stays frozen, its normalization's statistics too; its gates are trained.
    supernet.compile("sgd", loss={"map": "mse", "label": "mse"}, run_eagerly=True)
    statistics = supernet.network.get_layer("block_bn").moving_mean.numpy()
    supernet.train_on_batch(x, {"map": np.zeros((2, 8, 8, 2), "f4"), "label": np.zeros((2, 3), "f4")})
    np.testing.assert_array_equal(supernet.network.get_layer("block_bn").moving_mean, statistics)
    gated = supernet.gated_layers["block_conv"]
    np.testing.assert_array_equal(gated.layer.kernel, inner.layers[0].kernel)
    assert float(gated.drop_logit[0]) != pytest.approx(np.log(0.1 / 0.9), abs=1e-7)
    for architecture in candidates(supernet, rng):
        cut = subnet(supernet, architecture)
        assert largest_difference(cut, supernet, architecture, x) <= 1e-4
        assert set(cut(x)) == {"map", "label"}
    cut.save(tmp_path / "cut.keras")
    assert set(keras.models.load_model(tmp_path / "cut.keras")(x)) == {"map", "label"}


def test_pretrained_weights_are_carried_over_and_supernets_saved(tmp_path, rng):
    model = small_model()
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, gate_dense=True, gate_pooling=True)
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(supernet(x), model(x), rtol=1e-5, atol=1e-6)
    supernet.compile("sgd", loss="sparse_categorical_crossentropy", run_eagerly=True)
    before = np.concatenate([np.asarray(g.drop_logit) for g in supernet.gated_layers.values()])
    assert np.isfinite(supernet.train_on_batch(x, np.array([0, 2]))).all()
    after = np.concatenate([np.asarray(g.drop_logit) for g in supernet.gated_layers.values()])
    assert np.isfinite(after).all() and (after != before).all()
    supernet.save(tmp_path / "s.keras")
    again = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(again(x), supernet(x))


def test_posterior_counts_multiply_adds_as_the_cost_does():
    """With nothing dropped, the gated layers' multiply-adds are the whole's without those of the ungated three."""
    model = small_model()
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    ungated = {"stem": 3 * 9 * 6 * 64, "hidden": 8 * 448, "classifier": 3 * 8}
    gated = supernet.posterior().total_cost("multiply_adds")
    assert gated + sum(ungated.values()) == cost(supernet.graph).multiply_adds


def test_include_and_exclude():
    model = small_model()

    def names(**options):
        return set(tfnas.gate(model, ell2=1, num_examples=10, **options).gated_layers)

    assert names(include="conv_*") == {"conv_a", "conv_y", "conv_m", "conv_n", "conv_o"}
    assert names(include=["stem", "classifier"]) == {"stem", "classifier"}
    assert names(include="conv_*", exclude=["conv_a", "conv_y"]) == {"conv_m", "conv_n", "conv_o"}
    assert names(exclude="*b") == names() - {"depth_b", "separable_b"}
    with pytest.raises(UserError, match="gate: no layer matches 'cnov'; there are image, rescaling, stem"):
        names(exclude="cnov")
    with pytest.raises(UserError, match="layer 'sum' is Add and cannot be gated: leave it out with exclude='sum'"):
        names(include="s*m")
    with pytest.raises(UserError, match="has no convolution to gate besides its stem and classifier"):
        names(exclude="*")


def test_grouped_convolutions_are_refused_or_left_whole(rng):
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 1, name="stem")(image)
    x = keras.layers.Conv2D(4, 3, groups=2, padding="same", name="grouped")(keras.layers.Conv2D(4, 1, name="a")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 1, name="b")(x))
    model = keras.Model(image, keras.layers.Dense(2)(x))
    with pytest.raises(UserError, match=r"layer 'grouped' is a grouped convolution \(2 groups\) .* exclude='grouped'"):
        tfnas.gate(model, ell2=1, num_examples=10)
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, exclude="grouped")
    x = rng.normal(size=(2, 6, 6, 3)).astype("float32")
    for architecture in candidates(supernet, rng):
        cut = subnet(supernet, architecture)
        assert largest_difference(cut, supernet, architecture, x) <= 1e-4
        assert cut.get_layer("grouped").groups == 2


def test_pooling_gates_drop_the_operation(rng):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 1, name="stem")(image)
    pooled = keras.layers.MaxPooling2D(3, 1, padding="same", name="pool")(x)
    same = keras.layers.Identity(name="identity")(x)
    x = keras.layers.Add(name="add")([pooled, same, keras.layers.Conv2D(4, 3, padding="same", name="conv")(x)])
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, gate_pooling=True)
    gates = {g.name: g for g in supernet.posterior().layers}
    assert set(gates) == {"pool", "identity", "conv"}
    assert gates["pool"].parameters_per_channel == 0
    np.testing.assert_array_equal(supernet.gated_layers["pool"].squared_norms(), np.ones(4))
    keep = {name: np.full(4, name != "pool") for name in gates}
    cut = check_exact(supernet, Architecture(keep), rng.normal(size=(2, 8, 8, 3)).astype("float32"))
    assert "pool" not in {layer.name for layer in cut.layers}


def test_a_subnet_is_gated_and_cut_again(rng):
    model = small_model()
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    for first in candidates(supernet, rng, (0.3, 0.7)):
        cut = subnet(supernet, first)
        again = tfnas.gate(cut, ell2=1, num_examples=10)
        np.testing.assert_allclose(again(x), cut(x), rtol=1e-4, atol=1e-5)
        assert cost(again.graph).parameters == cost(supernet.graph, first).parameters
        second = next(candidates(again, rng))
        assert largest_difference(subnet(again, second), again, second, x) <= 1e-4


def test_an_array_in_the_graph_is_not_cut(rng):
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 1, name="a")(keras.layers.Conv2D(4, 1, name="stem")(image))
    x = keras.layers.Conv2D(4, 1, name="b")(x + np.arange(4, dtype="float32"))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    x = rng.normal(size=(2, 6, 6, 3)).astype("float32")
    for architecture in candidates(supernet, rng):
        assert largest_difference(subnet(supernet, architecture), supernet, architecture, x) <= 1e-4


def profiled_multiply_adds(model):
    """Half the floating point operations that TensorFlow's profiler counts in convolutions and matrix products."""
    inputs = [tf.TensorSpec((1, *i.shape[1:]), i.dtype) for i in model.inputs]
    traced = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0])).get_concrete_function(*inputs)
    graph = convert_variables_to_constants_v2(traced).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder(tf.compat.v1.profiler.ProfileOptionBuilder.float_operation())
    profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options.with_empty_output().build())
    counted, products = 0, ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul", "Conv2DBackpropInput")
    while profile.children:
        # Each child stands for one type of operation and holds the total of those below it.
        (profile,) = profile.children
        below = sum(child.total_float_ops for child in profile.children)
        if profile.name in products:
            counted += profile.total_float_ops - below
    return counted / 2


# Without the grouped convolution, which TensorFlow hides from its profiler in a compiled function.
def test_multiply_adds_are_the_profilers(rng):
    model = small_model(grouped=False)
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    assert profiled_multiply_adds(model) == cost(Graph(model)).multiply_adds
    for architecture in candidates(supernet, rng, (0.3, 0.7)):
        cut = subnet(supernet, architecture)
        assert profiled_multiply_adds(cut) == cost(supernet.graph, architecture).multiply_adds


@pytest.mark.parametrize("size", [8, None])
def test_sequential_models_and_images_of_any_size(size, rng):
    model = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.Conv2D(6, 3, name="stem"),
            keras.layers.Conv2D(8, 3, padding="same", name="a"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(8, 1, activation="relu", name="b"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="classifier"),
        ]
    )
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    assert set(supernet.gated_layers) == {"a", "b"}
    architecture = Architecture({"a": rng.random(6) < 0.5, "b": rng.random(8) < 0.5})
    cut = subnet(supernet, architecture)
    assert (
        largest_difference(cut, supernet, architecture, rng.normal(size=(2, 9 if size is None else size, 8, 3))) <= 1e-4
    )
    if size is None:
        with pytest.raises(
            UserError,
            match="cost: layer 'stem': a fixed spatial size expected. Received: .None, None.; give the model's",
        ):
            cost(supernet.graph, architecture)
        assert supernet.posterior().layers[0].multiply_adds_per_channel is None
