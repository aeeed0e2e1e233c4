"""`tfnas.shrink` of a tiny classifier: bounds, what is measured, data in any form, interruptions, and mistakes."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnas
from tfnas.common.errors import SearchFailedError, UserError
from tfnas.shrinking.result import Sizes

L = keras.layers
SHAPE = (6, 6, 1)
OPTIONS = {"batch_size": 20, "candidates": 8, "device": lambda model: 1e-3 * model.count_params()}
# Of the fixture `eager`.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the .tf.config")


@pytest.fixture(autouse=True)
def operations_one_by_one(eager):
    """So few steps are taken that tracing them would take nearly all of the time."""


def examples(count, seed):
    """Images of three classes: a bright spot in one of three places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = 0.3 * rng.normal(size=(count, *SHAPE))
    images[np.arange(count), 2 * labels, 3] += 3
    return images.astype("float32"), labels


TRAIN, VALIDATION, TEST = examples(80, 0), examples(60, 1), examples(50, 2)


def classifier(seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE, name="image")
    x = L.ReLU()(L.BatchNormalization(momentum=0.8)(L.Conv2D(8, 3, padding="same", name="a")(image)))
    x = L.ReLU()(L.Conv2D(12, 3, name="b")(x))
    return keras.Model(image, L.Dense(3, name="classes")(L.Flatten()(x)), name="spots")


def compiled(model, optimizer=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), loss=loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def trained():
    """A compiled classifier that knows the classes."""
    model = compiled(classifier())
    model.fit(*TRAIN, batch_size=20, epochs=4, verbose=0)
    return model


def assert_within(result, model, **shares):
    full, found = tfnas.cost(model), tfnas.cost(result.model)
    assert result.after.parameters == found.parameters and result.after.multiply_adds == found.multiply_adds
    for name, share in shares.items():
        assert getattr(found, name) <= share * getattr(full, name)


def assert_measured(metrics, model, data):
    """As Keras measures it, in batches of another size."""
    assert metrics == pytest.approx(model.evaluate(*data, batch_size=23, verbose=0, return_dict=True), rel=1e-4)


def test_a_model_that_is_not_compiled_becomes_smaller_within_all_bounds(tmp_path):
    model = classifier()
    before = model.get_weights()
    result = tfnas.shrink(model, TRAIN, VALIDATION, parameters=0.5, multiply_adds=0.6, epochs=2, test=TEST, **OPTIONS)
    assert_within(result, model, parameters=0.5, multiply_adds=0.6)
    assert not model.compiled and result.model.count_params() < model.count_params()
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [record["phase"] for record in result.history] == ["search", "retrain"]
    for network, measured in (compiled(model), result.before), (result.model, result.after):
        assert_measured(measured.metrics, network, VALIDATION)
        assert_measured(measured.test, network, TEST)
    assert "test accuracy" in str(result) and "<table" in result._repr_html_()
    result.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3 and f"{result.after.parameters:,}" in page
    assert "src=" not in page and "<link" not in page  # one file


def test_several_sizes_of_a_trained_model_without_training(trained):
    results = tfnas.shrink(trained, TRAIN, VALIDATION, multiply_adds=(0.4, 0.7), epochs=0, **OPTIONS)
    assert isinstance(results, Sizes) and len(results) == 2
    for result, share in zip(results, (0.4, 0.7), strict=True):
        assert_within(result, trained, multiply_adds=share)
        assert_measured(result.after.metrics, result.model, VALIDATION)
        assert result.after_cut == result.after.metrics
        assert result.bounds == {"multiply_adds": share} and not result.history and not result.retrained
        assert result.after.metrics["accuracy"] > 0.6  # by chance a third
        assert result.model.optimizer.learning_rate == np.float32(0.05) and result.model.optimizer.momentum == 0.9
        # Curvature and norms are compared, once refitted: never worse than by norms.
        supernet = tfnas.gate(trained, multiply_adds=share, importance="norm")
        supernet.compile(loss=trained.loss)
        norms = tfnas.best_cut(supernet, supernet.posterior().mode(), TRAIN[0], VALIDATION)
        assert result.after.metrics["loss"] <= min(norms.losses.values()) + 1e-3
    assert str(results).count("of the multiply-adds") == 2 and "<svg" in results._repr_html_()


