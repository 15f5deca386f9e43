from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec import metrics
from longrec.data.gather import gather
from longrec.errors import ConfigError, DataError, RunError, UnknownName
from longrec.training.evaluate import compare, evaluate, predict
from longrec.training.explain import explain
from longrec.training.finished_run import Run, open_run
from longrec.training.fit import train

QUICK = ["fit.epochs=1", "fit.val_checks_per_epoch=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weighed")


@pytest.fixture(scope="module")
def din(shop: Path, folder: Path) -> Run:
    return train(shop, ["name=din", f"fit.runs={folder}", *QUICK], quiet=True)


@pytest.fixture(scope="module")
def lr(shop: Path, folder: Path) -> Run:
    overrides = ["model={name: lr}", "data.schema.histories={}", "name=lr", f"fit.runs={folder}"]
    return train(shop, [*overrides, *QUICK], quiet=True)


def test_predictions_name_their_rows(din: Run) -> None:
    table, log = din.predictions("test"), din.log()
    rows = table["row"].to_numpy()
    assert table.column_names == ["row", "user", "time", "label", "score"]
    assert [str(kind) for kind in table.schema.types] == ["int64", "int32", "int64", "float", "float"]
    assert np.array_equal(rows, log.rows_of("test"))
    assert np.array_equal(table["label"].to_numpy(), log.labels[rows])
    assert np.array_equal(table["time"].to_numpy(), log.events.times[rows])
    assert np.array_equal(table["user"].to_numpy(), log.user(rows))
    with torch.inference_mode():
        alone = torch.sigmoid(din.model()(gather(log, rows[7:8].copy())))
    assert alone.item() == pytest.approx(table["score"][7].as_py(), abs=1e-6)


def test_evaluate_says_what_training_said(din: Run) -> None:
    evaluation = evaluate(din.folder)
    assert evaluation.metrics == din.metrics
    shared = {key: value for key, value in din.results.items() if key in evaluation.to_dict()}
    assert evaluation.to_dict() == shared
    assert din.metrics["auc"].value == metrics.auc(*(din.predictions()[name].to_numpy() for name in ("label", "score")))
    by_row = evaluate(din, resample="row", n_resamples=50)
    assert by_row.metrics["auc"].value == evaluation.metrics["auc"].value
    assert by_row.metrics["auc"] != evaluation.metrics["auc"]
    assert str(evaluation.metrics["auc"]).startswith(f"{evaluation.metrics['auc'].value:.4f} [")


def test_any_split_can_be_predicted(din: Run, tmp_path: Path) -> None:
    assert not (din.folder / "predictions" / "train.parquet").exists()
    evaluation = evaluate(din, "train")
    assert evaluation.rows == len(din.log().rows_of("train"))
    assert (din.folder / "predictions" / "train.parquet").exists()
    path = predict(din.folder, "test", tmp_path / "deep" / "scores.parquet", quiet=True)
    assert pq.read_table(path).equals(din.predictions("test"))
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        predict(din, "tset")
    with pytest.raises(RunError, match="run longrec predict|Run longrec predict"):
        din.predictions("tset")


def test_runs_are_compared_on_the_same_rows(din: Run, lr: Run) -> None:
    assert din.log().folder != lr.log().folder, "other histories, another prepared log, the same rows"
    evaluation = compare([lr.folder, din], n_resamples=50)
    assert (evaluation.baseline, list(evaluation.runs), evaluation.rows) == ("lr", ["lr", "din"], 300)
    assert evaluation.runs["din"]["auc"].value == din.metrics["auc"].value
    difference = evaluation.differences["din"]["auc"].interval
    assert difference.value == pytest.approx(din.metrics["auc"].value - lr.metrics["auc"].value)
    assert compare([lr, din], baseline="din", n_resamples=50).baseline == "din"
    assert compare([lr, din], "valid", resample="row", n_resamples=50).resample == "row"


def test_runs_of_other_rows_are_not_compared(din: Run, shop: Path, folder: Path, tmp_path: Path) -> None:
    overrides = [f"fit.runs={folder}", *QUICK]
    shorter = train(shop, ["name=shorter", "data.split.test=0.05", *overrides], quiet=True)
    with pytest.raises(RunError, match=r"test rows of din and shorter: 300 and 150; expected the same rows"):
        compare([din, shorter])
    relabeled = train(shop, ["name=relabeled", "data.schema.label.at_least=3", *overrides], quiet=True)
    with pytest.raises(RunError, match="another label in sample"):
        compare([din, relabeled])
    shutil.copytree(din.folder, tmp_path / "din")
    assert list(compare([din, tmp_path / "din"], n_resamples=10).runs) == [str(din.folder), str(tmp_path / "din")]
    with pytest.raises(ConfigError, match="named twice"):
        compare([din, din.folder])
    with pytest.raises(ConfigError, match="two runs or more, got 1"):
        compare([din])
    with pytest.raises(UnknownName, match="no run named 'dni'; did you mean 'din'"):
        compare([din, copied(din, tmp_path)], baseline="dni")


def copied(run: Run, folder: Path) -> Path:
    return Path(shutil.copytree(run.folder, folder / "copy"))


