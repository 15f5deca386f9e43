"""Metrics of lists beside their initial order, by hand, and their intervals over users."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.errors import ConfigError, DataError
from longrec.metrics import hit_rate_at_k, mrr, ndcg_at_k
from longrec.metrics.lists import compare_orders, rate_orders, summarize_orders


def draw(lists: int = 40, users: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 8, lists)
    number = np.repeat(np.arange(lists) * 3, lengths)  # any numbers name lists
    label = (random.random(len(number)) < 0.3).astype(np.float64)
    scores = random.integers(0, 4, (2, len(number))).astype(np.float64)  # with ties
    return {"label": label, "lists": number, "user": number % users, "score": scores[0], "base": scores[1]}


def test_each_list_by_hand() -> None:
    rated = rate_orders([0, 1, 0, 1, 0], {"": [3, 2, 1, 5, 6]}, [0, 0, 0, 1, 1], [4, 4, 4, 9, 9], (1, 2))
    assert rated.names == ("ndcg@1", "hr@1", "ndcg@2", "hr@2", "mrr")
    second = 1 / np.log2(3)
    np.testing.assert_allclose(rated.values[""], [[0, 0, second, 1, 0.5], [0, 0, second, 1, 0.5]])
    assert rated.users.tolist() == [0, 1]


def test_means_are_those_of_the_metrics_of_ranking() -> None:
    data = draw()
    rated = rate_orders(data["label"], {"": data["score"], "base": data["base"]}, data["lists"], data["user"], (3,))
    metrics = summarize_orders(rated, n_resamples=50)
    for suffix, name in (("", "score"), (".base", "base")):
        arguments = data["label"], data[name], data["lists"]
        assert metrics[f"ndcg@3{suffix}"].value == pytest.approx(ndcg_at_k(*arguments, 3))
        assert metrics[f"hr@3{suffix}"].value == pytest.approx(hit_rate_at_k(*arguments, 3))
        assert metrics[f"mrr{suffix}"].value == pytest.approx(mrr(*arguments))
    for name in rated.names:
        one, base, gain = (metrics[f"{name}{suffix}"] for suffix in ("", ".base", ".gain"))
        assert gain.value == pytest.approx(one.value - base.value)
        assert gain.low <= gain.value <= gain.high


def test_a_gain_is_paired() -> None:
    """Two equal orders have a gain of exactly zero, with a spread of zero, however the lists differ."""
    data = draw()
    rated = rate_orders(data["label"], {"": data["score"], "base": data["score"]}, data["lists"], data["user"], (10,))
    gain = summarize_orders(rated, n_resamples=20)["ndcg@10.gain"]
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_an_interval_has_the_spread_of_users() -> None:
    """The bootstrap of single-list users is that of independent values: 1.96 standard errors to each side."""
    random = np.random.default_rng(0)
    users = 400
    label = np.tile([1.0, 0.0], users)
    good = random.random(users) < 0.5
    score = np.where(np.repeat(good, 2), label, 1 - label)
    number = np.repeat(np.arange(users), 2)
    rated = rate_orders(label, {"": score, "base": score}, number, number, (1,))
    one = summarize_orders(rated, n_resamples=400)["ndcg@1"]
    expected = 1.96 * np.sqrt(good.mean() * (1 - good.mean()) / users)
    assert (one.high - one.low) / 2 == pytest.approx(expected, rel=0.15)


def test_runs_are_compared_on_the_same_lists() -> None:
    data = draw()
    orders = {"a": data["base"], "b": data["label"], "c": data["base"]}
    rated = rate_orders(data["label"], orders, data["lists"], data["user"], (10,))
    counts = {"rows": len(data["label"]), "users": 8, "positives": int(data["label"].sum())}
    result = compare_orders(rated, counts, baseline="a", n_resamples=50, seed=0, split="test")
    assert result.runs["b"]["ndcg@10"].value == 1
    assert result.differences["b"]["ndcg@10"].verdict == "better"
    assert result.differences["c"]["ndcg@10"].verdict == "unclear"
    assert result.objective == "lists"
    with pytest.raises(ConfigError, match="two runs or more"):
        compare_orders(rated, counts, baseline="x", n_resamples=50, seed=0, split="test")


def test_what_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="no click in 2 lists"):
        rate_orders([0, 0, 0], {"": [1, 2, 3]}, [1, 1, 2], [1, 1, 1], (10,))
    rated = rate_orders([1, 0], {"": [1, 2]}, [1, 1], [1, 1], (10,))
    with pytest.raises(DataError, match="two users or more"):
        summarize_orders(rated)
