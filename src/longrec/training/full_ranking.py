"""Full ranking: the rank of each target among all items of a catalog, and the best items, in blocks of requests.

The history of a target is that of its row in the log, strictly before its timestamp. Ties are at mid rank. The target
is always in the ranking. Items are left out by two rules of ``evaluate``:

- ``seen``: ``mask`` leaves out the items of the user's events before the timestamp; ``mask_same_time`` those of all
  earlier rows of the user; ``keep`` none;
- ``catalog``: ``existing`` leaves out items without an event before the timestamp; ``all`` none.

Shapes: N targets, B targets of a block, I items, K interests, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.data.availability import expand_ranges
from longrec.data.catalog import build_catalog, compute_first_timestamps
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.errors import RunError
from longrec.features.batch import Batch, Column, Jagged
from longrec.features.entity_versions import find_first_from
from longrec.features.transfer import transfer
from longrec.models.core.kinds import Retriever, VectorRetriever, score_vectors
from longrec.progress import Progress
from longrec.training.device import find_device, precision
from longrec.training.settings import EvaluateConfig

_SCORES = 8_000_000
"""Number of scores that are in memory together."""
_REQUESTS = 4_096
"""Number of requests that are encoded together."""


def rank_targets(
    model: Retriever,
    log: Log,
    rows: NDArray[np.int64],
    config: EvaluateConfig,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return the rank of the item of each row among the items of the log, float32 ``[N]``, 0 for the best.

    Args:
        rows: int64 ``[N]`` rows of the log.
        progress: advanced by the number of ranked rows.

    Raises:
        RunError: a score that is not finite.
    """
    exclude, ranks = Exclusions(log, config), np.empty(len(rows), np.float32)

    def rank(own: slice, scores: Tensor) -> None:
        targets = log.events.columns["item"].take(rows[own]).astype(np.int64) - 1
        ranks[own] = _rank_block(scores, targets, exclude, rows[own])

    _visit_scores(model, log, rows, rank, _count_wanted(config), bf16=bf16, progress=progress)
    return ranks


