import inspect
import json
import math
import re

import keras
import numpy as np
import pytest
from conftest import ROOT, random_weights

from tfnas.gating.placement import gate
from tfnas.graph.channels import Graph
from tfnas.graph.costs import cost
from tfnas.supernets import densenet121, densenet121_3d, enas, multi_branch_resnet, resnet50, resnet_cifar, vgg19

BUILDERS = [multi_branch_resnet, enas, resnet50, densenet121, densenet121_3d, resnet_cifar, vgg19]
SMALL = {
    multi_branch_resnet: {"width": 4, "num_blocks": 1, "input_shape": (12, 8, 3)},
    enas: {"width": 4, "num_blocks": 1, "input_shape": (12, 8, 3)},
    resnet50: {"width": 4, "num_blocks": 1, "input_shape": (40, 33, 3)},
    densenet121: {"width": 3, "num_blocks": 2, "input_shape": (40, 33, 3)},
    densenet121_3d: {"width": 3, "num_blocks": 2, "input_shape": (8, 40, 33, 3)},
    resnet_cifar: {"width": 4, "num_blocks": 1, "input_shape": (12, 9, 3)},
    vgg19: {"width": 2, "input_shape": (20, 16, 3)},
}


def parameters(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def convolutions(model):
    """Those besides the stem, by name."""
    kinds = (keras.layers.Conv2D, keras.layers.Conv3D)
    return {layer.name: layer for layer in model.layers if isinstance(layer, kinds) and layer.name != "stem_conv"}


@pytest.mark.parametrize("width, expected", [(96, 26_192_922), (160, 72_695_194)])
def test_published_sizes(width, expected):
    """SupNet-M's 26.2 M and SupNet-MI's 72.7 M."""
    model = multi_branch_resnet(width)
    assert parameters(model) == expected
    assert cost(Graph(model)).parameters == expected
    assert model.output_shape == (None, 10)


def enas_parameters(w, num_blocks=5):
    """Summed by hand from the cells' codes; 10 classes, 3 channels, three stages of `num_blocks` normal cells."""

    def conv(inputs, outputs):  # a Conv1x1, or both halves of a factorized reduction, and BN
        return inputs * outputs + 2 * outputs

    def separables(num3, num5, c):  # each applied twice: depthwise, pointwise, BN
        return num3 * 2 * (9 * c + c * c + 2 * c) + num5 * 2 * (25 * c + c * c + 2 * c)

    total = 3 * 9 * 3 * w + 2 * 3 * w
    far, near = 3 * w, 3 * w
    for stage in range(3):
        c = w * 2**stage
        if stage:  # 'identity' at stride 2 is one more factorized reduction; one of the five nodes is read by another
            total += conv(far, c) + conv(near, c) + conv(c, c) + separables(3, 3, c) + conv(c, c)
            far, near = near, 4 * c
        for _ in range(num_blocks):
            total += conv(far, c) + conv(near, c) + conv(c, c) + separables(2, 4, c)
            far, near = near, 5 * c
    return total + near * 10 + 10


def test_enas_sizes():
    """3.89 M and 14.8 M without the auxiliary head, by the sum; the sum is that of models with fewer cells."""
    assert (enas_parameters(36), enas_parameters(72)) == (3_894_382, 14_784_562)
    defaults = inspect.signature(enas).parameters
    assert (defaults["width"].default, defaults["num_blocks"].default) == (36, 5)
    model = enas(num_blocks=1)
    assert parameters(model) == enas_parameters(36, 1)
    assert model.output_shape == (None, 10)


def test_enas_cells():
    model = enas(width=4, num_blocks=2, input_shape=(12, 8, 3))
    assert parameters(model) == enas_parameters(4, 2)
    cells = [layer for layer in model.layers if re.fullmatch(r"cell\d+_concat", layer.name)]
    assert [layer.output.shape[1:] for layer in cells] == [
        *[(12, 8, 20)] * 2,
        (6, 4, 32),
        *[(6, 4, 40)] * 2,
        (3, 2, 64),
        *[(3, 2, 80)] * 2,
    ]

    def in_cell(number, kind):
        names = [layer.name for layer in model.layers if type(layer) is kind]
        return sorted(n.split("_", 1)[1] for n in names if n.startswith(f"cell{number}_node"))

    assert in_cell(2, keras.layers.Identity) == ["node2_x_identity", "node3_x_identity"]
    assert in_cell(2, keras.layers.AveragePooling2D) == ["node1_x_avgpool", "node5_x_avgpool"]
    assert in_cell(3, keras.layers.MaxPooling2D) == ["node2_x_maxpool", "node5_x_maxpool"]
    assert in_cell(3, keras.layers.Identity) == []
    assert len(in_cell(3, keras.layers.SeparableConv2D)) == 12
    assert model.get_layer("cell3_node3_y_sepconv1").strides == (1, 1)  # reads a node
    assert model.get_layer("cell3_node3_x_sepconv1").strides == (2, 2)  # reads a cell
    assert model.get_layer("cell3_node3_x_sepconv2").strides == (1, 1)


def test_enas_drops_paths_of_single_examples_in_training_only():
    model = enas(width=4, num_blocks=1, num_classes=5, input_shape=(8, 8, 1), drop_path=0.4)
    plain = enas(width=4, num_blocks=1, num_classes=5, input_shape=(8, 8, 1))
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    image = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(model(image), plain(image))
    paths = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    # Ten branches a cell, of which a normal cell has two identities, and a reduction one, a factorized reduction.
    counts = [sum(layer.name.startswith(f"cell{i}_") for layer in paths) for i in range(1, 6)]
    assert counts == [8, 9, 8, 9, 8]
    first, last = (model.get_layer(f"cell{i}_node1_x_droppath") for i in (1, 5))
    np.testing.assert_allclose([first.rate, last.rate], [0.4 / 5, 0.4])
    dropped = np.asarray(last(np.ones((1000, 2, 2, 3)), training=True)).reshape(1000, -1)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.6], rtol=1e-6)
    assert np.ptp(dropped, 1).max() == 0
    assert abs((dropped[:, 0] == 0).mean() - 0.4) < 4 * np.sqrt(0.24 / 1000)


