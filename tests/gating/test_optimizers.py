"""Any optimizer with one for the gates beside it, against Keras's own two; what is decayed; learning rates."""

import ast
import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from processes import ROOT

import tfnas
from tfnas.common.errors import UserError
from tfnas.config import Config, Retrain, Search, Training
from tfnas.gating import optimizers
from tfnas.training import networks, schedules

SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 5)
KINDS = {
    "sgd": lambda rate=0.1: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.1, clipnorm=1.5),
    "adam": lambda rate=0.1: keras.optimizers.Adam(rate, weight_decay=0.1, global_clipnorm=1.5),
    "adamw": lambda rate=0.1: keras.optimizers.AdamW(rate, weight_decay=0.1, clipvalue=0.5),
    "lion": lambda rate=0.1: keras.optimizers.Lion(rate, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=3),
}


def variables():
    values = {"kernel": [1.0, -2.0], "bias": [3.0], "drop_logit": [0.5, -0.5, 3.0]}
    return [keras.Variable(value, name=name) for name, value in values.items()]


def made(kind, *rate):
    optimizer = KINDS[kind](*rate)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def stepped(pairs, rng, scales=(1.0, 1e-3, -1e-3, 10.0), between=lambda: None):
    """Applies the same random gradients to variables by several optimizers, each with its part of them."""
    for scale in scales:
        gradients = {v.name: (scale * rng.normal(size=v.shape)).astype("float32") for v in variables()}
        for optimizer, its in pairs:
            optimizer.apply([gradients[v.name] for v in its], its)
        between()


def assert_equal(ours, others, rtol=1e-6):
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, err_msg=one.name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_stepped_as_the_user_set_it_and_gates_by_adam(rng, kind):
    ours, (*weights, logit) = variables(), variables()
    adam = keras.optimizers.Adam(0.03, beta_1=0.9, beta_2=0.99)
    optimizer = optimizers.GatedOptimizer(made(kind), gate_step=0.03)
    stepped([(optimizer, ours), (made(kind), weights), (adam, [logit])], rng)
    assert_equal(ours, [*weights, logit])
    assert int(optimizer.iterations) == 4 and float(optimizer.learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, SCHEDULE], ids=["rate", "schedule"])
def test_the_published_method_steps_gates_as_weights_at_a_multiple_of_their_present_rate(rng, kind, rate):
    ours, (*weights, logit) = variables(), variables()
    # Gates alone, undecayed, by the same class, at five times the rate.
    five = keras.optimizers.schedules.CosineDecay(0.5, 5) if rate is SCHEDULE else 0.5
    gates, plain = made(kind, five), made(kind, rate)
    gates.exclude_from_weight_decay(var_names=["drop_logit"])
    optimizer = optimizers.GatedOptimizer(made(kind, rate), gate_learning_rate=5.0)

    def callback():
        """As keras.callbacks.LearningRateScheduler does."""
        if rate is not SCHEDULE:
            optimizer.learning_rate = plain.learning_rate = 0.02
            gates.learning_rate = 0.1

    stepped([(optimizer, ours), (plain, weights), (gates, [logit])], rng, between=callback)
    assert_equal(ours, [*weights, logit], rtol=1e-5)
    if plain.use_ema:
        for each, its in ((optimizer, ours), (plain, weights), (gates, [logit])):
            each.finalize_variable_values(its)
        assert_equal(ours, [*weights, logit], rtol=1e-5)


