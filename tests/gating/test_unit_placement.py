"""Where gates stand: exactly one on every path, checked by walking the gated Keras model, and as few as possible."""

import keras
import numpy as np
import pytest
from random_models import Builder

from tfnas.common.errors import UserError
from tfnas.gating.placement import _copied
from tfnas.gating.unit_gates import GatedNormalization, KeptNormalization, UnitDraw, UnitGate
from tfnas.gating.unit_placement import GatedNetwork
from tfnas.graph.channels import Graph
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph
from tfnas.layers.merging import MERGES
from tfnas.supernets import densenet121, multi_branch_resnet

L = keras.layers
KERNELS = ("Conv1D", "Conv2D", "Conv3D", "Dense", "SeparableConv1D", "SeparableConv2D")
KERNELS += tuple(f"Conv{rank}DTranspose" for rank in (1, 2, 3))
# Of the others, those that are no zero for zero, whatever their settings.
NONZERO = ("Rescaling", "LayerNormalization", "UnitNormalization", "GaussianNoise", "Softmax")


def gated(model, noise="batch", streams=False):
    graph = UnitGraph(_copied(Graph(model), lambda node, layer: layer), streams=streams)
    draw = UnitDraw([group.size for group in graph.groups], noise, name="draw")
    return graph, GatedNetwork(graph, draw).network


def counts(graph, network):
    """How often each channel of each tensor of the gated model is multiplied by its gate; fails where it may not be.

    From Keras's records of the calls and the layers' own settings alone.
    """
    found = {}
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for call in network._nodes_by_depth[depth]:
            layer, output = call.operation, call.output_tensors[0]
            if isinstance(layer, UnitDraw):
                continue
            inputs = [found[id(t)] for t in call.input_tensors if id(t) in found]
            found[id(output)] = _counted(graph, layer, call, inputs, output.shape[-1])
    for tensor in network.outputs:
        assert not found[id(tensor)].any()


