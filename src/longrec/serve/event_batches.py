"""Batches of events: many are read, looked up and written together, with the effect of one after the other.

Every event is validated, encoded and planned by the code of ``POST /events``. Only what waits for a store is shared:
one look-up, and one durable write to each store, for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from longrec.errors import RequestError
from longrec.serve.event_reader import Event
from longrec.serve.events import EventPlan, EventRecorder

EventT = TypeVar("EventT")


def record_batch(recorder: EventRecorder, events: Sequence[Event]) -> list[EventPlan | RequestError]:
    """Record events of different names durably.

    The stores of histories are written first, and then the raw values, as for a single event. Recording the batch again
    writes what is missing, and changes nothing else.

    Args:
        recorder: recorder of a service without a source model of tokens.
        events: results of ``recorder.reader.read``. No two have one name.

    Returns:
        For every event what was written, or why it is refused.

    Raises:
        StoreError: if a store does not respond. Some stores may have the whole batch, and others nothing of it.
    """
    if not events:
        return []
    users = np.array([event.user for event in events], np.int64)
    times = np.array([event.at for event in events], np.int64)
    instances = np.array([event.instance for event in events], np.int64)
    stored = []
    for live, encoder in recorder.live_stores:
        rows = np.array([encoder.look_up_user(event.request.user) for event in events], np.int64)
        items = np.array([encoder.look_up_item(event.request.item) for event in events], np.int64)
        stored.append(live.find_many(users, rows, times, instances, items))
    records = recorder.state.recorded
    before = [None] * len(events) if records is None else records.find_many(users, times, instances)
    results: list[EventPlan | RequestError] = []
    for at, event in enumerate(events):
        try:
            results.append(recorder.plan(event, [own[at] for own in stored], before[at]))
        except RequestError as error:
            results.append(error)
    plans = [result for result in results if isinstance(result, EventPlan)]
    for number, (live, _) in enumerate(recorder.live_stores):
        changed = [(plan.event, row) for plan in plans if (row := plan.updates[number].row) is not None]
        own = [event for event, _ in changed]
        live.write([event.user for event in own], [event.at for event in own], [row for _, row in changed])
    if records is not None:
        new = [(plan.event, plan.record) for plan in plans if plan.record is not None]
        own = [event for event, _ in new]
        records.write([event.user for event in own], [event.instance for event in own], [one for _, one in new])
    return results


def split_rounds(events: Sequence[tuple[EventT, int]]) -> Iterator[list[EventT]]:
    """Yield events in rounds without a repeated name: the first call of every event, then the second, and so on.

    Args:
        events: events, each with its name.

    >>> list(split_rounds([("a", 1), ("b", 2), ("a again", 1)]))
    [['a', 'b'], ['a again']]
    """
    rounds: list[list[EventT]] = []
    seen: dict[int, int] = {}
    for event, name in events:
        number = seen[name] = seen.get(name, -1) + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(event)
    yield from rounds