def still(optimizer, its):
    """Which of them a step without gradients shrinks: the ones that are decayed, and how much."""
    before = [np.array(v) for v in its]
    optimizer.apply([tf.zeros_like(v.value) for v in its], its)
    return {v.path: 1 - np.array(v) / old for v, old in zip(its, before, strict=True)}


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("by_name", [True, False])
def test_exclusions_and_clipping_are_saved(kind, by_name):
    """Keras itself forgets what was excluded."""
    ours = variables()
    weights = KINDS[kind]()
    weights.exclude_from_weight_decay(**({"var_names": ["bias"]} if by_name else {"var_list": ours[1:2]}))
    optimizer = optimizers.GatedOptimizer(weights, gate_step=0.03, name="of_both")
    optimizer.build(ours)
    described = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(described)
    assert again.get_config() == optimizer.get_config() and again.name == "of_both"
    assert again.weights_optimizer.get_config() == KINDS[kind]().get_config() | {"name": weights.name}
    for each in (optimizer, again):
        shrunk = still(each, ours)
        np.testing.assert_allclose(shrunk["kernel"], 0.1 * 0.1, rtol=1e-4)
        assert not shrunk["bias"].any() and not shrunk["drop_logit"].any()


def test_a_loss_is_scaled_once_inside_and_outside(rng):
    """A factor of the user's own, and Keras's LossScaleOptimizer around it: steps as without."""
    for factor, scaled in ((None, True), (8.0, False), (8.0, True)):
        for rates in ({}, {"gate_learning_rate": 2.0}):
            plain, ours = variables(), variables()
            exact = optimizers.GatedOptimizer(keras.optimizers.SGD(0.1), **rates)
            optimizer = optimizers.GatedOptimizer(keras.optimizers.SGD(0.1, loss_scale_factor=factor), **rates)
            again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
            assert again.loss_scale_factor == factor
            if scaled:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
                optimizer.build(ours)
            scale = float(optimizer.scale_loss(1.0))
            assert scale == (64 if scaled else 8)
            gradients = [rng.normal(size=v.shape).astype("float32") for v in plain]
            exact.apply(gradients, plain)
            optimizer.apply([scale * g for g in gradients], ours)
            assert_equal(ours, plain)


def test_a_schedule_goes_on_while_the_weights_are_frozen():
    logit = variables()[2]
    optimizer = optimizers.GatedOptimizer(keras.optimizers.SGD(SCHEDULE), gate_learning_rate=2.0)
    moved = 0.5
    for step in range(3):
        optimizer.apply([tf.ones(3)], [logit])
        moved -= 2 * cosine(step, 5, 0.1)
    assert float(logit[0]) == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gate_step": 0.1, "gate_learning_rate": 1.0}, "exclude each other.*Received: 0.1 and 1.0"),
        ({"gate_step": 0.0}, "gate_step must be greater than 0. Received: 0.0"),
        ({"gate_learning_rate": -1.0}, "gate_learning_rate must be greater than 0. Received: -1.0"),
        (
            {"weights_optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
            "goes around .*Received: LossScale",
        ),
        ({"weights_optimizer": optimizers.GatedOptimizer()}, "Received: GatedOptimizer"),
        (
            {"weights_optimizer": keras.optimizers.MultiOptimizer(lambda v: None), "gate_learning_rate": 1.0},
            "one learning rate.*Received: MultiOptimizer",
        ),
    ],
)
def test_optimizers_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=f"GatedOptimizer: .*{message}"):
        optimizers.GatedOptimizer(**{"weights_optimizer": "sgd", **arguments})


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """Without a get_config, which Keras needs only to save it."""

    def __call__(self, step):
        return 0.1