def list_top(
    model: Retriever,
    log: Log,
    rows: NDArray[np.int64],
    config: EvaluateConfig,
    count: int,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> NDArray[np.int32]:
    """Return the items with the highest scores for the request of each row, int32 ``[N, count]``, the best first.

    They are rows of the item table. 0 stands for no item. Items are left out as in ``rank_targets``, and targets are
    left out like all others. Of equal scores any may be taken.

    Args:
        rows: int64 ``[N]`` rows of the log.
        progress: advanced by the number of rows.

    Raises:
        RunError: a score that is not finite.
    """
    exclude, lists = Exclusions(log, config), np.zeros((len(rows), count), np.int32)

    def take_best(own: slice, scores: Tensor) -> None:
        _check_finite(scores, rows[own])
        exclude.mask(scores, rows[own])
        best = torch.topk(scores, min(count, scores.shape[1]))
        items = (best.indices + 1).masked_fill(best.values == -torch.inf, 0)
        lists[own, : items.shape[1]] = items.cpu().numpy()

    _visit_scores(model, log, rows, take_best, max(count, _count_wanted(config)), bf16=bf16, progress=progress)
    return lists


def _count_wanted(config: EvaluateConfig) -> int:
    """Return the largest cut of the metrics: a server asked for that many items searches for as many."""
    return max((*config.k, *config.recall_k), default=1)


def _visit_scores(
    model: Retriever,
    log: Log,
    rows: NDArray[np.int64],
    visit: Callable[[slice, Tensor], None],
    wanted: int,
    *,
    bf16: bool,
    progress: Progress | None,
) -> None:
    """Call ``visit`` with each block of rows and its scores ``[B, I]`` of all items, which it may change.

    Args:
        wanted: number of the best items that a search finds at least.
    """
    device, was_training = find_device(model), model.training
    items = np.arange(1, len(log.items))
    catalog = _move(build_catalog(log, items, int(log.timestamps.take(rows).min(initial=0))), device)
    block = max(1, min(_REQUESTS, _SCORES // len(items)))
    model.eval()
    try:
        with torch.inference_mode(), precision(bf16, device):
            score_block = _prepare_scores(model, catalog, wanted)
            for at in range(0, len(rows), _REQUESTS):
                some = rows[at : at + _REQUESTS]
                score_rows = score_block(transfer(gather(log, some), device))
                for first in range(0, len(some), block):
                    own = slice(first, min(first + block, len(some)))
                    visit(slice(at + own.start, at + own.stop), score_rows(own).float())
                    if progress is not None:
                        progress.advance(own.stop - own.start)
    finally:
        model.train(was_training)


def rank_by_scores(
    log: Log, rows: NDArray[np.int64], score_I: NDArray[np.float32], config: EvaluateConfig
) -> NDArray[np.float32]:
    """Return the rank of the item of each row by one score per item, as ``rank_targets`` does.

    Args:
        score_I: score of each item of the log, float32, without the unknown item.
    """
    exclude, ranks = Exclusions(log, config), np.empty(len(rows), np.float32)
    scores, block = torch.from_numpy(score_I), max(1, min(_REQUESTS, _SCORES // len(score_I)))
    for at in range(0, len(rows), block):
        some = rows[at : at + block]
        targets = log.events.columns["item"].take(some).astype(np.int64) - 1
        ranks[at : at + block] = _rank_block(scores.repeat(len(some), 1), targets, exclude, some)
    return ranks


def recommend(
    model: Retriever, log: Log, row: int, config: EvaluateConfig, count: int, *, bf16: bool = False
) -> list[tuple[int, float]]:
    """Return the items with the highest scores for the request of a row: rows of the item table, with scores.

    Items are left out as in ``rank_targets``, the target included.
    """
    rows, device = np.array([row], np.int64), find_device(model)
    catalog = _move(build_catalog(log, np.arange(1, len(log.items)), int(log.timestamps[row])), device)
    exclude = Exclusions(log, config)
    seen = exclude.find_seen(rows)[1]
    with torch.inference_mode(), precision(bf16, device):
        # As wide as a server's search, so that items remain where the best ones are seen.
        wanted = count + len(np.unique(seen))
        score_rows = _prepare_scores(model, catalog, wanted)(transfer(gather(log, rows), device))
        computed = score_rows(slice(0, 1)).float()[0]
    scores = computed.clone()  # outside of inference mode, so that it may be masked in place
    scores[torch.from_numpy(seen).to(device)] = -torch.inf
    if exclude.first is not None:
        scores[torch.from_numpy(exclude.first >= log.timestamps[row]).to(device)] = -torch.inf
    best = torch.topk(scores, min(count, len(scores)))
    pairs = zip(best.indices.tolist(), best.values.tolist())
    return [(item + 1, score) for item, score in pairs if score > -float("inf")]


def _prepare_scores(
    model: Retriever, catalog: Mapping[str, Column], wanted: int
) -> Callable[[Batch], Callable[[slice], Tensor]]:
    """Return a function that encodes a batch and returns the scores ``[B, I]`` of a slice of its requests."""
    if isinstance(model, VectorRetriever):
        v_ID = model.items(catalog)

        def encode(batch: Batch) -> Callable[[slice], Tensor]:
            u_RKD = model.users(batch)
            return lambda own: score_vectors(u_RKD[own], v_ID)

        return encode

    def score(batch: Batch) -> Callable[[slice], Tensor]:
        # A copy, because the scores are masked in place, and may be a view of what the model holds.
        return lambda own: model.score_best(_take_requests(batch, own), catalog, wanted).clone(
            memory_format=torch.contiguous_format
        )

    return score


def _take_requests(batch: Batch, own: slice) -> Batch:
    """Return a batch of some requests of a single batch."""
    device = next(iter(batch.histories.values())).offsets.device
    rows = torch.arange(own.start, own.stop, device=device)
    histories = {name: history.select_requests(rows) for name, history in batch.histories.items()}
    features = {
        name: column.select_rows(rows) if isinstance(column, Jagged) else column.index_select(0, rows)
        for name, column in batch.features.items()
    }
    return Batch.single(len(rows), features, histories)


class Exclusions:
    """Items that are not in the ranking of a target, by the rules of a config."""

    def __init__(self, log: Log, config: EvaluateConfig) -> None:
        self.log, self.seen = log, config.seen
        self.first = compute_first_timestamps(log)[1:] if config.catalog == "existing" else None

    def find_seen(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pairs (index of the row, item) that are left out as seen, int64. Items count from 0."""
        if self.seen == "keep":
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        log = self.log
        first, stop = log.events.offsets[log.user(rows)], rows
        if self.seen == "mask":
            stop = find_first_from(log.events.times, first, rows, log.timestamps.take(rows))
        at, offsets = expand_ranges(first, stop - first)
        owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
        item = log.events.columns["item"].take(at).astype(np.int64) - 1
        if self.seen == "mask" and log.available is not None:
            visible = log.available.take(at) < log.timestamps.take(rows)[owner]
            owner, item = owner[visible], item[visible]
        return owner, item

    def mask(self, scores: Tensor, rows: NDArray[np.int64]) -> None:
        """Set the scores ``[B, I]`` of the items that are left out for each row to minus infinity."""
        device = scores.device
        owner, item = self.find_seen(rows)
        scores[torch.from_numpy(owner).to(device), torch.from_numpy(item).to(device)] = -torch.inf
        if self.first is None:
            return
        timestamps = self.log.timestamps.take(rows)
        # Most blocks are after the first event of almost all items, so that few columns need a mask.
        late = np.flatnonzero(self.first >= timestamps.min())
        future = torch.from_numpy(self.first[late][None] >= timestamps[:, None]).to(device)
        columns = torch.from_numpy(late).to(device)
        scores[:, columns] = scores[:, columns].masked_fill(future, -torch.inf)


def _check_finite(scores: Tensor, rows: NDArray[np.int64]) -> None:
    """Refuse scores ``[B, I]`` that are not finite."""
    if not bool(torch.isfinite(scores.sum())):
        raise RunError(
            f"rows {rows[0]} to {rows[-1]} of the log",
            "a score that is not finite",
            "finite scores",
            "train again with a lower fit.lr, or with fit.clip_norm",
        )


def _rank_block(
    scores: Tensor, targets: NDArray[np.int64], exclude: Exclusions, some: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the rank of each target of a block, float32 ``[B]``. ``scores [B, I]`` are changed."""
    device = scores.device
    target_B1 = torch.from_numpy(targets).to(device).unsqueeze(1)
    own_B1 = scores.gather(1, target_B1)
    _check_finite(scores, some)
    exclude.mask(scores, some)
    scores.scatter_(1, target_B1, own_B1)
    # Sums of floats are much faster than sums of booleans.
    flags = torch.empty_like(scores)
    above_B = torch.gt(scores, own_B1, out=flags).sum(1)
    equal_B = torch.eq(scores, own_B1, out=flags).sum(1)
    ranks: NDArray[np.float32] = (above_B + (equal_B - 1) / 2).cpu().numpy()
    return ranks


def _move(columns: Mapping[str, Column], device: torch.device) -> dict[str, Column]:
    return {
        name: column.to(device) if isinstance(column, Tensor) else column.copy(lambda tensor: tensor.to(device))
        for name, column in columns.items()
    }
