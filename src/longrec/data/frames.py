"""Tables in memory as inputs: data frames, Arrow tables and DuckDB relations.

A frame is read through the Arrow PyCapsule interface, so that pandas, polars and Arrow share their memory with DuckDB.
A relation is evaluated in its own connection. The config of a run stores the record of a frame: its digest, which finds
the prepared log again after the process has ended.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from longrec.config import Strict
from longrec.data.frame_digest import compute_digest
from longrec.data.sql import literal, unreadable
from longrec.errors import DataError

if TYPE_CHECKING:
    import duckdb


class FrameRecord(Strict):
    """Record of a frame: what the config of a run stores of an input that was in memory.

    Attributes:
        kind: its class, such as ``pandas.DataFrame``.
        rows: number of rows.
        columns: names of the columns.
        digest: digest of the contents.
        role: key of the input: log, users or items.
    """

    kind: str
    rows: int
    columns: tuple[str, ...]
    digest: str
    role: str = "log"

    def scan(self, con: duckdb.DuckDBPyConnection, view: str, scratch: Path) -> str:
        """Refuse to read the rows, which were in the memory of another process.

        Raises:
            DataError: always.
        """
        raise DataError(
            str(self),
            f"{self.rows:,} rows that were in the memory of another process, and the log prepared from them is missing",
            "the prepared log, or the frame",
            "prepare it again in Python: longrec.prepare(frame, schema=...), or write the frame to a Parquet file and "
            f"set data.{self.role}",
        )

    def rename(self, role: str) -> FrameRecord:
        """Return the record under the key of another input."""
        return self.model_copy(update={"role": role})

    def __str__(self) -> str:
        return f"{self.role} ({self.kind})"


class Frame:
    """Data frame, Arrow table or DuckDB relation as an input of rows. It is not copied, and must not change meanwhile.

    Args:
        data: an object with ``__arrow_c_stream__`` that can be read several times, or a DuckDB relation.
        role: key of the input, for messages: log, users or items.
    """

    def __init__(self, data: Any, role: str = "log") -> None:
        self.data, self.role, self.kind = data, role, describe_kind(data)

    @property
    def is_relation(self) -> bool:
        """True for a DuckDB relation, which is evaluated each time it is read."""
        return _is_relation(self.data)

    @cached_property
    def table(self) -> pa.Table:
        """The frame as an Arrow table. Columns of numbers share their memory with the frame.

        Raises:
            DataError: values without an Arrow type, such as numbers and text in one column, or two columns of one name.
        """
        try:
            table = self.data if isinstance(self.data, pa.Table) else pa.table(_keep_index(self.data))
        except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:300]
            expected = "columns of one type each, with different names"
            raise DataError(str(self), f"cannot be read as an Arrow table: {reason}", expected) from None
        twice = sorted({column for column in table.column_names if table.column_names.count(column) > 1})
        if twice:
            raise DataError(str(self), f"two columns named {twice[0]!r}", "one column per name", "rename one of them")
        return table

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.data.columns if self.is_relation else self.table.column_names)

    @cached_property
    def digest(self) -> str:
        """Digest of the contents: names, types and values. Of a relation, values count in any order of the rows."""
        return self._relation_facts[1] if self.is_relation else compute_digest(self.table)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._relation_facts[0] if self.is_relation else len(self.table)

    @cached_property
    def _relation_facts(self) -> tuple[int, str]:
        """Number of rows and digest of a relation."""
        import duckdb

        try:
            # A sum, because equal rows would cancel out in an exclusive or.
            row = self.data.query("q", "SELECT count(*), sum(hash(q)) FROM q").fetchall()[0]
        except duckdb.Error as error:
            raise unreadable(str(self), error) from None
        types = [str(kind) for kind in self.data.types]
        return row[0], f"relation {list(self.columns)} {types} {row}"

    def scan(self, con: duckdb.DuckDBPyConnection, view: str, scratch: Path) -> str:
        """Return SQL that reads the rows in a connection.

        Args:
            view: name to register the frame under.
            scratch: folder for the rows of a relation, which belongs to another connection.

        Raises:
            DataError: a frame that cannot be read.
        """
        import duckdb

        if not self.is_relation:
            con.register(view, _widen(self.table))
            return view
        target = scratch / f"{view}.parquet"
        try:
            self.data.write_parquet(str(target), compression="lz4")
        except duckdb.Error as error:
            raise unreadable(str(self), error) from None
        return f"read_parquet({literal(str(target))})"

    def record(self) -> FrameRecord:
        """Return the record of the frame."""
        return FrameRecord(kind=self.kind, rows=self.rows, columns=self.columns, digest=self.digest, role=self.role)

    def rename(self, role: str) -> Frame:
        """Return the frame under the key of another input."""
        other = Frame(self.data, role)
        # What was computed before is not computed again.
        other.__dict__ |= {key: value for key, value in self.__dict__.items() if key not in other.__dict__}
        return other

    def __str__(self) -> str:
        return f"{self.role} ({self.kind})"

    __repr__ = __str__


def _widen(table: pa.Table) -> pa.Table:
    """Return a table with 16-bit floats as 32-bit floats, since DuckDB has none. Other columns are not copied."""
    for index, column in enumerate(table.schema):
        if pa.types.is_float16(column.type):
            table = table.set_column(index, column.name, table.column(index).cast(pa.float32()))
    return table


def describe_kind(data: Any) -> str:
    """Return the class of an object with its package: ``pandas.DataFrame``, ``polars.DataFrame``, ``pyarrow.Table``."""
    return f"{type(data).__module__.partition('.')[0].lstrip('_')}.{type(data).__name__}".removeprefix("builtins.")


def is_frame(value: Any) -> bool:
    """Return True for an object that can be read as a frame: with ``__arrow_c_stream__``, or a DuckDB relation."""
    return isinstance(value, (Frame, FrameRecord)) or _is_relation(value) or hasattr(value, "__arrow_c_stream__")


def _is_relation(value: Any) -> bool:
    """Return True for a DuckDB relation, without importing DuckDB."""
    package = sys.modules.get("duckdb")
    return package is not None and isinstance(value, package.DuckDBPyRelation)


def read_frame(value: Any, role: str = "log") -> Frame | FrameRecord:
    """Return the frame of a table in memory, or the record of one.

    Raises:
        ValueError: an object that cannot be read several times as rows of columns.
    """
    if isinstance(value, (Frame, FrameRecord)):
        return value.rename(role)
    kind = describe_kind(value)
    if isinstance(value, pa.RecordBatchReader):
        raise ValueError(f"is a {kind}, which can be read once; expected a table: use its read_all()")
    if kind.endswith((".Series", ".Array", ".ChunkedArray")):
        raise ValueError(f"is a {kind}, which is one column; expected a table of columns")
    if not is_frame(value):
        raise ValueError(f"is a {kind}; expected {EXPECTED}{_advise(kind)}")
    return Frame(value, role)


EXPECTED = "files, a query, a data frame (pandas, polars, Arrow), or a DuckDB relation"
"""What an input of rows may be, for messages."""


def _advise(kind: str) -> str:
    if kind == "polars.LazyFrame":
        return ": use its collect()"
    if kind == "pyspark.DataFrame":
        return ": use its toArrow(), or write it to a Parquet file, and set its path"
    if kind == "pandas.DataFrame":
        return ": update pandas to 2.2 or newer, or use pyarrow.Table.from_pandas"
    return ": write it to a Parquet file, and set its path"


def _keep_index(data: Any) -> Any:
    """Return a pandas frame with the named levels of its index as columns. Other frames stay as they are."""
    names = [name for name in getattr(getattr(data, "index", None), "names", ()) if name is not None]
    return data.reset_index() if names and not set(names) & set(data.columns) else data
