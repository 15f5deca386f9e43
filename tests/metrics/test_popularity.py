from __future__ import annotations

import numpy as np
import pytest

from longrec.errors import ConfigError, DataError
from longrec.metrics import (
    gini,
    item_shares,
    list_novelty,
    list_popularity_bias,
    list_serendipity,
    popularity_percentiles,
    sample_ranks,
    slice_by_quantile,
    slice_by_share,
)
from longrec.metrics.next_item import next_item_metrics


def test_novelty_has_a_floor_for_items_that_nobody_had():
    share = item_shares([8, 4, 0], users=8)
    assert list_novelty(share, [0, 0, 1], 2).tolist() == [0.5, 3.0]
    assert item_shares([0], users=8, floor=0.5)[0] == 1 / 16
    for wrong in (0, 9):
        with pytest.raises(DataError, match="above 0 and at most 8 users"):
            item_shares([1], users=8, floor=wrong)
    with pytest.raises(DataError, match="0 to 3 users"):
        item_shares([4], users=3)
    with pytest.raises(DataError, match="above 0 and at most 1"):
        list_novelty([0.0], [0], 1)


def test_percentiles_are_even_and_popularity_bias_is_zero_for_a_list_like_the_history():
    percentile = popularity_percentiles([7, 7, 1, 0, 30])
    assert percentile.tolist() == [0.6, 0.6, 0.3, 0.1, 0.9]
    assert percentile.mean() == pytest.approx(0.5)
    bias = list_popularity_bias(percentile[[0, 2, 4, 4]], [0, 0, 1, 2], percentile[[2, 1, 3]], [0, 0, 1], 3)
    assert bias[:2].tolist() == pytest.approx([0, 0.8])
    assert np.isnan(bias[2])  # a user without a history


def test_serendipity_of_the_most_popular_list_is_zero():
    rank = np.arange(4)
    for definition in ("rank_gap", "unexpected"):
        arguments = {"lists": 1, "k": 4, "catalog": 10, "definition": definition}
        assert list_serendipity([1] * 4, rank, rank, [0] * 4, **arguments)[0] == 0
        unseen = list_serendipity([1] * 4, rank, [np.inf] * 4, [0] * 4, **arguments)[0]
        assert unseen == (np.mean([1, 0.9, 0.8, 0.7]) if definition == "rank_gap" else 1)
    with pytest.raises(ConfigError, match="rank_gap"):
        list_serendipity([1], [0], [0], [0], 1, 1, catalog=2, definition="gap")


def test_head_mid_and_tail_share_the_events():
    count = np.array([0, 50, 10, 20, 10, 10])
    slices = slice_by_share(count)
    assert [slices.names[number] for number in slices.number] == ["tail", "head", "mid", "mid", "tail", "tail"]
    assert count[slices.number == 0].sum() == 50
    with pytest.raises(ConfigError, match="one name more"):
        slice_by_share(count, cuts=(0.8, 0.5))
    with pytest.raises(DataError, match="one positive"):
        slice_by_share([0, 0])


def test_quantiles_keep_equal_values_together():
    random = np.random.default_rng(0)
    values = random.geometric(0.3, 1000)
    slices = slice_by_quantile(values, bins=4, unit="rows")
    ends = [
        (values[slices.number == one].min(), values[slices.number == one].max()) for one in range(len(slices.names))
    ]
    assert all(high < low for (_, high), (low, _) in zip(ends, ends[1:]))
    assert slices.names[0] == "1 rows"
    assert slice_by_quantile([3, 3, 3]).names == ("3 events",)
    with pytest.raises(ConfigError, match="at least 2"):
        slice_by_quantile(values, bins=1)


def test_sampled_ranks_are_those_of_drawn_scores():
    random = np.random.default_rng(0)
    score = random.random(200)
    order = np.argsort(np.argsort(-score))
    drawn = []
    for target in range(200):
        others = random.choice(np.delete(np.arange(200), target), (100, 20))
        drawn.append((score[others] > score[target]).sum(1))
    sampled = np.stack([sample_ranks(order, 200, 20, seed) for seed in range(100)], 1)
    np.testing.assert_allclose(sampled.mean(1), np.mean(drawn, 1), atol=1.0)
    assert sampled.mean() == pytest.approx(np.mean(drawn), rel=0.02)


def test_sampled_metrics_are_higher_and_can_turn_an_order():
    random = np.random.default_rng(1)
    # One model is right one time of five and else lost; the other is never at the top and never far from it.
    bold = np.where(random.random(4000) < 0.2, 0, 4000)
    cautious = np.full(4000, 60)
    full = [next_item_metrics(rank)["ndcg@10"] for rank in (bold, cautious)]
    sampled = [next_item_metrics(sample_ranks(rank, 5000, 100))["ndcg@10"] for rank in (bold, cautious)]
    assert full[0] > full[1]
    assert sampled[0] < sampled[1]


def test_sampled_ranks_of_ties_and_of_small_catalogs():
    assert sample_ranks([0.5] * 1000, 2, 5).mean() == pytest.approx(0.5, abs=0.1)
    assert sample_ranks([2, 0], [3, 9], 100).tolist() == [2, 0]
    with pytest.raises(ConfigError, match="at least 1"):
        sample_ranks([1], 5, 0)
    with pytest.raises(DataError, match="above the number of items"):
        sample_ranks([5], 5, 1)


def test_gini_is_half_the_mean_difference():
    x = np.array([0, 3, 0, 1, 9])
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))
