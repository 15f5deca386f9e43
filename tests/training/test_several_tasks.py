"""Tests of models of several tasks in a run: training, files, tables and serving."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec import metrics
from longrec.cli import main
from longrec.commands import export
from longrec.data import synthetic
from longrec.data.gather import gather
from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.reporting import results_table
from longrec.training.evaluate import compare, evaluate, predict
from longrec.training.finished_run import Run, open_run
from longrec.training.fit import train

MODEL = {"name": "mmoe", "experts": 2, "expert": [8], "tower": [], "tasks": {"click": 0.5, "back": 0.1}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run on a synthetic dataset with a further label, delayed by hours and missing in one row of three."""
    folder = tmp_path_factory.mktemp("tasks")
    dataset = generate_dataset("rare_orders", users=60, towns=4, orders=0.8)
    rows = np.arange(len(dataset.log))
    log = dataset.log.append_column("back", pa.array(rows % 2, mask=rows % 3 == 0))
    log = log.append_column("place", pa.array(rows % 5))
    log = log.set_column(2, "time", pa.array(synthetic.START + rows % 30 * 3_600 + rows // 30 * 60))
    features = {"back": {"kind": "id", "feedback": True, "available_after": "3h"}, "place": {"kind": "id"}}
    history = {"seen": {"features": ["item", "click"], "max_length": 3}}
    schema = {**dataset.schema, "features": {**dataset.schema["features"], **features}, "histories": history}
    dataset = replace(dataset, log=log, schema=schema, split={"by": "time", "valid": 0.2, "test": 0.2})
    synthetic.write(dataset, folder)
    job = dataset.job(folder, MODEL, epochs=1, runs=str(folder / "runs"), tensorboard="off", mlflow="off")
    job["data"] |= {"folder": str(folder / "prepared"), "threads": 1}
    return {**job, "evaluate": {"n_resamples": 20}}


@pytest.fixture(scope="module")
def plain(job: dict[str, Any]) -> Run:
    return train({**job, "name": "plain"}, quiet=True)


def test_predictions_hold_every_task(plain: Run, job: dict[str, Any]) -> None:
    table, log, model = plain.predictions(), plain.log(), plain.model()
    assert table.column_names == [
        *("row", "user", "time", "label", "score", "label.click", "score.click", "label.back", "score.back")
    ]
    rows = table["row"].to_numpy().copy()
    source = pq.read_table(job["data"]["log"])
    for name in ("click", "back"):
        assert table[f"label.{name}"].to_pylist() == source[name].take(pa.array(rows)).to_pylist(), name
    assert table["label.back"].null_count > 0
    logits = model.logits(gather(log, rows)).detach().sigmoid().numpy()
    for index, name in enumerate(("score", "score.click", "score.back")):
        np.testing.assert_allclose(table[name].to_numpy(), logits[:, index], atol=1e-5)


def test_training_knows_no_label_that_came_after_the_split(plain: Run) -> None:
    log = plain.log()
    batch = gather(log, log.rows_of("test"), ["click"])
    assert batch.task_labels["click"].isnan().all(), "though predictions tell it"
    late = gather(log, log.rows_of("train"), ["back"]).task_labels["back"]
    assert 0.33 < late.isnan().float().mean() < 1


def test_metrics_of_every_task_are_those_of_its_labeled_rows(plain: Run, capsys: pytest.CaptureFixture[str]) -> None:
    table = plain.predictions()
    labeled = table.filter(table["label.back"].is_valid())
    for name, rows in (("click", table), ("back", labeled)):
        label, score = (rows[f"{kind}.{name}"].to_numpy() for kind in ("label", "score"))
        assert plain.metrics[f"auc.{name}"].value == pytest.approx(metrics.auc(label, score))
        assert plain.metrics[f"log_loss.{name}"].value == pytest.approx(metrics.log_loss(label, score))
        assert plain.metrics[f"pcoc.{name}"].value == pytest.approx(metrics.pcoc(label, score))
    assert "auc.label" not in plain.metrics, "which is auc"
    assert evaluate(plain).metrics == plain.metrics
    text = results_table("plain", plain.results)
    assert "\nAUC of click " in text
    assert "\nLog loss of back " in text
    main(["evaluate", str(plain.folder)])
    assert "AUC of back" in capsys.readouterr().out


def test_a_bad_task_carries_its_own_warning(plain: Run) -> None:
    table = plain.predictions()
    low = pa.array(table["score.click"].to_numpy() / 10)
    changed = table.set_column(table.column_names.index("score.click"), "score.click", low)
    evaluation = plain.objective.measure(changed, "x", "mmoe", "test", plain.config.evaluate)
    assert any(said.startswith("PCOC of click on test is ") for said in evaluation.warnings)
    assert evaluation.to_dict()["warnings"] == list(evaluation.warnings)
    text = results_table("x", evaluation.to_dict())
    assert "\nwarning: PCOC of click on test is " in text


def test_a_task_of_one_class_is_undefined_and_stops_nothing(plain: Run) -> None:
    table = plain.predictions()
    nothing = pa.nulls(len(table), pa.float32())
    for column in (nothing, pa.array(np.ones(len(table), np.float32))):
        changed = table.set_column(table.column_names.index("label.back"), "label.back", column)
        evaluation = plain.objective.measure(changed, "x", "mmoe", "test", plain.config.evaluate).metrics
        assert not evaluation["auc.back"].defined
        assert evaluation["auc.click"] == plain.metrics["auc.click"]


def run_copy(run: Run) -> Run:
    return open_run(shutil.copytree(run.folder, run.folder.with_name("copy")))


def test_a_joined_score_is_measured_beside_its_label_and_served(job: dict[str, Any], tmp_path: Path) -> None:
    small = {"encoder": 0, "heads": 1, "position": "time", "experts": 1}
    model = {**MODEL, **small, "name": "dmt", "bias": ["place"], "rank_by": {"label": 1.0, "click": 0.5}}
    run = train({**job, "name": "joined", "model": model}, quiet=True)
    table = run.predictions()
    assert table.column_names[5:] == [*("score.label", "label.click", "score.click", "label.back", "score.back")]
    p = {name: table[f"score.{name}"].to_numpy() for name in ("label", "click")}
    np.testing.assert_allclose(table["score"].to_numpy(), p["label"] * p["click"] ** 0.5, rtol=1e-4)
    label = table["label"].to_numpy()
    assert run.metrics["auc.label"].value == pytest.approx(metrics.auc(label, p["label"]))
    assert run.metrics["auc"].value == pytest.approx(metrics.auc(label, table["score"].to_numpy()))
    assert run.metrics["pcoc"].value < 0.8, "a product of probabilities"
    said = compare([run, run_copy(run)]).warnings
    assert not any("PCOC on test" in one or "entropy on test" in one for one in [*run.results["warnings"], *said])
    again = pq.read_table(predict(run, "test", tmp_path / "again.parquet", quiet=True))
    assert again.equals(table)
    manifest = export(run, tmp_path / "bundle")
    assert manifest.parity["golden"]["worst"] < 1e-5


def test_a_task_that_is_no_target_is_refused_before_training(job: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the target 'item' is no feedback"):
        train({**job, "name": "wrong", "model": {**MODEL, "tasks": {"item": 1.0}}}, quiet=True)
