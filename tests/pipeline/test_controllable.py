"""Controllable aggregation against all sets of its size, a loop over gains, and the limit without diversity."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from longrec.errors import LongRecError
from longrec.index.top import select_top
from longrec.pipeline.controllable import select_controllable


def value(scores: Any, categories: list[Any], chosen: Any, diversity: float) -> float:
    pairs = sum(categories[a] != categories[b] for a, b in combinations(chosen, 2))
    return float(sum(scores[index] for index in chosen) + diversity * pairs)


@pytest.mark.parametrize("diversity", [0.0, 0.1, 0.4, 3.0])
def test_it_is_the_best_of_all_sets(diversity: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        scores, categories = random.normal(size=9), random.integers(0, 3, 9).tolist()
        chosen = select_controllable(scores, categories, 4, diversity)
        best = max(value(scores, categories, every, diversity) for every in combinations(range(9), 4))
        assert value(scores, categories, chosen, diversity) == pytest.approx(best)
        assert len(set(chosen.tolist())) == 4


def test_it_chooses_by_the_gain_one_by_one() -> None:
    random = np.random.default_rng(1)
    scores, categories = random.integers(0, 6, 200).astype(float), random.integers(0, 7, 200).tolist()
    expected: list[int] = []
    for _ in range(60):
        counts = [sum(categories[one] == categories[index] for one in expected) for index in range(200)]
        gains = [-np.inf if index in expected else scores[index] - 0.5 * counts[index] for index in range(200)]
        expected.append(int(np.argmax(gains)))
    assert select_controllable(scores, categories, 60, 0.5).tolist() == expected


def test_without_diversity_it_is_the_top() -> None:
    random = np.random.default_rng(2)
    scores = random.integers(0, 20, 300).astype(np.float32)
    categories = random.integers(0, 9, 300)
    np.testing.assert_array_equal(select_controllable(scores, categories, 50, 0), select_top(scores, 50))


def test_the_limits() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    assert select_controllable(scores, ["a", None, None], 9, 5.0).tolist() == [2, 0, 1]
    assert select_controllable(scores, ["a", "b", "c"], 0, 5.0).tolist() == []
    assert select_controllable(scores[:0], [], 4, 1.0).tolist() == []
    with pytest.raises(LongRecError, match="2 categories for 3 scores"):
        select_controllable(scores, ["a", "b"], 2, 1.0)
    with pytest.raises(LongRecError, match="not finite"):
        select_controllable(np.array([1.0, np.nan]), ["a", "b"], 2, 1.0)
    with pytest.raises(LongRecError, match="diversity of -1"):
        select_controllable(scores, ["a", "b", "c"], 2, -1.0)
