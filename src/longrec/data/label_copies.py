"""Detection of label leaks among the features: single features that predict the label of their row on a sample.

The label rate per feature value is learned on the rows of half of the users and evaluated on the other half. So user
ids predict nothing, and item ids predict no more than they do in use. A legitimate feature rarely reaches an AUC of
0.9. A copy of the label, of a later conversion stage or of another task's label does, or has a value that nearly always
occurs with the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.splits import TRAIN
from longrec.features.feature import list_kinds
from longrec.features.feature_encoders import FIRST, CalendarEncoder, Lists
from longrec.features.fitted_schema import gather_lists
from longrec.features.schema import Schema

MOST = 10_000
"""Maximum number of sampled rows per class. AUC does not depend on the class ratio."""
LEAST = 50
"""Minimum number of rows of each class in each half. With fewer there is no warning."""
AUC = 0.9
"""AUC from which a feature is reported. The strongest legitimate feature of the tested public logs reaches 0.67."""
COPY = 0.99
"""AUC from which feedback counts as a copy of the label."""
ODDS = 50.0
"""Odds ratio of the label, for one value against all others, from which the value counts as a copy."""
PURE = 0.9
"""Share of positive rows among the rows of a value from which the value can count as a copy."""
_EXAMINED = 2_000_000
_BUCKETS = 64
_PRIOR = 2.0
_NUMBERS = 32


@dataclass(frozen=True)
class LabelCopy:
    """Measurement of how well one feature predicts the label of its own row.

    Attributes:
        auc: AUC of the label rate per value, learned on half of the users and evaluated on the other half.
        pure: largest share of positive rows of a value that counts as a copy, or 0 if there is none.
        rows: number of measured rows.
    """

    auc: float
    pure: float
    rows: int

    def phrase(self, label_name: str) -> str:
        """Return the measurement as a phrase."""
        if self.auc >= AUC:
            return f"alone predicts {label_name} of its own row (AUC {self.auc:.3f} on {self.rows:,} training rows)"
        return f"has a value that occurs with {label_name} of its own row ({self.pure:.1%} of such rows)"


def find_label_copies(log: Log) -> tuple[list[str], list[str]]:
    """Return warnings about features that leak the label or other feedback of their row, and names of label copies.

    The second list has the feedback features that predict the label as well as the label itself. They are leaks only if
    they are available before the label.
    """
    sample = _Sample.of(log)
    if sample is None:
        return [], []
    schema, warnings, copies = log.schema, list[str](), list[str]()
    feedback = {name: sample.of_event(name) for name, feature in schema.features.items() if feature.feedback}
    others = {}
    for name, ids in feedback.items():
        if schema.column(name) == schema.label_column:
            continue
        copy = sample.measure(ids)
        if copy is not None and copy.auc >= COPY:
            copies.append(name)
        elif (other := sample.relabel(ids)) is not None:
            others[name] = other
    for name, columns in sample.plain():
        copy = max((one for ids in columns if (one := sample.measure(ids))), key=_strength, default=None)
        if copy is not None and (copy.auc >= AUC or copy.pure):
            warnings.append(_sentence(schema, name, copy, "the label"))
            continue
        for target, other in others.items():
            copy = max((one for ids in columns if (one := other.measure(ids))), key=_strength, default=None)
            if copy is not None and copy.auc >= AUC:
                warnings.append(_sentence(schema, name, copy, f"the feedback {target!r}"))
                break
    return warnings, copies


def filter_warning(history: str, column: str, counts: NDArray[np.int64]) -> str:
    """Return a warning if a history filter on an undeclared column leaks the label, else an empty string.

    Args:
        counts: number of training rows by result of the condition and by label, int64 ``[2, 2]``.
    """
    held = counts[1] / np.maximum(counts.sum(0), 1)
    auc = 0.5 + abs(float(held[1] - held[0])) / 2
    pure = max(_pure(counts[side], counts[1 - side]) for side in (0, 1))
    if counts.sum(0).min() < 2 * LEAST or not (auc >= AUC or pure):
        return ""
    phrase = LabelCopy(auc, pure, int(counts.sum())).phrase("the label")
    return (
        f"history {history!r}: its filter on column {column!r} {phrase}, so the events that pass reveal labels before "
        f"they are available; if the column is available only after the event, add a feature of it with feedback: "
        "true, so that the filter waits, or filter by the label's own column"
    )


def _pure(own: NDArray[Any], rest: NDArray[Any]) -> float:
    """Return the share of positive rows of a value if the value counts as a copy, else 0.

    Args:
        own: number of negative and of positive rows of the value.
        rest: number of negative and of positive rows of all other values.
    """
    if own[1] < LEAST or own[1] < PURE * own.sum() or own[1] * (rest[0] + 1) < ODDS * (own[0] + 1) * rest[1]:
        return 0.0
    return float(own[1] / own.sum())


def _sentence(schema: Schema, name: str, copy: LabelCopy, label_name: str) -> str:
    feature = schema.features.get(name)
    columns, kind = ((), None) if feature is None else (schema.columns(name), feature.kind)
    of = "" if columns in ((), (name,)) else f" (column {', '.join(map(repr, columns))})"
    takers = list_kinds("feedback")
    way_out = "set feedback: true, which restricts it to histories, or remove the feature"
    if kind is not None and kind not in takers:
        way_out = (
            f"remove the feature, or make it one of kind {' or '.join(takers)} with feedback: true, which restricts it "
            "to histories"
        )
    return (
        f"feature {name!r}{of} {copy.phrase(label_name)}, like a value that is available only after the event; "
        f"if it is such a value, {way_out}"
    )


def _strength(copy: LabelCopy) -> float:
    return max(copy.auc, copy.pure)


@dataclass(frozen=True)
class _Sample:
    """Sample of rows with labels of both classes, in two halves of the users.

    Attributes:
        rows: sorted row indices, int64 ``[S]``.
        label: True for positive rows, bool ``[S]``.
        half: half of the users that the row belongs to, 0 or 1, int64 ``[S]``.
        weight: number of training rows per sampled row, for negative and positive rows, float ``[2]``.
    """

    log: Log
    rows: NDArray[np.int64]
    label: NDArray[np.bool_]
    half: NDArray[np.int64]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, log: Log) -> _Sample | None:
        """Return a sample of the training rows, or None if a class has too few rows."""
        random = np.random.default_rng(0)
        # One row per stretch, so that not all of a large log is read.
        stretch = max(len(log.labels) // _EXAMINED, 1)
        rows = np.arange(len(log.labels) // stretch) * stretch
        rows += random.integers(0, stretch, len(rows))
        rows = rows[log.splits.take(rows) == TRAIN]
        labels = log.labels.take(rows)
        classes = [rows[labels <= 0.5], rows[labels > 0.5]]
        weight = np.array([max(len(rows) / MOST, 1.0) for rows in classes])
        some = [rows if len(rows) <= MOST else random.choice(rows, MOST, replace=False) for rows in classes]
        rows = np.sort(np.concatenate(some))
        users = log.user(rows).astype(np.uint64)
        # User numbers may correlate with behavior, so users are assigned to halves by a hash.
        half = ((users * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)).astype(np.int64) & 1
        for halves in (half, random.integers(0, 2, len(rows))):
            sample = cls(log, rows, log.labels.take(rows) > 0.5, halves, weight)
            if sample.counts().min() >= LEAST:
                return sample
        return None

    def counts(self) -> NDArray[np.int64]:
        """Return the number of rows by half and label, int64 ``[4]``."""
        return np.bincount(2 * self.half + self.label, minlength=4)

    def relabel(self, ids: NDArray[Any]) -> _Sample | None:
        """Return the same rows with the higher of two values of a feedback feature as the label."""
        available = ids >= FIRST
        values = np.unique(ids[available])
        if len(values) != 2:
            return None
        sample = _Sample(self.log, self.rows, ids == values[1], np.where(available, self.half, 2), np.ones(2))
        return sample if np.bincount(2 * sample.half + sample.label, minlength=4)[:4].min() >= LEAST else None

    def of_event(self, name: str) -> NDArray[Any]:
        """Return the values of a feature of the sampled rows, ``[S]``."""
        return self.log.events.columns[name].take(self.rows, axis=0)

    def plain(self) -> Iterator[tuple[str, list[NDArray[np.int64] | Lists]]]:
        """Yield the features of the impressions as columns of ids, then the list columns of prejoined histories."""
        log, timestamps = self.log, self.log.timestamps.take(self.rows)
        owners = {"user": log.user(self.rows), "item": log.events.columns["item"].take(self.rows)}
        tables = {
            "user": log.users.as_of(owners["user"], timestamps),
            "item": log.items.as_of(owners["item"], timestamps),
        }
        for name, feature in log.schema.features.items():
            if feature.feedback or feature.source is not None:
                continue
            encoder, table = log.fitted.encoders[name], log.schema.side(name)
            if isinstance(encoder, CalendarEncoder):
                values: NDArray[Any] | Lists = encoder.encode_times(timestamps)
            elif table in tables:
                values = tables[table][name]
            elif name in log.lists:
                values = gather_lists(log.lists[name], self.rows)
            else:
                values = self.of_event(name)
            yield name, _columns(values, self.label)
        for name, lists in log.lists.items():
            if name not in log.schema.features:  # prejoined histories
                yield name, _columns(gather_lists(lists, self.rows))

    def measure(self, values: NDArray[np.int64] | Lists) -> LabelCopy | None:
        """Return the measurement of a column, or None if it has only one value."""
        if isinstance(values, Lists):
            return self._measure_lists(values)
        distinct, index = np.unique(values, return_inverse=True)
        if len(distinct) < 2:
            return None
        counts = np.zeros((2, 2, len(distinct)))
        for half in (0, 1):
            for label in (0, 1):
                at = (self.half == half) & (self.label == bool(label))
                counts[half, label] = np.bincount(index[at], minlength=len(distinct))
        auc = float(np.mean([weighted_auc(smooth_rates(counts[1 - half]), counts[half]) for half in (0, 1)]))
        return LabelCopy(auc, find_purest(counts, self.weight), int(counts.sum()))

    def _measure_lists(self, lists: Lists) -> LabelCopy:
        lengths = np.diff(lists.offsets)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        distinct, index = np.unique(lists.values, return_inverse=True)
        aucs = []
        for half in (0, 1):
            learn = self.half[owner] == 1 - half
            pairs = [
                np.bincount(index[learn & (self.label[owner] == bool(x))], minlength=len(distinct)) for x in (0, 1)
            ]
            rate = smooth_rates(np.stack(pairs).astype(np.float64))
            score = np.bincount(owner, rate[index], minlength=len(lengths)) / np.maximum(lengths, 1)
            empty = (lengths == 0) & (self.half == 1 - half)
            score[lengths == 0] = (self.label[empty].sum() + _PRIOR / 2) / (empty.sum() + _PRIOR)
            own = self.half == half
            aucs.append(weighted_auc(score[own], np.stack([~self.label[own], self.label[own]]).astype(np.float64)))
        return LabelCopy(float(np.mean(aucs)), 0.0, len(lengths))


def _columns(values: NDArray[Any] | Lists, label: NDArray[np.bool_] | None = None) -> list[NDArray[np.int64] | Lists]:
    """Return values as columns of ids: bucketized numbers, and per list also its length and its weights.

    Args:
        label: label of each row. Of long vectors, only the components whose class means differ most are used.
    """
    if isinstance(values, Lists):
        lengths = np.diff(values.offsets)
        if values.weights is None:
            return [values, lengths]
        owner = np.repeat(np.arange(len(lengths)), lengths)
        return [values, lengths, to_buckets(np.bincount(owner, values.weights, minlength=len(lengths)))]
    if values.dtype.kind != "f":
        return [values.astype(np.int64)]
    numbers = values.reshape(len(values), -1)
    if numbers.shape[1] > _NUMBERS and label is not None:
        apart = np.abs(numbers[label].mean(0) - numbers[~label].mean(0)) / (numbers.std(0) + 1e-12)
        numbers = numbers[:, np.argsort(-apart, kind="stable")[:_NUMBERS]]
    return [to_buckets(column) for column in numbers.T[:_NUMBERS]]


def find_purest(counts: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Return the largest share of positive rows, in both halves, of one value or of all but the most frequent.

    Args:
        counts: number of rows by half, label and value, ``[2, 2, V]``.
        weight: number of training rows per sampled row, for negative and positive rows, ``[2]``.
    """
    weighted = counts * weight[None, :, None]
    total, mode = weighted.sum(2), int(weighted.sum((0, 1)).argmax())
    # All values but the most frequent one (usually the missing value) are also tested as one value.
    every = np.concatenate([weighted, (total - weighted[:, :, mode])[:, :, None]], 2)
    number = np.concatenate([counts, (counts.sum(2) - counts[:, :, mode])[:, :, None]], 2)
    # One more negative row accounts for rows that the sample may have missed.
    missed = every[:, 0] + weight[0]
    share = every[:, 1] / (every[:, 1] + missed)
    odds = every[:, 1] * (total[:, :1] - every[:, 0] + 1)
    good = (number[:, 1] >= LEAST) & (share >= PURE) & (odds >= ODDS * missed * (total[:, 1:] - every[:, 1]))
    both = good.all(0)
    return float(share.min(0)[both].max()) if both.any() else 0.0


def to_buckets(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Return the numbers of buckets of equal size, or one bucket per value if there are few values."""
    distinct, index = np.unique(numbers, return_inverse=True)
    if len(distinct) <= _BUCKETS:
        return index.astype(np.int64)
    edges = np.unique(np.quantile(numbers, np.arange(1, _BUCKETS) / _BUCKETS))
    # Numbers equal to an edge, such as the default of missing values, have a separate bucket.
    return np.searchsorted(edges, numbers, side="left") + np.searchsorted(edges, numbers, side="right")


def smooth_rates(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smoothed label rate per value, from counts of negative and positive rows ``[2, V]``."""
    prior = counts[1].sum() / max(counts.sum(), 1)
    rates: NDArray[np.float64] = (counts[1] + _PRIOR * prior) / (counts.sum(0) + _PRIOR)
    return rates


def weighted_auc(score: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Return the AUC of scores ``[V]``, weighted by counts of negative and positive rows ``[2, V]``.

    Ties count half.
    """
    _, index = np.unique(score, return_inverse=True)
    negative, positive = (np.bincount(index, own) for own in counts)
    below = np.cumsum(negative) - negative / 2
    total = negative.sum() * positive.sum()
    return float((positive * below).sum() / total) if total else 0.5
