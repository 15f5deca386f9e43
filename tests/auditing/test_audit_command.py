"""``longrec audit`` and ``longrec.audit``: columns by their names, inputs of every kind, output, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import longrec as lr
from longrec.auditing.finding import SKIPPED, Audit
from longrec.cli import main
from longrec.errors import ConfigError, DataError
from longrec.terminal_text import WIDTH, measure_width

Maker = Callable[..., pd.DataFrame]
JOB = """
data:
  log: log.parquet
  split: {by: time, valid: 0.1, test: 0.1}
  schema:
    user: user_id
    item: item_id
    time: {column: timestamp, unit: s}
    label: click
    features:
      user_id: {kind: id}
      item_id: {kind: id}
      category: {kind: id, side: item}
      device: {kind: id}
      liked: {kind: id, feedback: true}
    histories:
      seen: {features: [item_id], max_length: 20}
model: {name: din, attention: [4], mlp: [8]}
"""


@pytest.fixture(scope="module")
def frame(make_impressions: Maker) -> pd.DataFrame:
    return make_impressions(5)


@pytest.fixture
def folder(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    frame.drop(columns="hist_items").assign(liked=frame["click"]).to_parquet(tmp_path / "log.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(audit: Audit) -> dict[str, str]:
    return {one.name: one.figure for one in audit.findings}


def test_the_command_prints_a_table_and_exits_with_zero(
    folder: Path, capsys: pytest.CaptureFixture[str], frame: pd.DataFrame
) -> None:
    frame.drop(columns="hist_items").to_parquet("log.parquet")
    assert main(["audit", "log.parquet", "--json", "audit.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"log.parquet: {len(frame):,} rows of 400 users and {frame['item_id'].nunique()} items"
    assert max(map(measure_width, lines)) <= WIDTH
    assert lines[-1].startswith("0 alarms, ")
    long = folder / ("a" * 30) / ("b" * 60) / "log.parquet"
    long.parent.mkdir(parents=True)
    frame[["user_id", "item_id"]].to_parquet(long)
    assert main(["audit", str(long)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  ")
    content = json.loads((folder / "audit.json").read_text())
    assert content["columns"]["label"] == "click (guessed)"
    assert {one["check"] for one in content["findings"]} >= {"ties", "cold", "timeline", "floor"}
    assert "features" in content["seconds"]


def test_strict_ends_with_two_if_there_is_an_alarm(
    folder: Path, capsys: pytest.CaptureFixture[str], frame: pd.DataFrame
) -> None:
    frame.to_parquet("clean.parquet")
    assert main(["audit", "clean.parquet", "--strict", "--json", "-"]) == 0
    json.loads(capsys.readouterr().out)
    table = frame.drop(columns="hist_items").assign(watched=frame["click"] * 2.0)
    table.to_csv("leak.csv", index=False)
    assert main(["audit", "leak.csv"]) == 0
    assert "ALARM: AUC of watched alone: 1.000" in capsys.readouterr().out
    assert main(["audit", "leak.csv", "--strict"]) == 2
    assert "leak.csv: 1 alarm: AUC of watched alone; expected none with --strict" in capsys.readouterr().err


def test_every_kind_of_input_has_the_same_figures(folder: Path, frame: pd.DataFrame) -> None:
    table = frame.drop(columns="hist_items")
    table.to_parquet("log.parquet")
    expected = figures(lr.audit(table))
    table.to_csv("log.csv", index=False)
    table.to_json("log.jsonl", orient="records", lines=True)
    times = pd.to_datetime(table["timestamp"], unit="s")
    table.assign(timestamp=times).to_parquet("dates.parquet")
    table.assign(timestamp=times.dt.strftime("%Y-%m-%d %H:%M:%S")).to_csv("texts.csv", index=False)
    for split in ("train", "valid", "test"):
        table[table["split"] == split].drop(columns="split").to_csv(f"{split}.csv", index=False)
    for source in ("log.parquet", "log.csv", "log.jsonl", "dates.parquet", "texts.csv"):
        assert figures(lr.audit(source)) == expected, source
    assert figures(lr.audit("train.csv", valid="valid.csv", test="test.csv")) == expected
    text = table.assign(item_id="i" + table["item_id"].astype(str), user_id="u" + table["user_id"].astype(str))
    # The order of the ids is another one, and so are the draws.
    ids = {"order in ties by item id", "repeated pairs in one order", "counting rule at 10, N3 ties shuffled"}
    other = figures(lr.audit(text))
    assert {one: other[one] for one in other if one not in ids} == {
        one: expected[one] for one in expected if one not in ids
    }


def test_a_job_and_its_prepared_log_have_the_figures_of_the_file(folder: Path, frame: pd.DataFrame) -> None:
    Path("job.yaml").write_text(JOB)
    log = lr.prepare("job.yaml")
    job, prepared = lr.audit("job.yaml"), lr.audit(log.folder)
    file = lr.audit("log.parquet", split="time", features=["category", "device"])
    assert figures(job) == figures(file)
    for finding in file.findings:
        if finding.check not in ("features", "tie order") and finding.verdict != SKIPPED:
            assert prepared.find(finding.check, finding.name).figure == finding.figure
    assert prepared.find("features").numbers["column"] in ("category", "device")
    said = prepared.find("prepare")
    assert all(warning in said.why for warning in log.facts.warnings)
    assert [name for name in figures(job) if "liked" in name] == []  # feedback may copy the label
    with pytest.raises(ConfigError, match=r"user: the config names the columns"):
        lr.audit("job.yaml", user="user_id")
    with pytest.raises(ConfigError, match=r"items: a prepared log has its columns"):
        lr.audit(log.folder, items="items.parquet")


def test_lines_of_items_are_a_log_without_times(folder: Path) -> None:
    lines = [" ".join(map(str, [user, *range(user, user + 5)])) for user in range(300)]
    Path("lines.txt").write_text("\n".join(lines))
    audit = lr.audit("lines.txt")
    assert (audit.rows, audit.users, audit.items) == (1_500, 300, 304)
    assert audit.find("floor").numbers["hr@10"] > 0.99  # the next number
    assert audit.find("ties").verdict == SKIPPED
    assert any("no time" in note for note in audit.notes)
    Path("short.txt").write_text("1 2 3\n4\n")
    with pytest.raises(DataError, match="short.txt: line 2: a user without items"):
        lr.audit("short.txt")
    with pytest.raises(DataError, match="absent.txt: cannot be read"):
        lr.audit("absent.txt")


def test_times_that_are_missing_are_those_of_the_neighbors(make_events: Maker) -> None:
    frame = make_events(0, clock=86_400, repetition=0)
    frame = frame.assign(position=frame.groupby("user_id").cumcount(), timestamp=frame["timestamp"].astype("Int64"))
    frame.loc[::50, "timestamp"] = pd.NA
    filled = lr.audit(frame)
    assert filled.rows == len(frame)
    assert any("take that of the event before" in note for note in filled.notes)
    dropped = lr.audit(frame.drop(columns="position"))
    assert dropped.rows == frame["timestamp"].notna().sum()


def test_columns_are_guessed_or_named(frame: pd.DataFrame) -> None:
    table = frame.drop(columns=["hist_items", "split"])
    two = table.assign(item=table["item_id"])
    with pytest.raises(DataError, match=r"several columns that may be the item: item_id, item; .*\n  Name it: --item"):
        lr.audit(two)
    assert lr.audit(two, item="item_id").columns["item"] == "item_id"
    renamed = table.rename(columns={"user_id": "who", "click": "liked", "timestamp": "when"})
    with pytest.raises(DataError, match=r"no column that is the user by its name.*\n  Name it: --user COLUMN"):
        lr.audit(renamed)
    audit = lr.audit(renamed, user="who", label="liked", time="when")
    assert audit.columns == {"user": "who", "item": "item_id (guessed)", "time": "when", "label": "liked"}
    with pytest.raises(DataError, match=r"no column 'prise' \(--features\), did you mean 'price'"):
        lr.audit(table, features=["prise"])
    with pytest.raises(DataError, match=r"column 'device' \(--history\) has values of type BIGINT, not lists"):
        lr.audit(table, histories=["device"])
    # A rating is no label, a page position is no order, and other words are no split.
    other = table.assign(click=table["price"], position=1, split="a")
    columns = lr.audit(other).columns
    assert "label" not in columns
    assert "split" not in columns
    assert any("'position' is not used as the order" in note for note in lr.audit(other).notes)


def test_other_lists_are_no_histories(frame: pd.DataFrame) -> None:
    lists = frame["hist_items"].map(lambda own: [one % 7 for one in own])
    audit = lr.audit(frame.assign(hist_category_id=lists))
    assert audit.columns["histories"] == "hist_items"
    tags = frame.drop(columns="hist_items").assign(tags=[[1_000, 2_000]] * len(frame))
    noted = lr.audit(tags)
    assert noted.find("histories").verdict == SKIPPED
    assert any("'tags' is no history" in note for note in noted.notes)


def test_an_audit_is_a_table(frame: pd.DataFrame) -> None:
    audit = lr.audit(frame)
    table = audit.to_pandas()
    assert list(table["name"]) == [one.name for one in audit.findings]
    assert np.isfinite(table.loc[table["verdict"] != "skipped", "value"]).all()
    assert "counting rule" in repr(audit)
    with pytest.raises(KeyError, match="ties: nothing"):
        audit.find("ties", "nothing")


def test_the_order_of_a_schema_orders_the_events_of_one_time(tmp_path: Path, make_events: Maker) -> None:
    """``time.order`` may begin anew at every time, while ``--order`` numbers all events of a user."""
    shuffled = make_events(2, clock=86_400, repetition=0).sample(frac=1, random_state=0)
    turn = shuffled.sort_values("item_id").groupby(["user_id", "timestamp"]).cumcount()
    shuffled.assign(turn=turn).to_parquet(tmp_path / "log.parquet")
    schema = {"user": "user_id", "item": "item_id", "time": {"column": "timestamp", "unit": "s", "order": "turn"}}
    schema |= {"features": {"item_id": {"kind": "id"}}}
    schema |= {"histories": {"all": {"features": ["item_id"], "max_length": 5}}}
    data = {"log": str(tmp_path / "log.parquet"), "split": {"by": "leave_one_out"}, "schema": schema}
    audit = lr.audit({"data": data, "model": {"name": "sasrec"}})
    assert audit.find("tie order", "order in ties by item id").value == 1.0
    assert audit.find("timeline", "test rows before an own training row").value == 0
    assert audit.find("sort", "events that step back in time").value == 0


def test_a_label_has_two_values(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"price: the label [\d.]+; expected 0 and 1\n  Write such a column"):
        lr.audit(frame, label="price")


def test_overrides_are_for_configs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "log.parquet", "data.log=x"]) == 2
    assert "'data.log=x': is a setting of a config" in capsys.readouterr().err
    assert main(["audit", "log.parquet", "other.parquet"]) == 2
    assert "one log at a time" in capsys.readouterr().err
