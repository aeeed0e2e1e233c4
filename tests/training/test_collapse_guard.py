"""A posterior that has dropped everything, and one that does not move, are told while the search runs."""

import keras
import numpy as np
import pytest
from tiny import batches

import tfnas
from tfnas.common.errors import UserError
from tfnas.config import Retrain, Search
from tfnas.runs.checkpoints import Checkpoints
from tfnas.runs.workdir import Workdir
from tfnas.training import loop, networks
from tfnas.training.collapse_guard import Guard

STOP = dict(epochs=40, ell2=500.0, gate_learning_rate=10.0)


def network(skip=False):
    image = keras.Input((8, 8, 1), name="image")
    start = x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(image)
    for name in ("one", "two", "three"):
        x = keras.layers.Conv2D(8, 3, padding="same", name=name)(x)
    x = keras.layers.Add(name="add")([start, x]) if skip else x
    return keras.Model(image, keras.layers.Dense(3, name="classifier")(keras.layers.GlobalMaxPooling2D(name="max")(x)))


def made(skip=False, **settings):
    settings = Search(**{**STOP, **settings}).resolved(Retrain(), trained=False)
    supernet = tfnas.gate(network(skip), ell2=10, num_examples=100, initial_drop=settings.initial_drop)
    return supernet, Guard(settings, supernet, seed=0)


def drop(supernet, **probabilities):
    for name, p in probabilities.items():
        supernet.gated_layers[name].drop_logit.assign([np.log(p) - np.log1p(-p)])


ALL = {"one": 0.9999, "two": 0.9999, "three": 0.9999}


def test_collapsed_stops_with_cause_and_remedy():
    supernet, guard = made()
    guard.begin()
    drop(supernet, **ALL)
    with pytest.raises(UserError) as caught:
        guard.check(4)
    assert str(caught.value) == (
        "search stopped at epoch 4: 100 % of the gated channels are dropped and no path to the output is left "
        "(collapsed). Usually the gates' learning rate (now 10 x the weights') or ell2 (500) is too high; try "
        "--config.search.gate_learning_rate=5 or --config.search.ell2=250, in another --workdir. "
        "The last good checkpoint is epoch 3"
    )
    with pytest.raises(UserError, match="There was no checkpoint yet"):
        guard.check(1)


def test_the_papers_gate_learning_rate_is_not_lowered():
    supernet, guard = made(gate_learning_rate=1.0)
    drop(supernet, **ALL)
    with pytest.raises(UserError, match="too high; try --config.search.ell2=250, in"):
        guard.check(4)


def test_one_layer_that_closes_the_only_path_is_a_collapse():
    supernet, guard = made()
    drop(supernet, three=0.9999)
    with pytest.raises(UserError, match=r"epoch 2: 40 % of the gated"):  # (0.1 + 0.1 + 0.9999) / 3
        guard.check(2)


@pytest.mark.parametrize("p", [0.6, 0.8])
def test_small_and_undecided_is_no_collapse(p, capsys):
    """The mode drops everything; a sample keeps 1 - p of the channels and has a path, as 1 - (1 - 0.8^8)^3 says."""
    supernet, guard = made()
    drop(supernet, **{name: p for name in ALL})
    assert not supernet.graph.flow(supernet.posterior().mode()).reaches_outputs()
    guard.check(4)
    assert not capsys.readouterr().out


def test_warn_tells_once_and_goes_on(capsys):
    supernet, guard = made(guard="warn")
    drop(supernet, **ALL)
    for epoch in (4, 5, 6):
        guard.check(epoch)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith("search: at epoch 4, 100 % of the gated channels are dropped and no path")
    assert "--config.search.ell2=250" in printed and "stopped" not in printed


def test_off_says_nothing(capsys):
    supernet, guard = made(guard="off", initial_drop=0.9999, epochs=12)
    guard.begin()
    guard.check(3)
    assert not capsys.readouterr().out


def test_where_ungated_layers_lead_on_it_is_told_and_never_stops(capsys):
    supernet, guard = made(skip=True)
    drop(supernet, **ALL)
    guard.check(4)
    guard.check(5)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "only layers without gates still have a path. Usually" in printed


def test_an_initial_drop_without_a_path_is_refused_before_the_first_step(capsys):
    _, guard = made(initial_drop=0.9999)
    with pytest.raises(UserError, match=r"initial_drop \(0.9999\) leaves no path .*initial_drop=0.1, or .*guard=off"):
        guard.begin()
    _, guard = made(initial_drop=0.9999, guard="warn")
    guard.begin()
    guard.check(1)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "search.initial_drop (0.9999) leaves no path" in printed


@pytest.mark.parametrize("epochs, told", [(4, [3]), (12, [3]), (13, [4]), (40, [10]), (2, [])])
def test_frozen_is_told_once_after_a_quarter_of_the_epochs(epochs, told, capsys):
    supernet, guard = made(epochs=epochs, gate_learning_rate=0.1, ell2=50.0)
    drop(supernet, one=0.1009)
    heard = []
    for epoch in range(1, epochs + 1):
        guard.check(epoch)
        if printed := capsys.readouterr().out:
            heard.append(epoch)
            assert "(frozen)" in printed and "too small for so few epochs" in printed
            assert "try --config.search.gate_learning_rate=10 or --config.search.ell2=500," in printed
    assert heard == told


@pytest.mark.parametrize("start, now", [(0.1, 0.1011), (0.1, 0.0989), (0.9, 0.9011)])
def test_a_gate_that_moved_is_not_frozen(start, now, capsys):
    supernet, guard = made(initial_drop=start, guard="warn")
    drop(supernet, three=now)
    guard.check(10)
    assert "frozen" not in capsys.readouterr().out


def test_with_bounds_nothing_collapses_and_gates_that_do_not_move_are_told(capsys):
    settings = Search(epochs=12, warmup_epochs=0, importance="gates").resolved(Retrain(), trained=False)
    supernet = tfnas.gate(network(), **settings.bounds, steps=10, num_examples=100)
    guard = Guard(settings, supernet, seed=0)
    guard.begin()
    supernet.draw.keep_logit.assign(np.full(supernet.draw.keep_logit.shape, -9.0))
    for epoch in (1, 2, 3):
        guard.check(epoch)
    assert not capsys.readouterr().out
    start = np.log(1 - settings.initial_drop) - np.log(settings.initial_drop)
    supernet.draw.keep_logit.assign(np.full(supernet.draw.keep_logit.shape, start))
    guard.check(3)
    printed = " ".join(capsys.readouterr().out.split())
    assert "(frozen). Usually the gates' steps (now 0.05) are too short" in printed
    assert "try --config.search.gate_step=0.5, in another --workdir" in printed


def test_the_collapsed_epoch_is_not_saved(tmp_path):
    networks.set_seed(0)
    supernet, guard = made(epochs=4)
    supernet.compile(
        keras.optimizers.SGD(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    def collapse(history):
        if len(history) == 2:
            drop(supernet, **ALL)

    with pytest.raises(UserError, match=r"search stopped at epoch 3: .* The last good checkpoint is epoch 2"):
        checkpoints = Checkpoints(Workdir(tmp_path), "checkpoints", "key")
        step = loop.Step(supernet)
        loop.train(step, supernet, batches, 4, 4, 3, checkpoints, "search", check=guard.check, on_epoch=collapse)
    assert [record["epoch"] for record in checkpoints.latest().record["history"]] == [1, 2]
