"""Pre-joined histories that hold the target of their row, the event itself, or events from after the row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, bound, percent, share_of, skip
from longrec.features.feature_encoders import Lists

_COVERED = 0.9
"""Share of the elements of a history that are events of their user in the log, from which the log can refute it."""
_LONGER = 0.1
"""Share of histories with more events than the log has before their row, from which the log begins too late."""
_SAME_END = 0.9
"""Share of the targets inside histories without repetition that stand at one end, from which they were joined in."""
_IMPOSSIBLE = 0.001
"""Share of rows with an event in their history that had not happened which is an alarm: there is no honest cause."""
_EXCESS = 0.2
"""Excess of targets inside their history over natural repetition that is an alarm where the log refutes nothing."""
_HELD = 0.01


def check_histories(events: Events) -> list[Finding]:
    """Return what is wrong with the pre-joined histories, by list column."""
    if not events.lists:
        return [skip("histories", "pre-joined histories", "the log has no list column of items")]
    findings = []
    for column, lists in events.lists.items():
        findings += _check_list(events, column, lists)
    for column, lists in events.list_times.items():
        findings += _check_times(events, column, lists)
    return findings


def _check_list(events: Events, column: str, lists: Lists) -> list[Finding]:
    lengths = np.diff(lists.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    if not len(owner):
        return [skip("histories", column, "all histories are empty")]
    own = lists.values == events.item[owner]
    holds = np.zeros(len(lengths), bool)
    holds[owner[own]] = True
    some = lengths > 0
    held, natural = share_of(holds[some]), _find_natural_repetition(lists, owner, lengths)
    ends = share_of(lists.values[lists.offsets[1:][some] - 1] == events.item[some])
    log = _join_log(events, lists, owner)
    if log is None:
        return [_judge_excess(events, column, holds, some, held, natural, ends)]
    first, covered = log
    assert events.time is not None
    row_time = events.time[owner]
    itself, later = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
    itself[owner[own & covered & (first >= row_time)]] = True
    later[owner[~own & covered & (first > row_time)]] = True
    same = np.zeros(len(lengths), bool)
    same[owner[~own & covered & (first == row_time)]] = True
    wrong, future, tied = share_of(itself[some]), share_of(later[some]), share_of(same[some])
    return [
        Finding(
            "histories",
            f"{column} holds the event itself",
            f"{percent(wrong)} of {int(some.sum()):,}",
            f"alarm {bound(_IMPOSSIBLE)}",
            ALARM if wrong >= _IMPOSSIBLE else NOTICE if wrong else OK,
            wrong,
            f"{percent(held)} of the histories hold the item of their row, {percent(natural)} by repetition alone. In "
            "this share of the rows the user had no earlier event with this item in the log, so the history holds "
            "the target of its own row. A model finds the answer in its input.",
            "Build histories from events strictly before the row. A history that longrec prepare builds is so.",
            {"rows": int(itself.sum()), "holds_item": held, "natural": natural, "ends_with_item": ends},
        ),
        Finding(
            "histories",
            f"{column} holds later events",
            f"{percent(future)} of {int(some.sum()):,}, same time {percent(tied)}",
            f"alarm {bound(_IMPOSSIBLE)}",
            ALARM if future >= _IMPOSSIBLE else NOTICE if future or tied >= _HELD else OK,
            future,
            "The first event of the user with one of these items is later than the row, so the history was not "
            "available then.",
            "Build histories from events strictly before the row.",
            {"rows": int(later.sum()), "same_time": tied},
        ),
    ]


def _find_natural_repetition(lists: Lists, owner: NDArray[np.int64], lengths: NDArray[np.int64]) -> float:
    """Return the share of histories, of two events or more, whose newest event repeats an item of the others."""
    newest = lists.values[np.maximum(lists.offsets[1:] - 1, 0)]
    last = np.zeros(len(lists.values), bool)
    last[lists.offsets[1:][lengths > 0] - 1] = True
    repeats = np.zeros(len(lengths), bool)
    repeats[owner[(lists.values == newest[owner]) & ~last]] = True
    return share_of(repeats[lengths > 1])


def _repeats(lists: Lists) -> bool:
    """Return whether a history has an item twice."""
    owner = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    order = np.lexsort([lists.values, owner])
    same = (owner[order][1:] == owner[order][:-1]) & (lists.values[order][1:] == lists.values[order][:-1])
    return bool((same & (lists.values[order][1:] >= 0)).any())


def _join_log(
    events: Events, lists: Lists, owner: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """Return the first time of each element as an event of its user, and whether there is one. None if few have one."""
    if events.time is None:
        return None
    masks = [np.ones(len(events), bool)]
    if events.label is not None:
        masks.insert(0, events.label > 0.5)
    size = int(events.item.max(initial=0)) + 2
    wanted = events.user[owner] * size + lists.values
    for mask in masks:
        pair, time = events.user[mask] * size + events.item[mask], events.time[mask]
        order = np.lexsort([time, pair])
        keys, at = np.unique(pair[order], return_index=True)
        if not len(keys):
            continue
        index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        covered = (keys[index] == wanted) & (lists.values >= 0)
        others = lists.values != events.item[owner]
        begins_late = share_of(np.diff(lists.offsets) > _count_earlier(events, mask) + 1) > _LONGER
        if others.any() and share_of(covered[others]) >= _COVERED and not begins_late:
            return time[order][at[index]], covered
    return None


def _count_earlier(events: Events, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of events of the user, where a mask is True, up to the time of each event, int64 ``[N]``."""
    assert events.time is not None
    times, code = np.unique(events.time, return_inverse=True)
    when = events.user * len(times) + code
    own = np.sort(when[mask])
    return np.searchsorted(own, when, side="right") - np.searchsorted(own, events.user * len(times))