def test_a_damaged_run_says_so(din: Run, tmp_path: Path) -> None:
    copy = copied(din, tmp_path)
    with pytest.raises(RunError, match=r"no such folder; runs beside it: copy"):
        open_run(tmp_path / "coyp")
    with pytest.raises(RunError, match=r"no config\.yaml"):
        open_run(tmp_path)
    (copy / "predictions" / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="a Parquet file"):
        evaluate(copy)
    pq.write_table(pa.table({"row": [1]}), copy / "predictions" / "test.parquet")
    with pytest.raises(RunError, match="no column label, score, time, user"):
        evaluate(copy)
    about = json.loads((copy / "log.json").read_text())
    (copy / "log.json").write_text(json.dumps({**about, "path": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match=r"cannot be opened .*\n  Prepare it again: longrec prepare .*config\.yaml"):
        open_run(copy).log()
    (copy / "checkpoints" / "best" / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=r"weights\.safetensors"):
        open_run(copy).model()
    (copy / "results.json").write_text("{}")
    with pytest.raises(RunError, match="not readable"):
        open_run(copy)


def test_a_table_of_one_class_is_no_figure(din: Run, tmp_path: Path) -> None:
    copy = copied(din, tmp_path)
    table = din.predictions()
    table = table.set_column(3, "label", pa.array(np.ones(len(table), np.float32)))
    pq.write_table(table, copy / "predictions" / "test.parquet")
    with pytest.raises(DataError, match="rows that are all 1"):
        evaluate(copy)


def test_explain_lists_each_history_event_and_its_weight(din: Run, shop: Path) -> None:
    table, log = din.predictions(), din.log()
    row = table["row"][11].as_py()
    explanation = explain(din, row)
    assert (explanation["row"], explanation["label"]) == (row, table["label"][11].as_py())
    assert explanation["score"] == pytest.approx(table["score"][11].as_py(), abs=1e-6)
    events = pq.read_table(shop.parent / "events.parquet").to_pylist()
    own = [e for e in events if e["user_id"] == explanation["user"] and e["at"] * 1_000 < explanation["moment"]][-10:]
    assert any(e["item_id"] == explanation["item"] and e["at"] * 1_000 == explanation["time"] for e in events)
    items = explanation["histories"]["seen"]
    assert [e["item"] for e in items] == [e["item_id"] for e in own]
    assert [e["time"] for e in items] == [e["at"] * 1_000 for e in own]
    assert [e["ago"] for e in items] == [explanation["moment"] - e["at"] * 1_000 for e in own]
    assert [e["side"]["genre"] for e in items] == [f"g{(e['item_id'] - 1_000) % 4}" for e in own]
    assert [max(e["side"]["stars"], 1) for e in items] == [e["stars"] for e in own]
    with torch.inference_mode():
        weights = din.model().explain(gather(log, np.array([row])))["seen"]  # type: ignore[operator]
    assert [e["weight"] for e in items] == pytest.approx(weights.tolist())
    json.dumps(explanation)
    with pytest.raises(RunError, match="no such row"):
        explain(din, len(log))


def test_explain_without_weights_or_before_feedback(lr: Run, shop: Path, folder: Path) -> None:
    assert explain(lr, 5)["histories"] == {}
    overrides = ["name=late", "data.schema.label_delay=15d", f"fit.runs={folder}", *QUICK]
    late = train(shop, overrides, quiet=True)
    row = late.predictions()["row"][20].as_py()
    assert {event["side"]["stars"] for event in explain(late, row)["histories"]["seen"]} == {"not yet known"}


def test_explain_reads_pre_joined_rows(folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = 300
    items = [[int(one) for one in random.integers(10, 30, random.integers(0, 5))] for _ in range(rows)]
    item = random.integers(10, 30, rows)
    click = [float(any(one % 3 == its % 3 for one in own)) for its, own in zip(item, items)]
    split = np.where(np.arange(rows) < 200, "train", np.where(np.arange(rows) < 250, "valid", "test"))
    columns = {"user": np.arange(rows) % 50, "item": item, "click": click, "part": split, "past": items}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    schema = {
        "user": "user",
        "item": "item",
        "label": "click",
        "features": {"item": {"kind": "id"}},
        "histories": {"seen": {"features": ["item"], "columns": {"item": "past"}, "max_length": 3}},
    }
    log = {"log": str(tmp_path / "rows.parquet"), "split": {"by": "column", "column": "part"}}
    job = {
        "name": "joined",
        "data": {**log, "folder": str(tmp_path / "prepared"), "schema": schema},
        "model": {"name": "din", "embedding_dim": 2, "attention": [4], "mlp": [4]},
        "fit": {"runs": str(folder), "epochs": 1, "batch_size": 50, "tensorboard": "off", "mlflow": "off"},
        "evaluate": {"n_resamples": 5},
    }
    run = train(job, quiet=True)
    for row in run.predictions()["row"].to_pylist()[:8]:
        evaluation = explain(run, row)
        user, its = evaluation["user"], evaluation["item"]
        expected = [own[-3:] for own, u, i in zip(items, columns["user"], item) if (u, i) == (user, its)]
        assert [event["item"] for event in evaluation["histories"]["seen"]] in expected
        assert all(event["time"] is None and event["ago"] is None for event in evaluation["histories"]["seen"])
