"""Blocks of time: the order in which a source meets a log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.errors import RunError
from longrec.models.core.base import Model, name_of
from longrec.train.compress_settings import CompressConfig


@dataclass(frozen=True)
class Block:
    """Impressions of one stretch of time.

    Attributes:
        number: of the block; the slices of the first block count as blocks of their own.
        start: its first moment.
        stop: the first moment of the next; None for the last.
        rows: int64 rows of the log whose moments lie inside, in the order of the log (by user, then time).
    """

    number: int
    start: int
    stop: int | None
    rows: NDArray[np.int64]


def split_into_blocks(config: CompressConfig, log: Log) -> list[Block]:
    """All impressions of a log in blocks of time; impressions of one moment are never parted."""
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
    """Moments that cut sorted moments into parts of equal numbers."""
    positions = (np.arange(1, count) * len(ordered)) // count
    return [int(timestamp) for timestamp in np.unique(ordered[positions]) if timestamp > ordered[0]]


def refuse_training_window(model: Model, where: str) -> None:
    """Refuse a model that draws something of the training window before its first step: walking forward in time there
    is no window yet.

    Raises:
        RunError: the model, or a part of it, looks back.
    """
    for module in model.modules():
        if isinstance(module, Model) and module.needs_training_window:
            description = f"{name_of(module)}, which learns from the whole training window before the first step"
            raise RunError(where, description, "a model that learns from batches alone", "take another base")
