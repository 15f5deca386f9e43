"""Hits of tokens under teacher forcing: how often a token of a target is among the k most probable ones of its step.

The tokens before it are those of the target. So these ratios say how hard each step is, and not how often an item is
generated: items with equal paths share the hits of their tokens, and a beam can lose a target at an earlier step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader
from longrec.models.core.generator import Generator
from longrec.training.device import find_device, precision

_TARGETS = 4_096
"""Number of targets that are encoded together."""


def measure_token_hits(
    model: Generator, log: Log, rows: NDArray[np.int64], k: int = 3, *, bf16: bool = False
) -> dict[str, float]:
    """Return the share of targets whose token is among the k most probable ones, as ``token_hr@3_code_1`` per step.

    Args:
        rows: int64 ``[N]`` rows of the log, at least one.
        k: number of tokens.
    """
    device, was_training = find_device(model), model.training
    loader = NextItemLoader(log, rows, _TARGETS, next(iter(log.schema.histories)), model.sampling, sequences=False)
    hits = np.zeros(len(model.path))
    model.eval()
    try:
        with torch.inference_mode(), precision(bf16, device):
            for batch in loader.epoch(0):
                hits += model.token_hits(batch.to(device), k).sum(0).cpu().numpy()
    finally:
        model.train(was_training)
    return {f"token_hr@{k}_{field.name}": float(share) for field, share in zip(model.path, hits / len(rows))}
