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


def blocks_of(config: CompressConfig, log: Log) -> list[Block]:
    """All impressions of a log in blocks of time; impressions of one moment are never parted."""
    moments = log.moments
    ordered = np.sort(moments)
    starts = [int(ordered[0])]
    if config.every is not None:
        span = max(log.schema.delay(config.every), 1)
        starts += list(range(int(ordered[0]) + span, int(ordered[-1]) + 1, span))
    else:
        starts += _cuts(ordered, config.blocks)
    first = ordered[: np.searchsorted(ordered, starts[1])] if len(starts) > 1 else ordered
    starts = sorted({*starts, *_cuts(first, config.first_slices)})
    place = np.searchsorted(np.array(starts), moments, side="right") - 1
    order = np.argsort(place, kind="stable")
    ends = np.searchsorted(place[order], np.arange(len(starts) + 1))
    found = []
    for start, low, high in zip(starts, ends, ends[1:]):
        if high > low:
            found.append((start, order[low:high].astype(np.int64)))
    stops = [start for start, _ in found[1:]]
    return [Block(n, start, stop, rows) for n, ((start, rows), stop) in enumerate(zip(found, [*stops, None]))]


def _cuts(ordered: NDArray[np.int64], parts: int) -> list[int]:
    """Moments that cut sorted moments into parts of equal numbers."""
    at = (np.arange(1, parts) * len(ordered)) // parts
    return [int(moment) for moment in np.unique(ordered[at]) if moment > ordered[0]]


def refuse_looking_back(model: Model, where: str) -> None:
    """Refuse a model that draws something of the training window before its first step: walking forward in time there
    is no window yet.

    Raises:
        RunError: the model, or a part of it, looks back.
    """
    for part in model.modules():
        if isinstance(part, Model) and part.needs_training_window:
            found = f"{name_of(part)}, which learns from the whole training window before the first step"
            raise RunError(where, found, "a model that learns from batches alone", "take another base")
