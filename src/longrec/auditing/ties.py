"""Events with equal times: how many there are, and whether their order can be predicted.

If the order inside a tie was drawn at random, or is the true order of unrelated events, a column of the item is as
often higher as lower in the later event. If files were written in the order of such a column, a model that reads it
(an id, a text, a code) knows what follows.

    z = (ascents - n / 2) / sqrt(n / 4)

over the n neighbors in ties with different values. In a random order, the directions of overlapping neighbors are
negatively correlated, so the true standard error is never larger, and the test is conservative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events, Values
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, bound, judge, percent, share_of, sign_deviation, skip

_TIED, _TIED_TARGETS = 0.05, 0.05
"""Shares of tied events and targets from which protocols that differ in their order give visibly different numbers."""
_DEVIATIONS = 5.0
"""Standard errors from which an order is called predictable: below 1e-6 for one column, 1e-4 for a hundred."""
_PREDICTED = 0.6
"""Share of neighbors in one direction from which it is an alarm: one in five neighbors is settled by the column."""
_AGREED = 0.75
"""Share of agreement from which it is an alarm: as if half of the ties were sorted by a key."""
_SORTED = 0.99
"""Share of neighbors in one direction from which a column explains the whole order."""
_AFFECTED = 0.01
"""Share of the events that are such neighbors below which an alarm is a notice, since metrics hardly move."""
_FEW = 0.001
"""Share of the events that are such neighbors below which nothing is said."""
_LEAST = 30
"""Least number of neighbors for a verdict."""
_ROW_NUMBER = 0.9
"""Share of distinct values among the rows from which a column numbers rows, and says nothing about items."""
_VALUES = 2.0
"""Distinct pairs of item and value per item above which a column does not describe the item."""


def check_ties(events: Events, targets: NDArray[np.int64]) -> list[Finding]:
    """Return the shares of tied events and targets.

    Args:
        targets: positions of the test targets.
    """
    if events.time is None:
        return [skip("ties", "tied events", "the log has no times")]
    tied, own = share_of(events.recorded_ties[events.follows]), share_of(events.recorded_ties[targets])
    kept = _expect_kept_targets(events)
    return [
        Finding(
            "ties",
            "tied events",
            f"{percent(tied)} of {int(events.follows.sum()):,}",
            f"notice {bound(_TIED)}",
            judge(tied, _TIED),
            tied,
            "These events have the time of their user's event before, and the log does not say which was first. The "
            "order of the file is then a part of the data.",
            "State the order in ties with every result. A strict history (events of earlier times only) needs none.",
        ),
        Finding(
            "ties",
            "tied test targets",
            f"{percent(own)} of {len(targets):,}",
            f"notice {bound(_TIED_TARGETS)}",
            judge(own, _TIED_TARGETS),
            own,
            "They have the time of the event before. A model that reads all earlier rows sees events of the same "
            f"time as the target. A sort that is not stable would keep {percent(kept)} of the last events of the "
            "users as the last.",
            "Report the strict protocol beside the published one, and sort by (time, row in file) with a stable sort.",
            {"kept_by_unstable_sort": kept},
        ),
    ]


def _expect_kept_targets(events: Events) -> float:
    """Return the share of users whose last event stays the last in a random order of ties."""
    starts = np.flatnonzero(~events.tied)
    sizes = np.diff(np.append(starts, len(events)))
    group = np.searchsorted(starts, events.last, side="right") - 1
    return float((1 / sizes[group]).mean()) if len(group) else 1.0


def check_tie_order(events: Events) -> list[Finding]:
    """Return whether the order inside ties follows the item id, another column of the item, or any order of items."""
    if not events.recorded_ties.any():
        return [skip("tie order", "order in ties", "no ties")]
    second = np.flatnonzero(events.recorded_ties)
    findings = [
        _judge_columns(events, second, "order in ties by item id", list(_list_ids(events)), skip_first=True),
        _judge_columns(events, second, "order in ties by a column", list(_list_columns(events))),
    ]
    sides = [finding.value or 0.0 for finding in findings]
    if max(sides) >= _SORTED:  # columns that are related to the key follow the order too, and are no news
        findings = [
            replace(finding, verdict=OK) if finding.verdict == NOTICE and side < _SORTED else finding
            for finding, side in zip(findings, sides)
        ]
    return [*findings, _judge_agreement(events, second)]


def _list_ids(events: Events) -> Iterator[tuple[str, Values]]:
    yield "item", Values(events.item.astype(np.float64))
    if events.item_texts is not None:
        other = "as number" if events.item_keys.dtype.kind == "U" else "as text"
        yield f"item {other}", Values(events.item_texts[events.item].astype(np.float64))


def _list_columns(events: Events) -> Iterator[tuple[str, Values]]:
    """Yield the columns that describe the item: those of the table of items, and those of rows that follow the item."""
    for column, values in events.item_features.items():
        yield column, values.take(events.item)
    items = len(np.unique(events.item))
    for column, values in events.features.items():
        own = values.array[values.present]
        if not len(own):
            continue
        distinct, codes = np.unique(own, return_inverse=True)
        pairs = np.unique(codes * (int(events.item.max()) + 1) + events.item[values.present])
        if 1 < len(distinct) < _ROW_NUMBER * len(own) and len(pairs) <= _VALUES * items:
            yield column, values


def _judge_columns(
    events: Events,
    second: NDArray[np.int64],
    what: str,
    columns: list[tuple[str, Values]],
    *,
    skip_first: bool = False,
) -> Finding:
    """Return the finding about the column that predicts the order best.

    Args:
        second: positions of the later events of all neighbors in ties.
        skip_first: test without the first event of each item. Ids that were numbered in the order of the file are
            ascending there in any order of the file.
    """
    new = _mark_first_events(events) if skip_first else np.zeros(len(events), bool)
    best, strongest = None, -1.0
    for column, values in columns:
        usable = values.present[second] & values.present[second - 1]
        usable &= events.item[second] != events.item[second - 1]
        at = second[usable]
        differ = values.array[at] != values.array[at - 1]
        up = values.array[at] > values.array[at - 1]
        tested = differ & ~new[at] & ~new[at - 1]
        ascents, count = int(up[tested].sum()), int(tested.sum())
        every, ascending = int(differ.sum()), int((up & differ).sum())
        deviation = sign_deviation(ascents, count)
        if abs(deviation) > strongest and count:
            best, strongest = (column, every, ascending, ascents, count), abs(deviation)
    if best is None:
        return skip("tie order", what, "no such column" if not columns else "no neighbors to test")
    column, every, ascending, ascents, count = best
    share, direction = ascents / count, "ascending" if ascents * 2 >= count else "descending"
    side = max(share, 1 - share)
    verdict = OK
    if count >= max(_LEAST, _FEW * len(events)) and strongest >= _DEVIATIONS:
        verdict = ALARM if side >= _PREDICTED and count >= _AFFECTED * len(events) else NOTICE
    cause = "so it was written by a sort and not by the users" if side >= _SORTED else "more often than chance explains"
    shown = ascending if direction == "ascending" else every - ascending
    return Finding(
        "tie order",
        what,
        f"{percent(shown / every)} of {every:,} {direction} by {column}",
        f"alarm {bound(_PREDICTED)}",
        verdict,
        side,
        f"Of {every:,} neighbors with equal times, this share is {direction} by {column!r} ({strongest:.0f} standard "
        f"errors from 1/2), {cause}. A model that reads ids, texts or codes gains from it.",
        "Draw the order inside ties at random, or use strict histories. Do not compare results in the published "
        "order with results in another one.",
        {"column": column, "tested": count, "ascending": ascents, "neighbors": every, "deviations": strongest},
    )


def _mark_first_events(events: Events) -> NDArray[np.bool_]:
    """Return which events are the first of their item: in the order of the input, of users, or of time."""
    mark = np.zeros(len(events), bool)
    orders = [np.argsort(events.row, kind="stable"), np.arange(len(events))]
    if events.time is not None:
        orders += [np.lexsort([events.row, events.time]), np.argsort(events.time, kind="stable")]
    for order in orders:
        mark[order[np.unique(events.item[order], return_index=True)[1]]] = True
    return mark


def _judge_agreement(events: Events, second: NDArray[np.int64]) -> Finding:
    """Return whether two items that are neighbors in several ties always have the same order.

    In random orders, two occurrences of a pair agree with a probability of 1/2. This needs no column, so it also shows
    an order by a key that the log does not have. Only occurrences of different users are compared, because a user may
    have a habit.
    """
    one, two, user = events.item[second - 1], events.item[second], events.user[second]
    differ = one != two
    low, high = np.minimum(one, two)[differ], np.maximum(one, two)[differ]
    up = one[differ] < two[differ]
    keys = low * (int(events.item.max()) + 1) + high
    order = np.argsort(keys, kind="stable")
    keys, up, user = keys[order], up[order], user[differ][order]
    again = (keys[1:] == keys[:-1]) & (user[1:] != user[:-1])
    agree, count = int((up[1:] == up[:-1])[again].sum()), int(again.sum())
    if not count:
        return skip("tie order", "repeated pairs in one order", "no two items are neighbors in ties of two users")
    deviation, share = sign_deviation(agree, count), agree / count
    verdict = OK
    if count >= _LEAST and deviation >= _DEVIATIONS:
        verdict = ALARM if share >= _AGREED and len(second) >= _AFFECTED * len(events) else NOTICE
    return Finding(
        "tie order",
        "repeated pairs in one order",
        f"{percent(share)} of {count:,} repetitions",
        f"alarm {bound(_AGREED)}",
        verdict,
        share,
        "Two items that stand side by side in ties of several users have the same order more often than by chance "
        f"({deviation:.0f} standard errors). Unrelated users do not agree on an order, but a key does, even one that "
        "the log does not have. Items that are used in a fixed order, such as episodes, also agree.",
        "Find the key (a catalog number, a title, the order of a page), and draw the order inside ties at random.",
        {"repetitions": count, "deviations": deviation},
    )
