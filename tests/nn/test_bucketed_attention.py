from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.features.batch import Layout
from longrec.nn.bucketed_attention import BucketedAttention, Own, attend_runs
from longrec.nn.segments import GroupedSegments, Segments

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=30)
HEADS, SIZE, VALUES = 2, 3, 4


def segments(lengths: list[int]) -> Segments:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(offsets, len(lengths), int(offsets[-1]))


def one_history(candidates: int, events: int) -> Segments:
    return Segments(torch.tensor([0, events]), candidates, events, shared=True)


def grouped(lengths: list[int], owner: list[int]) -> GroupedSegments:
    return GroupedSegments(segments(lengths), Layout.grouped(len(lengths), np.array(owner, np.int64)))


def draw(positions: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Own]:
    """Return queries, keys and values of positions, and queries, keys and values of rows."""
    wide, deep = HEADS * SIZE, HEADS * VALUES
    q, k, v = torch.randn(positions, wide), torch.randn(positions, wide), torch.randn(positions, deep)
    return q, k, v, torch.randn(rows, wide), (torch.randn(rows, wide), torch.randn(rows, deep))


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the attention of M queries of one row ``[M, V]``, and their weights, mean over heads ``[M, T]``."""
    outputs, weights = [], []
    for head in range(HEADS):
        at, of = slice(head * SIZE, (head + 1) * SIZE), slice(head * VALUES, (head + 1) * VALUES)
        s = q[:, at] @ k[:, at].t()
        if seen is not None:
            s = s.masked_fill(~seen, -torch.inf)
        weights.append(s.softmax(1))
        outputs.append(weights[-1] @ v[:, of])
    return torch.cat(outputs, 1), torch.stack(weights).mean(0)


def spans(owns: Segments) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(owns.offsets.tolist())]


@given(LENGTHS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_events_attend_to_the_events_of_their_row(lengths: list[int], beside: bool) -> None:
    owns = segments(lengths)
    q, k, v, _, own = draw(owns.positions, owns.rows)
    attention = BucketedAttention(owns)
    own_rows = (attention.gather_rows(own[0]), attention.gather_rows(own[1])) if beside else None
    o = attention.restore_positions(
        attention.attend_within(*(attention.gather_positions(x) for x in (q, k, v)), HEADS, own_rows)
    )
    for row, at in enumerate(spans(owns)):
        keys = torch.cat([k[at], own[0][row : row + 1]]) if beside else k[at]
        values = torch.cat([v[at], own[1][row : row + 1]]) if beside else v[at]
        torch.testing.assert_close(o[at], attend_by_hand(q[at], keys, values)[0], rtol=1e-4, atol=1e-5)


@given(LENGTHS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_one_query_per_row_attends_to_its_events(lengths: list[int], beside: bool) -> None:
    """The result of a row without events is 0, or its own value."""
    owns = segments(lengths)
    _, k, v, q, own = draw(owns.positions, owns.rows)
    attention = BucketedAttention(owns)
    own_rows = (attention.gather_rows(own[0]), attention.gather_rows(own[1])) if beside else None
    o, w = attention.attend_query(
        attention.gather_rows(q), attention.gather_positions(k), attention.gather_positions(v), HEADS, own_rows
    )
    o, w = attention.restore_rows(o), attention.restore_positions(w)
    for row, at in enumerate(spans(owns)):
        one = slice(row, row + 1)
        if at.start == at.stop:
            assert torch.equal(o[row], own[1][row] if beside else torch.zeros(HEADS * VALUES))
            continue
        keys, values = (torch.cat([k[at], own[0][one]]), torch.cat([v[at], own[1][one]])) if beside else (k[at], v[at])
        expected, weights = attend_by_hand(q[one], keys, values)
        torch.testing.assert_close(o[one], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(w[at], weights[0, : at.stop - at.start], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("candidates", "events"), [(3, 5), (1, 1), (4, 0)])
@pytest.mark.parametrize("beside", [False, True])
def test_a_shared_history_is_what_the_same_history_in_every_row_is(candidates: int, events: int, beside: bool) -> None:
    attention, each = (
        BucketedAttention(one_history(candidates, events)),
        BucketedAttention(segments([events] * candidates)),
    )
    q, k, v, queries, own = draw(events, candidates)
    own_or_not = own if beside else None
    o, w = attention.attend_query(queries, k, v, HEADS, own_or_not)
    expected, weights = each.attend_query(queries, k.repeat(candidates, 1), v.repeat(candidates, 1), HEADS, own_or_not)
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.flatten(), weights, rtol=1e-4, atol=1e-5)
    e = attention.attend_within(q, k, v, HEADS, own_or_not)
    expected = each.attend_within(*(x.repeat(candidates, 1) for x in (q, k, v)), HEADS, own_or_not)
    assert e.shape == ((candidates, events, 8) if beside else (events, 8))
    torch.testing.assert_close(e.expand(candidates, events, 8).reshape(-1, 8), expected, rtol=1e-4, atol=1e-5)


def test_events_that_each_candidate_has_changed_are_rows_of_their_own() -> None:
    attention, each = BucketedAttention(one_history(3, 4)), BucketedAttention(segments([4] * 3))
    q, k, v, queries, own = draw(12, 3)
    apart = [x.view(3, 4, -1) for x in (q, k, v)]
    torch.testing.assert_close(
        attention.attend_within(*apart, HEADS, own).flatten(0, 1), each.attend_within(q, k, v, HEADS, own)
    )
    torch.testing.assert_close(attention.attend_within(*apart, HEADS).flatten(0, 1), each.attend_within(q, k, v, HEADS))
    for outputs, expected in zip(
        attention.attend_query(queries, *apart[1:], HEADS, own), each.attend_query(queries, k, v, HEADS, own)
    ):
        torch.testing.assert_close(outputs.flatten(), expected.flatten())


def test_events_of_a_shared_history_see_what_they_may() -> None:
    q, k, v, _, _ = draw(5, 1)
    group = torch.tensor([0, 0, 1, 1, 1])
    seen = group.unsqueeze(1) == group
    o = BucketedAttention(one_history(1, 5), seen).attend_within(q, k, v, HEADS)
    torch.testing.assert_close(o, attend_by_hand(q, k, v, seen)[0])
    each = BucketedAttention(segments([2, 3]))
    apart = each.attend_within(*(each.gather_positions(x) for x in (q, k, v)), HEADS)
    torch.testing.assert_close(o, each.restore_positions(apart))


@given(LENGTHS, st.lists(st.integers(0, 29), min_size=1, max_size=30), st.booleans())
@settings(max_examples=25, deadline=None)
def test_rows_of_a_group_attend_as_if_each_had_a_history_of_its_own(
    lengths: list[int], choice: list[int], beside: bool
) -> None:
    """Events attend to each other once per request, in its bucket order; then each row has a query over them."""
    owner = [request % len(lengths) for request in choice]
    owns = grouped(lengths, owner)
    q, k, v, queries, own = draw(sum(lengths), len(owner))
    attention, each = BucketedAttention(owns), BucketedAttention(segments([lengths[request] for request in owner]))
    outputs = []
    for one, inputs in ((attention, (q, k, v)), (each, tuple(owns.keys(x) for x in (q, k, v)))):
        q_UX, k_UX, v_UV = (one.requests.gather_positions(x) for x in inputs)
        x_UV = one.requests.attend_within(q_UX, k_UX, v_UV, HEADS)
        own_rows = (one.gather_rows(own[0]), one.gather_rows(own[1])) if beside else None
        o_BV, w_N = one.attend_query(one.gather_rows(queries), one.flatten(k_UX), one.flatten(x_UV), HEADS, own_rows)
        outputs.append((one.restore_rows(o_BV), one.restore_positions(w_N)))
    assert attention.requests is not attention
    assert each.requests is each
    for actual, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_an_entry_of_the_row_is_pooled_beside_its_events(how: Literal["mean", "sum"]) -> None:
    lengths = [3, 0, 5, 1]
    owns, x, y = segments(lengths), torch.randn(9, 2), torch.randn(4, 2)
    attention = BucketedAttention(owns)
    all_rows = [torch.cat([x[at], y[row : row + 1]]) for row, at in enumerate(spans(owns))]
    expected = torch.stack([entries.mean(0) if how == "mean" else entries.sum(0) for entries in all_rows])
    torch.testing.assert_close(attention.pool_beside(attention.gather_positions(x), y, how), expected)
    for events in (3, 0):
        x = torch.randn(4, events, 2)
        each = BucketedAttention(segments([events] * 4)).pool_beside(x.flatten(0, 1), y, how)
        torch.testing.assert_close(BucketedAttention(one_history(4, events)).pool_beside(x, y, how), each)


def test_events_attend_to_their_run_only() -> None:
    """A row ends a run even where the value does not change, and a value that returns begins another run."""
    q, k, v, _, _ = draw(7, 1)
    value = torch.tensor([4, 4, 0, 4, 4, 4, 1], dtype=torch.int32)
    for owns, runs in ((segments([4, 3]), [2, 1, 1, 2, 1]), (one_history(1, 7), [2, 1, 3, 1])):
        attention, newer = attend_runs(value, owns)
        o = attention.restore_positions(
            attention.attend_within(*(attention.gather_positions(x) for x in (q, k, v)), HEADS)
        )
        assert newer.tolist() == [at for length in runs for at in reversed(range(length))]
        for at in spans(segments(runs)):
            torch.testing.assert_close(o[at], attend_by_hand(q[at], k[at], v[at])[0], rtol=1e-4, atol=1e-5)


def test_a_row_without_a_value_of_runs_is_one_run() -> None:
    for owns, newer in ((segments([4, 0, 3]), [3, 2, 1, 0, 2, 1, 0]), (one_history(2, 3), [2, 1, 0])):
        attention, actual = attend_runs(None, owns)
        assert actual.tolist() == newer
        assert attention.seen_TT is None


def test_gradients_are_those_of_the_formula() -> None:
    owns = segments([3, 0, 7, 1, 7, 2])
    tensors = draw(owns.positions, owns.rows)
    leaves = [x.double().requires_grad_() for x in (*tensors[:4], *tensors[4])]

    def by_buckets(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
        attention = BucketedAttention(owns)
        own = attention.gather_rows(own_k), attention.gather_rows(own_v)
        q, k, v = (attention.gather_positions(x) for x in (q, k, v))
        o, w = attention.attend_query(attention.gather_rows(queries), k, v, HEADS, own)
        return torch.cat([o.flatten(), w, attention.attend_within(q, k, v, HEADS, own).flatten()])

    assert torch.autograd.gradcheck(by_buckets, leaves)


class _Both(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, queries: Tensor) -> Tensor:
        group = torch.arange(k.shape[0]) // 2
        owns = Segments(torch.arange(2), queries.shape[0], k.shape[0], shared=True)
        attention = BucketedAttention(owns, group.unsqueeze(1) == group)
        return attention.attend_query(queries, k, attention.attend_within(q, k, v, HEADS), HEADS)[0]


def test_it_traces_with_free_numbers_of_events_and_candidates() -> None:
    q, k, v, queries, _ = draw(7, 5)
    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(_Both(), (q, k, v, queries), dynamic_shapes=(free,) * 4).module()
    for events, rows in ((7, 5), (20, 1), (1, 3), (0, 2)):
        q, k, v, queries, _ = draw(events, rows)
        torch.testing.assert_close(program(q, k, v, queries), _Both()(q, k, v, queries), rtol=1e-4, atol=1e-5)


def test_nothing_moves_where_rows_are_in_bucket_order() -> None:
    attention, x = BucketedAttention(segments([4] * 6)), torch.randn(24, 2)
    assert attention.gather_positions(x) is x
    assert attention.restore_positions(x) is x
    assert attention.gather_rows(x) is x
