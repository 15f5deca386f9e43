from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.features.batch import HistoryBatch, Jagged
from longrec.nn.segments import Segments

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
    history = HistoryBatch({"genres": values}, torch.tensor([0, 1, 3]))
    own = Segments.of(history, 2)
    assert (own.rows, own.positions, own.shared) == (2, 3, False)
    own = Segments.of(HistoryBatch({"item": torch.arange(4)}, torch.tensor([0, 4]), shared=True), 9)
    assert (own.rows, own.positions, own.shared) == (9, 4, True)


@pytest.mark.parametrize(
    ("key", "offsets"), [([5, 5, 2, 2, 2, 5], [0, 2, 5, 6]), ([7], [0, 1]), ([], [0]), ([1, 2, 3], [0, 1, 2, 3])]
)
def test_runs_of_a_key_are_segments(key: list[int], offsets: list[int]) -> None:
    runs = Segments.of_runs(torch.tensor(key, dtype=torch.int64))
    assert runs.offsets.tolist() == offsets
    assert (runs.rows, runs.positions, runs.shared) == (len(offsets) - 1, len(key), False)
