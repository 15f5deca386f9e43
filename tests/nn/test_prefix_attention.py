"""Attention of prefixes, and matrices by position, against loops over histories."""

from __future__ import annotations

import torch

from longrec.nn.position_matrices import PositionMatrices
from longrec.nn.prefix_attention import attend_each, attend_each_prefix
from longrec.nn.segments import Segments
from longrec.testing.batches import offsets

LENGTHS = [3, 0, 8, 1, 2]


def test_every_prefix_attends_to_its_events_alone() -> None:
    torch.manual_seed(0)
    # Scores far apart: what is computed for one prefix must not underflow in another.
    s_NK, v_ND = 60 * torch.randn(14, 2), torch.randn(14, 4)
    segments = Segments(offsets(LENGTHS), 5, 14)
    whole, prefixes = attend_each(s_NK, v_ND, segments), attend_each_prefix(s_NK, v_ND, segments)
    assert not whole[1].any()
    first = 0
    for row, length in enumerate(LENGTHS):
        for stop in range(first + 1, first + length + 1):
            expected = s_NK[first:stop].softmax(0).t() @ v_ND[first:stop]
            torch.testing.assert_close(prefixes[stop - 1], expected)
        first += length
        if length:
            torch.testing.assert_close(whole[row], prefixes[first - 1])
    one = Segments(offsets([8]), 1, 8, shared=True)
    torch.testing.assert_close(attend_each_prefix(s_NK[3:11], v_ND[3:11], one), prefixes[3:11])
    none = Segments(offsets([0]), 1, 0, shared=True)
    assert attend_each_prefix(s_NK[:0], v_ND[:0], none).shape == (0, 2, 4)


def test_the_matrix_is_that_of_the_position_from_the_oldest_event() -> None:
    torch.manual_seed(0)
    layer, x_NI = PositionMatrices(4, 3, 5, 1.0), torch.randn(14, 3)
    rank = [at for length in LENGTHS for at in range(length)]
    expected = torch.stack([x @ layer.weight[min(at, 3)] for x, at in zip(x_NI, rank)])
    torch.testing.assert_close(layer(x_NI, Segments(offsets(LENGTHS), 5, 14)), expected)
    torch.testing.assert_close(layer(x_NI[3:11], Segments(offsets([8]), 1, 8, shared=True)), expected[3:11])
    assert layer(x_NI[:0], Segments(offsets([0]), 1, 0)).shape == (0, 5)
