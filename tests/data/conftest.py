"""Small logs, written and prepared in a folder of their own."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import parse
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.errors import DataError
from longrec.features.schema import Schema

sys.path.insert(0, str(Path(__file__).parent))  # for small_logs, which test modules share
from small_logs import SCHEMA

Prepared = Callable[..., Log]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """``prepared(log, schema, users=, items=, as_of=, **data)``: write tables as Parquet, prepare them, open the log.

    ``as_of`` names the column that dates the rows of a table: ``{"items": "since"}``.
    """
    root = tmp_path_factory.mktemp("prepared")
    number = itertools.count()

    def make(
        log: pa.Table,
        schema: dict[str, Any],
        *,
        users: pa.Table | None = None,
        items: pa.Table | None = None,
        as_of: dict[str, str] | None = None,
        **data: Any,
    ) -> Log:
        folder = root / str(next(number))
        folder.mkdir()
        for name, table in (("log", log), ("users", users), ("items", items)):
            if table is not None:
                pq.write_table(table, folder / f"{name}.parquet")
                data[name] = str(folder / f"{name}.parquet")
                if name in (as_of or {}):
                    data[name] = {"files": data[name], "as_of": (as_of or {})[name]}
        config = DataConfig.model_validate({"folder": str(folder / "prepared"), "threads": 1, **data})
        return Log.open(prepare(config, Schema.model_validate(schema)))

    return make


@pytest.fixture(scope="session")
def leftovers() -> Callable[[Path], list[str]]:
    """Names of all files below a folder, hidden ones too."""

    def look(folder: Path) -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    return look


@pytest.fixture(scope="session")
def refused(leftovers: Callable[[Path], list[str]]) -> Callable[..., None]:
    """``refused(folder, data, changes, says)``: preparing raises a DataError that says so, and leaves nothing."""

    def check(folder: Path, data: dict[str, Any], changes: dict[str, Any], says: str) -> None:
        config = parse(DataConfig, {"folder": str(folder / "prepared"), "threads": 1, **data}, "job.yaml")
        schema = parse(Schema, SCHEMA | changes, "job.yaml")
        with pytest.raises(DataError, match=says) as raised:
            prepare(config, schema)
        error = raised.value
        assert error.where
        assert error.found
        assert error.expected
        assert len(str(error)) < 800  # fits on a screen
        assert "SELECT * FROM read_" not in str(error)  # and speaks of the source, not of us
        assert leftovers(folder / "prepared") == []

    return check
