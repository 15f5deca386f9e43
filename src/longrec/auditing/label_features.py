"""Single features that predict the label too well: fitted on the training rows, measured on the test rows.

A feature is replaced by the smoothed label rate of its values in training, and its AUC on the test rows is measured.
The bounds are those of the search for copies of the label in a prepared log (``data/label_copies.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events, Values
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, percent, skip
from longrec.data.label_copies import AUC, LEAST, PURE, find_purest, smooth_rates, to_buckets, weighted_auc
from longrec.data.splits import TEST, TRAIN

_AHEAD, _STRONG = 0.1, 0.75
"""Lead over the second best feature, and AUC, from which a feature is a notice."""
_ROWS = 200_000
"""Maximum number of sampled rows of train, and of test."""
_SHOWN = 8


def check_features(events: Events) -> list[Finding]:
    """Return the features that predict the label of their own row too well, or the best one."""
    name = "AUC of a single feature"
    if events.label is None or events.split is None:
        return [skip("features", name, "the log has no label")]
    columns = {**events.features}
    columns |= {column: values.take(events.item) for column, values in events.item_features.items()}
    labeled = ~np.isnan(events.label)
    rows = [np.flatnonzero(labeled & (events.split == code)) for code in (TRAIN, TEST)]
    random = np.random.default_rng(0)
    rows = [own if len(own) <= _ROWS else np.sort(random.choice(own, _ROWS, replace=False)) for own in rows]
    classes = [np.bincount(events.label[own] > 0.5, minlength=2) for own in rows]
    if not columns:
        return [skip("features", name, "no further columns")]
    if min(counts.min() for counts in classes) < 2 * LEAST:
        return [skip("features", name, f"fewer than {2 * LEAST} rows of each class in train and in test")]
    at = np.concatenate(rows)
    half = np.repeat([0, 1], [len(own) for own in rows])
    positive = (events.label[at] > 0.5).astype(np.int64)
    measured = {column: _measure(values, at, half, positive) for column, values in columns.items()}
    ranked = sorted(measured, key=lambda column: max(measured[column]), reverse=True)
    loud = [column for column in ranked if measured[column][0] >= AUC or measured[column][1]]
    findings = [_describe(column, *measured[column], ALARM, "") for column in loud[:_SHOWN]]
    if loud[_SHOWN:]:
        others = ", ".join(loud[_SHOWN:])
        findings.append(Finding("features", f"{len(loud) - _SHOWN} further features", others, f"alarm {AUC}", ALARM))
    quiet = [column for column in ranked if column not in loud]
    if quiet:
        best, second = measured[quiet[0]][0], measured[quiet[1]][0] if len(quiet) > 1 else 0.5
        more = f", the next {second:.3f}" if len(quiet) > 1 else ""
        verdict = NOTICE if best >= _STRONG and best - second >= _AHEAD else OK
        findings.append(_describe(quiet[0], best, 0.0, verdict, more))
    return findings


def _measure(
    values: Values, at: NDArray[np.int64], half: NDArray[np.int64], positive: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the AUC on test of the label rates in train, and the share of positives of a value that copies the label.

    Args:
        at: positions of the sampled rows.
        half: 0 for rows of train, 1 for rows of test.
        positive: 1 for positive rows.
    """
    own, present = values.array[at], values.present[at]
    ids = own.astype(np.int64) if values.is_text else np.zeros(len(own), np.int64)
    if not values.is_text and present.any():
        ids[present] = to_buckets(own[present]) + 1
        ids[~present] = 0
    distinct, index = np.unique(ids, return_inverse=True)
    if len(distinct) < 2:
        return 0.5, 0.0
    cells = np.bincount((2 * half + positive) * len(distinct) + index, minlength=4 * len(distinct))
    counts = cells.reshape(2, 2, -1).astype(np.float64)
    return weighted_auc(smooth_rates(counts[0]), counts[1]), find_purest(counts, np.ones(2))


def _describe(column: str, auc: float, pure: float, verdict: str, more: str) -> Finding:
    value = f", one value {percent(pure)} positive" if pure else ""
    return Finding(
        "features",
        f"AUC of {column} alone",
        f"{auc:.3f}{value or more}",
        f"alarm {AUC}, {PURE:.0%}".replace("%", " %"),
        verdict,
        auc,
        "Fitted on train, measured on test. A feature that is available before the event rarely reaches this alone. "
        "One that is recorded with or after it, such as a watch time or a later conversion, does, and is not there "
        "when the model is used.",
        f"If {column!r} is available only after the event, use it as feedback (feedback: true) or leave it out.",
        {"column": column, "pure": pure},
    )
