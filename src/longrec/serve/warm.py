"""Warming: the states of all users of a bundle, folded before it is served, many users at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from longrec.errors import BundleError
from longrec.exporting.bundle import HISTORY, Bundle, read_manifest
from longrec.progress import Progress
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents
from longrec.serve.log_recorder import EventLog, LogClock, LogRecorder, RefusedRows
from longrec.serve.request_time import read_clock
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.serve.user_states import UserHistory
from longrec.store.segment import Segment

_TOGETHER = 256
"""Number of users whose events are folded at once."""


def warm_states(
    bundle: Path,
    settings: Settings,
    at: int | None = None,
    open_log: Callable[[Bundle], contextlib.AbstractContextManager[EventLog]] | None = None,
    refused: Path | None = None,
    allow_unknown: bool = False,
) -> dict[str, int]:
    """Fold the events of all users into their states, those of the log and those recorded since.

    Args:
        at: timestamp from which requests can use the states, in milliseconds UTC or steps. Default now, or after the
            last step.
        open_log: function that opens an event log for a bundle. Its events are recorded first.
        refused: file of the rows of the log that are refused.
        allow_unknown: accept items that the bundle does not contain.

    Returns:
        The numbers of users and of states, how many were folded now, and the bytes of one state. Of a log also the
        numbers of ``LogCounts``.

    Raises:
        BundleError: if the bundle has no states.
        DataError: if the log cannot be read, or lacks a column that every event must have.
        StoreError: if a store cannot be opened, or a server uses it.
    """
    if not read_manifest(bundle).states:
        do = "export a ranker with a state: longrec export RUN BUNDLE --states"
        raise BundleError(str(bundle), "a bundle without states", "a bundle with states of users", do)
    clock = LogClock()
    with contextlib.closing(Service(bundle, settings, clock)) as service:
        counts: dict[str, int] = {}
        if open_log is not None:
            assert refused is not None
            recorder = LogRecorder(service, clock, allow_unknown)
            with open_log(service.bundle) as log, RefusedRows(refused) as rows:
                recorder.record(log, rows)
            counts = vars(recorder.counts)
        own, reader = service.bundle, service.served.encoder.histories
        states = reader.states
        assert states is not None
        live = reader.live
        assert live is not None
        users = list(_list_users(own, live))
        now = at if at is not None else _find_now(own, live)
        folded = 0
        with Progress(len(users), "warm", "users") as progress:
            for start in range(0, len(users), _TOGETHER):
                some = users[start : start + _TOGETHER]
                folded += len(states.fold(reader, some, now))
                progress.advance(len(some))
        return {
            "users": len(users),
            "folded": folded,
            "states": states.store.count(),
            "bytes_per_user": states.bytes_per_user,
            **counts,
        }


def _list_users(bundle: Bundle, live: LiveEvents) -> Iterator[UserHistory]:
    """Yield the users with events, those with most events in the log first, so that users of a call are alike."""
    counts = np.diff(_open_segment(bundle).offsets)
    rows, seen = np.argsort(-counts, kind="stable"), set[int]()
    for row in rows[counts[rows] > 0].tolist():
        user = key_number(bundle.users.key(row))
        seen.add(user)
        yield UserHistory(user, row)
    every = {key_number(bundle.users.key(row)): row for row in range(1, len(bundle.users))}
    for user, _ in live.backend.scan():
        if user not in seen:
            seen.add(user)
            yield UserHistory(user, every.get(user, 0))


def _find_now(bundle: Bundle, live: LiveEvents) -> int:
    """Return the present time, or the step after the last event."""
    time = bundle.fitted.schema.time
    if time is None or time.unit != "step":
        return read_clock()
    last = int(_open_segment(bundle).times.max(initial=0))
    return max([last, *(int(events.times[-1]) for _, events in live.backend.scan() if len(events))]) + 1


def _open_segment(bundle: Bundle) -> Segment:
    """Return the events of the log, mapped."""
    return Segment.open(bundle.files / HISTORY)
