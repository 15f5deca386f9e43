"""Blocks of time: the order in which a source processes a log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.errors import RunError
from longrec.models.core.base import Model
from longrec.models.core.registry import name_of
from longrec.training.compress_settings import CompressConfig


@dataclass(frozen=True)
class Block:
    """Impressions of one interval of time.

    Attributes:
        number: number of the block. The slices of the first block count as blocks.
        start: its first timestamp.
        stop: first timestamp of the next block. None for the last.
        rows: int64 rows of the log with timestamps inside, in the order of the log (by user, then time).
    """

    number: int
    start: int
    stop: int | None
    rows: NDArray[np.int64]


def split_into_blocks(config: CompressConfig, log: Log) -> list[Block]:
    """Split all impressions of a log into blocks of time. Impressions with equal timestamps share a block."""
    timestamps = log.timestamps
    ordered = np.sort(timestamps)
    starts = [int(ordered[0])]
    if config.every is not None:
        span = max(log.schema.delay(config.every), 1)
        starts += list(range(int(ordered[0]) + span, int(ordered[-1]) + 1, span))
    else:
        starts += _find_cuts(ordered, config.blocks)
    first = ordered[: np.searchsorted(ordered, starts[1])] if len(starts) > 1 else ordered
    starts = sorted({*starts, *_find_cuts(first, config.first_slices)})
    block_index = np.searchsorted(np.array(starts), timestamps, side="right") - 1
    order = np.argsort(block_index, kind="stable")
    ends = np.searchsorted(block_index[order], np.arange(len(starts) + 1))
    slices = []
    for start, low, high in zip(starts, ends, ends[1:]):
        if high > low:
            slices.append((start, order[low:high].astype(np.int64)))
    stops = [start for start, _ in slices[1:]]
    return [Block(n, start, stop, rows) for n, ((start, rows), stop) in enumerate(zip(slices, [*stops, None]))]


def _find_cuts(ordered: NDArray[np.int64], count: int) -> list[int]:
    """Return the timestamps that cut sorted timestamps into ``count`` groups of equal size."""
    positions = (np.arange(1, count) * len(ordered)) // count
    return [int(timestamp) for timestamp in np.unique(ordered[positions]) if timestamp > ordered[0]]


def refuse_training_window(model: Model, where: str) -> None:
    """Refuse a model that fits statistics on the training window first, because blocks of time have no window.

    Raises:
        RunError: the model, or a module of it, needs the training window.
    """
    for module in model.modules():
        if isinstance(module, Model) and module.needs_training_window:
            description = f"{name_of(module)}, which fits statistics on the whole training window before the first step"
            raise RunError(where, description, "a model that learns from batches alone", "use another base")
