"""Computation of the facts of a prepared log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges
from longrec.data.fact_warnings import collect_fact_warnings
from longrec.data.feature_facts import FeatureReader
from longrec.data.log import Log
from longrec.data.log_facts import HistoryFacts, LogFacts, SplitFacts
from longrec.data.null_counts import UNLABELED, NullCounts, compute_states
from longrec.data.row_counts import RowCounts, sample_rows
from longrec.data.splits import SPLITS
from longrec.features.timestamp_grammar import format_timestamp

_ROWS = 1 << 17
"""Number of rows of a chunk, unless one user has more."""
_SAMPLE = 30_000
"""Number of samples per split on which history lengths and numbers are measured."""


def compute_facts(log: Log, spans: Mapping[str, Any], nulls: NullCounts | None = None) -> LogFacts:
    """Compute the facts of a prepared log.

    Args:
        spans: first and last timestamp per split, as in the manifest of the log.
        nulls: nulls of numeric features. None if they were not counted.
    """
    states = compute_states(log.labels, log.splits)
    counts = {name: RowCounts.of(log, states, (code,)) for name, code in SPLITS.items()}
    train, code = counts["train"], SPLITS["train"]
    if (states == code + UNLABELED).any():
        train = RowCounts.of(log, states, (code, code + UNLABELED))
    rows = {name: sample_rows(states, code, counts[name].rows, _SAMPLE) for name, code in SPLITS.items()}
    timed, times = log.schema.time is not None, log.events.times
    has_ties = timed and log.schema.user is not None
    tied, repeated = _count_ties(log) if has_ties else (0, 0)
    facts = LogFacts(
        events=len(log),
        users=len(log.users) - 1,
        items=len(log.items) - 1,
        first=_format_time(log, int(times.min())) if timed else None,
        last=_format_time(log, int(times.max())) if timed else None,
        tied=tied / len(log) if has_ties else None,
        repeated=repeated if has_ties and log.schema.item is not None else None,
        splits={name: _describe_split(own, train, spans.get(name)) for name, own in counts.items()},
        histories={
            name: _describe_history(log, name, rows)
            for name, history in log.schema.histories.items()
            if history.source is None
        },
        features=FeatureReader(log, states, rows, counts, nulls or NullCounts()).describe_all(),
    )
    return replace(facts, warnings=tuple(collect_fact_warnings(facts, log.schema)))


def _format_time(log: Log, timestamp: int) -> str | int:
    assert log.schema.time is not None
    return timestamp if log.schema.time.unit == "step" else format_timestamp(timestamp)


def _iterate_users(offsets: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the offsets of chunks of whole users, int64 ``[users + 1]``."""
    first = 0
    while first < len(offsets) - 1:
        stop = max(int(np.searchsorted(offsets, offsets[first] + _ROWS, side="right")) - 1, first + 1)
        yield offsets[first : stop + 1]
        first = stop


def _count_ties(log: Log) -> tuple[int, int]:
    """Return the number of rows that share user and timestamp, and of those that repeat a row with the same item."""
    tied = repeated = 0
    for offsets in _iterate_users(log.events.offsets):
        rows = slice(int(offsets[0]), int(offsets[-1]))
        times, item = log.events.times[rows], log.events.columns["item"][rows]
        same = np.zeros(len(times) + 1, bool)  # whether a row has user and timestamp of the row before it
        np.equal(times[1:], times[:-1], out=same[1:-1])
        same[offsets - offsets[0]] = False
        first = np.flatnonzero(same[1:] & ~same[:-1])
        sizes = np.flatnonzero(same[:-1] & ~same[1:]) - first + 1
        tied += int(sizes.sum())
        pairs = first[sizes == 2]
        repeated += int(np.count_nonzero(item.take(pairs) == item.take(pairs + 1)))
        groups, own = first[sizes > 2], sizes[sizes > 2]
        at, ends = expand_ranges(groups, own)
        keys = np.sort(np.repeat(np.arange(len(own)), np.diff(ends)) * len(log.items) + item.take(at))
        repeated += int(np.count_nonzero(keys[1:] == keys[:-1]))
    return tied, repeated


def _describe_split(counts: RowCounts, train: RowCounts, span: tuple[str, str] | tuple[int, int] | None) -> SplitFacts:
    def count_new(own: NDArray[np.int64], before: NDArray[np.int64]) -> float:
        return float(own[before == 0].sum() / max(counts.rows, 1))

    return SplitFacts(
        rows=counts.rows,
        positives=counts.positives,
        users=int(np.count_nonzero(counts.users[1:])),
        items=int(np.count_nonzero(counts.items[1:])),
        new_users=count_new(counts.users, train.users),
        new_items=count_new(counts.items, train.items),
        first=None if span is None else span[0],
        last=None if span is None else span[1],
    )


def _describe_history(log: Log, name: str, rows: Mapping[str, NDArray[np.int64]]) -> HistoryFacts:
    lengths = {split: log.compute_history_lengths(name, own) for split, own in rows.items() if len(own)}
    train, most = lengths.get("train", np.zeros(1, np.int64)), log.schema.histories[name].max_length
    p10, p50, p90 = (int(one) for one in np.quantile(train, (0.1, 0.5, 0.9), method="nearest"))
    return HistoryFacts(
        max_length=most,
        mean=float(train.mean()),
        p10=p10,
        p50=p50,
        p90=p90,
        full=float((train == most).mean()),
        empty={split: float((own == 0).mean()) for split, own in lengths.items()},
    )
