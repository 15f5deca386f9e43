"""Settings of the ``data`` section of a config: input files and their split. Row formats: ``file_format.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, ValidationInfo, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.data.file_format import FileFormat
from longrec.data.frames import Frame, FrameRecord, is_frame, read_frame
from longrec.features.schema import Schema
from longrec.signatures import show_keys


def _text(value: Any) -> Any:
    """Return a timestamp that YAML parses as a number (a step, or 20260131) as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


TimestampT = Annotated[str | None, BeforeValidator(_text)]


@show_keys
class Split(Strict):
    """Rule that splits rows into train, valid and test.

    ``time`` uses the same cutoff timestamps for all users: from shares of the rows (``valid``, ``test``), from days
    before the end (``valid_days``, ``test_days``), or as given (``valid_from``, ``test_from``).
    Rows with equal timestamps stay together. ``user`` puts whole users into one split. ``leave_one_out`` tests on
    each user's last row and validates on the one before. ``column`` reads train, valid, test from a column.
    ``files`` assigns each row to the split of its file (``log.splits``). The files of train, valid and test must follow
    each other in time unless ``allow_overlap`` is set.
    """

    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"by": {"parts": "files"}}

    by: Literal["time", "user", "leave_one_out", "column", "files"] = Setting(
        "time",
        description=(
            "time: the same cut for all users; user: whole users; leave_one_out: the last row of each "
            "user is test, the one before valid; column; files: as log.splits lists them"
        ),
    )
    valid: float = Setting(0.1, ge=0, lt=1, description="time: share of the rows in valid; user: share of the users")
    test: float = Setting(0.1, ge=0, lt=1, description="time: share of the rows in test; user: share of the users")
    valid_days: float | None = Setting(None, gt=0, description="time: whole days before the test days")
    test_days: float | None = Setting(None, gt=0, description="time: whole days from the end")
    valid_from: TimestampT = Setting(None, description="time: first timestamp of valid, ISO 8601 or as in the log")
    test_from: TimestampT = Setting(None, description="time: first timestamp of test")
    column: str | None = Setting(None, description="column: the column with train, valid or test")
    allow_overlap: bool = Setting(
        False,
        description="files: allow files of train, valid and test to overlap in time; results then contain a warning",
    )
    seed: int = Setting(0, description="user: seed of the random selection of users")

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
            raise ValueError("a split by column needs column")
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
            raise ValueError("set the start of test too")
        return self


def _files(value: Any) -> Any:
    """Return one path or several as a list of text."""
    if isinstance(value, (str, Path)):
        return [str(value)]
    return [str(path) if isinstance(path, Path) else path for path in value] if isinstance(value, list) else value


FilesT = Annotated[tuple[str, ...], BeforeValidator(_files), Setting(min_length=1)]


