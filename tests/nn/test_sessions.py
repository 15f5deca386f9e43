from __future__ import annotations

from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.features.batch import HistoryBatch, Layout
from longrec.nn.segments import GroupedSegments, Segments
from longrec.nn.sessions import Sessions, number_sessions

SESSIONS = 3
ROWS = st.lists(st.lists(st.integers(0, SESSIONS), max_size=8), min_size=1, max_size=12)
"""The session of each event of each row; 3 is in none."""


def ragged(rows: list[list[int]]) -> Sessions:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
    return Sessions(numbers, SESSIONS, Segments(offsets, len(rows), len(numbers)))


def one_history(row: list[int], candidates: int) -> Sessions:
    numbers = torch.tensor(row, dtype=torch.int64)
    return Sessions(numbers, SESSIONS, Segments(torch.tensor([0, len(row)]), candidates, len(row), shared=True))


def own_sessions(row: list[int]) -> list[tuple[int, list[int]]]:
    """Return the sessions of a row that have events, oldest first, with the positions of those events."""
    sessions = [(number, [at for at, own in enumerate(row) if own == number]) for number in reversed(range(SESSIONS))]
    return [(number, positions) for number, positions in sessions if positions]


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_sessions_of_ragged_rows_are_those_with_events_oldest_first(rows: list[list[int]]) -> None:
    sessions = ragged(rows)
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
    expected = [(row, *session) for row, own in enumerate(rows) for session in own_sessions(own)]
    assert sessions.number.tolist() == [number for _, number, _ in expected]
    assert sessions.rows.row.tolist() == [row for row, _, _ in expected]
    assert sessions.rows.rows == len(rows)
    at = [starts[row] + position for row, _, positions in expected for position in positions]
    x = torch.arange(float(starts[-1])).unsqueeze(1)
    assert sessions.gather(x).squeeze(1).tolist() == at
    assert sessions.gather_numbers().tolist() == [number for _, number, positions in expected for _ in positions]
    assert sessions.count_newer().tolist() == [
        len(positions) - 1 - n for _, _, positions in expected for n in range(len(positions))
    ]
    assert sessions.count_events().tolist() == [len(positions) for _, _, positions in expected for _ in positions]
    means = [starts[row] + sum(positions) / len(positions) for row, _, positions in expected]
    assert sessions.mean(sessions.gather(x)).squeeze(1).tolist() == pytest.approx(means)


