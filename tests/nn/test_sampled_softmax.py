"""The softmax over a target and shared negatives: its fast form is the formula, and so is the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.nn import sampled_softmax as module
from longrec.nn.sampled_softmax import sampled_softmax


def inputs(targets: int, negatives: int) -> list[Tensor]:
    torch.manual_seed(0)
    state, negative, positive = torch.randn(targets, 8), torch.randn(negatives, 8), torch.randn(targets)
    return [x.requires_grad_() for x in (state, negative, positive)]


@pytest.mark.parametrize(("bias", "items", "pairs"), [(True, 40, 0), (False, 40, 0), (False, 400, 0), (True, 40, 50)])
@pytest.mark.parametrize("targets", [1, 600])
def test_the_fast_form_is_the_formula(
    targets: int, bias: bool, items: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if most targets are among the negatives or few, and with pairs that are left out."""
    target, drawn = torch.randint(0, items, (targets,)), torch.randint(0, items, (30,))
    bias_n = torch.randn(30) if bias else None
    hits_2P = torch.stack([torch.randint(0, targets, (pairs,)), torch.randint(0, 30, (pairs,))]) if pairs else None
    results = []
    for plain in (True, False):
        monkeypatch.setattr(module, "use_plain_formula", lambda x, plain=plain: plain)
        own = inputs(targets, 30)
        loss_T = sampled_softmax(*own, target, drawn, bias_n, hits_2P)
        (loss_T * torch.arange(targets)).mean().backward()
        results.append([loss_T.detach(), *(x.grad for x in own)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_target_without_negatives_has_no_loss() -> None:
    state, negative, positive = inputs(600, 3)
    items = torch.zeros(603, dtype=torch.int64)
    loss_T = sampled_softmax(state, negative, positive, items[:600], items[600:])
    torch.testing.assert_close(loss_T.detach(), torch.zeros(600))


@pytest.mark.parametrize("targets", [2, 600])
def test_pairs_that_are_left_out_are_not_in_the_sum(targets: int) -> None:
    """Nothing is left of a target whose negatives are all left out, and others lose exactly what is."""
    state, negative, positive = inputs(targets, 3)
    items = torch.arange(targets + 3)
    hits_2P = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 2]])
    loss_T = sampled_softmax(state, negative, positive, items[:targets], items[targets:], None, hits_2P)
    z = (state @ negative.t()).detach()
    assert float(loss_T[0].detach()) == pytest.approx(0, abs=1e-6)
    expected = torch.cat([positive[1:2], z[1, :2]]).logsumexp(0) - positive[1]
    assert float(loss_T[1].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 50.0, 1e3])
def test_large_scores_have_a_finite_loss(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    target, drawn = torch.randint(0, 40, (600,)), torch.randint(0, 40, (30,))
    results = []
    for plain in (True, False):
        monkeypatch.setattr(module, "use_plain_formula", lambda x, plain=plain: plain)
        state, negative, positive = inputs(600, 30)
        loss_T = sampled_softmax(state * scale, negative, positive * scale, target, drawn)
        loss_T.mean().backward()
        results.append([loss_T.detach(), state.grad])
    assert bool(torch.isfinite(results[1][0]).all())
    for one, other in zip(*results):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(scale, 1))
