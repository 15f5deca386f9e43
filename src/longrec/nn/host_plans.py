"""Plans that are made on the host and read on the device: orders, spans and indices of the positions of a batch.

A size that depends on values is known on the host only after the device has computed them. So plans are made with numpy
from the copy of the offsets on the host, once per history, and copied to the device without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def put(plan: NDArray[Any], device: torch.device) -> Tensor:
    """Return a plan as a tensor on a device. On the CPU it shares the memory of the plan."""
    tensor = torch.from_numpy(plan)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory the host would wait for the copy
    return tensor.to(device, non_blocking=True)


def put_all(plans: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return several plans on a device, copied there as one per type."""
    if device.type == "cpu":
        return [torch.from_numpy(plan) for plan in plans]
    tensors: dict[int, Tensor] = {}
    for dtype in {plan.dtype for plan in plans}:
        numbers = [number for number, plan in enumerate(plans) if plan.dtype == dtype]
        together = put(np.concatenate([plans[number].ravel() for number in numbers]), device)
        for number, tensor in zip(numbers, torch.split(together, [plans[number].size for number in numbers])):
            tensors[number] = tensor.view(plans[number].shape)
    return [tensors[number] for number in range(len(plans))]


def fetch(x: Tensor) -> NDArray[Any]:
    """Return the values of a tensor on the host, which waits for the device unless it is the CPU."""
    return x.detach().cpu().numpy()


def sort(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return keys in ascending order and their former indices, equal ones in their order, by torch's radix sort."""
    ordered, order = torch.from_numpy(keys).sort(stable=True)
    return ordered.numpy(), order.numpy()


def invert(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the inverse of a permutation.

    >>> invert(np.array([2, 0, 1]))
    array([1, 2, 0])
    """
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def expand_rows(offsets: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the entry of its row at every position."""
    return np.repeat(x, np.diff(offsets))
