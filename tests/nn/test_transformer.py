from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longrec.features.batch import Layout
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.segments import GroupedSegments, Segments
from longrec.nn.transformer import EncoderLayer, Score

SCORES: list[Score] = ["dot", "relu", "bilinear", "cosine"]
LENGTHS = [3, 0, 7, 1, 7, 2]


def segments() -> Segments:
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return Segments(offsets, len(LENGTHS), int(offsets[-1]))


def layer(score: Score = "dot", **settings: Any) -> EncoderLayer:
    torch.manual_seed(0)
    encoder = EncoderLayer(8, 2, 12, score=score, **settings)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return encoder


def as_written(encoder: EncoderLayer, y: Tensor, x: Tensor) -> Tensor:
    """Queries y of one row over its events x, head by head."""
    w_q, w_k, w_v = encoder.inner.weight.chunk(3)
    heads, size = [], 4
    for head in range(2):
        at = slice(head * size, (head + 1) * size)
        q, k, v = y @ w_q[at].t(), x @ w_k[at].t(), x @ w_v[at].t()
        if encoder.bias is not None:
            q, v = (q + encoder.bias[0, at]).relu(), (v + encoder.bias[1, at]).relu()
        if encoder.score == "bilinear":
            s = torch.einsum("ia,ab,jb->ij", q, w_k[at], x)
        elif encoder.score == "cosine":
            assert encoder.scale is not None
            s = encoder.scale[head] * F.cosine_similarity(q.unsqueeze(1), k.unsqueeze(0), dim=2)
        else:
            k = k if encoder.bias is None else (k + encoder.bias[2, at]).relu()
            s = q @ k.t() / size**0.5
        heads.append(s.softmax(1) @ v)
    first, second = (
        (encoder.norms[0], encoder.norms[1]) if encoder.norms else (torch.nn.Identity(), torch.nn.Identity())
    )
    keep = float(encoder.residual)
    s = first(keep * y + torch.cat(heads, 1) @ encoder.outer.weight.t())
    h = encoder.activation(s @ encoder.first.weight.t() + encoder.first.bias)
    return cast(Tensor, second(keep * s + h @ encoder.second.weight.t() + encoder.second.bias))


@pytest.mark.parametrize("settings", [{}, {"residual": False, "norm": False, "activation": "gelu"}], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_a_layer_is_its_equations_row_by_row(score: Score, settings: dict[str, Any]) -> None:
    encoder, owns = layer(score, **settings), segments()
    x, y = torch.randn(owns.positions, 8), torch.randn(owns.rows, 8)
    attention = BucketedAttention(owns)
    events = attention.restore_positions(encoder(attention.gather_positions(x), attention))
    queries = attention.restore_rows(
        encoder.attend_query(attention.gather_rows(y), attention.gather_positions(x), attention)[0]
    )
    for row, (start, stop) in enumerate(pairwise(owns.offsets.tolist())):
        torch.testing.assert_close(events[start:stop], as_written(encoder, x[start:stop], x[start:stop]))
        if stop > start:
            torch.testing.assert_close(queries[row : row + 1], as_written(encoder, y[row : row + 1], x[start:stop]))
        else:
            torch.testing.assert_close(queries[row : row + 1], encoder.rest(y[row : row + 1], torch.zeros(1, 8)))


@pytest.mark.parametrize("score", SCORES)
def test_rows_of_a_group_query_the_events_of_their_request(score: Score) -> None:
    """Keys and values are made once per request."""
    encoder, stored, owner = layer(score), segments(), [4, 1, 0, 4, 2, 4]
    owns = GroupedSegments(stored, Layout.grouped(stored.rows, np.array(owner, np.int64)))
    x, y, attention = torch.randn(stored.positions, 8), torch.randn(owns.rows, 8), BucketedAttention(owns)
    x_UD, sizes = attention.requests.gather_positions(x), []
    encoder.outer.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    x_UD = encoder(x_UD, attention.requests)
    actual = attention.restore_rows(encoder.attend_query(attention.gather_rows(y), x_UD, attention)[0])
    assert sizes == [stored.positions, owns.rows]
    edges = stored.offsets.tolist()
    for row, request in enumerate(owner):
        events, one = x[edges[request] : edges[request + 1]], y[row : row + 1]
        if len(events):
            torch.testing.assert_close(
                actual[row : row + 1], as_written(encoder, one, as_written(encoder, events, events))
            )
        else:
            torch.testing.assert_close(actual[row : row + 1], encoder.rest(one, torch.zeros(1, 8)))


def test_the_scale_of_the_cosine_begins_at_ten_and_learns() -> None:
    encoder, owns = EncoderLayer(8, 2, 12, score="cosine"), segments()
    assert encoder.scale is not None
    assert encoder.scale.tolist() == [10.0, 10.0]
    x = torch.randn(owns.positions, 8)
    attention = BucketedAttention(owns)
    encoder(x, attention).pow(2).sum().backward()
    assert encoder.scale.grad is not None
    assert (encoder.scale.grad != 0).all()
    q, k, _ = encoder.project(x)
    torch.testing.assert_close(q.view(-1, 2, 4).norm(dim=2), torch.full((len(x), 2), 10.0))
    torch.testing.assert_close(k.view(-1, 2, 4).norm(dim=2), torch.ones(len(x), 2))


@pytest.mark.parametrize("score", SCORES)
def test_every_parameter_learns(score: Score) -> None:
    encoder, owns = layer(score), segments()
    attention = BucketedAttention(owns)
    encoder(torch.randn(owns.positions, 8), attention).pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_heads_need_not_divide_the_width() -> None:
    encoder, owns = EncoderLayer(7, 3, 5), segments()
    attention = BucketedAttention(owns)
    assert encoder(torch.randn(owns.positions, 7), attention).shape == (owns.positions, 7)
    assert (encoder.inner.out_features, encoder.outer.in_features) == (27, 9)
