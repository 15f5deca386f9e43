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
import torch
import yaml

from longrec import commands
from longrec.cli import main
from longrec.data.catalog import build_catalog, list_training_items
from longrec.data.gather import gather
from longrec.errors import ConfigError, DataError, RunError
from longrec.training import loop
from longrec.training.evaluate import compare, evaluate
from longrec.training.finished_run import Run, open_run, read_log
from longrec.training.fit import train
from longrec.training.full_ranking import Exclusions, recommend
from longrec.training.next_item_analysis import NextItemAnalysis

Same = Callable[[Path, Path], None]
ITEMS = 40


def write_config(
    folder: Path,
    *,
    follows: float,
    model: Any = "sasrec",
    users: int = 120,
    seed: int = 0,
    unit: int = 1,
    new_items: int = 0,
) -> Path:
    """Write a log in which the item after item i is i + 1 with a probability, else a random one, and a job.

    Args:
        new_items: number of further items, which occur after all other events only.
    """
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
        if new_items:
            rows["user"].append(user)
            rows["item"].append(ITEMS + user % new_items)
            rows["at"].append(5_000 + user)
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


@pytest.mark.parametrize("loss", ["softmax", "cross_entropy", "bce", "gbce"])
def test_items_that_training_does_not_have_are_not_ranked_first(tmp_path: Path, loss: str) -> None:
    """The scores of ``gbce`` are log-odds: a vector of zeros, which no loss reads, has a score above all others."""
    config = write_config(tmp_path, follows=0.9, model={**SASREC, "loss": loss}, new_items=9)
    run = train(config, ["fit.epochs=6"], quiet=True)
    log, model = read_log(run.config), run.model().eval()
    training = list_training_items(log)
    assert len(training) == ITEMS == len(log.items) - 10
    rows = log.rows_of("valid")
    with torch.no_grad():
        score = model.score_catalog(gather(log, rows), build_catalog(log, np.arange(len(log.items)), 10_000))  # type: ignore[operator]
    third = score[:, torch.from_numpy(training)].topk(3).values[:, -1]
    new = np.setdiff1d(np.arange(len(log.items)), training)
    assert (score[:, torch.from_numpy(new)].amax(1) < third).float().mean() > 0.8


def test_the_protocol_is_printed_with_the_results(sasrec: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(sasrec.folder)])
    text = capsys.readouterr().out
    assert "targets" in text
    assert "HR@5" in text
    assert "candidates: all items with an event before the target" in text
    assert "ties: at mid rank" in text
    assert evaluate(sasrec).protocol.items() > sasrec.results["protocol"].items()  # and that of lists


def test_a_fitted_model_measures_every_alternative_and_keeps_the_best(covisit: Run) -> None:
    lines = [json.loads(line) for line in (covisit.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    best = max(range(16), key=lambda number: lines[number]["ndcg@5"])
    assert covisit.results["best_step"] == best
    model: Any = covisit.model()
    assert model.selected["window"] in (5, 20)


def test_trackers_receive_every_alternative_of_a_fitted_model(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, int]] = []
    board = types.SimpleNamespace(
        add_scalar=lambda name, _, step: received.append((name, step)), close=lambda: received.append(("closed", 0))
    )
    writer = types.ModuleType("writer")
    writer.SummaryWriter = lambda folder, purge_step: board  # type: ignore[attr-defined]
    package = types.ModuleType("tensorboard")
    package.__spec__ = types.SimpleNamespace(name="tensorboard")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", writer)
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    train(config, ["name=boarded", "model={name: covisit}", "fit.tensorboard=auto"], quiet=True)
    assert [step for name, step in received if name == "valid/ndcg@5"] == list(range(16))
    assert received[-1] == ("closed", 0)


def test_retrievers_are_compared_by_target(sasrec: Run, covisit: Run, tmp_path: Path) -> None:
    comparison = compare([covisit, sasrec], n_resamples=20)
    assert comparison.objective == "next_item"
    assert set(comparison.differences["sasrec"]) == set(sasrec.metrics)
    with pytest.raises(ConfigError, match="over users"):
        compare([covisit, sasrec], resample="row")


def test_a_report_has_popularity_segments_and_recommendations(sasrec: Run, covisit: Run, tmp_path: Path) -> None:
    page = commands.report([covisit, sasrec], tmp_path / "report.html").read_text()
    for text in ("NDCG@5", "popularity", "Segments of test", "HR@5 sasrec", "Best rank", "Worst rank", "Recommended"):
        assert text in page
    assert "GAUC" not in page
    assert "Calibration" not in page


def test_popularity_ranks_are_those_of_its_scores(covisit: Run) -> None:
    log, table, config = covisit.log(), covisit.predictions(), covisit.config
    (popularity,) = NextItemAnalysis().predict_references(log, table, config.fit, config.evaluate)
    train_rows, items = log.rows_of("train"), log.events.columns["item"]
    counts = np.bincount(items[train_rows[log.labels[train_rows] > 0.5]], minlength=len(log.items))
    for index in (0, 7, 19):
        row = int(table["row"][index].as_py())
        target, now = int(items[row]), log.timestamps[row]
        seen = set(
            items[(log.user(np.arange(len(log))) == log.user(np.array([row]))) & (log.events.times < now)].tolist()
        )
        existing = {int(item) for item in np.unique(items[log.events.times < now])} | {target}
        others = [counts[item] for item in existing - (seen - {target}) - {target}]
        expected = sum(one > counts[target] for one in others) + sum(one == counts[target] for one in others) / 2
        assert popularity.table["rank"][index].as_py() == expected
    assert len(popularity.table) == len(table)


def test_recommendations_leave_out_what_the_user_has_seen(sasrec: Run) -> None:
    log, table = sasrec.log(), sasrec.predictions()
    row = int(table["row"][3].as_py())
    model: Any = sasrec.model()
    items = recommend(model, log, row, sasrec.config.evaluate, 8)
    assert len(items) == 8
    assert [score for _, score in items] == sorted((score for _, score in items), reverse=True)
    seen = Exclusions(log, sasrec.config.evaluate).find_seen(np.array([row]))[1] + 1
    assert not set(seen.tolist()) & {item for item, _ in items}
    rank = table["rank"][3].as_py()
    target = int(log.events.columns["item"][row])
    if rank < 8 and target not in seen:
        assert [item for item, _ in items].index(target) == rank


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
    "model",
    [SASREC, {**SASREC, "loss": "bce"}, {**SASREC, "loss": "gbce"}, {"name": "covisit"}],
    ids=["softmax", "bce", "gbce", "covisit"],
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
