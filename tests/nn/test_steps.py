"""How ragged rows are laid out by time; what the walk of rows of one length does is in the tests of the recurrences."""

from __future__ import annotations

import torch

from longrec.nn.segment import Segments
from longrec.nn.steps import Steps, last_of

ROWS = Segments(torch.tensor([0, 1, 1, 4, 6]), 4, 6)


def test_moments_hold_the_rows_that_are_alive() -> None:
    forward, back = Steps.of(ROWS), Steps.of(ROWS, reverse=True)
    for steps in (forward, back):
        assert steps.order.tolist() == [2, 3, 0, 1]
        assert steps.counts == [3, 2, 1]
    assert forward.places.tolist() == [1, 4, 0, 2, 5, 3]
    assert back.places.tolist() == [3, 5, 0, 2, 4, 1]


def test_last_of_takes_the_last_position_or_the_first() -> None:
    h_NH = torch.arange(6.0).unsqueeze(1)
    assert last_of(h_NH, ROWS).squeeze(1).tolist() == [0, 0, 3, 5]
    assert last_of(h_NH, ROWS, reverse=True).squeeze(1).tolist() == [0, 0, 1, 4]
    ends_empty = Segments(torch.tensor([0, 6, 6]), 2, 6)
    assert last_of(h_NH, ends_empty, reverse=True).squeeze(1).tolist() == [0, 0]
    assert last_of(h_NH[:0], Segments(torch.tensor([0, 0, 0]), 2, 0)).tolist() == [[0], [0]]
