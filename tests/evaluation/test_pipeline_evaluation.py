"""A pipeline evaluated from end to end: against full rankings, against coins that later events hold, and by hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from longrec import commands
from longrec.cli import main
from longrec.data.log import Log
from longrec.errors import ConfigError, RunError
from longrec.evaluation import pipeline_evaluation
from longrec.evaluation.compare import compare_pipelines
from longrec.evaluation.pipeline_evaluation import evaluate_pipeline
from longrec.evaluation.requests import Contexts, choose_requests
from longrec.evaluation.results import PipelineEvaluation
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.retriever_lists import count_ranked_items

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_next_item import write_config

SASREC = "model={name: sasrec, embedding_dim: 8, negatives: 10}"


def write_pipeline(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@dataclasses.dataclass(frozen=True)
class Shop:
    """Runs of one log with their bundles, and pipelines over them."""

    folder: Path
    runs: dict[str, Run]

    def write(self, name: str, **content: Any) -> Path:
        recall = {
            "sasrec": {"bundle": "sasrec.bundle", "count": 8},
            "knn": {"bundle": "knn.bundle", "count": 6},
        }
        return write_pipeline(self.folder / f"{name}.yaml", **{"recall": recall, "merge": {"count": 10}, **content})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    config = write_config(folder, follows=0.9, new_items=5)
    keep = ["evaluate.seen=keep"]
    runs = {
        "knn": train(config, ["name=knn", "model=item_knn", *keep], quiet=True),
        "sasrec": train(config, ["name=sasrec", SASREC, "fit.epochs=2", *keep], quiet=True),
    }
    for name, run in runs.items():
        commands.export(run, folder / f"{name}.bundle")
    return Shop(folder, runs)


@pytest.fixture(scope="module")
def measured(shop: Shop) -> PipelineEvaluation:
    path = shop.write("open", filter={"seen": False}, rerank=[{"method": "mmr", "lambda": 0.3, "vectors": "sasrec"}])
    return evaluate_pipeline(path, shop.runs["sasrec"], "valid", k=5, n_resamples=20, quiet=True)


def test_a_source_has_the_hits_of_its_full_ranking(shop: Shop, measured: PipelineEvaluation) -> None:
    """The same targets, the same histories and the same items that exist: the same hits, row by row."""
    for name, run in shop.runs.items():
        table = run.predictions("valid")
        assert table["row"].to_numpy().tolist() == measured.row.tolist()
        rank = table["rank"].to_numpy()
        plain = rank % 1 == 0  # ties have mid ranks in a full ranking, and an order in a list
        hits = measured.stages[f"recall.{name}"].values["hr@5"]
        assert plain.mean() > 0.8
        np.testing.assert_array_equal(hits[plain], (rank < 5)[plain])
        longer = measured.stages[f"alone.{name}"].values["recall@10"]
        np.testing.assert_array_equal(longer[plain], (rank < 10)[plain])


def test_the_table_has_every_stage_each_source_alone_and_floors(measured: PipelineEvaluation) -> None:
    stages = ["recall.sasrec", "recall.knn", "alone.sasrec", "alone.knn", "merge", "rerank.mmr", "top"]
    assert list(measured.stages) == [*stages, "floor.popularity", "floor.random"]
    metrics = measured.metrics
    assert 8 <= metrics["merge"]["candidates"].value == metrics["rerank.mmr"]["candidates"].value <= 10
    lengths = {name: own["candidates"].value for name, own in metrics.items() if name not in ("merge", "rerank.mmr")}
    assert lengths == {
        "recall.sasrec": 8,
        "recall.knn": 6,
        "alone.sasrec": 10,
        "alone.knn": 10,
        "top": 5,
        "floor.popularity": 10,
        "floor.random": 10,
    }
    for name, own in metrics.items():
        assert own["hr@5"].low <= own["hr@5"].value <= own["hr@5"].high
        assert ("cpu_ms" in own) != name.startswith("floor.")
        assert {"coverage@5", "gini@5", "novelty@5", "popularity_bias@5", "diversity@5", "serendipity@5"} < set(own)
    assert metrics["recall.knn"]["hr@5"].value > metrics["floor.popularity"]["hr@5"].value
    assert metrics["rerank.mmr"]["diversity@5"].value > metrics["merge"]["diversity@5"].value
    assert metrics["top"]["ndcg@5"].value == metrics["rerank.mmr"]["ndcg@5"].value
    assert metrics["floor.random"]["hr@5"].value == pytest.approx(5 / 40, abs=0.1)
    text = measured.format()
    for shown in ("sasrec alone, 10", "floor: popular", "top (page)", "item popularity", "±"):
        assert shown in text


def with_catalog(run: Run, catalog: str) -> Run:
    """Return a run whose evaluation ranks other items."""
    other, config = dataclasses.replace(run), run.config
    evaluate = config.evaluate.model_copy(update={"catalog": catalog})
    other.__dict__["config"] = dataclasses.replace(config, evaluate=evaluate)
    return other


@pytest.mark.parametrize("catalog", ["existing", "all"])
def test_items_that_did_not_exist_are_listed_only_where_they_are_relevant(shop: Shop, catalog: str) -> None:
    """The log ends with items that occur then for the first time. A list as long as the catalog has all that may be."""
    path = shop.write("long", filter={"seen": False}, merge={"count": 45})
    content = yaml.safe_load(path.read_text())
    for source in content["recall"].values():
        source["count"] = 45
    run = with_catalog(shop.runs["knn"], catalog)
    result = evaluate_pipeline(write_pipeline(path, **content), run, k=45, n_resamples=10, quiet=True)
    log = run.log()
    for name in ("recall.sasrec", "recall.knn", "alone.sasrec", "merge", "top", "floor.popularity", "floor.random"):
        stage = result.stages[name]
        assert (stage.values["hr@45"] == 1).all()
        expected = count_ranked_items(log, result.row, run.config.evaluate)
        np.testing.assert_array_equal(stage.values["candidates"], expected)
    assert result.catalog == 45
    valid = evaluate_pipeline(path, run, "valid", k=45, n_resamples=10, quiet=True)
    assert valid.catalog == (40 if catalog == "existing" else 45)


def flip_later_events(folder: Path, cutoff: int, seed: int) -> None:
    """Replace the item of every event at or after a time by a coin."""
    table = pq.read_table(folder / "log.parquet")
    late = table["at"].to_numpy() >= cutoff
    items = np.where(late, np.random.default_rng(seed).integers(0, 40, len(table)), table["item"].to_numpy())
    pq.write_table(table.set_column(table.column_names.index("item"), "item", pa.array(items)), folder / "log.parquet")


def export_with_coins(folder: Path, seed: int) -> tuple[Path, Run]:
    """Train and export on a log whose events from a cutoff on are coins, and return a pipeline with the run."""
    config = write_config(folder, follows=0.9, users=60)
    times = np.sort(pq.read_table(folder / "log.parquet")["at"].to_numpy())
    cutoff = int(times[int(len(times) * 0.8)])
    flip_later_events(folder, cutoff, seed)
    split = f"data.split={{by: time, valid_from: {cutoff - 1}, test_from: {cutoff}}}"
    run = train(config, ["name=knn", "model=item_knn", split, "evaluate.catalog=all"], quiet=True)
    commands.export(run, folder / "knn.bundle")
    return write_pipeline(folder / "one.yaml", recall={"knn": "knn.bundle"}, filter={"seen": True}), run


def list_pages(path: Path, run: Run, delay: int = 0) -> tuple[PipelineEvaluation, list[Any]]:
    """Return an evaluation with the lists of all stages.

    Args:
        delay: what is added to the timestamp of a request, as the stages get it.
    """
    inner = pipeline_evaluation.list_stages

    def delayed(service: Any, requests: Any, *others: Any) -> Any:
        log = requests.log
        before, log.timestamps = log.timestamps, np.asarray(log.timestamps) + delay
        try:
            return inner(service, requests, *others)
        finally:
            log.timestamps = before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_evaluation, "list_stages", delayed)
        result = evaluate_pipeline(path, run, targets="later", k=5, n_resamples=10, quiet=True)
    stages = [own for name, own in result.stages.items() if not name.startswith("floor.")]
    return result, [(own.group.tolist(), own.item.tolist()) for own in stages]


def test_no_list_depends_on_the_target_or_on_later_events(tmp_path: Path) -> None:
    """Two logs that differ in coins from the cutoff on. A request is the first event of a user from there on."""
    first, lists = list_pages(*export_with_coins(tmp_path / "a", 1))
    path, run = export_with_coins(tmp_path / "b", 2)
    second, same = list_pages(path, run)
    assert first.row.tolist() == second.row.tolist()
    assert lists == same
    assert first.metrics["top"]["recall@5"].value != second.metrics["top"]["recall@5"].value
    # One unit later, the event of the request itself is in the history: the coins show.
    assert list_pages(path, run, delay=1)[1] != lists


def test_all_later_positives_are_relevant(shop: Shop) -> None:
    log = shop.runs["knn"].log()
    requests = choose_requests(log, "test", "later")
    rows = log.rows_of("test")
    for number, row in enumerate(requests.rows.tolist()):
        own = rows[log.user(rows) == log.user(np.array([row]))[0]]
        assert row == own.min()
        expected = set(log.events.columns["item"].take(own).tolist())
        assert set(requests.relevant[requests.owner == number].tolist()) == expected
    some = choose_requests(log, "test", "later", count=7, seed=3)
    assert len(some) == 7
    assert set(some.rows.tolist()) < set(requests.rows.tolist())
    for number, row in enumerate(some.rows.tolist()):
        other = requests.rows.tolist().index(row)
        assert set(some.relevant[some.owner == number]) == set(requests.relevant[requests.owner == other])
    with pytest.raises(ConfigError, match="did you mean 'later'"):
        choose_requests(log, "test", "latr")  # type: ignore[arg-type]


def test_pipelines_are_compared_by_request(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(shop.runs["sasrec"].folder)
    for name, content in {
        "both": {},
        "one": {"recall": {"knn": {"bundle": "knn.bundle", "count": 10}}},
    }.items():
        path = shop.write(name, **content)
        assert main(["evaluate", str(path), "--requests", run, "--rows", "60", "--k", "4"]) == 0
    printed = capsys.readouterr().out
    assert "60 requests (drawn from" in printed
    folder = shop.folder / "both.evaluation"
    assert (folder / "table.txt").read_text().strip() in printed
    assert json.loads((folder / "results.json").read_text())["stages"]["top"]["hr@4"]["value"] > 0
    pages = [str(shop.folder / f"{name}.yaml") for name in ("both", "one")]
    assert main(["compare", *pages, "--n-resamples", "50", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    both, one = (pq.read_table(shop.folder / f"{name}.evaluation" / "requests.parquet") for name in ("both", "one"))
    gain = one["hr@4"].to_numpy().mean() - both["hr@4"].to_numpy().mean()
    assert result["differences"]["one"]["hr@4"]["value"] == pytest.approx(gain)
    assert {"coverage@4", "gini@4", "cpu_ms"} < set(result["differences"]["one"])
    assert "diversity@4" not in result["differences"]["one"]  # the one source has no vectors
    other = evaluate_pipeline(shop.write("other"), run, k=4, count=50, n_resamples=10, quiet=True).save(
        tmp_path / "other"
    )
    with pytest.raises(RunError, match="other requests"):
        compare_pipelines([folder, other])
    with pytest.raises(RunError, match="no results of a pipeline"):
        compare_pipelines([folder, tmp_path])
    with pytest.raises(ConfigError, match="named twice"):
        compare_pipelines([folder, folder])


def test_a_model_of_another_split_is_warned_of(shop: Shop) -> None:
    other = dataclasses.replace(shop.runs["knn"])
    data = other.config.data
    later = data.model_copy(update={"split": data.split.model_copy(update={"test": 0.3})})
    other.__dict__["config"] = dataclasses.replace(other.config, data=later)
    result = evaluate_pipeline(shop.write("open"), other, count=10, n_resamples=5, quiet=True)
    assert [warning.split(":")[0] for warning in result.warnings] == ["recall.sasrec.bundle", "recall.knn.bundle"]
    assert "may have learned from the requests" in result.warnings[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--requests: is required for a pipeline"),
        (["--requests", "RUN", "--log", "x"], "--log: is for a run"),
        (["--requests", "RUN", "--rows", "-1"], "--rows: must be 0 or more"),
        (["--requests", "RUN", "--k", "0"], "--k: must be at least 1"),
        (["--requests", "RUN", "--vectors", "none"], "no source in recall named 'none'"),
    ],
)
def test_options_that_do_not_fit(shop: Shop, options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(shop.runs["knn"].folder)
    path = shop.write("open")
    assert main(["evaluate", str(path), *[run if one == "RUN" else one for one in options]]) == 2
    assert says in capsys.readouterr().err
    assert main(["evaluate", str(shop.folder / "job.yaml")]) == 2
    assert "is no pipeline: it has no section recall" in capsys.readouterr().err
    assert main(["evaluate", run, "--rows", "5"]) == 2
    assert "--rows: is for a pipeline" in capsys.readouterr().err


def test_contexts_are_decoded_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    columns = {
        "user": random.integers(0, 9, 200),
        "item": random.integers(0, 9, 200),
        "at": np.arange(200),
        "tab": random.choice(["home", "search"], 200),
        "word": random.choice(["a", "b"], 200),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "at", "unit": "step"},
        "features": {"item": {"kind": "id"}, "tab": {"kind": "id"}, "word": {"kind": "id", "hash": 50}},
    }
    prepared = commands.prepare(
        {
            "data": {"log": str(tmp_path / "log.parquet"), "folder": str(tmp_path / "prepared"), "schema": schema},
            "model": "popularity",
        }
    )
    from longrec.features.schema import Schema

    log = Log.open(prepared["folder"], Schema(**schema))
    contexts = Contexts(log, ["tab", "word", "weather"])
    by_time = dict(zip(columns["at"].tolist(), columns["tab"].tolist()))
    for row in (0, 50, 199):
        assert contexts.read(row) == {"tab": by_time[int(log.events.times[row])], "word": None, "weather": None}
    assert [text.split(":")[0] for text in contexts.warn()] == ["context weather", "context word"]
