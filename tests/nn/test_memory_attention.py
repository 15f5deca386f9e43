"""Attention on the vectors of a memory, vector by vector."""

from __future__ import annotations

import torch

from longrec.nn.memory_attention import MemoryAttention


def test_the_weights_vector_by_vector() -> None:
    torch.manual_seed(0)
    unit, v, m = MemoryAttention(3, [5, 4]), torch.randn(2, 3), torch.randn(2, 4, 3)
    scores = [[unit.score(torch.cat([a, b, a - b, a * b]).unsqueeze(0)).squeeze() for b in row] for a, row in zip(v, m)]
    expected = torch.stack([torch.stack(row).softmax(0) for row in scores])
    torch.testing.assert_close(unit(v, m), expected)
    torch.testing.assert_close(unit(v, m).sum(1), torch.ones(2))
    torch.testing.assert_close(unit(v, m[:, [3, 0, 1, 2]]), expected[:, [3, 0, 1, 2]])
