from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.features.batch import Layout
from longrec.nn.segments import GroupedSegments, Segments
from longrec.nn.slices import Slices, masked_softmax

SLICES = 3
ROWS = st.lists(st.lists(st.integers(0, SLICES - 1), max_size=6), min_size=1, max_size=6)
"""The slice of each event of each row, in any order."""


def ragged(rows: list[list[int]]) -> Segments:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return Segments(offsets, len(rows), int(offsets[-1]))


def numbers(rows: list[list[int]]) -> Tensor:
    return torch.tensor([number for row in rows for number in row], dtype=torch.int64)


def as_written(row: list[int], s: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for one row the vector of each slice, their sum by weights ``[S]``, and the weight of each event."""
    pooled, weights = torch.zeros(SLICES, h.shape[1]), torch.zeros(len(row))
    for number in set(row):
        at = [index for index, own in enumerate(row) if own == number]
        share = s[at].softmax(0)
        pooled[number], weights[at] = share @ h[at], w[number] * share
    return pooled, w @ pooled, weights


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_slices_of_ragged_rows_equal_a_loop(rows: list[list[int]]) -> None:
    torch.manual_seed(0)
    segments, w = ragged(rows), torch.rand(len(rows), SLICES)
    s, h = torch.randn(segments.positions), torch.randn(segments.positions, 4)
    slices = Slices(numbers(rows), SLICES, segments)
    assert slices.filled_RS.tolist() == [[number in row for number in range(SLICES)] for row in rows]
    pooled, share = slices.pool(s, h)
    each = [len(row) for row in rows]
    expected = [as_written(*row) for row in zip(rows, s.split(each), h.split(each), w, strict=True)]
    torch.testing.assert_close(pooled, torch.stack([row[0] for row in expected]))
    torch.testing.assert_close(slices.weighted_sum(w, pooled), torch.stack([row[1] for row in expected]))
    torch.testing.assert_close(slices.weigh_events(w, share), torch.cat([row[2] for row in expected]))


@given(ROWS, st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_grouped_rows_read_the_slices_of_their_request(rows: list[list[int]], choice: list[int]) -> None:
    torch.manual_seed(0)
    owner = [request % len(rows) for request in choice]
    stored, w = ragged(rows), torch.rand(len(owner), SLICES)
    s, h = torch.randn(stored.positions), torch.randn(stored.positions, 4)
    grouped = Slices(numbers(rows), SLICES, GroupedSegments(stored, Layout.grouped(len(rows), np.array(owner))))
    single = Slices(numbers(rows), SLICES, stored)
    pooled, share = grouped.pool(s, h)
    for one, other in zip((pooled, share), single.pool(s, h), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(grouped.filled_RS, single.filled_RS)
    each = [len(row) for row in rows]
    expected = [as_written(rows[at], s.split(each)[at], h.split(each)[at], own) for at, own in zip(owner, w)]
    torch.testing.assert_close(grouped.weighted_sum(w, pooled), torch.stack([row[1] for row in expected]))
    torch.testing.assert_close(grouped.weigh_events(w, share), torch.cat([row[2] for row in expected]))


@pytest.mark.parametrize("row", [[2, 0, 0, 2], [1], []])
def test_a_shared_history_is_sliced_as_one_row(row: list[int]) -> None:
    torch.manual_seed(0)
    s, h, w = torch.randn(len(row)), torch.randn(len(row), 4), torch.rand(2, SLICES)
    together = Segments(torch.tensor([0, len(row)]), 2, len(row), shared=True)
    slices, alone = (Slices(numbers([row]), SLICES, own) for own in (together, ragged([row])))
    assert torch.equal(slices.filled_RS, alone.filled_RS)
    pooled, share = slices.pool(s, h)
    for one, other in zip((pooled, share), alone.pool(s, h), strict=True):
        torch.testing.assert_close(one, other)
    expected = [as_written(row, s, h, own) for own in w]
    torch.testing.assert_close(slices.weighted_sum(w, pooled), torch.stack([own[1] for own in expected]))
    torch.testing.assert_close(slices.weigh_events(w, share), torch.stack([own[2] for own in expected]))


def test_a_softmax_over_an_empty_mask_is_zero() -> None:
    s = torch.randn(2, 3, requires_grad=True)
    real = torch.tensor([[True, False, True], [False, False, False]])
    w = masked_softmax(s, real, 1)
    torch.testing.assert_close(w[0, [0, 2]], s[0, [0, 2]].softmax(0))
    assert w[~real].tolist() == [0.0] * 4
    (grad,) = torch.autograd.grad(w.square().sum(), s)
    assert grad.isfinite().all()
