"""Transfer of batches from the host to a device."""

from __future__ import annotations

from typing import TypeVar

import torch

from longrec.features.batch import Batch, HistoryBatch

Stored = TypeVar("Stored", Batch, HistoryBatch)


def transfer(of_host: Stored, device: torch.device) -> Stored:
    """Return a batch or a history of the host on a device, without waiting for the copy."""
    if device.type == "cpu":
        return of_host
    if device.type == "cuda":
        of_host = of_host.pin_memory()  # from other memory the host would wait for the copy
    return of_host.to(device, non_blocking=True)
