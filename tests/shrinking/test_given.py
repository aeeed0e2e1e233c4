"""What `tfnas.shrink` makes of a user's data, model and weights, without training anything."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnas
from tfnas.common.errors import UserError
from tfnas.config import Retrain, Search
from tfnas.data import inputs
from tfnas.shrinking.given import compiling
from tfnas.shrinking.given.examples import Batches
from tfnas.shrinking.given.trained import looks_trained
from tfnas.tasks.recognition import recognized
from tfnas.training.best_cut import best_cut

L = keras.layers


class Numbered(keras.utils.PyDataset):
    ended = 0

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return np.full((4, 1), i), np.full(4, i)

    def on_epoch_end(self):
        self.ended += 1


def taken(batches, epoch, count):
    """Labels of the first batches from an epoch on."""
    return [y.numpy().tolist() for _, y in batches.dataset(epoch).take(count)]


def test_an_order_depends_on_seed_and_epoch_alone():
    numbers = np.arange(20)
    listed = [Numbered()[i] for i in range(5)]
    for data, size in ((numbers[:, None], numbers), 4), (Numbered(workers=2), None), (listed, None):
        batches = Batches(data, size, None, seed=3)
        assert (batches.steps, batches.num_examples) == (5, 20)
        both, second = taken(batches, 0, 10), taken(batches, 1, 5)
        assert both[5:] == second and both[:5] != second
        for epoch in (both[:5], second):  # each example once
            assert sorted(sum(epoch, [])) == sorted(numbers if size else np.repeat(np.arange(5), 4))
        assert taken(Batches(data, size, None, seed=4), 0, 5) != both[:5]
    # An epoch that takes fewer batches than there are goes on where the one before ended.
    fewer = Batches(Numbered(), None, 2, seed=3)
    assert taken(fewer, 0, 5) == taken(fewer, 0, 2) + taken(fewer, 1, 3)


def test_a_generator_goes_on_and_a_data_set_begins_again():
    endless = ((np.full((2, 1), i), (np.full(2, i), np.full(2, -i))) for i in range(100))
    batches = Batches(endless, None, 3, seed=0)
    assert batches.first[0][0, 0] == 0 and batches.num_examples == 6
    assert [int(x[0, 0]) for x, _ in batches.dataset(0).take(2)] == [0, 1]
    assert next(iter(batches.dataset(1)))[0][0, 0] >= 2
    dataset = tf.data.Dataset.range(3).map(lambda i: (i[None], i[None]))
    assert taken(Batches(dataset.filter(lambda x, y: True), None, None, 0), 5, 4) == [[0], [1], [2], [0]]


def supernet(activation=None, outputs=3, loss=None):
    feature = keras.Input((5,))
    model = keras.Model(feature, L.Dense(outputs, activation)(L.Dense(20, "relu")(feature)))
    made = tfnas.gate(model, parameters=0.5, importance="curvature", iterative=False)
    made.compile(loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


def test_a_step_is_traced_once(rng):
    traced = []

    def loss(labels, outputs):
        traced.append(tf.inside_function())
        return keras.losses.mean_squared_error(labels, outputs)

    features, labels = rng.normal(size=(8, 5)).astype("float32"), {name: np.ones((8, 1), "float32") for name in "ab"}
    feature = keras.Input((5,))
    model = keras.Model(feature, {name: L.Dense(1, name=name)(feature) for name in "ab"})
    model.compile(loss={"a": loss, "b": loss}, metrics={"a": ["mae"], "b": ["accuracy"]})
    model.optimizer.build(model.trainable_variables)
    compiling.build_metrics(model, (features[:2], {name: x[:2] for name, x in labels.items()}))
    traced.clear()
    model.fit(features, labels, batch_size=4, verbose=0)
    assert traced == [True, True]  # once by each output
    found = model.evaluate(features, labels, batch_size=4, verbose=0, return_dict=True)
    assert len(traced) == 4
    for name, output in model(features).items():
        np.testing.assert_allclose(found[f"{name}_loss"], np.mean((output - 1) ** 2), rtol=1e-5)


@pytest.mark.usefixtures("eager")
def test_random_weights_are_told_from_trained_ones(rng):
    features = rng.normal(size=(300, 5)).astype("float32")
    classes, numbers = features[:, :3].argmax(1), features @ rng.normal(size=(5, 1)) + 1
    for labels, options in (classes, {}), (numbers.astype("float32"), {"outputs": 1, "loss": "mse"}):
        for seed in range(2):
            keras.utils.set_random_seed(seed)
            random = supernet(**options)
            assert not looks_trained(random, inputs.Examples([features], labels)), seed
        model = random.graph.model
        model.compile(keras.optimizers.Adam(0.03), loss=random.loss)
        for _ in range(40):
            model.train_on_batch(features, labels)
        assert looks_trained(random, inputs.Examples([features], labels))


def test_a_loss_of_the_batch_is_traced_for_many_examples(rng):
    """Such a loss is called for each example by itself: for 300 of them and 100 permutations it would take minutes."""
    calls = []

    def contrastive(labels, outputs):
        calls.append(outputs)
        return keras.ops.mean(labels * keras.ops.square(outputs))

    gated, features = supernet(outputs=1, loss=contrastive), rng.normal(size=(300, 5)).astype("float32")
    looks_trained(gated, inputs.Examples([features], np.ones((300, 1), "float32")))
    images, labels = features, np.ones((300, 1), "float32")
    best_cut(gated, gated.posterior("norm").mode(), images, (images, labels))
    assert len(calls) < 50


CLASSES, ONE_HOT, SEVERAL = np.array([0, 2, 1]), np.eye(3)[[0, 2, 1]], np.array([[0.0, 1, 1], [1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "activation, labels, expected",
    [
        (None, CLASSES, (keras.losses.SparseCategoricalCrossentropy, True, "accuracy")),
        (
            "softmax",
            1.0 * CLASSES[:, None],
            (keras.losses.SparseCategoricalCrossentropy, False, "accuracy"),
        ),
        (None, ONE_HOT, (keras.losses.CategoricalCrossentropy, True, "accuracy")),
        ("softmax", ONE_HOT, (keras.losses.CategoricalCrossentropy, False, "accuracy")),
        ("sigmoid", ONE_HOT, (keras.losses.BinaryCrossentropy, False, "accuracy")),
        (None, SEVERAL, (keras.losses.BinaryCrossentropy, True, "accuracy")),
        (None, SEVERAL + 0.5, (keras.losses.MeanSquaredError, None, "mae")),
        ("relu", 3 * SEVERAL, (keras.losses.MeanSquaredError, None, "mae")),
    ],
)
def test_losses_and_metrics_follow_from_outputs_and_labels(activation, labels, expected):
    feature = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), L.Dense(3), L.Activation(activation or "linear")])
    for output in (L.Dense(3, activation)(feature), inner(feature)):
        model = keras.Model(feature, output)
        settings = Search(parameters=0.5).resolved(Retrain(), False)
        chosen = compiling.chosen(model, labels, False, settings)
        chosen.apply(model)
        loss = chosen.objective["loss"]
        assert (type(loss), loss._fn_kwargs.get("from_logits")) == expected[:2]
        measured = model.evaluate(np.ones((3, 4)), labels, verbose=0, return_dict=True)
        assert set(measured) == {"loss", expected[2]} and isinstance(model.optimizer, keras.optimizers.AdamW)


def test_the_task_of_an_output_is_that_of_the_command_line():
    positions = keras.Input((2, 2, 3))
    masks, rng = np.zeros((5, 2, 2), int), np.random.default_rng(0)
    for output, labels, name in (
        (L.Softmax()(positions), masks, "segmentation"),
        (L.Dense(1, "sigmoid")(positions), masks[..., None], "multi_label"),
        (positions, rng.normal(size=(5, 2, 2, 3)), "regression"),
        (L.Flatten()(positions), rng.integers(0, 12, 5), "classification"),
    ):
        found = recognized(output, labels)
        assert found.task.facts.name == name and found.logits == (name in ("regression", "classification"))


def as_given(optimizer):
    feature = keras.Input((4,))
    model = keras.Model(feature, L.Dense(3)(feature))
    model.compile(optimizer, loss={"out": "mse"}, metrics=["mae"])
    return compiling.as_given(model, ["out"]), keras.Model(feature, L.Dense(3)(feature))


def test_the_optimizer_keeps_class_and_settings_and_its_rate_falls_along_one_cosine():
    optimizer = keras.optimizers.AdamW(0.2, beta_1=0.7, weight_decay=0.1, clipnorm=3.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    found, model = as_given(optimizer)
    found.apply(model, steps=100, first=25)
    made = model.optimizer
    assert made is not optimizer and (made.beta_1, made.weight_decay, made.clipnorm) == (0.7, 0.1, 3.0)
    assert float(made.learning_rate) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)), rel=1e-5)
    assert [made._use_weight_decay(v) for v in model.trainable_variables] == [True, False]
    found.apply(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.2)
    steps = keras.optimizers.schedules.PiecewiseConstantDecay([30], [1.0, 0.5])
    found, model = as_given(keras.optimizers.SGD(steps))
    found.apply(model, steps=100, first=31)
    assert float(model.optimizer.learning_rate) == 0.5
    assert not found.rate_words(100) and "ends at a learning rate of 1, 100% of its largest" in found.rate_words(10)


class Mine(keras.optimizers.SGD):
    def __init__(self, needed, **kwargs):
        super().__init__(**kwargs)


def test_an_optimizer_that_cannot_be_made_again_is_named():
    found, model = as_given(Mine(1))
    with pytest.raises(UserError, match=r"no second Mine can be made from its get_config\(\)"):
        found.apply(model)
