import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import random_weights

import tfnas
from tfnas import supernets
from tfnas.common.errors import UserError
from tfnas.graph.statistics import recompute_statistics
from tfnas.layers import convolution
from tfnas.ranking import engine as engines
from tfnas.ranking.engine import Engine
from tfnas.search_space.architecture import Architecture


def gated(model, rng, **options):
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, **{"initial_drop": 0.3, **options})
    supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return supernet


def examples(rng, number, shape, classes=10):
    images, labels = rng.normal(size=(number, *shape)).astype("float32"), rng.integers(0, classes, number)
    return images, labels, tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)


def with_dropped_operations(supernet, rng, number):
    """Random masks in which half of the operations keep nothing at all."""
    for _ in range(number):
        yield Architecture(
            {
                name: (rng.random(layer.mask.shape[0]) < rng.uniform(0.2, 1)) & (rng.random() < 0.5)
                for name, layer in supernet.gated_layers.items()
            }
        )


def test_count_of_correct_examples_is_plain_evaluations_for_50_candidates(rng):
    supernet = gated(supernets.multi_branch_resnet(4, 1, 10, (8, 8, 3), stem_width=4), rng)
    images, labels, batches = examples(rng, 300, (8, 8, 3))
    engine = Engine(supernet, batches, batch_size=128)
    candidates = [*supernet.posterior().sample(25, seed=0), *with_dropped_operations(supernet, rng, 25)]
    losses = {i: [] for i in range(50)}
    correct = {i: [] for i in range(50)}
    for e in engine.evaluate(candidates):
        losses[e.number].append(e.figures["loss"])
        correct[e.number].append(e.figures["accuracy"])
    for i, candidate in enumerate(candidates):
        supernet.set_architecture(candidate)
        loss, accuracy = supernet.evaluate(images, labels, batch_size=100, verbose=0)
        assert np.concatenate(correct[i]).sum() == round(accuracy * 300)
        assert np.concatenate(losses[i]).mean() == pytest.approx(loss, rel=1e-4)


def test_equal_candidates_share_their_recalibrated_statistics(rng):
    supernet = gated(tiny.build((8, 8, 3), 10), rng)
    images, _, batches = examples(rng, 20, (8, 8, 3))
    engine = Engine(supernet, batches, recalibration=tfnas.Recalibration(supernet, images))
    one, other = supernet.posterior().sample(2, seed=0)
    outputs = {e.number: e.outputs for e in engine.evaluate([one, other, one])}
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0] - outputs[1]).max() > 0


def squeeze_excite(shape, classes):
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = keras.layers.SeparableConv2D(12, 3, padding="same", depth_multiplier=2)(x)
    y = keras.layers.BatchNormalization()(y)
    s = keras.layers.GlobalAveragePooling2D(keepdims=True)(y)
    s = keras.layers.Conv2D(4, 1, activation="silu")(s)
    s = keras.layers.Conv2D(12, 1, activation="sigmoid")(s)
    y = keras.layers.Multiply()([y, s])
    y = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(y)
    y = keras.layers.Conv2DTranspose(6, 3, strides=2, padding="same")(y)
    y = keras.layers.ZeroPadding2D(1)(y)
    y = keras.layers.LayerNormalization()(y)
    y = keras.layers.Conv2D(5, 3, strides=2)(y)
    y = keras.layers.Flatten()(keras.layers.MaxPooling2D(2)(y))
    y = keras.layers.Dense(16, activation="relu")(y)
    return keras.Model(inputs, keras.layers.Dense(classes)(y))


def text(shape, classes):
    x = inputs = keras.Input(shape)
    for i in range(3):
        x = keras.layers.Conv1D(8, 3, padding="causal", dilation_rate=2**i)(x)
        x = keras.layers.LeakyReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.GlobalMaxPooling1D()(x)))


def merges(shape, classes):
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(6, 3, padding="same")(inputs)
    a, b, c = (keras.layers.Conv2D(6, 3, padding="same")(x) for _ in range(3))
    x = keras.layers.Average()([a, b]) - keras.layers.Maximum()([b, c])
    x = keras.layers.Concatenate()([x, keras.layers.Identity()(a), keras.layers.AveragePooling2D(3, 1, "same")(c)])
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)))