def test_enas_factorized_reduction_sees_every_other_pixel_and_those_between():
    """Over an image that is its own pixel numbers, with kernels of ones."""
    model = enas(width=1, num_blocks=1, input_shape=(4, 4, 1))
    halves = [model.get_layer(f"cell3_input0_pool_{half}") for half in "ab"]
    source = halves[0].input
    shifted = keras.Model(source, [half.output for half in halves])
    numbers = np.arange(16.0).reshape(1, 4, 4, 1).repeat(source.shape[-1], -1)
    a, b = shifted(numbers)
    np.testing.assert_array_equal(a[0, :, :, 0], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(b[0, :, :, 0], [[5, 7], [13, 15]])


def test_resnet50_size():
    """torchvision's resnet50 has 25,557,032; in a block, 11 w^2 weights stand where it has 9 w^2."""
    model = resnet50()
    squares = 3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2
    assert parameters(model) == cost(Graph(model)).parameters == 28_071_976 == 25_557_032 + 2 * squares
    assert model.get_layer("stage4_block3_relu").output.shape == (None, 7, 7, 2048)
    assert len(convolutions(model)) == 16 * (1 + 4 + 1) + 4


def test_resnet50_branches():
    model = resnet50(width=8, num_blocks=1, num_classes=5, input_shape=(65, 64, 3))
    assert model.output_shape == (None, 5)
    fields = []
    for branch in ("1x1", "3x3", "3x3_dilated", "5x5_dilated"):
        layer = model.get_layer(f"stage2_block1_conv2_{branch}")
        assert layer.output.shape == (None, 9, 8, 4)
        fields.append(1 + (layer.kernel_size[0] - 1) * layer.dilation_rate[0])
    assert fields == [1, 3, 5, 9]
    assert Graph(model).group_sizes("stage2_block1_conv3") == (4, 4, 4, 4)


def test_testbeds_have_the_published_sizes():
    """853 K and 125.5 M, of every comparison on ResNet-56; VGG-19's by its table of layers, each a 3x3."""
    model = resnet_cifar()
    found = cost(Graph(model))
    assert (found.parameters, found.multiply_adds) == (853_018, 125_485_696)
    assert parameters(model) == 853_018 and len(convolutions(model)) == 54
    channels, sizes = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8, [32] * 2 + [16] * 2 + [8] * 4 + [4] * 4 + [2] * 4
    weights = [9 * i * o for i, o in zip([3, *channels], channels, strict=False)]
    model = vgg19()
    found = cost(Graph(model))
    assert found.parameters == parameters(model) == sum(weights) + 2 * sum(channels) + 513 * 100 == 20_081_188
    by_layer = [weight * size**2 for weight, size in zip(weights, sizes, strict=True)]
    assert found.multiply_adds == sum(by_layer) + 512 * 100 == 398_182_400


def densenet_layers(counts=(6, 12, 24, 16)):
    return [f"denseblock{b}_denselayer{i}" for b, count in enumerate(counts, 1) for i in range(1, count + 1)]


@pytest.fixture(scope="module")
def published_densenet():
    return densenet121()


def test_densenet121_size(published_densenet):
    """torchvision's densenet121 has 7,978,856 trainable parameters."""
    model = published_densenet
    assert parameters(model) == cost(Graph(model)).parameters == 7_978_856
    gated = convolutions(model)
    names = {f"{layer}_conv{i}" for layer in densenet_layers() for i in (1, 2)}
    assert set(gated) == names | {f"transition{i}_conv" for i in (1, 2, 3)} and len(gated) == 119
    assert sum(math.prod(layer.kernel.shape) for layer in gated.values()) == 6_860_800
    assert model.get_layer("denseblock4_denselayer16_concat").output.shape == (None, 7, 7, 1024)
    graph = Graph(model)
    assert graph.group_sizes("denseblock1_denselayer3_conv1") == (64, 32, 32)
    assert graph.group_sizes("transition2_conv") == (128, *[32] * 12)
    assert graph.group_sizes("denseblock3_denselayer1_conv1") == (256,)
    assert graph.group_sizes("denseblock3_denselayer1_conv2") == (128,)


def test_densenet121_maps_to_the_published_posterior(published_densenet):
    """Of the gated weights, the paper's table 8 says that 6.6 M are kept."""
    file = ROOT.parent / "shared" / "reference" / "pgnas_densenet121_imagenet_posterior.json"
    if not file.exists():
        pytest.skip(f"the published posterior is not in {file}")
    published = json.loads(file.read_text())["drop_probability"]
    model = published_densenet
    gated, graph = convolutions(model), Graph(model)
    assert {name.replace(".", "_") for name in published} == set(gated)
    kept = 0.0
    for name, drop in published.items():
        layer = gated[name.replace(".", "_")]
        sizes = graph.group_sizes(layer.name)
        drop = np.ravel(drop)
        assert len(drop) == len(sizes)
        kept += np.dot(1 - drop, sizes) * math.prod(layer.kernel.shape) / sum(sizes)
    assert kept / 1e6 == pytest.approx(6.6, abs=0.05)


def test_densenet121_3d_size():
    """From torchvision's number: 58 layers with 3 x (4 x 32)^2 weights more, and 826 classes fewer."""
    model = densenet121_3d()
    assert parameters(model) == cost(Graph(model)).parameters == 9_983_022
    assert parameters(model) == 7_978_856 + 58 * 3 * 128**2 - 826 * (1024 + 1)
    assert model.get_layer("denseblock4_denselayer16_concat").output.shape == (None, 2, 3, 3, 1024)
    assert set(convolutions(model)) >= {f"{layer}_conv2_time" for layer in densenet_layers()}
    assert len(convolutions(model)) == 119 + 58


def test_densenet121_3d_of_a_still_is_densenet121(rng):
    flat = densenet121(width=3, num_blocks=2, num_classes=5, input_shape=(40, 33, 3))
    video = densenet121_3d(width=3, num_blocks=2, num_classes=5, input_shape=(9, 40, 33, 3))
    random_weights(flat, rng)
    for layer in video.layers:
        if layer.name.endswith("_time"):
            taps = np.zeros(layer.kernel.shape)
            taps[1, 0, 0] = np.eye(12)
            layer.kernel.assign(taps)
        else:
            weights = flat.get_layer(layer.name).get_weights()
            layer.set_weights([w.reshape(v.shape) for w, v in zip(weights, layer.weights, strict=True)])
    image = rng.normal(size=(2, 40, 33, 3)).astype("float32")
    still = np.repeat(image[:, None], 9, axis=1)
    np.testing.assert_allclose(video(still), flat(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_any_size_trains_and_has_names_of_its_own(build, rng):
    model = build(num_classes=5, **SMALL[build])
    assert model.name == build.__name__ and model.input.name == "image" and model.output_shape == (None, 5)
    # Keras numbers what was not named: a second model built in the same process would have other names.
    again = build(num_classes=5, **SMALL[build])
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    images = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
    # One step: to trace it first would take longer.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss=loss, run_eagerly=True)
    before = [v.numpy() for v in model.trainable_variables]
    assert np.isfinite(model.train_on_batch(images, np.array([0, 1])))
    changed = [np.any(v.numpy() != b) for v, b in zip(model.trainable_variables, before, strict=True)]
    assert np.mean(changed) > 0.9
    for layer in model.layers:  # a bias before a normalization does nothing
        assert layer.name == "classifier" or not getattr(layer, "use_bias", False), layer.name


@pytest.mark.parametrize("build", [multi_branch_resnet, resnet50, densenet121, densenet121_3d])
def test_every_convolution_but_the_stem_can_be_gated(build):
    model = build(num_classes=5, **SMALL[build])
    assert set(gate(model, ell2=1, num_examples=10).gated_layers) == set(convolutions(model))


def test_any_smaller_size():
    model = multi_branch_resnet(width=4, num_blocks=2, num_classes=5, input_shape=(12, 8, 3), stem_width=2)
    assert model.output_shape == (None, 5)
    assert model.get_layer("stage3_block2_add").output.shape == (None, 3, 2, 16)


@pytest.mark.parametrize(
    "build, arguments",
    [
        (multi_branch_resnet, {"width": 5}),
        (multi_branch_resnet, {"input_shape": (30, 30, 3)}),
        (multi_branch_resnet, {"input_shape": (8, 8)}),
        (enas, {"width": 0}),
        (enas, {"num_blocks": 0}),
        (enas, {"drop_path": 1.0}),
        (enas, {"input_shape": (32, 30, 3)}),
        (enas, {"input_shape": (8, 8)}),
        (resnet50, {"width": 6}),
        (resnet50, {"width": 0}),
        (resnet50, {"num_blocks": -1}),
        (resnet50, {"input_shape": (None, 224, 3)}),
        (densenet121, {"width": 0}),
        (densenet121, {"num_blocks": -1}),
        (densenet121, {"input_shape": (28, 28, 1)}),
        (densenet121, {"input_shape": (16, 112, 112, 3)}),
        (densenet121_3d, {"width": -1}),
        (resnet_cifar, {"width": 3}),
        (resnet_cifar, {"num_blocks": 0}),
        (resnet_cifar, {"input_shape": (8, 8)}),
        (vgg19, {"width": 0}),
        (vgg19, {"input_shape": (15, 32, 3)}),
        (densenet121_3d, {"input_shape": (224, 224, 3)}),
        (densenet121_3d, {"input_shape": (4, 112, 112, 3)}),
    ],
)
def test_impossible_sizes_are_refused(build, arguments):
    with pytest.raises(ValueError, match=f"^{build.__name__}: .* Received: "):
        build(**arguments)
