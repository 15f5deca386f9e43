"""Reuse of prepared logs: same contents, same log, whatever the file system reports."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data import fingerprint as fingerprint_module
from longrec.data import prepare as prepare_module
from longrec.data import sorted_writer
from longrec.data.fingerprint import INDEX, ContentIndex
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.errors import DataError
from longrec.features.schema import Schema

N = 30
SCHEMA = Schema.model_validate(
    {
        "user": "user",
        "item": "item",
        "time": {"column": "t", "unit": "step"},
        "label": "click",
        "features": {"item": {"kind": "id"}},
        "histories": {"all": {"features": ["item"]}},
    }
)


def rows(**columns: Any) -> pa.Table:
    numbers = np.arange(N)
    base = {"user": numbers % 3, "item": numbers % 5, "t": numbers, "click": numbers // 2 % 2}
    return pa.table({**base, **columns})


def config(folder: Path, **data: Any) -> DataConfig:
    config_dict = {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "threads": 1, **data}
    return DataConfig.model_validate(config_dict)


def write(folder: Path, table: pa.Table | None = None) -> Path:
    path = folder / "log.parquet"
    pq.write_table(rows() if table is None else table, path, compression="none", use_dictionary=False)
    return path


def put_back_the_clock(path: Path, stat: os.stat_result) -> None:
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_log_replaced_by_one_of_equal_size_and_time_is_prepared_anew(tmp_path: Path) -> None:
    path = write(tmp_path)
    stat, folder = path.stat(), prepare(config(tmp_path), SCHEMA)
    other = tmp_path / "other.parquet"
    pq.write_table(rows(item=np.arange(N)[::-1] % 5), other, compression="none", use_dictionary=False)
    put_back_the_clock(other, stat)
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert prepare(config(tmp_path), SCHEMA) != folder


def test_an_overwritten_log_is_prepared_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    folder = prepare(config(tmp_path), SCHEMA)
    for shift in range(1, 4):  # within one tick of the clock too
        stat = path.stat()
        write(tmp_path, rows(item=(np.arange(N) + shift) % 5))
        put_back_the_clock(path, stat)
        assert path.stat().st_size == stat.st_size
        assert prepare(config(tmp_path), SCHEMA) != folder


def test_the_same_content_is_recognized_after_a_touch_and_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    folder = prepare(config(tmp_path), SCHEMA)
    monkeypatch.setattr(prepare_module, "_Preparation", None)  # nothing is prepared any more
    os.utime(path, ns=(1, 1))
    assert prepare(config(tmp_path), SCHEMA) == folder
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    assert prepare(config(tmp_path), SCHEMA) == folder


def test_a_file_is_hashed_again_only_if_the_file_system_shows_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(fingerprint_module, "_RACY", -(10**15))  # as if it had been written long ago
    first = ContentIndex(tmp_path)
    digest = first.digest(path)
    first.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert ContentIndex(tmp_path).digest(path) == digest
    os.utime(path, ns=(1, 1))
    again = ContentIndex(tmp_path)
    assert again.digest(path) == digest
    again.save(tmp_path)
    entry = json.loads((tmp_path / INDEX).read_text())[str(path.resolve())]
    assert entry["stat"][1] == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"%s": 7}', '{"%s": {"stat": [], "digest": "x"}}', "\xff"])
def test_a_damaged_index_is_written_anew(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path)
    folder = prepare(config(tmp_path), SCHEMA)
    index = tmp_path / "prepared" / INDEX
    whole = json.loads(index.read_text())
    index.write_bytes((damage % path.resolve() if "%s" in damage else damage).encode("latin-1"))
    assert prepare(config(tmp_path), SCHEMA) == folder
    key = str(path.resolve())
    assert json.loads(index.read_text())[key]["digest"] == whole[key]["digest"]


def test_the_index_forgets_files_that_are_gone_and_survives_writers_side_by_side(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.bin" for name in "abcd"]
    for file in files:
        file.write_bytes(file.name.encode())

    def work(file: Path) -> None:
        scratch = tmp_path / f"scratch-{file.name}"
        scratch.mkdir()
        for _ in range(20):
            index = ContentIndex(tmp_path)
            index.digest(file)
            index.save(scratch)
            json.loads((tmp_path / INDEX).read_text())  # whole at every moment

    threads = [threading.Thread(target=work, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files[0].unlink()
    index = ContentIndex(tmp_path)
    index.digest(files[1])
    index.save(tmp_path / "scratch-a.bin")
    assert str(files[0].resolve()) not in json.loads((tmp_path / INDEX).read_text())


def test_an_index_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    folder = prepare(config(tmp_path), SCHEMA)
    assert prepare(config(tmp_path), SCHEMA) == folder
    assert not (tmp_path / "prepared" / INDEX).exists()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    sort_events = sorted_writer.sort_events

    def meanwhile(*arguments: Any) -> Schema:
        sorted_by = sort_events(*arguments)
        write(tmp_path, rows(item=np.arange(N) % 4))
        return sorted_by

    with monkeypatch.context() as patch:
        patch.setattr(sorted_writer, "sort_events", meanwhile)
        with pytest.raises(
            DataError, match=r"log\.parquet: changed while it was read; expected a file that does not change"
        ):
            prepare(config(tmp_path), SCHEMA)
    assert list((tmp_path / "prepared").iterdir()) == []


def test_a_query_whose_columns_change_names_is_prepared_anew(tmp_path: Path) -> None:
    path = write(tmp_path)
    query = {"query": f"SELECT * FROM '{path}'"}
    folder = prepare(config(tmp_path, log=query), SCHEMA)
    swapped = rows().rename_columns(["user", "t", "item", "click"]).select(["user", "t", "item", "click"])
    assert [column.to_pylist() for column in swapped.columns] == [column.to_pylist() for column in rows().columns]
    write(tmp_path, swapped)
    assert prepare(config(tmp_path, log=query), SCHEMA) != folder


def test_a_folder_is_read_as_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        pq.write_table(rows().slice(number * 15, 15), folder / f"part-{number}.parquet")
    (folder / "_SUCCESS").write_text("")
    (folder / ".part-0.parquet.crc").write_text("x")
    assert json.loads((prepare(config(tmp_path, log=str(folder)), SCHEMA) / "log.json").read_text())["events"] == N
    (folder / "notes.csv").write_text("a")
    with pytest.raises(DataError, match="files of the kinds .csv, .parquet"):
        prepare(config(tmp_path, log=str(folder)), SCHEMA)
    (folder / "old").mkdir()
    with pytest.raises(DataError, match="the folder 'old' in it; expected a folder of files of one kind"):
        prepare(config(tmp_path, log=str(folder)), SCHEMA)


def test_other_null_texts_and_casts_are_another_prepared_log(tmp_path: Path) -> None:
    pq.write_table(rows(), tmp_path / "log.parquet")
    path = str(tmp_path / "log.parquet")
    plain = prepare(config(tmp_path, log=path), SCHEMA)
    assert prepare(config(tmp_path, log={"files": path, "nulls": ["none"]}), SCHEMA) != plain
    assert prepare(config(tmp_path, log=path), SCHEMA.model_copy(update={"casts": {"user": "text"}})) != plain
    assert prepare(config(tmp_path, log=path), SCHEMA) == plain
