"""From rows of a log to probabilities, and from probabilities to the measures a validation looks at."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from longrec import metrics
from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.errors import RunError
from longrec.progress import Progress


def precision(bf16: bool) -> AbstractContextManager[object]:
    """Arithmetic of a run: bfloat16 where autocast finds it safe, or fp32 throughout."""
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


def score(
    model: nn.Module,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Probabilities of rows of the log, float32 ``[n]``, from a model in eval mode.

    Args:
        rows: int64 ``[n]`` in any order.
        bf16: compute as a run with ``fit.bf16`` does.
        progress: told of every row scored.

    Raises:
        RunError: a score that is not finite.
    """
    scores = np.empty(len(rows), np.float32)
    was_training, at = model.training, 0
    model.eval()
    with torch.inference_mode(), precision(bf16):
        for batch in Loader(log, rows, batch_size, shuffle=False).epoch(0):
            logits = model(batch).float()
            scores[at : at + batch.size] = torch.sigmoid(logits).numpy()
            at += batch.size
            if progress is not None:
                progress.advance(batch.size)
    model.train(was_training)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise RunError(
            f"row {rows[bad[0]]} of the log",
            f"the score {scores[bad[0]]} ({len(bad):,} of {len(scores):,} rows)",
            "finite scores",
            "train again with a lower fit.lr, or with fit.clip_norm; look for extreme values in dense features",
        )
    return scores


def measure(label: NDArray[np.float32], scores: NDArray[np.float32], user: NDArray[np.int64]) -> dict[str, float]:
    """Measures of one validation: AUC, GAUC (left out when no user has both classes), log loss, entropy, PCOC."""
    measures = {
        "auc": metrics.auc(label, scores),
        "log_loss": metrics.log_loss(label, scores),
        "normalised_entropy": metrics.normalised_entropy(label, scores),
        "pcoc": metrics.pcoc(label, scores),
    }
    grouped = metrics.grouped_auc(label, scores, user)
    if grouped.users:
        measures["gauc"] = grouped.value
    return measures
