import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights

import tfnas
from tfnas import ranking
from tfnas.errors import UserError
from tfnas.ranking import Ranking, Score, rank
from tfnas.supernets import multi_branch_resnet


@pytest.fixture
def supernet(rng):
    model = multi_branch_resnet(4, 1, 3, (8, 8, 1), stem_width=4)
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10, initial_drop=0.3)
    supernet.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return supernet


@pytest.fixture
def validation(rng):
    images, labels = rng.normal(size=(50, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 50)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)  # the last batch is smaller


def test_fast_engine_agrees_with_evaluate_candidate_by_candidate(supernet, validation):
    candidates = supernet.posterior().sample(8, seed=0)
    result = rank(supernet, candidates, validation)
    for candidate, score in zip(candidates, result.scores, strict=True):
        supernet.set_architecture(candidate)
        loss, accuracy = supernet.evaluate(validation, verbose=0)
        assert score.loss == pytest.approx(loss, rel=1e-5)
        assert score.accuracy == pytest.approx(accuracy, abs=1e-6)
    losses = [s.loss for s in result.scores]
    assert result.order == list(np.argsort(losses)) and result.best == candidates[int(np.argmin(losses))]


def test_one_program_for_all_candidates(supernet, validation):
    evaluator = ranking.Evaluator(supernet, validation)
    for candidate in supernet.posterior().sample(5, seed=0):
        evaluator(candidate)
    assert evaluator.num_traces == 1


def test_architecture_in_use_is_restored(supernet, validation):
    before = supernet.posterior().sample(1, seed=9)[0]
    supernet.set_architecture(before)
    rank(supernet, supernet.posterior().sample(2, seed=0), validation)
    assert supernet.architecture() == before


def test_order_by_hand():
    scores = [Score(0.5, 0.8), Score(float("nan"), 0.9), Score(0.4, 0.7), Score(0.5, 0.85)]
    assert ranking.order(scores, "loss") == [2, 3, 0, 1]
    assert ranking.order(scores, "accuracy") == [1, 3, 0, 2]
    assert Ranking(["a", "b", "c", "d"], scores, "accuracy").best == "b"
    with pytest.raises(UserError, match="'loss' or 'accuracy'. Received: 'luck'"):
        ranking.order(scores, "luck")


def test_summary_by_hand():
    found = ranking.summary([Score(1.0, 0.5), Score(3.0, 0.7)], "loss")
    assert found["mean_accuracy"] == pytest.approx(0.6) and found["std_accuracy"] == pytest.approx(0.1)
    assert (found["mean_loss"], found["best_loss"], found["best_accuracy"], found["count"]) == (2.0, 1.0, 0.5, 2)


def test_nothing_to_rank_is_refused(supernet, validation):
    with pytest.raises(UserError, match="at least one candidate"):
        rank(supernet, [], validation)
    with pytest.raises(UserError, match="validation data is empty"):
        rank(supernet, supernet.posterior().sample(1, 0), validation.take(0))
    fresh = tfnas.gate(multi_branch_resnet(4, 1, 3, (8, 8, 1)), ell2=1, num_examples=10)
    with pytest.raises(UserError, match="must be compiled"):
        rank(fresh, fresh.posterior().sample(1, 0), validation)
