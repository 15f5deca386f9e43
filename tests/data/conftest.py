"""Small logs, written and prepared in a folder of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.features.schema import Schema

torch.set_num_threads(1)

Prepared = Callable[..., Log]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """``prepared(log, schema, users=, items=, **data)``: write tables as Parquet, prepare them, open the log."""
    root = tmp_path_factory.mktemp("prepared")
    number = itertools.count()

    def make(
        log: pa.Table,
        schema: dict[str, Any],
        *,
        users: pa.Table | None = None,
        items: pa.Table | None = None,
        **data: Any,
    ) -> Log:
        folder = root / str(next(number))
        folder.mkdir()
        for name, table in (("log", log), ("users", users), ("items", items)):
            if table is not None:
                pq.write_table(table, folder / f"{name}.parquet")
                data[name] = str(folder / f"{name}.parquet")
        config = DataConfig.model_validate({"folder": str(folder / "prepared"), "threads": 1, **data})
        return Log.open(prepare(config, Schema.model_validate(schema)))

    return make


@pytest.fixture(scope="session")
def leftovers() -> Callable[[Path], list[str]]:
    """Names of all files below a folder, hidden ones too."""

    def look(folder: Path) -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    return look
