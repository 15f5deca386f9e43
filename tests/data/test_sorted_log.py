"""The sorted log: what its files hold, and that preparation reads nothing else."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_logs import SCHEMA, START, N, log

from longrec.config import parse
from longrec.data import prepare as prepare_module
from longrec.data.prepare import prepare
from longrec.data.relation import connect
from longrec.data.settings import DataConfig
from longrec.data.sorted_log import KEY, KEY_ROW, SINCE, SortedLog
from longrec.data.sorted_writer import write_sorted_log
from longrec.errors import DataError
from longrec.features.schema import Schema

FEATURES: dict[str, Any] = {
    **SCHEMA["features"],
    "brand": {"kind": "id", "side": "item"},
    "vector": {"kind": "numeric", "side": "item", "width": 2},
    "tags": {"kind": "multi_id", "side": "item", "weights": "tag_weights"},
    "tier": {"kind": "id", "side": "user"},
    "town": {"kind": "id", "side": "user"},
    "page": {"kind": "id", "vocab": ["home", "shelf"]},
}
HISTORIES = {"all": {"features": ["item", "brand", "click"], "where": {"page": "home"}}}


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    table = log()
    town = pa.array([f"h{user}" for user in table["user"].to_pylist()])
    pq.write_table(table.append_column("town", town).append_column("w", pa.array([0.5] * N)), tmp_path / "log.parquet")
    items = {
        "item": [9, 3, 2, 1, 0],  # 4 and 5 occur in the log alone, 9 in the table alone
        "brand": ["a", None, "b", "a", "c"],
        "vector": [[1.0, 2.0]] * 5,
        "tags": [["x"], [], ["y", "x"], None, ["z"]],
        "tag_weights": [[0.5], [], [1.0, 2.0], None, [3.0]],
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    users = {"user": [1, 0, 1], "tier": [1, 2, 3], "since": [START + 600, START - 5, START - 9]}
    pq.write_table(pa.table(users), tmp_path / "users.parquet")
    data = {
        "log": str(tmp_path / "log.parquet"),
        "items": str(tmp_path / "items.parquet"),
        "users": {"files": str(tmp_path / "users.parquet"), "as_of": "since"},
        "folder": str(tmp_path / "prepared"),
        "threads": 1,
        "weights": ["w"],
    }
    return parse(DataConfig, data, "job.yaml")


def schema() -> Schema:
    return parse(Schema, {**SCHEMA, "features": FEATURES, "histories": HISTORIES}, "job.yaml")


def write(config: DataConfig, folder: Path, own: Schema | None = None) -> SortedLog:
    folder.mkdir()
    with contextlib.closing(connect(config, folder)) as con:
        write_sorted_log(con, config, own or schema(), folder, folder / "sorted")
    return SortedLog(folder / "sorted")


def test_files_and_facts(config: DataConfig, tmp_path: Path) -> None:
    one = write(config, tmp_path / "one")
    paths = sorted(str(path.relative_to(one.folder)) for path in one.folder.rglob("*") if path.is_file())
    dated = "users.dated.parquet"
    assert paths == ["events/part-0.parquet", "facts.json", "items.parquet", dated, "users.parquet"]
    events = pq.read_table(one.folder / "events/part-0.parquet")
    assert events.sort_by([("_user", "ascending"), ("_time", "ascending")]) == events
    assert {"_user", "_item", "_time", "c.click", "c.price", "c.page", "c.w"} < set(events.column_names)
    assert len(one) == N == len(events)
    assert one.items.keys.values.to_pylist() == [0, 1, 2, 3, 4, 5, 9]
    assert one.items.values("brand").to_pylist() == ["c", "a", "b", None, None, None, "a"]
    assert one.items.values("tags").to_pylist() == [["z"], None, ["y", "x"], [], None, None, ["x"]]
    assert one.users.values("town").to_pylist() == ["h0", "h1", "h2", "h3"]
    assert one.users.values("tier").to_pylist() == [2, 3, 1]
    assert one.users.versions is not None
    assert one.users.versions.offsets.tolist() == [0, 0, 1, 3, 3, 3]
    assert one.users.versions.times.tolist() == [(START - 5) * 1_000, (START - 9) * 1_000, (START + 600) * 1_000]
    assert pq.read_schema(one.folder / dated).names == [KEY_ROW, SINCE, "c.tier"]
    assert pq.read_schema(one.folder / "users.parquet").names == [KEY, "c.town"]
    facts = json.loads((one.folder / "facts.json").read_text())
    assert facts["rows"] == N
    assert facts["has_integers"] == {"page": False}
    assert one.users.describe("tier") == f"{tmp_path}/users.parquet: column 'tier'"
    assert one.users.describe("town") == f"{tmp_path}/log.parquet: column 'town'"


def test_preparation_reads_nothing_else(config: DataConfig, tmp_path: Path) -> None:
    whole = prepare(config, schema())
    one = write(config, tmp_path / "one")
    for name in ("log", "items", "users"):
        (tmp_path / f"{name}.parquet").unlink()
    build = tmp_path / "build"
    prepare_module._Preparation(config, schema(), one, build, "rule").run(time.perf_counter())
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != "log.json"]
    assert len(files) > 20
    assert [str(path) for path in files if (whole / path).read_bytes() != (build / path).read_bytes()] == []
    before, after = (json.loads((folder / "log.json").read_text()) for folder in (whole, build))
    assert {key for key in before if before[key] != after[key]} <= {"seconds", "split"}


def test_values_of_a_column_are_counted(config: DataConfig, tmp_path: Path) -> None:
    one = write(config, tmp_path / "one")
    assert one.count_values("page") == [("home", N)]
    assert one.count_values("size") == [(0, 14), (1, 13), (2, 13)]
    assert one.find_range("price") == (0.0, (N - 1) / 2)


def test_the_unit_that_was_detected(tmp_path: Path) -> None:
    pq.write_table(log(t=np.arange(N)), tmp_path / "log.parquet")
    data = parse(DataConfig, {"log": str(tmp_path / "log.parquet")}, "job.yaml")
    own = parse(Schema, SCHEMA, "job.yaml")
    one = write(data, tmp_path / "one", own)
    assert one.facts.unit == "s"
    fitted = one.set_unit(own)
    assert fitted.time is not None
    assert fitted.time.unit == "s"


def test_a_folder_of_another_format_is_refused(config: DataConfig, tmp_path: Path) -> None:
    one = write(config, tmp_path / "one")
    (one.folder / "facts.json").write_text('{"format": "longrec-sorted-9"}')
    with pytest.raises(DataError, match=r"format 'longrec-sorted-9'; expected longrec-sorted-1\n  Write the sorted"):
        SortedLog(one.folder)
    with pytest.raises(DataError, match="expected a sorted log"):
        SortedLog(tmp_path)


@pytest.mark.parametrize("module", ["sorted_log", "entities", "occurrence", "event_columns", "sample_weights", "log"])
def test_what_reads_a_sorted_log_needs_no_database(module: str) -> None:
    code = f"import sys, longrec.data.{module}; sys.exit(3 if 'duckdb' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