def _counted(graph, layer, call, inputs, channels):
    kind, nothing = type(layer).__name__, np.zeros(channels, int)
    if isinstance(layer, L.InputLayer):
        return nothing
    first = inputs[0]
    if isinstance(layer, UnitGate):
        return first + (np.array(layer.units) >= 0) if layer.units else first
    if isinstance(layer, GatedNormalization):
        assert not first.any(), layer.name
        return (np.array(layer.units) >= 0).astype(int)
    if isinstance(layer, KeptNormalization):
        assert not first.any(), layer.name
        return nothing
    plain_depthwise = kind.startswith("DepthwiseConv") or (getattr(layer, "groups", 1) == first.size > 1)
    if kind in KERNELS and not plain_depthwise:
        node = graph.nodes[graph.index[layer.name]]
        units = graph.of[node.inputs[0]]
        np.testing.assert_array_equal(first, units != PINNED, layer.name)
        return nothing
    if kind in MERGES and len(inputs) > 1:
        wide = [np.broadcast_to(x, channels) for x in inputs]
        if kind == "Multiply":
            return np.sum(wide, axis=0)
        for x in wide:
            assert not x.any(), layer.name
        return nothing
    if kind == "Concatenate":
        return np.concatenate(inputs)
    if kind == "Flatten":
        return np.tile(first, channels // first.size)
    result = np.repeat(first, channels // first.size) if plain_depthwise else first
    if result.shape != (channels,):
        assert not first.any(), layer.name
        return nothing
    if result.any():
        assert not isinstance(layer, L.BatchNormalization) and kind not in NONZERO, layer.name
        if kind not in ("Flatten", "Reshape"):
            zeros = np.zeros((1, *(1 if s is None else s for s in call.input_tensors[0].shape[1:])), "float32")
            arguments, keywords = call.arguments.convert(lambda x: zeros if isinstance(x, keras.KerasTensor) else x)
            assert not np.any(np.asarray(layer(*arguments, **keywords))), layer.name
    return result


@pytest.mark.parametrize("seed", range(24))
def test_random_models_have_one_gate_on_every_path(seed):
    model = Builder(seed).model()
    for streams in (False, True):
        for noise in ("batch", "example"):
            try:
                graph, network = gated(model, noise, streams)
            except UserError as error:
                assert "no channels that may vanish" in str(error)
                continue
            counts(graph, network)


def layers_of(network, kind):
    return [layer.name for layer in network.layers if isinstance(layer, kind)]


def of(build, noise="batch", streams=False, shape=(8, 8, 3)):
    image = keras.Input(shape, name="image")
    graph, network = gated(keras.Model(image, build(image)), noise, streams)
    counts(graph, network)
    return [
        layer.name.removesuffix("_gated").removesuffix("_gate")
        for layer in network.layers
        if isinstance(layer, UnitGate | GatedNormalization) and not layer.name.endswith("_alive")
    ]


def head(x):
    return L.Dense(2, name="classifier")(L.GlobalAveragePooling2D(name="mean")(x))


def test_a_gate_goes_up_into_a_normalization_and_with_noise_for_each_example_to_the_smallest_map():
    def build(x):
        x = L.ReLU(name="relu")(L.BatchNormalization(name="bn")(L.Conv2D(4, 3, name="a")(x)))
        return head(L.Conv2D(5, 1, name="b")(L.MaxPooling2D(2, name="pool")(x)))

    assert of(build) == ["bn", "mean"]
    assert of(build, "example") == ["pool", "mean"]


def test_a_gate_stops_below_a_bias_and_what_is_not_zero_at_zero():
    def build(x):
        x = L.Activation("softplus", name="plus")(L.Conv2D(4, 3, name="a")(x))
        x = L.Activation("tanh", name="tanh")(L.Conv2D(5, 1, name="b")(x))
        x = L.DepthwiseConv2D(3, use_bias=True, name="bias")(x)
        x = L.DepthwiseConv2D(3, use_bias=False, padding="same", name="plain")(L.Conv2D(3, 1, name="c")(x))
        return head(L.Conv2D(2, 1, name="d")(x))

    assert of(build) == ["plus", "bias", "c", "mean"]


def test_of_a_product_the_smallest_operand_is_gated():
    def build(x):
        x = L.Conv2D(6, 3, name="wide")(x)
        s = L.GlobalAveragePooling2D(keepdims=True, name="squeezed")(x)
        s = L.Dense(6, activation="sigmoid", name="excite")(L.Dense(2, activation="relu", name="squeeze")(s))
        return head(L.Conv2D(4, 1, name="narrow")(L.Multiply(name="scaled")([x, s])))

    assert sorted(of(build)) == ["excite", "mean", "squeeze", "squeezed"]


def test_readers_share_a_gate_and_what_a_sum_adds_has_none():
    def build(x):
        x = L.Conv2D(4, 1, name="stem")(x)
        y = L.ReLU(name="relu")(x)
        a, b = L.Conv2D(4, 1, name="a")(y), L.Conv2D(4, 1, name="b")(y)
        x = L.Add(name="sum")([x, L.BatchNormalization(name="a_bn")(a), b])
        return head(L.BatchNormalization(name="bn")(x))

    assert of(build, streams=True) == ["stem", "bn"]


def test_the_gates_of_known_networks():
    graph, network = gated(multi_branch_resnet(8, 2, 10, (16, 16, 3)))
    # Two branches a block, one inner group each, in the scale of the normalization between its convolutions.
    assert len(layers_of(network, GatedNormalization)) == len(graph.groups)
    assert not [n for n in layers_of(network, UnitGate) if not n.endswith("_alive")]
    graph, network = gated(densenet121(width=4, num_blocks=2, num_classes=10, input_shape=(32, 32, 3)))
    counts(graph, network)
    assert not layers_of(network, UnitGate)


def test_no_gate_stands_above_a_root():
    """Its derivative at 0 is infinite: gates of 0 above it would make gradients that are no numbers."""
    image = keras.Input((4, 4, 1))
    x = keras.ops.sqrt(L.ReLU()(L.Conv2D(3, 1, name="writer")(image)))
    model = keras.Model(image, L.Conv2D(2, 1, name="reader")(x))
    _, network = gated(model)
    reader = network.get_layer("reader")._inbound_nodes[-1]  # its call in the gated network
    assert isinstance(reader.input_tensors[0]._keras_history.operation, UnitGate)