BUILDERS = {
    "squeeze and excite, depthwise, transposed, dense": (squeeze_excite, (8, 8, 3)),
    "one axis, causal": (text, (20, 4)),
    "merges": (merges, (8, 8, 3)),
    "resnet50": (lambda s, c: supernets.resnet50(8, 1, num_classes=c, input_shape=s), (32, 32, 3)),
    "densenet121": (lambda s, c: supernets.densenet121(4, 1, num_classes=c, input_shape=s), (32, 32, 3)),
    "densenet121_3d": (lambda s, c: supernets.densenet121_3d(4, 1, num_classes=c, input_shape=s), (8, 32, 32, 3)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_outputs_are_the_masked_supernets(name, rng):
    build, shape = BUILDERS[name]
    supernet = gated(build(shape, 5), rng, gate_dense=True, gate_pooling=True)
    images, labels, batches = examples(rng, 12, shape, 5)
    engine = Engine(supernet, batches, batch_size=8)
    candidates = [*supernet.posterior().sample(1, seed=0), *with_dropped_operations(supernet, rng, 2)]
    for candidate in candidates:
        supernet.set_architecture(candidate)
        expected = np.asarray(supernet(images, training=False))
        np.testing.assert_allclose(engine.outputs(candidate), expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


def test_outputs_of_several_inputs_are_the_masked_supernets(rng):
    """The second input joins late, the first output leaves early, and a layer has the name of an output."""
    early, late = keras.Input((8, 8, 2), name="early"), keras.Input((4, 4, 3), name="late")
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(early)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, strides=2, padding="same")(x))
    side = keras.layers.Dense(2, name="output")(keras.layers.GlobalAveragePooling2D()(x))
    x = keras.layers.ReLU()(keras.layers.Conv2D(5, 3, padding="same")(x))
    x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 1)(late)])
    x = keras.layers.Conv2D(7, 3, padding="same", activation="relu", name="joined")(x)
    mean = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model({"late": late, "early": early}, [(side, x), keras.layers.Dense(3)(mean)])
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, initial_drop=0.3)
    supernet.compile(loss=[("mse", "mse"), "mse"])
    given = {"early": rng.normal(size=(11, 8, 8, 2)), "late": rng.normal(size=(11, 4, 4, 3))}
    labels = [(np.zeros((11, 2)), np.zeros((11, 4, 4, 7))), np.zeros((11, 3))]
    engine = Engine(supernet, (given, labels), batch_size=8)
    candidates = [*supernet.posterior().sample(3, seed=0), *with_dropped_operations(supernet, rng, 12)]
    for candidate in candidates:
        supernet.set_architecture(candidate)
        expected = supernet(given, training=False)
        outputs = engine.outputs(candidate)
        keras.tree.assert_same_structure(outputs, keras.tree.map_structure(np.asarray, expected))
        for mine, its in zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-3, atol=2e-4 * np.abs(its).max())
        losses = np.concatenate([e.figures["loss"] for e in engine.evaluate([candidate])])
        means = sum(np.square(its).reshape(11, -1).mean(1) for its in keras.tree.flatten(expected))
        np.testing.assert_allclose(losses, means, rtol=1e-3)


def test_common_beginnings_are_computed_once_and_results_do_not_depend_on_company(rng, monkeypatch):
    monkeypatch.setattr(engines, "_THREADS", 1)  # another has other candidates
    supernet = gated(supernets.multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4), rng)
    _, _, batches = examples(rng, 40, (8, 8, 1), 3)
    engine = Engine(supernet, batches, batch_size=40)
    one = supernet.posterior().sample(1, seed=0)[0]
    last = list(one)[-1]
    other = Architecture({**one, last: ~one[last]})  # differs in the last layer only
    together = {e.number: e for e in engine.evaluate([one, other, one])}
    calls = []
    compiled = list(engine._programs)
    monkeypatch.setattr(
        engine, "_programs", [lambda *a, j=j, p=p: (calls.append(j), p(*a))[1] for j, p in enumerate(compiled)]
    )
    assert len(list(engine.evaluate([one, other, one]))) == 3
    num_segments = len(compiled)
    assert num_segments == 4 and calls == [*range(num_segments), num_segments - 1]
    for i, candidate in enumerate((one, other, one)):
        np.testing.assert_array_equal(together[i].figures["loss"], next(engine.evaluate([candidate])).figures["loss"])


def test_beginnings_of_unit_masks_are_computed_once_too(rng, monkeypatch):
    """With batch normalization recalibrated, each is the cut network with the statistics that Keras's training has."""
    monkeypatch.setattr(engines, "_THREADS", 1)
    traced = []
    applied = convolution._Computation._applied
    monkeypatch.setattr(convolution._Computation, "_applied", lambda *args: (traced.append(args[0]), applied(*args))[1])
    supernet = tfnas.gate(
        supernets.multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4), parameters=0.9, steps=5, num_examples=40
    )
    random_weights(supernet.network, rng)
    supernet.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels, batches = examples(rng, 40, (8, 8, 1), 3)
    engine = Engine(supernet, batches, batch_size=40, recalibration=tfnas.Recalibration(supernet, images))
    kernels = [node for node in supernet.graph.nodes if node.mixes]
    assert len(traced) == 2 * len(kernels)  # no other branch, as nothing is constant; recalibrated and evaluated
    groups = supernet.graph.groups
    one = supernet.graph.closed({g.name: np.arange(g.size) % 2 == 0 for g in groups})
    last = list(one)[-1]
    other = Architecture({**one, last: ~one[last]})
    empty = supernet.graph.closed({g.name: np.full(g.size, not g.may_empty) for g in groups})
    assert not all(mask.any() for mask in empty.values())
    calls = []
    compiled = list(engine._programs)
    monkeypatch.setattr(
        engine, "_programs", [lambda *a, j=j, p=p: (calls.append(j), p(*a))[1] for j, p in enumerate(compiled)]
    )
    found = {e.number: e for e in engine.evaluate([one, other, one])}
    num_segments = len(compiled)
    assert num_segments > 2 and len(calls) < 2 * num_segments and calls.count(0) == 1
    found[3] = next(engine.evaluate([empty]))
    for i, candidate in enumerate((one, other, one, empty)):
        cut = tfnas.subnet(supernet, candidate)
        recompute_statistics(cut, images)
        cut.compile(loss=supernet.loss)
        assert found[i].figures["loss"].mean() == pytest.approx(cut.evaluate(images, labels, verbose=0), rel=1e-4)


