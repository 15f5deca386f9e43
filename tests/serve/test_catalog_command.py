"""From a log with an item table to a bundle whose items are filtered and change: the commands, and the raw columns."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longrec
from longrec.cli import main
from longrec.data.item_columns import read_item_columns
from longrec.data.settings import DataConfig
from longrec.errors import DataError
from longrec.exporting.bundle import Bundle
from longrec.exporting.catalog_changes import read_changes
from longrec.exporting.item_columns import read_item_columns as read_from_bundle
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve.live_catalog import change_items, open_catalog
from longrec.serve.open_model import OpenModel
from longrec.serve.retrieve_stage import RetrieveStage

SCHEMA = {
    "user": "user",
    "item": "film",
    "time": {"column": "at", "unit": "s"},
    "features": {"film": "id", "genre": {"kind": "id", "side": "item"}},
    "histories": {"seen": {"features": ["film"], "max_length": 5}},
}
FILMS = (
    "film,genre,year,title\n1,comedy,1980,One\n2,drama,1995,Two\n3,comedy,2001,Three\n4,,1999,Four\n9,drama,2020,New\n"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the bundles of two counting rules, trained on a log with an item table."""
    folder = tmp_path_factory.mktemp("films")
    rows = [
        (user, film, 1_700_000_000 + 100 * step + user)
        for user in range(12)
        for step, film in enumerate((1, 2, 3, 4, 5))
    ]
    columns = dict(zip(("user", "film", "at"), map(list, zip(*rows))))
    pq.write_table(pa.table(columns), folder / "log.parquet")
    (folder / "films.csv").write_text(FILMS)
    log = longrec.prepare(
        folder / "log.parquet",
        items=folder / "films.csv",
        schema=SCHEMA,
        split={"by": "leave_one_out"},
        folder=str(folder / "prepared"),
    )
    for model in ("popularity", "item_knn"):
        run = longrec.fit(model, log, name=model, runs=str(folder / "runs"), quiet=True, evaluate={"n_resamples": 10})
        longrec.export(run, folder / f"{model}.bundle")
    return folder


def recommend(bundle: Path, k: int = 10) -> list[int]:
    with longrec.client(bundle) as client:
        return [item.id for item in client.recommend(user=3, k=k, exclude_seen=False)]


def test_a_bundle_has_the_raw_columns_of_the_item_table(runs: Path) -> None:
    columns = read_from_bundle(runs / "popularity.bundle")
    assert columns is not None
    assert columns.column_names == ["film", "genre", "year", "title"]
    assert columns["film"].to_pylist() == [1, 2, 3, 4, 5, 9]
    assert columns["year"].to_pylist() == [1980, 1995, 2001, 1999, None, 2020]
    assert columns["title"].to_pylist()[4] is None
    model = OpenModel(Bundle.open(runs / "item_knn.bundle"))
    retrieved = RetrieveStage(model, count=10, where="year >= 1995 AND genre <> 'drama'")(
        Candidates.of([], "request"), Query(user=3, timestamp=1_800_000_000_000)
    )
    assert retrieved.keys.tolist() == [3]
    model.close()


@pytest.mark.parametrize("model", ["popularity", "item_knn"])
def test_the_command_changes_the_items_of_a_bundle(
    runs: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, changes = runs / f"{model}.bundle", tmp_path / "changes.jsonl"
    assert sorted(recommend(bundle)) == [1, 2, 3, 4, 5, 9]
    changes.write_text('{"film": 2, "withdrawn": true}\n\n{"film": 30, "genre": "comedy", "year": 2030}\n')
    for _ in range(2):
        assert main(["catalog", str(bundle), str(changes), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out) == {"changes": 2, "items": 7, "withdrawn": 1}
    assert sorted(recommend(bundle)) == [1, 3, 4, 5, 9, 30]
    assert len(recommend(bundle, k=2)) == 2
    pq.write_table(pa.table({"film": [2], "withdrawn": [False]}), tmp_path / "back.parquet")
    assert main(["catalog", str(bundle), str(tmp_path / "back.parquet")]) == 0
    assert "1 changes, 7 items, 0 of them withdrawn" in capsys.readouterr().out
    assert sorted(recommend(bundle)) == [1, 2, 3, 4, 5, 9, 30]
    assert longrec.change_catalog(bundle, [{"film": 9, "genre": None}])["items"] == 7
    changes.write_text('{"film": 2, "yaer": 3}\n')
    assert main(["catalog", str(bundle), str(changes)]) == 2
    assert "the unknown column 'yaer' (did you mean 'year'?)" in capsys.readouterr().err


def test_a_file_that_holds_no_changes_is_refused(tmp_path: Path) -> None:
    for name, content, message in [
        ("a.jsonl", '{"film": 1}\n{"film": ', "line 2: no JSON"),
        ("b.jsonl", "[1]\n", "line 1: a list; expected one object per line"),
        ("c.csv", "film\n1\n", r"a file of type .csv; expected JSON lines"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            read_changes(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_changes(tmp_path / "d.jsonl")


def test_an_item_has_its_newest_version(tmp_path: Path) -> None:
    rows = "film,price,since\n2,9.5,2024-01-03\n1,1.5,2024-01-01\n2,8.5,2024-01-01\n2,7.5,2024-01-02\n"
    (tmp_path / "films.csv").write_text(rows)
    items = {"files": str(tmp_path / "films.csv"), "as_of": "since"}
    config = DataConfig.model_validate({"log": "log.parquet", "items": items})
    schema = Schema.model_validate(SCHEMA)
    columns = read_item_columns(config, schema, Keys(pa.array([1, 2, 3])))
    assert columns is not None
    assert columns.select(["film", "price"]).to_pydict() == {"film": [1, 2, 3], "price": [1.5, 9.5, None]}
    with pytest.raises(DataError, match="BIGINT keys; expected keys as in the prepared log"):
        read_item_columns(config, schema, Keys(pa.array(["1"])))
    assert read_item_columns(DataConfig.model_validate({"log": "log.parquet"}), schema, Keys(pa.array([1]))) is None


def test_dates_and_missing_numbers_of_parquet_change_nothing_twice(runs: Path, tmp_path: Path) -> None:
    rows = {"film": [3, 4], "year": [float("nan"), 1999.0], "title": ["2026-01-02", None]}
    pq.write_table(pa.table(rows).set_column(2, "title", pa.array([date(2026, 1, 2), None])), tmp_path / "a.parquet")
    catalog = open_catalog(runs / "popularity.bundle")
    for _ in range(2):
        change_items([catalog], read_changes(tmp_path / "a.parquet"))
    revision = catalog.changes.revision
    change_items([open_catalog(runs / "popularity.bundle")], read_changes(tmp_path / "a.parquet"))
    assert catalog.changes.items[3].columns == {"year": None, "title": "2026-01-02"}
    assert open_catalog(runs / "popularity.bundle").changes.revision == revision
    with pytest.raises(DataError, match="a value of type bytes"):
        change_items([catalog], [{"film": 3, "title": b"x"}])
