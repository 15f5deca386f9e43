"""Published order of events against the stable order of their source: a sort that is not stable, and other orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, bound, judge, percent, share_of, skip

_UNSTABLE = 0.001
"""Share of tied neighbors in another order than in the source from which the sort was not stable. A stable sort has
none."""
_KEY = 0.99
"""Share of tied neighbors in the order of a key from which the key explains the order."""
_BACK = 0.001
"""Share of neighbors against the order of time from which it is an alarm."""
_UNMATCHED = 0.01


@dataclass(frozen=True)
class Sequences:
    """Published sequences: users and items in the numbers of the log, sorted by user, in the published order.

    A user or item that the log does not have is -1.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]


def check_sequences(events: Events, sequences: Sequences) -> list[Finding]:
    """Compare published sequences with the source log in its stable order: time, then row in the file.

    Args:
        events: the source log.
    """
    if events.time is None:
        return [skip("sort", "published order", "the log has no times")]
    stable = events.reorder(np.lexsort([events.row, events.time, events.user]))
    at = _match(stable, sequences)
    matched = at >= 0
    at, user = at[matched], sequences.user[matched]
    unmatched = 1 - share_of(matched)
    findings = [] if unmatched < _UNMATCHED else [_report_unmatched(unmatched)]
    return findings + _compare(stable, at, user, "the published order")


def check_own_order(events: Events) -> list[Finding]:
    """Compare the order by a column with the order of the file, if the file has the rows of each user in time."""
    if events.time is None or not events.ordered:
        return [skip("sort", "published order", "needs a time, and an order column or --sequences")]
    by_row = events.reorder(np.lexsort([events.row, events.user]))
    assert by_row.time is not None
    if (by_row.follows[1:] & (by_row.time[1:] < by_row.time[:-1])).any():
        # The file is in no order of time, so its order says nothing about ties.
        back = events.follows[1:] & (events.time[1:] < events.time[:-1])
        return [_report_time(share_of(back[events.follows[1:]]), "the order by the column")]
    order = np.lexsort([events.row, events.time, events.user])
    at = np.empty(len(events), np.int64)
    at[order] = np.arange(len(events))
    return _compare(events.reorder(order), at, events.user, "the order by the column")


def _match(stable: Events, sequences: Sequences) -> NDArray[np.int64]:
    """Return the position in the log of each published event, -1 for none. Repeated items are matched in order."""
    own = _number_occurrences(stable.user, stable.item)
    published = _number_occurrences(sequences.user, sequences.item)
    size = int(max(stable.item.max(initial=0), sequences.item.max(initial=0))) + 2
    times = int(max(own.max(initial=0), published.max(initial=0))) + 1
    keys = (stable.user * size + stable.item) * times + own
    wanted = (sequences.user * size + sequences.item) * times + published
    order = np.argsort(keys)
    at = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
    hit = (keys[order[at]] == wanted) & (sequences.user >= 0) & (sequences.item >= 0)
    return np.where(hit, order[at], -1)


def _number_occurrences(user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many events of the same user and item are before each event."""
    order = np.lexsort([item, user])
    new = np.ones(len(order), bool)
    new[1:] = (user[order][1:] != user[order][:-1]) | (item[order][1:] != item[order][:-1])
    starts = np.flatnonzero(new)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return number


def _compare(stable: Events, at: NDArray[np.int64], user: NDArray[np.int64], where: str) -> list[Finding]:
    """Return the findings about events in an order.

    Args:
        stable: the log in its stable order.
        at: positions in it, in the order that is compared, sorted by user.
        user: user of each.
    """
    assert stable.time is not None
    if len(at) < 2:
        return [skip("sort", "published order", "no events to compare")]
    same = user[1:] == user[:-1]
    time, item = stable.time[at], stable.item[at]
    back = share_of((time[1:] < time[:-1])[same])
    tied = same & (time[1:] == time[:-1])
    descends = share_of((at[1:] < at[:-1])[tied])
    differ = tied & (item[1:] != item[:-1])
    ascending = share_of((item[1:] > item[:-1])[differ])
    last = np.flatnonzero(np.append(~same, True))
    # Only users whose last event has others of its time can lose it.
    ends = np.searchsorted(stable.user, user[last], side="right") - 1
    moved = share_of(at[last] != ends)
    numbers: dict[str, Any] = {"targets_moved": moved, "inverted": descends, "tied_neighbors": int(tied.sum())}
    verdict, explained = _judge_order(descends, ascending, int(tied.sum()))
    return [
        _report_time(back, where),
        Finding(
            "sort",
            "ties not in the order of the file",
            f"{percent(descends)} of {int(tied.sum()):,}{explained}",
            f"alarm {bound(_UNSTABLE)}",
            verdict,
            descends,
            f"A stable sort by time keeps the order of the file. {where[0].upper()}{where[1:]} has another one. "
            "Unless a key explains it, it is that of an unstable sort, which no other tool can repeat.",
            "Sort by (time, row in file) with a stable sort, such as kind='stable' in pandas and numpy.",
            numbers,
        ),
        Finding(
            "sort",
            "last events moved by the sort",
            f"{percent(moved)} of {len(last):,} users",
            f"alarm {bound(_UNSTABLE)}",
            judge(moved, _UNSTABLE, _UNSTABLE if verdict == ALARM else None),
            moved,
            "These last events are not the last ones in the stable order. The test targets are others than those of "
            "a stable sort, so the results compare with nothing.",
            "Build the sequences again from the source, with a stable sort.",
            numbers,
        ),
    ]


def _judge_order(descends: float, ascending: float, count: int) -> tuple[str, str]:
    """Return the verdict, and the key that explains the order of ties."""
    if not count or descends < _UNSTABLE:
        return OK, ""
    if descends >= _KEY:
        return NOTICE, ", the reverse of the file"
    if ascending >= _KEY or ascending <= 1 - _KEY:
        return NOTICE, f", by item id {'ascending' if ascending > 0.5 else 'descending'}"
    return ALARM, ", by no key of the log"


def _report_time(back: float, where: str) -> Finding:
    return Finding(
        "sort",
        "events that step back in time",
        percent(back),
        f"alarm {bound(_BACK)}",
        NOTICE if 0 < back < _BACK else judge(back, None, _BACK),
        back,
        f"{where[0].upper()}{where[1:]} contradicts the times, so the last event of a user is not the latest.",
        "Sort by time, or leave out the order column.",
    )


def _report_unmatched(share: float) -> Finding:
    return Finding(
        "sort",
        "published events not in the log",
        percent(share),
        f"notice {bound(_UNMATCHED)}",
        NOTICE,
        share,
        "The published sequences are of another version of the log, or of other ids.",
        "Compare with the log that the sequences were built from.",
    )
