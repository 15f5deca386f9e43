"""Recent events of a request, merged with the stored events of its user for this request only.

They are merged in the order of time, and a history is cut to its length after that. An event that is stored already,
and visible at the timestamp of the request, counts once, as it is stored. Nothing of a request is stored.

Shapes: R recent events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features.fields import AVAILABLE
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import list_event_columns
from longrec.features.token_columns import compute_instance_ids
from longrec.pipeline.recent_event import RecentEvent
from longrec.serve import feedback
from longrec.serve.event_values import encode_event_feature, list_keys
from longrec.serve.feedback import Feedback
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents, read_base_last
from longrec.store.disk_store import DiskStore
from longrec.store.history_store import Events
from longrec.store.visibility import read_visible_events

_FEW = 64
_REVISIONS = 1 << 20
"""Upper bound of the number of revisions of one event, whose identities follow that of the event."""


@dataclass(frozen=True)
class RecentColumns:
    """Recent events as encoded for one bundle, in the order of time.

    Attributes:
        times: int64 ``[R]``.
        columns: columns of a store, ``[R]`` each: ``item``, ids by feature, and ``known.*`` of feedback.
        passes: bool ``[R]`` by filtered history, True for the events that its filter passes.
    """

    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    passes: Mapping[str, NDArray[np.bool_]]

    def merge(self, stored: Events, history: str, before: int, n: int) -> Events:
        """Return the last ``n`` events of a history of stored and recent ones.

        Args:
            stored: the last ``n`` stored events. Further columns of the recent events are left out.
            before: exclusive upper bound of event timestamps.
        """
        own = self.times < before
        if history in self.passes:
            own &= self.passes[history]
        times = np.concatenate([stored.times, self.times[own]])
        order = np.argsort(times, kind="stable")[-n:] if n else np.zeros(0, np.int64)
        columns = {
            name: np.concatenate([column, self.columns[name][own]])[order]
            for name, column in stored.columns.items()
            if name in self.columns
        }
        return Events(np.array([0, len(order)]), times[order], columns)


def encode_recent(
    fitted: FittedSchema, user: Any, recent: Sequence[RecentEvent], rows: NDArray[np.int64]
) -> RecentColumns:
    """Encode recent events.

    Args:
        user: key of the user.
        rows: ``[R]``, rows of the items.

    Raises:
        DataError: if a value has the wrong type. ``where`` names the event.
    """
    schema, names = fitted.schema, list_event_columns(fitted)
    filters = {name: list(history.where) for name, history in schema.histories.items() if history.where}
    columns: dict[str, list[int]] = {name: [] for name in names}
    columns |= {f"known.{name}": [] for name in names if schema.features[name].feedback}
    passes: dict[str, list[bool]] = {name: [] for name in filters}
    for number, one in enumerate(recent):
        own = Feedback(one.feedback, one.at, one.at)  # not before the delay of the schema, as in training
        values = {**list_keys(schema, user, one.item), **one.context, **one.feedback}
        try:
            for name in names:
                if schema.features[name].feedback:
                    code, available_at = feedback.encode_feature(fitted, name, own)
                    columns[f"known.{name}"].append(available_at)
                else:
                    code = encode_event_feature(fitted, name, values)
                columns[name].append(code)
            for name, conditions in filters.items():
                bits = feedback.evaluate_conditions(schema, name, conditions, values)
                passes[name].append(bits == (1 << len(conditions)) - 1)
        except DataError as error:
            raise DataError(f"recent[{number}].{error.where}", error.found, error.expected, error.do) from None
    times = np.array([one.at for one in recent], np.int64)
    order = np.lexsort((_compute_instances(user, recent), times))
    return RecentColumns(
        times[order],
        {name: np.array(own, np.int64)[order] for name, own in columns.items()} | {"item": rows[order]},
        {name: np.array(own, bool)[order] for name, own in passes.items()},
    )


def drop_stored(
    recent: Sequence[RecentEvent],
    rows: NDArray[np.int64],
    user: Any,
    row: int,
    timestamp: int,
    base: DiskStore,
    live: LiveEvents | None,
) -> NDArray[np.bool_]:
    """Return the mask of the recent events that are not stored, or not yet visible at a timestamp.

    An event of the bundle is the same if user, item and time are. One that was recorded since has a name.

    Args:
        rows: ``[R]``, rows of the items.
        user: key of the user.
        row: row of the user in the bundle, 0 for a new user.
        base: events of the bundle.
        live: events since the bundle, if events are recorded.
    """
    start = min(one.at for one in recent)
    of_bundle = set()
    if row:
        events = _read_from(start, lambda n: read_base_last(base, row, timestamp, timestamp, n, None))
        of_bundle = set(zip(events.times.tolist(), events.columns["item"].tolist()))
    new = np.array([not (item and (one.at, item) in of_bundle) for one, item in zip(recent, rows.tolist())])
    if live is not None:
        backend, number = live.backend, key_number(user)
        columns = [AVAILABLE, "instance"]
        events = _read_from(
            start,
            lambda n: read_visible_events(backend, number, timestamp, timestamp, n, None, columns, [AVAILABLE]),
        )
        for at, (one, instance) in enumerate(zip(recent, _compute_instances(user, recent).tolist())):
            revisions = events.columns["instance"][events.times == one.at] - instance
            new[at] &= not bool(((revisions >= 0) & (revisions < _REVISIONS)).any())
    return new


def _compute_instances(user: Any, recent: Sequence[RecentEvent]) -> NDArray[np.int64]:
    """Return the name of each event."""
    items = np.array([key_number(one.item) for one in recent], np.int64)
    times = np.array([one.at for one in recent], np.int64)
    users = np.full(len(recent), key_number(user), np.int64)
    return compute_instance_ids(users, items, times)


def _read_from(start: int, read: Callable[[int], Events]) -> Events:
    """Return the last events of a user, at least those from a timestamp on.

    Args:
        read: function that returns the last events, at most as many as its argument.
    """
    count = _FEW
    while True:
        events = read(count)
        if len(events) < count or events.times[0] < start:
            return events
        count *= 8
