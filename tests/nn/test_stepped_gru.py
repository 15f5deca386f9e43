"""The step of a GRU, against its pass over whole rows."""

from __future__ import annotations

import torch

from longrec.nn.segments import Segments
from longrec.nn.stepped_gru import SteppedGRU


def test_steps_equal_the_pass_over_a_row() -> None:
    torch.manual_seed(0)
    unit, x = SteppedGRU(4, 3), torch.randn(6, 4)
    unit.bias.data.uniform_(-1, 1)
    h, states = torch.zeros(1, 3), []
    for at in range(6):
        h = unit.step(h, x[at : at + 1])
        states.append(h)
    torch.testing.assert_close(torch.cat(states), unit.states(x, Segments(torch.tensor([0, 6]), 1, 6)))
    assert torch.equal(unit.advance(h, unit.project(x[:1])), unit.step(h, x[:1]))
