"""The example of semantic IDs: all of its steps run on a small shop, and its page has the same commands."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "semantic_ids"
SMALL = (
    "--users=40 --items=100 --arrivals=0.2 method.size=6 fit.epochs=1 model.attributes=[] model.pairs=[] "
    "model.head=linear model.layers=1 model.experts=1 model.embedding_dim=8 model.hidden=8"
)


def test_all_steps_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (*FOLDER.glob("*.py"), *FOLDER.glob("*.yaml")):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_all.py", *SMALL.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("run_all.py", run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "Token HR@3 of code_2" in printed
    assert Path("tokens/diagnosis.html").exists()
    log, items, arrivals = (pq.read_table(f"{name}.parquet") for name in ("log", "items", "arrivals"))
    assert len(items) == 80
    assert len(arrivals) == 20
    assert not set(arrivals["item_id"].to_pylist()) & {*items["item_id"].to_pylist(), *log["item_id"].to_pylist()}
    ends = "SELECT split, min(timestamp) AS first, max(timestamp) AS last FROM log GROUP BY split ORDER BY first"
    (train, valid, test) = duckdb.sql(ends).fetchall()
    assert [one[0] for one in (train, valid, test)] == ["train", "valid", "test"]
    assert train[2] < valid[1] <= valid[2] < test[1]
    trained = duckdb.sql("SELECT sum(train_events) FROM items").fetchall()
    assert trained == duckdb.sql("SELECT count(*) FROM log WHERE split = 'train'").fetchall()
    before, after = (int(number) for number in re.findall(r"pages of 40 users: (\d+) of", printed))
    assert before == 0
    assert after > 0


def test_the_tables_of_a_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have further columns and rows without a time, as those of Amazon Beauty."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(FOLDER / "prepare.py"))["main"]
    main(["--users", "30", "--items", "40", "--arrivals", "0"])
    (tmp_path / "own").mkdir()
    duckdb.sql("COPY (SELECT *, 'x' AS asin FROM 'items.parquet') TO 'own/items.parquet'")
    duckdb.sql("COPY (SELECT item_id, embedding FROM 'items.parquet') TO 'own/item_embedding.parquet'")
    late = "SELECT user_id, item_id, CASE WHEN user_id > 3 THEN timestamp END AS timestamp FROM 'log.parquet'"
    duckdb.sql(f"COPY ({late}) TO 'own/interactions.parquet'")
    rows = pq.read_table("log.parquet")
    main(["--data", "own", "--arrivals", "0.1"])
    assert len(pq.read_table("arrivals.parquet")) == 4
    columns = ["item_id", "text", "category_l1", "category", "embedding", "train_events"]
    assert pq.read_schema("items.parquet").names == columns
    expected = {key for key in rows["user_id"].to_pylist() if key > 3}
    assert set(pq.read_table("log.parquet")["user_id"].to_pylist()) == expected


def test_the_page_has_the_steps_and_its_picture() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    block = page.split("```console\n")[1].split("```")[0]
    shown = [" ".join(shlex.split(line.removeprefix("$ "), comments=True)) for line in block.splitlines()]
    assert shown == list(runpy.run_path(str(FOLDER / "run_all.py"))["STEPS"])
    assert (FOLDER / "diagnosis.png").stat().st_size < 150_000
