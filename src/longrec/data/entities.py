"""User and item tables of a log: keys, raw columns joined by key, and encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.null_counts import mask_nulls
from longrec.data.sorted_log import SortedTable
from longrec.features.compose import split_multi_values
from longrec.features.encoder_fitter import EncoderFitter
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import FittedSchema, concat_lists
from longrec.features.schema import Schema

_STRETCH = 1_000_000
"""Number of events whose versions are looked up together."""
_MANY = 0.5
"""Share of rows without a version above which there is a warning."""


class Entities:
    """All users or all items: the union of the keys of the log and of the entity table, sorted.

    Attributes:
        versions: row versions of an entity table with ``as_of``, else None. Features read from such a table have one
            entry per version, all others one per key.
        share_without_version: fraction of the training events without an earlier version of their entity.
    """

    def __init__(self, role: str, schema: Schema, table: SortedTable) -> None:
        self.role, self.schema, self.table = role, schema, table
        self.key = schema.user if role == "user" else schema.item
        self.keys, self.versions = table.keys, table.versions
        self.share_without_version = 0.0

    def reads_own_table(self, feature: str) -> bool:
        """Return whether a feature reads a column of the entity table other than the key."""
        if self.schema.features[feature].kind == "embedding":
            return False
        return any(column in self.table.facts.own for column in self.schema.columns(feature))

    def has_versions(self, feature: str) -> bool:
        """Return whether a feature has one entry per version."""
        return self.versions is not None and self.reads_own_table(feature)

    def columns(self, features: list[str]) -> Iterator[tuple[str, pa.Array, pa.Array | None, str]]:
        """Yield raw values of features in the order of keys or versions: (feature, values, weights or None, where)."""
        for feature_name in features:
            feature, column = self.schema.features[feature_name], self.schema.column(feature_name)
            weights = self._column(feature.weights, feature_name) if feature.weights else None
            yield feature_name, self._column(column, feature_name), weights, self.table.describe(column)

    def _column(self, column: str, feature: str) -> pa.Array:
        values = self.keys.values if column == self.key else self.table.values(column)
        if self.has_versions(feature) and not self.table.is_dated(column):
            # Combined with a versioned column: the same value in all versions of a key.
            assert self.versions is not None
            values = values.take(pa.array(np.repeat(np.arange(len(self.keys)), np.diff(self.versions.offsets)[1:])))
        return values

    def count_reads(
        self,
        train: NDArray[np.bool_],
        owners: Callable[[NDArray[np.int64]], NDArray[Any]],
        timestamps: NDArray[np.int64],
    ) -> NDArray[np.int64] | None:
        """Return the number of training events that read each version, ``[V]``, or None without versions.

        Args:
            train: mask of the training events.
            owners: function from event indices to row indices of this table.
            timestamps: timestamp of each event.
        """
        if self.versions is None:
            return None
        rows, read_counts = np.flatnonzero(train), np.zeros(len(self.versions.times) + 1, np.int64)
        for first in range(0, len(rows), _STRETCH):
            at = rows[first : first + _STRETCH]
            read_counts += np.bincount(self.versions.rows(owners(at), timestamps.take(at)), minlength=len(read_counts))
        self.share_without_version = float(read_counts[0] / max(len(rows), 1))
        return read_counts[1:]

    def fit(
        self, fitters: dict[str, EncoderFitter], counts: NDArray[np.int64], reads: NDArray[np.int64] | None = None
    ) -> None:
        """Pass every value of this entity's features to the fitters, weighted by the training events that read it.

        Args:
            counts: number of training events per key.
            reads: number of training events per version, if there are versions. A version that no training event
                reads has no weight.
        """
        names = [feature for feature in fitters if self._owns(feature)]
        for feature, values, _, where in self.columns([f for f in names if fitters[f].needs_data()]):
            weight = counts
            if self.has_versions(feature):
                assert reads is not None
                weight = reads
            add_values(fitters[feature], self.schema, feature, values, weight, where)

    def encode(self, fitted: FittedSchema) -> EntityTable:
        """Return the encoded table. Row 0 is for unknown keys and keys without a version."""
        plain: dict[str, NDArray[Any] | Lists] = {}
        dated: dict[str, NDArray[Any] | Lists] = {}
        for feature, values, weights, where in self.columns(fitted.list_features(self.role)):
            unknown, encoded = fitted.encode_unknown(feature), fitted.encode(feature, values, where, weights)
            table = dated if self.has_versions(feature) else plain
            if isinstance(encoded, Lists) and isinstance(unknown, Lists):
                table[feature] = concat_lists([unknown, encoded])
            else:
                table[feature] = np.concatenate([unknown, encoded])
        return EntityTable(self.keys, plain, self.versions, dated)

    def mask_nulls(self) -> dict[str, NDArray[np.bool_]]:
        """Return the mask of nulls of each numeric feature, bool, in the rows of its encoded column."""
        numeric = [f for f, one in self.schema.features.items() if one.kind == "numeric" and self._owns(f)]
        return {
            feature: np.concatenate([[True], mask_nulls(values)]) for feature, values, _, _ in self.columns(numeric)
        }

    def _owns(self, feature: str) -> bool:
        return self.schema.side(feature) == self.role

    def warnings(self) -> list[str]:
        """Return warnings about results with features of an entity table without valid timestamps."""
        features = [f for f in self.schema.features if self._owns(f) and self.reads_own_table(f)]
        named = self.table.facts.table
        if named is None or not features:
            return []
        several, listed = len(features) > 1, ", ".join(features)
        if self.versions is None:
            does = f"features {listed} are used unchanged" if several else f"feature {listed} is used unchanged"
            do = "; if it changes over time, keep one row per version and set as_of to the column with its timestamp"
            return [f"{named} has no as_of: {does} for every impression{do if self.schema.time else ''}"]
        if self.share_without_version <= _MANY:
            return []
        does = f"features {listed} read" if several else f"feature {listed} reads"
        return [
            f"{named} has no version before {self.share_without_version:.0%} of the training rows, where {does} as "
            f"missing; check the timestamps in {self.table.facts.as_of}"
        ]


def add_values(
    fitter: EncoderFitter, schema: Schema, feature: str, values: pa.Array, counts: NDArray[np.int64], where: str
) -> None:
    """Add one chunk of values to a fitter. Each of several values per row has the count of its row."""
    if schema.features[feature].kind == "multi_id":
        values, offsets, _ = split_multi_values(schema.features[feature], values, where)
        counts = np.repeat(counts, np.diff(offsets))
    fitter.add(values, counts, where)
