"""A ranker trained on the candidates of its own pipeline: a known answer, equal values online, and coins."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

import longrec as lr
from longrec.cli import main
from longrec.data.catalog import compute_first_timestamps
from longrec.errors import ConfigError, DataError, RunError
from longrec.evaluation.candidate_log import CandidateReport, write_candidates
from longrec.exporting.bundle import read_manifest
from longrec.pipeline.stage_columns import StageColumns, list_stage_columns
from longrec.training.finished_run import Run
from longrec.training.fit import train

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_next_item import write_config

RANKS = {
    f"rank_{name}": {"kind": "bucketized", "side": "candidate", "edges": [2, 3, 5]} for name in ("popular", "covisit")
}
SCORES = {
    f"score_recall_{name}": {"kind": "numeric", "side": "candidate", "scale": "log"} for name in ("popular", "covisit")
}
LIN = {"name": "lr"}
DIN = {"name": "din", "embedding_dim": 4, "attention": [4], "mlp": [8]}


@dataclasses.dataclass(frozen=True)
class Shop:
    """Two retrievers of a log, their pipeline, and its candidates."""

    folder: Path
    run: Run
    report: CandidateReport

    def write(self, name: str, **content: Any) -> Path:
        recall = {name: {"bundle": f"{name}.bundle", "count": 8} for name in ("popular", "covisit")}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"recall": recall, "filter": {"seen": False}, **content}, sort_keys=False))
        return path

    def train(self, name: str, features: dict[str, Any], model: dict[str, Any]) -> Run:
        """Train a ranker on the candidates."""
        config = yaml.safe_load((self.folder / "job.yaml").read_text())
        own = config["data"]["schema"]
        own |= {"label": "relevant", "candidate": "candidate"}
        own["features"] = {"item": {"kind": "id"}, **features}
        config["data"] |= {"log": str(self.folder / "own.parquet"), "split": {"by": "column", "column": "split"}}
        fit = {**config["fit"], "epochs": 8, "lr": 0.03}
        content = {"name": name, "data": config["data"], "model": model, "fit": fit}
        return train({**content, "evaluate": {"n_resamples": 20}}, quiet=True)

    def rank(self, name: str, features: dict[str, Any], model: dict[str, Any], **content: Any) -> Path:
        """Train a ranker, and return a pipeline with it."""
        lr.export(self.train(name, features, model), self.folder / f"{name}.bundle")
        return self.write(f"ranked_{name}", rank={"bundle": f"{name}.bundle"}, **content)

    def measure(self, pipeline: Path) -> float:
        measured = lr.evaluate_pipeline(pipeline, self.run, "test", k=1, count=None, n_resamples=10, quiet=True)
        return measured.metrics[measured.page]["hr@1"].value


def build(folder: Path, follows: float, **changes: Any) -> Shop:
    config = write_config(folder, follows=follows, model="popularity", users=250, **changes)
    popular = train(config, ["name=popular"], quiet=True)
    covisit = train(config, ["name=covisit", "model={name: covisit}"], quiet=True)
    for name, run in (("popular", popular), ("covisit", covisit)):
        lr.export(run, folder / f"{name}.bundle")
    shop = Shop(folder, covisit, None)  # type: ignore[arg-type]
    path = shop.write("recall")
    report = write_candidates(path, covisit, folder / "own.parquet", with_events=True, quiet=True)
    return dataclasses.replace(shop, report=report)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return build(tmp_path_factory.mktemp("shop"), 0.9)


@pytest.fixture(scope="module")
def ranked(shop: Shop) -> Path:
    """A pipeline whose ranker reads scores, ranks, sources and a history."""
    sources = {"source": {"kind": "id", "side": "candidate"}}
    return shop.rank("din", {**RANKS, **SCORES, **sources}, DIN, log="shown")


def test_the_ranks_of_the_sources_are_the_answer(shop: Shop) -> None:
    """The item after i is i + 1 nine times of ten, which covisit lists first and popularity never."""
    pipelines = shop.write("merged"), shop.rank("plain", {}, LIN), shop.rank("ranks", RANKS, LIN)
    merged, plain, ranks = map(shop.measure, pipelines)
    assert ranks > 0.85 > 0.3 > max(merged, plain)


def test_a_retriever_does_not_train_on_candidates(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="a retriever does not train on rows of candidates"):
        shop.train("covisit_of_candidates", {}, {"name": "covisit"})


def test_rows_are_what_the_ranker_sees(shop: Shop, ranked: Path) -> None:
    """Every value of the file is that of a request, and every score of a row that of the rank stage."""
    table = pq.read_table(shop.report.path).filter(pc.field("candidate") == 1)
    names, rows = [*shop.report.columns], table.to_pylist()
    assert names == [
        "source",
        "score_recall_popular",
        "score_recall_covisit",
        "score_merge",
        "rank_popular",
        "rank_covisit",
    ]
    offline = lr.open_run(shop.folder / "runs" / "din").predict(table, candidates=True)["score"].to_pylist()
    own: dict[str, dict[int, Any]] = {}
    for row, score in zip(rows, offline):
        own.setdefault(row["request"], {})[row["item"]] = {**row, "score_rank": pytest.approx(score, abs=1e-5)}
    shown, read = {}, [*names, "score_rank"]
    with lr.open_pipeline(ranked, keep_log=True) as films:
        reader = StageColumns(list_stage_columns(films.config, "rank"))
        for request, items in own.items():
            first = next(iter(items.values()))
            shown[films.recommend(first["user"], 8, first["at"]).request] = request
            seen = films.trace(first["user"], 8, first["at"]).stages[-2].after
            online = {**reader.read(seen), "score_rank": pa.array(seen.score)}
            listed = pa.table({"item": seen.keys, **online}).to_pylist()
            assert {one["item"]: {name: one[name] for name in read} for one in listed} == {
                item: {name: one[name] for name in read} for item, one in items.items()
            }
    log = pq.read_table(shop.folder / "shown").to_pylist()
    assert len(log) == 8 * len(own)
    for one in log:
        assert {name: one[name] for name in read} == {
            name: own[shown[one["request"]]][one["item"]][name] for name in read
        }


def test_candidates_are_no_events(shop: Shop, ranked: Path) -> None:
    """Histories of the rows, of the bundle, and of new rows have the events alone."""
    run, plain = lr.open_run(shop.folder / "runs" / "din"), shop.run.log()
    log = run.log()
    assert len(log) == len(plain) + shop.report.rows
    rows = log.rows_of("train")
    assert len(rows) + len(log.rows_of("valid")) == shop.report.rows
    at, offsets = log.select_history("seen", rows)
    users, times = log.user(rows), log.timestamps.take(rows)
    expected, bounds = plain.select_history_at("seen", users, times)
    item, same = log.events.columns["item"], plain.events.columns["item"]
    np.testing.assert_array_equal(offsets, bounds)
    assert [log.items.key(int(one)) for one in item.take(at)] == [
        plain.items.key(int(one)) for one in same.take(expected)
    ]
    assert read_manifest(shop.folder / "din.bundle").counts["events"] == len(plain)


def test_only_items_that_existed_are_candidates(shop: Shop, tmp_path: Path) -> None:
    """The first event of an item is no candidate of its own request, and rows of training are reported."""
    recall = {name: {"bundle": str(shop.folder / f"{name}.bundle"), "count": 40} for name in ("popular", "covisit")}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump({"recall": recall, "filter": {"seen": False}}))
    log, into = shop.run.log(), tmp_path / "rows.parquet"
    report = write_candidates(path, shop.run, into, split="train", without_hit=True, quiet=True)
    table = pq.read_table(into)
    first = {log.items.key(row): at for row, at in enumerate(compute_first_timestamps(log)) if row}
    assert all(first[item] < at for item, at in zip(table["item"].to_pylist(), table["at"].to_pylist()))
    rows = log.rows_of("train")
    new = compute_first_timestamps(log).take(log.events.columns["item"].take(rows)) >= log.timestamps.take(rows)
    assert report.requests - report.hits == int(new.sum()) >= 40
    assert "recall.covisit.bundle: its model was trained on labels available until step" in report.format()
    assert f"{report.requests:,} of {report.requests:,} requests are earlier" in report.format()


def test_random_items_give_no_ranker_an_edge(tmp_path: Path) -> None:
    """With items drawn at random, scores, ranks and histories predict nothing on later candidates."""
    coins = build(tmp_path, 0.0)
    run = coins.train("din", {**RANKS, **SCORES}, DIN)
    later = tmp_path / "later.parquet"
    write_candidates(tmp_path / "recall.yaml", coins.run, later, split="test", quiet=True)
    auc = lr.evaluate(run, log=str(later)).metrics["auc"]
    assert auc.low < 0.5 < auc.high
    assert auc.high - auc.low < 0.2


def test_the_command_writes_samples_with_weights(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, into = str(shop.folder / "recall.yaml"), tmp_path / "rows.parquet"
    command = ["candidates", path, "--requests", str(shop.run.folder), "--into", str(into), "--quiet"]
    assert main([*command, "--negatives", "3", "--rows", "50", "--valid", "0.5"]) == 0
    text = capsys.readouterr().out
    assert "of 50 requests have their item in the list" in text
    rows, whole = pq.read_table(into).to_pylist(), pq.read_table(shop.report.path).to_pylist()
    requests = {row["request"] for row in rows}
    assert len(rows) == 4 * len(requests)
    assert {row["split"] for row in rows} == {"train", "valid"}
    full = {(row["request"], row["item"]): row for row in whole if row["request"] in requests}
    drawn = [full[row["request"], row["item"]] for row in rows]
    assert [{**row, "weight": 0, "split": ""} for row in rows] == [{**row, "weight": 0, "split": ""} for row in drawn]
    assert sum(row["weight"] for row in rows) == pytest.approx(len(full))
    assert all(row["weight"] == 1 for row in rows if row["relevant"])
    assert main([*command, "--negatives", "0", "--valid", "1"]) == 2
    text = capsys.readouterr().err
    assert "negatives: must be at least 1, got 0" in text
    assert "valid: must be at least 0 and below 1, got 1.0" in text


def test_faults_are_reported(shop: Shop, ranked: Path, tmp_path: Path) -> None:
    into, own = tmp_path / "rows.parquet", lr.open_run(shop.folder / "runs" / "din")
    with pytest.raises(RunError, match=r"rows of candidates \(data.schema.candidate: candidate\)"):
        write_candidates(ranked, own, into, quiet=True)
    with pytest.raises(ConfigError, match="no section of a ranker named 'rerank'; known: rank, prerank"):
        write_candidates(ranked, shop.run, into, before="rerank", quiet=True)
    with pytest.raises(ConfigError, match="is a bundle and no pipeline"):
        write_candidates(shop.folder / "covisit.bundle", shop.run, into, quiet=True)
    recall = {"covisit": {"bundle": "covisit.bundle"}, "other": {"bundle": "popular.bundle"}}
    with pytest.raises(ConfigError) as caught:
        lr.check(shop.write("wrong", recall=recall, rank={"bundle": "din.bundle"}))
    (fault,) = caught.value.faults
    assert fault.startswith("rank.bundle: reads columns of the candidate that no stage before it fills: rank_popular")
    assert fault.endswith("score_merge, rank_covisit, rank_other")
    assert not into.exists()
    schema = {**yaml.safe_load((shop.folder / "job.yaml").read_text())["data"]["schema"], "candidate": "user"}
    with pytest.raises(DataError, match="2 in row .*1 for a candidate, 0 or null for an event"):
        lr.prepare(str(shop.folder / "log.parquet"), schema=schema, folder=tmp_path / "prepared")
    for changes, fault in (
        ({"features": {"item": "id", "user": "id"}}, "features.user: reads 'user', the column of candidate"),
        ({"time": {"column": "at", "unit": "step", "order": "n"}}, "time.order: rows of candidates have no order"),
        ({"time": None, "histories": {}}, "candidate: marks rows that no stored history has, and time: is required"),
    ):
        with pytest.raises(ConfigError, match=fault):
            lr.Schema(**{**schema, **changes})
