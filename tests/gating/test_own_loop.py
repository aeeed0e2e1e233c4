"""Supernets in training loops of one's own, in Keras's Distiller, and with users' callbacks."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_unit_training import LOSS, STEPS, compiled, data, gated, model_of

import tfnas
from tfnas.common.errors import UserError
from tfnas.graph.costs import cost


def taken(supernet, after_step=True, regularizer=True):
    """STEPS steps in a loop as people write it."""
    optimizer = tfnas.GatedOptimizer(keras.optimizers.SGD(0.05, momentum=0.9))
    optimizer.build(supernet.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = LOSS(labels, supernet(images, training=True))
            loss += tf.add_n(supernet.losses) if regularizer else 0.0
        variables = supernet.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for images, labels in data().repeat().take(STEPS):
        step(images, labels)
        if after_step:
            supernet.after_step()
    return supernet


@pytest.mark.parametrize("importance", ["gates", "curvature"])
def test_a_loop_of_ones_own_learns_what_fit_does(importance):
    by_hand = taken(gated(importance))
    fitted = compiled(gated(importance))
    fitted.fit(data().repeat(), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    assert fitted.learning.steps_taken.numpy() == by_hand.learning.steps_taken.numpy() == STEPS
    for mine, keras_s in zip(by_hand.variables, fitted.variables, strict=True):
        np.testing.assert_allclose(mine, keras_s, rtol=1e-4, atol=1e-5, err_msg=mine.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert by_hand.posterior().mode() == fitted.posterior().mode()


def test_multipliers_that_stand_still_are_reported_once(tmp_path):
    supernet = gated("gates")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supernet.posterior()  # nothing was trained
    taken(supernet, after_step=False)
    with pytest.warns(UserWarning, match=r"stood still: call supernet.after_step\(\)") as found:
        supernet.posterior()
        supernet.save(tmp_path / "supernet.keras")
    (only,) = [w for w in found if "stood still" in str(w.message)]
    assert only.filename == __file__
    with pytest.warns(UserWarning, match="stood still"):
        tfnas.load(tmp_path / "supernet.keras").save(tmp_path / "again.keras")


def test_a_loss_without_the_regularizer_is_reported():
    with pytest.warns(UserWarning, match=r"not in the loss: add sum\(supernet.losses\)"):
        taken(gated("gates"), regularizer=False).posterior()


def test_within_a_graph_there_is_no_step_to_follow():
    with pytest.raises(UserError, match="within a tf.function; call it once after every step, outside"):
        tf.function(gated("curvature").after_step, autograph=False)()


class Distiller(keras.distillation.Distiller):
    """Keras's own, which leaves out the losses that layers add."""

    def compute_loss(self, *arguments, **keywords):
        return super().compute_loss(*arguments, **keywords) + sum(self.student.losses)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
@pytest.mark.parametrize("importance, distiller", [("gates", Distiller), ("curvature", keras.distillation.Distiller)])
def test_a_distiller_with_a_supernet_as_student(importance, distiller):
    supernet, teacher = gated(importance), model_of()
    teaching = distiller(teacher, supernet, keras.distillation.LogitsDistillation())
    teaching.compile(tfnas.GatedOptimizer(keras.optimizers.SGD(0.05)), LOSS)
    hook = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: supernet.after_step())
    teaching.fit(data().repeat(), steps_per_epoch=STEPS, verbose=0, callbacks=[hook])
    assert supernet.learning.steps_taken.numpy() == STEPS
    posterior = supernet.posterior()
    assert cost(supernet.graph, posterior.mode()).parameters <= 0.6 * cost(supernet.graph).parameters
    if importance == "gates":
        assert (supernet.learning.multipliers.numpy() > 0.1).all()
        assert posterior.expected_share() < gated("gates").posterior().expected_share() - 0.02
    else:
        assert supernet.learning.expected_shares().numpy()[0] < 0.61


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
@pytest.mark.parametrize("importance", ["gates", "curvature"])
def test_a_backup_restores_an_interrupted_fit(importance, tmp_path):
    class Interrupted(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fitted(*callbacks):
        supernet = compiled(gated(importance))
        return supernet, lambda: supernet.fit(data(), epochs=4, shuffle=False, verbose=0, callbacks=[*callbacks])

    backup = keras.callbacks.BackupAndRestore
    with pytest.raises(KeyboardInterrupt):
        fitted(backup(tmp_path), Interrupted())[1]()
    resumed, resume = fitted(backup(tmp_path))
    assert len(resume().epoch) == 2
    expected, fit = fitted()
    fit()
    for mine, whole in zip(resumed.variables, expected.variables, strict=True):
        np.testing.assert_allclose(mine, whole, rtol=1e-4, atol=1e-5, err_msg=mine.path)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
def test_early_stopping_restores_the_best_weights():
    supernet, seen = compiled(gated("gates"), metrics=["accuracy"]), []
    # What falls is the metric that is watched, so that the first epoch is the best.
    watched = keras.callbacks.EarlyStopping("parameters", mode="max", patience=1, restore_best_weights=True)
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(np.array(supernet.draw.keep_logit)))
    history = supernet.fit(data().repeat(), steps_per_epoch=8, epochs=5, verbose=0, callbacks=[watched, note])
    assert 1 < len(history.epoch) < 5
    best = int(np.argmax(history.history["parameters"]))
    np.testing.assert_array_equal(supernet.draw.keep_logit, seen[best])