def test_nothing_is_traced_after_the_engine_is_made(rng, monkeypatch):
    supernet = gated(tiny.build((8, 8, 1), 3), rng)
    engine = Engine(supernet, examples(rng, 40, (8, 8, 1), 3)[2], batch_size=16)
    traced = []
    applied = convolution._Computation._applied
    monkeypatch.setattr(convolution._Computation, "_applied", lambda *args: (traced.append(args[0]), applied(*args))[1])
    list(engine.evaluate([*supernet.posterior().sample(5, seed=0), *with_dropped_operations(supernet, rng, 5)]))
    assert traced == []
    Engine(supernet, examples(rng, 40, (8, 8, 1), 3)[2])
    assert traced


def test_parts_of_the_examples_in_a_seeded_order(rng):
    supernet = gated(tiny.build((8, 8, 1), 3), rng)
    images, labels, batches = examples(rng, 50, (8, 8, 1), 3)
    engine = Engine(supernet, batches, batch_size=7, seed=3)
    candidate = supernet.posterior().sample(1, seed=0)[0]
    order = np.random.default_rng(3).permutation(50)
    supernet.set_architecture(candidate)
    expected = np.asarray(supernet(images[order[10:31]], training=False))
    np.testing.assert_allclose(engine.outputs(candidate, 10, 31), expected, rtol=1e-3, atol=1e-4)
    parts = list(engine.evaluate([candidate], 10, 31))
    assert [e.start for e in parts] == [10, 17, 24] and sum(len(e.figures["loss"]) for e in parts) == 21
    accuracy = np.concatenate([e.figures["accuracy"] for e in parts])
    np.testing.assert_array_equal(accuracy, expected.argmax(1) == labels[order[10:31]])


def test_what_cannot_be_evaluated_is_refused(rng):
    supernet = gated(tiny.build((8, 8, 1), 3), rng)
    _, _, batches = examples(rng, 10, (8, 8, 1), 3)
    with pytest.raises(UserError, match="rank: .* at least one batch of validation data"):
        Engine(supernet, batches.take(0))
    fresh = tfnas.gate(tiny.build((8, 8, 1), 3), ell2=1, num_examples=10)
    with pytest.raises(UserError, match="rank: .*call supernet.compile"):
        Engine(fresh, batches)
    with pytest.raises(UserError, match="Received: .other.; was it made for another"):
        list(Engine(supernet, batches).evaluate([Architecture({"other": np.ones(3, bool)})]))


def test_a_failure_of_onednn_says_what_to_set(rng, monkeypatch):
    supernet = gated(tiny.build((8, 8, 1), 3), rng)
    engine = Engine(supernet, examples(rng, 4, (8, 8, 1), 3)[2])

    def aborted(*_):
        raise tf.errors.AbortedError(None, None, "could not create a primitive descriptor")

    monkeypatch.setattr(engine, "_programs", [aborted] * len(engine._programs))
    with pytest.raises(UserError, match="TF_ENABLE_ONEDNN_OPTS=0.*primitive descriptor"):
        engine.outputs(next(iter(supernet.posterior().sample(1, seed=0))))


def test_a_supernet_of_mixed_precision_is_evaluated_in_float32(rng):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = supernets.multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)
    keras.mixed_precision.set_global_policy("float32")
    twin = supernets.multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)
    low = gated(model, rng)
    twin.set_weights(model.get_weights())
    high = tfnas.gate(twin, ell2=1, num_examples=10, initial_drop=0.3)
    high.compile(loss=low.loss)
    _, _, batches = examples(rng, 20, (8, 8, 1), 3)
    candidate = low.posterior().sample(1, seed=0)[0]
    outputs = [Engine(supernet, batches).outputs(candidate) for supernet in (low, high)]
    # ReLU and pooling answer in bfloat16, eight bits.
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0.05, atol=0.05 * np.abs(outputs[1]).max())