class SplitFiles(Strict):
    """Files per split (paths or globs, one or several). Train is required, and valid or test."""

    train: FilesT = Setting(description="files of train: paths or globs")
    valid: FilesT | None = Setting(None, description="files of valid")
    test: FilesT | None = Setting(None, description="files of test")

    @model_validator(mode="after")
    def _fits(self) -> SplitFiles:
        if self.valid is None and self.test is None:
            raise ValueError("needs files for valid or for test, to measure on")
        return self

    def each(self) -> dict[str, tuple[str, ...]]:
        """Return the files of each split that has some, in the order train, valid, test."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: files for split, files in named.items() if files}


def _check_null_texts(value: Any) -> Any:
    if value is None or (isinstance(value, (list, tuple)) and None in value):
        raise ValueError("must be a list of texts, got a null: write the text in quotes, such as ['null', '~']")
    odd = next((one for one in value if not isinstance(one, str)), None) if isinstance(value, (list, tuple)) else None
    if odd is not None:
        raise ValueError(f"must be a list of texts, got {odd!r}: write it in quotes")
    return [value] if isinstance(value, str) else value


def _frame(value: Any) -> Any:
    return value if value is None or isinstance(value, (Mapping, Frame, FrameRecord)) else read_frame(value)


def _dump_frame(value: Frame | FrameRecord | None) -> dict[str, Any] | None:
    record = value.record() if isinstance(value, Frame) else value
    return None if record is None else record.model_dump(mode="json")


FrameT = Annotated[Frame | FrameRecord | None, BeforeValidator(_frame), PlainSerializer(_dump_frame)]


@show_keys
class Source(Strict):
    """Input of rows: files (Parquet, CSV, JSON, Arrow, globs), files per split, a DuckDB query, or a frame.

    ``frame`` is a table in memory, in Python only: a pandas or polars data frame, an Arrow table, any other object with
    ``__arrow_c_stream__``, or a DuckDB relation.
    ``rows`` is the row format of the files. Without it, the first line of text files is the column names. Of a frame it
    has defaults and packed cells only.
    ``nulls`` lists texts that mean a missing value, in every column of text.
    ``as_of`` is the column of a user or item table with the timestamp from which each row (version) is valid.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"parts": "splits"}

    model_config = ConfigDict(arbitrary_types_allowed=True)

    files: Annotated[tuple[str, ...] | None, BeforeValidator(_files)] = Setting(
        None,
        min_length=1,
        description="files, globs or folders (Parquet, CSV, JSON lines, Arrow); a path or a list alone is short for it",
    )
    splits: SplitFiles | None = Setting(
        None, description="instead of files: files per split, with data.split {by: files}"
    )
    query: str | None = Setting(None, description="instead of files: a query that DuckDB runs")
    frame: FrameT = Setting(None, description="instead of files: a table in memory, in Python only")
    rows: FileFormat | None = Setting(
        None, description="format of the rows of the files; default: files name their columns"
    )
    nulls: Annotated[tuple[str, ...], BeforeValidator(_check_null_texts)] = Setting(
        (), description="texts that mean a missing value, such as NULL; an empty cell always does"
    )
    as_of: str | None = Setting(
        None, description="of users and items: column of the time from which each row (version) is valid"
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        if sum(source is not None for source in (self.files, self.splits, self.query, self.frame)) != 1:
            raise ValueError("needs exactly one of files, splits, query, frame")
        if self.rows is not None and self.query is not None:
            raise ValueError("rows is for files; a query returns typed columns")
        if self.rows is not None and self.rows.columns is not None and self.frame is not None:
            raise ValueError("rows.columns is for text files; a frame has typed columns")
        return self

    def patterns(self) -> tuple[str, ...]:
        """Return all files and globs in the order of the splits. A query and a frame have none."""
        return sum(self.splits.each().values(), ()) if self.splits is not None else self.files or ()

    def map_paths(self, map_path: Callable[[str], str]) -> Source:
        """Return a copy of the input with ``map_path`` applied to every path."""
        if self.splits is not None:
            mapped = {split: tuple(map(map_path, files)) for split, files in self.splits.each().items()}
            return self.model_copy(update={"splits": SplitFiles(**mapped)})
        return self if self.files is None else self.model_copy(update={"files": tuple(map(map_path, self.files))})

    def __str__(self) -> str:
        if self.splits is not None:
            return "; ".join(f"{split}: {', '.join(files)}" for split, files in self.splits.each().items())
        if self.frame is not None:
            return str(self.frame)
        return ", ".join(self.files) if self.files else f"query {self.query!r}"


def _source(value: Any, info: ValidationInfo) -> Any:
    """Return an input as a mapping, or as it is: paths are files, and a table in memory is a frame."""
    role = info.field_name or "log"
    if isinstance(value, (str, Path, list)):
        return {"files": value}
    if isinstance(value, Source):
        return value if value.frame is None else value.model_copy(update={"frame": value.frame.rename(role)})
    if isinstance(value, Mapping):
        frame = value.get("frame")
        return {**value, "frame": read_frame(frame, role)} if frame is not None and is_frame(frame) else value
    if value is None or isinstance(value, (int, float)):
        return value
    return {"frame": read_frame(value, role)}


SourceT = Annotated[Source, BeforeValidator(_source)]
OptionalSourceT = Annotated[Source | None, BeforeValidator(_source)]


def _size(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", value):
        raise ValueError(f"must be a size such as '500MB' or '2GB', got {value!r}")
    return value


class DataConfig(Strict):
    """Input data of a job, and settings of its preparation.

    ``schema`` is a path (relative to the config) or the schema itself, resolved by the job.
    """

    log: SourceT = Setting(description='the events: a file, a glob, a list of them, or {query: "SELECT ..."}')
    users: OptionalSourceT = Setting(None, description="table with one row per user, or per version of it")
    items: OptionalSourceT = Setting(None, description="table with one row per item, or per version of it")
    split: Split = Setting(Split(), description="rule that splits rows into train, valid and test")
    weights: tuple[str, ...] = Setting(
        (),
        description="columns to keep as sample weights; fit.sample_weight and evaluate.sample_weight are added",
    )
    folder: str = Setting("prepared", description="folder of the prepared logs, with one folder per fingerprint")
    memory: Annotated[str, BeforeValidator(_size)] = Setting(
        "400MB", description="memory the sort may use before it spills to disk"
    )
    threads: int = Setting(2, ge=1, description="threads of the sort")

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        for role, table in (("users", self.users), ("items", self.items)):
            if table is not None and table.splits is not None:
                raise ValueError(f"{role}: splits is only for the log; use files for a table")
        if self.log.as_of is not None:
            raise ValueError("log.as_of: as_of is for users and items; the schema's time is the timestamp of an event")
        if (self.log.splits is not None) != (self.split.by == "files"):
            raise ValueError("log.splits and split {by: files} must be used together")
        return self


def find_schema_faults(config: DataConfig, schema: Schema) -> list[str]:
    """Return one message per setting of the data section that needs a column which the schema does not name."""
    faults, rule = [], config.split
    for role, table, key in (("users", config.users, schema.user), ("items", config.items, schema.item)):
        if table is None:
            continue
        if key is None:
            faults.append(f"{role}: a table needs its key; set {role[:-1]} in the schema, or leave the table out")
        if table.as_of is None:
            continue
        if schema.time is None:
            faults.append(f"{role}.as_of: needs a time column in the schema, to compare with the time of impressions")
        if table.as_of == key:
            faults.append(
                f"{role}.as_of: {key!r} is the key of the table; use the column with the timestamp of its rows"
            )
    if rule.by == "time" and schema.time is None:
        way = "user, which puts whole users" if schema.user is not None else "user, which without a user puts rows"
        faults.append(
            f"split: by time needs the time column of the schema; set by: {way} at random into splits, or by: column "
            "or files"
        )
    if rule.by == "leave_one_out" and schema.user is None:
        faults.append("split: leave_one_out tests on the last row of each user, and the schema has no user")
    return faults
