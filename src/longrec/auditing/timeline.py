"""Training rows that are later than test rows: of the same user, in a split by time, and over all users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, bound, percent, share_of, skip
from longrec.data.splits import TEST, TRAIN

_BY_TIME = 0.8
"""Share of training rows before the earliest test rows from which the split is meant to be one by time."""
_EARLY = 0.01
"""Quantile of the test times that stands for the earliest, because one wrong time must not decide it."""
_ONE_EACH = 0.9
"""Share of users with one test row from which the split is leave one out."""
_LATER = 0.001
"""Share of rows in the wrong period that is an alarm: such rows are few in number, and are what the model learns by
heart."""


def check_timeline(events: Events) -> list[Finding]:
    """Return the shares of training rows after test rows."""
    if events.time is None or events.split is None:
        return [skip("timeline", "training rows after test rows", "the log has no times")]
    train, test = np.flatnonzero(events.split == TRAIN), np.flatnonzero(events.split == TEST)
    if not len(train) or not len(test):
        return [skip("timeline", "training rows after test rows", "the split has no training or no test rows")]
    time = events.time
    first, early, median = time[test].min(), np.quantile(time[test], _EARLY), np.median(time[test])
    after_first, after_median = share_of(time[train] > first), share_of(time[train] > median)
    by_time = bool((time[train] < early).mean() >= _BY_TIME) and not _leaves_one_out(events, train, test)
    return [
        _compare_own_rows(events, train, test),
        Finding(
            "timeline",
            "training rows after the first test row",
            f"{percent(after_first)}{', a split by time' if by_time else ''}",
            f"alarm {bound(_LATER)}" if by_time else f"notice {bound(_LATER)}",
            _judge_time(after_first, by_time),
            after_first,
            "In a split by time every training row is earlier than every test row. Others show the model what was "
            "popular, and who did what, after the requests that it is tested on."
            if by_time
            else "The split is not one by time, such as leave one out. Training then has events of other users from "
            "after the test requests, and popularity and trends of the future with them.",
            "Remove the later rows from training."
            if by_time
            else "Report a split at one time for all users beside it. Numbers of leave one out are no forecast.",
            {"split_by_time": by_time},
        ),
        Finding(
            "timeline",
            "training rows after the median one",
            percent(after_median),
            f"notice {bound(_LATER)}",
            NOTICE if after_median >= _LATER else OK,
            after_median,
            "This share of the training rows is from after the median test row, so the periods of training and test "
            "overlap.",
            "Report a split at one time for all users beside it.",
            {"first_test": int(first), "last_train": int(time[train].max())},
        ),
    ]


def _leaves_one_out(events: Events, train: NDArray[np.int64], test: NDArray[np.int64]) -> bool:
    """Return whether nearly every user of the training rows has one test row, which no split by time gives."""
    counts = np.bincount(events.user[test], minlength=int(events.user.max()) + 1)
    trained = np.unique(events.user[train])
    return bool((counts[counts > 0] == 1).mean() >= _ONE_EACH and (counts[trained] > 0).mean() >= _ONE_EACH)


def _judge_time(later: float, by_time: bool) -> str:
    if not later:
        return OK
    return ALARM if by_time and later >= _LATER else NOTICE


def _compare_own_rows(events: Events, train: NDArray[np.int64], test: NDArray[np.int64]) -> Finding:
    """Return the share of test rows whose user has a later training row."""
    assert events.time is not None
    latest = np.full(int(events.user.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(latest, events.user[train], events.time[train])
    later = share_of(latest[events.user[test]] > events.time[test])
    return Finding(
        "timeline",
        "test rows before an own training row",
        f"{percent(later)} of {len(test):,}",
        f"alarm {bound(_LATER)}",
        ALARM if later >= _LATER else NOTICE if later else OK,
        later,
        "The model has learned what these users did next. Their test rows measure memory.",
        "Split each user's rows in time, or all rows at one time. A random split of rows has this fault.",
    )
