"""Multi-head target attention: the equations per row and head, in every layout of chosen events."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.nn.chosen import Chosen
from longrec.nn.segments import Segments
from longrec.nn.target_heads import TargetHeads
from longrec.testing.batches import FEW, grouped, ragged, shared


def attend(heads: TargetHeads, q_Q: Tensor, e_SK: Tensor) -> tuple[Tensor, Tensor]:
    """The equations for one row: u and the weights ``[S, H]``."""
    d, outputs, weights = heads.size, [], []
    for head in range(heads.heads):
        own = slice(head * d, (head + 1) * d)
        q = heads.query.weight[own] @ q_Q + heads.query.bias[own]
        s = torch.stack([q @ (heads.key.weight[own] @ e) / d**0.5 for e in e_SK]) if len(e_SK) else e_SK[:, 0]
        w = s.softmax(0)
        o = torch.zeros(d)
        for w_j, e in zip(w, e_SK):
            o = o + w_j * (heads.value.weight[own] @ e)
        outputs.append(o)
        weights.append(w)
    return heads.out.weight @ torch.cat(outputs), torch.stack(weights, 1)


def compare(heads: TargetHeads, q_BQ: Tensor, k_MK: Tensor, chosen: Chosen, rows: list[Tensor]) -> None:
    """Compare with the equations for rows that read these vectors."""
    expected, weights = zip(*(attend(heads, q, e_SK) for q, e_SK in zip(q_BQ, rows, strict=True)))
    torch.testing.assert_close(heads(q_BQ, k_MK, chosen), torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads.weights(q_BQ, k_MK, chosen), torch.cat(weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "heads", "size"), [(8, 2, 4), (7, 3, 3), (5, 1, 5)])
def test_the_equations_in_every_layout(width: int, heads: int, size: int) -> None:
    layer = TargetHeads(4, 6, width, heads)
    assert layer.size == size
    with torch.no_grad():
        for batch in (ragged(7, fields=FEW), grouped([2, 0, 0, 1, 3], fields=FEW), shared(3, 5, fields=FEW)):
            segments = Segments.of(batch, "seen")
            k_UK, q_BQ = torch.randn(segments.requests.positions, 6), torch.randn(segments.rows, 4)
            k_NK, flat = segments.flatten(k_UK)
            bounds = flat.offsets.tolist()
            rows = [k_UK] * segments.rows if segments.shared else [k_NK[a:b] for a, b in zip(bounds, bounds[1:])]
            compare(layer, q_BQ, k_UK, Chosen(segments), rows)
        k_MK, q_BQ = torch.randn(3 * 4, 6), torch.randn(3, 4)
        compare(layer, q_BQ, k_MK, Chosen(segments, size=4), list(k_MK.view(3, 4, 6)))
        assert (layer(q_BQ, k_MK[:0], Chosen(segments, size=0)) == 0).all()


def test_a_row_without_events_is_zero() -> None:
    layer, q_BQ = TargetHeads(4, 6, 8, 2), torch.randn(2, 4)
    for batch in (ragged(2, lengths=[0, 0], fields=FEW), shared(2, 0, fields=FEW)):
        assert (layer(q_BQ, torch.randn(0, 6), Chosen(Segments.of(batch, "seen"))) == 0).all()