class MySGD(keras.optimizers.SGD):
    def __init__(self, learning_rate, secret, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.secret = secret


def local_schedule():
    class Local(Constant):
        def __init__(self, rate):
            self.rate = rate

        def get_config(self):
            return {"rate": self.rate}

    return Local(0.1)


def local_class():
    class Local(MySGD):
        def get_config(self):
            return {**super().get_config(), "secret": self.secret}

    return Local(0.1, 2)


# What Keras takes, and which of it a plain model can save.
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    "given, is_saved",
    [
        (lambda: keras.optimizers.SGD(lambda: 0.1), True),
        (lambda: keras.optimizers.SGD(Constant()), False),
        (lambda: keras.optimizers.SGD(local_schedule()), True),
        (local_class, True),
    ],
    ids=["function", "no get_config", "local schedule", "local class"],
)
def test_rates_and_classes_that_keras_cannot_find_again_step_the_gates(tmp_path, rng, given, is_saved):
    x, y = rng.normal(size=(4, 8, 8, 1)), np.zeros(4)
    plain = tiny.build((8, 8, 1), 3)
    gated = [tfnas.gate(plain, num_examples=100, **options) for options in ({"ell2": 1.0}, BOUNDED)]
    for model in (plain, *gated):
        model.compile(given(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.train_on_batch(x, y)
        with contextlib.nullcontext() if is_saved else pytest.raises(NotImplementedError):
            model.save(tmp_path / "saved.keras")
    ours, (*weights, logit) = variables(), variables()
    optimizer = optimizers.GatedOptimizer(given(), gate_learning_rate=5.0)
    stepped([(optimizer, ours), (keras.optimizers.SGD(0.1), weights), (keras.optimizers.SGD(0.5), [logit])], rng)
    assert_equal(ours, [*weights, logit])


def test_a_function_as_a_rate_is_reloaded_as_keras_does_it(tmp_path):
    supernet = tfnas.gate(tiny.build((8, 8, 1), 3), num_examples=100, ell2=1.0)
    with pytest.warns(UserWarning, match="lambda"):
        supernet.compile(keras.optimizers.SGD(lambda: 0.1), loss="mse")
        supernet.save(tmp_path / "saved.keras")
    again = keras.saving.load_model(tmp_path / "saved.keras", safe_mode=False)
    assert float(again.optimizer.learning_rate) == pytest.approx(0.1)


def test_an_optimizer_that_cannot_be_copied_is_refused_in_one_line():
    supernet = tfnas.gate(tiny.build((8, 8, 1), 3), num_examples=100, ell2=1.0)
    optimizer = MySGD(0.1, 2)
    with pytest.raises(UserError, match=r"GatedOptimizer: .*MySGD.*'secret'.*gate_step=0.05\)") as caught:
        supernet.compile(optimizer, loss="mse")
    assert "\n" not in str(caught.value) and float(optimizer.learning_rate) == pytest.approx(0.1)
    supernet.compile(optimizers.GatedOptimizer(optimizer, gate_step=0.05), loss="mse")


def decays(config, precision, gates):
    """Share by which one step without gradients shrinks each variable of a compiled model, by its path."""
    config = dataclasses.replace(config, training=Training(precision=precision)).check()
    model = tiny.build((8, 8, 1), 3)
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable.value))
    rate = schedules.search(config, 10)
    if gates:
        model = tfnas.gate(model, num_examples=100, **({"ell2": 1.0} if config.search.ell2 else BOUNDED))
        networks.compile_gated(config, model, rate)
    else:
        networks.compile_plain(config, model, rate, config.retrain.weight_decay)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
    return still(model.optimizer, model.trainable_variables)


