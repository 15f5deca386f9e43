"""Tests of torch's GRU and LSTM with the weights of the scans, against the scans, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longrec.nn import kernels
from longrec.nn.lstm import LSTM
from longrec.nn.recurrent import GRU
from longrec.nn.segments import Segments


def ragged(*lengths: int) -> Segments:
    return Segments(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]), len(lengths), sum(lengths))


def results(unit: nn.Module, x_NI: Tensor, weight: Tensor, segments: Segments) -> list[Tensor]:
    """Return states, last states, and all gradients of a weighted sum of both."""
    unit.zero_grad()
    x_NI = x_NI.detach().requires_grad_()
    states, last = unit.states(x_NI, segments), unit.last(x_NI, segments)
    ((states * weight).sum() + last.square().sum()).backward()
    return [states.detach(), last.detach(), x_NI.grad, *(p.grad.clone() for p in unit.parameters())]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrences compute in float32; here in float64, so that numbers may be held to many digits."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("kind", ["gru", "lstm", "reversed lstm"])
@pytest.mark.parametrize("lengths", [(3, 0, 5, 1, 3), (0, 2), (1,), (4, 4, 4)])
def test_packed_recurrences_equal_the_scans(
    kind: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    unit = (GRU(4, 3) if kind == "gru" else LSTM(4, 3, kind == "reversed lstm")).double()
    unit.bias.data.uniform_(-1, 1)
    x_NI, weight = (torch.randn(sum(lengths), width, dtype=torch.float64) for width in (4, 3))
    expected = results(unit, x_NI, weight, ragged(*lengths))
    monkeypatch.setattr(kernels, "choose", lambda x, *args, **settings: "cuda")
    for actual, other in zip(results(unit, x_NI, weight, ragged(*lengths)), expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)


def test_rows_without_positions_have_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "choose", lambda x, *args, **settings: "cuda")
    for unit in (GRU(4, 3), LSTM(4, 3)):
        assert unit.states(torch.zeros(0, 4), ragged(0, 0)).shape == (0, 3)
        assert unit.last(torch.zeros(0, 4), ragged(0, 0)).tolist() == [[0.0] * 3] * 2
