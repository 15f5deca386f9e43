"""Preparing: once per source and schema, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data import prepare as prepare_module
from longrec.data import sorted_writer
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.data.sort import sort_events
from longrec.errors import DataError
from longrec.features.schema import Schema

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {
        "user": {"kind": "id", "dim": 4},
        "item": {"kind": "id", "hash": 10},
        "tags": {"kind": "multi_id", "side": "item", "pool": "mean"},
        "click": {"kind": "id", "feedback": True},
    },
    "histories": {
        "all": {"features": ["item", "tags", "click"], "max_length": 3},
        "clicks": {"features": ["item"], "where": {"click": 1}},
    },
}
N = 40


def write(folder: Path, seed: int = 0) -> DataConfig:
    random = np.random.default_rng(seed)
    columns = {"user": random.integers(0, 4, N), "item": random.integers(0, 6, N), "t": np.arange(N)}
    pq.write_table(pa.table({**columns, "click": np.arange(N) % 2}), folder / "log.parquet")
    pq.write_table(pa.table({"item": range(6), "tags": [[n % 2, 7] for n in range(6)]}), folder / "items.parquet")
    paths = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}
    return DataConfig.model_validate({**paths, "folder": str(folder / "prepared"), "threads": 1})


def schema(**changes: Any) -> Schema:
    return Schema.model_validate(SCHEMA | changes)


def histories(**changes: Any) -> dict[str, Any]:
    return {"histories": {**SCHEMA["histories"], **changes}}


def features(**changes: Any) -> dict[str, Any]:
    return {"features": {**SCHEMA["features"], **changes}}


def test_the_folder_describes_its_content(tmp_path: Path) -> None:
    config = write(tmp_path)
    folder = prepare(config, schema())
    manifest = json.loads((folder / "log.json").read_text())
    assert manifest["format"] == "longrec-log-1"
    assert (manifest["events"], manifest["users"], manifest["items"]) == (40, 4, 6)
    assert manifest["parts"] == {
        "train": {"samples": 32, "positives": 16},
        "valid": {"samples": 4, "positives": 2},
        "test": {"samples": 4, "positives": 2},
    }
    assert manifest["lines"] == [32, 36]
    assert manifest["rows"] == {"user": 6, "item": 12, "tags": 5, "click": 4}
    assert manifest["hash_collisions"] == {"item": pytest.approx(1 - 0.9**5)}
    assert manifest["source"]["log"].endswith("log.parquet")
    assert manifest["spans"] == {"train": [0, 31], "valid": [32, 35], "test": [36, 39]}
    assert {path.name for path in (tmp_path / "prepared").iterdir()} == {folder.name, "files.json"}


def test_the_same_log_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path)
    folder = prepare(config, schema())
    monkeypatch.setattr(prepare_module, "_Preparation", None)  # nothing is prepared any more
    assert prepare(config, schema()) == folder
    assert prepare(config.model_copy(update={"threads": 3, "memory": "1GB"}), schema()) == folder


@pytest.mark.parametrize(
    "changes",
    [
        histories(all={"features": ["item", "tags", "click"], "max_length": 1000}),
        features(user={"kind": "id", "dim": 64}),
        features(tags={"kind": "multi_id", "side": "item", "pool": "max"}),
        features(tags={"kind": "multi_id", "side": "item"}),
        {"label_delay": "5s"},
    ],
)
def test_what_is_decided_later_needs_no_new_folder(changes: dict[str, Any], tmp_path: Path) -> None:
    config = write(tmp_path)
    folder = prepare(config, schema())
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert prepare(config, schema(**changes)) == folder
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


@pytest.mark.parametrize(
    "changes",
    [
        histories(clicks={"features": ["item"], "where": {"click": 0}}),
        histories(all={"features": ["item"], "max_length": 3}),
        features(item={"kind": "id", "hash": 11}),
        features(user={"kind": "id", "min_count": 2}),
        {"label": {"column": "click", "equals": 0}},
    ],
)
def test_what_changes_the_log_gets_a_new_folder(changes: dict[str, Any], tmp_path: Path) -> None:
    config = write(tmp_path)
    assert prepare(config, schema()) != prepare(config, schema(**changes))


def test_a_longer_history_is_cut_from_the_same_folder(tmp_path: Path) -> None:
    folder = prepare(write(tmp_path), schema())
    rows = np.arange(N)
    short, long = Log.open(folder), Log.open(folder, schema(**histories(all={"features": ["item"], "max_length": 100})))
    lengths = [gather(log, rows).histories["all"].offsets.diff() for log in (short, long)]
    assert int(lengths[0].max()) == 3
    assert int(lengths[1].max()) > 3
    assert lengths[1].clamp(max=3).tolist() == lengths[0].tolist()


def test_a_changed_source_gets_a_new_folder(tmp_path: Path) -> None:
    config = write(tmp_path)
    folder = prepare(config, schema())
    write(tmp_path, seed=1)
    changed = prepare(config, schema())
    assert changed != folder
    split = config.model_copy(update={"split": config.split.model_copy(update={"test": 0.3})})
    assert prepare(split, schema()) not in (folder, changed)


def test_a_changed_item_table_gets_a_new_folder(tmp_path: Path) -> None:
    config = write(tmp_path)
    folder = prepare(config, schema())
    table = pq.read_table(tmp_path / "items.parquet")
    pq.write_table(table.slice(0, len(table) - 1), tmp_path / "items.parquet")
    assert prepare(config, schema()) != folder


def test_a_changed_vocabulary_file_gets_a_new_folder(tmp_path: Path) -> None:
    config, path = write(tmp_path), tmp_path / "vocab.csv"
    own = schema(**features(user={"kind": "id", "vocab": str(path)}))
    path.write_text("user\n0\n1\n")
    folder = prepare(config, own)
    assert prepare(config, own) == folder
    path.write_text("user\n2\n1\n")
    assert prepare(config, own) != folder


def test_a_query_is_identified_by_its_rows(tmp_path: Path) -> None:
    write(tmp_path)

    def folder(click: str) -> Path:
        query = f"SELECT * REPLACE ({click} AS click) FROM '{tmp_path / 'view.parquet'}'"
        config = {"log": {"query": query}, "folder": str(tmp_path / "prepared"), "threads": 1}
        return prepare(DataConfig.model_validate(config), schema(**features(tags={"kind": "id"})))

    for value in ("x", "y"):  # every row twice: an exclusive or of hashes would see no difference
        twice = pa.concat_tables(
            [pq.read_table(tmp_path / "log.parquet").append_column("tags", pa.array([value] * N))] * 2
        )
        pq.write_table(twice, tmp_path / "view.parquet")
        if value == "x":
            first = folder("click")
            assert folder("click") == first
    assert folder("click") != first


# ---- whole or not at all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError, OSError])
@pytest.mark.parametrize("step", ["_write_columns", "_encode", "_manifest"])
def test_an_interrupted_preparation_leaves_nothing(
    error: type[BaseException],
    step: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    leftovers: Callable[[Path], list[str]],
) -> None:
    def stop(*_: Any) -> None:
        raise error("disk", "full")

    config = write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module._Preparation, step, stop)
        with pytest.raises(error):
            prepare(config, schema())
    assert leftovers(tmp_path / "prepared") == []
    assert len(Log.open(prepare(config, schema()))) == N


def test_somebody_else_may_have_prepared_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path)
    kept: list[Path] = []

    def meanwhile(*arguments: Any) -> Schema:
        if not kept:
            kept.append(tmp_path)
            kept.append(prepare(config, schema()))
        return sort_events(*arguments)

    monkeypatch.setattr(sorted_writer, "sort_events", meanwhile)
    assert prepare(config, schema()) == kept[1]
    assert {path.name for path in (tmp_path / "prepared").iterdir()} == {kept[1].name, "files.json"}


def test_a_folder_that_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no readable log\.json .*; expected a prepared log\n  Run longrec prepare"):
        Log.open(tmp_path)
    (tmp_path / "log.json").write_text('{"format": "longrec-log-0"}')
    with pytest.raises(DataError, match=r"format 'longrec-log-0'; expected longrec-log-1"):
        Log.open(tmp_path)


# ---- size --------------------------------------------------------------------------------------------------------


def test_space_does_not_depend_on_the_length_of_histories(tmp_path: Path) -> None:
    config = write(tmp_path)
    sizes = []
    for last in (1, 1_000):
        longer = schema(**histories(all={"features": ["item", "click"], "max_length": last}))
        other = config.model_copy(update={"folder": str(tmp_path / f"last-{last}")})
        folder = prepare(other, longer)
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix == ".npy"]
        sizes.append(sum(path.stat().st_size for path in files))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("items", [254, 255, 256])
def test_items_at_the_edge_of_a_byte(items: int, prepared: Callable[..., Log]) -> None:
    log = pa.table(
        {"user": [0] * items, "item": range(items), "t": range(items), "click": [n % 2 for n in range(items)]}
    )
    table = pa.table({"item": range(items), "tags": [[n] for n in range(items)]})
    opened = prepared(log, SCHEMA, items=table, split={"valid": 0, "test": 0})
    batch = gather(opened, np.arange(items))
    assert batch.features["tags"].values.tolist() == list(range(2, items + 2))  # type: ignore[union-attr]
    assert batch.histories["all"].columns["tags"].values[-1] == items  # type: ignore[union-attr]
