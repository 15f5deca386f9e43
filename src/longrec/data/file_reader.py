"""Conversion of input files with a declared row format to one Parquet file of typed columns.

Text is read with the declared types. No type is inferred from the values. Every later pass reads the Parquet file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.casts import INTEGERS, WIDE_INTEGERS
from longrec.data.file_format import FileFormat
from longrec.data.input_files import JSON, PARQUET, get_kind
from longrec.data.json_files import read_json
from longrec.data.packed_cells import InvalidCell, unpack
from longrec.data.sql import literal, name, unreadable
from longrec.data.text_rows import check_header, read_text, select_typed, text_fault
from longrec.errors import DataError, nearest

_CHUNK = 16_384  # cells that are parsed together
_INTEGERS = {*INTEGERS, *WIDE_INTEGERS} - {"BOOLEAN"}


class FileReader:
    """Reader that converts input files with a declared row format to Parquet.

    Args:
        con: DuckDB connection.
        row_format: declared columns, types, defaults and packed cells.
        where: name of the input in error messages.
        files: ordered files per split, or of the key None if the input has no splits.
        split_column: name of the column to add with the split of each row.
        nulls: texts that mean a missing value, besides the empty one.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        row_format: FileFormat,
        where: str,
        files: Mapping[str | None, list[Path]],
        split_column: str,
        nulls: Sequence[str] = (),
    ) -> None:
        self.nulls = nulls
        self.con, self.row_format, self.where, self.files, self.split_column = (
            con,
            row_format,
            where,
            files,
            split_column,
        )

    def write(self, rows: str | None, target: Path) -> str:
        """Check the rows and write them to ``target``.

        Args:
            rows: SQL relation over Parquet or Arrow files, including the split column, or over a frame. None reads the
                text files.

        Returns:
            SQL that reads the written file.

        Raises:
            DataError: a row with a wrong number of cells, a value of the wrong type, an invalid packed cell, or a
                missing column of ``defaults`` or ``packed``. The message locates the first one.
        """
        sql = self._text() if rows is None else self._select_with_defaults(rows)
        try:
            if self.row_format.packed:
                self._write_unpacked(sql, target)
            else:
                kind = "FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE 100000"
                self.con.execute(f"COPY ({sql}) TO {literal(str(target))} ({kind})")
        except (duckdb.Error, pa.ArrowException) as error:
            fault = text_fault(self.con.cursor(), self.row_format, self._paths()) if rows is None else None
            raise fault or unreadable(self.where, error) from None
        read = f"read_parquet({literal(str(target))}"
        if self.row_format.number is None:
            return f"{read})"
        number = name(self.row_format.number)
        return f"(SELECT * EXCLUDE (file_row_number), file_row_number AS {number} FROM {read}, file_row_number=true))"

    def _paths(self) -> list[Path]:
        return [path for paths in self.files.values() for path in paths]

    def _text(self) -> str:
        if self.row_format.header:
            for path in self._paths():
                check_header(self.con, self.row_format, path)
        queries = []
        for split, paths in self.files.items():
            own = "" if split is None else f", {literal(split)} AS {name(self.split_column)}"
            queries.append(
                f"SELECT {select_typed(self.row_format, self.nulls)}{own} FROM {read_text(self.row_format, paths)}"
            )
        return " UNION ALL ".join(queries)

    def _select_with_defaults(self, rows: str) -> str:
        """Return SQL that reads typed files and fills in defaults."""
        described = self.con.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()
        types = {row[0]: row[1] for row in described}
        askers = {column: "packed" for column in self.row_format.packed}
        askers |= {
            column: "defaults"
            for column in self.row_format.defaults
            if column not in self.row_format.list_packed_columns()
        }
        for column, setting in askers.items():
            if column not in types:
                near = nearest(column, types)
                hint = f", did you mean {near!r}?" if near else ""
                raise DataError(
                    self.where, f"no column {column!r} (rows.{setting}){hint}", f"one of {', '.join(types)}"
                )
        for column in self.row_format.packed:
            if types[column] != "VARCHAR":
                raise DataError(f"{self.where}: column {column!r}", f"values of type {types[column]}", "packed text")
        taken = [
            *self.row_format.list_packed_columns(),
            *([self.row_format.number] if self.row_format.number is not None else []),
        ]
        for column in taken:
            if column in types:
                raise DataError(
                    self.where, f"a column {column!r} in the rows", "an unused name for the column that rows adds"
                )
        return f"SELECT {', '.join(self._fill_default(column, kind) for column, kind in types.items())} FROM {rows}"

    def _fill_default(self, column: str, kind: str) -> str:
        quoted = name(column)
        if column not in self.row_format.defaults:
            return quoted
        value = self.row_format.defaults[column]
        if kind == "VARCHAR" and isinstance(value, str):
            return f"coalesce(nullif({quoted}, ''), {literal(value)}) AS {quoted}"
        if (kind in _INTEGERS and isinstance(value, int)) or (
            kind in ("FLOAT", "DOUBLE") and not isinstance(value, str)
        ):
            return f"coalesce({quoted}, {value!r}::{kind}) AS {quoted}"
        raise DataError(f"{self.where}: column {column!r}", f"the default {value!r}", f"a value of type {kind}")

    def _write_unpacked(self, sql: str, target: Path) -> None:
        writer: pq.ParquetWriter | None = None
        try:
            for chunk in self._chunks(sql):
                writer = writer or pq.ParquetWriter(target, chunk.schema, compression="snappy")
                writer.write_batch(chunk)
        finally:
            if writer is not None:
                writer.close()

    def _chunks(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Yield the rows with parsed packed columns. There is at least one chunk, which may be empty."""
        done = 0
        with self.con.sql(sql).to_arrow_reader(_CHUNK) as reader:
            for batch in reader:
                yield self._unpack(batch, done)
                done += len(batch)
            if not done:
                yield self._unpack(pa.RecordBatch.from_pylist([], reader.schema), 0)

    def _unpack(self, batch: pa.RecordBatch, before: int) -> pa.RecordBatch:
        fill = {column: str(value) for column, value in self.row_format.defaults.items()}
        columns = {column: batch[column] for column in batch.schema.names if column not in self.row_format.packed}
        for column, packed in self.row_format.packed.items():
            try:
                columns |= unpack(batch[column], packed, fill)
            except InvalidCell as invalid:
                raise self._cell_error(invalid, before, column, batch[column][invalid.row].as_py()) from None
        return pa.RecordBatch.from_pydict(columns)

    def _cell_error(self, invalid: InvalidCell, before: int, column: str, cell: str) -> DataError:
        shown = cell if len(cell) <= 80 else cell[:77] + "..."
        return DataError(
            f"{self._locate_row(before + invalid.row)}, column {column!r}, step {invalid.step}",
            invalid.actual,
            invalid.expected,
            f"correct the cell or rows.packed.{column}; the cell is {shown!r}",
        )

    def _locate_row(self, row: int) -> str:
        """Return the file of a row of the whole input, and the row number in the file, from 1."""
        con = self.con.cursor()  # the first one is still reading
        for path in self._paths():
            count = con.execute(f"SELECT count(*) FROM {self._scan_file(con, path)}").fetchall()[0][0]
            if row < count:
                return f"{path}, row {row + 1}"
            row -= count
        return f"{self.where}, row {row + 1}"

    def _scan_file(self, con: duckdb.DuckDBPyConnection, path: Path) -> str:
        if self.row_format.columns is not None:
            return read_text(self.row_format, [path])
        kind = get_kind(path)
        if kind == JSON:
            return read_json([path])
        if kind == PARQUET:
            return f"read_parquet({literal(str(path))})"
        import pyarrow.dataset as pads  # imports pandas where it is installed

        con.register("_one_arrow", pads.dataset(str(path), format="ipc"))
        return "_one_arrow"
