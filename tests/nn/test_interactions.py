from __future__ import annotations

import itertools

import torch

from longrec.nn.interactions import pairwise


def test_the_identity_equals_the_sum_over_all_pairs() -> None:
    v = torch.randn(5, 7, 4)
    brute = sum((v[:, i] * v[:, j]).sum(1) for i, j in itertools.combinations(range(7), 2))
    torch.testing.assert_close(pairwise(v), brute, rtol=1e-5, atol=1e-5)


def test_the_order_of_fields_does_not_matter() -> None:
    v = torch.randn(5, 7, 4)
    torch.testing.assert_close(pairwise(v[:, torch.randperm(7)]), pairwise(v))


def test_one_field_has_no_pairs() -> None:
    torch.testing.assert_close(pairwise(torch.randn(5, 1, 4)), torch.zeros(5), rtol=0, atol=1e-6)


def test_a_field_of_zeros_adds_nothing() -> None:
    v = torch.randn(5, 3, 4)
    torch.testing.assert_close(pairwise(torch.cat([v, torch.zeros(5, 1, 4)], 1)), pairwise(v))


def test_the_gradient_of_a_field_is_the_sum_of_the_others() -> None:
    v = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(pairwise(v).sum(), v)
    torch.testing.assert_close(grad, v.sum(1, keepdim=True) - v)


def test_narrow_floats_are_widened_first() -> None:
    v = (torch.randn(3, 40, 16) + 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        interaction = pairwise(v)
    assert interaction.dtype == torch.float32
    torch.testing.assert_close(interaction, pairwise(v.float()))
