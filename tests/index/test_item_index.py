"""The index against a search by sorting: scores, masks, changed rows, inverted lists and their recall."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from longrec.errors import BundleError, ConfigError
from longrec.index import build
from longrec.index.build import IndexSettings, build_index, measure_recall, tune_again
from longrec.index.inverted_lists import InvertedLists
from longrec.index.item_index import ItemIndex
from longrec.index.top import select_top

WIDTH = 8


def draw(rows: int, seed: int, width: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def compute_scores(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """The definition: the largest product of each row."""
    return (vectors.astype(np.float64) @ queries.astype(np.float64).T).max(1)


def assert_best(
    actual: tuple[NDArray[np.int64], NDArray[np.float32]],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> None:
    """Rows and scores are those of a sort of all allowed rows, up to rows whose scores are equal but for rounding."""
    rows, scores = actual
    every = compute_scores(vectors, queries)
    some = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    assert np.isin(rows, some).all()
    assert len(np.unique(rows)) == len(rows) == min(k, len(some))
    np.testing.assert_allclose(scores, every[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, -np.sort(-every[some])[:k], rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(0, 4_000), k=st.integers(0, 40), values=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_highest_scores_are_those_of_a_stable_sort(size: int, k: int, values: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, values, size).astype(np.float32)  # with many equal ones
    scores[random.random(size) < 0.2] = -np.inf
    assert select_top(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


@pytest.mark.parametrize(("interests", "width"), [(1, 8), (4, 8), (1, 32), (4, 32)])
def test_scores_have_the_bits_of_one_product(interests: int, width: int) -> None:
    """Blocks of rows, which stay in the cache, change no bit of what earlier versions computed.

    With several threads, BLAS cuts a product anywhere, and rows beside a cut are computed by another kernel.
    """
    vectors, queries = draw(40_003, 0, width), draw(interests, 1, width)
    with threadpool_limits(limits=1, user_api="blas"):
        scores = vectors @ queries[0]
        for query in queries[1:]:
            np.maximum(scores, vectors @ query, out=scores)
        assert np.array_equal(ItemIndex(vectors).score(queries), scores)
        rows, own = ItemIndex(vectors).search(queries, 50)
    assert rows.tolist() == np.argsort(-scores, kind="stable")[:50].tolist()
    assert np.array_equal(own, scores[rows])


@pytest.mark.parametrize("listed", [False, True], ids=["exact", "lists"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.02, 0.001])
def test_masks_keep_the_best_of_the_allowed_rows(share: float, listed: bool) -> None:
    vectors, queries = draw(2_000, 2), draw(3, 3)
    index = ItemIndex(vectors, InvertedLists.train(vectors, 20, nprobe=20) if listed else None)
    allowed = np.random.default_rng(4).random(2_000) < share
    for k in (1, 30, 3_000):
        assert_best(index.search(queries, k, allowed), vectors, queries, k, allowed)
    assert len(index.search(queries, 5, np.zeros(2_000, bool))[0]) == 0


def test_lists_that_hold_too_few_allowed_rows_are_left() -> None:
    vectors, query = draw(2_000, 2), draw(1, 3)
    index = ItemIndex(vectors, InvertedLists.train(vectors, 20, nprobe=1))
    allowed = np.ones(2_000, bool)
    nearest = index.search(query, 40)[0]
    allowed[nearest] = False
    assert len(nearest) == 40
    for k in (20, 1_000, 1_960):
        rows, scores = index.search(query, k, allowed)
        assert len(set(rows.tolist())) == k
        assert allowed[rows].all()
        assert (np.diff(scores) <= 0).all()


STEP = st.tuples(st.sampled_from(["change", "add", "compact"]), st.integers(1, 12), st.integers(0, 99))


@settings(deadline=None, max_examples=20)
@given(steps=st.lists(STEP, max_size=8), listed=st.booleans())
def test_any_sequence_of_changes_is_as_a_new_index(steps: list[tuple[str, int, int]], listed: bool) -> None:
    vectors = draw(300, 5)
    index = ItemIndex(vectors.copy(), InvertedLists.train(vectors, 8, nprobe=8) if listed else None)
    for what, count, seed in steps:
        if what == "compact":
            index.compact()
            continue
        random = np.random.default_rng(seed)
        rows = random.choice(len(vectors), count, replace=False)
        if what == "add":
            rows = np.concatenate([rows[: count // 2], len(vectors) + np.arange(count)])
            vectors = np.concatenate([vectors, np.zeros((count, WIDTH), np.float32)])
        vectors[rows] = 1.5 * draw(len(rows), seed + 1)
        index.replace(rows, vectors[rows])
    assert len(index) == len(vectors)
    assert np.array_equal(index.read(np.arange(len(vectors))), vectors)
    allowed = np.random.default_rng(7).random(len(vectors)) < 0.5
    for queries in (draw(1, 8), draw(4, 9)):
        np.testing.assert_allclose(index.score(queries), ItemIndex(vectors).score(queries), rtol=1e-5, atol=1e-6)
        for mask in (None, allowed):
            assert_best(index.search(queries, 40, mask), vectors, queries, 40, mask)
            assert_best(index.search(queries, 40, mask, exact=True), vectors, queries, 40, mask)


def test_a_large_side_segment_is_moved_into_the_lists() -> None:
    vectors = draw(300, 5)
    index = ItemIndex(vectors, InvertedLists.train(vectors, 8, nprobe=8))
    index.replace(np.arange(300, 330), draw(30, 6))
    assert index.lists is not None
    assert len(index.lists) == 300
    index.replace(np.arange(330, 333), draw(3, 7))
    assert len(index.lists) == 333
    index.replace(np.arange(4), draw(4, 8))
    index.compact()
    assert (len(index.lists), index.lists.rows) == (333, 333)
    with pytest.raises(ValueError, match="follow each other"):
        index.replace(np.array([335]), draw(1, 8))


def test_the_number_of_lists_that_are_read_reaches_the_recall(tmp_path: Path) -> None:
    vectors, requests = draw(3_000, 10), np.random.default_rng(11).standard_normal((60, 2, WIDTH)).astype(np.float32)
    wanted = IndexSettings("ivf", recall_target=0.9, recall_at=20)
    lists, facts = build_index(vectors, wanted, lambda: requests)
    assert lists is not None
    assert (facts.kind, facts.items, facts.width, facts.queries) == ("ivf", 3_000, WIDTH, 60)
    assert facts.lists == lists.count == 128
    best = [np.sort(np.argsort(-compute_scores(vectors, request))[:20]) for request in requests]
    recalls = [measure_recall(lists, vectors, requests[::2], best[::2], nprobe) for nprobe in range(1, 129, 3)]
    assert (np.diff(recalls) >= 0).all()
    reached = [measure_recall(lists, vectors, requests[::2], best[::2], facts.nprobe - less) for less in (0, 1)]
    assert reached[0] >= 0.9 > reached[1]
    assert facts.recall == round(measure_recall(lists, vectors, requests[1::2], best[1::2], facts.nprobe), 4)
    half = np.random.default_rng(1).random(3_000) < 0.5
    some = np.flatnonzero(half)
    best = [np.sort(some[np.argsort(-compute_scores(vectors[some], request))[:20]]) for request in requests]
    recalls = [measure_recall(lists, vectors, requests[::2], best[::2], nprobe, half) for nprobe in (1, 20, 40, 128)]
    assert (np.diff(recalls) >= 0).all()
    assert facts.nprobe < facts.nprobe_half < 128
    reached = [
        measure_recall(lists, vectors, requests[::2], best[::2], facts.nprobe_half - less, half) for less in (0, 1)
    ]
    assert reached[0] >= 0.9 > reached[1]
    assert [lists.count_read(share) for share in (1.0, 0.5, 1e-9)] == [facts.nprobe, facts.nprobe_half, 128]
    again, repeated = build_index(vectors, wanted, lambda: requests)
    assert again is not None
    assert (repeated.nprobe, repeated.recall) == (facts.nprobe, facts.recall)
    for name, one in (("one", lists), ("two", again)):
        one.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    opened = InvertedLists.open(tmp_path / "one", 3_000, facts.nprobe, facts.nprobe_half)
    rows, scores = ItemIndex(vectors, opened).search(requests[0], 9)
    assert rows.tolist() == ItemIndex(vectors, lists).search(requests[0], 9)[0].tolist()
    assert np.array_equal(scores, ItemIndex(vectors, lists).search(requests[0], 9)[1])


def test_a_target_of_all_items_reads_as_many_lists_as_it_takes() -> None:
    vectors, requests = draw(500, 10), draw(40, 11)[:, None]
    lists, facts = build_index(vectors, IndexSettings("ivf", recall_target=1.0, recall_at=400), lambda: requests)
    assert lists is not None
    assert facts.recall == 1
    assert facts.nprobe > lists.count // 2


def test_lists_are_tuned_again_after_clustered_additions() -> None:
    random = np.random.default_rng(12)
    centers, apart = draw(40, 13), np.zeros(WIDTH, np.float32)
    apart[-1] = 4
    centers[:, -1] = 0
    noise = random.normal(scale=0.1, size=(2_000, WIDTH)).astype(np.float32) * (apart == 0)
    vectors, requests = centers.repeat(50, axis=0) + noise, (centers.repeat(2, axis=0) + apart)[:, None]
    lists, facts = build_index(vectors, IndexSettings("ivf", recall_target=0.9, recall_at=20), lambda: requests)
    assert lists is not None
    index = ItemIndex(vectors, lists)
    assert tune_again(index, requests, facts) == replace(facts, seconds=ANY)
    # A cluster away from all others, which is near to all requests and lies in many of their lists.
    added = (draw(250, 14) * 0.3 * (apart == 0) + apart).astype(np.float32)
    assert index.replace(np.arange(2_000, 2_250), added)
    best = [np.sort(index.search(request, 20, exact=True)[0]) for request in requests]
    assert measure_recall(lists, vectors, requests, best, facts.nprobe) < 0.7
    tuned = tune_again(index, requests, facts)
    reached = [measure_recall(lists, vectors, requests[::2], best[::2], tuned.nprobe - less) for less in (0, 1)]
    assert reached[0] >= 0.9 > reached[1]
    assert tuned.recall == round(measure_recall(lists, vectors, requests[1::2], best[1::2], tuned.nprobe), 4)
    assert (tuned.items, tuned.recall_target, tuned.lists) == (2_250, 0.9, facts.lists)
    assert tuned.nprobe_half > facts.nprobe_half
    assert lists.nprobe == facts.nprobe


def test_the_kind_follows_from_the_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = draw(400, 0)
    assert build_index(vectors, IndexSettings())[0] is None
    monkeypatch.setattr(build, "EXACT_UP_TO", 399)
    assert build_index(vectors, IndexSettings("exact"))[0] is None
    assert build_index(vectors, IndexSettings(recall_target=0.3), lambda: draw(30, 1)[:, None])[1].kind == "ivf"
    lists, facts = build_index(vectors, IndexSettings(recall_target=1.0), lambda: draw(30, 1)[:, None])
    assert (lists, facts.kind, facts.queries) == (None, "exact", 30)  # almost all lists would be read
    with pytest.raises(BundleError, match="19 requests to measure the recall of inverted lists; expected at least 20"):
        build_index(vectors, IndexSettings(), lambda: draw(19, 1)[:, None])
    with pytest.raises(ConfigError) as caught:
        IndexSettings("hnsw", 1.5, 0)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["index", "recall_target", "recall_at"]


def test_exact_search_imports_no_faiss() -> None:
    code = (
        "import sys, numpy as np\n"
        "from longrec.index.build import IndexSettings, build_index\n"
        "from longrec.index.item_index import ItemIndex\n"
        "v = np.ones((9, 4), np.float32)\n"
        "assert build_index(v, IndexSettings())[0] is None\n"
        "assert len(ItemIndex(v).search(v[:1], 3)[0]) == 3\n"
        "sys.exit(3 if 'faiss' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
