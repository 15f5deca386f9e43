from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.metrics import auc, gauc, grouped_auc


def auc_by_pairs(label, score, weight):
    won = total = 0.0
    for i in np.flatnonzero(label == 1):
        for j in np.flatnonzero(label == 0):
            pair = weight[i] * weight[j]
            total += pair
            won += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return won / total


@st.composite
def samples(draw):
    """Draw rows with few distinct scores, so that there are many ties, and with both classes."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = rng.integers(0, 2, n)
    label[:2] = 0, 1
    score = rng.integers(0, draw(st.integers(1, 12)), n) / 4 - 1
    return label, score, rng.integers(0, draw(st.integers(1, 6)), n), rng.integers(1, 4, n).astype(float)


@settings(max_examples=40, deadline=None)
@given(samples())
def test_auc_equals_counting_pairs(sample):
    label, score, _, weight = sample
    assert auc(label, score) == pytest.approx(auc_by_pairs(label, score, np.ones(len(label))), abs=1e-12)
    assert auc(label, score, weight) == pytest.approx(auc_by_pairs(label, score, weight), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(samples())
def test_a_weight_of_two_is_a_row_written_twice(sample):
    label, score, _, weight = sample
    times = weight.astype(int)
    assert auc(label, score, weight) == pytest.approx(auc(np.repeat(label, times), np.repeat(score, times)), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(samples())
def test_gauc_equals_the_loop_over_users(sample):
    label, score, user, _ = sample
    areas, rows, skipped = [], [], 0
    for u in np.unique(user):
        mine = user == u
        if len(set(label[mine])) == 2:
            areas.append(auc_by_pairs(label[mine], score[mine], np.ones(mine.sum())))
            rows.append(mine.sum())
        else:
            skipped += 1
    result = grouped_auc(label, score, user)
    assert (result.users, result.users_skipped) == (len(areas), skipped)
    assert (result.rows, result.rows_skipped) == (sum(rows), len(label) - sum(rows))
    if areas:
        assert result.value == pytest.approx(np.average(areas, weights=rows), abs=1e-12)
    else:
        assert np.isnan(result.value)


def test_auc_by_hand():
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auc([0, 1], [0.3, 0.3]) == 0.5
    assert auc([1, 0, 0], [0.5, 0.5, 0.1], [1, 3, 1]) == (0.5 * 3 + 1) / 4


def test_auc_ignores_any_rising_map_and_the_row_order():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 500), rng.integers(0, 50, 500).astype(np.float32)
    order = rng.permutation(500)
    assert auc(label, score) == auc(label, np.exp(score / 10)) == auc(label[order], score[order])


def test_users_may_be_strings_and_in_any_order():
    label, score = [1, 0, 0, 1], [0.9, 0.8, 0.1, 0.2]
    assert gauc(label, score, ["ann", "bob", "ann", "bob"]) == 0.5


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_is_refused(value):
    with pytest.raises(
        DataError, match=rf"(?s)column 'label': 3 rows that are all {value}.*each class.*Check the rule"
    ):
        auc([value] * 3, [0.1, 0.2, 0.3])


def test_gauc_without_a_two_class_user_is_refused_but_grouped_auc_is_nan():
    label, score, user = [1, 0], [0.1, 0.2], [1, 2]
    assert grouped_auc(label, score, user).users == 0
    with pytest.raises(DataError, match="none of 2 users has rows of both classes"):
        gauc(label, score, user)


@pytest.mark.parametrize(
    ("label", "score", "says"),
    [
        ([0, 1], [0.1, np.nan], "column 'score': 1 values that are NaN or infinite .first at row 1."),
        ([0, 2], [0.1, 0.2], "column 'label': the value 2 at row 1; expected 0 or 1"),
        ([0, 1], [0.1], "column 'score': 1 rows; expected 2 rows"),
        ([], [], "column 'label': no rows"),
        ([[0, 1]], [[0.1, 0.2]], "column 'label': an array of shape"),
        ([0, 1], ["a", "b"], "column 'score': values of type"),
    ],
)
def test_columns_that_cannot_be_used(label, score, says):
    with pytest.raises(DataError, match=says):
        auc(label, score)


def test_weights_must_reach_both_classes():
    with pytest.raises(DataError, match="no weight on one of the two classes"):
        auc([0, 1], [0.1, 0.2], [0, 1])
    with pytest.raises(DataError, match="weights from -1"):
        auc([0, 1], [0.1, 0.2], [-1, 1])


def test_gauc_is_fast():
    rng = np.random.default_rng(0)
    label, score, user = rng.integers(0, 2, 100_000), rng.random(100_000), rng.integers(0, 10_000, 100_000)
    start = time.process_time()
    gauc(label, score, user)
    assert time.process_time() - start < 0.2
