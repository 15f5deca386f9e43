"""Inputs as DuckDB relations: Parquet, CSV, JSON or Arrow files, a query or a frame, checked before any processing."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from longrec.data import casts as casting
from longrec.data.casts import INTEGERS, WIDE_INTEGERS, ColumnTypes, is_real, is_text
from longrec.data.file_reader import FileReader
from longrec.data.headers import Header, check_alike, check_distinct, read_header
from longrec.data.input_files import ARROW, JSON, TEXT, group_files_by_split
from longrec.data.json_files import write_json_files
from longrec.data.settings import DataConfig, Source
from longrec.data.sql import hide_progress, literal, name, unreadable, wrap_query
from longrec.data.text_files import write_text_files
from longrec.data.typed_files import SPLIT_COLUMN, get_shared_kind, read_arrow, read_parquet
from longrec.errors import DataError, nearest

__all__ = ["INTEGERS", "SPLIT_COLUMN", "Relation", "connect", "literal", "name", "unreadable"]


def connect(config: DataConfig, scratch: Path) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection that spills to ``scratch`` and shows no progress bar."""
    con = duckdb.connect()
    hide_progress(con)
    con.execute(f"SET memory_limit={literal(config.memory)}; SET threads={config.threads}")
    con.execute(f"SET temp_directory={literal(str(scratch))}; SET TimeZone='UTC'")
    return con


