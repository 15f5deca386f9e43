from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.nn.parts import Parts
from longrec.nn.segment import Segments

PARTS = 3
ROWS = st.lists(st.lists(st.integers(0, PARTS), max_size=8), min_size=1, max_size=12)
"""The part of each event of each row; 3 is in none."""


def ragged(rows: list[list[int]]) -> Parts:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
    return Parts(numbers, PARTS, Segments(offsets, len(rows), len(numbers)))


def one_history(row: list[int], candidates: int) -> Parts:
    numbers = torch.tensor(row, dtype=torch.int64)
    return Parts(numbers, PARTS, Segments(torch.tensor([0, len(row)]), candidates, len(row), shared=True))


def own_parts(row: list[int]) -> list[tuple[int, list[int]]]:
    """The parts of a row that have events, oldest first, with the places of those."""
    found = [(number, [at for at, own in enumerate(row) if own == number]) for number in reversed(range(PARTS))]
    return [(number, places) for number, places in found if places]


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_parts_of_ragged_rows_are_those_with_events_oldest_first(rows: list[list[int]]) -> None:
    parts = ragged(rows)
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
    expected = [(row, *part) for row, own in enumerate(rows) for part in own_parts(own)]
    assert parts.number.tolist() == [number for _, number, _ in expected]
    assert parts.rows.row.tolist() == [row for row, _, _ in expected]
    assert parts.rows.rows == len(rows)
    at = [starts[row] + place for row, _, places in expected for place in places]
    x = torch.arange(float(starts[-1])).unsqueeze(1)
    assert parts.take(x).squeeze(1).tolist() == at
    assert parts.numbers().tolist() == [number for _, number, places in expected for _ in places]
    assert parts.back().tolist() == [len(places) - 1 - n for _, _, places in expected for n in range(len(places))]
    assert parts.sizes().tolist() == [len(places) for _, _, places in expected for _ in places]
    means = [starts[row] + sum(places) / len(places) for row, _, places in expected]
    assert parts.mean(parts.take(x)).squeeze(1).tolist() == pytest.approx(means)


def as_written(rows: list[list[int]], x: Tensor, q: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What queries read of each part, what is then read of all parts by scores ``[B, K]``, and the events' weights."""
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
    read, joined, weights = [], [], torch.zeros(len(x))
    for row, own in enumerate(rows):
        parts, total = own_parts(own), torch.zeros(x.shape[1])
        over = torch.tensor([s[row, number] for number, _ in parts]).softmax(0)
        for share, (_, places) in zip(over, parts, strict=True):
            at = torch.tensor(places) + starts[row]
            w = (x[at] @ q[row]).softmax(0)
            read.append(w @ x[at])
            total = total + share * read[-1]
            weights[at] = share * w
        joined.append(total)
    return torch.stack(read) if read else x[:0], torch.stack(joined), weights


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_queries_read_parts_and_rows_join_them(rows: list[list[int]]) -> None:
    parts = ragged(rows)
    x, q, s = torch.randn(sum(map(len, rows)), 4), torch.randn(len(rows), 4), torch.randn(len(rows), PARTS)
    u, w = parts.asked(q, parts.take(x))
    over = parts.softmax(s[parts.rows.row, parts.number])
    expected, joined, weights = as_written(rows, x, q, s)
    torch.testing.assert_close(u, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.rows.weighted_sum(over, u), joined, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.told(over, w), weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [[2, 2, 0, 0, 0], [3, 1], [0, 2, 0, 1, 3, 1], [3], []])
def test_a_shared_history_is_read_as_the_same_history_in_every_row(row: list[int]) -> None:
    """Parts without events stand there, and nobody reads them."""
    parts, candidates = one_history(row, 2), 2
    x, q, s = torch.randn(len(row), 4), torch.randn(candidates, 4), torch.randn(candidates, PARTS)
    u, w = parts.asked(q, parts.take(x))
    over = parts.softmax(s.flip(1).reshape(-1))
    _, joined, weights = as_written([row] * candidates, x.repeat(candidates, 1), q, s)
    own = parts.rows.sum(over.unsqueeze(1) * u)
    torch.testing.assert_close(own, joined, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.told(over, w).flatten(), weights, rtol=1e-4, atol=1e-5)
    there = [number for number, _ in own_parts(row)]
    assert [number for number, real in zip(parts.number.tolist(), parts.there_K.tolist(), strict=True) if real] == there
    each = ragged([row])
    torch.testing.assert_close(parts.mean(x)[parts.there_K], each.mean(each.take(x)))
    assert not parts.mean(x)[~parts.there_K].any()
    member = [at for at, number in enumerate(row) if number < PARTS]
    order = sorted(member, key=lambda at: (-row[at], at))
    assert parts.back()[order].tolist() == each.back().tolist()
    assert parts.sizes()[order].tolist() == each.sizes().tolist()


def test_events_of_a_part_see_each_other_alone() -> None:
    rows = [[1, 1, 0, 0], [], [0, 1, 0, 3]]
    parts, (q, k, v) = ragged(rows), torch.randn(3, 8, 4)
    lay = parts.rectangles
    o = lay.positions_back(lay.among(*(lay.positions_in(parts.take(x)) for x in (q, k, v)), 1))
    expected, start = [], 0
    for row in rows:
        for _, places in own_parts(row):
            at = torch.tensor(places) + start
            expected.append((q[at] @ k[at].t()).softmax(1) @ v[at])
        start += len(row)
    torch.testing.assert_close(o, torch.cat(expected))
    one = one_history(rows[2], 1)
    o = one.rectangles.among(q[4:], k[4:], v[4:], 1)
    for _, places in own_parts(rows[2]):
        at = torch.tensor(places)
        torch.testing.assert_close(o[at], (q[4:][at] @ k[4:][at].t()).softmax(1) @ v[4:][at])


def test_gradients_reach_what_is_in_parts_only() -> None:
    parts = ragged([[2, 3, 0, 0], [3], [1]])
    x = torch.randn(6, 2, requires_grad=True)
    u, _ = parts.asked(torch.randn(3, 2), parts.take(x))
    (parts.mean(parts.take(x)) * u).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).gt(0).tolist() == [True, False, True, True, False, True]
    assert [b - a for a, b in pairwise(parts.rows.offsets.tolist())] == [2, 0, 1]
