"""Retrievers from a config to a finished run: objective, protocol, exact resume, and logs without a pattern."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from longrec.cli import main
from longrec.errors import ConfigError, DataError, RunError
from longrec.reporting.page import write_page
from longrec.reporting.run import read_run
from longrec.training import loop
from longrec.training.evaluate import compare, evaluate
from longrec.training.finished_run import Run, open_run
from longrec.training.fit import train

Same = Callable[[Path, Path], None]
ITEMS = 40


def write_config(
    folder: Path, *, follows: float, model: Any = "sasrec", users: int = 120, seed: int = 0, unit: int = 1
) -> Path:
    """Write a log in which the item after item i is i + 1 with a probability, else a random one, and a job."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[int]] = {"user": [], "item": [], "at": []}
    for user in range(users):
        item = int(random.integers(ITEMS))
        begin = int(random.integers(0, 2_000))
        for step in range(int(random.integers(8, 16))):
            rows["user"].append(user)
            rows["item"].append(item)
            rows["at"].append((begin + 100 * step + int(random.integers(40))) // unit)
            item = (item + 1) % ITEMS if random.random() < follows else int(random.integers(ITEMS))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), folder / "log.parquet")
    job = {
        "data": {
            "log": str(folder / "log.parquet"),
            "folder": str(folder / "prepared"),
            "schema": {
                "user": "user",
                "item": "item",
                "time": {"column": "at", "unit": "step"},
                "features": {"item": {"kind": "id"}},
                "histories": {"seen": {"features": ["item"], "max_length": 10}},
            },
        },
        "model": model,
        "fit": {
            **{"epochs": 12, "batch_size": 64, "lr": 0.01, "val_checks_per_epoch": 1, "l2": 0.0, "log_steps": 5},
            **{"runs": str(folder / "runs"), "tensorboard": "off", "mlflow": "off"},
        },
        "evaluate": {"n_resamples": 20, "k": [5], "recall_k": [20]},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


SASREC = {"name": "sasrec", "embedding_dim": 16, "dropout": 0.1, "negatives": 20}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("follows"), follows=0.9, model=SASREC)


@pytest.fixture(scope="module")
def sasrec(config: Path) -> Run:
    return train(config, ["name=sasrec"], quiet=True)


@pytest.fixture(scope="module")
def covisit(config: Path) -> Run:
    return train(config, ["name=covisit", "model={name: covisit}"], quiet=True)


def test_a_retriever_learns_what_follows(sasrec: Run, covisit: Run) -> None:
    for run in (sasrec, covisit):
        assert run.results["objective"] == "next_item"
        assert set(run.metrics) == {"hr@5", "ndcg@5", "mrr", "recall@20"}
        assert run.metrics["hr@5"].value > 0.75, "nine targets of ten are one more than the item before"
        assert run.results["rows"] == len(run.predictions()) == run.results["positives"]
        assert run.predictions().column_names == ["row", "user", "time", "item", "rank"]
        assert run.config.fit.monitor == "ndcg@5"
        assert run.results["warnings"] == []
    assert sasrec.results["stopped"] in ("epochs", "patience")
    assert covisit.results["stopped"] == "fitted"


def test_the_protocol_is_printed_with_the_results(sasrec: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(sasrec.folder)])
    text = capsys.readouterr().out
    assert "targets" in text
    assert "HR@5" in text
    assert "candidates: all items with an event before the target" in text
    assert "ties: at mid rank" in text
    assert evaluate(sasrec).protocol == sasrec.results["protocol"]