def as_written(rows: list[list[int]], x: Tensor, q: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention of queries over each session, its sum over sessions by scores ``[B, K]``, and event
    weights.
    """
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
    read, joined, weights = [], [], torch.zeros(len(x))
    for row, own in enumerate(rows):
        sessions, total = own_sessions(own), torch.zeros(x.shape[1])
        over = torch.tensor([s[row, number] for number, _ in sessions]).softmax(0)
        for share, (_, positions) in zip(over, sessions, strict=True):
            at = torch.tensor(positions) + starts[row]
            w = (x[at] @ q[row]).softmax(0)
            read.append(w @ x[at])
            total = total + share * read[-1]
            weights[at] = share * w
        joined.append(total)
    return torch.stack(read) if read else x[:0], torch.stack(joined), weights


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_queries_read_sessions_and_rows_join_them(rows: list[list[int]]) -> None:
    sessions = ragged(rows)
    x, q, s = torch.randn(sum(map(len, rows)), 4), torch.randn(len(rows), 4), torch.randn(len(rows), SESSIONS)
    u, w = sessions.attend(q, sessions.gather(x))
    over = sessions.softmax(s[sessions.rows.row, sessions.number])
    expected, joined, weights = as_written(rows, x, q, s)
    torch.testing.assert_close(u, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sessions.rows.weighted_sum(over, u), joined, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sessions.weigh_events(over, w), weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [[2, 2, 0, 0, 0], [3, 1], [0, 2, 0, 1, 3, 1], [3], []])
def test_a_shared_history_is_read_as_the_same_history_in_every_row(row: list[int]) -> None:
    """Sessions without events are computed too, but never read."""
    sessions, candidates = one_history(row, 2), 2
    x, q, s = torch.randn(len(row), 4), torch.randn(candidates, 4), torch.randn(candidates, SESSIONS)
    u, w = sessions.attend(q, sessions.gather(x))
    over = sessions.softmax(s.flip(1).reshape(-1))
    _, joined, weights = as_written([row] * candidates, x.repeat(candidates, 1), q, s)
    own = sessions.rows.sum(over.unsqueeze(1) * u)
    torch.testing.assert_close(own, joined, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sessions.weigh_events(over, w).flatten(), weights, rtol=1e-4, atol=1e-5)
    there = [number for number, _ in own_sessions(row)]
    assert [
        number for number, real in zip(sessions.number.tolist(), sessions.nonempty_K.tolist(), strict=True) if real
    ] == there
    each = ragged([row])
    torch.testing.assert_close(sessions.mean(x)[sessions.nonempty_K], each.mean(each.gather(x)))
    assert not sessions.mean(x)[~sessions.nonempty_K].any()
    member = [at for at, number in enumerate(row) if number < SESSIONS]
    order = sorted(member, key=lambda at: (-row[at], at))
    assert sessions.count_newer()[order].tolist() == each.count_newer().tolist()
    assert sessions.count_events()[order].tolist() == each.count_events().tolist()


def test_events_of_a_session_see_each_other_alone() -> None:
    rows = [[1, 1, 0, 0], [], [0, 1, 0, 3]]
    sessions, (q, k, v) = ragged(rows), torch.randn(3, 8, 4)
    attention = sessions.attention
    o = attention.restore_positions(
        attention.attend_within(*(attention.gather_positions(sessions.gather(x)) for x in (q, k, v)), 1)
    )
    expected, start = [], 0
    for row in rows:
        for _, positions in own_sessions(row):
            at = torch.tensor(positions) + start
            expected.append((q[at] @ k[at].t()).softmax(1) @ v[at])
        start += len(row)
    torch.testing.assert_close(o, torch.cat(expected))
    one = one_history(rows[2], 1)
    o = one.attention.attend_within(q[4:], k[4:], v[4:], 1)
    for _, positions in own_sessions(rows[2]):
        at = torch.tensor(positions)
        torch.testing.assert_close(o[at], (q[4:][at] @ k[4:][at].t()).softmax(1) @ v[4:][at])


def test_gradients_reach_what_is_in_sessions_only() -> None:
    sessions = ragged([[2, 3, 0, 0], [3], [1]])
    x = torch.randn(6, 2, requires_grad=True)
    u, _ = sessions.attend(torch.randn(3, 2), sessions.gather(x))
    (sessions.mean(sessions.gather(x)) * u).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).gt(0).tolist() == [True, False, True, True, False, True]
    assert [b - a for a, b in pairwise(sessions.rows.offsets.tolist())] == [2, 0, 1]


@given(ROWS, st.lists(st.integers(0, 11), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_grouped_rows_read_the_sessions_of_their_request(rows: list[list[int]], choice: list[int]) -> None:
    """Sessions are encoded once per request, and each row has weights of its own over them and their events."""
    owner = [request % len(rows) for request in choice]
    stored, repeated = ragged(rows), ragged([rows[request] for request in owner])
    layout = Layout.grouped(len(rows), np.array(owner))
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
    sessions = Sessions(numbers, SESSIONS, GroupedSegments(stored.segments, layout))
    x, q = torch.randn(len(numbers), 4), torch.randn(len(owner), 4)
    copied = x[sessions.segments.flatten(torch.arange(len(x)))[0]]
    for name in ("gather_numbers", "count_newer", "count_events"):
        assert torch.equal(getattr(sessions, name)(), getattr(stored, name)())
    assert torch.equal(sessions.gather(x), stored.gather(x))
    i_GW, i_SW = sessions.mean(sessions.gather(x)), repeated.mean(repeated.gather(copied))
    assert torch.equal(sessions.rows.flatten(i_GW)[0], i_SW)
    over = sessions.softmax(sessions.rows.dot(q, i_GW))
    torch.testing.assert_close(over, repeated.softmax(repeated.rows.dot(q, i_SW)))
    read, weights = sessions.attend(q, sessions.gather(x))
    for one, other in zip((read, weights), repeated.attend(q, repeated.gather(copied)), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(sessions.weigh_events(over, weights), repeated.weigh_events(over, weights))
    torch.testing.assert_close(sessions.weigh_events(over), repeated.weigh_events(over))


def test_without_event_weights_a_session_weighs_its_events_equally() -> None:
    row = [2, 3, 0, 0, 2, 0]
    expected = [0.1, 0.0, 0.3, 0.3, 0.1, 0.3]
    over = torch.tensor([0.2, 0.9])  # of sessions 2 and 0
    assert ragged([row]).weigh_events(over).tolist() == pytest.approx(expected)
    one = one_history(row, 2)
    shared = torch.tensor([[0.2, 0.0, 0.9], [0.4, 0.0, 1.8]]).reshape(-1)
    for scale, w_T in zip((1, 2), one.weigh_events(shared), strict=True):
        assert w_T.tolist() == pytest.approx([scale * w for w in expected])


def test_events_in_no_session_can_be_left_out_before_they_are_embedded() -> None:
    rows = [[2, 3, 0, 0], [3], [1, 0]]
    sessions, x = ragged(rows), torch.randn(7, 2)
    events = HistoryBatch({"x": x}, torch.tensor([0, 4, 5, 7]))
    selected = sessions.select(events)
    assert selected.offsets.tolist() == [0, 3, 3, 5]
    assert torch.equal(cast(Tensor, selected.columns["x"]), x[[0, 2, 3, 5, 6]])
    assert torch.equal(sessions.gather_selected(cast(Tensor, selected.columns["x"])), sessions.gather(x))
    one = one_history(rows[0], 2)
    assert one.select(events) is events
    assert torch.equal(one.gather_selected(x[:4]), one.gather(x[:4]))


@pytest.mark.parametrize(
    ("longest", "shortest", "expected"), [(9, 0, [2, 1, 1, 0, 1, 0, 0]), (1, 1, [9, 9, 0, 9, 9, 9, 0])]
)
def test_sessions_are_numbered_from_the_newest_of_each_request(
    longest: int, shortest: int, expected: list[int]
) -> None:
    ids, stored = torch.tensor([7, 5, 5, 4, 4, 3, 3]), Segments(torch.tensor([0, 4, 7]), 2, 7)
    grouped = GroupedSegments(stored, Layout.grouped(2, np.array([1, 0, 0])))
    for segments in (stored, grouped):
        actual = number_sessions(ids, segments, longest, shortest)
        assert actual.clamp(max=9).tolist() == expected
    one = Segments(torch.tensor([0, 4]), 3, 4, shared=True)
    assert number_sessions(ids[:4], one, longest, shortest).clamp(max=9).tolist() == expected[:4]
