"""One step of the loop against Keras's own, in parts, in 16 bits, and under XLA."""

import io

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

import tfnas
from tfnas.common.errors import UserError
from tfnas.runs.checkpoints import Checkpoints
from tfnas.runs.workdir import Workdir
from tfnas.training import distillation, loop, networks


def network():
    x = image = keras.Input((8, 8, 1), name="image")
    for name in ("stem", "one", "two"):
        x = keras.layers.Conv2D(6, 3, activation="relu", name=name)(x)
    end = keras.layers.Dense(3, name="end")(keras.layers.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(image, end)


def supernet(rate=0.1, scaled=False, **options):
    networks.set_seed(0)
    made = tfnas.gate(network(), ell2=50, num_examples=100, **options)
    optimizer = tfnas.GatedOptimizer(keras.optimizers.SGD(rate, 0.9, nesterov=True), gate_learning_rate=3.0)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    made.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), auto_scale_loss=False)
    made.optimizer.build(made.trainable_variables)
    return made


def batches(first_step=0, share=None):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(36, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 36)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(12).skip(first_step)


def steps(model, precision="float32", **options):
    """Takes three steps; returns the losses."""
    losses = []
    with networks.precision(model, precision):
        step = loop.Step(model, **options)
        iterator = loop.distributed(step.strategy, batches, 0)
        for i in range(3):
            losses.append(float(step(iterator, step.totals(), i)[0]))
    return losses


def weights(model):
    return [np.array(v) for v in model.trainable_variables]


