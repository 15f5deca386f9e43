"""Results that have rows: shown as a table in notebooks and terminals, and read as a frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Columns = Mapping[str, Sequence[Any]]


class Tabular(ABC):
    """Base class of results with rows and columns.

    Polars, pandas and DuckDB read one through the Arrow PyCapsule interface: ``polars.DataFrame(comparison)``.
    """

    @abstractmethod
    def to_columns(self) -> Columns:
        """Return the columns by name, all of one length."""

    def shown(self) -> tuple[str, Columns]:
        """Return a caption, and the columns as text that a notebook shows. Default: those of ``to_columns``."""
        return type(self).__name__, {name: list(map(format_cell, own)) for name, own in self.to_columns().items()}

    def to_arrow(self) -> Any:
        """Return the rows as a ``pyarrow.Table``."""
        import pyarrow as pa

        return pa.table({name: list(values) for name, values in self.to_columns().items()})

    def to_pandas(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``. It needs pandas."""
        return self.to_arrow().to_pandas()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return format_table(*self.shown())

    def _repr_html_(self) -> str:
        return format_html(*self.shown())


def format_path(path: Path) -> str:
    """Return a path, relative to the working directory if it is inside."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def format_rows(rows: int, users: int) -> str:
    """Return the numbers of rows and of their users, which are left out if each has one row.

    >>> format_rows(1200, 30), format_rows(5, 5)
    ('1,200 rows of 30 users', '5 rows')
    """
    return f"{rows:,} rows" if rows == users else f"{rows:,} rows of {users:,} users"


def format_cell(value: Any) -> str:
    """Return a value as text: four decimals of a number, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_table(caption: str, columns: Columns) -> str:
    """Return a caption and columns of text as aligned lines: the first column to the left, the others to the right."""
    cells = [[name, *map(str, values)] for name, values in columns.items()]
    if not cells:
        return caption
    widths = [max(map(len, column)) for column in cells]
    lines = []
    for row in zip(*cells):
        aligned = [
            value.rjust(width) if at else value.ljust(width) for at, (value, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join([caption, *lines])


def format_html(caption: str, columns: Columns) -> str:
    """Return a caption and columns of text as an HTML table, without scripts."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in zip(*columns.values())
    )
    lines = escape(caption).replace("\n", "<br>")
    wide = "<div style='overflow-x: auto'>"
    return f"{wide}<p>{lines}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