BOUNDED = {"parameters": 0.5, "steps": 10}


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("ell2", [0.0, 50.0])
def test_search_warm_up_retraining_and_baselines_decay_kernels_and_nothing_else(ell2, precision):
    config = Config(search=Search(ell2=ell2, learning_rate=0.2), retrain=Retrain(weight_decay=0.03))
    for gates in (True, False):
        shrunk = decays(config, precision, gates)
        # The published search has ell2 in place of a weight decay.
        expected = 0 if gates and ell2 else 0.2 * 0.03
        kernels = {path for path in shrunk if path.rpartition("/")[2] == "kernel"}
        assert len(kernels) == 5 and len(shrunk) == 5 + 4 * 2 + 1 + gates * (3 if ell2 else 1)
        for path, share in shrunk.items():
            np.testing.assert_allclose(share, expected if path in kernels else 0.0, rtol=1e-4, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaled", [True, False])
def test_whatever_compiles_a_supernet_its_gates_are_never_decayed(kind, scaled):
    for options in (BOUNDED, {"ell2": 1.0}):
        supernet = tfnas.gate(tiny.build((8, 8, 1), 3), num_examples=100, **options)
        for variable in supernet.trainable_variables:
            variable.assign(tf.ones_like(variable.value))
        optimizer = made(kind)
        given = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
        supernet.compile(given, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        wrapped = supernet.optimizer.inner_optimizer if scaled else supernet.optimizer
        assert wrapped.weights_optimizer is optimizer and (supernet.optimizer is given) == scaled
        for path, share in still(supernet.optimizer, supernet.trainable_variables).items():
            spared = path.rpartition("/")[2] in ("bias", *optimizers.GATES)
            np.testing.assert_allclose(share, 0.0 if spared else 0.1 * 0.1, rtol=1e-4, err_msg=path)


def test_nothing_but_training_compiles_with_an_optimizer():
    """So that the two tests above are of every network that search, retrain, its baselines and the contest train."""
    found = set()
    for path in [*(ROOT / "tfnas").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            compiles = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "compile"
            if compiles and getattr(node.func.value, "id", "") != "re":
                if node.args or any(k.arg in ("optimizer", None) for k in node.keywords):
                    found.add(str(path.relative_to(ROOT)))
    timed = {
        f"benchmarks/{name}.py"
        for name in (
            "accelerator/lower",
            "bounds",
            "coverage",
            "found_latency",
            "gate_overhead",
            "max_drop",
            "ranking_cost",
            "train_step",
        )
    }  # their accuracy is of no interest
    measures = {"tfnas/ranking/losses.py"}  # compiles a model without layers, for its losses and metrics alone
    tried = {"tfnas/testing.py"}  # a few steps, of whose weights nothing is asked
    of_the_user = {"tfnas/shrinking/given/compiling.py"}  # with what their model is compiled with
    users = {f"benchmarks/{name}.py" for name in ("faults/shrink_digits", "shrink_cifar10")}
    trained = {"tfnas/training/networks.py", "tfnas/gating/supernet.py"}
    assert found == timed | measures | tried | of_the_user | users | trained


def cosine(step, steps, rate=0.2):
    return rate * (1 + np.cos(np.pi * step / steps)) / 2


def test_one_cosine_runs_through_warm_up_search_and_retraining():
    config = Config(search=Search(epochs=6, learning_rate=0.2), retrain=Retrain(epochs=4)).check()
    assert config.search.warmup_epochs == 2
    # 5 steps an epoch, 50 in all.
    warm_up, gated = schedules.search(config, 5), schedules.search(config, 5, 2)
    retrained = schedules.retraining(config).schedule(5)
    for step in (0, 7, 19):
        assert float(warm_up(step)) == pytest.approx(cosine(step, 50), rel=1e-5)
        assert float(gated(step)) == pytest.approx(cosine(step + 10, 50), rel=1e-5)
        assert float(retrained(step)) == pytest.approx(cosine(step + 30, 50), rel=1e-4)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(gated))
    assert float(again(7)) == float(gated(7))


def test_other_schedules_are_searchs_alone():
    config = Config(search=Search(schedule="cosine", epochs=6), retrain=Retrain(epochs=4, learning_rate=0.2)).check()
    assert float(schedules.retraining(config).schedule(5)(7)) == pytest.approx(cosine(7, 20), rel=1e-5)
    # Retraining starts where search does, unless it is told another rate.
    follows = Config(search=Search(schedule="cosine", epochs=6, learning_rate=0.05), retrain=Retrain(epochs=4)).check()
    assert float(schedules.retraining(follows).schedule(5)(7)) == pytest.approx(cosine(7, 20, 0.05), rel=1e-5)
    steps = Config(search=Search(ell2=50.0, schedule="steps", boundaries=(3.0,), warmup_epochs=2, epochs=6)).check()
    rate = schedules.search(steps, 5, 2)
    assert [float(rate(step)) for step in (0, 4, 5)] == pytest.approx([0.1, 0.1, 0.01])
