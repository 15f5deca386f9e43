from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.nn.segments import GroupedSegments, Segments

LENGTHS = [0, 3, 1, 0, 4, 2, 0]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def segments(lengths: list[int]) -> Segments:
    return Segments(offsets(lengths), len(lengths), sum(lengths))


def spans(lengths: list[int], *values: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the slice of every tensor of positions, per row."""
    edges = offsets(lengths).tolist()
    return [tuple(value[a:b] for value in values) for a, b in zip(edges, edges[1:])]


def loop(lengths: list[int], v_ND: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Each row on its own; 0 for a row without positions."""
    return torch.stack(
        [reduce(v) if len(v) else torch.zeros(v.shape[1], dtype=v.dtype) for (v,) in spans(lengths, v_ND)]
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_every_reduction_equals_a_loop_over_rows(lengths: list[int], width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own, total = segments(lengths), sum(lengths)
    v_ND, w_N = torch.randn(total, width, generator=generator), torch.randn(total, generator=generator)
    torch.testing.assert_close(own.sum(v_ND), loop(lengths, v_ND, lambda v: v.sum(0)))
    torch.testing.assert_close(own.mean(v_ND), loop(lengths, v_ND, lambda v: v.mean(0)))
    torch.testing.assert_close(own.max(v_ND), loop(lengths, v_ND, lambda v: v.amax(0)))
    expected = torch.cat([w.softmax(0) for (w,) in spans(lengths, w_N)])
    torch.testing.assert_close(own.softmax(w_N), expected)
    expected = torch.stack([(w.unsqueeze(1) * v).sum(0) for w, v in spans(lengths, w_N, v_ND)])
    torch.testing.assert_close(own.weighted_sum(w_N, v_ND), expected)
    null_B = torch.randn(len(lengths), generator=generator)
    each = [torch.cat([null, w]).softmax(0) for null, (w,) in zip(null_B.split(1), spans(lengths, w_N))]
    weights_N, null_weights_B = own.softmax_with_null(w_N, null_B)
    torch.testing.assert_close(weights_N, torch.cat([w[1:] for w in each]))
    torch.testing.assert_close(null_weights_B, torch.stack([w[0] for w in each]))
    x_BD = torch.randn(len(lengths), width, generator=generator)
    expected = torch.cat([x.expand(length, width) for x, length in zip(x_BD.split(1), lengths)])
    torch.testing.assert_close(own.expand(x_BD), expected)
    torch.testing.assert_close(own.add(x_BD, v_ND), expected + v_ND)
    torch.testing.assert_close(own.mul(x_BD, v_ND), expected * v_ND)
    torch.testing.assert_close(own.dot(x_BD, v_ND), (expected * v_ND).sum(1))
    assert own.row.tolist() == [row for row, length in enumerate(lengths) for _ in range(length)]


@pytest.mark.parametrize("how", ["sum", "mean", "max"])
@pytest.mark.parametrize("events", [0, 1, 5])
def test_a_shared_history_equals_the_same_history_in_every_row(how: str, events: int) -> None:
    rows, width = 3, 4
    one = Segments(torch.tensor([0, events]), rows, events, shared=True)
    each = segments([events] * rows)
    k_TD, x_BD, s_N = torch.randn(events, width), torch.randn(rows, width), torch.randn(rows * events)
    again = k_TD.repeat(rows, 1)
    torch.testing.assert_close(one.keys(k_TD), again)
    torch.testing.assert_close(one.expand(x_BD), each.expand(x_BD))
    torch.testing.assert_close(one.add(x_BD, k_TD), each.add(x_BD, again))
    torch.testing.assert_close(one.mul(x_BD, k_TD), each.mul(x_BD, again))
    v_ND = torch.randn(rows * events, width)
    torch.testing.assert_close(getattr(one, how)(v_ND), getattr(each, how)(v_ND))
    torch.testing.assert_close(one.pool(k_TD, how), each.pool(again, how))
    torch.testing.assert_close(one.softmax(s_N), each.softmax(s_N))
    torch.testing.assert_close(one.dot(x_BD, k_TD), each.dot(x_BD, again))
    null_B = torch.randn(rows)
    for a, b in zip(one.softmax_with_null(s_N, null_B), each.softmax_with_null(s_N, null_B), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(one.weighted_sum(s_N, k_TD), each.weighted_sum(s_N, again))
    assert one.row.tolist() == each.row.tolist()


def test_the_traced_forms_equal_the_hand_written_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for lengths in (LENGTHS, [0], [0, 0], [2], [1, 0, 3]):
        own = segments(lengths)
        v_ND, w_N, x_BD = torch.randn(sum(lengths), 3), torch.randn(sum(lengths)), torch.randn(len(lengths), 3)

        def results(own: Segments, v: Tensor = v_ND, w: Tensor = w_N, x: Tensor = x_BD) -> list[Tensor]:
            return [
                own.row, own.sum(v), own.mean(v), own.max(v), own.softmax(w), own.weighted_sum(w, v), own.expand(x),
                *own.softmax_with_null(w, x[:, 0]),
            ]  # fmt: skip

        expected = results(own)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            traced = results(segments(lengths))
        for a, b in zip(traced, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_of_the_hand_written_forms() -> None:
    own = segments(LENGTHS)
    v_ND = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    w_N = torch.randn(10, dtype=torch.float64, requires_grad=True)
    x_BD = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(own.sum, v_ND)
    assert torch.autograd.gradcheck(own.mean, v_ND)
    assert torch.autograd.gradcheck(own.max, v_ND)
    assert torch.autograd.gradcheck(own.expand, x_BD)
    assert torch.autograd.gradcheck(own.weighted_sum, (w_N, v_ND))
    assert torch.autograd.gradcheck(own.softmax, w_N)
    assert torch.autograd.gradcheck(lambda s, x: own.softmax_with_null(s, x[:, 0]), (w_N, x_BD))


def test_a_softmax_sums_to_one_and_does_not_overflow() -> None:
    w_N = segments([2, 0, 3]).softmax(torch.tensor([1e4, 1e4, -1e4, 0.0, 1e4]))
    assert w_N.tolist() == [0.5, 0.5, 0.0, 0.0, 1.0]


def test_a_softmax_with_one_more_score_does_not_overflow_and_fills_empty_rows() -> None:
    scores = torch.tensor([1e4, 1e4, -1e4, 0.0, 1e4])
    w_N, w_B = segments([2, 0, 3]).softmax_with_null(scores, torch.tensor([-1e4, -1e4, 1e4]))
    assert w_N.tolist() == [0.5, 0.5, 0.0, 0.0, 0.5]
    assert w_B.tolist() == [0.0, 1.0, 0.5]


def test_narrow_floats_are_added_up_in_float32() -> None:
    ones = torch.ones(4096, 1, dtype=torch.bfloat16)
    assert segments([4096]).sum(ones).item() == 4096  # bfloat16 itself stops at 256


def test_segments_of_a_history_and_of_values() -> None:
    values = Jagged(torch.arange(5), torch.tensor([0, 2, 2, 5]))
    own = Segments.of_values(values)
    assert (own.rows, own.positions, own.shared) == (3, 5, False)
    batch = Batch.single(2, {}, {"seen": HistoryBatch({"genres": values}, torch.tensor([0, 1, 3]))})
    own = Segments.of(batch, "seen")
    assert (own.rows, own.positions, own.shared) == (2, 3, False)
    assert own.requests is own
    assert Segments.of(batch, "seen") is own, "made once per batch"
    history = HistoryBatch({"item": torch.arange(4)}, torch.tensor([0, 4]))
    own = Segments.of(Batch(Layout.shared(9), histories={"seen": history}), "seen")
    assert (own.rows, own.positions, own.shared) == (9, 4, True)
    assert (own.requests.rows, own.requests.positions, own.requests.shared) == (1, 4, True)
    own = Segments.of(Batch(Layout.grouped(1, np.array([0, 0])), histories={"seen": history}), "seen")
    assert isinstance(own, GroupedSegments), "another layout of the same history"
    assert (own.rows, own.positions, own.shared) == (2, 8, False)
    assert (own.requests.rows, own.requests.positions, own.requests.shared) == (1, 4, False)


@pytest.mark.parametrize(
    ("key", "offsets"), [([5, 5, 2, 2, 2, 5], [0, 2, 5, 6]), ([7], [0, 1]), ([], [0]), ([1, 2, 3], [0, 1, 2, 3])]
)
def test_runs_of_a_key_are_segments(key: list[int], offsets: list[int]) -> None:
    runs = Segments.of_runs(np.array(key, np.int64), torch.device("cpu"))
    assert runs.host_offsets.tolist() == runs.offsets.tolist() == offsets
    assert (runs.rows, runs.positions, runs.shared) == (len(offsets) - 1, len(key), False)


def grouped(lengths: list[int], owner: list[int]) -> GroupedSegments:
    """Rows that read the history of their request."""
    return GroupedSegments(segments(lengths), Layout.grouped(len(lengths), np.array(owner)))


GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=6).flatmap(
    lambda lengths: st.tuples(
        st.just(lengths), st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9), st.integers(0, 10**6)
    )
)
"""Lengths of the histories of some requests, the request of each row in any order (some have none), and a seed."""


def ungroup(lengths: list[int], owner: list[int]) -> tuple[Segments, Tensor]:
    """Rows with a copy of the history of their request, and the stored position of each position."""
    edges = offsets(lengths).tolist()
    flat = [at for request in owner for at in range(edges[request], edges[request + 1])]
    return segments([lengths[request] for request in owner]), torch.tensor(flat, dtype=torch.int64)


@given(GROUPS)
@settings(max_examples=40, deadline=None)
def test_grouped_rows_equal_rows_with_a_copy_of_the_history(groups: tuple[list[int], list[int], int]) -> None:
    lengths, owner, seed = groups
    own, (copied, flat) = grouped(lengths, owner), ungroup(lengths, owner)
    generator = torch.Generator().manual_seed(seed)
    rows, total = len(owner), len(flat)
    k_UD = torch.randn(sum(lengths), 3, generator=generator)
    x_BD, x_RD = torch.randn(rows, 3, generator=generator), torch.randn(len(lengths), 3, generator=generator)
    v_ND, s_N = torch.randn(total, 3, generator=generator), torch.randn(total, generator=generator)
    null_B, k_ND = torch.randn(rows, generator=generator), k_UD[flat]
    assert own.host_offsets.tolist() == own.offsets.tolist() == copied.offsets.tolist()
    assert (own.rows, own.positions, own.shared) == (copied.rows, copied.positions, copied.shared)
    assert torch.equal(own.row, copied.row)
    # What a history gives, at the positions of its rows.
    assert torch.equal(own.keys(k_UD), k_ND)
    assert torch.equal(own.repeat(x_RD), x_RD[owner])
    keys, apart = own.flatten(k_UD)
    assert torch.equal(keys, k_ND)
    assert type(apart) is Segments
    assert apart.host_offsets.tolist() == apart.offsets.tolist() == copied.offsets.tolist()
    assert torch.equal(own.add(x_BD, k_UD), copied.add(x_BD, k_ND))
    assert torch.equal(own.mul(x_BD, k_UD), copied.mul(x_BD, k_ND))
    assert torch.equal(own.dot(x_BD, k_UD), copied.dot(x_BD, k_ND))
    assert torch.equal(own.weighted_sum(s_N, k_UD), copied.weighted_sum(s_N, k_ND))
    for how in ("sum", "mean", "max"):
        torch.testing.assert_close(own.pool(k_UD, how), copied.pool(k_ND, how))
        assert torch.equal(getattr(own, how)(v_ND), getattr(copied, how)(v_ND))
    # What differs by row.
    assert torch.equal(own.expand(x_BD), copied.expand(x_BD))
    assert torch.equal(own.expand_rows(null_B), copied.expand_rows(null_B))
    assert torch.equal(own.softmax(s_N), copied.softmax(s_N))
    for one, other in zip(own.softmax_with_null(s_N, null_B), copied.softmax_with_null(s_N, null_B), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(own.by_candidate(s_N), s_N)
    assert torch.equal(own.repeat_weights(k_UD[:, 0]), k_ND[:, 0])
    twice, copied_twice = own.multiply(2), copied.multiply(2)
    k_2UD = k_UD.repeat_interleave(2, 0)
    assert torch.equal(twice.keys(k_2UD), k_ND.repeat_interleave(2, 0))
    assert twice.host_offsets.tolist() == twice.offsets.tolist() == copied_twice.offsets.tolist()


@given(GROUPS)
@settings(max_examples=15, deadline=None)
def test_gradients_of_grouped_rows_add_up_at_the_stored_positions(groups: tuple[list[int], list[int], int]) -> None:
    lengths, owner, seed = groups
    own, (copied, flat) = grouped(lengths, owner), ungroup(lengths, owner)
    generator = torch.Generator().manual_seed(seed)
    k_UD = torch.randn(sum(lengths), 3, generator=generator)
    x_BD = torch.randn(len(owner), 3, generator=generator)
    gradients = []
    for one, index in ((own, None), (copied, flat)):
        k, x = k_UD.clone().requires_grad_(), x_BD.clone().requires_grad_()
        keys = k if index is None else k[index]
        w_N = one.softmax(one.dot(x, keys))
        out = one.weighted_sum(w_N, keys) * one.pool(keys, "mean") + one.pool(keys, "max") + one.sum(one.add(x, keys))
        out.square().sum().backward()
        gradients.append((k.grad, x.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [LENGTHS, [0], [3], [0, 0]])
def test_newer_positions_are_counted_in_the_stored_history(lengths: list[int]) -> None:
    expected = [length - 1 - at for length in lengths for at in range(length)]
    assert segments(lengths).count_newer().tolist() == expected
    owner = [0, *range(len(lengths)), 0]
    assert grouped(lengths, owner).count_newer().tolist() == expected
    events = lengths[-1]
    one = Segments(torch.tensor([0, events]), 5, events, shared=True)
    assert one.count_newer().tolist() == list(range(events - 1, -1, -1))


def test_positions_of_a_row_are_counted() -> None:
    assert segments([1, 0, 2]).lengths().tolist() == [[1], [0], [2]]
    assert grouped([1, 0, 2], [2, 0, 1, 2]).lengths().tolist() == [[2], [1], [0], [2]]
    assert Segments(torch.tensor([0, 3]), 2, 3, shared=True).lengths() == 3


def test_weights_of_a_history_are_repeated_for_every_row_that_reads_it() -> None:
    w_U = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(segments([1, 0, 2]).repeat_weights(w_U), w_U)
    assert torch.equal(grouped([1, 0, 2], [2, 0, 1, 2]).repeat_weights(w_U), w_U[[1, 2, 0, 1, 2]])
    one = Segments(torch.tensor([0, 3]), 2, 3, shared=True)
    assert torch.equal(one.repeat_weights(w_U), w_U.expand(2, 3))
    assert torch.equal(one.by_candidate(torch.arange(6.0)), torch.arange(6.0).view(2, 3))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
)
@settings(max_examples=25, deadline=None)
def test_several_histories_become_one_in_the_order_of_the_histories(
    lengths: list[tuple[int, int, int]], choice: list[int]
) -> None:
    every = [list(history) for history in zip(*lengths)]
    keys = [100 * number + torch.arange(float(sum(history))).unsqueeze(1) for number, history in enumerate(every)]
    whole, order = Segments.concat([segments(history) for history in every])
    assert order is not None
    k_ND = torch.cat(keys)[order]
    expected = [
        torch.cat([keys[number][edges[row] : edges[row + 1]] for number, edges in enumerate(map(_edges, every))])
        for row in range(len(lengths))
    ]
    assert whole.rows == len(lengths)
    assert whole.host_offsets.tolist() == whole.offsets.tolist()
    assert [span.tolist() for (span,) in spans([sum(row) for row in lengths], k_ND)] == [x.tolist() for x in expected]
    owner = [request % len(lengths) for request in choice]
    several, grouped_order = Segments.concat([grouped(history, owner) for history in every])
    assert grouped_order is not None
    k_UD = torch.cat(keys)[grouped_order]
    actual = spans([sum(lengths[request]) for request in owner], several.keys(k_UD))
    assert [span.tolist() for (span,) in actual] == [expected[request].tolist() for request in owner]


def _edges(lengths: list[int]) -> list[int]:
    edges: list[int] = offsets(lengths).tolist()
    return edges


def test_one_history_and_shared_histories_keep_their_order() -> None:
    own = segments(LENGTHS)
    assert Segments.concat([own]) == (own, None)
    pair = [Segments(torch.tensor([0, events]), 3, events, shared=True) for events in (2, 0, 4)]
    whole, order = Segments.concat(pair)
    assert order is None
    assert (whole.rows, whole.positions, whole.shared) == (3, 6, True)
