from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from longrec.nn.activation import BatchNorm, Dice, PReLU, make_activation
from longrec.testing.pretend_device import DEVICE, PretendDevice, move_model


def test_dice_is_its_equation() -> None:
    dice, x = Dice(3).train(), torch.randn(50, 3) * 2 + 1
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.5, -1.0]))
    p = torch.sigmoid((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-8).sqrt())
    torch.testing.assert_close(dice(x), p * x + (1 - p) * dice.alpha * x)


def test_dice_starts_with_alpha_zero_and_no_other_weight() -> None:
    assert {name: value.tolist() for name, value in Dice(2).named_parameters()} == {"alpha": [0.0, 0.0]}


def test_dice_in_evaluation_reads_running_statistics_and_no_other_row() -> None:
    dice = Dice(2).train()
    for _ in range(200):
        dice(torch.randn(500, 2) * 3 + 5)
    dice.eval()
    x = torch.randn(7, 2)
    p = torch.sigmoid((x - 5) / 3)
    torch.testing.assert_close(dice(x), p * x, rtol=0.1, atol=0.05)
    torch.testing.assert_close(dice(x)[:1], dice(x[:1]), rtol=1e-6, atol=1e-7)


def test_running_statistics_begin_with_the_first_batch() -> None:
    norm, theirs = BatchNorm(2).train(), nn.BatchNorm1d(2).train()
    batches = [torch.randn(64, 2) * 0.01 + 3 for _ in range(30)]
    for number, x in enumerate(batches[:10], 1):
        torch.testing.assert_close(norm(x), theirs(x))
        seen = batches[:number]
        torch.testing.assert_close(norm.running_mean, torch.stack([one.mean(0) for one in seen]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([one.var(0) for one in seen]).mean(0))
    mean = norm.running_mean.clone()
    for x in batches[10:]:  # afterwards by a tenth of the difference per batch, as in PyTorch
        norm(x)
        mean = 0.9 * mean + 0.1 * x.mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    again = BatchNorm(2).train()  # resumed: it does not start again
    again.load_state_dict(norm.state_dict())
    again(batches[0])
    norm(batches[0])
    assert torch.equal(again.running_var, norm.running_var)


@pytest.mark.parametrize("rows", [0, 1])
def test_normalization_takes_a_batch_too_small_to_measure(rows: int) -> None:
    norm = BatchNorm(2).train()
    before = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(rows, 2)
    torch.testing.assert_close(norm(x), x, rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])


def test_prelu_is_that_of_torch() -> None:
    ours, theirs, x = PReLU(4), nn.PReLU(4), torch.randn(9, 4)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([0.1, -0.3, 0.0, 2.0]))
        theirs.weight.copy_(ours.weight)
    torch.testing.assert_close(ours(x), theirs(x))


def test_names_make_their_activation() -> None:
    x = torch.tensor([[-2.0, 3.0]])
    assert make_activation("relu", 2)(x).tolist() == [[0.0, 3.0]]
    assert make_activation("prelu", 2)(x).tolist() == [[-0.5, 3.0]]
    torch.testing.assert_close(make_activation("sigmoid", 2)(x), x.sigmoid())
    torch.testing.assert_close(make_activation("tanh", 2)(x), x.tanh())
    torch.testing.assert_close(make_activation("leaky_relu", 2)(x), torch.tensor([[-0.4, 3.0]]))
    torch.testing.assert_close(make_activation("elu", 2)(x), torch.tensor([[math.exp(-2) - 1, 3.0]]))
    torch.testing.assert_close(
        make_activation("selu", 2)(x), 1.0507010 * torch.tensor([[1.6732632 * (math.exp(-2) - 1), 3.0]])
    )
    torch.testing.assert_close(make_activation("swish", 2)(x), x * x.sigmoid())
    assert make_activation("linear", 2)(x) is x
    assert isinstance(make_activation("dice", 2), Dice)


def test_loaded_running_statistics_go_on_where_they_were() -> None:
    """The number of batches comes with the weights, and is not read from the device."""
    torch.manual_seed(0)
    one, other, batches = BatchNorm(3), BatchNorm(3), [torch.randn(5, 3) + at for at in range(4)]
    for batch in batches[:2]:
        one(batch)
    other.load_state_dict(one.state_dict())
    with PretendDevice() as device:
        there = move_model(copy.deepcopy(one))
        device.waits.clear()
        for batch in batches[2:]:
            for norm in (one, other):
                norm(batch)
            there(batch.to(DEVICE, non_blocking=True))
        assert not device.waits
        for name, tensor in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name
            assert torch.equal(there.state_dict()[name].cpu(), tensor), name
