import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import random_weights

import tfnas
from tfnas.common.errors import UserError
from tfnas.ranking import fresh, ranking
from tfnas.ranking.engine import Engine
from tfnas.ranking.evaluation_log import Evaluations
from tfnas.ranking.ranking import Field, Score, rank
from tfnas.search_space.architecture import Architecture
from tfnas.supernets import multi_branch_resnet


def gated(model, rng):
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, initial_drop=0.3)
    supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return supernet


@pytest.fixture
def supernet(rng):
    return gated(tiny.build((8, 8, 1), 3), rng)


def batches(rng, number):
    images, labels = rng.normal(size=(number, 8, 8, 1)).astype("float32"), rng.integers(0, 3, number)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)  # the last batch may be smaller


def test_in_full_it_is_plain_evaluation_candidate_by_candidate(supernet, rng):
    validation = batches(rng, 50)
    candidates = supernet.posterior().sample(8, seed=0)
    result = rank(supernet, candidates, validation, racing=None, holdout=0)
    for candidate, score in zip(candidates, result.scores, strict=True):
        supernet.set_architecture(candidate)
        loss, accuracy = supernet.evaluate(validation, verbose=0)
        assert score.loss == pytest.approx(loss, rel=1e-5)
        assert score.accuracy == pytest.approx(accuracy, abs=1e-6) and score.num_examples == 50
    losses = [s.loss for s in result.scores]
    assert result.order == list(np.argsort(losses)) and result.best == candidates[int(np.argmin(losses))]
    assert result.outcome.saved == 0 and result.fresh is None
    assert repr(result).startswith(f"<Ranking of 8 candidates by loss: number {np.argmin(losses)} is best, loss ")


def test_by_accuracy(supernet, rng):
    result = rank(supernet, supernet.posterior().sample(8, seed=0), batches(rng, 50), by="accuracy", racing=None)
    accuracies = [s.accuracy for s in result.scores]
    assert accuracies[result.order[0]] == max(accuracies) and [s.num_examples for s in result.scores] == [40] * 8


def test_the_winner_is_measured_again_on_examples_held_out(supernet, rng):
    validation = batches(rng, 50)
    result = rank(supernet, supernet.posterior().sample(4, seed=0), validation, racing=None, holdout=0.3, seed=5)
    images, labels = (np.concatenate(part) for part in zip(*validation.as_numpy_iterator(), strict=True))
    fresh = np.random.default_rng(5).permutation(50)[35:]
    supernet.set_architecture(result.best)
    loss, accuracy = supernet.evaluate(images[fresh], labels[fresh], verbose=0)
    assert result.fresh.num_examples == 15
    assert result.fresh.loss == pytest.approx(loss, rel=1e-4) and result.fresh.accuracy == pytest.approx(accuracy)


def test_racing_finds_the_winner_of_the_full_ranking_with_fewer_evaluations(rng):
    supernet = gated(multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4), rng)
    candidates = supernet.posterior().sample(40, seed=0)
    # Labels that one candidate gives to most examples, so that there is something to win.
    images = rng.normal(size=(800, 8, 8, 1)).astype("float32")
    supernet.set_architecture(candidates[17])
    labels = np.asarray(supernet(images, training=False)).argmax(1)
    validation = tf.data.Dataset.from_tensor_slices((images, labels)).batch(100)
    full = rank(supernet, candidates, validation, racing=None, holdout=0)
    raced = rank(supernet, candidates, validation, holdout=0)
    assert full.outcome.winner == raced.outcome.winner == 17
    assert raced.outcome.saved > 0.4
    # Sums in float32 of other parts of the examples.
    raced_loss, full_loss = raced.scores[17].loss, full.scores[17].loss
    assert raced_loss == pytest.approx(full_loss, rel=1e-6)
    assert raced.scores[17] == dataclasses.replace(full.scores[17], loss=raced_loss)


