"""Ranks and metrics against figures worked out by hand, and against the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.metrics import beyond_accuracy, paired_bootstrap, question_values, rank_report, target_ranks


def ranks(scores, targets, seen=None, seed=0):
    return target_ranks(np.array(scores, dtype=np.float32), np.array(targets), seen, np.random.default_rng(seed))


def test_a_rank_counts_better_items_the_user_has_not_had():
    scores = [[0.1, 0.9, 0.5, 0.7], [3.0, 2.0, 1.0, 0.0]]
    assert ranks(scores, [2, 3]).tolist() == [3, 4]
    assert ranks(scores, [2, 3], [np.array([1, 1, 0]), np.array([], dtype=int)]).tolist() == [2, 4]


def test_a_target_the_user_already_had_cannot_be_hit():
    assert ranks([[0.1, 0.9, 0.5]], [1], [np.array([1])]).tolist() == [4]


def test_nan_anywhere_is_an_error_that_names_the_question():
    scores = np.zeros((3, 4))
    scores[1, 3] = np.nan
    with pytest.raises(ValueError, match="question 1 hold NaN"):
        ranks(scores, [0, 0, 0])
    with pytest.raises(ValueError, match="a target lies outside the 4 items"):
        ranks(np.zeros((1, 4)), [4])


def test_equal_scores_give_recall_k_over_n_and_not_one():
    items, questions = 40, 8000
    found = ranks(np.zeros((questions, items)), np.full(questions, 7), [np.array([1, 2])] * questions)
    assert abs((found <= 10).mean() - 10 / 38) < 0.02
    assert set(found.tolist()) == set(range(1, 39))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_rank_lies_between_the_best_and_the_worst_place_among_equals(items, batch, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, size=(batch, items)).astype(np.float32)
    targets = rng.integers(0, items, size=batch)
    seen = [np.setdiff1d(rng.integers(0, items, size=3), targets[b]) for b in range(batch)]
    found = target_ranks(scores, targets, seen, rng)
    for b in range(batch):
        open_rows = np.setdiff1d(np.arange(items), seen[b])
        better = int((scores[b, open_rows] > scores[b, targets[b]]).sum())
        at_least = int((scores[b, open_rows] >= scores[b, targets[b]]).sum())
        assert better + 1 <= found[b] <= at_least


def test_metrics_by_hand():
    values = question_values(np.array([1, 3, 10, 11, 200]))
    assert values["recall@5"].tolist() == [1, 1, 0, 0, 0]
    assert values["recall@10"].tolist() == [1, 1, 1, 0, 0]
    assert values["recall@20"].tolist() == [1, 1, 1, 1, 0]
    assert values["ndcg@10"].tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0, 0])
    assert values["mrr"].tolist() == pytest.approx([1, 1 / 3, 0.1, 1 / 11, 1 / 200])
    for wrong in (np.array([], dtype=int), np.array([0, 1])):
        with pytest.raises(ValueError, match="ranks start at 1"):
            question_values(wrong)


def test_intervals_hold_the_mean_shrink_with_questions_and_repeat_with_the_seed():
    rng = np.random.default_rng(3)
    few, many = rng.integers(1, 40, size=100), rng.integers(1, 40, size=6400)
    small, large = rank_report(few)["recall@10"], rank_report(many)["recall@10"]
    interval_few, interval_many = rank_report(few).accuracy["recall@10"], rank_report(many).accuracy["recall@10"]
    assert interval_few.low < small < interval_few.high and interval_many.low < large < interval_many.high
    assert (interval_few.high - interval_few.low) / (interval_many.high - interval_many.low) == pytest.approx(
        8, rel=0.3
    )
    expected = 2 * 1.96 * math.sqrt(large * (1 - large) / 6400)  # the normal approximation of the same interval
    assert interval_many.high - interval_many.low == pytest.approx(expected, rel=0.15)
    assert rank_report(few, seed=1).accuracy == rank_report(few, seed=1).accuracy != rank_report(few, seed=2).accuracy


def test_a_paired_comparison_sees_a_small_steady_gain_and_no_gain_in_a_reshuffle():
    rng = np.random.default_rng(4)
    before = rng.integers(1, 60, size=1500)
    better = np.maximum(before - (rng.random(1500) < 0.2) * 3, 1)
    gain = paired_bootstrap(better, before)["ndcg@10"]
    assert 0 < gain.low < gain.difference < gain.high and gain.p_value < 0.01
    none = paired_bootstrap(rng.permutation(before), before)["ndcg@10"]
    assert none.low < 0 < none.high and none.p_value > 0.05
    with pytest.raises(ValueError, match="1500 and 3 questions"):
        paired_bootstrap(before, before[:3])


def test_beyond_accuracy_by_hand():
    popularity = np.array([7, 3, 0, 0])
    top = np.array([[0, 1], [0, -1]])
    found = beyond_accuracy(top, popularity, np.array([3.0, 7.0]))
    assert found["coverage@2"] == 0.5
    share = [8 / 14, 4 / 14]
    assert found["novelty@2"] == pytest.approx(-(2 * math.log2(share[0]) + math.log2(share[1])) / 3)
    assert found["popularity_lift@2"] == pytest.approx((17 / 3) / 5 - 1)
    with pytest.raises(ValueError, match="hold no item"):
        beyond_accuracy(np.array([[-1]]), popularity)


def test_a_report_is_plain_data_with_every_cut():
    report = rank_report(np.array([1, 30]), top_rows_TK=np.array([[0], [1]]), popularity_N=np.array([1, 1]))
    data = report.to_dict()
    assert data["questions"] == 2 and data["recall@5"]["value"] == 0.5 == report["recall@5"]
    assert {"recall@10", "ndcg@20", "mrr", "coverage@1", "novelty@1"} <= set(data)