def test_steps_are_those_of_keras_fit():
    ours, keras_own = supernet(), supernet()
    steps(ours)
    keras_own.fit(batches(), shuffle=False, verbose=0)
    for one, other in zip(weights(ours), weights(keras_own), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def kullback_leibler(teacher, student, temperature):
    """Mean over the examples, by hand."""

    def softmax(x):
        e = np.exp(x / temperature - (x / temperature).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(np.float64(teacher)), softmax(np.float64(student))
    return (p * np.log(p / q)).sum(-1).mean()


def repeated(first_step, share):
    return batches().repeat(2).skip(first_step)


def taught(tmp_path, epochs=1, **options):
    """Trains a network with a teacher; returns both, the record of every epoch, and what the teacher was before."""
    networks.set_seed(3)
    teacher, student = network(), network()
    before = weights(teacher)
    teaching = distillation.Teacher(teacher, weight=0.7, temperature=3.0)
    student.compile(
        keras.optimizers.SGD(0.1, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        auto_scale_loss=False,
    )
    checkpoints = Checkpoints(Workdir(tmp_path), "checkpoints", "key")
    step = loop.Step(student, teacher=teaching, **options)
    history = loop.train(step, student, repeated, 12, epochs, 3, checkpoints, "t")
    for one, other in zip(before, weights(teacher), strict=True):
        np.testing.assert_array_equal(one, other)
    return teacher, student, history


def test_a_teachers_loss_is_numpys():
    networks.set_seed(3)
    teacher, student = network(), network()
    student.compile(
        keras.optimizers.SGD(0.1, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        auto_scale_loss=False,
    )
    student.optimizer.build(student.trainable_variables)
    images, labels = next(iter(batches()))
    logits, outputs = np.asarray(teacher(images)), np.asarray(student(images))
    own = student.evaluate(images, labels, verbose=0)
    step = loop.Step(student, accumulate=2, teacher=distillation.Teacher(teacher, 0.7, 3.0))
    found = float(step(loop.distributed(step.strategy, batches, 0), step.totals(), 0)[0])
    assert found == pytest.approx(0.3 * own + 0.7 * 9 * kullback_leibler(logits, outputs, 3.0), rel=1e-5)


def test_a_taught_network_comes_nearer_to_its_teacher_which_stays_and_resumes_exactly(tmp_path):
    teacher, whole, history = taught(tmp_path / "whole", 2)
    images = np.concatenate([x for x, _ in batches()])
    networks.set_seed(3)
    network(), (before := network())
    far, near = (kullback_leibler(teacher(images), x(images), 1.0) for x in (before, whole))
    assert near < far
    taught(tmp_path / "cut", 1)
    _, again, resumed = taught(tmp_path / "cut", 2)
    assert resumed == history
    for one, other in zip(weights(whole), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)
    with np.load(sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]) as saved:
        held = len(saved.files) - 1
    assert held == len([*whole.variables, *whole.optimizer.variables])  # and nothing of the teacher
    compiled = taught(tmp_path / "xla", jit_compile=True)[2]
    assert compiled[0]["loss"] == pytest.approx(history[0]["loss"], rel=1e-4)


def without_noise():
    made = supernet()
    for layer in made.gated_layers.values():
        layer.relaxed_gates = lambda n, layer=layer: tf.repeat(tf.sigmoid(-layer.channel_logits())[None], n, 0)
    return made


def test_parts_add_up_to_the_whole_batch():
    """Without noise, which is drawn anew for every part."""
    whole, parts = without_noise(), without_noise()
    assert steps(whole) == pytest.approx(steps(parts, accumulate=3), rel=1e-5)
    for one, other in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_xla_changes_nothing_but_the_last_bits():
    """Without noise, for which XLA has a generator of its own."""
    plain, compiled = without_noise(), without_noise()
    assert steps(plain) == pytest.approx(steps(compiled, jit_compile=True), rel=1e-4)
    for one, other in zip(weights(plain), weights(compiled), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_sixteen_bits_compute_layers_and_nothing_else(precision):
    exact, mixed = supernet(), supernet(scaled=precision == "mixed_float16")
    regularizers, gates, outputs = [], [], []
    regularizer, two = mixed.regularizer, mixed.gated_layers["two"]
    drawn, convolve = two.relaxed_gates, two.layer.call

    def seen(values, function):
        def call(*arguments):
            values.append(function(*arguments))
            return values[-1]

        return call

    mixed.regularizer = seen(regularizers, regularizer)
    two.relaxed_gates, two.layer.call = seen(gates, drawn), seen(outputs, convolve)
    before = float(exact.regularizer())
    losses = steps(mixed, precision)
    half = precision.removeprefix("mixed_")
    assert regularizers[0].dtype == gates[0].dtype == "float32" and outputs[0].dtype == half
    assert all(v.dtype == "float32" for v in mixed.trainable_variables)
    assert losses == pytest.approx(steps(exact), rel=2e-2)
    for one, other in zip(weights(mixed), weights(exact), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.1, atol=2e-2)
    # The regularizer itself keeps all its bits where the layers around it compute in 16.
    again = supernet()
    with networks.precision(again, precision):
        added = []
        again.add_loss = added.append
        again(next(iter(batches()))[0], training=True)
    assert float(added[0]) == pytest.approx(before, rel=1e-6)
    assert {layer.dtype_policy.name for layer in mixed._flatten_layers()} == {"float32"}


def test_a_gradient_too_large_for_float16_skips_the_step_and_halves_the_scale():
    model = supernet(scaled=True)
    model.optimizer.dynamic_scale.assign(1e30)
    before = weights(model)
    losses = steps(model, "mixed_float16")
    assert np.isfinite(losses).all()
    for one, other in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(model.optimizer.dynamic_scale) == pytest.approx(1e30 / 8)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "kind, arguments, options",
    [
        (keras.optimizers.SGD, {"momentum": 0.9, "weight_decay": 0.01}, {"parameters": 0.5, "steps": 6}),
        (keras.optimizers.AdamW, {"weight_decay": 0.1}, {"parameters": 0.5, "steps": 6}),
        (keras.optimizers.SGD, {"momentum": 0.9}, {"parameters": 0.5, "steps": 6, "importance": "curvature"}),
        (keras.optimizers.Lion, {"weight_decay": 0.3, "clipnorm": 1.0}, {"ell2": 50}),
    ],
)
def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path, kind, arguments, options):
    def trained(path, epochs):
        networks.set_seed(0)
        model = tfnas.gate(network(), num_examples=100, **options)
        optimizer = kind(keras.optimizers.schedules.CosineDecay(0.01, 10), **arguments)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        checkpoints = Checkpoints(Workdir(path), "checkpoints", "key")
        history = loop.train(loop.Step(model), model, repeated, 12, epochs, 3, checkpoints, "search")
        return history, [np.array(v) for v in [*model.variables, *model.optimizer.variables]]

    history, whole = trained(tmp_path / "whole", 2)
    trained(tmp_path / "cut", 1)
    resumed, again = trained(tmp_path / "cut", 2)
    assert resumed == history and len(whole) == len(again)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_says_that_the_step_is_being_built_and_a_file_does_not(tmp_path, monkeypatch, terminal):
    stream = io.StringIO()
    monkeypatch.setattr(loop, "console", rich.console.Console(file=stream, width=116, force_terminal=terminal))
    model = supernet()
    loop.train(
        loop.Step(model), model, batches, 12, 1, 3, Checkpoints(Workdir(tmp_path), "checkpoints", "key"), "search"
    )
    said = stream.getvalue()
    before, told, after = said.partition("search    building the step, once")
    assert bool(told) == terminal and "epoch 1/1" in (after if terminal else said) and "epoch" not in before * terminal
    assert ("minutes for a large network" in said) == terminal


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    model = supernet()
    checkpoints = Checkpoints(Workdir(tmp_path), "checkpoints", "key")
    loop.train(loop.Step(model), model, batches, 12, 1, 3, checkpoints, "search")
    x = image = keras.Input((8, 8, 1))
    other = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    other.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(
        UserError,
        match="checkpoint after step 3: .* arrays .* Received: .* another --workdir",
    ):
        loop.train(loop.Step(other), other, batches, 12, 1, 3, checkpoints, "search")


def test_labels_in_a_column_count_as_labels_in_a_row():
    images, labels = next(iter(batches()))
    model = network()
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    for shape in ((12,), (12, 1)):
        step = loop.Step(model)
        totals = step(iter(tf.data.Dataset.from_tensors((images, tf.reshape(labels, shape)))), step.totals(), 0)
        assert np.asarray(totals)[:2] == pytest.approx([loss, 12 * accuracy], rel=1e-5)
    assert 0 < accuracy < 1