def test_finalists_limit_a_race_but_not_an_evaluation_in_full(supernet, rng):
    candidates = supernet.posterior().sample(8, seed=0)
    validation = rng.normal(size=(400, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 400)
    # So large a loss that the bound proves nothing.
    raced = rank(supernet, candidates, validation, holdout=0, finalists=2, largest_loss=1e6)
    assert raced.outcome.unproven == raced.outcome.num_examples.count(100) + raced.outcome.num_examples.count(200) >= 5
    assert f"{raced.outcome.unproven} candidates dropped unproven" in repr(raced)
    full = rank(supernet, candidates, validation, holdout=0, finalists=2, racing=None)
    assert full.outcome.num_examples == [400] * 8 and full.outcome.unproven == 0
    assert [raced.scores[i] for i in raced.outcome.survivors] == [full.scores[i] for i in raced.outcome.survivors]


def test_races_know_the_largest_loss_or_prove_nothing(supernet, rng, monkeypatch, capsys):
    told = []
    race = ranking.race

    def noted(values, count, examples, confidence, tolerance, finalists, excluded, largest):
        told.append((confidence, largest))
        return race(values, count, examples, confidence, tolerance, finalists, excluded, largest)

    monkeypatch.setattr(ranking, "race", noted)
    candidates = supernet.posterior().sample(3, seed=0)
    images, labels = rng.normal(size=(250, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 250)
    weights = rng.uniform(1, 50, 250).astype("float32")
    rank(supernet, candidates, (images, labels, weights))
    rank(supernet, candidates, (images, labels, weights), by="accuracy")
    assert told == [(0.95, pytest.approx(weights.max() * np.log(1e7), rel=1e-5)), (0.95, 1.0)]
    assert capsys.readouterr().out == ""
    told.clear()
    supernet.compile(loss="mse")
    targets = np.eye(3)[labels]
    assert rank(supernet, candidates, (images, targets)).outcome.saved == 0
    assert "rank: no candidate is proven to be worse than another" in " ".join(capsys.readouterr().out.split())
    rank(supernet, candidates, (images, targets), racing=None)
    rank(supernet, candidates, (images, targets), largest_loss=9.0)
    assert [confidence for confidence, _ in told] == [None, None, 0.95] and told[-1] == (0.95, 9.0)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="race: largest must be the largest loss of one example"):
        rank(supernet, candidates, (images, targets), largest_loss=-1.0)


def test_a_candidate_without_a_path_never_wins(supernet, rng):
    some = supernet.posterior().sample(2, seed=0)
    none = Architecture({name: np.zeros_like(mask) for name, mask in some[0].items()})
    supernet.network.layers[-1].bias.assign([50.0, 0, 0])  # whose constant answer would be right
    validation = batches(rng, 30).map(lambda x, y: (x, tf.zeros_like(y)))
    assert rank(supernet, [none, *some], validation, racing=None).best != none
    with pytest.raises(UserError, match="all 1 are excluded"):
        rank(supernet, [none], validation)


def test_nothing_is_evaluated_twice(supernet, rng, tmp_path, monkeypatch):
    candidates = supernet.posterior().sample(6, seed=0)
    candidates += candidates[:2]  # drawn twice
    engine = Engine(supernet, batches(rng, 300), batch_size=64, seed=0)
    asked = []
    evaluate = engine.evaluate
    monkeypatch.setattr(engine, "evaluate", lambda a, *s: (asked.append((len(a), *s)), evaluate(a, *s))[1])
    with Evaluations(tmp_path / "e.jsonl", "key") as kept:
        one = Field(engine, kept, candidates, "loss").race(0.95, 0.5)
        assert asked[0] == (6, 0, 150)
    asked.clear()
    with Evaluations(tmp_path / "e.jsonl", "key") as kept:
        assert Field(engine, kept, candidates, "loss").race(0.95, 0.5) == one
    assert asked == []


@pytest.mark.slow
def test_devices_of_a_strategy_share_the_candidates():
    """Two logical CPUs, in a process of their own: the same scores as one device gives."""
    import subprocess
    import sys

    code = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np, tfnas
from tfnas.ranking.engine import Engine
rng = np.random.default_rng(0)
supernet = tfnas.gate(tfnas.supernets.multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4), ell2=1, num_examples=10)
supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images, labels = rng.normal(size=(50, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 50)
validation = tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)
candidates = supernet.posterior().sample(7, seed=0)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
engine = Engine(supernet, validation, 20, strategy=strategy)
used = set()
device = tf.device
tf.device = lambda name: (used.add(name), device(name))[1]
def losses(engine):
    return sorted((e.number, e.start, e.figures["loss"].tolist()) for e in engine.evaluate(candidates))
found = losses(engine)
assert len(used) == 2 and len(found) == 21, used
one = losses(Engine(supernet, validation, 20))
assert found == one
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_mean_and_deviation_by_hand():
    found = fresh.summary([Score(1.0, 0.5, 10), Score(3.0, 0.7, 10)])
    assert found["mean_metric"] == pytest.approx(0.6) and found["std_metric"] == pytest.approx(0.1)
    assert (found["mean_loss"], found["std_loss"]) == (2.0, 1.0)


def test_nothing_to_rank_is_refused(supernet, rng):
    validation = batches(rng, 50)
    one = supernet.posterior().sample(1, 0)
    with pytest.raises(UserError, match="at least one candidate"):
        rank(supernet, [], validation)
    with pytest.raises(UserError, match="rank: .* at least one batch of validation data"):
        rank(supernet, one, validation.take(0))
    with pytest.raises(UserError, match="by='luck' needs exactly one output with a compiled metric of that name"):
        rank(supernet, one, validation, by="luck")
    with pytest.raises(UserError, match="holdout must be a share .* Received: 1"):
        rank(supernet, one, validation, holdout=1)
    with pytest.raises(UserError, match="confidence must lie between 0 and 1"):
        rank(supernet, one, validation, racing=1.5)