class Relation:
    """One input as a view of a DuckDB connection, with the type of every column.

    Args:
        con: DuckDB connection.
        view: name of the view.
        scratch: folder for the Parquet file to which text, JSON, inputs with a declared row format, and the relation of
            another connection are converted.
        declared: declared types. Columns of other inputs are ignored. None: there is no schema.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        view: str,
        source: Source,
        scratch: Path,
        declared: ColumnTypes | None = None,
    ) -> None:
        self.con, self.view, self.where = con, view, str(source)
        self._role = {"log": "log", "users": "users", "items": "items"}.get(view, "log")
        self._declared, self._has_schema = declared or ColumnTypes(), declared is not None
        self._headers: list[Header] = []
        self._packed_columns: dict[str, str] = {}
        self._mixed: list[str] = []
        self._replaced: dict[str, str] = {}
        try:
            self._source_rows = self._rows(source, scratch)
            self._define_view()
            described = con.execute(f"DESCRIBE {view}").fetchall()
            self.types: dict[str, str] = {row[0]: row[1] for row in described}
            self._clean(source.nulls)
        except duckdb.Error as error:
            raise unreadable(self.where, error) from None

    def _rows(self, source: Source, scratch: Path) -> str:
        """Return SQL that reads the rows of an input, with ``SPLIT_COLUMN`` if it has splits."""
        if source.query is not None:
            return f"({wrap_query(self.con, source.query, self.where)})"
        files = {} if source.frame is not None else group_files_by_split(source)
        reader = None
        if source.rows is not None:
            reader = FileReader(self.con, source.rows, self.where, files, SPLIT_COLUMN, source.nulls)
        target = scratch / f"{self.view}.parquet"
        if reader is not None and reader.row_format.columns is not None:
            return reader.write(None, target)
        self._packed_columns = {} if source.rows is None else source.rows.list_packed_columns()
        if source.frame is not None:
            rows = source.frame.scan(self.con, f"{self.view}_frame", scratch)
            return rows if reader is None else reader.write(rows, target)
        kind = get_shared_kind(source, files)
        every = [path for own in files.values() for path in own]
        self._headers = [read_header(self.con, path) for path in every] if kind != JSON or len(every) > 1 else []
        rows = self._read_files(source, kind, files, scratch / f"{self.view}.{kind}.parquet")
        return rows if reader is None else reader.write(rows, target)

    def _read_files(self, source: Source, kind: str, files: dict[str | None, list[Path]], target: Path) -> str:
        if kind == TEXT:
            if source.rows is not None:
                do = "rows.columns: the name and type of every cell"
                raise DataError(str(source), "text files, and rows without columns", do)
            return write_text_files(
                self.con,
                self.where,
                files,
                target,
                nulls=source.nulls,
                declared=self._declared,
                split_column=SPLIT_COLUMN,
            )
        if kind == JSON:
            as_text = [column for column, to in self._declared.casts.items() if to == "text"]
            rows, self._mixed = write_json_files(
                self.con, self.where, files, target, as_text=as_text, split_column=SPLIT_COLUMN
            )
            return rows
        return read_arrow(self.con, self.view, source, files) if kind == ARROW else read_parquet(source, files)

    def _define_view(self) -> None:
        rows = casting.select_columns(self._source_rows, self._replaced)
        self.con.execute(f"CREATE OR REPLACE VIEW {self.view} AS {rows}")

    def _replace(self, column: str, sql: str, kind: str) -> None:
        """Replace a column of the view by an expression of the column."""
        before = self._replaced.get(column, name(column))
        self._replaced[column] = sql.replace(name(column), f"({before})") if column in self._replaced else sql
        self.types[column] = kind
        self._define_view()

    def _clean(self, nulls: Collection[str]) -> None:
        """Replace texts that mean a missing value by null, and cast columns.

        Raises:
            DataError: a value that the type of its cast cannot represent.
        """
        if nulls:
            for column, kind in self.types.items():
                if is_text(kind):
                    self._replaced[column] = casting.without_nulls(name(column), kind, tuple(nulls))
                    self.types[column] = "VARCHAR"
            self._define_view()
        for column, to in self._declared.casts.items():
            if column in self.types:
                self._cast(column, to)

    def _cast(self, column: str, to: str) -> None:
        kind, value = self.types[column], name(column)
        sql = casting.cast_sql(value, kind, to)
        if sql is None:
            do = casting.describe_fix(column, kind) if to == "text" else "correct casts, or cast it with a query"
            raise DataError(self._locate(column), f"values of type {kind}", f"values that can be cast to {to}", do)
        wrong = f"v IS NOT NULL AND ({sql.replace(value, 'v')}) IS NULL"
        if kind in casting.EXACT:
            wrong += f" AND {casting.is_number('v', kind)}"
        bad_row = self._find_row(column, wrong)
        if bad_row is not None:
            article = {"int": "whole numbers of at most 64 bits", "float": "numbers", "text": "text"}[to]
            if kind in casting.EXACT and to == "text":
                article = "whole numbers, since the text of a fraction is ambiguous"
            shown = bad_row[1] if not isinstance(bad_row[1], str) else repr(bad_row[1][:60])
            do = casting.describe_null_text(str(bad_row[1]), f"data.{self._role}") or "correct the value, or casts"
            raise DataError(self._locate(column), f"{shown} in row {bad_row[0]}, and casts to {to}", article, do)
        self._replace(column, sql, casting.TYPES[to])

    def _locate(self, column: str) -> str:
        return f"{self.where}: column {column!r}"

    def _find_row(self, column: str, wrong: str) -> tuple[Any, ...] | None:
        """Return the number, from 1, and the value of the first row where SQL about the value ``v`` is true."""
        if not self.one(f"SELECT count(*) FROM (SELECT {name(column)} AS v FROM {self.view}) WHERE {wrong}"):
            return None
        numbered = f"SELECT row_number() OVER () AS r, {name(column)} AS v FROM {self.view}"
        return self.row(f"SELECT r, v FROM ({numbered}) WHERE {wrong} ORDER BY r LIMIT 1")

    def need(self, columns: dict[str, str], way_out: str = "") -> None:
        """Raise one error for all missing columns and for columns that only some of the files have.

        Args:
            columns: column -> config key or feature that uses it, for error messages.
            way_out: what to do about a missing column.
        """
        read = {self._packed_columns.get(column, column): reader for column, reader in columns.items()}
        check_distinct(self._headers, read)
        if len(self._headers) > 1:
            check_alike(self.where, self._headers, read)
        mixed = next((column for column in read if column in self._mixed), None)
        if mixed is not None:
            raise DataError(
                self._locate(mixed),
                f"values of several types ({read[mixed]})",
                "one type of all values of a key",
                "write one type" + (f", or set casts: {{{mixed}: text}} in the schema" if self._has_schema else ""),
            )
        faults = []
        for column, reader in columns.items():
            if column not in self.types:
                near = nearest(column, self.types)
                faults.append(f"{column!r} ({reader})" + (f", did you mean {near!r}?" if near else ""))
        if faults:
            run_together = len(self.types) == 1 and re.search("[,;|\t]", next(iter(self.types)))
            do = "look for a line with more or fewer values than the first, so that the separator is not detected"
            is_row = not run_together and any(re.fullmatch(r"[-0-9.]+", column) for column in self.types)
            if is_row:
                do = "the first line seems to be a row: name and type the cells with rows.columns"
            expected = "columns of the schema" if self._has_schema else "these columns"
            raise DataError(
                self.where,
                f"no column {'; no column '.join(faults)}",
                f"{expected}; the file has {', '.join(self.types)}",
                do if run_together or is_row else way_out,
            )

    def key_type(self, column: str) -> str:
        """Return the SQL type of a column of ids, BIGINT or VARCHAR. Floats and decimals of whole numbers are integers.

        Raises:
            DataError: ids that are fractions, dates or integers beyond 64 bits.
        """
        kind, where = self.types[column], self._locate(column)
        if kind in INTEGERS:
            return "BIGINT"
        if kind in WIDE_INTEGERS:
            top = self.one(f"SELECT max({name(column)}) FROM {self.view}")
            if top is not None and top >= 2**63:
                raise DataError(
                    where,
                    f"the id {top}, which needs more than 64 bits",
                    "signed 64-bit integers or strings",
                    "store these ids as strings"
                    + (f", or set casts: {{{column}: text}} in the schema" if self._has_schema else ""),
                )
            return "BIGINT"
        if is_text(kind):
            return "VARCHAR"
        if is_real(kind):
            self._check_whole(column, kind)
            self._replace(column, casting.whole_number(name(column), kind), "BIGINT")
            return "BIGINT"
        raise DataError(where, f"ids of type {kind}", "64-bit integers or strings", casting.describe_fix(column, kind))

    def check_id_type(self, column: str) -> None:
        """Raise an error if a column has a type that holds no ids."""
        kind = self.types[column]
        if kind in INTEGERS | WIDE_INTEGERS or is_text(kind) or is_real(kind) or kind == '"NULL"':
            return
        fix = casting.describe_fix(column, kind)
        raise DataError(self._locate(column), f"ids of type {kind}", "64-bit integers or strings", fix)

    def _check_whole(self, column: str, kind: str) -> None:
        """Raise an error for floats or decimals that are not all whole numbers, exactly."""
        wrong = f"{casting.whole_number('v', kind)} IS NULL AND {casting.is_number('v', kind)}"
        bad_row = self._find_row(column, f"v IS NOT NULL AND {wrong}")
        if bad_row is None:
            return
        top = self.one(f"SELECT max(abs({name(column)})) FROM {self.view} WHERE {name(column)} < 1e300") or 0
        more = f", the largest {top:.0f}" if kind in casting.EXACT and top > casting.EXACT[kind] else ""
        more = more or f", such as {bad_row[1]} in row {bad_row[0]}"
        raise DataError(
            self._locate(column),
            f"ids stored as floats ({kind}){more}",
            "64-bit integers or strings: floats cannot distinguish all integers above "
            + ("2**24" if kind == "FLOAT" else "2**53"),
            "write the column as integers (nullable ones if it has nulls) or as text",
        )

    def element_type(self, column: str) -> str | None:
        """Return ``key_type`` of the elements of a list column or of a column of ids, or None for a column of nulls."""
        kind = self.types[column]
        if kind == '"NULL"':
            return None
        if not kind.endswith("[]"):
            return self.key_type(column)
        return "VARCHAR" if is_text(kind[:-2]) or kind.startswith("ENUM") else "BIGINT"

    def numeric(self, column: str, do: str = "clean the column, or declare the feature kind id") -> None:
        """Raise an error if a column of numbers has text. The message gives the first invalid value.

        Args:
            do: advice if the text is none of the usual mistakes.
        """
        if not is_text(self.types[column]):
            fix = casting.describe_number_fix(column, self.types[column])
            if fix is not None:
                raise DataError(self._locate(column), f"values of type {self.types[column]}", "numbers", fix)
            return
        bad_row = self._find_row(column, "v IS NOT NULL AND try_cast(v AS DOUBLE) IS NULL")
        if bad_row is None:
            do = f"set casts: {{{column}: float}} in the schema" if self._has_schema else do
        else:
            if re.fullmatch(r"\s*[-+]?[0-9.]*,[0-9]+\s*", bad_row[1]):
                do = "write decimal points instead of commas, or convert the column with a query: "
                do += f"replace({column}, ',', '.')::DOUBLE AS {column}"
            do = casting.describe_null_text(bad_row[1], f"data.{self._role}") or do
        what = f"text, first {bad_row[1][:60]!r} in row {bad_row[0]}" if bad_row else "numbers stored as text"
        raise DataError(self._locate(column), what, "numbers", do)

    def no_nulls(self, column: str, role: str, of: str = "event") -> None:
        """Raise an error for nulls (and NaN and infinity) in a column that must have a value in every row.

        Args:
            role: role of the column, for the error message.
            of: what a row is, for the error message.
        """
        real = self.types[column] in ("FLOAT", "DOUBLE")
        # Not isnan(v): DuckDB evaluates it from Parquet statistics, which do not cover NaN.
        wrong = "try_cast(v AS BIGINT) IS NULL" if real else "v IS NULL"
        count = self.one(f"SELECT count(*) FROM (SELECT {name(column)} AS v FROM {self.view}) WHERE {wrong}")
        if count:
            numbered = f"SELECT row_number() OVER () AS r, {name(column)} AS v FROM {self.view}"
            first = self.one(f"SELECT min(r) FROM ({numbered}) WHERE {wrong}")
            raise DataError(
                f"{self.where}: column {column!r}",
                f"{count} null{' or not finite' if real else ''} value{'s' if count > 1 else ''}, first in row {first}",
                f"a {role} in every {of}",
                "drop or fill these rows",
            )

    def row(self, sql: str) -> tuple[Any, ...] | None:
        """Return the only row of a query, or None.

        It is fetched to the end: an open result would block the connection.
        """
        try:
            rows = self.con.execute(sql).fetchall()
        except duckdb.Error as error:
            raise unreadable(self.where, error) from None
        return rows[0] if rows else None

    def one(self, sql: str) -> Any:
        """Return the single value of a query."""
        row = self.row(sql)
        return row[0] if row else None

    def table(self, sql: str) -> pa.Table:
        """Return the rows of a query."""
        try:
            return self.con.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise unreadable(self.where, error) from None
