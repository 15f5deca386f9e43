"""Format of the rows of files: ``rows`` of a source.

``file_reader.py`` reads it, ``packed_cells.py`` parses packed cells.
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
    """Format of a cell that holds several features per step: ``name:value#name:value;name:value#...``.

    ``into`` gives each name its list column. A step that lacks a name, or its value, holds the default of that column
    (null unless given); an empty step is none; names in ``ignore`` are passed over; anything else is refused.
    """

    into: dict[str, str] = Setting(min_length=1)
    step: str = Setting(";", min_length=1)
    feature: str = Setting("#", min_length=1)
    name: str = Setting(":", min_length=1)
    ignore: tuple[str, ...] = ()

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
                    f"the name {name!r} " + (f"holds the separator {contained!r}" if contained else "is empty")
                )
        if len(set(self.into.values())) < len(self.into):
            raise ValueError("into gives two names one column")
        both = sorted(set(self.into) & set(self.ignore))
        if both:
            raise ValueError(f"{both[0]!r} is in into and in ignore")
        return self


class FileFormat(Strict):
    """Columns, types, defaults and packed cells of the rows of files.

    With ``columns`` the files are text, whatever they are called: one row a line (a quoted cell may hold line ends),
    cells in the order of ``columns``. Without it they are Parquet or Arrow, which know their columns.
    """

    columns: dict[str, KindT] | None = Setting(None, min_length=1)
    header: bool = Setting(False, description="the first line of every file names the columns")
    separator: str = Setting(",", min_length=1)
    quote: str | None = Setting('"', description="one character around a cell that holds the separator; null: none")
    defaults: dict[str, ValueT] = Setting({}, description="what a null or empty cell of a column counts as")
    packed: dict[str, PackedCells] = Setting({}, description="columns whose cells are sequences, by name")
    number: str | None = Setting(None, description="a column more: 0, 1, ... over all files in their order")

    @model_validator(mode="after")
    def _fits(self) -> FileFormat:
        faults = [*self._text_faults(), *self._name_faults(), *self._default_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def list_packed_columns(self) -> dict[str, str]:
        """Return each list column that a packed column yields -> that packed column."""
        return {column: cell for cell, packed in self.packed.items() for column in packed.into.values()}

    def _text_faults(self) -> list[str]:
        if self.columns is None:
            text_settings = self.model_fields_set & {"header", "separator", "quote"}
            return [f"{key} is for text files, whose columns must be given" for key in sorted(text_settings)]
        faults = []
        if len(self.separator.encode()) > 4:
            faults.append(f"separator {self.separator!r} is longer than 4 bytes, which text files are not read with")
        if {"\n", "\r"} & set(self.separator):
            faults.append("separator holds a line end, which ends a row")
        if self.quote is not None and len(self.quote.encode()) != 1:
            faults.append(f"quote must be one ASCII character, or null; got {self.quote!r}")
        elif self.quote is not None and self.quote in self.separator:
            faults.append(f"quote {self.quote!r} is contained in separator {self.separator!r}")
        return faults

    def _name_faults(self) -> list[str]:
        faults = []
        for cell in self.packed:
            kind = "text" if self.columns is None else self.columns.get(cell)
            if kind is None:
                faults.append(f"packed: no column {cell!r} in columns")
            elif kind != "text":
                faults.append(f"packed: column {cell!r} must be text, is {kind}")
        # The engine does not distinguish names by case.
        taken: dict[str, str] = {}
        for column in self.columns or self.packed:
            if column.lower() in taken:
                faults.append(f"columns: {taken[column.lower()]!r} and {column!r} differ in case alone")
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
