from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.nn import folded_attention
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer

LENGTHS = [3, 0, 7, 1, 7, 2, 40, 0, 39]


def segments() -> Segments:
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return Segments(offsets, len(LENGTHS), int(offsets[-1]))


@pytest.mark.parametrize("beside", [False, True])
def test_folded_attention_is_that_over_keys_and_values(beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, own = EncoderLayer(8, 2, 12).double(), segments()
    attention = BucketedAttention(own)
    y = torch.randn(own.rows, 8, dtype=torch.float64, requires_grad=True)
    x = torch.randn(own.positions, 8, dtype=torch.float64, requires_grad=True)
    leaves, upstream = [y, x, *encoder.parameters()], torch.randn(own.rows, 8, dtype=torch.float64)
    results = []
    for folds in (True, False):
        monkeypatch.setattr(BucketedAttention, "folds", lambda self, x, folds=folds: folds)
        inputs = attention.gather_rows(y), attention.gather_positions(x)
        z, w = encoder.attend_query(*inputs, attention, beside)
        gradients = torch.autograd.grad(attention.restore_rows(z), leaves, upstream)
        results.append((z, attention.restore_positions(w), *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("beside", [False, True])
def test_gradients_of_folded_attention(beside: bool) -> None:
    torch.manual_seed(0)
    own = segments()
    attention = BucketedAttention(own)
    assert any(bucket.slots is not None for bucket in attention.buckets)
    sizes = [(own.rows, 2, 3), (own.positions, 4), (own.rows, 4), (6, 4), (6, 4)]
    leaves = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]

    def attend(q: Tensor, x: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
        return folded_attention.attend(q, x, y if beside else None, *weights, attention.buckets)[0]

    if not beside:
        leaves[2].requires_grad_(False)
    assert torch.autograd.gradcheck(attend, leaves)


def test_a_history_that_all_rows_share_and_another_device_keep_keys_and_values() -> None:
    x = torch.randn(5, 4)
    assert not BucketedAttention(Segments(torch.tensor([0, 5]), 3, 5, shared=True)).folds(x)
    assert not BucketedAttention(segments()).folds(x.to("meta"))
    assert BucketedAttention(segments()).folds(x)
