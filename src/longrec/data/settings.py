"""The ``data`` section of a config: where events come from and how they are split."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Setting

from longrec.config import Strict


def _text(value: Any) -> Any:
    """A moment that YAML reads as a number (a step, or 20260131) is text all the same."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


MomentT = Annotated[str | None, BeforeValidator(_text)]


class Split(Strict):
    """How rows become train, valid and test.

    ``time`` draws one global line: by shares of the rows (``valid``, ``test``), by whole days from the end
    (``valid_days``, ``test_days``), or from given moments (``valid_from``, ``test_from``).
    Rows that share a moment stay together. ``user`` puts whole users into one part. ``leave_one_out`` tests on
    each user's last row and validates on the one before. ``column`` reads train, valid, test from a column.
    """

    by: Literal["time", "user", "leave_one_out", "column"] = "time"
    valid: float = Setting(0.1, ge=0, lt=1)
    test: float = Setting(0.1, ge=0, lt=1)
    valid_days: float | None = Setting(None, gt=0)
    test_days: float | None = Setting(None, gt=0)
    valid_from: MomentT = None
    test_from: MomentT = None
    column: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Split:
        given = self.model_fields_set - {"by"}
        allowed = {
            "time": {"valid", "test", "valid_days", "test_days", "valid_from", "test_from"},
            "user": {"valid", "test", "seed"},
            "leave_one_out": set(),
            "column": {"column"},
        }[self.by]
        if given - allowed:
            raise ValueError(f"a split by {self.by} takes no {', '.join(sorted(given - allowed))}")
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} leave nothing to train on")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("column names the split column of a split by column")
        ways = [{"valid", "test"} & given, {"valid_days", "test_days"} & given, {"valid_from", "test_from"} & given]
        if sum(map(bool, ways)) > 1:
            raise ValueError("shares, days and moments cannot be mixed")
        if (self.valid_from is not None and self.test_from is None) or (
            self.valid_days is not None and self.test_days is None
        ):
            raise ValueError("say where test begins too")
        return self


class Source(Strict):
    """Where rows come from: files (Parquet, CSV, Arrow; a glob works) or a DuckDB query."""

    files: tuple[str, ...] | None = Setting(None, min_length=1)
    query: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.files is None) == (self.query is None):
            raise ValueError("needs exactly one of files, query")
        return self

    def __str__(self) -> str:
        return ", ".join(self.files) if self.files else f"query {self.query!r}"


def _source(value: Any) -> Any:
    if isinstance(value, str):
        return {"files": [value]}
    return {"files": value} if isinstance(value, list) else value


SourceT = Annotated[Source, BeforeValidator(_source)]


def _size(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", value):
        raise ValueError(f"must be a size such as '500MB' or '2GB', got {value!r}")
    return value


class DataConfig(Strict):
    """What to read. ``schema`` is a path (beside the config) or the schema itself; it is resolved by the job."""

    log: SourceT
    users: Annotated[Source | None, BeforeValidator(_source)] = None
    items: Annotated[Source | None, BeforeValidator(_source)] = None
    split: Split = Split()
    folder: str = Setting("prepared", description="where prepared logs are kept, one folder a fingerprint")
    memory: Annotated[str, BeforeValidator(_size)] = Setting(
        "400MB", description="memory the sort may use before it spills to disk"
    )
    threads: int = Setting(2, ge=1)
