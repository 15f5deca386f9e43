"""The ``data`` section of a config: the sources of events and their split. Formats: ``file_format.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.data.file_format import FileFormat
from longrec.features.schema import Schema


def _text(value: Any) -> Any:
    """Return a timestamp that YAML reads as a number (a step, or 20260131) as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


TimestampT = Annotated[str | None, BeforeValidator(_text)]


class Split(Strict):
    """Rule that splits rows into train, valid and test.

    ``time`` draws one global line: by shares of the rows (``valid``, ``test``), by whole days from the end
    (``valid_days``, ``test_days``), or from timestamps (``valid_from``, ``test_from``).
    Rows that share a timestamp stay together. ``user`` puts whole users into one split. ``leave_one_out`` tests on
    each user's last row and validates on the one before. ``column`` reads train, valid, test from a column.
    ``files`` puts each row into the split whose files it came from (``log.splits``); files of train, valid and test
    follow each other in time unless ``allow_overlap``.
    """

    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"by": {"parts": "files"}}

    by: Literal["time", "user", "leave_one_out", "column", "files"] = "time"
    valid: float = Setting(0.1, ge=0, lt=1)
    test: float = Setting(0.1, ge=0, lt=1)
    valid_days: float | None = Setting(None, gt=0)
    test_days: float | None = Setting(None, gt=0)
    valid_from: TimestampT = None
    test_from: TimestampT = None
    column: str | None = None
    allow_overlap: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Split:
        set_fields = self.model_fields_set - {"by"}
        allowed = {
            "time": {"valid", "test", "valid_days", "test_days", "valid_from", "test_from"},
            "user": {"valid", "test", "seed"},
            "leave_one_out": set(),
            "column": {"column"},
            "files": {"allow_overlap"},
        }[self.by]
        if set_fields - allowed:
            raise ValueError(f"a split by {self.by} takes no {', '.join(sorted(set_fields - allowed))}")
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} leave nothing to train on")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("column names the split column of a split by column")
        ways = [
            {"valid", "test"} & set_fields,
            {"valid_days", "test_days"} & set_fields,
            {"valid_from", "test_from"} & set_fields,
        ]
        if sum(map(bool, ways)) > 1:
            raise ValueError("shares, days and timestamps cannot be mixed")
        if (self.valid_from is not None and self.test_from is None) or (
            self.valid_days is not None and self.test_days is None
        ):
            raise ValueError("say where test begins too")
        return self


def _files(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FilesT = Annotated[tuple[str, ...], BeforeValidator(_files), Setting(min_length=1)]


class SplitFiles(Strict):
    """Files per split (names or globs, one or several). Train is required, and one more to measure on."""

    train: FilesT
    valid: FilesT | None = None
    test: FilesT | None = None

    @model_validator(mode="after")
    def _fits(self) -> SplitFiles:
        if self.valid is None and self.test is None:
            raise ValueError("needs files for valid or for test, to measure on")
        return self

    def each(self) -> dict[str, tuple[str, ...]]:
        """Return the splits that have files, in the order train, valid, test."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: files for split, files in named.items() if files}


class Source(Strict):
    """Source of rows: files (Parquet, CSV, Arrow, globs), files by split, or a DuckDB query.

    ``rows`` says how the rows of the files are laid out; without it text files name their columns in the first line.
    ``as_of`` gives a table of users or items versions: the column that says since when each row holds.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"parts": "splits"}

    files: Annotated[tuple[str, ...] | None, BeforeValidator(_files)] = Setting(None, min_length=1)
    splits: SplitFiles | None = None
    query: str | None = None
    rows: FileFormat | None = None
    as_of: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if sum(source is not None for source in (self.files, self.splits, self.query)) != 1:
            raise ValueError("needs exactly one of files, splits, query")
        if self.rows is not None and self.query is not None:
            raise ValueError("rows is for files; a query lays out its rows itself")
        return self

    def patterns(self) -> tuple[str, ...]:
        """Return every file or glob, split after split. A query has none."""
        return sum(self.splits.each().values(), ()) if self.splits is not None else self.files or ()

    def map_paths(self, map_path: Callable[[str], str]) -> Source:
        """Return the same source with every path passed through ``map_path``."""
        if self.splits is not None:
            mapped = {split: tuple(map(map_path, files)) for split, files in self.splits.each().items()}
            return self.model_copy(update={"splits": SplitFiles(**mapped)})
        return self if self.files is None else self.model_copy(update={"files": tuple(map(map_path, self.files))})

    def __str__(self) -> str:
        if self.splits is not None:
            return "; ".join(f"{split}: {', '.join(files)}" for split, files in self.splits.each().items())
        return ", ".join(self.files) if self.files else f"query {self.query!r}"


def _source(value: Any) -> Any:
    if isinstance(value, str):
        return {"files": [value]}
    if type(value).__module__.partition(".")[0] in (
        "pyarrow",
        "pandas",
        "polars",
        "numpy",
        "duckdb",
        "_duckdb",
        "pyspark",
    ):
        kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        raise ValueError(
            f"is a {kind} in memory; expected files or a query: write it to a Parquet file, and give its name"
        )
    return {"files": value} if isinstance(value, list) else value


SourceT = Annotated[Source, BeforeValidator(_source)]


def _size(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", value):
        raise ValueError(f"must be a size such as '500MB' or '2GB', got {value!r}")
    return value


class DataConfig(Strict):
    """The data to read. ``schema`` is a path (beside the config) or the schema itself, resolved by the job."""

    log: SourceT
    users: Annotated[Source | None, BeforeValidator(_source)] = None
    items: Annotated[Source | None, BeforeValidator(_source)] = None
    split: Split = Split()
    weights: tuple[str, ...] = Setting(
        (), description="columns of sample weights kept beside the rows; those that fit and evaluate name are added"
    )
    folder: str = Setting("prepared", description="where prepared logs are kept, one folder a fingerprint")
    memory: Annotated[str, BeforeValidator(_size)] = Setting(
        "400MB", description="memory the sort may use before it spills to disk"
    )
    threads: int = Setting(2, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        for role, table in (("users", self.users), ("items", self.items)):
            if table is not None and table.splits is not None:
                raise ValueError(f"{role}: splits is for the log alone; name the files of a table")
        if self.log.as_of is not None:
            raise ValueError("log.as_of: as_of is for users and items; the schema's time is the timestamp of an event")
        if (self.log.splits is not None) != (self.split.by == "files"):
            raise ValueError("log.splits and split {by: files} go together: one names the files, the other reads them")
        return self


def as_of_faults(config: DataConfig, schema: Schema) -> list[str]:
    """Return the faults of the ``as_of`` of users and items under a schema, one line each."""
    faults = []
    for role, table, key in (("users", config.users, schema.user), ("items", config.items, schema.item)):
        if table is None or table.as_of is None:
            continue
        if schema.time is None:
            faults.append(f"{role}.as_of: needs the schema's time column, which says when an impression was")
        if table.as_of == key:
            faults.append(f"{role}.as_of: {key!r} is the key of the table; name the column that dates its rows")
    return faults
