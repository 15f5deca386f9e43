"""Tests of the GRU scan against a loop of cells, torch's own GRU, and itself with padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.nn.recurrent import GRU, Update
from longrec.nn.segments import Segments

UPDATES: tuple[Update, ...] = ("gru", "agru", "augru", "released")
LENGTHS = (3, 0, 5, 1, 3)


def ragged(lengths: tuple[int, ...] = LENGTHS) -> Segments:
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    return Segments(offsets, len(lengths), sum(lengths))


def make_gru(update: Update, inputs: int = 4, hidden: int = 3) -> GRU:
    torch.manual_seed(0)
    unit = GRU(inputs, hidden, update).double()
    unit.bias.data.uniform_(-1, 1)
    return unit


def cell(unit: GRU, h: Tensor, x: Tensor, a: Tensor | None) -> Tensor:
    """One step of one row, written out."""
    own = unit.weight @ x + unit.bias
    back = unit.recurrent @ h
    if unit.update == "agru":
        (xr, xn), (hr, hn) = own.chunk(2), back.chunk(2)
        u = None
    else:
        (xu, xr, xn), (hu, hr, hn) = own.chunk(3), back.chunk(3)
        u = torch.sigmoid(xu + hu)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    if u is None:
        return (1 - a) * h + a * n
    if a is None:
        return (1 - u) * h + u * n
    if unit.update == "augru":
        return (1 - a * u) * h + a * u * n
    keep = (1 - a) * (1 - u)
    return keep * h + (1 - keep) * n


def loop(unit: GRU, x: Tensor, a: Tensor | None, segments: Segments) -> Tensor:
    states = []
    for start, stop in zip(segments.offsets.tolist(), segments.offsets[1:].tolist()):
        h = x.new_zeros(unit.hidden)
        for at in range(start, stop):
            h = cell(unit, h, x[at], None if a is None else a[at])
            states.append(h)
    return torch.stack(states)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan computes in float32; here in float64, so that numbers may be held to many digits."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("update", UPDATES)
def test_scan_equals_a_loop_of_cells_forward_and_backward(update: Update) -> None:
    unit, segments = make_gru(update), ragged()
    x = torch.randn(segments.positions, 4, dtype=torch.float64, requires_grad=True)
    a = torch.rand(segments.positions, dtype=torch.float64, requires_grad=True) if update != "gru" else None
    weight = torch.randn(segments.positions, 3, dtype=torch.float64)
    inputs = [tensor for tensor in (x, a, *unit.parameters()) if tensor is not None]
    states = unit._scan_rows(torch.nn.functional.linear(x, unit.weight, unit.bias), segments, a)
    expected = loop(unit, x, a, segments)
    torch.testing.assert_close(states, expected)
    for one, other in zip(
        torch.autograd.grad((states * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("update", UPDATES)
def test_shared_rows_equal_ragged_rows(update: Update) -> None:
    unit, rows, events = make_gru(update), 3, 4
    x = torch.randn(events, 4, dtype=torch.float64)
    a = torch.rand(rows * events, dtype=torch.float64) if update != "gru" else None
    together = Segments(torch.tensor([0, events]), rows, events, shared=True)
    last = unit.last(x, together, a)
    torch.testing.assert_close(last, unit.last(x.repeat(rows, 1), ragged((events,) * rows), a))
    if a is None:
        torch.testing.assert_close(unit.states(x, together), unit.states(x, ragged((events,))))


def test_gru_is_torchs_own() -> None:
    unit = make_gru("gru")
    own = torch.nn.GRU(4, 3, batch_first=True).double()
    order = [1, 0, 2]  # torch's gates are r, z, n, and its z keeps
    reordered = [
        torch.cat([gate_weight.chunk(3)[at] for at in order])
        for gate_weight in (unit.weight, unit.recurrent, unit.bias)
    ]
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).repeat_interleave(3)
    own.weight_ih_l0.data, own.weight_hh_l0.data = reordered[0] * sign[:, None], reordered[1] * sign[:, None]
    own.bias_ih_l0.data, own.bias_hh_l0.data = reordered[2] * sign, torch.zeros_like(reordered[2])
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(unit.states(x[0], ragged((6,))), own(x)[0][0])


def test_terms_of_the_gates_enter_the_gates_alone() -> None:
    """As an input with zero weights in n. A program and a shared batch compute the same."""
    unit, wide = make_gru("gru"), make_gru("gru", inputs=6)
    x, p = torch.randn(11, 4, dtype=torch.float64), torch.randn(11, 2, dtype=torch.float64, requires_grad=True)
    for name, parameter in unit.named_parameters():
        wide.get_parameter(name).data[..., -parameter.shape[-1] :] = parameter.data
    wide.weight.data = torch.cat([unit.weight.data, torch.randn(9, 2, dtype=torch.float64)], 1)
    wide.weight.data[-3:, 4:] = 0
    with_gates = unit.states(x, ragged((4, 0, 7)), p @ wide.weight[:6, 4:].t())
    expected = wide.states(torch.cat([x, p], 1), ragged((4, 0, 7)))
    torch.testing.assert_close(with_gates, expected)
    one, other = (torch.autograd.grad(states.square().sum(), p) for states in (with_gates, expected))
    torch.testing.assert_close(one, other)
    together = Segments(torch.tensor([0, 11]), 3, 11, shared=True)
    gates = torch.randn(11, 6, dtype=torch.float64)
    torch.testing.assert_close(unit.states(x, together, gates), unit.states(x, ragged((11,)), gates))


def test_attention_of_zero_and_one() -> None:
    x, segments = torch.randn(4, 4, dtype=torch.float64), ragged((4,))
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    plain = make_gru("gru").last(x, segments)
    assert make_gru("augru").last(x, segments, zero).abs().max() == 0  # the paper: the state is kept
    torch.testing.assert_close(make_gru("augru").last(x, segments, one), plain)
    torch.testing.assert_close(make_gru("released").last(x, segments, zero), plain)  # the code: an ordinary step
    unit = make_gru("released")
    h = unit.last(x[:3], ragged((3,)), one[:3])[0]
    (_, xr, xn), (_, hr, hn) = (unit.weight @ x[3] + unit.bias).chunk(3), (unit.recurrent @ h).chunk(3)
    torch.testing.assert_close(unit.last(x, segments, one)[0], torch.tanh(xn + torch.sigmoid(xr + hr) * hn))


def test_an_empty_history_and_no_history_at_all() -> None:
    unit = make_gru("gru")
    assert unit.last(torch.randn(3, 4, dtype=torch.float64), ragged((0, 3)))[0].abs().max() == 0
    assert unit.last(torch.zeros(0, 4, dtype=torch.float64), ragged((0, 0))).shape == (2, 3)
    nothing = Segments(torch.tensor([0, 0]), 2, 0, shared=True)
    assert unit.last(torch.zeros(0, 4, dtype=torch.float64), nothing).tolist() == [[0.0] * 3] * 2
