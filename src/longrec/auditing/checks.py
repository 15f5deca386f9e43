"""All checks of an audit, in order, on the events of one log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.auditing import floor, histories, label_features, repeats, sequence_order, ties, timeline
from longrec.auditing.events import Events
from longrec.auditing.finding import Audit, Finding
from longrec.data.settings import Split
from longrec.data.splits import (
    TEST,
    compute_time_cutoffs,
    split_by_time,
    split_by_user,
    split_leave_one_out,
)
from longrec.errors import DataError


def run_checks(
    events: Events,
    log: str,
    *,
    split: Split | None = None,
    columns: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    sequences: sequence_order.Sequences | None = None,
    further: Sequence[Finding] = (),
    seed: int = 0,
) -> Audit:
    """Run all checks.

    Args:
        log: name of the log, for the audit and for messages.
        split: rule of the split, for events without one. Default: by time with a label, else leave one out.
        columns: columns by role, for the audit.
        notes: choices that were made before.
        sequences: published sequences to compare the order with.
        further: findings to add at the end.
        seed: of the random order of ties and the sample of users.

    Raises:
        DataError: a log without events.
    """
    if not len(events):
        raise DataError(log, "no rows with a user and an item", "a log with events")
    events, note = assign_split(events, split, log)
    targets = _find_targets(events)
    # Sequences are built of these: the order of candidates that were only shown is that of a page.
    positive = events if events.label is None else events.select(events.label > 0.5)
    steps: dict[str, Callable[[], list[Finding]]] = {
        "ties": lambda: ties.check_ties(events, targets),
        "tie order": lambda: ties.check_tie_order(positive),
        "sort": lambda: _check_order(events, sequences),
        "histories": lambda: histories.check_histories(events),
        "repeats": lambda: [*repeats.check_repeated_rows(events), *repeats.check_targets(events, targets)],
        "features": lambda: label_features.check_features(events),
        "timeline": lambda: timeline.check_timeline(events),
        "floor": lambda: floor.check_floor(events, seed),
    }
    findings, seconds = [], {}
    for name, step in steps.items():
        began = time.perf_counter()
        findings += step()
        seconds[name] = round(time.perf_counter() - began, 3)
    return Audit(
        log=log,
        rows=len(events),
        users=len(events.offsets) - 1,
        items=len(np.unique(events.item)),
        columns=dict(columns or {}),
        notes=(*notes, note, *_describe_limits(events)),
        findings=(*findings, *further),
        seconds=seconds,
    )


def _describe_limits(events: Events) -> list[str]:
    """Return a sentence about each role without a column that much depends on, and about the label."""
    limits = []
    if events.time is None:
        limits.append("no time: what depends on it (ties, the timeline, strict histories) is not measured")
    if events.label is not None:
        limits.append("sequences (targets, order in ties, counting rule) are those of the positive rows")
    return limits


def _check_order(events: Events, sequences: sequence_order.Sequences | None) -> list[Finding]:
    if sequences is None:
        return sequence_order.check_own_order(events)
    return sequence_order.check_sequences(events, sequences)


def _find_targets(events: Events) -> NDArray[np.int64]:
    """Return the positions of the test rows, of positive ones if there are labels."""
    assert events.split is not None
    test = events.split == TEST
    return np.flatnonzero(test if events.label is None else test & (events.label > 0.5))


def assign_split(events: Events, rule: Split | None, where: str) -> tuple[Events, str]:
    """Return the events with a split, and a sentence about it.

    Raises:
        DataError: a rule that needs a time, which the log does not have.
    """
    if events.split is not None and rule is None:
        return events, f"split of the log: {_count(events.split)}"
    chosen = rule or Split(by="time" if events.label is not None and events.time is not None else "leave_one_out")
    if chosen.by == "time":
        if events.time is None:
            raise DataError(where, "a split by time of a log without times", "a time, or leave_one_out")
        cutoffs = compute_time_cutoffs(chosen, events.time, True, where)
        codes = split_by_time(events.time, cutoffs)
    elif chosen.by == "user":
        codes = split_by_user(chosen, pa.array(events.user_keys))[events.user]
    elif chosen.by == "leave_one_out":
        sample = np.ones(len(events), bool) if events.label is None else ~np.isnan(events.label)
        codes = split_leave_one_out(events.offsets, sample)
    else:
        raise DataError(where, f"a split by {chosen.by}, and rows without it", "a column or files with the split")
    by = {"time": "by time", "user": "by user", "leave_one_out": "leave one out"}[chosen.by]
    return replace(events, split=codes), f"split {by}{'' if rule else ' (chosen)'}: {_count(codes)}"


def _count(codes: NDArray[np.int8]) -> str:
    counts = np.bincount(codes[codes >= 0], minlength=3)
    return ", ".join(f"{int(count):,} {name}" for name, count in zip(("train", "valid", "test"), counts))
