from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import LongRecError
from longrec.index.top import select_top
from longrec.pipeline.candidates import Candidates, merge
from longrec.pipeline.rank import TopStage, rank
from longrec.pipeline.stage import Query, Stages


def make_candidates(keys: list[int] | list[str], source: str = "request") -> Candidates:
    return Candidates.of(keys, source)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=0, max_size=20))
def test_rank_sorts_best_first_and_keeps_the_order_of_equals(scores: list[int]) -> None:
    ranked = rank(make_candidates(list(range(len(scores)))), np.array(scores, np.float32), "rank")
    expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert ranked.keys.tolist() == expected
    assert ranked.score.tolist() == [scores[index] for index in expected]


def test_rank_refuses_scores_that_do_not_fit() -> None:
    with pytest.raises(LongRecError, match=r"shape \(1,\) for 2 candidates"):
        rank(make_candidates([5, 6]), np.zeros(1), "rank")
    with pytest.raises(LongRecError, match="stage 'rank': a score that is not finite, first for item 6"):
        rank(make_candidates([5, 6]), np.array([1.0, np.nan]), "rank")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 3), min_size=0, max_size=20), st.integers(0, 22))
def test_the_top_is_the_start_of_the_whole_order(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert select_top(np.array(scores, np.float32), k).tolist() == expected[:k]


class Score:
    """Stage that encodes the query and scores candidates by a table."""

    def __init__(self, name: str, encoder: Counter, scores: dict[str, float]) -> None:
        self.name, self.encoder, self.scores = name, encoder, scores

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        factor = query.encode(self.encoder)
        return rank(candidates, np.array([factor * self.scores[key] for key in candidates.keys]), self.name)


class Counter:
    """Encoder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, query: Query) -> int:
        self.calls += 1
        return int(query.context["factor"])


def test_a_pipeline_runs_in_order_and_times_every_stage() -> None:
    encoder, other = Counter(), Counter()
    halves, last = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0}, {"b": 0.0, "d": 1.0, "a": 2.0, "c": 2.0}
    pipeline = Stages([Score("prerank", encoder, halves), TopStage(), Score("rank", other, last)])
    candidates = Candidates.of(["a", "b", "c", "d"], "request", {"price": [1, 2, None, 4], "brand": None})
    outcome = pipeline(candidates, Query("u", 0, {"factor": 2}, k=2))
    assert outcome.candidates.keys.tolist() == ["d", "b"]
    assert outcome.candidates.list_origins() == ["request", "request"]
    assert outcome.candidates.columns == {"price": [4, 2], "brand": None}
    assert {name: scores.tolist() for name, scores in outcome.candidates.scores.items()} == {
        "prerank": [2.0, 2.0],
        "rank": [2.0, 0.0],
    }
    assert outcome.candidates.score.tolist() == [2.0, 0.0]
    assert list(outcome.stage_seconds) == ["prerank", "top", "rank"]
    assert all(seconds >= 0 for seconds in outcome.stage_seconds.values())
    with pytest.raises(ValueError, match="distinct names"):
        Stages([TopStage(), TopStage()])


def test_stages_of_one_model_encode_a_query_once() -> None:
    encoder, other, scores = Counter(), Counter(), {"a": 0.0, "b": 1.0}
    pipeline = Stages([Score("one", encoder, scores), Score("two", encoder, scores), Score("three", other, scores)])
    for number in (1, 2):
        pipeline(make_candidates(["a", "b"]), Query("u", 0, {"factor": 2}))
        assert (encoder.calls, other.calls) == (number, number)


@pytest.mark.parametrize("keys", [[7, 8, 9], ["x", "y", "z"]])
def test_merged_candidates_remember_every_source(keys: list[int] | list[str]) -> None:
    first = make_candidates(keys[:2], "recent").with_scores("recent", np.array([3.0, 2.0]))
    second = make_candidates([keys[2], keys[0]], "popular")  # type: ignore[list-item]
    both = merge([first, second.with_scores("popular", np.array([0.5, 0.25]))])
    assert both.keys.tolist() == keys
    assert both.list_origins() == ["recent+popular", "recent", "popular"]
    np.testing.assert_array_equal(both.scores["recent"], np.array([3, 2, np.nan], np.float32))
    np.testing.assert_array_equal(both.scores["popular"], np.array([0.25, np.nan, 0.5], np.float32))
    again = merge([make_candidates([keys[1]], "popular").with_scores("popular", np.ones(1)), both])  # type: ignore[list-item]
    assert again.keys.tolist() == [keys[1], keys[0], keys[2]]
    assert again.list_origins() == ["popular+recent", "popular+recent", "popular"]
    assert again.scores["popular"].tolist() == [1.0, 0.25, 0.5]
    with pytest.raises(ValueError, match="64 sources"):
        merge([make_candidates(keys, f"s{number}") for number in range(64)])
    with pytest.raises(ValueError, match="the same columns"):
        merge([first, Candidates.of(keys, "popular", {"price": None})])
