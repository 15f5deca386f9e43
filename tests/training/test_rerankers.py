"""Runs of re-rankers: a gain over the initial order where lists matter and none on coins, no leak, export and serving.

Items of the log get new names after the base was trained, so that the base has rows of its tables for none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from longrec.data import synthetic
from longrec.data.synthetic import SyntheticDataset, generate_dataset
from longrec.data.synthetic.crowded_lists import BASE, BASE_SPLIT, FROM
from longrec.errors import ConfigError, DataError, RunError
from longrec.exporting.bundle import RERANKER
from longrec.exports import export_run
from longrec.metrics import ndcg_at_k
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve.rerank_stage import RerankStage
from longrec.serve.service import Service
from longrec.training.evaluate import compare
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.new_data import predict_new
from longrec.training.seen_labels import read_seen_labels

ITEMS = 48


def rename_items(dataset: SyntheticDataset) -> SyntheticDataset:
    """Return the dataset with the feature ``item``, and with new items from ``FROM`` on, equal to former ones."""
    assert dataset.items is not None
    seconds, item = dataset.log["time"].to_numpy(), dataset.log["item"].to_numpy()
    is_new = (seconds >= np.datetime64(FROM, "s").astype(np.int64)) & (np.arange(len(item)) % 4 == 0)
    log = dataset.log.set_column(1, "item", pa.array(item + ITEMS * is_new))
    again = dataset.items.set_column(0, "item", pa.array(dataset.items["item"].to_numpy() + ITEMS))
    schema = {**dataset.schema, "features": {**dataset.schema["features"], "item": {"kind": "id"}}}
    return replace(dataset, log=log, items=pa.concat_tables([dataset.items, again]), schema=schema)


@dataclass
class Trained:
    """A dataset, and runs on it."""

    dataset: SyntheticDataset
    folder: Path
    base: Run

    def job(self, model: Any, name: str, split: Any, **fit: Any) -> dict[str, Any]:
        settings = {"runs": str(self.folder / "runs"), "tensorboard": "off", "mlflow": "off", **fit}
        job = self.dataset.job(self.folder, model, **{"val_checks_per_epoch": 1, **settings})
        job["data"] |= {"folder": str(self.folder / "prepared"), "threads": 1, "split": split}
        return {**job, "name": name, "evaluate": {"n_resamples": 100}}

    def train(self, name: str, **fit: Any) -> Run:
        settings = {"init_from": str(self.base.folder), "train_from": FROM, **fit}
        return train(self.job(self.dataset.must[0], name, self.dataset.split, **settings), quiet=True)


def start(folder: Path, **parameters: Any) -> Trained:
    dataset = rename_items(generate_dataset("crowded_lists", **parameters))
    synthetic.write(dataset, folder)
    trained = Trained(dataset, folder, None)  # type: ignore[arg-type]
    trained.base = train(trained.job(BASE, "base", BASE_SPLIT, epochs=1), quiet=True)
    return trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return start(tmp_path_factory.mktemp("lists"), users=250)


@pytest.fixture(scope="module")
def run(trained: Trained) -> Run:
    return trained.train("prm")


def columns_of(run: Run, *names: str) -> tuple[NDArray[Any], ...]:
    table = run.predictions()
    return tuple(table[name].to_numpy() for name in names)


def test_a_reranker_is_above_its_initial_order_and_near_the_best_one(trained: Trained, run: Run) -> None:
    metrics = run.metrics
    row, label, lists, base, score = columns_of(run, "row", "label", "list", "base", "score")
    best = trained.dataset.true_probability[row] + 1e-6 * np.random.default_rng(0).random(len(row))
    initial, best_ndcg = (ndcg_at_k(label, order, lists, 10) for order in (base, best))
    assert metrics["ndcg@10.base"].value == pytest.approx(initial)
    assert metrics["ndcg@10.gain"].low > 0.03
    assert metrics["ndcg@10"].value > initial + 0.7 * (best_ndcg - initial)
    assert not [warning for warning in run.results["warnings"] if "NDCG" in warning]
    assert run.results["objective"] == "lists"
    np.testing.assert_allclose(np.bincount(lists, score), 1, atol=1e-5)  # probabilities over each list
    assert (np.bincount(lists) == 9).all()


def test_the_initial_order_is_that_of_the_served_base(trained: Trained, run: Run) -> None:
    """Its logits are those of the run, by its best weights, also for items that came after its training."""
    row, base = columns_of(run, "row", "base")
    own_row, own_score = columns_of(trained.base, "row", "score")
    expected = dict(zip(own_row.tolist(), own_score.tolist()))
    item = trained.dataset.log["item"].to_numpy()[row]
    assert (item >= ITEMS).any()
    assert (item < ITEMS).any()
    np.testing.assert_allclose(1 / (1 + np.exp(-base)), [expected[one] for one in row.tolist()], atol=1e-6)


def test_pv_comes_from_a_base_that_has_seen_no_row_of_a_list(trained: Trained, run: Run) -> None:
    seen = read_seen_labels(trained.base).trained
    log = run.log()
    first = log.timestamps.take(log.rows_of("train")).min()
    assert seen is not None
    assert seen <= first
    with pytest.raises(
        RunError, match=r"base was trained on labels available until 2025-01-04.* first list is at 2025-01-01"
    ):
        trained.train("leak", train_from=None)
    with pytest.raises(RunError, match=r"set fit.train_from to 2025-01-04|Set fit.train_from to 2025-01-04"):
        trained.train("leak", train_from="2025-01-03")
    assert not (trained.folder / "runs" / "leak").exists()


def test_a_reranker_goes_on_from_its_own_run_under_the_same_rule(trained: Trained, run: Run) -> None:
    own = str(run.folder)
    with pytest.raises(RunError, match="base was trained on labels available until 2025-01-04"):
        trained.train("on", init_from=own, train_from="2025-01-02")
    further = trained.train("on", init_from=own, train_from="2025-01-06", max_steps=2)
    row, base = columns_of(further, "row", "base")
    np.testing.assert_array_equal(base, columns_of(run, "base")[0])
    result = compare([run.folder, further.folder])
    assert result.objective == "lists"
    assert result.differences["on"]["ndcg@10"].verdict in ("unclear", "better", "worse")


def test_coins_are_not_ordered(tmp_path: Path) -> None:
    coins = start(tmp_path, random_clicks=True, users=200)
    gain = coins.train("coins", epochs=2).metrics["ndcg@10.gain"]
    spread = (gain.high - gain.low) / 4
    assert abs(gain.value) < 4 * spread
    assert gain.value < 0.05


def test_settings_that_break_lists_are_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="5 faults") as error:
        trained.train(
            "wrong", group_requests=False, negative_rate=0.5, bucket_by_length=True, monitor="auc", windows="all"
        )
    text = str(error.value)
    for fault in (
        "fit.group_requests: must be true",
        "fit.negative_rate: a re-ranker",
        "fit.bucket_by_length: a re-ranker",
        "fit.windows: is for retrievers",
        "fit.monitor: 'auc' is no metric",
    ):
        assert fault in text
    with pytest.raises(ConfigError, match=r"fit.init_from: is required"):
        trained.train("wrong", init_from=None)


def test_a_log_without_lists_is_refused(trained: Trained) -> None:
    single = trained.job(trained.dataset.must[0], "single", trained.dataset.split, init_from=str(trained.base.folder))
    log = trained.dataset.log
    alone = log.set_column(2, "time", pa.array(log["time"].to_numpy() + np.arange(len(log)) % 9))
    single["data"]["log"] = {"frame": alone}
    with pytest.raises(DataError, match="lists of 1 rows on average, none with a click beside a row without one"):
        train(single, quiet=True)


def test_a_context_that_divides_lists_is_refused(trained: Trained) -> None:
    job = trained.job(trained.dataset.must[0], "slots", trained.dataset.split, init_from=str(trained.base.folder))
    log, schema = trained.dataset.log, trained.dataset.schema
    slot = {"slot": {"kind": "id", "side": "context"}}
    job["data"]["log"] = {"frame": log.append_column("slot", pa.array(np.arange(len(log)) % 3))}
    job["data"]["schema"] = {**schema, "features": {**schema["features"], **slot}}
    with pytest.raises(DataError, match=r"context \(slot\): values that differ between rows of one user and timestamp"):
        train(job, quiet=True)


def test_new_rows_are_no_lists(run: Run) -> None:
    with pytest.raises(RunError, match="orders whole lists and scores no single rows"):
        predict_new(run, "rows.parquet")


def test_a_report_names_the_initial_order(run: Run, tmp_path: Path) -> None:
    text = run.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "initial order" in text
    assert "gain in NDCG@10" in text


# ---- export and serving ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    folder = run.folder.parent / "prm.bundle"
    manifest = export_run(run, folder, overwrite=False)
    assert manifest.kind == RERANKER
    assert [one.name for one in manifest.programs["score"].outputs] == ["score", "initial_rank"]
    assert manifest.parity["golden"]["worst"] < 1e-6
    return folder


@pytest.fixture
def service(bundle: Path) -> Callable[[], Service]:
    return lambda: Service(bundle)


def test_the_service_ranks_a_list_of_the_log_as_the_run_does(
    trained: Trained, run: Run, service: Callable[[], Service]
) -> None:
    row, lists, score = columns_of(run, "row", "list", "score")
    served = service()
    try:
        for number in (0, 100, 400):
            own = lists == number
            keys = trained.dataset.log["item"].to_numpy()[row[own]]
            seconds = int(trained.dataset.log["time"].to_numpy()[row[own]][0])
            query = Query(int(trained.dataset.log["user"].to_numpy()[row[own]][0]), seconds * 1000)
            stage = RerankStage(served.served, name="prm")
            ranked = stage(Candidates.of(keys.tolist(), "recall"), query)
            expected = dict(zip(keys.tolist(), score[own].tolist()))
            np.testing.assert_allclose(ranked.scores["prm"], [expected[key] for key in ranked.keys.tolist()], atol=1e-5)
            assert (np.diff(ranked.score) <= 0).all()
            assert ranked.score.sum() == pytest.approx(1, abs=1e-5)
            # Another order of the candidates is the same list, and a shorter list is another one.
            again = stage(Candidates.of(keys[::-1].tolist(), "recall"), query)
            np.testing.assert_allclose(np.sort(again.score), np.sort(ranked.score), atol=1e-5)
            assert stage(Candidates.of(keys[:1].tolist(), "recall"), query).score.tolist() == [1.0]
            assert len(stage(Candidates.of([], "recall"), query)) == 0
            strange = Candidates.of([*keys.tolist(), 12345], "recall")
            assert len(RerankStage(served.served, drop_unknown=True)(strange, query)) == len(keys)
        assert served.check() < 1e-5
        assert list(served.pipelines) == ["/rank"]
    finally:
        served.close()
