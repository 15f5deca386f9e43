"""Facts about the features of a prepared log, from their encoded columns.

Ids are counted exactly: of users and items by the number of their rows, of rows by the column itself. Numbers, lists of
rows and versions of entities are measured on a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.log_facts import FeatureFacts
from longrec.data.null_counts import STATES, NullCounts
from longrec.data.row_counts import RowCounts
from longrec.data.splits import SPLITS
from longrec.features.decode import decode_value
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import (
    FIRST,
    MISSING,
    UNSEEN,
    CalendarEncoder,
    CrossEncoder,
    Encoder,
    HashEncoder,
    IdEncoder,
    Lists,
    NumericEncoder,
)
from longrec.features.fitted_schema import gather_lists

_ROWS = 1 << 17
"""Number of rows that are counted together, unless there are more ids."""
Shares = dict[str, float]


class FeatureReader:
    """Reader of the values of features by split.

    Args:
        states: state of each row, from ``compute_states``.
        rows: sampled rows of each split.
        counts: number of samples of each split per user and item.
        nulls: nulls of numeric features.
    """

    def __init__(
        self,
        log: Log,
        states: NDArray[np.int8],
        rows: Mapping[str, NDArray[np.int64]],
        counts: Mapping[str, RowCounts],
        nulls: NullCounts,
    ) -> None:
        self.log, self.states, self.nulls = log, states, nulls
        self.splits = {name: own for name, own in rows.items() if len(own)}
        own = [counts[name] for name in self.splits]
        self.tables = {
            "user": (log.users, np.stack([one.users for one in own])),
            "item": (log.items, np.stack([one.items for one in own])),
        }
        self.totals = self.tables["user"][1].sum(1)

    def describe_all(self) -> dict[str, FeatureFacts]:
        """Return the facts of all features that have columns of their own."""
        described = {}
        for name, feature in self.log.schema.features.items():
            encoder = self.log.fitted.encoders.get(name)
            if feature.kind != "embedding" and encoder is not None and not isinstance(encoder, CalendarEncoder):
                facts = self._describe(name, encoder)
                if facts is not None:
                    described[name] = facts
        return described

    def _describe(self, name: str, encoder: Encoder) -> FeatureFacts | None:
        feature, side = self.log.schema.features[name], self.log.schema.side(name)
        if feature.width is not None:
            return FeatureFacts(feature.kind, side, self._count_nulls(name), None, None, None, {})
        if isinstance(encoder, NumericEncoder):
            return self._describe_numbers(name, encoder)
        counted = self._count_ids(name, encoder.rows)
        if counted is None:
            return None
        ids, empty = counted
        total = np.maximum(ids.sum(1) + empty, 1)
        has_vocabulary = isinstance(encoder, IdEncoder)
        own = ids[0, FIRST:]  # a prepared log has samples in train
        top = int(own.argmax()) + FIRST if own.any() else None
        distinct = int(np.count_nonzero(own))
        if isinstance(encoder, (HashEncoder, CrossEncoder)):
            distinct = encoder.distinct
        return FeatureFacts(
            kind=feature.kind,
            side=side,
            nulls=self._by_split((ids[:, MISSING] + empty) / total),
            distinct=distinct,
            top=None if top is None else _format_top(encoder, top),
            top_share=None if top is None else float(own[top - FIRST] / max(own.sum() + ids[0, UNSEEN], 1)),
            unseen=self._by_split(ids[:, UNSEEN] / total) if has_vocabulary else {},
        )

    def _by_split(self, shares: NDArray[Any]) -> Shares:
        return {name: float(share) for name, share in zip(self.splits, shares)}

    def _count_ids(self, name: str, size: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the number of values by split and id, and of empty lists by split. None without a column."""
        side = self.log.schema.side(name)
        if side in self.tables:
            table, weights = self.tables[side]
            if name not in table.columns:
                return self._count_sampled(name, size)
            return _count_table(table.columns[name], weights, size)
        if name in self.log.lists:
            return self._count_sampled(name, size)
        if name not in self.log.events.columns:
            return None  # only the lists of prejoined histories have it
        column, counts = self.log.events.columns[name], np.zeros(size * STATES, np.int64)
        step = max(_ROWS, len(counts))
        for at in range(0, len(column), step):
            keys = column[at : at + step].astype(np.int64)
            keys *= STATES
            keys += self.states[at : at + step]
            counts += np.bincount(keys, minlength=len(counts))
        return counts.reshape(size, STATES).T[[SPLITS[one] for one in self.splits]], np.zeros(len(self.splits))

    def _count_sampled(self, name: str, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Count on the sampled rows, as ``_count_ids``."""
        ids, empty = np.zeros((len(self.splits), size)), np.zeros(len(self.splits))
        for index, rows in enumerate(self.splits.values()):
            column = self._take(name, rows)
            if isinstance(column, Lists):
                empty[index] = np.count_nonzero(np.diff(column.offsets) == 0)
                column = column.values
            ids[index] = np.bincount(column, minlength=size)
        return ids, empty

    def _take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any] | Lists:
        """Return the encoded values of a feature in some rows."""
        side = self.log.schema.side(name)
        if side in self.tables:
            return self._table(side).as_of(self._owners(side, rows), self.log.timestamps.take(rows))[name]
        if name in self.log.lists:
            return gather_lists(self.log.lists[name], rows)
        values: NDArray[Any] = self.log.events.columns[name].take(rows)
        return values

    def _table(self, side: str) -> EntityTable:
        return self.tables[side][0]

    def _owners(self, side: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.log.user(rows) if side == "user" else self.log.events.columns["item"].take(rows)

    def _describe_numbers(self, name: str, encoder: NumericEncoder) -> FeatureFacts:
        feature, side = self.log.schema.features[name], self.log.schema.side(name)
        values, counts = np.unique(np.asarray(self._take(name, self.splits["train"])), return_counts=True)
        top = int(counts.argmax())
        return FeatureFacts(
            kind=feature.kind,
            side=side,
            nulls=self._count_nulls(name),
            distinct=len(values),
            top=_round(decode_value(encoder, values[top])),
            top_share=float(counts[top] / counts.sum()),
            unseen={},
            low=_round(decode_value(encoder, values[0])),
            high=_round(decode_value(encoder, values[-1])),
        )

    def _count_nulls(self, name: str) -> Shares:
        """Return the share of nulls of a numeric feature by split. Empty if they were not counted."""
        side, mask = self.log.schema.side(name), self.nulls.entities.get(name)
        if name in self.nulls.rows:
            return self._by_split(self.nulls.rows[name][[SPLITS[one] for one in self.splits]] / self.totals)
        if mask is None:
            return {}
        table, weights = self.tables[side]
        if len(mask) == len(table):
            return self._by_split(weights[:, mask].sum(1) / self.totals)
        assert table.versions is not None
        return {
            split: float(mask.take(table.versions.rows(self._owners(side, own), self.log.timestamps.take(own))).mean())
            for split, own in self.splits.items()
        }


def _count_table(
    column: NDArray[Any] | Lists, weights: NDArray[np.int64], size: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the number of values by split and id, and of empty lists by split.

    Args:
        weights: number of rows of each entity by split, ``[splits, E]``.
    """
    if not isinstance(column, Lists):
        return np.stack([np.bincount(column, own, size) for own in weights]), np.zeros(len(weights))
    lengths = np.diff(column.offsets)
    ids = np.stack([np.bincount(column.values, np.repeat(own, lengths), size) for own in weights])
    return ids, weights[:, lengths == 0].sum(1)


def _round(number: float) -> float:
    """Return a number without the digits that float32 does not have."""
    return float(f"{number:.6g}")


def _format_top(encoder: Encoder, value: int) -> str | float | None:
    """Return the most frequent value as text or number. None for hashed values."""
    raw = decode_value(encoder, value)
    return _round(raw) if isinstance(raw, float) else None if raw is None else str(raw)
