"""The log of shown items: what it guarantees after a crash, and that prepare reads it with clicks joined."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import endless_impressions
import orjson
import pipelines
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endless_impressions import SCHEMA, make_row

import longrec as lr
from longrec.errors import ResourceError
from longrec.serve.impressions import ImpressionWriter, write_parquet
from longrec.serve.service import Service


def read_requests(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.parquet"))
    return sorted(request for path in files for request in pq.read_table(path)["request"].to_pylist())


def test_rows_become_parquet_files_of_one_schema(tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    writer = ImpressionWriter(folder, SCHEMA, 0.01, 60.0)
    writer.write([make_row(1), make_row(2)])
    writer.rotate()
    writer.rotate()
    assert len(list(folder.glob("*.parquet"))) == 1, "no empty files"
    writer.write([make_row(3)])
    writer.close()
    assert read_requests(folder) == ["r1", "r2", "r3"]
    assert [path.name for path in folder.iterdir() if path.suffix != ".parquet"] == []
    table = pq.read_table(next(iter(folder.glob("*.parquet"))))
    assert table.schema.equals(SCHEMA)
    assert table["propensity"].null_count == len(table)


def test_rows_rotate_by_themselves(tmp_path: Path) -> None:
    writer = ImpressionWriter(tmp_path, SCHEMA, 0.005, 0.01)
    writer.write([make_row(1)])
    end = time.monotonic() + 10
    while not read_requests(tmp_path) and time.monotonic() < end:
        time.sleep(0.005)
    assert read_requests(tmp_path) == ["r1"]
    writer.close()


def test_a_killed_process_loses_at_most_its_last_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    arguments = [sys.executable, endless_impressions.__file__, str(folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(300)]
    ImpressionWriter(folder, SCHEMA).close()
    assert read_requests(folder) == [], "the lines of a living process are its own"
    process.send_signal(signal.SIGKILL)
    lines += [line.split() for line in process.stdout.read().splitlines() if len(line.split()) == 2]
    process.stdout.close()
    process.wait()
    ImpressionWriter(folder, SCHEMA).close()
    kept = {int(request[1:]) for request in read_requests(folder)}
    acknowledged = {int(number): float(at) for number, at in lines}
    assert kept == set(range(1, max(kept) + 1)), "the rows of the beginning, each once"
    last = max(acknowledged.values())
    lost = [last - at for number, at in acknowledged.items() if number not in kept]
    assert max(lost, default=0.0) < 2.0, "twice the time of a flush, on a busy machine with much to spare"
    ImpressionWriter(folder, SCHEMA).close()
    assert len(read_requests(folder)) == len(kept)


def test_half_a_line_and_a_crash_between_rename_and_delete_do_no_harm(tmp_path: Path) -> None:
    lines = b"".join(orjson.dumps(make_row(number)) + b"\n" for number in (1, 2))
    path = tmp_path / ".active-20260101T000000Z-1-abcd.jsonl"
    path.write_bytes(lines + orjson.dumps(make_row(3))[:20])
    write_parquet(path, SCHEMA)
    path.write_bytes(lines)  # as if the process had died before it deleted the lines
    ImpressionWriter(tmp_path, SCHEMA).close()
    assert read_requests(tmp_path) == ["r1", "r2"]


def test_rows_wait_while_the_disk_refuses_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = ImpressionWriter(tmp_path, SCHEMA, 60.0)
    real, writer._file = writer._file, open(os.devnull, "rb", buffering=0)  # noqa: SIM115
    writer.write([make_row(1)])
    writer.flush()
    assert "cannot be written" in caplog.text
    writer._file.close()
    writer._file = real
    writer.write([make_row(2)])
    writer.close()
    assert read_requests(tmp_path) == ["r1", "r2"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ResourceError):
        ImpressionWriter(file / "inside", SCHEMA)


def test_prepare_reads_what_was_shown_with_clicks_joined(tmp_path: Path) -> None:
    path = pipelines.write(tmp_path, log={"folder": "shown", "flush_seconds": 0.01})
    request = pipelines.request()
    shown = []
    with lr.open_pipeline(path, keep_log=True) as films:
        for second in range(6):
            answer = films.recommend(**request | {"at": 1_600_000_060_000 + 1_000 * second})
            shown += [(answer.request, item.id, item.via, item.score) for item in answer]
        films.trace(**request)
    with lr.open_pipeline(path) as films:
        films.recommend(**request)  # opened without its log
    Service(path).close()
    clicked = shown[::3]
    clicks = pa.table({
        "request": [one[0] for one in clicked], "item": [one[1] for one in clicked], "click": [1] * len(clicked)
    })  # fmt: skip
    joined = duckdb.sql(
        f"SELECT shown.*, coalesce(click, 0) AS click FROM read_parquet('{tmp_path}/shown/*.parquet') shown "
        "LEFT JOIN clicks USING (request, item) ORDER BY timestamp, position"
    ).to_arrow_table()
    rows = joined.to_pylist()
    assert [(row["request"], row["item"], row["source"]) for row in rows] == [one[:3] for one in shown]
    assert [row["score_rank"] for row in rows] == pytest.approx([one[3] for one in shown])
    assert [row["position"] for row in rows[:4]] == [1, 2, 3, 4]
    assert {row["policy"] for row in rows} == {"films"}
    assert len({row["policy_digest"] for row in rows}) == 1
    pq.write_table(joined, tmp_path / "events.parquet")
    features = {"user": "id", "item": "id", "source": "id", "score_rank": {"kind": "numeric"}, "position": "id"}
    schema = {"user": "user", "item": "item", "time": "timestamp", "label": "click", "features": features}
    log = lr.prepare(str(tmp_path / "events.parquet"), schema=schema, folder=tmp_path / "prepared")
    assert log.log.rows_of("train").size > 0
    del clicks
    label, plain = {"column": "position", "at_least": 3}, {"user": "id", "item": "id", "source": "id"}
    whole = lr.prepare(
        str(tmp_path / "shown"), schema={**schema, "label": label, "features": plain}, folder=tmp_path / "other"
    )
    assert whole.log.rows_of("train").size > 0