def test_gates_are_learned_if_asked_for():
    model = classifier()
    result = tfnas.shrink(model, TRAIN, VALIDATION, parameters=0.5, epochs=4, importance="gates", **OPTIONS)
    assert_within(result, model, parameters=0.5)
    assert "undecided" in next(record for record in result.history if record["phase"] == "search")
    for given in {"importance": "norm"}, {"importance": "gates", "epochs": 0}:
        with pytest.raises(UserError, match="importance must be 'curvature', or 'gates'"):
            tfnas.shrink(model, TRAIN, VALIDATION, parameters=0.5, **given)


class Squared(keras.Model):
    """A model with a loss of its own."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training) + keras.ops.mean(y_pred**2)


def test_steps_of_ones_own_are_said_not_to_be_used(trained, capsys):
    model = compiled(Squared(trained.input, trained.output, name="squared"))
    for given in (model, trained):
        tfnas.shrink(given, TRAIN, VALIDATION, parameters=0.6, epochs=0, trained=True, **OPTIONS)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("of its own") == 1
    assert (
        "'squared' has a compute_loss of its own, which is not used: networks are trained with the compiled loss"
        in said
    )


def test_a_latency_is_met_as_measured(trained):
    options = {**OPTIONS, "device": lambda model: 1e-6 * (1 + model.count_params())}
    result = tfnas.shrink(trained, TRAIN, VALIDATION, latency=0.6, epochs=0, **options)
    assert result.after.latency <= 0.6 * result.before.latency
    assert result.after.latency == pytest.approx(1e-6 * (1 + result.model.count_params()))


class Interrupted(keras.callbacks.Callback):
    """Stops before some epochs, once before each."""

    stops: list = []

    def on_epoch_begin(self, epoch, logs=None):
        if self.stops and self.stops[0] == epoch:
            self.stops.pop(0)
            raise KeyboardInterrupt


def test_interrupted_within_and_between_phases_it_ends_with_the_same_network(tmp_path):
    def run(workdir, seed):
        keras.utils.clear_session()  # as in another process: the same names
        # Of a model that is not trained, the weights of the first call count.
        model = classifier(seed)
        call = {"parameters": 0.5, "epochs": 8, "callbacks": [Interrupted()], "workdir": workdir}
        return tfnas.shrink(model, TRAIN, VALIDATION, trained=False, **call, **{**OPTIONS, "candidates": 1})

    whole = run(tmp_path / "whole", 0)
    # Between the epoch without gates and that of the search, and within the retraining.
    Interrupted.stops[:] = [1, 5]
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", seed)
    parts = run(tmp_path / "parts", 2)
    assert not Interrupted.stops and [r["epoch"] for r in parts.history] == list(range(1, 9))
    assert parts.architecture.digest() == whole.architecture.digest()
    for one, other in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert parts.before.metrics == pytest.approx(whole.before.metrics, rel=1e-6)


class InBatches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return TRAIN[0][20 * i : 20 * i + 20], TRAIN[1][20 * i : 20 * i + 20]


def endless():
    for i in itertools.count():
        yield InBatches()[i % 4]


class AtOnce(keras.callbacks.EarlyStopping):
    """Stops after one epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_data_in_other_forms_and_callbacks_in_the_retraining(trained):
    seen = []
    watching = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, "val_loss" in logs)))
    dataset = tf.data.Dataset.from_tensor_slices(TRAIN).batch(20)
    call = {"parameters": 0.6, "epochs": 3, "trained": True, "distill": 0.5, "callbacks": [watching, AtOnce()]}
    result = tfnas.shrink(trained, dataset, iter([VALIDATION]), **call, **OPTIONS)
    # All three epochs are of the retraining, which stops after one.
    assert seen == [(0, True)] and [record["phase"] for record in result.history] == ["retrain"]
    assert result.after.metrics["loss"] <= result.after_cut["loss"]
    for train, steps in (InBatches(workers=2), None), (endless(), 3):
        result = tfnas.shrink(trained, train, VALIDATION, parameters=0.6, epochs=1, steps_per_epoch=steps, **OPTIONS)
        assert_within(result, trained, parameters=0.6)
        assert [record["phase"] for record in result.history] == ["retrain"]


def missing(data):
    """The same examples without a number in three of them."""
    images = data[0].copy()
    images[[2, 30, 50], 1, 1] = np.nan
    return images, data[1]


