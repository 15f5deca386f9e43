"""Check of a training step on another device than the CPU, and the count of waits for it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.models.core.base import Model
from longrec.testing.batches import grouped, ragged
from longrec.testing.case import Case, backpropagate
from longrec.testing.expect import ConformanceError, expect, expect_close
from longrec.testing.pretend_device import DEVICE, PretendDevice, move_model
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig

MOST_WAITS = 1
"""Waits for the device that a training step may have. Training itself waits only when it logs."""


def check_a_step_on_another_device(case: Case) -> None:
    """A training step on another device has the loss and gradients of the CPU, and hardly waits for the device."""
    waits = compare_steps(case, step_far)
    listing = ", ".join(f"{wait} {count} times" for wait, count in waits.items())
    expect(sum(waits.values()) <= MOST_WAITS, f"a training step waits for the device: {listing}")


Step = Callable[[Model, Batch], tuple[Tensor, Counter[str]]]
"""A function that does one training step of a model on another device, on a batch of the host. It returns the loss, on
the host, and the waits for the device by name.
"""


def compare_steps(case: Case, step: Step) -> Counter[str]:
    """Compare a training step on another device with one on the CPU. Return the waits of the batch with most of them.

    Raises:
        ConformanceError: another loss, or another gradient.
    """
    batches = {"a batch": ragged(64, fields=case.fields)}
    lively, most = case.lively().train(), Counter[str]()
    stop_dropout(lively)
    if lively.reads_groups:
        batches["a grouped batch"] = grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=case.fields)
    for name, batch in batches.items():
        here, there = copy.deepcopy(lively), copy.deepcopy(lively)
        torch.manual_seed(0)
        expected = backpropagate(here, batch)
        loss, waits = step(there, batch)
        expect_close(loss, expected, f"the loss of {name} differs on another device")
        compare_gradients(here, there, name)
        most = max(most, waits, key=Counter.total)
    return most


def step_far(model: Model, batch: Batch) -> tuple[Tensor, Counter[str]]:
    """Do one training step on the pretend device. Return the loss, on the host, and the waits for the device."""
    with PretendDevice() as device:
        move_model(model)
        optimizers = build_optimizers(model, FitConfig())
        batch = batch.to(DEVICE, non_blocking=True)
        device.waits.clear()
        torch.manual_seed(0)
        loss = backpropagate(model, batch)
        for optimizer in optimizers.values():
            optimizer.step()
        waits = Counter(device.waits)
        return loss.detach().cpu(), waits


def stop_dropout(model: Model) -> None:
    """Set all dropout rates of a model to 0. What is dropped differs between devices, except in small tensors."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def compare_gradients(here: Model, there: Model, batch: str) -> None:
    """Raise a ``ConformanceError`` unless two models on different devices have the same gradients.

    Args:
        batch: name of the batch, for the message.
    """
    far = dict(there.named_parameters())
    for name, parameter in here.named_parameters():
        expected, actual = parameter.grad, far[name].grad
        if expected is None or actual is None:
            expect(expected is actual, f"on one device alone {name} gets a gradient of {batch}")
            continue
        one, other = (x.to_dense() if x.is_sparse else x for x in (expected, actual.cpu()))
        away, size = float((one - other).norm()), float(one.norm())
        if not away <= 1e-3 * size + 1e-6:
            raise ConformanceError(f"the gradient of {name} for {batch} differs by {away:.2g} of {size:.2g}")


CHECKS: tuple[Callable[[Case], None], ...] = (check_a_step_on_another_device,)
