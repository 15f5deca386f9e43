"""Selections of events: the newest, the highest scores, one key; in ragged, grouped and shared batches."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.features.batch import Layout
from longrec.nn.segments import GroupedSegments, Segments
from longrec.nn.selection import (
    Selection,
    Slots,
    exceeds,
    select_all,
    select_key,
    select_newest,
    select_older,
    select_top,
)

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=5)


def ragged(lengths: list[int]) -> Segments:
    return Segments(torch.tensor([0, *lengths]).cumsum(0), len(lengths), sum(lengths))


def grouped(lengths: list[int], owner: list[int]) -> GroupedSegments:
    return GroupedSegments(ragged(lengths), Layout.grouped(len(lengths), np.array(owner)))


def shared(rows: int, events: int) -> Segments:
    return Segments(torch.tensor([0, events]), rows, events, shared=True)


def layouts(lengths: list[int], owner: list[int]) -> list[Segments]:
    """Segments of every layout that lengths and owners describe."""
    owner = [number % len(lengths) for number in owner]
    return [ragged(lengths), grouped(lengths, owner), shared(len(owner), lengths[0])]


def bounds(segments: Segments) -> list[tuple[int, int]]:
    """First position and the one after the last of each row."""
    if segments.shared:
        return [(row * segments.positions, (row + 1) * segments.positions) for row in range(segments.rows)]
    edges = segments.offsets.tolist()
    return list(zip(edges, edges[1:]))


def selected(selection: Selection) -> list[set[int]]:
    """The positions of each row that have a weight: what a softmax over equal scores weighs."""
    rows = selection.rows
    count = rows.rows * rows.positions if rows.shared else rows.positions
    w_N = selection.restore(rows.softmax(torch.zeros(count)))
    return [{at - start for at in range(start, stop) if w_N[at] > 0} for start, stop in bounds(selection.source)]


def stored_positions(segments: Segments) -> Tensor:
    return segments.keys(torch.arange(segments.requests.positions).double().unsqueeze(1)).squeeze(1).long()


@given(LENGTHS, st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 5), st.randoms())
@settings(max_examples=25, deadline=None)
def test_the_highest_scores_of_each_row_and_the_newest_of_equal_ones(lengths, owner, k, random) -> None:  # type: ignore[no-untyped-def]
    for segments in layouts(lengths, owner):
        count = bounds(segments)[-1][1]
        s_N = torch.tensor([random.choice([-1.5, -0.0, 0.0, 2.0, 2.0000002, -torch.inf]) for _ in range(count)])
        selection = select_top(s_N, segments, k)
        for (start, stop), chosen in zip(bounds(segments), selected(selection), strict=True):
            order = sorted(range(stop - start), key=lambda at: (-s_N[start + at].item(), -at))
            assert chosen == set(order[:k])
        assert exceeds(segments, k) == any(stop - start > k for start, stop in bounds(segments))


@given(LENGTHS, st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 3), st.randoms())
@settings(max_examples=25, deadline=None)
def test_the_newest_events_with_the_key_of_the_candidate(lengths, owner, k, random) -> None:  # type: ignore[no-untyped-def]
    """The reserved ids 0 and 1 match nothing, themselves included."""
    for segments in layouts(lengths, owner):
        key_U = torch.tensor([random.randrange(4) for _ in range(segments.requests.positions)], dtype=torch.int32)
        wanted_B = torch.tensor([random.randrange(4) for _ in range(segments.rows)], dtype=torch.int32)
        on_host = (wanted_B, key_U) if segments.shared else (wanted_B.numpy(), key_U.numpy())
        selection = select_key(*on_host, segments, k)
        key_N = key_U[stored_positions(segments)] if len(key_U) else key_U
        for row, ((start, stop), chosen) in enumerate(zip(bounds(segments), selected(selection), strict=True)):
            same = [at for at in range(stop - start) if wanted_B[row] >= 2 and key_N[start + at] == wanted_B[row]]
            assert chosen == set(same[-k:])


@given(LENGTHS, st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_newest_and_older_events_are_all_events(lengths: list[int], owner: list[int], k: int) -> None:
    for segments in layouts(lengths, owner):
        newest, older = selected(select_newest(segments, k)), selected(select_older(segments, k))
        for (start, stop), recent, others in zip(bounds(segments), newest, older, strict=True):
            every = list(range(stop - start))
            assert (recent, others) == (set(every[-k:]), set(every[:-k]))


@pytest.mark.parametrize("segments", layouts([7, 0, 5, 2], [0, 2, 2, 3, 1]), ids=["ragged", "grouped", "shared"])
def test_a_selection_among_selected_events(segments: Segments) -> None:
    """The highest scores of the older events, which are counted in the whole history."""
    older = select_older(segments, 2)
    count = older.rows.rows * older.rows.positions if older.rows.shared else older.rows.positions
    torch.manual_seed(0)
    s_N = torch.randn(count)
    both = older.then(select_top(s_N, older.rows, 2))
    whole_N = older.restore(s_N.exp())
    for (start, stop), chosen in zip(bounds(segments), selected(both), strict=True):
        order = sorted(range(max(stop - start - 2, 0)), key=lambda at: -whole_N[start + at].item())
        assert chosen == set(order[:2])
    value_U = torch.arange(segments.requests.positions)
    assert torch.equal(both.take(value_U), value_U[both.stored])
    assert older.then(select_all(older.rows)) is older
    assert select_all(segments).then(older) is older


@pytest.mark.parametrize("segments", layouts([7, 0, 5, 2], [0, 2, 2, 3, 1]), ids=["ragged", "grouped", "shared"])
def test_attention_to_a_selection_equals_masked_attention(segments: Segments) -> None:
    """Scores, weights and sums over the entries are those over all positions, with a mask."""
    torch.manual_seed(0)
    q_BD, k_UD = torch.randn(segments.rows, 3), torch.randn(segments.requests.positions, 3)
    s_N = segments.dot(q_BD, k_UD)
    selection = select_top(s_N, segments, 3)
    rows, k_SD = selection.rows, selection.take(k_UD)
    w_n = rows.softmax(rows.dot(q_BD, k_SD))
    expected_N = torch.zeros_like(s_N)
    k_ND = segments.keys(k_UD)
    sums = []
    for (start, stop), chosen in zip(bounds(segments), selected(selection), strict=True):
        at = [start + position for position in chosen]
        expected_N[at] = s_N[at].softmax(0)
        sums.append(expected_N[start:stop] @ k_ND[start:stop])
    torch.testing.assert_close(selection.restore(w_n), expected_N)
    torch.testing.assert_close(rows.weighted_sum(w_n, k_SD), torch.stack(sums))
    torch.testing.assert_close(rows.mul(q_BD, k_SD).sum(1), rows.dot(q_BD, k_SD))
    torch.testing.assert_close(rows.add(q_BD, k_SD) - rows.keys(k_SD), rows.expand(q_BD))


def test_slots_without_an_event_have_no_weight() -> None:
    rows = Slots(shared(2, 9), 3, torch.tensor([[True, False, True], [False, False, False]]))
    w_S = rows.softmax(torch.tensor([0.0, 9.0, 0.0, 1.0, 2.0, 3.0]))
    assert w_S.tolist() == [0.5, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert rows.weighted_sum(w_S, torch.ones(6, 2)).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_the_scores_of_a_selection_get_no_gradient_and_its_entries_do() -> None:
    segments = ragged([5, 1])
    s_N, k_UD = torch.randn(6, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    selection = select_top(s_N, segments, 2)
    selection.take(k_UD).sum().backward()
    assert s_N.grad is None
    assert k_UD.grad is not None
    assert (k_UD.grad[:, 0] > 0).nonzero().squeeze(1).tolist() == sorted(selection.stored.tolist())


def test_a_layer_runs_on_the_entries_or_once_per_event_that_several_rows_read() -> None:
    seen: list[int] = []

    def layer(x_XD: Tensor) -> Tensor:
        seen.append(len(x_XD))
        return x_XD * 2

    for segments in layouts([7, 0, 5, 2], [0, 2, 2, 3, 1]):
        k_UD = torch.randn(segments.requests.positions, 3)
        selection = select_newest(segments, 3)
        assert torch.equal(selection.project(layer, k_UD), selection.take(k_UD) * 2)
    assert seen == [3 + 0 + 3 + 2, 14, 7]


def test_the_plan_of_a_batch_is_computed_once() -> None:
    segments = ragged([7, 0, 5])
    assert select_newest(segments, 2).stored is select_newest(segments, 2).stored
    select_top(torch.randn(12), segments, 2)
    plan = segments.memo["top", 2]
    select_top(torch.randn(12), segments, 2)
    assert segments.memo["top", 2] is plan


def test_segments_are_freed_with_their_batch() -> None:
    segments = Segments.of_offsets(np.array([0, 4, 9]), torch.device("cpu"))
    select_newest(segments, 2)
    select_older(segments, 2)
    select_top(torch.rand(9), segments, 2)
    reference = weakref.ref(segments)
    del segments
    assert reference() is None, "the plans refer to the segments, which are kept until a collection of cycles"
