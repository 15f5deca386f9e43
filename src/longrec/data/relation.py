"""Inputs as DuckDB relations: Parquet, CSV or Arrow files, a query or a frame, checked before any processing."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from longrec.data.file_reader import FileReader
from longrec.data.headers import TEXT, Header, check_alike, read_header
from longrec.data.settings import DataConfig, Source
from longrec.data.sql import hide_progress, literal, name, unreadable
from longrec.errors import DataError, nearest

__all__ = ["SPLIT_COLUMN", "Relation", "connect", "literal", "name", "paths", "query_rows", "unreadable"]

SPLIT_COLUMN = "_part"
"""Column with the split of each row, train, valid or test, of an input with files per split."""
_FILE = "_file"
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "BOOLEAN"}


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
        scratch: folder for the Parquet file to which an input with a declared row format, or the relation of another
            connection, is converted.
        timestamps: names of timestamp columns. In text files they are read as text, so that DuckDB does not guess the
            order of day and month.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        view: str,
        source: Source,
        scratch: Path,
        timestamps: Sequence[str] = (),
    ) -> None:
        self.con, self.view, self.where = con, view, str(source)
        self._text: str | None = None
        self._exact: set[str] = set()
        self._headers: list[Header] = []
        self._packed_columns: dict[str, str] = {}
        try:
            rows = self._rows(source, scratch, timestamps)
            con.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {rows}")
            described = con.execute(f"DESCRIBE {view}").fetchall()
        except duckdb.Error as error:
            raise unreadable(self.where, error) from None
        self.types: dict[str, str] = {row[0]: row[1] for row in described}

    def _rows(self, source: Source, scratch: Path, timestamps: Sequence[str]) -> str:
        """Return SQL that reads the rows of an input, with ``SPLIT_COLUMN`` if it has splits."""
        if source.query is not None:
            return f"({query_rows(source.query)})"
        if source.frame is not None:
            return source.frame.scan(self.con, f"{self.view}_frame", scratch)
        files = group_files_by_split(source)
        reader = None if source.rows is None else FileReader(self.con, source.rows, self.where, files, SPLIT_COLUMN)
        target = scratch / f"{self.view}.parquet"
        if reader is not None and reader.row_format.columns is not None:
            return reader.write(None, target)
        rows = _from(self.con, self.view, source, files)
        every = [path for own in files.values() for path in own]
        self._headers = [read_header(self.con, path) for path in every] if len(every) > 1 else []
        self._packed_columns = {} if source.rows is None else source.rows.list_packed_columns()
        if rows.startswith("read_csv("):
            self._text = rows[:-1] + ", all_varchar=true)"
            rows = _without_guessed_dates(self.con, rows, timestamps)
        if source.splits is not None:
            rows = _with_split(self.con, rows, files)
        return rows if reader is None else reader.write(rows, target)

    def need(self, columns: dict[str, str]) -> None:
        """Raise one error for all missing columns and for columns that only some of the files have.

        Args:
            columns: column -> config key or feature that uses it, for error messages.
        """
        if self._headers:
            read = {self._packed_columns.get(column, column): reader for column, reader in columns.items()}
            check_alike(self.where, self._headers, read)
        faults = []
        for column, reader in columns.items():
            if column not in self.types:
                near = nearest(column, self.types)
                faults.append(f"{column!r} ({reader})" + (f", did you mean {near!r}?" if near else ""))
        if faults:
            run_together = len(self.types) == 1 and re.search("[,;|\t]", next(iter(self.types)))
            raise DataError(
                self.where,
                f"no column {'; no column '.join(faults)}",
                f"columns of the schema; the file has {', '.join(self.types)}",
                "look for a line with more or fewer values than the first, so that the separator is not detected"
                if run_together
                else "",
            )

    def key_type(self, column: str) -> str:
        """Return the SQL type of a column of ids: BIGINT or VARCHAR.

        Raises:
            DataError: ids that are floats, dates or integers beyond 64 bits.
        """
        kind, where = self.types[column], f"{self.where}: column {column!r}"
        self.exact(column)
        if kind in INTEGERS:
            return "BIGINT"
        if kind in ("UBIGINT", "HUGEINT", "UHUGEINT"):
            top = self.one(f"SELECT max({name(column)}) FROM {self.view}")
            if top is not None and top >= 2**63:
                raise DataError(
                    where,
                    f"the id {top}, which needs more than 64 bits",
                    "signed 64-bit integers or strings",
                    "store these ids as strings",
                )
            return "BIGINT"
        if kind == "VARCHAR" or kind.startswith("ENUM"):
            return "VARCHAR"
        if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
            top = self.one(f"SELECT max(abs({name(column)})) FROM {self.view}") or 0
            more = f", the largest {top:.0f}" if top > 2**53 else ""
            raise DataError(
                where,
                f"ids stored as floats ({kind}){more}",
                "64-bit integers or strings: floats cannot distinguish all integers above 2**53",
                "write the column as integers (nullable ones if it has nulls) or as text",
            )
        raise DataError(where, f"ids of type {kind}", "64-bit integers or strings", "cast the column")

    def element_type(self, column: str) -> str | None:
        """Return ``key_type`` of the elements of a list column or of a column of ids, or None for a column of nulls."""
        kind = self.types[column]
        if kind == '"NULL"':
            return None
        if not kind.endswith("[]"):
            return self.key_type(column)
        return "VARCHAR" if kind[:-2] == "VARCHAR" or kind.startswith("ENUM") else "BIGINT"

    def exact(self, column: str) -> None:
        """Raise an error if ids in a CSV column would be read as numbers and lose their leading zeros."""
        if self._text is None or self.types[column] == "VARCHAR" or column in self._exact:
            return
        self._exact.add(column)
        odd = self.one(
            f"SELECT {name(column)} FROM {self._text} WHERE regexp_matches({name(column)}, '^-?0[0-9]') LIMIT 1"
        )
        if odd is not None:
            raise DataError(
                f"{self.where}: column {column!r}",
                f"the id {odd!r}, which would be read as the number {int(odd)}",
                "ids that keep their zeros",
                "write the log as Parquet with this column as text, or read it with a query that casts it to text",
            )

    def numeric(self, column: str) -> None:
        """Raise an error if a column of numbers has text. The message gives the first invalid value."""
        if self.types[column] != "VARCHAR":
            return
        bad_row = self.row(
            f"SELECT r, v FROM (SELECT row_number() OVER () AS r, {name(column)} AS v FROM {self.view}) "
            "WHERE v IS NOT NULL AND try_cast(v AS DOUBLE) IS NULL LIMIT 1"
        )
        what = f"text, first {bad_row[1]!r} in row {bad_row[0]}" if bad_row else "numbers stored as text"
        raise DataError(
            f"{self.where}: column {column!r}", what, "numbers", "clean the column, or declare the feature kind id"
        )

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


def paths(patterns: tuple[str, ...]) -> list[Path]:
    """Return the files that match patterns, and the files of folders.

    Raises:
        DataError: a pattern without matches, or a folder that is empty or has subfolders.
    """
    file_paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern))
        if Path(pattern).is_dir():
            # Other tools write marker files beside the data, such as _SUCCESS and .part-0.parquet.crc.
            own = sorted(path for path in Path(pattern).iterdir() if path.name[0] not in "._")
            folders = [path for path in own if path.is_dir()]
            if folders or not own:
                what = f"the folder {folders[0].name!r} in it" if folders else "an empty folder"
                raise DataError(pattern, what, "a folder of files of one kind", "use a pattern that matches the files")
            matches = [str(path) for path in own]
        if not matches:
            raise DataError(pattern, "no such file", "a Parquet, CSV or Arrow file (or a pattern that matches some)")
        file_paths += map(Path, matches)
    return file_paths


def group_files_by_split(source: Source) -> dict[str | None, list[Path]]:
    """Return the files per split. The files of an input without splits have the key None.

    Raises:
        DataError: a pattern without matches, a file listed twice, or a file in two splits.
    """
    if source.splits is None:
        return {None: _check_unique(paths(source.files or ()))}
    files: dict[str | None, list[Path]] = {split: paths(own) for split, own in source.splits.each().items()}
    owner: dict[tuple[int, int], str | None] = {}
    for split, own in files.items():
        for path in own:
            if owner.setdefault(_file_id(path), split) != split:
                raise DataError(
                    str(path),
                    f"a file of {owner[_file_id(path)]} and of {split}",
                    "every file in one split",
                    "metrics on training rows do not measure new rows; use other files",
                )
        _check_unique(own)
    return files


def _file_id(path: Path) -> tuple[int, int]:
    """Return the device and inode of a file, which are the same for every path or link to it."""
    about = path.stat()
    return about.st_dev, about.st_ino


def _check_unique(files: list[Path]) -> list[Path]:
    """Return the files, or raise an error for a file that is listed twice, since its rows would count twice."""
    named: dict[tuple[int, int], Path] = {}
    for path in files:
        other = named.setdefault(_file_id(path), path)
        if other is not path:
            by = "listed twice" if str(other) == str(path) else f"the same file as {other}"
            raise DataError(
                str(path),
                f"{by}, so each of its rows would count twice",
                "every file once",
                "remove one of the names, or narrow the pattern",
            )
    return files


def _from(con: duckdb.DuckDBPyConnection, view: str, source: Source, files: dict[str | None, list[Path]]) -> str:
    every = [path for own in files.values() for path in own]
    kinds = {path.suffix.lower() for path in every}
    if len(kinds) > 1:
        raise DataError(str(source), f"files of the kinds {', '.join(sorted(kinds))}", "one kind of file")
    kind, listed = kinds.pop(), "[" + ", ".join(literal(str(path)) for path in every) + "]"
    named = f", filename={literal(_FILE)}" if source.splits is not None else ""
    if kind == ".parquet":
        return f"read_parquet({listed}, union_by_name=true{named})"
    if kind in TEXT:
        if source.rows is not None:
            raise DataError(
                str(source), "text files, and rows without columns", "rows.columns: the name and type of every cell"
            )
        # The first line is always the header. Detection would miss it in files with only text or only a header.
        return f"read_csv({listed}, header=true, sample_size=100000, union_by_name=true{named})"
    if kind in (".arrow", ".feather"):
        tables = []
        for number, (split, own) in enumerate(files.items()):
            table = f"{view}_arrow_{number}"
            try:
                con.register(table, _dataset(own))
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(str(source), f"cannot be read: {error}", "a complete Arrow file") from None
            tables.append(f"SELECT *{'' if split is None else f', {literal(split)} AS {SPLIT_COLUMN}'} FROM {table}")
        return f"({' UNION ALL BY NAME '.join(tables)})"
    raise DataError(str(source), f"a file of the kind {kind!r}", ".parquet, .csv, .tsv, .arrow or .feather")


def _dataset(files: list[Path]) -> pads.Dataset:
    """Return Arrow files as one dataset with the union of their columns, in the same way as for Parquet and CSV."""
    datasets = [pads.dataset(str(path), format="ipc") for path in files]
    try:
        schema = pa.unify_schemas([one.schema for one in datasets], promote_options="permissive")
    except pa.ArrowException:  # incompatible types of a column, reported where it is used
        schema = pa.unify_schemas([datasets[0].schema])
    return pads.dataset([str(path) for path in files], format="ipc", schema=schema)


def _without_guessed_dates(con: duckdb.DuckDBPyConnection, rows: str, timestamps: Sequence[str]) -> str:
    described = con.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall() if timestamps else []
    guessed = [row[0] for row in described if row[0] in timestamps and row[1].startswith(("DATE", "TIME"))]
    types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in guessed)
    return f"{rows[:-1]}, types={{{types}}})" if guessed else rows


def _with_split(con: duckdb.DuckDBPyConnection, rows: str, files: dict[str | None, list[Path]]) -> str:
    """Return SQL that adds a column with the split of each row, derived from its file."""
    if not rows.startswith("read_"):
        return rows
    cases = []
    for split, own in files.items():
        among = ", ".join(literal(str(path)) for path in own)
        cases.append(f"WHEN {_FILE} IN ({among}) THEN {literal(str(split))}")
    return f"(SELECT * EXCLUDE ({_FILE}), CASE {' '.join(cases)} END AS {SPLIT_COLUMN} FROM {rows})"


def query_rows(text: str) -> str:
    """Return a query that can be put in parentheses: without a final semicolon, and with a newline after comments."""
    return text.rstrip().rstrip(";") + "\n"
