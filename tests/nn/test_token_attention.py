from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longrec.nn import token_attention, token_kernel
from longrec.nn.segments import Segments
from longrec.nn.token_attention import TokenAttention, TokenInput, TokenInterest
from longrec.nn.token_kernel import attend

SIDES = (3, 4, 600)
"""Ids of each side column; the third has too many to be grouped with the others."""


def lively(module: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module.double()


def segments(lengths: list[int]) -> Segments:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(offsets, len(lengths), int(offsets[-1]))


def draw(positions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Content of width 5 and ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, rows, (positions,), generator=generator) for rows in SIDES]
    return torch.randn(positions, 5, dtype=torch.float64, generator=generator), torch.stack(ids)


def queries(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias


def token(tokens: TokenInput, x_I: Tensor, ids: Tensor) -> Tensor:
    a = affine(tokens.adapt, x_I).relu()
    return torch.cat([a, *(table[int(at)] for table, at in zip(tokens.sides, ids, strict=True))])


def by_hand(attention: TokenAttention, q_Q: Tensor, toks: list[Tensor]) -> Tensor:
    """The formulas of one row, head by head and position by position."""
    heads, q = attention.heads, affine(attention.query, q_Q)
    size = len(q) // heads
    out = []
    for head in range(heads):
        span = slice(head * size, (head + 1) * size)
        scores = [q[span] @ (attention.key.weight @ tok)[span] / math.sqrt(size) for tok in toks]
        values = [(attention.value.weight @ tok)[span] for tok in toks]
        weights = torch.stack(scores).softmax(0) if toks else []
        out.append(sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros(size, dtype=q.dtype)))
    return affine(attention.out, torch.cat(out))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_attention_is_the_formula_position_by_position(
    fused: bool, activation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_attention, "_runs_absorbed", lambda x: fused)
    tokens = lively(TokenInput(5, 6, SIDES, 2, activation))
    attention = lively(TokenAttention(7, tokens, 8, 2))
    lengths = [3, 0, 5, 1]
    (x, ids), q, owns = draw(9), queries(4), segments(lengths)
    if activation == "gelu":  # adapted before, by hand
        a = nn.functional.gelu(x @ tokens.adapt.weight.T + tokens.adapt.bias)
        toks = [torch.cat([a[n], *(t[int(i)] for t, i in zip(tokens.sides, ids[:, n]))]) for n in range(9)]
    else:
        toks = [token(tokens, x[n], ids[:, n]) for n in range(9)]
    starts = owns.offsets.tolist()
    expected = [by_hand(attention, q[row], toks[starts[row] : starts[row + 1]]) for row in range(4)]
    torch.testing.assert_close(attention(q, tokens, x, ids, owns), torch.stack(expected))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(1, 60), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_absorbed_and_in_buckets_it_is_the_plain_attention(lengths: list[int], most: int, seed: int) -> None:
    """Values and gradients, for buckets of any size."""
    tokens = lively(TokenInput(5, 6, SIDES, 2))
    attention = lively(TokenAttention(7, tokens, 8, 2))
    (x, ids), q, owns = draw(sum(lengths), seed), queries(len(lengths), seed), segments(lengths)
    x.requires_grad_()
    wanted = [x, *tokens.parameters(), *attention.parameters()]
    results = []
    for fused in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_attention, "_runs_absorbed", lambda x, fused=fused: fused)
            patch.setattr(token_kernel, "_MAX_POSITIONS", most)
            h = attention(q, tokens, x, ids, owns)
        grads = torch.autograd.grad((h * torch.linspace(-1, 1, h.numel()).view_as(h)).sum(), wanted)
        results.append((h, *grads))
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("adapted", "most"), [(False, 1_000), (True, 3)])
def test_the_gradient_by_hand_is_right(adapted: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one bucket that is padded, and in several."""
    monkeypatch.setattr(token_kernel, "_MAX_POSITIONS", most)
    owns, generator = segments([2, 0, 1, 3]), torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    ids = torch.stack([torch.randint(0, 3, (6,), generator=generator), torch.randint(3, 5, (6,), generator=generator)])
    x, w, b, u, p = some(6, 3), some(2, 3), some(2), some(4, 2, 3 if adapted else 2), some(4, 2, 5)
    if adapted:
        assert torch.autograd.gradcheck(lambda x, u, p: attend(x, None, ids, u, p, owns), (x, u, p))
    else:
        assert torch.autograd.gradcheck(lambda x, w, b, u, p: attend(x, (w, b), ids, u, p, owns), (x, w, b, u, p))


def test_in_narrow_numbers_it_computes_in_wide_ones() -> None:
    tokens = TokenInput(5, 6, SIDES, 2)
    attention = TokenAttention(7, tokens, 8, 2)
    (x, ids), q, owns = draw(700), queries(2).float(), segments([400, 300])
    expected = attention(q, tokens, x.float(), ids, owns)
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(q.bfloat16(), tokens, x.float(), ids, owns)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.01)
    output.sum().backward()
    assert tokens.adapt.weight.grad is not None


def test_no_gradient_is_computed_for_content_that_wants_none() -> None:
    owns, x = segments([400, 300]), torch.randn(700, 5)
    tokens = TokenInput(5, 6, (3,), 2)
    attention = TokenAttention(7, tokens, 8, 2)
    kept = x.clone()
    attention(torch.randn(2, 7), tokens, x, torch.zeros(1, 700, dtype=torch.int64), owns).sum().backward()
    assert x.grad is None
    assert torch.equal(x, kept)
    assert tokens.adapt.weight.grad is not None


def test_side_columns_that_are_few_together_are_looked_up_together() -> None:
    heights = (3, 4, 600, 2, 200)
    tokens = lively(TokenInput(5, 6, heights, 2))
    assert tokens.groups == [[0, 1], [2], [3, 4]]
    ids = torch.stack([torch.randint(0, rows, (50,)) for rows in heights])
    first, columns, ends = 0, [], []
    for (own, table), at in zip(tokens.build_tables(), tokens.compute_table_rows(ids), strict=True):
        columns.append(table[at - first])
        first += len(table)
        ends.append((own.start, own.stop))
    assert ends == [(6, 10), (10, 12), (12, 16)]
    torch.testing.assert_close(torch.cat(columns, 1), tokens(torch.zeros(50, 5).double(), ids)[:, 6:])


def test_without_side_information() -> None:
    tokens = lively(TokenInput(5, 6, (), 2))
    attention = lively(TokenAttention(7, tokens, 8, 2))
    owns, q, x = segments([700, 3]), queries(2), draw(703)[0]
    none = torch.zeros(0, 703, dtype=torch.int64)
    output = attention(q, tokens, x, none, owns)
    expected = by_hand(attention, q[1], [token(tokens, x[n], none[:, n]) for n in range(700, 703)])
    torch.testing.assert_close(output[1], expected)


def test_din_reads_tokens_by_its_activation_unit() -> None:
    tokens = lively(TokenInput(5, 6, SIDES, 2))
    interest = lively(TokenInterest(7, tokens, 4, [3]))
    (x, ids), q, owns = draw(6), queries(3), segments([4, 0, 2])
    keys = [affine(interest.key, token(tokens, x[n], ids[:, n])) for n in range(6)]
    expected = []
    for row, (start, stop) in enumerate([(0, 4), (4, 4), (4, 6)]):
        v, first, h = affine(interest.query, q[row]), interest.unit.first, torch.zeros(4, dtype=torch.float64)
        for k in keys[start:stop]:
            unit = first.weight_q @ v + first.weight_k @ k + first.weight_m @ (v * k) + first.bias
            h = h + affine(interest.unit.rest.last, unit.relu()) * k
        expected.append(h)
    torch.testing.assert_close(interest(q, tokens, x, ids, owns), torch.stack(expected))


@pytest.mark.parametrize("make", [lambda t: TokenAttention(7, t, 8, 2), lambda t: TokenInterest(7, t, 8, [3])])
@pytest.mark.parametrize("events", [0, 5])
def test_one_history_that_all_candidates_share(make: Callable[[TokenInput], Any], events: int) -> None:
    tokens = lively(TokenInput(5, 6, SIDES, 2))
    reader = lively(make(tokens))
    (x, ids), q = draw(events), queries(4)
    shared = Segments(torch.tensor([0, events]), 4, events, shared=True)
    each = reader(q, tokens, x.repeat(4, 1), ids.repeat(1, 4), segments([events] * 4))
    torch.testing.assert_close(reader(q, tokens, x, ids, shared), each)
    tok = tokens(x, ids)
    torch.testing.assert_close(
        reader.weights(q, tok, shared), reader.weights(q, tok.repeat(4, 1), segments([events] * 4))
    )
