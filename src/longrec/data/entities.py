"""User and item tables of a log: keys, raw columns joined by key, and encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.checks import check_width
from longrec.data.relation import Relation, name
from longrec.data.settings import Source
from longrec.data.timestamps import read_timestamps
from longrec.errors import DataError
from longrec.features.compose import split_multi_values
from longrec.features.encoder_fitter import EncoderFitter
from longrec.features.entity_table import EntityTable
from longrec.features.entity_versions import Versions
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import FittedSchema, concat_lists
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys

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

    def __init__(
        self, role: str, schema: Schema, log: Relation, own: Relation | None, own_source: Source | None
    ) -> None:
        self.role, self.schema, self.log, self.own, self.own_source = role, schema, log, own, own_source
        as_of = None if own_source is None else own_source.as_of
        self.key = schema.user if role == "user" else schema.item
        kind = log.key_type(self.key)
        union = f"SELECT DISTINCT {name(self.key)}::{kind} AS key FROM {log.view}"
        if own is not None:
            own.need({self.key: f"key of the {role} table", **({} if as_of is None else {as_of: "as_of"})})
            own_kind = own.key_type(self.key)
            if own_kind != kind:
                raise DataError(
                    f"{own.where}: column {self.key!r}",
                    f"{own_kind} keys",
                    f"{kind}, as in the log",
                    "give both the same type",
                )
            if as_of is None:
                self._distinct(own)
            union += f" UNION SELECT {name(self.key)}::{kind} FROM {own.view}"
        table = log.table(f"SELECT key FROM ({union}) WHERE key IS NOT NULL ORDER BY key")
        self.keys = Keys(table["key"].combine_chunks())
        self.versions: Versions | None = None
        self.share_without_version = 0.0
        if own is not None and as_of is not None:
            self.versions = self._read_versions(own, as_of)

    def _distinct(self, own: Relation) -> None:
        twice = own.row(
            f"SELECT {name(self.key)}, count(*) FROM {own.view} GROUP BY 1 HAVING count(*) > 1 ORDER BY 2 DESC LIMIT 1"
        )
        if twice:
            raise DataError(
                f"{own.where}: column {self.key!r}",
                f"{twice[0]!r} is in {twice[1]} rows",
                "one row per key",
                "remove the copies; or set as_of to the column with the time from which each row is valid",
            )

    def _read_versions(self, own: Relation, as_of: str) -> Versions:
        """Return the versions of the entity table, with the timestamp from which each row is valid."""
        time, where = self.schema.time, f"{own.where}: column {as_of!r}"
        if time is None:
            raise DataError(where, "as_of, but the schema has no time column", "a time column", "leave as_of out")
        own.no_nulls(as_of, "time", "row of a table with as_of")
        self._since = read_timestamps(own, as_of, time).sql
        twice = own.row(
            f"SELECT {name(self.key)}, any_value({name(as_of)}::VARCHAR), count(*) FROM {own.view} "
            f"WHERE {name(self.key)} IS NOT NULL GROUP BY 1, {self._since} HAVING count(*) > 1 ORDER BY 3 DESC LIMIT 1"
        )
        if twice:
            message = f"{twice[0]!r} has {twice[2]} rows as of {twice[1]}"
            raise DataError(where, message, "one row per key and timestamp", "remove the copies")
        read = self._read("NULL", own)
        counts = np.bincount(read["place"].to_numpy() + 1, minlength=len(self.keys) + 1)
        return Versions(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), read["since"].to_numpy())

    def _read(self, value: str, own: Relation) -> pa.Table:
        """Return one value per version in order, with the position of its key and its timestamp."""
        own.con.register("_keys", pa.table({"key": self.keys.values, "place": np.arange(len(self.keys))}))
        key = f"{name(self.key)}::{self.log.key_type(self.key)}"
        versions_table = own.table(
            f"SELECT k.place, o.since, o.value FROM _keys k JOIN (SELECT {key} AS key, {self._since} AS since, "
            f"{value} AS value FROM {own.view}) o ON k.key = o.key ORDER BY k.place, o.since"
        )
        own.con.unregister("_keys")
        return versions_table

    def source(self, column: str) -> Relation:
        """Return the relation that has a column: the entity table if it has it, else the log."""
        return self.own if self.own is not None and column in self.own.types else self.log

    def reads_own_table(self, feature: str) -> bool:
        """Return whether a feature reads a column of the entity table other than the key."""
        if self.schema.features[feature].kind == "embedding":
            return False
        return any(c != self.key and self.source(c) is self.own for c in self.schema.columns(feature))

    def has_versions(self, feature: str) -> bool:
        """Return whether a feature has one entry per version."""
        return self.versions is not None and self.reads_own_table(feature)

    def columns(self, features: list[str]) -> Iterator[tuple[str, pa.Array, pa.Array | None, str]]:
        """Yield raw values of features in the order of keys or versions: (feature, values, weights or None, where)."""
        for feature_name in features:
            feature = self.schema.features[feature_name]
            column = self.schema.column(feature_name)
            values, where = self._column(column, feature_name)
            if feature.width is not None:
                check_width(self.source(column), column, feature)
            elif feature.kind in ("numeric", "bucketized"):
                self.source(column).numeric(column)
            weights = self._column(feature.weights, feature_name)[0] if feature.weights else None
            yield feature_name, values, weights, where

    def _column(self, column: str, feature: str) -> tuple[pa.Array, str]:
        dated, source = self.has_versions(feature), self.source(column)
        where = f"{source.where}: column {column!r}"
        if column != self.key:
            source.need({column: f"feature {feature}, table {self.role}"})
        if dated and column != self.key and source is self.own:
            return self._read(name(column), source)["value"].combine_chunks(), where
        if column == self.key:
            values, where = self.keys.values, f"{self.log.where}: column {column!r}"
        else:
            values = self._plain(column, feature, source, where)
        if dated:  # combined with a versioned column: the same value in all versions of a key
            assert self.versions is not None
            values = values.take(pa.array(np.repeat(np.arange(len(self.keys)), np.diff(self.versions.offsets)[1:])))
        return values, where

    def _plain(self, column: str, feature: str, source: Relation, where: str) -> pa.Array:
        """Return one value per key."""
        key = name(self.key)
        con = source.con
        con.register("_keys", pa.table({"key": self.keys.values, "place": np.arange(len(self.keys))}))
        if source is self.own:
            joined = f"SELECT {key} AS key, {name(column)} AS value FROM {source.view}"
        else:
            # Null in some rows counts as a value: filling it from other rows would leak later values.
            value = name(column)
            odd = source.row(
                f"SELECT {key} FROM {source.view} WHERE {key} IS NOT NULL GROUP BY 1 "
                f"HAVING count(DISTINCT {value}) + max(({value} IS NULL)::INT) > 1 LIMIT 1"
            )
            if odd:
                raise DataError(
                    where,
                    f"several values, or a value and null, for the {self.role} {odd[0]!r}",
                    f"one value per {self.role}, as the feature has side: {self.role}",
                    f"set side: context for the feature {feature!r}, or add a table of {self.role}s",
                )
            joined = f"SELECT {key} AS key, any_value({value}) AS value FROM {source.view} GROUP BY 1"
        values = source.table(f"SELECT j.value FROM _keys k LEFT JOIN ({joined}) j ON k.key = j.key ORDER BY k.place")
        con.unregister("_keys")
        return values["value"].combine_chunks()

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
        names = [feature for feature in fitters if self.schema.side(feature) == self.role]
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

    def warnings(self) -> list[str]:
        """Return warnings about results with features of an entity table without valid timestamps."""
        features = [f for f in self.schema.features if self.schema.side(f) == self.role and self.reads_own_table(f)]
        if self.own_source is None or not features:
            return []
        named = ", ".join(map(_short_name, self.own_source.files or ())) or f"the query of {self.role}s"
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
            f"missing; check the timestamps in {self.own_source.as_of}"
        ]


def add_values(
    fitter: EncoderFitter, schema: Schema, feature: str, values: pa.Array, counts: NDArray[np.int64], where: str
) -> None:
    """Add one chunk of values to a fitter. Each of several values per row has the count of its row."""
    if schema.features[feature].kind == "multi_id":
        values, offsets, _ = split_multi_values(schema.features[feature], values, where)
        counts = np.repeat(counts, np.diff(offsets))
    fitter.add(values, counts, where)


def _short_name(file: str) -> str:
    """Return the name of a file, or the folder and name of a pattern."""
    return Path(file).name if not set("*?[") & set(Path(file).name) else "/".join(Path(file).parts[-2:])
