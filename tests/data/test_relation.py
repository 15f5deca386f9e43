"""One log, many ways to write it down: the prepared log is the same."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.features.batch import Batch, Jagged
from longrec.features.schema import Schema

N, START = 60, 1_600_000_000
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t"},
    "label": {"column": "stars", "at_least": 4},
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "page": {"kind": "id"},
        "price": {"kind": "numeric"},
        "hour": {"kind": "calendar"},
        "stars": {"kind": "id", "feedback": True},
    },
    "histories": {"rated": {"features": ["item", "stars", "time_gap"], "max_length": 5}},
}


def rows() -> pa.Table:
    random = np.random.default_rng(1)
    page = random.choice(["home", "find", "späť"], N)
    return pa.table(
        {
            "user": random.integers(0, 5, N),
            "item": [f"i{n}" for n in random.integers(0, 9, N)],
            "t": START + random.integers(0, 40, N) * 3_600,
            "stars": random.integers(1, 6, N),
            "page": pa.array(page, mask=random.random(N) < 0.2),
            "price": pa.array(random.integers(0, 9, N) / 2, mask=random.random(N) < 0.2),
        }
    )


def opened(folder: Path, log: Any, **data: Any) -> Log:
    config = DataConfig.model_validate({"log": log, "folder": str(folder / "prepared"), "threads": 1, **data})
    return Log.open(prepare(config, Schema.model_validate(SCHEMA)))


def content(batch: Batch) -> dict[str, Any]:
    columns = {
        **batch.features,
        **{f"{h}.{n}": c for h, own in batch.histories.items() for n, c in own.columns.items()},
    }
    assert not any(isinstance(column, Jagged) for column in columns.values())
    return {name: column.tolist() for name, column in columns.items()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("expected")
    pq.write_table(rows(), folder / "log.parquet")
    log = opened(folder, str(folder / "log.parquet"))
    return content(gather(log, np.arange(N)))


def parquet(folder: Path, table: pa.Table) -> Any:
    pq.write_table(table, folder / "log.parquet", row_group_size=7)
    return str(folder / "log.parquet")


def csv(folder: Path, table: pa.Table) -> Any:
    pacsv.write_csv(table, folder / "log.csv")
    return str(folder / "log.csv")


def zipped_csv(folder: Path, table: pa.Table) -> Any:
    text = Path(csv(folder, table)).read_bytes()
    (folder / "log.csv.gz").write_bytes(gzip.compress(text))
    return str(folder / "log.csv.gz")


def tsv(folder: Path, table: pa.Table) -> Any:
    pacsv.write_csv(table, folder / "log.tsv", pacsv.WriteOptions(delimiter="\t"))
    return str(folder / "log.tsv")


def arrow(folder: Path, table: pa.Table) -> Any:
    feather.write_feather(table, str(folder / "log.arrow"))
    return str(folder / "log.arrow")


def plain_feather(folder: Path, table: pa.Table) -> Any:
    feather.write_feather(table, str(folder / "log.feather"), compression="uncompressed")
    return str(folder / "log.feather")


def dictionaries(folder: Path, table: pa.Table) -> Any:
    for index, name in enumerate(table.column_names):
        if name in ("item", "page"):
            table = table.set_column(index, name, table[name].dictionary_encode())
    feather.write_feather(table, str(folder / "log.feather"))
    return str(folder / "log.feather")


def large_strings(folder: Path, table: pa.Table) -> Any:
    table = table.set_column(1, "item", table["item"].cast(pa.large_string()))
    return arrow(folder, table.set_column(4, "page", table["page"].cast(pa.large_string())))


def several(folder: Path, table: pa.Table) -> Any:
    for number, at in enumerate(range(0, N, 25)):
        pq.write_table(table[at : at + 25], folder / f"part-{number}.parquet")
    return [str(folder / f"part-{number}.parquet") for number in range(3)]


def pattern(folder: Path, table: pa.Table) -> Any:
    several(folder, table)
    return str(folder / "part-*.parquet")


def several_csv(folder: Path, table: pa.Table) -> Any:
    for number, at in enumerate(range(0, N, 25)):
        pacsv.write_csv(table[at : at + 25], folder / f"part-{number}.csv")
    return str(folder / "part-?.csv")


def several_arrow(folder: Path, table: pa.Table) -> Any:
    for number, at in enumerate(range(0, N, 25)):
        feather.write_feather(table[at : at + 25], str(folder / f"part-{number}.arrow"))
    return str(folder / "*.arrow")


def columns_in_another_order(folder: Path, table: pa.Table) -> Any:
    pq.write_table(table[:30], folder / "a.parquet")
    pq.write_table(table[30:].select(table.column_names[::-1]), folder / "b.parquet")
    return str(folder / "?.parquet")


def query(folder: Path, table: pa.Table) -> Any:
    return {"query": f"SELECT * FROM read_parquet('{parquet(folder, table)}') -- all of it\n;\n"}


def query_with_comment(folder: Path, table: pa.Table) -> Any:
    return {"query": f"SELECT * FROM '{parquet(folder, table)}' -- all of it"}


def milliseconds(folder: Path, table: pa.Table) -> Any:
    return parquet(folder, table.set_column(2, "t", pc.multiply(table["t"], 1_000)))


def float_seconds(folder: Path, table: pa.Table) -> Any:
    return parquet(folder, table.set_column(2, "t", table["t"].cast(pa.float64())))


def nanoseconds(folder: Path, table: pa.Table) -> Any:
    return parquet(folder, table.set_column(2, "t", pc.multiply(table["t"], 1_000_000_000)))


def timestamps(folder: Path, table: pa.Table) -> Any:
    return parquet(folder, table.set_column(2, "t", table["t"].cast(pa.timestamp("s"))))


def zoned_timestamps(folder: Path, table: pa.Table) -> Any:
    return parquet(folder, table.set_column(2, "t", table["t"].cast(pa.timestamp("s", "America/New_York"))))


def iso_text(folder: Path, table: pa.Table) -> Any:
    text = [datetime.fromtimestamp(t, UTC).isoformat() for t in table["t"].to_pylist()]
    return parquet(folder, table.set_column(2, "t", pa.array(text)))


def small_types(folder: Path, table: pa.Table) -> Any:
    table = table.set_column(0, "user", table["user"].cast(pa.uint8()))
    return parquet(folder, table.set_column(3, "stars", table["stars"].cast(pa.int8())))


def unsigned(folder: Path, table: pa.Table) -> Any:
    return parquet(folder, table.set_column(0, "user", table["user"].cast(pa.uint64())))


WAYS = [
    parquet, csv, zipped_csv, tsv, arrow, plain_feather, dictionaries, large_strings, several, pattern, several_csv,
    several_arrow, columns_in_another_order, query, query_with_comment, milliseconds, float_seconds, nanoseconds,
    timestamps, zoned_timestamps, iso_text, small_types, unsigned,
]  # fmt: skip


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
def test_every_reader_gives_the_same_log(
    write: Callable[[Path, pa.Table], Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    log = opened(tmp_path, write(tmp_path, rows()))
    assert content(gather(log, np.arange(N))) == expected


@pytest.mark.parametrize("threads", [1, 4])
def test_ties_keep_the_order_of_the_file(threads: int, tmp_path: Path) -> None:
    n = 30_000
    table = pa.table(
        {
            "user": np.arange(n) % 7,
            "item": [f"i{k % 11}" for k in range(n)],
            "t": START + np.arange(n) // 1_000,
            "stars": np.arange(n) % 5 + 1,
            "page": ["home"] * n,
            "price": np.arange(n, dtype=np.float64),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2_000)
    log = opened(tmp_path, str(tmp_path / "log.parquet"), threads=threads)
    price = log.events.columns["price"].astype(int)
    order = np.lexsort((np.arange(n), table["t"].to_numpy(), table["user"].to_numpy()))
    assert price.tolist() == order.tolist()


def test_ids_above_2_to_the_53_stay_distinct(tmp_path: Path) -> None:
    table = rows()
    users = pa.array([2**53 + n % 3 for n in range(N)], pa.int64())
    pq.write_table(table.set_column(0, "user", users), tmp_path / "log.parquet")
    log = opened(tmp_path, str(tmp_path / "log.parquet"))
    assert log.users.keys.values.to_pylist() == [2**53, 2**53 + 1, 2**53 + 2]
    assert np.diff(log.events.offsets).tolist() == [0, 20, 20, 20]


def test_times_before_1970(tmp_path: Path) -> None:
    table = rows().set_column(2, "t", pa.array([-START + n * 3600 for n in range(N)]))
    pq.write_table(table, tmp_path / "log.parquet")
    log = opened(tmp_path, str(tmp_path / "log.parquet"))
    assert sorted(log.events.times.tolist()) == [(-START + n * 3600) * 1000 for n in range(N)]


def test_names_with_quotes_blanks_and_dots(tmp_path: Path) -> None:
    table = rows().rename_columns(["user id", "item", 'the "time"', "stars", "a.page", "price"])
    pq.write_table(table, tmp_path / "it's a log.parquet")
    schema = {**SCHEMA, "user": "user id", "time": {"column": 'the "time"'}}
    schema["features"] = {
        **SCHEMA["features"],
        "user": {"kind": "id", "column": "user id"},
        "page": {"kind": "id", "column": "a.page"},
        "a": {"kind": "id", "column": "price", "hash": 5} | {"kind": "bucketized", "edges": [2]},
    }
    schema["features"]["a"].pop("hash")
    config = DataConfig.model_validate({"log": str(tmp_path / "it's a log.parquet"), "folder": str(tmp_path / "p")})
    log = Log.open(prepare(config, Schema.model_validate(schema)))
    assert len(log) == N
