from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longrec.nn.encoder import EncoderLayer, Score
from longrec.nn.rectangles import Rectangles
from longrec.nn.segment import Segments

SCORES: list[Score] = ["dot", "relu", "bilinear", "cosine"]
LENGTHS = [3, 0, 7, 1, 7, 2]


def segments() -> Segments:
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return Segments(offsets, len(LENGTHS), int(offsets[-1]))


def layer(score: Score = "dot", **settings: Any) -> EncoderLayer:
    torch.manual_seed(0)
    made = EncoderLayer(8, 2, 12, score=score, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def as_written(made: EncoderLayer, y: Tensor, x: Tensor) -> Tensor:
    """Queries y of one row over its events x, head by head."""
    w_q, w_k, w_v = made.inner.weight.chunk(3)
    heads, size = [], 4
    for head in range(2):
        at = slice(head * size, (head + 1) * size)
        q, k, v = y @ w_q[at].t(), x @ w_k[at].t(), x @ w_v[at].t()
        if made.bias is not None:
            q, v = (q + made.bias[0, at]).relu(), (v + made.bias[1, at]).relu()
        if made.score == "bilinear":
            s = torch.einsum("ia,ab,jb->ij", q, w_k[at], x)
        elif made.score == "cosine":
            assert made.scale is not None
            s = made.scale[head] * F.cosine_similarity(q.unsqueeze(1), k.unsqueeze(0), dim=2)
        else:
            k = k if made.bias is None else (k + made.bias[2, at]).relu()
            s = q @ k.t() / size**0.5
        heads.append(s.softmax(1) @ v)
    first, second = (made.norms[0], made.norms[1]) if made.norms else (torch.nn.Identity(), torch.nn.Identity())
    keep = float(made.residual)
    s = first(keep * y + torch.cat(heads, 1) @ made.outer.weight.t())
    h = made.activation(s @ made.first.weight.t() + made.first.bias)
    return cast(Tensor, second(keep * s + h @ made.second.weight.t() + made.second.bias))


@pytest.mark.parametrize("settings", [{}, {"residual": False, "norm": False, "activation": "gelu"}], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_a_layer_is_its_equations_row_by_row(score: Score, settings: dict[str, Any]) -> None:
    made, owns = layer(score, **settings), segments()
    x, y = torch.randn(owns.positions, 8), torch.randn(owns.rows, 8)
    lay = Rectangles(owns)
    events = lay.positions_back(made(lay.positions_in(x), lay))
    told = lay.rows_back(made.query(lay.rows_in(y), lay.positions_in(x), lay)[0])
    for row, (start, stop) in enumerate(pairwise(owns.offsets.tolist())):
        torch.testing.assert_close(events[start:stop], as_written(made, x[start:stop], x[start:stop]))
        if stop > start:
            torch.testing.assert_close(told[row : row + 1], as_written(made, y[row : row + 1], x[start:stop]))
        else:
            torch.testing.assert_close(told[row : row + 1], made.rest(y[row : row + 1], torch.zeros(1, 8)))


def test_the_scale_of_the_cosine_begins_at_ten_and_learns() -> None:
    made, owns = EncoderLayer(8, 2, 12, score="cosine"), segments()
    assert made.scale is not None
    assert made.scale.tolist() == [10.0, 10.0]
    x = torch.randn(owns.positions, 8)
    lay = Rectangles(owns)
    made(x, lay).pow(2).sum().backward()
    assert made.scale.grad is not None
    assert (made.scale.grad != 0).all()
    q, k, _ = made.parts(x)
    torch.testing.assert_close(q.view(-1, 2, 4).norm(dim=2), torch.full((len(x), 2), 10.0))
    torch.testing.assert_close(k.view(-1, 2, 4).norm(dim=2), torch.ones(len(x), 2))


@pytest.mark.parametrize("score", SCORES)
def test_every_parameter_learns(score: Score) -> None:
    made, owns = layer(score), segments()
    lay = Rectangles(owns)
    made(torch.randn(owns.positions, 8), lay).pow(3).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_heads_need_not_divide_the_width() -> None:
    made, owns = EncoderLayer(7, 3, 5), segments()
    lay = Rectangles(owns)
    assert made(torch.randn(owns.positions, 7), lay).shape == (owns.positions, 7)
    assert (made.inner.out_features, made.outer.in_features) == (27, 9)
