"""Networks trained like the found one but chosen without a posterior; runs of them: `stages/test_stage_settings.py`."""

import keras
import numpy as np
import tensorflow as tf
import tiny
from conftest import PUBLISHED, tiny_config

import tfnas
from tfnas.data import pipeline
from tfnas.gating.gates import Gated
from tfnas.ranking import reference_architectures
from tfnas.training import trained_baselines

BLOCKS = [["path1", "path2"]]


def frozen(model, **arguments):
    return trained_baselines.freeze(tfnas.gate(model, ell2=10, num_examples=100, **arguments))


def batches(rng, count):
    images, labels = rng.normal(size=(count * 8, 8, 8, 1)).astype("float32"), rng.integers(0, 3, count * 8)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)


def values(variables):
    return [np.array(variable) for variable in variables]


def test_frozen_gates_do_not_move_while_weights_do(rng):
    supernet = frozen(tiny.build((8, 8, 1), 3), initial_drop=0.37)
    logits = [layer.drop_logit for layer in supernet.gated_layers.values()]
    kernels = [layer.layer.kernel for layer in supernet.gated_layers.values()]
    before, weights = values(logits), values(kernels)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    supernet.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    supernet.fit(batches(rng, 3), shuffle=False, verbose=0)
    for old, new in zip(before, values(logits), strict=True):
        np.testing.assert_array_equal(old, new)
        np.testing.assert_allclose(1 / (1 + np.exp(-new)), 0.37, rtol=1e-6)
    assert all(np.abs(old - new).max() > 1e-4 for old, new in zip(weights, values(kernels), strict=True))
    assert not any(variable is logit for logit in logits for variable in supernet.trainable_variables)


def test_gates_during_a_step_are_exactly_its_path(rng):
    supernet = frozen(tiny.build((8, 8, 1), 3))
    posterior = supernet.posterior()
    kernels = {name: layer.layer.kernel for name, layer in supernet.gated_layers.items()}
    seen = []

    paths = trained_baselines.Paths(supernet, BLOCKS, seed=3)

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            paths(20 + batch)
            seen.append({name: layer.relaxed_gates(500).numpy() for name, layer in supernet.gated_layers.items()})
            self.before = {name: np.array(kernel) for name, kernel in kernels.items()}

        def on_train_batch_end(self, batch, logs=None):
            # With no momentum and no price on what is dropped, a step moves only the path's operations.
            for name, kernel in kernels.items():
                moved = np.abs(np.asarray(kernel) - self.before[name]).max() > 0
                assert moved or not seen[-1][name].all()
                assert not (moved and name in sum(BLOCKS, []) and not seen[-1][name].any())

    supernet.compile(keras.optimizers.SGD(0.05), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    supernet.fit(batches(rng, 4), callbacks=[Watch()], shuffle=False, verbose=0)
    for step, gates in enumerate(seen):
        path = reference_architectures.single_path(posterior, BLOCKS, 3, 20 + step)
        for name, drawn in gates.items():
            np.testing.assert_array_equal(drawn, np.tile(path[name].astype("float32"), (500, 1)))
    assert len({tuple(gates[block[0]][0, 0] for block in BLOCKS) for gates in seen}) > 1


def test_mean_magnitude_is_numpys():
    convolution = Gated(keras.layers.Conv2D(3, (3, 5)))
    convolution.build((None, 8, 8, 4))
    np.testing.assert_allclose(
        trained_baselines.mean_magnitude(convolution),
        np.abs(convolution.layer.kernel.numpy()).mean((0, 1, 3)),
        rtol=1e-6,
    )
    separable = Gated(keras.layers.SeparableConv2D(5, 3))
    separable.build((None, 8, 8, 4))
    depthwise, pointwise = (np.abs(w) for w in separable.layer.get_weights()[:2])  # (3, 3, 4, 1), (1, 1, 4, 5)
    expected = (depthwise.sum((0, 1, 3)) + pointwise.sum((0, 1, 3))) / (9 + 5)
    np.testing.assert_allclose(trained_baselines.mean_magnitude(separable), expected, rtol=1e-6)
    pooling = Gated(keras.layers.AveragePooling2D(2))
    pooling.build((None, 8, 8, 2))
    assert trained_baselines.mean_magnitude(pooling).tolist() == [np.inf, np.inf]


def test_magnitude_pruning_by_hand():
    """s channels of `a` and t of `b`, 1 x 1: s + s t + 4 t weights, and 10 of the classifier."""
    image = keras.Input((4, 4, 1))
    x = image
    for name in ("stem", "a", "b"):
        x = keras.layers.Conv2D(4, 1, use_bias=False, name=name)(x)
    model = keras.Model(image, keras.layers.Dense(2, name="classifier")(keras.layers.GlobalAveragePooling2D()(x)))
    scales = {"a": [0.1, 0.4, 0.2, 0.8], "b": [0.3, 0.9, 0.6, 0.5]}
    for name, scale in scales.items():
        signs = [1, -1, 1, -1]
        model.get_layer(name).set_weights([np.multiply.outer(scale, signs).reshape(1, 1, 4, 4)])
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    scores = {name: trained_baselines.mean_magnitude(layer) for name, layer in supernet.gated_layers.items()}
    # From 46, dropping the smallest first: 41 (a 0), 36 (a 2), 30 (b 0), 26 (a 1).
    for wanted, a, b in ((46, 4, 4), (45, 3, 4), (40, 2, 4), (36, 2, 4), (35, 2, 3), (30, 2, 3), (29, 1, 3)):
        pruned = reference_architectures.magnitude_candidate(supernet.graph, scores, wanted)
        assert (pruned["a"].sum(), pruned["b"].sum()) == (a, b)
    pruned = reference_architectures.magnitude_candidate(supernet.graph, scores, 33)
    assert pruned["a"].tolist() == [False, True, False, True] and pruned["b"].tolist() == [False, True, True, True]
    assert tfnas.subnet(supernet, pruned).count_params() == 30


def test_no_single_path_where_nothing_competes(digits_folder, monkeypatch):
    monkeypatch.setattr(reference_architectures, "choice_blocks", lambda graph, gated: [])
    config = tiny_config(search=PUBLISHED)
    assert trained_baselines.Baselines(config, pipeline.load(config.data, digits_folder), None).single_path() == []
