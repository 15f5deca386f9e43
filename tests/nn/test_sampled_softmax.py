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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", [1, 600])
def test_the_fast_form_is_the_formula(targets: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = torch.rand(targets, 30) < 0.1
    bias_n = torch.randn(30) if bias else None
    results = []
    for plain in (True, False):
        monkeypatch.setattr(module, "use_plain_formula", lambda x, plain=plain: plain)
        own = inputs(targets, 30)
        loss_T = sampled_softmax(*own, masked, bias_n)
        (loss_T * torch.arange(targets)).mean().backward()
        results.append([loss_T.detach(), *(x.grad for x in own)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_target_without_negatives_has_no_loss() -> None:
    state, negative, positive = inputs(600, 3)
    loss_T = sampled_softmax(state, negative, positive, torch.ones(600, 3, dtype=torch.bool))
    torch.testing.assert_close(loss_T.detach(), torch.zeros(600))