def test_a_fitted_model_measures_every_alternative_and_keeps_the_best(covisit: Run) -> None:
    lines = [json.loads(line) for line in (covisit.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    best = max(range(16), key=lambda number: lines[number]["ndcg@5"])
    assert covisit.results["best_step"] == best
    model: Any = covisit.model()
    assert model.selected["window"] in (5, 20)


def test_retrievers_are_compared_by_target(sasrec: Run, covisit: Run, tmp_path: Path) -> None:
    comparison = compare([covisit, sasrec], n_resamples=20)
    assert comparison.objective == "next_item"
    assert set(comparison.differences["sasrec"]) == set(sasrec.metrics)
    page = write_page(
        tmp_path / "report.html",
        "retrievers",
        {},
        [read_run(run.folder) for run in (covisit, sasrec)],
        comparison.to_dict(),
    )
    text = page.read_text()
    assert "NDCG@5" in text
    assert "GAUC" not in text
    with pytest.raises(ConfigError, match="over users"):
        compare([covisit, sasrec], resample="row")


def test_a_run_stopped_in_the_middle_ends_bit_identical(
    config: Path, sasrec: Run, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, update = 0, loop.update

    def interrupt(*arguments: Any, **named: Any) -> None:
        nonlocal done
        update(*arguments, **named)
        done += 1
        if done == 31:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "update", interrupt)
    with pytest.raises(RunError, match="stopped after step 31"):
        train(config, ["name=again"], quiet=True)
    monkeypatch.undo()
    folder = sasrec.folder.parent / "again"
    train(resume=folder, quiet=True)
    same(sasrec.folder, folder)


@pytest.mark.parametrize(
    "model", [SASREC, {**SASREC, "loss": "bce"}, {"name": "covisit"}], ids=["softmax", "bce", "covisit"]
)
def test_nothing_beats_chance_on_a_log_without_a_pattern(model: dict[str, Any], tmp_path: Path) -> None:
    path = write_config(tmp_path, follows=0.0, model=model, users=400, seed=1)
    run = train(path, ["evaluate.seen=keep", "evaluate.catalog=all", "fit.epochs=3"], quiet=True)
    rank = run.predictions()["rank"].to_numpy()
    middle, spread = (ITEMS - 1) / 2, ITEMS / np.sqrt(12 * len(rank))
    assert abs(rank.mean() - middle) < 4 * spread, "targets are uniform, so their mean rank is the middle"


def test_training_in_the_order_of_ties_reveals_no_target(tmp_path: Path) -> None:
    path = write_config(tmp_path, follows=0.0, model=SASREC, users=400, seed=2, unit=400)
    run = train(path, ["fit.ties=order", "evaluate.seen=keep", "evaluate.catalog=all", "fit.epochs=3"], quiet=True)
    rank = run.predictions()["rank"].to_numpy()
    assert abs(rank.mean() - (ITEMS - 1) / 2) < 4 * ITEMS / np.sqrt(12 * len(rank))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["fit.negative_rate=0.5"], "fit.negative_rate: is for rankers"),
        (["fit.group_requests=true"], "fit.group_requests: is for rankers"),
        (["fit.monitor=auc"], "fit.monitor: 'auc' is no metric of its validations"),
        (["fit.monitor=ndgc@5"], "did you mean 'ndcg@5'"),
        (["evaluate.resample=row"], "evaluate.resample: is for rankers"),
        (["model={name: din}", "evaluate.k=[7]"], "evaluate.k: is for retrievers"),
        (["model={name: din}", "fit.monitor=mrr"], "din has log_loss, auc, gauc"),
    ],
)
def test_settings_of_another_objective_are_refused(config: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        train(config, overrides, quiet=True)


def test_a_log_without_positives_is_refused(config: Path, tmp_path: Path) -> None:
    table = pq.read_table(config.parent / "log.parquet")
    pq.write_table(table.append_column("liked", pa.array(np.zeros(len(table), np.int64))), tmp_path / "log.parquet")
    overrides = [
        f"data.log={tmp_path / 'log.parquet'}",
        "data.schema.label=liked",
        f"data.folder={tmp_path / 'prepared'}",
    ]
    with pytest.raises(DataError):
        train(config, overrides, quiet=True)
    assert not (tmp_path / "runs").exists()


def test_a_run_knows_its_objective_and_not_another(sasrec: Run, tmp_path: Path) -> None:
    path = sasrec.folder / "results.json"
    before = path.read_text()
    try:
        path.write_text(before.replace('"next_item"', '"sorcery"'))
        with pytest.raises(RunError, match="not readable"):
            open_run(sasrec.folder)
    finally:
        path.write_text(before)


def test_names_of_metrics_suit_mlflow(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    mlflow = types.ModuleType("mlflow")
    mlflow.__spec__ = types.SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    started = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    for name, call in {
        "start_run": lambda **_: started,
        "log_params": lambda _: None,
        "log_metrics": lambda measures, step: names.extend(measures),
        "end_run": lambda _: None,
    }.items():
        setattr(mlflow, name, call)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    train(config, ["name=tracked", "fit.mlflow=auto", "fit.max_steps=3"], quiet=True)
    assert "valid_ndcg_at_5" in names
    assert all(re.fullmatch(r"[\w./ :-]+", name) for name in names)
