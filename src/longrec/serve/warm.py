"""Warming: the states of all users of a bundle, folded before it is served, many users at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from longrec.errors import BundleError
from longrec.exporting.bundle import HISTORY, Bundle, read_manifest
from longrec.progress import Progress
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents
from longrec.serve.request_time import read_clock
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.serve.user_states import UserHistory
from longrec.store.segment import Segment

_TOGETHER = 256
"""Number of users whose events are folded at once."""


def warm_states(bundle: Path, settings: Settings, at: int | None = None) -> dict[str, int]:
    """Fold the events of all users into their states, those of the log and those recorded since.

    Args:
        at: timestamp from which requests can use the states, in milliseconds UTC or steps. Default now, or after the
            last step.

    Returns:
        The numbers of users and of states, how many were folded now, and the bytes of one state.

    Raises:
        BundleError: if the bundle has no states.
        StoreError: if a store cannot be opened, or a server uses it.
    """
    if not read_manifest(bundle).states:
        do = "export a ranker with a state: longrec export RUN BUNDLE --states"
        raise BundleError(str(bundle), "a bundle without states", "a bundle with states of users", do)
    with contextlib.closing(Service(bundle, settings)) as service:
        own, reader = service.bundle, service.served.encoder.histories
        states = reader.states
        assert states is not None
        live = reader.live
        assert live is not None
        users = list(_list_users(own, live))
        now = at if at is not None else _find_now(own)
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


def _find_now(bundle: Bundle) -> int:
    time = bundle.fitted.schema.time
    if time is None or time.unit != "step":
        return read_clock()
    return int(_open_segment(bundle).times.max(initial=0)) + 1


def _open_segment(bundle: Bundle) -> Segment:
    """Return the events of the log, mapped."""
    return Segment.open(bundle.files / HISTORY)
