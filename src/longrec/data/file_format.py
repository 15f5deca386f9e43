"""Row format of input files: the config key ``rows`` of an input.

``file_reader.py`` reads files of this format, and ``packed_cells.py`` parses packed cells.
"""

from __future__ import annotations

from itertools import permutations
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Setting

from longrec.config import Strict

KindT = Literal["int", "float", "text"]


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a number or text, got {value!r}")
    return value


ValueT = Annotated[int | float | str, BeforeValidator(_plain)]


class PackedCells(Strict):
    """Format of a cell with a sequence of steps, several features each: ``name:value#name:value;name:value#...``.

    ``into`` maps each name to its list column. If a step lacks a name or its value, the default of that column is used
    (null if not set). Empty steps and names in ``ignore`` are skipped. Anything else is an error.
    """

    into: dict[str, str] = Setting(min_length=1, description="list column of each name in the cell")
    step: str = Setting(";", min_length=1, description="separator between steps")
    feature: str = Setting("#", min_length=1, description="separator between the features of a step")
    name: str = Setting(":", min_length=1, description="separator between a name and its value")
    ignore: tuple[str, ...] = Setting((), description="names to skip")

    @model_validator(mode="after")
    def _fits(self) -> PackedCells:
        marks = {"step": self.step, "feature": self.feature, "name": self.name}
        for (one, mark), (two, other) in permutations(marks.items(), 2):
            if mark in other:
                raise ValueError(f"the separators must differ: {one} {mark!r} is contained in {two} {other!r}")
        for name in (*self.into, *self.ignore):
            contained = next((mark for mark in marks.values() if mark in name), None)
            if not name or contained:
                raise ValueError(
                    f"the name {name!r} " + (f"contains the separator {contained!r}" if contained else "is empty")
                )
        if len(set(self.into.values())) < len(self.into):
            raise ValueError("into maps two names to one column")
        both = sorted(set(self.into) & set(self.ignore))
        if both:
            raise ValueError(f"{both[0]!r} is in into and in ignore")
        return self


class FileFormat(Strict):
    """Columns, types, defaults and packed cells of the rows of input files.

    With ``columns`` the files are text, regardless of their names: one row per line (a quoted cell may contain line
    ends), cells in the order of ``columns``. Without it they are Parquet or Arrow, which store their columns.
    """

    columns: dict[str, KindT] | None = Setting(
        None,
        min_length=1,
        description=(
            "type of each cell of a row, in their order; the files are then text; default: files declare their columns"
        ),
    )
    header: bool = Setting(False, description="the first line of every file is the column names")
    separator: str = Setting(",", min_length=1, description="separator between cells, at most four bytes")
    quote: str | None = Setting('"', description="quote character of cells that contain the separator; null for none")
    escape: str | None = Setting(
        None, description="character before a quote inside a quoted cell, such as a backslash; default: the quote"
    )
    defaults: dict[str, ValueT] = Setting({}, description="value for null or empty cells, per column")
    packed: dict[str, PackedCells] = Setting({}, description="columns with packed cells, by name")
    number: str | None = Setting(
        None, description="name of an additional column with the row number, 0, 1, ... over all files"
    )

    @model_validator(mode="after")
    def _fits(self) -> FileFormat:
        faults = [*self._text_faults(), *self._name_faults(), *self._default_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def list_packed_columns(self) -> dict[str, str]:
        """Return a dict from each list column to the packed column it is parsed from."""
        return {column: cell for cell, packed in self.packed.items() for column in packed.into.values()}

    def _text_faults(self) -> list[str]:
        if self.columns is None:
            text_settings = self.model_fields_set & {"header", "separator", "quote", "escape"}
            return [f"{key} is for text files, whose columns must be given" for key in sorted(text_settings)]
        faults = []
        if len(self.separator.encode()) > 4:
            faults.append(f"separator {self.separator!r} is longer than 4 bytes, which is not supported")
        if {"\n", "\r"} & set(self.separator):
            faults.append("separator contains a line end, which ends a row")
        if self.quote is not None and len(self.quote.encode()) != 1:
            faults.append(f"quote must be one ASCII character, or null; got {self.quote!r}")
        elif self.quote is not None and self.quote in self.separator:
            faults.append(f"quote {self.quote!r} is contained in separator {self.separator!r}")
        if self.escape is not None and (len(self.escape.encode()) != 1 or self.escape in self.separator):
            faults.append(f"escape must be one ASCII character that is not in the separator; got {self.escape!r}")
        elif self.escape is not None and self.quote is None:
            faults.append("escape is for quoted cells, and quote is null")
        return faults

    def _name_faults(self) -> list[str]:
        faults = []
        for cell in self.packed:
            kind = "text" if self.columns is None else self.columns.get(cell)
            if kind is None:
                faults.append(f"packed: no column {cell!r} in columns")
            elif kind != "text":
                faults.append(f"packed: column {cell!r} must be text, is {kind}")
        # DuckDB names are case-insensitive.
        taken: dict[str, str] = {}
        for column in self.columns or self.packed:
            if column.lower() in taken:
                faults.append(f"columns: {taken[column.lower()]!r} and {column!r} differ only in case")
            taken.setdefault(column.lower(), column)
        packed_columns = [("packed", column) for packed in self.packed.values() for column in packed.into.values()]
        for setting, column in [*packed_columns, *([("number", self.number)] if self.number is not None else [])]:
            if column.lower() in taken:
                faults.append(f"{setting}: there is a column {taken[column.lower()]!r} already")
            taken.setdefault(column.lower(), column)
        return faults

    def _default_faults(self) -> list[str]:
        faults, packed_columns = [], self.list_packed_columns()
        for column, value in self.defaults.items():
            if column in self.packed:
                faults.append(
                    f"defaults: {column!r} is packed; give defaults to {', '.join(self.packed[column].into.values())}"
                )
            elif column in packed_columns or self.columns is None:
                continue
            elif column not in self.columns:
                faults.append(f"defaults: no column {column!r}")
            else:
                wanted = {"int": (int,), "float": (int, float), "text": (str,)}[self.columns[column]]
                if type(value) not in wanted:
                    faults.append(f"defaults: {column!r} is {self.columns[column]}, and {value!r} is not")
        return faults
