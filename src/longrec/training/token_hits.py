"""Hits of tokens under teacher forcing: how often a token of a target is among the k most probable ones of its step.

The tokens before it are those of the target. So these ratios say how hard each step is, and not how often an item is
generated: items with equal paths share the hits of their tokens, and a beam can lose a target at an earlier step.

Validations report their means. Predictions of a generator have them per target, as columns ``token_hr@3_code_1``.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader
from longrec.metrics.columns import Floats
from longrec.models.core.generator import Generator
from longrec.training.device import find_device, precision

PREFIX = "token_hr@"
"""Beginning of the names of these metrics."""
_TARGETS = 4_096
"""Number of targets that are encoded together."""


def list_token_hits(
    model: Generator, log: Log, rows: NDArray[np.int64], k: int = 3, *, bf16: bool = False
) -> dict[str, NDArray[np.bool_]]:
    """Return bool ``[N]`` per step, as ``token_hr@3_code_1``: True if the token of a target is among the k best ones.

    Args:
        rows: int64 ``[N]`` rows of the log, in order.
        k: number of tokens.
    """
    device, was_training = find_device(model), model.training
    loader = NextItemLoader(log, rows, _TARGETS, next(iter(log.schema.histories)), model.sampling, sequences=False)
    order, hits, done = loader.order(0), np.zeros((len(rows), len(model.path)), np.bool_), 0
    model.eval()
    try:
        with torch.inference_mode(), precision(bf16, device):
            for batch in loader.epoch(0):
                own = model.token_hits(batch.to(device), k).cpu().numpy()
                at = np.sort(order[done : done + len(own)])  # a batch has its targets in the order of the log
                hits[np.searchsorted(rows, at)] = own
                done += len(own)
    finally:
        model.train(was_training)
    return {f"{PREFIX}{k}_{field.name}": hits[:, step] for step, field in enumerate(model.path)}


def measure_token_hits(
    model: Generator, log: Log, rows: NDArray[np.int64], k: int = 3, *, bf16: bool = False
) -> dict[str, float]:
    """Return the share of targets whose token is among the k most probable ones, as ``token_hr@3_code_1`` per step.

    Args:
        rows: int64 ``[N]`` rows of the log, in order, at least one.
        k: number of tokens.
    """
    return {name: float(hits.mean()) for name, hits in list_token_hits(model, log, rows, k, bf16=bf16).items()}


def read_token_hits(table: pa.Table) -> dict[str, Floats]:
    """Return the hits of a table of predictions, float64 ``[N]`` by name. Empty for a retriever without tokens."""
    names = [name for name in table.column_names if name.startswith(PREFIX)]
    return {name: table[name].to_numpy().astype(np.float64) for name in names}
