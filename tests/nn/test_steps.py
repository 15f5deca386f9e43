"""Tests of the order of ragged rows by step. The steps of rows of one length are tested with the recurrences."""

from __future__ import annotations

import torch

from longrec.nn.segments import Segments
from longrec.nn.steps import Steps, gather_last, run_steps

ROWS = Segments(torch.tensor([0, 1, 1, 4, 6]), 4, 6)


def test_steps_hold_the_rows_that_are_alive() -> None:
    forward, back = Steps.of(ROWS), Steps.of(ROWS, reverse=True)
    for steps in (forward, back):
        assert steps.rows == 4
        assert steps.counts == [3, 2, 1]
    assert forward.positions.tolist() == [1, 4, 0, 2, 5, 3]
    assert back.positions.tolist() == [3, 5, 0, 2, 4, 1]


def test_gather_last_takes_the_last_position_or_the_first() -> None:
    h_NH = torch.arange(6.0).unsqueeze(1)
    assert gather_last(h_NH, ROWS).squeeze(1).tolist() == [0, 0, 3, 5]
    assert gather_last(h_NH, ROWS, reverse=True).squeeze(1).tolist() == [0, 0, 1, 4]
    ends_empty = Segments(torch.tensor([0, 6, 6]), 2, 6)
    assert gather_last(h_NH, ends_empty, reverse=True).squeeze(1).tolist() == [0, 0]
    assert gather_last(h_NH[:0], Segments(torch.tensor([0, 0, 0]), 2, 0)).tolist() == [[0], [0]]


def test_a_program_runs_a_fixed_number_of_steps() -> None:
    """The exporter then treats every size of 1 as one dynamic size."""

    class Program(torch.nn.Module):
        def forward(self, x_T1H: torch.Tensor, moves_T: torch.Tensor) -> torch.Tensor:
            return run_steps(lambda state, x: (state[0] * 0.5 + x,), (x_T1H.new_zeros(1, 3),), (x_T1H,), moves_T)[1]

    x_T1H, moves_T = torch.randn(4, 1, 3), torch.tensor([True, False, True, False])
    with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        traced = torch.export.export(Program(), (x_T1H, moves_T)).module()
    for mask in (moves_T, ~moves_T):
        torch.testing.assert_close(traced(x_T1H, mask), Program()(x_T1H, mask))
