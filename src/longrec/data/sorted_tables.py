"""Writer of the users and items of a sorted log with DuckDB: keys, and raw columns joined by key."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.checks import check_width
from longrec.data.relation import Relation, name, unreadable
from longrec.data.settings import Source
from longrec.data.sorted_log import KEY, KEY_ROW, SINCE, TableFacts
from longrec.data.timestamps import read_timestamps
from longrec.errors import DataError
from longrec.features.schema import Schema

_ROWS = 100_000
"""Number of rows that are written together."""


def write_tables(
    schema: Schema, log: Relation, tables: dict[str, tuple[Relation | None, Source | None]], folder: Path
) -> dict[str, TableFacts]:
    """Write the users and the items, and return their facts by role.

    Args:
        tables: entity table, opened and as configured, by role.

    Raises:
        DataError: keys of another type than in the log, copies of a key or version, missing columns, invalid values.
    """
    facts = {}
    for role, own in tables.items():
        key = schema.user if role == "user" else schema.item
        if key is None:
            facts[role] = _write_without_key(role, log, folder / f"{role}s.parquet")
        else:
            facts[role] = _TableWriter(role, key, schema, log, *own).write(folder)
    return facts


def _write_without_key(role: str, log: Relation, path: Path) -> TableFacts:
    """Write the table of a schema without this key: every row is a user of its own, and no row has an item."""
    count = log.one(f"SELECT count(*) FROM {log.view}") if role == "user" else 0
    pq.write_table(pa.table({KEY: np.arange(count)}), path, use_dictionary=False)
    return TableFacts(sources={})


class _TableWriter:
    def __init__(
        self, role: str, key: str, schema: Schema, log: Relation, own: Relation | None, source: Source | None
    ) -> None:
        self.role, self.schema, self.log, self.own, self.source = role, schema, log, own, source
        self.as_of = None if source is None else source.as_of
        self.key = key
        self.kind = log.key_type(key)

    def write(self, folder: Path) -> TableFacts:
        keys = self._collect_keys()
        since = None if self.own is None or self.as_of is None else self._read_since(self.own, self.as_of)
        columns = self._check_columns()
        plain = {c: source for c, source in columns.items() if since is None or source is not self.own}
        path, con = folder / f"{self.role}s.parquet", self.log.con
        con.register("_keys", pa.table({KEY: keys, KEY_ROW: np.arange(len(keys))}))
        try:
            if plain:
                self._write(self._plain_sql(plain), path)
            else:
                pq.write_table(pa.table({KEY: keys}), path, use_dictionary=False)
            if since is not None:
                dated = [c for c in columns if c not in plain]
                self._write(self._dated_sql(dated, since), path.with_suffix(".dated.parquet"))
        finally:
            con.unregister("_keys")
        sources = {c: source.where for c, source in columns.items()}
        return TableFacts(
            sources={self.key: self.log.where, **sources},
            own=tuple(c for c, source in columns.items() if source is self.own),
            table=self._name_table(),
            as_of=self.as_of,
        )

    def _collect_keys(self) -> pa.Array:
        """Return the union of the keys of the log and of the entity table, in ascending order."""
        own = self.own
        union = f"SELECT DISTINCT {name(self.key)}::{self.kind} AS key FROM {self.log.view}"
        if own is not None:
            own.need(
                {self.key: f"key of the {self.role} table", **({} if self.as_of is None else {self.as_of: "as_of"})}
            )
            own_kind = own.key_type(self.key)
            if own_kind != self.kind:
                raise DataError(
                    f"{own.where}: column {self.key!r}",
                    f"{own_kind} keys",
                    f"{self.kind}, as in the log",
                    "give both the same type",
                )
            if self.as_of is None:
                self._check_distinct(own)
            union += f" UNION SELECT {name(self.key)}::{self.kind} FROM {own.view}"
        keys = self.log.table(f"SELECT key FROM ({union}) WHERE key IS NOT NULL ORDER BY key")
        return keys["key"].combine_chunks()

    def _check_distinct(self, own: Relation) -> None:
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

    def _read_since(self, own: Relation, as_of: str) -> str:
        """Return SQL of the timestamp from which each row of the entity table is valid."""
        time, where = self.schema.time, f"{own.where}: column {as_of!r}"
        if time is None:
            raise DataError(where, "as_of, but the schema has no time column", "a time column", "leave as_of out")
        own.no_nulls(as_of, "time", "row of a table with as_of")
        since = read_timestamps(own, as_of, time).sql
        twice = own.row(
            f"SELECT {name(self.key)}, any_value({name(as_of)}::VARCHAR), count(*) FROM {own.view} "
            f"WHERE {name(self.key)} IS NOT NULL GROUP BY 1, {since} HAVING count(*) > 1 ORDER BY 3 DESC LIMIT 1"
        )
        if twice:
            message = f"{twice[0]!r} has {twice[2]} rows as of {twice[1]}"
            raise DataError(where, message, "one row per key and timestamp", "remove the copies")
        return since

    def get_source(self, column: str) -> Relation:
        """Return the relation that has a column: the entity table if it has it, else the log."""
        return self.own if self.own is not None and column in self.own.types else self.log

    def _check_columns(self) -> dict[str, Relation]:
        """Return the relation of each raw column of the features, except the key, after checks of its values."""
        columns: dict[str, Relation] = {}
        for feature_name, feature in self.schema.features.items():
            if self.schema.side(feature_name) != self.role or feature.kind == "embedding":
                continue
            column = self.schema.column(feature_name)
            self._check_column(column, feature_name, columns)
            if feature.width is not None:
                check_width(self.get_source(column), column, feature)
            elif feature.kind in ("numeric", "bucketized"):
                self.get_source(column).numeric(column)
            elif feature.kind == "id":
                self.get_source(column).check_id_type(column)
            if feature.weights:
                self._check_column(feature.weights, feature_name, columns)
        return columns

    def _check_column(self, column: str, feature: str, columns: dict[str, Relation]) -> None:
        source = self.get_source(column)
        if column == self.key or column in columns:
            return
        source.need({column: f"feature {feature}, table {self.role}"})
        columns[column] = source
        if source is self.own:
            return
        # Null in some rows counts as a value: filling it from other rows would leak later values.
        key, value = name(self.key), name(column)
        odd = source.row(
            f"SELECT {key} FROM {source.view} WHERE {key} IS NOT NULL GROUP BY 1 "
            f"HAVING count(DISTINCT {value}) + max(({value} IS NULL)::INT) > 1 LIMIT 1"
        )
        if odd:
            raise DataError(
                f"{source.where}: column {column!r}",
                f"several values, or a value and null, for the {self.role} {odd[0]!r}",
                f"one value per {self.role}, as the feature has side: {self.role}",
                f"set side: context for the feature {feature!r}, or add a table of {self.role}s",
            )

    def _plain_sql(self, columns: dict[str, Relation]) -> str:
        """Return SQL of one row per key. Columns of the log have one value in all rows of a key."""
        selected, joins = ["k.key"], []
        for alias, of, value in (("o", self.own, "{}"), ("l", self.log, "any_value({})")):
            mine = [name(column) for column, source in columns.items() if source is of]
            if of is None or not mine:
                continue
            values = ", ".join(f"{value.format(column)} AS v{index}" for index, column in enumerate(mine))
            grouped = " GROUP BY 1" if of is self.log else ""
            rows = f"SELECT {name(self.key)}::{self.kind} AS key, {values} FROM {of.view}{grouped}"
            joins.append(f" LEFT JOIN ({rows}) {alias} ON k.key = {alias}.key")
            raw = [column for column, source in columns.items() if source is of]
            selected += [f"{alias}.v{index} AS {name(f'c.{column}')}" for index, column in enumerate(raw)]
        return f"SELECT {', '.join(selected)} FROM _keys k{''.join(joins)} ORDER BY k.key_row"

    def _dated_sql(self, columns: list[str], since: str) -> str:
        """Return SQL of one row per version."""
        assert self.own is not None
        values = "".join(f", {name(column)} AS {name(f'c.{column}')}" for column in columns)
        rows = f"SELECT {name(self.key)}::{self.kind} AS key, {since} AS {SINCE}{values} FROM {self.own.view}"
        selected = "".join(f", o.{name(f'c.{column}')}" for column in columns)
        return f"SELECT k.key_row, o.since{selected} FROM _keys k JOIN ({rows}) o ON k.key = o.key ORDER BY 1, 2"

    def _write(self, sql: str, path: Path) -> None:
        # Through Arrow and not by COPY, so that every column keeps the type that it has in memory.
        where = self.log.where if self.own is None else self.own.where
        try:
            reader = self.log.con.sql(sql).to_arrow_reader(_ROWS)
            with pq.ParquetWriter(path, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        except duckdb.Error as error:
            raise unreadable(where, error) from None
        except pa.ArrowNotImplementedError as error:
            do = "cast the column, or leave out the feature"
            raise DataError(where, f"a column that cannot be stored ({error})", "numbers, text or lists", do) from None

    def _name_table(self) -> str | None:
        if self.source is None:
            return None
        kind = "query" if self.source.frame is None else "frame"
        return ", ".join(map(_short_name, self.source.files or ())) or f"the {kind} of {self.role}s"


def _short_name(file: str) -> str:
    """Return the name of a file, or the folder and name of a pattern."""
    return Path(file).name if not set("*?[") & set(Path(file).name) else "/".join(Path(file).parts[-2:])
