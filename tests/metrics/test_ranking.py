from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import ConfigError, DataError
from longrec.metrics import (
    coverage,
    ctr_at_k,
    gini,
    hit_rate_at_k,
    intra_list_diversity,
    lists_skipped,
    mrr,
    ndcg_at_k,
    novelty,
    recall_at_k,
    value_share_at_k,
)

# List 1 in rank order: 0 2 1 0; list 2: 0 1; list 3 holds nothing relevant.
RELEVANCE = [1, 0, 2, 0, 1, 0, 0, 0]
SCORE = [0.2, 0.9, 0.5, 0.1, 0.3, 0.6, 0.7, 0.8]
LIST = [1, 1, 1, 1, 2, 2, 3, 3]


def test_by_hand():
    ideal = 3 / np.log2(2) + 1 / np.log2(3)
    first, second = (3 / np.log2(3) + 1 / np.log2(4)) / ideal, 1 / np.log2(3)
    assert ndcg_at_k(RELEVANCE, SCORE, LIST, k=3) == pytest.approx((first + second) / 2)
    assert ndcg_at_k(RELEVANCE, SCORE, LIST, k=1) == 0
    assert hit_rate_at_k(RELEVANCE, SCORE, LIST, k=1) == 0
    assert hit_rate_at_k(RELEVANCE, SCORE, LIST, k=2) == 1
    assert recall_at_k(RELEVANCE, SCORE, LIST, k=2) == (0.5 + 1) / 2
    assert mrr(RELEVANCE, SCORE, LIST) == 0.5
    assert lists_skipped(RELEVANCE, LIST) == 1


def test_a_constant_score_earns_nothing_by_row_order():
    for relevance in ([1, 0, 0], [0, 0, 1]):
        assert hit_rate_at_k(relevance, [0.5] * 3, [1] * 3, k=1) == 0
        assert mrr(relevance, [0.5] * 3, [1] * 3) == pytest.approx(1 / 3)


def by_loop(relevance, score, lists, k):
    """Compute NDCG, hit rate, recall and reciprocal rank by a loop."""
    rows = []
    for one in set(lists):
        mine = [i for i in range(len(lists)) if lists[i] == one]
        if not any(relevance[i] for i in mine):
            continue
        order = sorted(mine, key=lambda i: (-score[i], relevance[i]))
        gains = [2.0 ** relevance[i] - 1 for i in order]
        dcg = sum(g / np.log2(r + 2) for r, g in enumerate(gains[:k]))
        ideal = sum(g / np.log2(r + 2) for r, g in enumerate(sorted(gains, reverse=True)[:k]))
        hits = [relevance[i] > 0 for i in order]
        rows.append((dcg / ideal, float(any(hits[:k])), sum(hits[:k]) / sum(hits), 1 / (hits.index(True) + 1)))
    return np.mean(rows, axis=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_equals_the_loop(rows, k, seed):
    rng = np.random.default_rng(seed)
    relevance, score, lists = rng.integers(0, 3, rows), rng.integers(0, 8, rows), rng.integers(0, 6, rows)
    relevance[0] = 1
    measured = [measure(relevance, score, lists, k) for measure in (ndcg_at_k, hit_rate_at_k, recall_at_k)]
    expected = by_loop(relevance.tolist(), score.tolist(), lists.tolist(), k)
    np.testing.assert_allclose([*measured, mrr(relevance, score, lists)], expected, atol=1e-12)


def test_business_by_hand():
    clicked = [1, 0, 0, 0, 1, 0, 0, 0]
    assert ctr_at_k(clicked, SCORE, LIST, k=1) == 0
    assert ctr_at_k(clicked, SCORE, LIST, k=2) == 1 / 6
    assert value_share_at_k([10, 0, 20, 0, 30, 0, 0, 0], SCORE, LIST, k=2) == 50 / 60


def test_diversity_by_hand():
    assert coverage(["a", "b", "a"], catalog=10) == 0.2
    assert gini([5, 5, 5]) == 0
    assert gini([0, 1]) == 0.5
    assert gini([1, 2, 3]) == pytest.approx(2 / 9)
    assert novelty([1.0, 0.25]) == 1.0


def test_intra_list_diversity_equals_the_pairs():
    rng = np.random.default_rng(0)
    v, lists = rng.normal(size=(12, 4)), np.repeat([1, 2, 3], [5, 6, 1])
    v[2] = 0
    unit = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300)
    means = []
    for one in (1, 2):  # list 3 has one item, so no pair
        u = unit[lists == one]
        means.append(np.mean([1 - u[i] @ u[j] for i in range(len(u)) for j in range(len(u)) if i != j]))
    assert intra_list_diversity(v, lists) == pytest.approx(np.mean(means))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ndcg_at_k([1, 0], [1, 2], [1, 1], k=0), ConfigError, "at least 1, got 0"),
        (lambda: ctr_at_k([1, 0], [1, 2], [1, 1], k=0), ConfigError, "at least 1, got 0"),
        (lambda: recall_at_k([0, 0], [1, 2], [1, 1], k=1), DataError, "nothing relevant in 2 rows"),
        (lambda: mrr([-1, 1], [1, 2], [1, 1]), DataError, "grades of 0 or more"),
        (lambda: value_share_at_k([0, 0], [1, 2], [1, 1], k=1), DataError, "one positive"),
        (lambda: coverage([1, 2, 3], catalog=2), DataError, "3 distinct items; expected at most the catalog's 2"),
        (lambda: gini([0, 0]), DataError, "one positive"),
        (lambda: novelty([0.0, 0.5]), DataError, "above 0 and at most 1"),
        (lambda: intra_list_diversity([[1.0]], [1]), DataError, "no list with two items"),
        (lambda: intra_list_diversity([1.0], [1]), DataError, "finite numbers"),
    ],
)
def test_faults_are_errors(call, error, says):
    with pytest.raises(error, match=says):
        call()
