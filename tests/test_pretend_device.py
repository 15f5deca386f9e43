"""Tests of the pretend device: values, mixed devices, and the waits that it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.testing.pretend_device import DEVICE, DeviceMixError, FarTensor, PretendDevice, move_model

WAITS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "item": ("item", lambda x: x.sum().item()),
    "bool": ("item", lambda x: bool((x > 1).any())),
    "int": ("item", lambda x: int(x[0])),
    "tolist": ("tolist", lambda x: x.tolist()),
    "cpu": ("copy to the host", lambda x: x.cpu()),
    "a list": ("copy to the device", lambda x: torch.tensor([1, 2], device=x.device)),
    "new_tensor": ("copy to the device", lambda x: x.new_tensor([1.0])),
    "to": ("copy to the device", lambda x: torch.zeros(3).to(x.device)),
    "nonzero": ("nonzero", lambda x: x.nonzero()),
    "mask": ("index by a mask", lambda x: x[x > 1]),
    "masked write": ("index by a mask", lambda x: x.index_put((x > 1,), x.new_zeros(()))),
    "masked_select": ("masked_select", lambda x: x.masked_select(x > 1)),
    "unique": ("unique", lambda x: torch.unique(x)),
    "bincount": ("bincount", lambda x: torch.bincount(x.long(), minlength=9)),
    "repeat": ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
    "equal": ("equal", lambda x: torch.equal(x, x)),
}


def far(*values: float) -> Tensor:
    return torch.tensor(values).to(DEVICE, non_blocking=True)


@pytest.mark.parametrize("name", WAITS)
def test_what_makes_the_host_wait_is_counted_by_name(name: str) -> None:
    wait, act = WAITS[name]
    with PretendDevice() as device:
        x = far(1.0, 2.0, 3.0)
        assert not device.waits
        act(x)
        assert device.waits == {wait: 1}


def test_sizes_of_the_host_and_factories_do_not_wait() -> None:
    with PretendDevice() as device:
        x = far(1.0, 2.0, 3.0)
        x.repeat_interleave(torch.tensor([1, 0, 2]).to(DEVICE, non_blocking=True), output_size=3)
        y = torch.where(x > 1, x, 0.0) + torch.arange(3, device=DEVICE) * torch.tensor(2.0)
        y[torch.arange(2, device=DEVICE)].masked_fill_(y[:2] > 0, 1.0)
        torch.zeros(2, device=DEVICE).copy_(x[:2])
        torch.randint(3, (4,), device=DEVICE)
        assert not device.waits
        assert y.tolist() == [0.0, 4.0, 7.0]


def test_two_devices_do_not_meet() -> None:
    with PretendDevice():
        x = far(1.0, 2.0)
        for act in (lambda: x + torch.ones(2), lambda: torch.ones(3)[x.long()], lambda: torch.cat([x, torch.ones(1)])):
            with pytest.raises(DeviceMixError):
                act()
        with pytest.raises(DeviceMixError, match="copy it to the host first"):
            x.numpy()
        assert (x + torch.tensor(1.0)).cpu().tolist() == [2.0, 3.0]  # a number may be on the host


def test_a_model_learns_there_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    there = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    there.load_state_dict(here.state_dict())
    x, losses = torch.randn(8, 3), []
    with PretendDevice() as device:
        move_model(there)
        device.waits.clear()
        for model in (here, there):
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
            for seed in range(3):
                torch.manual_seed(seed)
                own = x if model is here else x.to(DEVICE, non_blocking=True)
                with torch.autocast(own.device.type, enabled=False):
                    loss = F.softplus(model(own)).sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        assert not device.waits
        assert isinstance(losses[1], FarTensor)
        assert losses[0] == losses[1].cpu()
        moved = {name: tensor.cpu() for name, tensor in there.state_dict().items()}
    torch.testing.assert_close(moved, here.state_dict())
