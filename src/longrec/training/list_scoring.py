"""Lists of a log in batches, and their scores by a re-ranker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.user_loader import UserLoader, number_requests
from longrec.errors import RunError
from longrec.models.core.kinds import Reranker
from longrec.progress import Progress
from longrec.training.device import find_device, move_all, precision


@dataclass(frozen=True)
class ScoredLists:
    """Scores of rows of a log.

    Attributes:
        score: float32 ``[n]``, the probability of each row within its list.
        base: float32 ``[n]``, the logit of the base, which orders the initial list.
        lists: int64 ``[n]``, the number of the list of each row.
    """

    score: NDArray[np.float32]
    base: NDArray[np.float32]
    lists: NDArray[np.int64]


def build_list_loader(
    log: Log, rows: NDArray[np.int64], batch_size: int, *, seed: int = 0, shuffle: bool = False
) -> UserLoader:
    """Return the loader of whole lists, however long they are."""
    longest = int(np.bincount(number_requests(log, np.unique(rows))).max(initial=1))
    return UserLoader(log, rows, batch_size, seed=seed, shuffle=shuffle, rows_per_user=longest, by_request=True)


def score_lists(
    model: Reranker,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> ScoredLists:
    """Return the scores of rows of the log, and the initial order of their lists, on the device of the model.

    Args:
        rows: int64 ``[n]`` in any order. A list has those of its rows that are among them.
        bf16: compute as a run with ``fit.bf16`` does.
        progress: advanced by the number of scored rows.

    Raises:
        RunError: a score that is not finite.
    """
    loader = build_list_loader(log, rows, batch_size)
    device, was_training, at, first = find_device(model), model.training, 0, 0
    outputs = torch.empty(2, len(loader.rows), device=device)
    lists = np.empty(len(loader.rows), np.int64)
    model.eval()
    with torch.inference_mode(), precision(bf16, device):
        for host, batch in move_all(loader.epoch(0), device):
            scores = model.score_lists(batch)
            own = slice(at, at + batch.size)
            outputs[0, own], outputs[1, own] = scores.probability, scores.initial
            assert host.layout.host_owner is not None
            lists[own] = first + host.layout.host_owner
            at, first = at + batch.size, first + host.layout.requests
            if progress is not None:
                progress.advance(batch.size)
    model.train(was_training)
    score, base = loaded = outputs.cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(loaded).all(0))
    if len(bad):
        raise RunError(
            f"row {loader.rows[bad[0]]} of the log",
            f"a score that is not finite ({len(bad):,} of {len(score):,} rows)",
            "finite scores",
            "train again with a lower fit.lr, or with fit.clip_norm",
        )
    at_row = np.searchsorted(loader.rows, rows)  # the loader yields rows in the order of the log, each once
    return ScoredLists(score[at_row], base[at_row], lists[at_row])
