"""Causal attention over ragged rows: the formula row by row, gradients of padding, and causality."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.nn.segments import Segments
from longrec.nn.self_attention import attend_to_earlier


def by_loops(qkv_NX: Tensor, offsets: list[int], heads: int) -> Tensor:
    """The formula, event by event and head by head."""
    width = qkv_NX.shape[1] // 3
    size, out = width // heads, []
    q, k, v = qkv_NX.split(width, 1)
    for first, stop in zip(offsets, offsets[1:]):
        for at in range(first, stop):
            of_heads = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                w = (k[first : at + 1, own] @ q[at, own] / size**0.5).softmax(0)
                of_heads.append(w @ v[first : at + 1, own])
            out.append(torch.cat(of_heads))
    return torch.stack(out) if out else qkv_NX[:, :width]


def ragged(lengths: list[int]) -> tuple[Segments, list[int]]:
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return Segments(torch.tensor(offsets), len(lengths), offsets[-1]), offsets


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    "lengths", [[3, 0, 1, 5, 2], [4, 4], [5], [0, 0], [2, 3, 4], [1] * 40 + [30, 7], [300, 2, 2, 0, 280]]
)
def test_the_formula_and_its_gradient(lengths: list[int], heads: int) -> None:
    torch.manual_seed(0)
    segments, offsets = ragged(lengths)
    one, other = (torch.randn(offsets[-1], 18, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    one.requires_grad_(), other.requires_grad_()
    actual, expected = attend_to_earlier(one, segments, heads), by_loops(other, offsets, heads)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(actual)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    if offsets[-1]:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_numerical_gradient() -> None:
    torch.manual_seed(0)
    segments, _ = ragged([3, 0, 1, 4])
    qkv_NX = torch.randn(8, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attend_to_earlier(x, segments, 2), (qkv_NX,))


@pytest.mark.parametrize("length", [0, 1, 6])
def test_a_shared_history_is_one_row(length: int) -> None:
    torch.manual_seed(0)
    qkv_TX = torch.randn(length, 12)
    one = Segments(torch.tensor([0, length]), 5, length, shared=True)
    torch.testing.assert_close(attend_to_earlier(qkv_TX, one, 2), by_loops(qkv_TX, [0, length], 2))


def test_an_event_gets_no_gradient_from_an_earlier_one() -> None:
    torch.manual_seed(0)
    segments, offsets = ragged([4, 2, 5])
    qkv_NX = torch.randn(11, 12, requires_grad=True)
    for at in range(11):
        (grad,) = torch.autograd.grad(attend_to_earlier(qkv_NX, segments, 1)[at].sum(), qkv_NX)
        first = max(bound for bound in offsets if bound <= at)
        assert grad[first : at + 1].abs().sum(1).min() > 0
        assert not grad[:first].any()
        assert not grad[at + 1 :].any()


def test_a_traced_program_has_any_length() -> None:
    class Program(torch.nn.Module):
        def forward(self, qkv_TX: Tensor) -> Tensor:
            return attend_to_earlier(qkv_TX, Segments(torch.arange(2), 1, qkv_TX.shape[0], shared=True), 2)

    example = torch.randn(7, 12)
    graph = torch.export.export(Program(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    for length in (2, 7, 30):
        qkv_TX = torch.randn(length, 12)
        torch.testing.assert_close(graph.module()(qkv_TX), by_loops(qkv_TX, [0, length], 2))
