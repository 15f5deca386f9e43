from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.nn.rectangles import Own, Rectangles
from longrec.nn.segment import Segments

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=30)
HEADS, SIZE, VALUES = 2, 3, 4


def segments(lengths: list[int]) -> Segments:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(offsets, len(lengths), int(offsets[-1]))


def one_history(candidates: int, events: int) -> Segments:
    return Segments(torch.tensor([0, events]), candidates, events, shared=True)


def drawn(positions: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Own]:
    """Queries, keys and values of positions; queries, and keys and values, of rows."""
    wide, deep = HEADS * SIZE, HEADS * VALUES
    q, k, v = torch.randn(positions, wide), torch.randn(positions, wide), torch.randn(positions, deep)
    return q, k, v, torch.randn(rows, wide), (torch.randn(rows, wide), torch.randn(rows, deep))


def gathered(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The formula for one row: what M queries gather ``[M, V]``, and their weights, mean over heads ``[M, T]``."""
    found, weights = [], []
    for head in range(HEADS):
        at, of = slice(head * SIZE, (head + 1) * SIZE), slice(head * VALUES, (head + 1) * VALUES)
        s = q[:, at] @ k[:, at].t()
        if seen is not None:
            s = s.masked_fill(~seen, -torch.inf)
        weights.append(s.softmax(1))
        found.append(weights[-1] @ v[:, of])
    return torch.cat(found, 1), torch.stack(weights).mean(0)


def spans(owns: Segments) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(owns.offsets.tolist())]


@given(LENGTHS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_events_ask_the_events_of_their_row(lengths: list[int], beside: bool) -> None:
    owns = segments(lengths)
    q, k, v, _, own = drawn(owns.positions, owns.rows)
    lay = Rectangles(owns)
    brought = (lay.rows_in(own[0]), lay.rows_in(own[1])) if beside else None
    o = lay.positions_back(lay.among(*(lay.positions_in(x) for x in (q, k, v)), HEADS, brought))
    for row, at in enumerate(spans(owns)):
        keys = torch.cat([k[at], own[0][row : row + 1]]) if beside else k[at]
        values = torch.cat([v[at], own[1][row : row + 1]]) if beside else v[at]
        torch.testing.assert_close(o[at], gathered(q[at], keys, values)[0], rtol=1e-4, atol=1e-5)


@given(LENGTHS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_one_query_a_row_asks_its_events(lengths: list[int], beside: bool) -> None:
    """A row without events gathers 0, or its own value."""
    owns = segments(lengths)
    _, k, v, q, own = drawn(owns.positions, owns.rows)
    lay = Rectangles(owns)
    brought = (lay.rows_in(own[0]), lay.rows_in(own[1])) if beside else None
    o, w = lay.query(lay.rows_in(q), lay.positions_in(k), lay.positions_in(v), HEADS, brought)
    o, w = lay.rows_back(o), lay.positions_back(w)
    for row, at in enumerate(spans(owns)):
        one = slice(row, row + 1)
        if at.start == at.stop:
            assert torch.equal(o[row], own[1][row] if beside else torch.zeros(HEADS * VALUES))
            continue
        keys, values = (torch.cat([k[at], own[0][one]]), torch.cat([v[at], own[1][one]])) if beside else (k[at], v[at])
        expected, weights = gathered(q[one], keys, values)
        torch.testing.assert_close(o[one], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(w[at], weights[0, : at.stop - at.start], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("candidates", "events"), [(3, 5), (1, 1), (4, 0)])
@pytest.mark.parametrize("beside", [False, True])
def test_a_shared_history_is_what_the_same_history_in_every_row_is(candidates: int, events: int, beside: bool) -> None:
    lay, each = Rectangles(one_history(candidates, events)), Rectangles(segments([events] * candidates))
    q, k, v, asks, own = drawn(events, candidates)
    own_or_not = own if beside else None
    o, w = lay.query(asks, k, v, HEADS, own_or_not)
    expected, weights = each.query(asks, k.repeat(candidates, 1), v.repeat(candidates, 1), HEADS, own_or_not)
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.flatten(), weights, rtol=1e-4, atol=1e-5)
    e = lay.among(q, k, v, HEADS, own_or_not)
    expected = each.among(*(x.repeat(candidates, 1) for x in (q, k, v)), HEADS, own_or_not)
    assert e.shape == ((candidates, events, 8) if beside else (events, 8))
    torch.testing.assert_close(e.expand(candidates, events, 8).reshape(-1, 8), expected, rtol=1e-4, atol=1e-5)


def test_events_that_each_candidate_has_changed_are_rows_of_their_own() -> None:
    lay, each = Rectangles(one_history(3, 4)), Rectangles(segments([4] * 3))
    q, k, v, asks, own = drawn(12, 3)
    apart = [x.view(3, 4, -1) for x in (q, k, v)]
    torch.testing.assert_close(lay.among(*apart, HEADS, own).flatten(0, 1), each.among(q, k, v, HEADS, own))
    torch.testing.assert_close(lay.among(*apart, HEADS).flatten(0, 1), each.among(q, k, v, HEADS))
    for found, expected in zip(lay.query(asks, *apart[1:], HEADS, own), each.query(asks, k, v, HEADS, own)):
        torch.testing.assert_close(found.flatten(), expected.flatten())


def test_events_of_a_shared_history_see_what_they_may() -> None:
    q, k, v, _, _ = drawn(5, 1)
    group = torch.tensor([0, 0, 1, 1, 1])
    seen = group.unsqueeze(1) == group
    o = Rectangles(one_history(1, 5), seen).among(q, k, v, HEADS)
    torch.testing.assert_close(o, gathered(q, k, v, seen)[0])
    each = Rectangles(segments([2, 3]))
    apart = each.among(*(each.positions_in(x) for x in (q, k, v)), HEADS)
    torch.testing.assert_close(o, each.positions_back(apart))


def test_gradients_are_those_of_the_formula() -> None:
    owns = segments([3, 0, 7, 1, 7, 2])
    made = drawn(owns.positions, owns.rows)
    leaves = [x.double().requires_grad_() for x in (*made[:4], *made[4])]

    def by_rectangles(q: Tensor, k: Tensor, v: Tensor, asks: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
        lay = Rectangles(owns)
        own = lay.rows_in(own_k), lay.rows_in(own_v)
        q, k, v = (lay.positions_in(x) for x in (q, k, v))
        o, w = lay.query(lay.rows_in(asks), k, v, HEADS, own)
        return torch.cat([o.flatten(), w, lay.among(q, k, v, HEADS, own).flatten()])

    assert torch.autograd.gradcheck(by_rectangles, leaves)


class _Both(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, asks: Tensor) -> Tensor:
        group = torch.arange(k.shape[0]) // 2
        owns = Segments(torch.arange(2), asks.shape[0], k.shape[0], shared=True)
        lay = Rectangles(owns, group.unsqueeze(1) == group)
        return lay.query(asks, k, lay.among(q, k, v, HEADS), HEADS)[0]


def test_it_traces_with_free_numbers_of_events_and_candidates() -> None:
    q, k, v, asks, _ = drawn(7, 5)
    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(_Both(), (q, k, v, asks), dynamic_shapes=(free,) * 4).module()
    for events, rows in ((7, 5), (20, 1), (1, 3), (0, 2)):
        q, k, v, asks, _ = drawn(events, rows)
        torch.testing.assert_close(program(q, k, v, asks), _Both()(q, k, v, asks), rtol=1e-4, atol=1e-5)


def test_nothing_moves_where_rows_lie_as_rectangles_do() -> None:
    lay, x = Rectangles(segments([4] * 6)), torch.randn(24, 2)
    assert lay.positions_in(x) is x
    assert lay.positions_back(x) is x
    assert lay.rows_in(x) is x
