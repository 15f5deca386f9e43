"""Messy files of every sort: each is read as the truth, or refused with a way out."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from messy_files import NAMES, ROWS, SCHEMA, Maker
from messy_read import READ
from messy_refused import REFUSED

from longrec.config import parse
from longrec.data.relation import connect
from longrec.data.settings import DataConfig
from longrec.data.sorted_writer import write_sorted_log
from longrec.errors import DataError
from longrec.features.schema import Schema

PLAIN = (int, float, str)


@pytest.fixture(scope="module")
def con(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    config = DataConfig.model_validate({"log": "unused", "threads": 1})
    with connect(config, tmp_path_factory.mktemp("spill")) as opened:
        yield opened


def read(con: duckdb.DuckDBPyConnection, make: Maker, folder: Path) -> list[tuple[Any, ...]]:
    """Return the rows of the sorted log, in the order of user and time."""
    source, changes = make(folder)
    config = parse(DataConfig, {"log": source}, "job.yaml")
    schema = parse(Schema, SCHEMA | changes, "job.yaml")
    scratch = folder / "scratch"
    scratch.mkdir()
    write_sorted_log(con, config, schema, scratch, scratch / "sorted")
    table = pq.read_table(scratch / "sorted" / "events" / "part-0.parquet")
    stored = {"user": "_user", "item": "_item", "t": "_time"}
    columns = [table[stored.get(name, f"c.{name}")].to_pylist() for name in NAMES]
    return [tuple(map(plain, row)) for row in zip(*columns)]


def plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    return float(value) if isinstance(value, (bool, Decimal)) else value


def expected(changes: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for index, row in enumerate(ROWS):
        named = dict(zip(NAMES, row))
        for name, change in changes.items():
            if isinstance(change, dict):
                named[name] = change.get(named[name], named[name])
            else:
                named[name] = change(named[name]) if callable(change) else change[index]
        named["t"] = named["t"] * 1_000
        rows.append(tuple(named.values()))
    return sorted(rows, key=lambda row: (row[0], row[2]))


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_the_truth(name: str, con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    make, changes = READ[name]
    rows, truth = read(con, make, tmp_path), expected(changes)
    assert rows == truth
    kinds = [{type(value) for value in column if value is not None} for column in zip(*rows)]
    assert kinds[0] <= {int} or kinds[0] <= {str}
    assert kinds[1] <= {int}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_way_out(name: str, con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    make, says = REFUSED[name]
    with pytest.raises(DataError, match=says) as raised:
        read(con, make, tmp_path)
    assert len(str(raised.value)) < 800
    assert "read_csv" not in str(raised.value)


def test_there_are_a_hundred_of_them() -> None:
    assert len(READ) + len(REFUSED) >= 100
