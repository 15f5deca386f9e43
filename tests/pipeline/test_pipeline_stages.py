"""Stages of a pipeline that need no bundle: orders, formulas, pages, deadlines, traces, and the config."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import to_yaml
from longrec.errors import ConfigError
from longrec.pipeline.arrange import arrange
from longrec.pipeline.candidates import Candidates, merge
from longrec.pipeline.config import is_pipeline_file, read_pipeline
from longrec.pipeline.deadline import Deadline, Late
from longrec.pipeline.formula import Formula
from longrec.pipeline.merge_order import MergeStage, order_candidates, rank_in_sources
from longrec.pipeline.rank import TopStage
from longrec.pipeline.stage import Query, Stages
from longrec.pipeline.trace import BUDGET, DIVERSITY, Trace


def make_lists(*lists: list[int]) -> Candidates:
    """Return the candidates of sources a, b, ..., each a list with descending scores."""
    own = [
        Candidates.of(keys, name).with_scores(name, np.arange(len(keys), 0, -1.0)) for name, keys in zip("abc", lists)
    ]
    return merge([one for one in own if len(one)]) if any(map(len, own)) else own[0]


LISTS = st.lists(st.integers(0, 8), max_size=6, unique=True)


@settings(deadline=None, max_examples=60)
@given(LISTS, LISTS, st.sampled_from([1.0, 2.0, 3.0]))
def test_interleaved_sources_take_turns(first: list[int], second: list[int], weight: float) -> None:
    candidates = make_lists(first, second)
    order, _ = order_candidates(candidates, ["a", "b"], "interleave", [weight, 1.0])
    queues, expected = [list(first), list(second)], list[int]()
    while any(queues):  # rounds: so many items of the first as its weight, then one of the second
        for queue, turns in zip(queues, (int(weight), 1)):
            for _ in range(turns):
                if queue:
                    expected.append(queue.pop(0))
    assert candidates.keys[order].tolist() == list(dict.fromkeys(expected))


def test_the_order_of_fusion_is_that_of_the_paper() -> None:
    candidates = make_lists([5, 6, 7], [7, 8])
    order, scores = order_candidates(candidates, ["a", "b"], "fusion", [1.0, 2.0])
    expected = {5: 1 / 61, 6: 1 / 62, 7: 1 / 63 + 2 / 61, 8: 2 / 62}
    assert dict(zip(candidates.keys.tolist(), scores)) == pytest.approx(expected)
    assert candidates.keys[order].tolist() == [7, 8, 5, 6]


def test_the_order_by_one_source_ends_with_the_items_of_others() -> None:
    candidates = make_lists([5, 6], [6, 8, 9])
    order, scores = order_candidates(candidates, ["a", "b"], "score", [1.0, 1.0], "b")
    assert candidates.keys[order].tolist() == [6, 8, 9, 5]
    assert np.isnan(scores[candidates.keys == 5])
    assert rank_in_sources(candidates, ["a", "b", "none"])[:, 1].tolist() == [1, 0, np.inf]


def test_merged_items_keep_all_sources_and_the_budget_is_at_least_k() -> None:
    candidates = make_lists([5, 6, 7], [6, 8])
    stage = MergeStage(["a", "b"], 2)
    assert stage(candidates, Query("u", 0, k=1)).keys.tolist() == [5, 6]
    kept = stage(candidates, Query("u", 0, k=3))
    assert (kept.keys.tolist(), kept.list_origins()) == ([5, 6, 8], ["a", "a+b", "b"])
    assert len(MergeStage(["a", "b"])(candidates, Query("u", 0, k=1))) == 4


# ---- formulas ----------------------------------------------------------------------------------------------------


def test_a_formula_computes_what_it_says() -> None:
    click, buy = np.array([0.5, 0.2], np.float32), np.array([0.25, 0.04], np.float32)
    formula = Formula("click * buy ** 0.5 - -2 / (1 + click)")
    assert formula.names == ("click", "buy")
    expected = [0.5 * 0.5 + 2 / 1.5, 0.2 * 0.2 + 2 / 1.2]
    assert formula({"click": click, "buy": buy}, 2).tolist() == pytest.approx(expected)
    assert Formula("3")({}, 2).tolist() == [3, 3]
    assert not np.isfinite(Formula("1 / click")({"click": np.zeros(1)}, 1)).any()


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "click.real", "click[0]", "click if buy else 1", "[click]", "'a' * 3", "True", "click and buy",
     "lambda: 1", "1 // 2", "click; buy", "", "(" * 300, "1e999", "f(1)", "9" * 400, "~click", "x := 1"],
)  # fmt: skip
def test_anything_else_is_no_formula(text: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        Formula(text)


# ---- pages -------------------------------------------------------------------------------------------------------

GROUPS = st.lists(st.lists(st.sampled_from("ab"), max_size=2, unique=True), max_size=7)


@settings(deadline=None, max_examples=150)
@given(GROUPS, st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
def test_a_page_keeps_the_rules(groups: list[list[str]], k: int, least: int, most: int, slot: int) -> None:
    page = arrange(groups, k, {"a": least}, {"b": most}, {slot: "b"})
    assert len(set(page)) == len(page) <= k
    used = Counter(group for index in page for group in groups[index])
    assert used["b"] <= most
    without_b = sum("b" not in own for own in groups)
    assert len(page) >= min(k, without_b), "a page is only short if the most items of b leave no others"
    free = sum("a" in own and "b" not in own for own in groups)
    assert used["a"] >= min(least, free, k - (1 if slot <= k else 0)), "a lacks items that were there"
    if most and slot <= len(page) and not least and sum("b" in own for own in groups) > slot:
        before = Counter(group for index in page[: slot - 1] for group in groups[index])
        assert "b" in groups[page[slot - 1]] or before["b"] >= most


def test_a_page_without_rules_is_the_order() -> None:
    assert arrange([[], [], []], 2, {}, {}, {}) == [0, 1]
    groups = [["x"], ["x"], ["x"], ["y"], ["z"]]
    assert arrange(groups, 3, {}, {"x": 1}, {}) == [0, 3, 4]
    assert arrange(groups, 3, {"z": 1}, {}, {}) == [0, 1, 4]
    assert arrange(groups, 3, {}, {}, {1: "z"}) == [4, 0, 1]
    assert arrange(groups, 5, {}, {"x": 2}, {}) == [0, 1, 3, 4]


# ---- deadlines and traces ----------------------------------------------------------------------------------------


class Reverse:
    """Stage that reverses candidates, after a time, and notes what it dropped."""

    def __init__(self, name: str, seconds: float = 0.0, keep: int = 9, late: bool = False) -> None:
        self.name, self.seconds, self.keep, self.late = name, seconds, keep, late
        self.calls = 0

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        self.calls += 1
        time.sleep(self.seconds)
        if self.late:
            raise Late
        order = np.arange(len(candidates))[::-1]
        if query.trace is not None:
            query.trace.drop(candidates.keys[order[self.keep :][:1]], DIVERSITY)
        return candidates.take(order[: self.keep])


def test_a_late_stage_leaves_the_order_before_it() -> None:
    first, second = Reverse("first", seconds=0.02), Reverse("second")
    stages = Stages([first, Deadline(second, 0.01, 2), Deadline(Reverse("third", late=True), 60.0), TopStage()])
    query = Query("u", 0, k=3, trace=Trace())
    result = stages(Candidates.of([1, 2, 3, 4], "a"), query)
    assert result.candidates.keys.tolist() == [4, 3, 2], "k items, though the late stage keeps two"
    assert result.fallbacks == ("second", "third")
    assert second.calls == 0
    assert query.trace is not None
    assert [stage.late for stage in query.trace.stages] == [False, True, True, False]
    result = Stages([Deadline(Reverse("first"), 60.0)])(Candidates.of([1, 2], "a"), Query("u", 0, k=3))
    assert (result.candidates.keys.tolist(), result.fallbacks) == ([2, 1], ())


def test_a_trace_explains_every_dropped_item() -> None:
    query = Query("u", 0, k=1, trace=Trace())
    Stages([Reverse("one", keep=2), TopStage()])(Candidates.of([1, 2, 3, 4], "a"), query)
    assert query.trace is not None
    first, top = query.trace.stages
    assert (first.dropped, top.dropped) == ({DIVERSITY: [2], BUDGET: [1]}, {BUDGET: [3]})
    for stage in query.trace.stages:
        dropped = list(itertools.chain(*stage.dropped.values()))
        assert sorted([*stage.after.keys.tolist(), *dropped]) == sorted(stage.before.keys.tolist())
    assert (first.find_rank(3), first.find_rank(1), first.find_reason(2)) == (2, None, DIVERSITY)


# ---- the config --------------------------------------------------------------------------------------------------


def write(folder: Path, content: Any) -> Path:
    path = folder / "my films.yaml"
    path.write_text(to_yaml(content))
    return path


def test_a_pipeline_is_read_with_its_short_forms(tmp_path: Path) -> None:
    path = write(tmp_path, {"recall": {"sasrec": "a.bundle"}, "log": "shown/"})
    config = read_pipeline(path)
    assert (config.name, config.recall["sasrec"].bundle, config.recall["sasrec"].count) == ("my_films", "a.bundle", 300)
    assert config.log is not None
    assert (config.log.folder, config.filter.seen, config.merge.order) == ("shown/", True, "interleave")
    assert read_pipeline(path, ["merge.count=7"]).merge.count == 7
    assert is_pipeline_file(path)
    for other in ({"model": {"name": "din"}}, ["recall"]):
        assert not is_pipeline_file(write(tmp_path, other))
    assert not is_pipeline_file(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="recall: is required"):
        read_pipeline(write(tmp_path, {"rank": {}}))


def test_all_faults_of_a_pipeline_are_listed(tmp_path: Path) -> None:
    content = {
        "recall": {"mean": {"bundel": "a.bundle"}, "9x": "b.bundle"},
        "merge": {"order": "score"},
        "rank": {"bundle": "din.bundle", "score": "import os", "cuont": 3},
        "rerank": [
            {"method": "mmr", "theta": 0.5, "vectors": "mean"},
            {"method": "spacing"},
            {"method": "dpp", "vectors": "mean", "attribute": "genre"},
            {"method": "mrr"},
            {"method": "controllable", "diversity": 0.1, "lambda": 0.5},
            {"method": "controllable", "attribute": "genre", "diversity": -0.1},
        ],
        "mix": {
            "quotas": [{"source": "mean"}, {"attribute": "genre", "at_least": 2}, {"at_most": 2}],
            "slots": [{"position": 1, "source": "mean"}, {"position": 1, "source": "mean"}],
            "caps": [{"at_most": 2, "within": "soon"}],
        },
        "lgo": "shown",
    }
    with pytest.raises(ConfigError) as caught:
        read_pipeline(write(tmp_path, content))
    wanted = [
        "recall.mean.bundle: is required",
        "recall.mean.bundel: unknown key; did you mean 'bundle'?",
        "recall.9x",
        "merge: by belongs to order: score, which needs it",
        "rank.cuont: unknown key; did you mean 'count'?",
        "rerank.0: theta does not belong to method mmr, which takes lambda, vectors, attribute",
        "rerank.1: spacing needs attribute",
        "rerank.2: dpp needs either vectors, a source in recall, or attribute",
        "rerank.3.method: must be one of 'mmr', 'dpp', 'controllable', 'spacing' or 'model'; got 'mrr'",
        "rerank.4: lambda does not belong to method controllable, which takes attribute, diversity",
        "controllable needs attribute, the feature of the item whose values should differ",
        "rerank.5.diversity: input should be greater than or equal to 0, got -0.1",
        "mix.quotas.0: needs at_least or at_most",
        "mix.quotas.1: at_least needs the value of the attribute",
        "mix.quotas.2: needs either source or attribute",
        "mix.caps.0.within: must be a duration",
        "lgo: unknown key; did you mean 'log'?",
    ]
    text = "\n".join(caught.value.faults)
    assert [one for one in wanted if one not in text] == [], text


def test_sources_that_are_not_in_recall_are_faults(tmp_path: Path) -> None:
    content = {
        "recall": {"mean": "a.bundle", "count": "b.bundle"},
        "merge": {"order": "score", "by": "maen", "weights": {"other": 2}},
        "rerank": [{"method": "mmr", "vectors": "mean"}, {"method": "dpp", "vectors": "means"}],
        "mix": {"quotas": [{"source": "cuont", "at_least": 1}]},
    }
    with pytest.raises(ConfigError) as caught:
        read_pipeline(write(tmp_path, content))
    text = str(caught.value)
    for fault in (
        "merge.by: no source in recall named 'maen'; did you mean 'mean'?",
        "merge.weights.other: no source in recall named 'other'; known: mean, count",
        "rerank.1.vectors: no source in recall named 'means'",
        "mix.quotas.0.source: no source in recall named 'cuont'; did you mean 'count'?",
    ):
        assert fault in text
