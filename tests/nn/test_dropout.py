"""Dropout with few random bits: its rate, scale and gradient, and when it does nothing."""

from __future__ import annotations

import pytest
import torch

from longrec.nn.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_and_the_scale(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 1000, requires_grad=True)
    y = dropout(x, rate)
    kept = y != 0
    assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=0.004)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)), rtol=1e-4, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    rows, columns = kept.float().mean(1), kept.float().mean(0)
    assert rows.std() < 0.03
    assert columns.std() < 0.06


def test_the_seed_decides() -> None:
    x = torch.randn(50, 1000)
    torch.manual_seed(1)
    one = dropout(x, 0.5)
    assert not torch.equal(one, dropout(x, 0.5))
    torch.manual_seed(1)
    assert torch.equal(one, dropout(x, 0.5))


def test_nothing_is_dropped_without_a_rate_and_in_evaluation() -> None:
    x = torch.randn(50, 1000)
    assert dropout(x, 0.0) is x
    assert Dropout(0.5).eval()(x) is x
    assert (Dropout(0.5)(x) == 0).float().mean() > 0.4
    assert (dropout(torch.ones(5, 5), 0.5) == 0).any()
