from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import LongRecError
from longrec.pipeline.candidates import Candidates, merge
from longrec.pipeline.rank import RankStage
from longrec.pipeline.stage import Pipeline, RankQuery

QUERY = RankQuery(user=1, timestamp=0)


def make_candidates(keys: list[int] | list[str], source: str = "request") -> Candidates:
    return Candidates.of(np.arange(1, len(keys) + 1), keys, source)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=0, max_size=20))
def test_rank_sorts_best_first_and_keeps_the_order_of_equals(scores: list[int]) -> None:
    ranked = RankStage(lambda candidates, query: np.array(scores, np.float32))(
        make_candidates(list(range(len(scores)))), QUERY
    )
    expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert ranked.keys.tolist() == expected
    assert ranked.scores.tolist() == [scores[index] for index in expected]


def test_rank_refuses_scores_that_do_not_fit() -> None:
    with pytest.raises(LongRecError, match=r"shape \(1,\) for 2 candidates"):
        RankStage(lambda candidates, query: np.zeros(1))(make_candidates([5, 6]), QUERY)
    with pytest.raises(LongRecError, match="not finite, first for item 6"):
        RankStage(lambda candidates, query: np.array([1.0, np.nan]))(make_candidates([5, 6]), QUERY)


def test_a_pipeline_runs_in_order_and_times_every_stage() -> None:
    def half(candidates: Candidates, query: RankQuery) -> np.ndarray:
        return np.where(candidates.rows % 2 == 0, 1.0, 0.0)

    class Cut:
        name = "cut"

        def __call__(self, candidates: Candidates, query: RankQuery) -> Candidates:
            return candidates.take(np.arange(2))

    outcome = Pipeline([RankStage(half, "prerank"), Cut(), RankStage(lambda c, q: -c.rows)])(
        make_candidates(["a", "b", "c", "d"]), QUERY
    )
    assert outcome.candidates.keys.tolist() == ["b", "d"]
    assert outcome.candidates.list_origins() == ["request", "request"]
    assert list(outcome.stage_seconds) == ["prerank", "cut", "rank"]
    assert all(seconds >= 0 for seconds in outcome.stage_seconds.values())
    with pytest.raises(ValueError, match="distinct names"):
        Pipeline([Cut(), Cut()])


@pytest.mark.parametrize("keys", [[7, 8, 9], ["x", "y", "z"]])
def test_merged_candidates_remember_every_source(keys: list[int] | list[str]) -> None:
    first, second = make_candidates(keys[:2], "recent"), make_candidates([keys[2], keys[0]], "popular")  # type: ignore[list-item]
    both = merge([first, second.with_scores(np.array([0.5, 0.25]))])
    assert both.keys.tolist() == keys
    assert both.list_origins() == ["recent+popular", "recent", "popular"]
    assert np.isnan(both.scores[:2]).all()
    assert both.scores[2] == 0.5
    again = merge([make_candidates([keys[1]], "popular"), both])  # type: ignore[list-item]
    assert again.keys.tolist() == [keys[1], keys[0], keys[2]]
    assert again.list_origins() == ["popular+recent", "popular+recent", "popular"]
    with pytest.raises(ValueError, match="64 sources"):
        merge([make_candidates(keys, f"s{number}") for number in range(64)])
