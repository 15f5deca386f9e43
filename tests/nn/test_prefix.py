"""Means over the beginnings of a history: brute force, gradient, digits, and one pass."""

from __future__ import annotations

import torch

from longrec.nn.prefix import prefix_mean
from longrec.nn.segments import Segments

LENGTHS = [3, 0, 1, 7, 0, 2]


def segments_of(lengths: list[int]) -> Segments:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(offsets, len(lengths), int(offsets[-1]))


def by_hand(v_ND: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    rows = torch.split(v_ND, lengths)
    return torch.stack([row[: t + 1].mean(0) for row in rows for t in range(len(row))])


def test_the_mean_up_to_each_position_and_its_gradient() -> None:
    torch.manual_seed(0)
    v_ND, g_ND = torch.randn(13, 4, requires_grad=True), torch.randn(13, 4)
    actual, expected = prefix_mean(v_ND, segments_of(LENGTHS)), by_hand(v_ND, LENGTHS)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad((mean * g_ND).sum(), v_ND, retain_graph=True)[0] for mean in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_one_history_of_all_positions() -> None:
    v_ND = torch.randn(9, 4)
    shared = Segments(torch.tensor([0, 9]), 1, 9, shared=True)
    torch.testing.assert_close(prefix_mean(v_ND, shared), by_hand(v_ND, [9]))
    assert prefix_mean(v_ND[:0], segments_of([0, 0])).shape == (0, 4)


def test_rows_far_behind_keep_their_digits() -> None:
    """A running sum in float32 would lose three digits of the last row."""
    v_ND = torch.cat([torch.full((20_000, 2), 3.1), torch.tensor([[1e-3, -2e-3], [3e-3, 5e-3]])])
    actual = prefix_mean(v_ND, segments_of([20_000, 2]))
    torch.testing.assert_close(actual[-1], torch.tensor([2e-3, 1.5e-3]), rtol=1e-5, atol=1e-9)


def test_half_floats_are_summed_in_full() -> None:
    v_ND = torch.full((4_000, 1), 1.0, dtype=torch.bfloat16)
    actual = prefix_mean(v_ND, segments_of([4_000]))
    assert actual.dtype == torch.bfloat16
    assert bool((actual == 1).all())