def _judge_excess(
    events: Events,
    column: str,
    holds: NDArray[np.bool_],
    some: NDArray[np.bool_],
    held: float,
    natural: float,
    ends: float,
) -> Finding:
    """Return the finding about a history whose events are not in the log: too many targets inside."""
    excess = held - natural
    apart = ""
    if not _repeats(events.lists[column]) and ends < _SAME_END * held:
        # Each item is listed once, so that repetition inside says nothing about users.
        excess = 0.0
    elif events.label is not None:
        rates = [share_of(holds[some & (events.label > 0.5)]), share_of(holds[some & (events.label <= 0.5)])]
        apart = f" It is so in {percent(rates[0])} of the positive rows and {percent(rates[1])} of the negative ones."
        excess = max(excess, min(rates[0] - rates[1], rates[0] - natural))
    return Finding(
        "histories",
        f"{column} holds the item of the row",
        f"{percent(held)} ({percent(natural)} by repetition)",
        f"alarm +{bound(_EXCESS)}",
        ALARM if excess >= _EXCESS else NOTICE if held >= _HELD else OK,
        held,
        f"Measured on {int(some.sum()):,} histories. The newest event of a history repeats an earlier one as often as "
        "users do. If the item of the row is in the history far more often, or in positive rows alone, the target "
        "was joined into it. The log does not have the events of these histories, so it cannot say when they "
        f"happened.{apart}",
        "Build histories from events strictly before the row."
        if excess >= _EXCESS
        else "Nothing, if users repeat items. Report how often they do.",
        {"natural": natural, "ends_with_item": ends, "excess": excess},
    )


def _check_times(events: Events, column: str, lists: Lists) -> list[Finding]:
    """Return the share of rows with a time in their history at or after their own."""
    assert events.time is not None
    lengths = np.diff(lists.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    later, same = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
    later[owner[lists.values > events.time[owner]]] = True
    same[owner[lists.values == events.time[owner]]] = True
    future, tied = share_of(later[lengths > 0]), share_of(same[lengths > 0])
    return [
        Finding(
            "histories",
            f"{column} holds later times",
            f"{percent(future)} of {int((lengths > 0).sum()):,}, same time {percent(tied)}",
            f"alarm {bound(_IMPOSSIBLE)}",
            ALARM if future >= _IMPOSSIBLE else NOTICE if future or tied >= _HELD else OK,
            future,
            "These histories hold events that had not happened.",
            "Build histories from events strictly before the row.",
        )
    ]
