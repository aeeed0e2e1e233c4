import dataclasses
import os
import shutil
import signal
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny import batches

import tfnas
from tfnas import config
from tfnas.common.errors import PreemptedError, UserError
from tfnas.config import Search
from tfnas.cutting import subnets
from tfnas.data import pipeline
from tfnas.runs.checkpoints import Checkpoints
from tfnas.runs.workdir import Workdir
from tfnas.tasks import network_inputs
from tfnas.tasks.meanings import CLASSIFICATION
from tfnas.training import building, loop, networks, schedules

EPOCHS, STEPS = tiny.EPOCHS, tiny.STEPS


def made(learning_rate=0.05):
    networks.set_seed(0)
    supernet = tfnas.gate(tiny.build((8, 8, 1), 3), ell2=10, num_examples=100)
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(learning_rate, EPOCHS * STEPS), 0.9)
    supernet.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return supernet


def fit(model, path, on_epoch=lambda history: None, key="key", **options):
    checkpoints = Checkpoints(Workdir(path), "checkpoints", key)
    return loop.train(
        loop.Step(model), model, batches, 4, EPOCHS, STEPS, checkpoints, "search", on_epoch=on_epoch, **options
    )


def state(model):
    return [np.array(v) for v in model.weights + model.optimizer.variables]


