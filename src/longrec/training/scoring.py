"""Scores of rows of a log, and the metrics of a validation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec import metrics
from longrec.data.log import Log
from longrec.errors import RunError
from longrec.features.batch import Batch
from longrec.models.core.base import Model
from longrec.progress import Progress
from longrec.training.device import find_device, move_all, precision
from longrec.training.loaders import build_loader


def score(
    model: Model,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return the probabilities of rows of the log, float32 ``[n]``, from a model in eval mode, on its device.

    Args:
        rows: int64 ``[n]`` in any order.
        bf16: compute as a run with ``fit.bf16`` does.
        progress: advanced by the number of scored rows.

    Raises:
        RunError: a score that is not finite.
    """
    return _score_columns(lambda batch: model(batch).unsqueeze(1), 1, model, log, rows, batch_size, bf16, progress)[
        :, 0
    ]


def score_tasks(
    model: Model,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return the scores, and the probabilities of the further tasks of a model: of each of its targets, and of the
    schema's label (``label``) if the ranking score differs from it.
    """
    if not model.targets:
        return score(model, log, rows, batch_size, bf16=bf16, progress=progress), {}

    def compute_logits(batch: Batch) -> Tensor:
        logits = model.logits(batch)
        return torch.cat([model.ranking_logit(logits).unsqueeze(1), logits], 1)

    probabilities = _score_columns(compute_logits, 2 + len(model.targets), model, log, rows, batch_size, bf16, progress)
    tasks = {name: probabilities[:, column] for column, name in enumerate(("label", *model.targets), 1)}
    if np.array_equal(probabilities[:, 0], probabilities[:, 1]):
        del tasks["label"]
    return probabilities[:, 0], tasks


def _score_columns(
    compute_logits: Callable[[Batch], Tensor],
    columns: int,
    model: Model,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    bf16: bool,
    progress: Progress | None,
) -> NDArray[np.float32]:
    """Return the probabilities ``[n, columns]`` of the logits that ``compute_logits`` returns per batch."""
    loader = build_loader(model, log, rows, batch_size, shuffle=False)
    device, was_training, at = find_device(model), model.training, 0
    # Scores stay on the device until all are computed, so that it never waits for the host.
    outputs = torch.empty(columns, len(loader.rows), device=device)
    model.eval()
    with torch.inference_mode(), precision(bf16, device):
        for host, batch in move_all(loader.epoch(0), device):
            logits = compute_logits(batch).float()
            if host.loss_mask is not None:
                logits = logits.index_select(0, host.loss_mask.nonzero().squeeze(1).to(device))
            outputs[:, at : at + len(logits)] = torch.sigmoid(logits).t()
            at += len(logits)
            if progress is not None:
                progress.advance(len(logits))
    model.train(was_training)
    loaded = outputs.cpu().numpy().T
    # In user order the loader yields rows in the order of the log, each once.
    scores = loaded if model.user_order is None else loaded[np.searchsorted(loader.rows, rows)]
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(bad):
        raise RunError(
            f"row {rows[bad[0]]} of the log",
            f"the score {scores[bad[0]].sum()} ({len(bad):,} of {len(scores):,} rows)",
            "finite scores",
            "train again with a lower fit.lr, or with fit.clip_norm; check for extreme values in numeric features",
        )
    return scores


def measure(
    label: NDArray[np.float32],
    scores: NDArray[np.float32],
    user: NDArray[np.int64],
    weight: NDArray[np.float32] | None = None,
) -> dict[str, float]:
    """Compute the metrics of one validation: AUC, GAUC (if a user has both classes), log loss, entropy, PCOC."""
    measures = {
        "auc": metrics.auc(label, scores, weight),
        "log_loss": metrics.log_loss(label, scores, weight),
        "normalized_entropy": metrics.normalized_entropy(label, scores, weight),
        "pcoc": metrics.pcoc(label, scores, weight),
    }
    grouped = metrics.grouped_auc(label, scores, user, weight)
    if grouped.users:
        measures["gauc"] = grouped.value
    return measures
