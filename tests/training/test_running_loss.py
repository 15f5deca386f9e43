"""Tests of the sum of training losses, read at once on the CPU and rarely on another device."""

from __future__ import annotations

import math

import pytest
import torch

from longrec.errors import RunError
from longrec.testing.pretend_device import DEVICE, PretendDevice
from longrec.training.running_loss import RunningLoss

LOSSES = [0.7, 0.1 + 0.2, 1 / 3, 12.5]


def test_the_sum_is_the_same_to_the_bit_on_every_device() -> None:
    here, there = RunningLoss("run", False, 0.25, 2), RunningLoss("run", False, 0.25, 2)
    expected = 0.25
    with PretendDevice() as device:
        for step, loss in enumerate(torch.tensor(LOSSES)):
            expected += loss.item() * 7
            here.add(loss, 7, step)
            there.add(loss.to(DEVICE), 7, step)
        device.waits.clear()
        assert here.read() == there.read() == expected
        assert here.rows == there.rows == 2 + 7 * len(LOSSES)
        assert device.waits == {"tolist": 1}
        there.reset()
        assert (there.read(), there.rows) == (0.0, 0)
        assert sum(device.waits.values()) == 1


def test_a_loss_that_is_not_finite_is_refused_at_once_on_the_cpu() -> None:
    losses = RunningLoss("run", True)
    with pytest.raises(RunError, match=r"run: step 4: the loss is nan; .*\n.*train without fit\.bf16"):
        losses.add(torch.tensor(math.nan), 5, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_on_another_device_the_first_bad_step_is_named_when_the_sum_is_read(bad: float) -> None:
    losses = RunningLoss("run", False)
    with PretendDevice() as device:
        for step, value in enumerate([0.5, 0.5, bad, math.nan, 0.5]):
            losses.add(torch.tensor(value).to(DEVICE, non_blocking=True), 5, step)
        assert not device.waits
        with pytest.raises(RunError, match=r"run: step 3: the loss is (nan|inf)"):
            losses.read()
