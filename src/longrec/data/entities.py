"""Users and items of a log: their keys, and their raw columns joined by key."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.checks import check_width
from longrec.data.read import Relation, name
from longrec.errors import DataError
from longrec.features.compose import multi_values
from longrec.features.encode import Lists
from longrec.features.fit import Fitter
from longrec.features.fitted import FittedSchema, concat_lists
from longrec.features.schema import Schema
from longrec.features.table import EntityTable
from longrec.features.vocabulary import Keys


class Entities:
    """All users, or all items: the union of the log and of their own table, sorted by key."""

    def __init__(self, role: str, schema: Schema, log: Relation, own: Relation | None) -> None:
        self.role, self.schema, self.log, self.own = role, schema, log, own
        self.key = schema.user if role == "user" else schema.item
        kind = log.key_type(self.key)
        union = f"SELECT DISTINCT {name(self.key)}::{kind} AS key FROM {log.view}"
        if own is not None:
            own.need({self.key: f"key of the {role} table"})
            own_kind = own.key_type(self.key)
            if own_kind != kind:
                raise DataError(
                    f"{own.where}: column {self.key!r}",
                    f"{own_kind} keys",
                    f"{kind}, as in the log",
                    "give both the same type",
                )
            self._distinct(own)
            union += f" UNION SELECT {name(self.key)}::{kind} FROM {own.view}"
        table = log.table(f"SELECT key FROM ({union}) WHERE key IS NOT NULL ORDER BY key")
        self.keys = Keys(table["key"].combine_chunks())

    def _distinct(self, own: Relation) -> None:
        twice = own.row(
            f"SELECT {name(self.key)}, count(*) FROM {own.view} GROUP BY 1 HAVING count(*) > 1 ORDER BY 2 DESC LIMIT 1"
        )
        if twice:
            raise DataError(
                f"{own.where}: column {self.key!r}",
                f"{twice[0]!r} stands in {twice[1]} rows",
                "one row a key",
                "remove the copies",
            )

    def source(self, column: str) -> Relation:
        """Where a column is read: the own table if it has it, else the log."""
        return self.own if self.own is not None and column in self.own.types else self.log

    def columns(self, features: list[str]) -> Iterator[tuple[str, pa.Array, pa.Array | None, str]]:
        """Raw values of features, in the order of the keys: (feature, values, weights or None, where)."""
        for feature_name in features:
            feature = self.schema.features[feature_name]
            column = self.schema.column(feature_name)
            values, where = self._column(column, feature_name)
            if feature.width is not None:
                check_width(self.source(column), column, feature)
            elif feature.kind in ("dense", "bucket"):
                self.source(column).numeric(column)
            weights = self._column(feature.weights, feature_name)[0] if feature.weights else None
            yield feature_name, values, weights, where

    def _column(self, column: str, feature: str) -> tuple[pa.Array, str]:
        if column == self.key:
            return self.keys.values, f"{self.log.where}: column {column!r}"
        source = self.source(column)
        where = f"{source.where}: column {column!r}"
        source.need({column: f"feature {feature}, table {self.role}"})
        key = name(self.key)
        con = source.con
        con.register("_keys", pa.table({"key": self.keys.values, "place": np.arange(len(self.keys))}))
        if source is self.own:
            joined = f"SELECT {key} AS key, {name(column)} AS value FROM {source.view}"
        else:
            # Null in some rows counts as a value: filled in from other rows, it would show what came later.
            value = name(column)
            odd = source.row(
                f"SELECT {key} FROM {source.view} WHERE {key} IS NOT NULL GROUP BY 1 "
                f"HAVING count(DISTINCT {value}) + max(({value} IS NULL)::INT) > 1 LIMIT 1"
            )
            if odd:
                raise DataError(
                    where,
                    f"several values, or null beside a value, for the {self.role} {odd[0]!r}",
                    f"one value a {self.role}, as table: {self.role} says",
                    f"set table: event for the feature {feature!r}, or give a {self.role} table",
                )
            joined = f"SELECT {key} AS key, any_value({value}) AS value FROM {source.view} GROUP BY 1"
        values = source.table(f"SELECT j.value FROM _keys k LEFT JOIN ({joined}) j ON k.key = j.key ORDER BY k.place")
        con.unregister("_keys")
        return values["value"].combine_chunks(), where

    def fit(self, fitters: dict[str, Fitter], counts: NDArray[np.int64]) -> None:
        """Show the fitters of this entity's features every value, weighed by its training events."""
        names = [feature for feature in fitters if self.schema.table(feature) == self.role]
        for feature, values, _, where in self.columns([f for f in names if fitters[f].needs_data()]):
            add_values(fitters[feature], self.schema, feature, values, counts, where)

    def encode(self, fitted: FittedSchema) -> EntityTable:
        """The encoded table, row 0 for an unknown key."""
        table: dict[str, NDArray[np.generic] | Lists] = {}
        for feature, values, weights, where in self.columns(fitted.of_table(self.role)):
            unknown, known = fitted.unknown(feature), fitted.encode(feature, values, where, weights)
            if isinstance(known, Lists) and isinstance(unknown, Lists):
                table[feature] = concat_lists([unknown, known])
            else:
                table[feature] = np.concatenate([unknown, known])
        return EntityTable(self.keys, table)


def add_values(
    fitter: Fitter, schema: Schema, feature: str, values: pa.Array, counts: NDArray[np.int64], where: str
) -> None:
    """Give a fitter one chunk; several values a row count as often as their row."""
    if schema.features[feature].kind == "multi":
        values, offsets, _ = multi_values(schema.features[feature], values, where)
        counts = np.repeat(counts, np.diff(offsets))
    fitter.add(values, counts, where)
