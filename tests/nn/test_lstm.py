"""Tests of the LSTM scan against a loop of cells, torch's own LSTM, and itself in a shared batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.features.batch import Layout
from longrec.nn.lstm import LSTM
from longrec.nn.segments import GroupedSegments, Segments

LENGTHS = (3, 0, 5, 1, 3)
TERMS = [(False, False), (True, False), (False, True), (True, True)]
"""With terms of the gates, with a scale of the new content."""


def ragged(lengths: tuple[int, ...] = LENGTHS) -> Segments:
    return Segments(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]), len(lengths), sum(lengths))


def make_lstm(inputs: int = 4, hidden: int = 3, reverse: bool = False) -> LSTM:
    torch.manual_seed(0)
    unit = LSTM(inputs, hidden, reverse).double()
    unit.bias.data.uniform_(-1, 1)
    return unit


def drawn(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def cell(unit: LSTM, h: Tensor, c: Tensor, x: Tensor, p: Tensor | None, m: Tensor | None) -> tuple[Tensor, Tensor]:
    """One step of one row, written out."""
    i, f, o, g = (unit.weight @ x + unit.recurrent @ h + unit.bias).chunk(4)
    if p is not None:
        i, f, o = (gate + term for gate, term in zip((i, f, o), p.chunk(3)))
    g = torch.tanh(g) if m is None else torch.tanh(g) * m
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
    return torch.sigmoid(o) * torch.tanh(c), c


def loop(unit: LSTM, x: Tensor, p: Tensor | None, m: Tensor | None, segments: Segments) -> Tensor:
    states: dict[int, Tensor] = {}
    for start, stop in pairwise(segments.offsets.tolist()):
        h, c = x.new_zeros(unit.hidden), x.new_zeros(unit.hidden)
        for at in range(start, stop) if not unit.reverse else reversed(range(start, stop)):
            h, c = cell(unit, h, c, x[at], None if p is None else p[at], None if m is None else m[at])
            states[at] = h
    return torch.stack([states[at] for at in range(len(x))])


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan computes in float32; here in float64, so that numbers may be held to many digits."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("gates", "scale"), TERMS)
def test_scan_equals_a_loop_of_cells_forward_and_backward(gates: bool, scale: bool, reverse: bool) -> None:
    unit, segments = make_lstm(reverse=reverse), ragged()
    x, weight = drawn(segments.positions, 4), drawn(segments.positions, 3, grad=False)
    p, m = drawn(segments.positions, 9) if gates else None, drawn(segments.positions, 3) if scale else None
    inputs = [tensor for tensor in (x, p, m, *unit.parameters()) if tensor is not None]
    states, expected = unit.states(x, segments, p, m), loop(unit, x, p, m, segments)
    torch.testing.assert_close(states, expected)
    for one, other in zip(
        torch.autograd.grad((states * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reverse", [False, True])
def test_last_is_where_the_walk_ends(reverse: bool) -> None:
    unit, segments = make_lstm(reverse=reverse), ragged()
    x = drawn(segments.positions, 4)
    states, last = unit.states(x, segments), unit.last(x, segments)
    for row, (start, stop) in enumerate(pairwise(segments.offsets.tolist())):
        expected = torch.zeros(3, dtype=torch.float64)
        if stop > start:
            expected = states[start if reverse else stop - 1]
        torch.testing.assert_close(last[row], expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("gates", "scale"), TERMS)
def test_shared_rows_equal_ragged_rows(gates: bool, scale: bool, reverse: bool) -> None:
    unit, rows, events = make_lstm(reverse=reverse), 3, 4
    x, p = drawn(events, 4), drawn(events, 9) if gates else None
    m = drawn(events, 3) if scale else None
    together, alone = Segments(torch.tensor([0, events]), rows, events, shared=True), ragged((events,))
    torch.testing.assert_close(unit.states(x, together, p, m), unit.states(x, alone, p, m))
    torch.testing.assert_close(unit.last(x, together, p, m), unit.last(x, alone, p, m).expand(rows, -1))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("owner", [[2, 0, 2, 1, 4], [1, 1]])
def test_grouped_rows_take_the_last_state_of_their_request(owner: list[int], reverse: bool) -> None:
    """The history of a request is read once, also if no row reads it."""
    unit, stored = make_lstm(reverse=reverse), ragged()
    x, p, m = drawn(stored.positions, 4), drawn(stored.positions, 9), drawn(stored.positions, 3)
    grouped = GroupedSegments(stored, Layout.grouped(len(LENGTHS), np.array(owner)))
    states, last = unit.states_and_last(x, grouped, p, m)
    torch.testing.assert_close(states, unit.states(x, stored, p, m))
    torch.testing.assert_close(unit.states(x, grouped, p, m), states)
    torch.testing.assert_close(last, unit.last(x, stored, p, m)[owner])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("moves", [[1, 0, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_a_mask_equals_a_history_of_what_it_leaves(moves: list[int], reverse: bool) -> None:
    unit, mask = make_lstm(reverse=reverse), torch.tensor(moves, dtype=torch.bool)
    x, m = drawn(5, 4), drawn(5, 3)
    together, left = Segments(torch.tensor([0, 5]), 2, 5, shared=True), ragged((sum(moves),))
    states = unit.states(x, together, scale_UH=m, moves_T=mask)
    torch.testing.assert_close(states[mask], unit.states(x[mask], left, scale_UH=m[mask]))
    expected = unit.last(x[mask], left, scale_UH=m[mask])
    torch.testing.assert_close(unit.last(x, together, scale_UH=m, moves_T=mask), expected.expand(2, -1))
    held = states.new_zeros(3)
    for at in reversed(range(5)) if reverse else range(5):  # elsewhere the state is that of the position before
        held = states[at] if moves[at] else held
        assert torch.equal(states[at], held)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_program_walks_as_the_loop_does(reverse: bool) -> None:
    """Traced, with free lengths and a mask, an empty history included."""

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = make_lstm(reverse=reverse)

        def forward(self, x: Tensor, p: Tensor, m: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
            segments = Segments(torch.arange(2), 2, x.shape[0], shared=True)
            arguments = x, segments, p, m, moves
            return self.unit.states(*arguments), self.unit.last(*arguments)

    def draw_inputs(events: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        torch.manual_seed(events)
        return (*(drawn(events, width, grad=False) for width in (4, 9, 3)), torch.rand(events) < 0.6)

    free = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        traced = torch.export.export(Program(), draw_inputs(7), dynamic_shapes=(free, free, free, free)).module()
        for events in (7, 4, 1, 0):
            for one, other in zip(traced(*draw_inputs(events)), Program()(*draw_inputs(events)), strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_is_torchs_own(reverse: bool) -> None:
    unit = make_lstm(reverse=reverse)
    own = torch.nn.LSTM(4, 3, batch_first=True, bidirectional=reverse).double()
    end = "_l0_reverse" if reverse else "_l0"
    order = [0, 1, 3, 2]  # torch's gates are i, f, g, o
    for name, term in (("weight_ih", unit.weight), ("weight_hh", unit.recurrent), ("bias_ih", unit.bias)):
        own.get_parameter(name + end).data = torch.cat([term.data.chunk(4)[at] for at in order])
    own.get_parameter("bias_hh" + end).data.zero_()
    x = drawn(1, 6, 4, grad=False)
    torch.testing.assert_close(unit.states(x[0], ragged((6,))), own(x)[0][0, :, -3:])


def test_an_empty_history_and_no_history_at_all() -> None:
    unit, nothing = make_lstm(), torch.zeros(0, 4, dtype=torch.float64)
    assert unit.last(drawn(3, 4), ragged((0, 3)))[0].abs().max() == 0
    assert unit.last(nothing, ragged((0, 0))).shape == (2, 3)
    assert unit.states(nothing, ragged((0, 0))).shape == (0, 3)
    assert unit.last(nothing, Segments(torch.tensor([0, 0]), 2, 0, shared=True)).tolist() == [[0.0] * 3] * 2


def test_ragged_rows_take_no_mask() -> None:
    with pytest.raises(AssertionError, match="take the selected positions"):
        make_lstm().states(drawn(4, 4), ragged((4,)), moves_T=torch.ones(4, dtype=torch.bool))
