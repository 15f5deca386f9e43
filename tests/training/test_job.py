from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from longrec.errors import ConfigError
from longrec.training.job import check, read_job


def faults(source: object, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(source, overrides)  # type: ignore[arg-type]
    return caught.value.faults


def test_a_resolved_job_reads_back_equal(shop: Path, tmp_path: Path) -> None:
    job = read_job(shop, ["fit.embedding_lr=3e-2", "data.schema.histories.seen.where={stars: {at_least: 3}}"])
    assert job.fit.embedding_lr == 0.03
    assert job.fit.epochs == 2
    assert job.model["init_std"] == 0.01, "defaults of the model are filled in"
    copy = tmp_path / "elsewhere" / "config.yaml"
    copy.parent.mkdir()
    copy.write_text(job.to_yaml())
    assert read_job(copy) == job
    assert read_job(yaml.safe_load(job.to_yaml())) == job
    assert read_job(copy).to_yaml() == job.to_yaml()
    assert read_job(copy, ["fit.seed=1"]) != job


def test_another_model_on_the_command_line_does_not_take_the_settings_of_the_first(shop: Path) -> None:
    first = "model={name: din, attention: [8]}"
    assert faults(shop, first, "model.name=deepfm") == [
        "model.attention: unknown key; model.name=deepfm keeps the other settings of model, model=deepfm drops them"
    ]
    assert read_job(shop, [first, "model=deepfm"]).model["name"] == "deepfm"


@pytest.mark.parametrize("split", ["{by: user}", "{by: time, test_days: 2}", "{by: leave_one_out}", "{test: 0.2}"])
def test_every_split_reads_back(shop: Path, split: str) -> None:
    job = read_job(shop, [f"data.split={split}"])
    assert read_job(yaml.safe_load(job.to_yaml())) == job


def test_text_that_looks_like_a_number_stays_text(shop: Path, tmp_path: Path) -> None:
    job = read_job(shop, ["data.schema.features.genre.vocab=['1e3', 'no', '2026-01-31', 'true', g1]"])
    (tmp_path / "config.yaml").write_text(job.to_yaml())
    assert read_job(tmp_path / "config.yaml").schema.features["genre"].vocab == (
        "1e3",
        "no",
        "2026-01-31",
        "true",
        "g1",
    )


def test_paths_are_relative_to_the_file_that_names_them(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "genres.txt").write_text("g0\ng1\n")
    schema = yaml.safe_load((shop.parent / "shop.schema.yaml").read_text())
    schema["features"]["genre"]["vocab"] = "genres.txt"
    (tmp_path / "words" / "shop.yaml").write_text(yaml.safe_dump(schema))
    config = yaml.safe_load(shop.read_text())
    config["data"] |= {"schema": "words/shop.yaml", "log": ["*.parquet"], "items": str(shop.parent / "items.parquet")}
    del config["data"]["folder"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(shop.parent / "events.parquet", tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job = check("../job.yaml")
    assert job.schema.features["genre"].vocab == str(tmp_path / "here" / ".." / "words" / "genres.txt")
    assert job.data.log.files == (str(tmp_path / "here" / ".." / "*.parquet"),)
    assert (job.data.folder, job.fit.runs) == (str(tmp_path / "here" / "prepared"), str(tmp_path / "here" / "runs"))


def test_all_faults_of_all_sections_come_at_once(shop: Path) -> None:
    config = {
        "data": {"log": "nowhere.parquet", "shema": str(shop.parent / "shop.schema.yaml"), "split": {"by": "tme"}},
        "model": {"name": "dinn"},
        "fit": {"sede": 1, "epochs": "two"},
        "evaluat": {},
        "name": "../up",
    }
    overrides = ["no equals sign", "fit.lr=0", "data.schema.features.genre.kind=idd"]
    messages = faults(config, *overrides)
    expected = [
        "data.shema: unknown key; did you mean 'schema'?",
        "command line: no equals sign: an override is written key.key=value",
        "evaluat: unknown key; did you mean 'evaluate'?",
        "name: must be a folder name of letters, digits, '.', '-' and '_', got '../up'",
        "data.split.by: must be one of 'time', 'user', 'leave_one_out', 'column' or 'files'; got 'tme'",
        f"{shop.parent / 'shop.schema.yaml'}: features.genre.kind: must be one of",
        "model.name: no model named 'dinn'; did you mean 'din'?",
        "fit.epochs: must be a whole number, got 'two'",
        "fit.lr: ",
        "fit.sede: unknown key; did you mean 'seed'?",
    ]
    assert len(messages) == len(expected), messages
    for line, start in zip(messages, expected):
        assert line.startswith(start)


def test_faults_inside_a_whole_schema_are_one_line_each(shop: Path) -> None:
    overrides = [
        "data.schema.histories.seen.features=[item_id, foo, user_id]",
        "data.schema.features.stars.feedback=false",
    ]
    messages = faults(shop, *overrides)
    assert sorted(line.partition(": ")[2].partition(": ")[0] for line in messages) == [
        "features.stars",
        "histories.seen.features",
        "histories.seen.features",
    ]
    inline = yaml.safe_load(shop.read_text())
    inline["data"]["schema"] = yaml.safe_load((shop.parent / "shop.schema.yaml").read_text())
    assert {line.split(":")[0] for line in faults(inline, *overrides)} >= {
        "data.schema.features.stars",
        "data.schema.histories.seen.features",
    }


def test_versions_need_a_time_and_a_column_of_their_own(shop: Path) -> None:
    dated = {key: {"files": "items.parquet", "as_of": key} for key in ("item", "since")}
    overrides = {"user": "user", "item": "item", "label": "liked", "features": {"item": {"kind": "id"}}}
    overrides["histories"] = {"seen": {"features": ["item"], "columns": {"item": "past"}}}  # type: ignore[assignment]
    messages = faults(
        {"data": {"log": "x", "items": dated["item"], "users": dated["since"], "schema": overrides}, "fit": 1}
    )
    assert messages[:3] == [
        "data.users.as_of: needs a time column in the schema, to compare with the time of impressions",
        "data.items.as_of: needs a time column in the schema, to compare with the time of impressions",
        "data.items.as_of: 'item' is the key of the table; use the column with the timestamp of its rows",
    ]
    assert "model: is required" in messages
    assert faults({"data": {"log": {"files": ["x"], "as_of": "t"}, "schema": overrides}, "model": "lr"}) == [
        "data: log.as_of: as_of is for users and items; the schema's time is the timestamp of an event"
    ]
    job = read_job(shop, ["data.items={files: items.parquet, as_of: since}"])
    assert job.data.items is not None
    assert (job.data.items.as_of, job.data.items.files) == ("since", (str(shop.parent / "items.parquet"),))
    assert read_job(yaml.safe_load(job.to_yaml())) == job


def test_missing_files_and_sections_are_faults(shop: Path) -> None:
    overrides = ["data.log=gone-*.parquet", "data.schema.features.genre.vocab=gone.txt"]
    assert faults(shop, *overrides) == [
        f"data.log: no such file: {shop.parent / 'gone-*.parquet'}",
        f"data.schema.features.genre.vocab: no such file: {shop.parent / 'gone.txt'}",
    ]
    assert faults(shop, "data.schema=gone.yaml", "data.schema.user=u") == [
        "data.schema: gone.yaml: no such file; give the path of a YAML config"
    ]
    assert faults({}) == ["data: is required", "model: is required"]
    assert faults({"data": {}, "model": {}}) == [
        "data.log: is required",
        "data.schema: is required: the path of a schema, or the schema itself",
        "model: is required",
    ]
    assert faults(shop, "fit=3", "model=[din]") == [
        "model: must be a mapping with a name, got ['din']",
        "fit: must be a mapping, got 3",
    ]


def test_a_model_that_reads_histories_needs_one(shop: Path) -> None:
    assert faults(shop, "data.schema.histories={}", "model.atention=[3]") == [
        "model.atention: unknown key; did you mean 'attention'?",
        "model.name: din reads histories, and the schema has none",
    ]


def test_overrides_reach_a_schema_wherever_it_is_written(shop: Path) -> None:
    job = read_job(shop, ["data.schema.histories.seen.max_length=100", "name=mine", "model.dropout=0.5"])
    assert (job.schema.histories["seen"].max_length, job.name, job.model["dropout"]) == (100, "mine", 0.5)
    assert read_job(shop).schema.histories["seen"].max_length == 10, "the file is untouched"


def test_files_of_splits_are_relative_to_the_config_and_keep_their_format(shop: Path, tmp_path: Path) -> None:
    rows = {"columns": {"user": "text", "clicked": "int"}, "defaults": {"clicked": 0}, "number": "row"}
    config = yaml.safe_load(shop.read_text())
    config["data"] |= {
        "schema": str(shop.parent / "shop.schema.yaml"),
        "log": {"splits": {"train": "a.csv", "test": ["b/*.csv", "s3://c.csv"]}, "rows": rows},
        "split": {"by": "files"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    job = read_job(tmp_path / "job.yaml")
    assert job.data.log.patterns() == (str(tmp_path / "a.csv"), str(tmp_path / "b/*.csv"), "s3://c.csv")
    assert job.data.log.rows is not None
    assert job.data.log.rows.defaults == {"clicked": 0}
    assert read_job(yaml.safe_load(job.to_yaml())) == job
    assert faults(tmp_path / "job.yaml")[:2] == [
        f"data.log: no such file: {tmp_path / 'a.csv'}",
        f"data.log: no such file: {tmp_path / 'b/*.csv'}",
    ]
