"""Repeated rows, targets that the user has had before, and targets that training has never seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, bound, judge, percent, share_of, skip
from longrec.data.splits import TRAIN

_REPEATED = 0.01
"""Share of repeated rows that is an alarm, as in the facts of a prepared log."""
_CHANCE = 2.0
"""How many times as many repeated rows as chance explains are an alarm."""
_TARGETS = 0.01
_COLD, _NEW = 0.01, 0.5
"""Shares of cold rows: visible in the second digit of a metric, and more than any model can make up for."""


def check_repeated_rows(events: Events) -> list[Finding]:
    """Return the share of rows that repeat user, item and time of an earlier row.

    Users may repeat an item within the resolution of the clock. How often is estimated from neighbors with different
    times: if a share r of them has the same item twice, a share r of the tied neighbors may have it, too.
    """
    if events.time is None:
        return [skip("repeats", "repeated rows", "the log has no times")]
    order = np.lexsort([events.time, events.pair])
    same = np.zeros(len(order), bool)
    pair, time = events.pair[order], events.time[order]
    same[1:] = (pair[1:] == pair[:-1]) & (time[1:] == time[:-1])
    repeated, share = int(same.sum()), share_of(same)
    apart = events.follows & ~events.tied
    natural = share_of((events.item[1:] == events.item[:-1])[apart[1:]])
    expected = natural * float(events.tied.sum())
    copies = same[1:] & _equal_rows(events, order)
    verdict = NOTICE if repeated else OK
    if share >= _REPEATED and repeated > _CHANCE * expected:
        verdict = ALARM
    return [
        Finding(
            "repeats",
            "repeated rows",
            f"{percent(share)}, {repeated:,} rows",
            f"alarm {bound(_REPEATED)}",
            verdict,
            share,
            f"These rows have user, item and time of an earlier row. {int(copies.sum()):,} equal it in all columns "
            "that were read. A copy makes its item a repetition, which is easy to predict, and counts twice in "
            f"training. Repetition by the users explains about {expected:,.0f} of these rows.",
            "Remove the copies, unless they are events of their own, before any sequence is built.",
            {"rows": repeated, "equal": int(copies.sum()), "expected": expected},
        )
    ]


def _equal_rows(events: Events, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether all columns of an event equal those of the event before it in an order, ``[N - 1]``."""
    equal = np.ones(max(len(order) - 1, 0), bool)
    columns = [values.array for values in events.features.values()]
    for column in [*columns, *([] if events.label is None else [events.label])]:
        one, two = column[order][1:], column[order][:-1]
        equal &= (one == two) | ((one != one) & (two != two))
    return equal


def check_targets(events: Events, targets: NDArray[np.int64]) -> list[Finding]:
    """Return the shares of test targets that the user has had before, and of users and items without training rows."""
    if not len(targets):
        return [skip("repeats", "test targets", "the split has no test rows")]
    own = events.pair
    order = np.lexsort([np.arange(len(own)), own])
    first = np.ones(len(own), bool)
    first[order[1:]] = own[order][1:] != own[order][:-1]
    repeated = share_of(~first[targets])
    findings = [
        Finding(
            "repeats",
            "repeated test targets",
            f"{percent(repeated)} of {len(targets):,}",
            f"notice {bound(_TARGETS)}",
            judge(repeated, _TARGETS),
            repeated,
            "The user has had the item before. People repeat songs, foods and pages, so this is no fault. But a "
            "protocol that masks seen items can never reach these targets, and one that does not is won by repeating "
            "the history.",
            "State whether seen items are masked. Report the metric of repeating the latest items beside a model.",
        )
    ]
    if events.split is None:
        return findings
    train = events.split == TRAIN
    if not train.any():
        return [*findings, skip("cold", "cold targets", "the split has no training rows")]
    for what, keys in (("items", events.item), ("users", events.user)):
        seen = np.zeros(int(keys.max()) + 1, bool)
        seen[keys[train]] = True
        share = share_of(~seen[keys[targets]])
        disjoint = what == "users" and share == 1
        findings.append(
            Finding(
                "cold",
                f"cold test {what}",
                f"{percent(share)} of {len(targets):,}{', a split by user' if disjoint else ''}",
                f"notice {bound(_COLD)}, alarm {bound(_NEW)}",
                NOTICE if disjoint else judge(share, _COLD, _NEW),
                share,
                f"These test rows are of {what} without a training row. A model that learns one vector for each of "
                "them has nothing to say.",
                "Report them apart, or state that they are left out. Check that the files belong together if there "
                "are many.",
            )
        )
    return findings
