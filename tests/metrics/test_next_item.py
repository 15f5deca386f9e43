from __future__ import annotations

import numpy as np
import pytest

from longrec.errors import ConfigError, DataError
from longrec.metrics.next_item import compare_ranks, next_item_metrics, summarize_ranks


def test_metrics_are_means_over_targets() -> None:
    metrics = next_item_metrics([0, 1, 9, 9.5, 10], k=(1, 10), recall_k=(11,))
    assert metrics["hr@1"] == 1 / 5
    assert metrics["hr@10"] == 4 / 5
    assert metrics["recall@11"] == 1
    gains = [1, 1 / np.log2(3), 1 / np.log2(11), 1 / np.log2(11.5)]
    assert metrics["ndcg@10"] == pytest.approx(sum(gains) / 5)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 10.5 + 1 / 11) / 5)
    assert next_item_metrics([0, 100], weight=[3, 1])["hr@10"] == 3 / 4


@pytest.mark.parametrize("ranks", [[], [-1.0], [np.nan]])
def test_ranks_that_are_none_are_refused(ranks: list[float]) -> None:
    with pytest.raises(DataError):
        next_item_metrics(ranks)


def test_intervals_are_over_users_and_hold_the_value() -> None:
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 5)
    rank = np.where(random.random(200) < 0.4, 0, 50)[user]  # all targets of a user are alike
    metrics = summarize_ranks(rank, user, n_resamples=200)
    one = metrics["hr@10"]
    assert one.low < one.value < one.high
    spread = np.sqrt(one.value * (1 - one.value) / 200)
    assert (one.high - one.low) / (2 * 1.96) == pytest.approx(spread, rel=0.3)
    assert metrics["hr@10"].value == pytest.approx((rank < 10).mean())
    with pytest.raises(DataError, match="two users"):
        summarize_ranks([0, 1], [4, 4])


def test_a_paired_difference_is_narrower_than_the_intervals() -> None:
    random = np.random.default_rng(1)
    first = random.integers(0, 40, 500)
    second = np.maximum(first - (random.random(500) < 0.3), 0)
    comparison = compare_ranks({"a": first, "b": second}, np.arange(500), n_resamples=100)
    gain = comparison.differences["b"]["mrr"]
    assert gain.verdict == "better"
    assert gain.interval.high - gain.interval.low < comparison.runs["a"]["mrr"].high - comparison.runs["a"]["mrr"].low
    assert comparison.to_dict()["objective"] == "next_item"
    same = compare_ranks({"a": first, "b": first}, np.arange(500), n_resamples=20).differences["b"]
    assert all(one.verdict == "unclear" and one.interval.value == 0 for one in same.values())
    with pytest.raises(ConfigError, match="two runs"):
        compare_ranks({"a": first}, np.arange(500))
    with pytest.raises(DataError, match="one per target"):
        compare_ranks({"a": first, "b": second[:3]}, np.arange(500))
