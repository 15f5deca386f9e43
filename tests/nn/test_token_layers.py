from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longrec.nn import token_layers
from longrec.nn.segments import Segments
from longrec.nn.token_attention import TokenInput
from longrec.nn.token_layers import TokenTransformer

KINDS = [(1, None, 1), (1, None, 2), (2, 2, 1), (3, 2, 3)]
"""merge, recent, layers"""


def lively(merge: int, recent: int | None, layers: int) -> tuple[TokenInput, TokenTransformer]:
    torch.manual_seed(0)
    tokens = TokenInput(5, 6, (3, 4), 2, "tanh")
    reader = TokenTransformer(7, tokens, 8, 2, layers, merge, recent)
    with torch.no_grad():
        for parameter in [*tokens.parameters(), *reader.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return tokens.double(), reader.double()


def draw_inputs(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Segments]:
    generator = torch.Generator().manual_seed(5)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    positions = int(offsets[-1])
    ids = torch.stack([torch.randint(0, rows, (positions,), generator=generator) for rows in (3, 4)])
    x = torch.randn(positions, 5, dtype=torch.float64, generator=generator)
    q = torch.randn(len(lengths), 7, dtype=torch.float64, generator=generator)
    return q, x, ids, Segments(offsets, len(lengths), positions)


def affine(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def one_row(reader: TokenTransformer, q_Q: Tensor, tok_TK: Tensor) -> Tensor:
    """The whole sequence with the query at its end, entry by entry, as if there were no other row."""
    merge, tok = reader.merge, list(tok_TK)
    blank = torch.zeros_like(tok[0])
    tok = [blank] * (-len(tok) % merge) + tok
    groups = [torch.cat(tok[at : at + merge]) for at in range(0, len(tok), merge)]
    distances = range(len(groups) - 1, -1, -1)
    x = [
        affine(reader.entry, group) + reader.position_embedding[distance]
        for group, distance in zip(groups, distances, strict=True)
    ]
    y = affine(reader.query, q_Q)
    for number, layer in enumerate(reader.layers):
        heads, size = layer.heads, len(y) // layer.heads
        chunks = [affine(layer.inner, layer.norms[0](entry)).chunk(3) for entry in [*x, y]]

        def attend(at: int, chunks: Any = chunks, layer: Any = layer, heads: int = heads, size: int = size) -> Tensor:
            """Return the attention of the entry at ``at`` over itself and the entries before it."""
            out = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                scores = [chunks[at][0][own] @ chunks[j][1][own] / math.sqrt(size) for j in range(at + 1)]
                weights = torch.stack(scores).softmax(0)
                out.append(sum(w * chunks[j][2][own] for j, w in enumerate(weights)))
            return affine(layer.outer, torch.cat(out))

        def rest(entry: Tensor, seen: Tensor, layer: Any = layer) -> Tensor:
            entry = entry + seen
            first, _, last = layer.network
            return entry + affine(last, nn.functional.gelu(affine(first, layer.norms[1](entry))))

        going = range(len(x) - min(reader.recent or len(x), len(x)) if number == 0 else 0, len(x))
        y, x = rest(y, attend(len(x))), [rest(x[at], attend(at)) for at in going]
    return affine(reader.out, reader.norm(y))


@pytest.mark.parametrize(("merge", "recent", "layers"), KINDS)
@pytest.mark.parametrize("most", [6, 4_096])
def test_it_is_a_causal_transformer_whose_last_entry_is_the_query(
    merge: int, recent: int | None, layers: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_layers, "_MAX_POSITIONS", most)
    tokens, reader = lively(merge, recent, layers)
    q, x, ids, owns = draw_inputs([4, 0, 7, 1])
    output, tok = reader(q, tokens, x, ids, owns), tokens(x, ids)
    for row, (start, stop) in enumerate(zip(owns.offsets.tolist(), owns.offsets.tolist()[1:])):
        if stop > start:
            torch.testing.assert_close(output[row], one_row(reader, q[row], tok[start:stop]))
    assert output.isfinite().all()


@pytest.mark.parametrize(("merge", "recent", "layers"), KINDS)
def test_one_history_that_all_candidates_share(merge: int, recent: int | None, layers: int) -> None:
    tokens, reader = lively(merge, recent, layers)
    q, x, ids, owns = draw_inputs([5, 0, 0])
    shared = reader(q, tokens, x, ids, Segments(owns.offsets[:2], 3, 5, shared=True))
    each = Segments(torch.tensor([0, 5, 10, 15]), 3, 15)
    torch.testing.assert_close(shared, reader(q, tokens, x.repeat(3, 1), ids.repeat(1, 3), each))
    nothing = reader(q, tokens, x[:0], ids[:, :0], Segments(torch.tensor([0, 0]), 3, 0, shared=True))
    assert nothing.isfinite().all()


def test_gradients_do_not_cross_rows_and_reach_every_parameter() -> None:
    tokens, reader = lively(2, 3, 2)
    q, x, ids, owns = draw_inputs([4, 0, 7, 1])
    x.requires_grad_()
    reader(q, tokens, x, ids, owns)[2].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).tolist() == [False] * 4 + [True] * 7 + [False]
    assert all(parameter.grad is not None for parameter in [*tokens.parameters(), *reader.parameters()])