def assert_same(model, whole):
    for one, other in zip(whole.state, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training never interrupted."""
    model, path = made(), tmp_path_factory.mktemp("whole")
    history = fit(model, path)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    return types.SimpleNamespace(history=history, state=state(model), posterior=model.posterior(), path=path)


@pytest.fixture
def whole(trained, tmp_path):
    """The same, with a folder of the test's own."""
    path = tmp_path / "whole"
    shutil.copytree(trained.path, path)
    return types.SimpleNamespace(**{**vars(trained), "path": path})


def test_interrupted_and_continued_is_bit_identical(whole, tmp_path, capsys):
    class KilledError(Exception):
        pass

    def kill_after_two(records):
        if len(records) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit(made(), tmp_path / "killed", kill_after_two)
    again = made()
    continued = fit(again, tmp_path / "killed")
    assert "resumes after epoch 2 of 4" in capsys.readouterr().out
    assert continued == whole.history
    assert_same(again, whole)


def test_finished_run_is_not_trained_again(whole):
    second = made()
    fit(second, whole.path, on_epoch=lambda history: pytest.fail("no epoch was left"))
    assert second.posterior() == whole.posterior


def test_another_runs_checkpoint_is_not_continued(whole):
    epochs = []
    fit(made(), whole.path, on_epoch=lambda history: epochs.append(len(history)), key="other")
    assert epochs == [1, 2, 3, 4]


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "altered":
        content[len(content) // 2] ^= 0xFF
    file.write_bytes(content if how == "altered" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_a_damaged_newest_checkpoint_is_skipped_and_the_end_is_the_same(whole, how, capsys):
    files = sorted((whole.path / "checkpoints").iterdir())
    assert [file.name for file in files] == [f"step-{step:09d}.npz" for step in (6, 9, 12)]
    damage(files[-1], how)
    again = made()
    assert fit(again, whole.path) == whole.history
    printed = " ".join(capsys.readouterr().out.split())
    assert "step-000000012.npz: truncated or altered" in printed and "resumes after epoch 3 of 4" in printed
    assert_same(again, whole)


def test_with_all_checkpoints_damaged_nothing_is_begun_again_unasked(whole):
    for file in (whole.path / "checkpoints").iterdir():
        damage(file, "truncated")
    with pytest.raises(UserError, match=r"step-000000012.npz: truncated or altered.*no checkpoint before it"):
        fit(made(), whole.path)


def test_sigterm_saves_in_mid_epoch_and_the_end_is_the_same(whole, tmp_path, capsys):
    def terminate(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match=r"SIGTERM in epoch 2, after step 2 of 3") as caught:
        fit(made(), tmp_path / "killed", before_step=terminate)
    assert caught.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is before
    again = made()
    assert fit(again, tmp_path / "killed") == whole.history
    assert "resumes after epoch 1 and 2 steps of 4" in capsys.readouterr().out
    assert_same(again, whole)


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    model = made()

    def poison(records):
        if len(records) == 2:
            model.network.get_layer("classifier").bias.assign([np.nan] * 3)

    with pytest.raises(
        UserError, match=r"search stopped at step 7 \(epoch 3\): the loss is no longer finite.*after epoch 2 is kept"
    ):
        fit(model, tmp_path, poison)
    with np.load(tmp_path / "checkpoints" / "step-000000006.npz", allow_pickle=False) as archive:
        assert all(np.isfinite(archive[name]).all() for name in archive.files if name.startswith("v"))
    assert len(fit(made(), tmp_path)) == EPOCHS


def test_sgd_falls_as_a_cosine_and_decays_kernels_only():
    optimizer = schedules.sgd(Search(), schedules.cosine(0.1, 10), weight_decay=0.5)
    assert float(optimizer._learning_rate(0)) == pytest.approx(0.1)
    assert float(optimizer._learning_rate(5)) == pytest.approx(0.05)
    assert float(optimizer._learning_rate(10)) == pytest.approx(0.0, abs=1e-9)
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    before = layer.kernel.numpy()
    layer.bias.assign([1.0, 1.0])
    optimizer.apply([tf.zeros((3, 2)), tf.zeros(2)], layer.trainable_variables)
    np.testing.assert_allclose(layer.kernel, before * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(layer.bias, [1, 1])


RESTARTS = {"schedule": "cosine_restarts", "learning_rate": 0.05, "minimum_learning_rate": 1e-4}


@pytest.mark.parametrize(
    "settings, rates",
    [
        # 4 steps an epoch; {step: rate}
        ({"schedule": "cosine", "learning_rate": 0.2, "epochs": 5}, {0: 0.2, 10: 0.1, 20: 0.0}),
        # Cosines over epochs 0 to 10, 10 to 30, 30 to 70; half way each is at the mean of both ends.
        (RESTARTS, {0: 0.05, 20: 0.02505, 39: 1e-4 + 0.0499 * 0.00154133, 40: 0.05, 80: 0.02505, 200: 0.02505}),
        ({**RESTARTS, "restart_epochs": 1, "restart_multiplier": 1.0}, {0: 0.05, 2: 0.02505, 4: 0.05, 8: 0.05}),
        (
            {"schedule": "steps", "learning_rate": 0.1, "boundaries": (90.0, 140.0, 160.0)},
            {0: 0.1, 359: 0.1, 360: 0.01, 559: 0.01, 560: 1e-3, 639: 1e-3, 640: 1e-4, 9999: 1e-4},
        ),
        ({"schedule": "steps", "learning_rate": 0.1, "boundaries": (0.5,)}, {1: 0.1, 2: 0.01}),
    ],
    ids=["cosine", "cosine_restarts", "equal restarts", "steps", "step within an epoch"],
)
def test_schedules(settings, rates):
    made = schedules.search(config.Config(search=Search(**settings)).check(), 4)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(made))
    for rate in (made, again):
        got = {step: float(rate(step)) for step in rates}
        assert got == pytest.approx(rates, rel=1e-4, abs=1e-9)


def test_the_restarts_fill_630_epochs():
    """10 (1 + 2 + ... + 32) = 630: the paper's E and EI end at the bottom of the sixth cosine."""
    rate = schedules.search(config.Config(search=Search(epochs=630, **RESTARTS)), 100)
    assert float(rate(62_999)) == pytest.approx(1e-4, rel=1e-3)
    assert float(rate(31_000)) == pytest.approx(0.05, rel=1e-4)
    assert float(rate(47_000)) == pytest.approx(0.02505, rel=1e-4)


@pytest.mark.parametrize(
    "supernet, expected",
    [
        (config.Supernet(), {}),
        (config.Supernet(width=8, num_blocks=1), {"width": 8, "num_blocks": 1}),
        (config.Supernet(stem_width=4), {"stem_width": 4}),
        (config.Supernet(name="densenet121", width=12), {"width": 12}),
    ],
)
def test_only_what_is_given_goes_to_the_builder(supernet, expected):
    inputs = network_inputs.one((8, 8, 1))
    splits = types.SimpleNamespace(num_outputs=3, label_names="abc", task=CLASSIFICATION, inputs=inputs)
    arguments = building.network_arguments(config.Config(supernet=supernet), splits)
    assert arguments == {**expected, "num_classes": 3, "input_shape": (8, 8, 1)}


def test_network_that_cannot_take_the_images_is_refused():
    splits = pipeline.Splits(*[tf.data.Dataset.range(1)] * 3, {}, network_inputs.one((8, 8, 1)), ("a", "b", "c"))
    made = config.Config(supernet=config.Supernet(name="densenet121"))
    with pytest.raises(UserError, match="densenet121: input_shape .* set --config.data.image_size"):
        building.network(made, splits)
    rows = dataclasses.replace(splits, inputs=network_inputs.one((13,), network_inputs.VALUES))
    words = r"a model of yours expected for inputs \(13,\) of 'digits'. Received: 'densenet121', which takes images"
    with pytest.raises(UserError, match=words):
        building.network(made, rows)


@pytest.fixture
def own(monkeypatch):
    """Makes a function the source of the supernet; returns what `building.network` builds with it."""
    one = network_inputs.one((8, 8, 3))

    def build(function, inputs=one, source="made_for_a_test:build", weights=""):
        splits = pipeline.Splits(*[tf.data.Dataset.range(1)] * 3, {}, inputs, ("a", "b", "c", "d"))
        module = types.ModuleType("made_for_a_test")
        module.build = function
        monkeypatch.setitem(sys.modules, "made_for_a_test", module)
        settings = config.Config(supernet=config.Supernet(source=source, weights=weights)).check()
        return building.network(settings, splits), building.network_arguments(settings, splits)

    return build


def small(input_shape, num_classes):
    image = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    return keras.Model(image, keras.layers.Dense(num_classes, name="end")(keras.layers.GlobalMaxPooling2D()(x)))


def test_a_model_of_ones_own_is_built_described_and_rebuilt(own, rng):
    model, arguments = own(small)
    assert model.input_shape == (None, 8, 8, 3) and model.output_shape == (None, 4)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    text = subnets.describe(supernet.architecture(), supernet.graph, "made_for_a_test:build", **arguments)
    rebuilt = subnets.rebuild(text, source="made_for_a_test:build")
    rebuilt.set_weights(model.get_weights())
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(rebuilt(x), model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="architecture: no module 'gone'"):
        subnets.rebuild(text.replace("made_for_a_test:build", "gone:build"), source="gone:build")


@pytest.fixture
def files(tmp_path, rng):
    """A model and the files with its weights, by how their names end."""
    model = small((8, 8, 3), 4)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    paths = {end: tmp_path / f"model{end}" for end in (".keras", ".weights.h5")}
    model.save(paths[".keras"])
    model.save_weights(paths[".weights.h5"])
    return model, {end: str(path) for end, path in paths.items()}


def test_weights_and_models_of_files(own, files, rng, tmp_path):
    trained, paths = files
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    for settings in (
        {"source": paths[".keras"]},
        *({"source": "made_for_a_test:build", "weights": path} for path in paths.values()),
    ):
        model, arguments = own(small, **settings)
        np.testing.assert_array_equal(model(x), trained(x))
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    text = subnets.describe(supernet.architecture(), supernet.graph, paths[".keras"], **arguments)
    np.testing.assert_allclose(subnets.rebuild(text, source=paths[".keras"])(x), trained(x), rtol=1e-5, atol=1e-6)

    def deeper(input_shape, num_classes):
        return keras.Sequential([keras.Input(input_shape), small(input_shape, 3), keras.layers.Dense(num_classes)])

    def wider(input_shape, num_classes):
        return keras.Sequential(
            [keras.Input(input_shape), keras.layers.Conv2D(5, 3), keras.layers.Flatten(), keras.layers.Dense(4)]
        )

    for build in (deeper, wider):
        for path in paths.values():
            with pytest.raises(UserError, match=r"supernet.weights: .*model\..* has no weights of 'made_for_a_test"):
                own(build, weights=path)
    (tmp_path / "cut.keras").write_bytes(b"PK")
    for name, words in (("none.weights.h5", "No such file"), ("none.keras", "No such file"), ("cut.keras", "BadZip")):
        with pytest.raises(UserError, match=rf"supernet.weights: .*{name} has no weights of .*{words}"):
            own(small, weights=str(tmp_path / name))
    with pytest.raises(UserError, match=r"none.keras: cannot be loaded as a Keras model"):
        own(small, source=str(tmp_path / "none.keras"))


def test_a_sequential_model_will_do(own):
    model, _ = own(
        lambda input_shape, num_classes: keras.Sequential(
            [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
        )
    )
    assert isinstance(model, keras.Sequential)


class _Subclassed(keras.Model):
    def call(self, x):
        return x


def _two_outputs(input_shape, num_classes):
    image = keras.Input(input_shape)
    return keras.Model(image, [image, image])


def _softmax(input_shape, num_classes, activation="softmax"):
    return keras.Sequential(
        [keras.Input(input_shape), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(4, activation)]
    )


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda input_shape, num_classes: 7, "must return a keras.Model. Received: int"),
        (lambda shape, num_classes: 7, "failed: TypeError: .*unexpected keyword argument 'input_shape'"),
        (lambda input_shape, num_classes: _Subclassed(), "functional or Sequential model with an Input.*_Subclassed"),
        (lambda input_shape, num_classes: keras.Sequential([keras.layers.Flatten()]), "with an Input"),
        (_two_outputs, "must have one output, without a name. Received: 2; several need task='custom'"),
        (lambda input_shape, num_classes: small((9, 9, 3), 4), r"images \(None, 8, 8, 3\). Received: .*9, 9, 3"),
        (lambda input_shape, num_classes: small(input_shape, 10), r"logits \(None, 4\).*output \(None, 10\)"),
        (
            lambda input_shape, num_classes: keras.Sequential([keras.Input(input_shape), keras.layers.ReLU()]),
            "must return logits",
        ),
        (_softmax, "must return logits. Received: a softmax in 'dense"),
    ],
)
def test_what_is_no_network_for_these_images_is_refused(own, function, message):
    with pytest.raises(UserError, match=message) as caught:
        own(function)
    assert str(caught.value).startswith("supernet.source: ") and "\n" not in str(caught.value)


def _of_inputs(shapes, by_key=False):
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    flat = keras.layers.Concatenate()([keras.layers.Flatten()(x) for x in inputs.values()])
    return keras.Model(inputs if by_key else [*inputs.values()], keras.layers.Dense(4)(flat))


def test_inputs_of_other_names_or_shapes_are_refused(own):
    by_name = {"ink": network_inputs.Input("float32", (2,)), "image": network_inputs.Input("uint8", (8, 8, 3))}
    several = network_inputs.Inputs(by_name, named=True)
    good = {"image": (8, 8, 3), "ink": (2,)}
    for by_key in (False, True):
        _, arguments = own(lambda input_shape, num_classes, by_key=by_key: _of_inputs(input_shape, by_key), several)
        assert arguments == {"input_shape": good, "num_classes": 4}
    words = "must have the inputs image, ink, as the data have. Received: a, b; name them, as by keras.Input"
    with pytest.raises(UserError, match=words):
        own(lambda **_: _of_inputs({"a": (8, 8, 3), "b": (2,)}), several)
    with pytest.raises(UserError, match=r"must take 'ink' of shape \(None, 2\). Received: input \(None, 3\)"):
        own(lambda **_: _of_inputs({**good, "ink": (3,)}), several)
    with pytest.raises(UserError, match="must have one input. Received: 2; return examples with a dict .* image, ink,"):
        own(lambda **_: _of_inputs(good))
    with pytest.raises(UserError, match="a model of yours expected for inputs {'ink': .* Received: 'multi_branch"):
        building.network(config.Config(), pipeline.Splits(*[None] * 3, {}, several, tuple("abcd")))


@pytest.mark.parametrize("number", [60, 0])
def test_a_training_of_few_steps_ends_with_statistics_taken_anew(tmp_path, capsys, number):
    """Four steps leave 0.99^4 of the moving statistics what they began with: zero and one."""
    settings = config.Config(
        data=config.Data(name="digits", train="train[:100]", validation="train[1000:]"),
        supernet=config.Supernet(width=4, num_blocks=1, stem_width=4),
        sample=config.Sample(recalibrate=number),
        retrain=config.Retrain(batch_size=50),
    ).check()
    splits, work = pipeline.load(settings.data, tmp_path), Workdir(tmp_path / "run")
    networks.set_seed(0)
    model = building.network(settings, splits)
    networks.fit_plain(settings, splits, work, model, 2, schedules.Cosine(1e-9, 2).schedule, "baseline")
    images = networks.calibration_images(settings, splits, 60)
    expected = np.asarray(model.get_layer("stem_conv")(images)).mean((0, 1, 2))
    found = np.asarray(model.get_layer("stem_bn").moving_mean)
    assert np.allclose(found, expected, atol=1e-5) == bool(number) and np.abs(expected).max() > 0.01
    told = "baseline  recomputed the statistics of batch normalization: 96% of the moving ones were initial values"
    assert (told in capsys.readouterr().out) == bool(number)