@pytest.mark.parametrize(
    "words, call",
    [
        ("bounds expected .* Received: {}", {}),
        ("each a number, or several with as many", {"parameters": (0.5, 0.6), "multiply_adds": (0.5,)}),
        ("latency must be a share in .0, 1.. Received: 2", {"latency": 2}),
        ("epochs must be a whole number of at least 0. Received: -1", {"parameters": 0.5, "epochs": -1}),
        ("distill must be in .0, 1.", {"parameters": 0.5, "distill": 2}),
        ("distill needs a model whose weights are trained", {"parameters": 0.5, "distill": 0.5, "trained": False}),
        ("batch_size must be from 1 to the 80 examples", {"parameters": 0.5, "batch_size": 81}),
        ("train must be a tuple of arrays .* Received: 3", {"parameters": 0.5, "train": 3}),
        ("train must have inputs and labels", {"parameters": 0.5, "train": (TRAIN[0],)}),
        ("steps_per_epoch must be at least 1, and is needed", {"parameters": 0.5, "train": endless()}),
        ("train ended after 0 more", {"parameters": 0.5, "train": iter([TRAIN]), "steps_per_epoch": 1, "epochs": 1}),
        ("expected inputs of shape", {"parameters": 0.5, "validation": (TRAIN[0][:, :3], TRAIN[1])}),
        ("labels in the structure of the model's 1 outputs", {"parameters": 0.5, "train": (TRAIN[0], TRAIN)}),
        ("parameters=1e-06 is out of reach", {"parameters": 1e-6}),
        (
            "train: expected batches. Received: single examples, with inputs of shape .6, 6, 1.; batch them",
            {"parameters": 0.5, "train": tf.data.Dataset.from_tensor_slices(TRAIN)},
        ),
        (
            "train: expected inputs of shape .* Received: .5, 4, 6, 6, 1.",
            {"parameters": 0.5, "train": tf.data.Dataset.from_tensor_slices(TRAIN).batch(4).batch(5)},
        ),
        ("shrink: validation: expected a tuple of arrays", {"parameters": 0.5, "validation": None}),
        (
            "validation has 3 of 60 examples with numbers that are not finite, and their loss is nan: fill",
            {"parameters": 0.5, "validation": missing(VALIDATION)},
        ),
        ("train has 3 of 80 examples with numbers", {"parameters": 0.5, "train": missing(TRAIN)}),
    ],
)
def test_a_mistake_is_one_error(words, call):
    given = {"train": TRAIN, "validation": VALIDATION, "epochs": 0, **OPTIONS, **call}
    with pytest.raises(UserError, match=words):
        tfnas.shrink(classifier(), given.pop("train"), given.pop("validation"), **given)


def test_what_is_no_model_is_refused():
    with pytest.raises(
        UserError, match="a Keras model expected. Received: 'small.keras'; of a file, keras.models.load"
    ):
        tfnas.shrink("small.keras", TRAIN, VALIDATION, parameters=0.5)


def test_a_loss_that_is_not_finite_ends_the_training():
    model = compiled(classifier(), keras.optimizers.SGD(1e30))
    with pytest.raises(SearchFailedError, match="retrain: the loss is no longer finite in epoch 1"):
        tfnas.shrink(model, TRAIN, VALIDATION, parameters=0.6, epochs=1, trained=True, **OPTIONS)


def test_gradients_that_are_not_finite_end_the_search():
    """Units cannot be chosen by them."""
    dataset = tf.data.Dataset.from_tensor_slices(missing(TRAIN)).batch(20)
    with pytest.raises(SearchFailedError, match="gradients of importance 'curvature' are not finite.*learning rate"):
        tfnas.shrink(compiled(classifier()), dataset, VALIDATION, parameters=0.6, epochs=1, trained=False, **OPTIONS)


def test_numbers_that_are_not_finite_are_taken_where_the_model_fills_them_in(trained):
    image = keras.Input(SHAPE)
    model = compiled(keras.Model(image, trained(keras.ops.nan_to_num(image))))
    result = tfnas.shrink(model, missing(TRAIN), missing(VALIDATION), parameters=0.6, epochs=0, **OPTIONS)
    assert_within(result, model, parameters=0.6)


def test_a_folder_of_the_command_line_is_not_used(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="shrink: workdir must not be that of a run of the command line"):
        tfnas.shrink(classifier(), TRAIN, VALIDATION, parameters=0.5, workdir=tmp_path)
