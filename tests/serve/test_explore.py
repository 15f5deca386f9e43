"""Exploration in a pipeline: export of an explorer, the page, its log, and an off-policy estimate from it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longrec as lr
from longrec import exports
from longrec.cli import main
from longrec.config import to_yaml
from longrec.errors import BundleError, ConfigError, RequestError
from longrec.evaluation.compare import compare_pipelines
from longrec.evaluation.pipeline_evaluation import evaluate_pipeline
from longrec.exploration.age import Age
from longrec.exploration.ensemble import Ensemble
from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import Output, ProgramFacts, list_inputs
from longrec.exporting.programs import build_programs
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.explore import assign_bucket
from longrec.serve import response_schemas
from longrec.serve.exploration_scorer import ExplorationScorer
from longrec.serve.explore_checks import _list_task_faults
from longrec.serve.service import Service
from longrec.training import loaders
from longrec.training.finished_run import open_run

USERS, ITEMS, K, SLOT = 60, 25, 5, 2
SHOWN = pa.array([None if n % 5 == 0 else 100 * n for n in range(ITEMS)], pa.int64())
NEW = [n for n in range(ITEMS) if (SHOWN[n].as_py() or 0) < 1200]


@dataclass(frozen=True)
class Shop:
    folder: Path
    data: dict[str, Any]

    def write(self, name: str = "page", **content: Any) -> Path:
        path = self.folder / f"{name}.yaml"
        base = {
            "recall": {"pop": {"bundle": "pop.bundle", "count": 20}},
            "rank": {"bundle": "dcn.bundle"},
            "filter": {"seen": False},
        }
        path.write_text(to_yaml({**base, **content}))
        return path

    @contextlib.contextmanager
    def open(self, keep_log: bool = False, **content: Any) -> Iterator[lr.Pipeline]:
        with lr.open_pipeline(self.write(**content), keep_log=keep_log) as opened:
            yield opened


def explore(**settings: Any) -> dict[str, Any]:
    return {"position": SLOT, "share": 0.5, "candidates": 8, **settings}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("explore")
    random, count = np.random.default_rng(0), 900
    log = {
        "user": random.integers(0, USERS, count),
        "item": random.integers(0, ITEMS, count),
        "at": 1_700_000_000 + np.sort(random.integers(0, 10**6, count)),
        "click": random.integers(0, 2, count),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    kind = [f"k{n % 3}" for n in range(ITEMS)]
    pq.write_table(pa.table({"item": range(ITEMS), "kind": kind, "shown": SHOWN}), folder / "items.parquet")
    features = {"user": {"kind": "id"}, "item": {"kind": "id"}, "kind": {"kind": "id", "side": "item"}}
    schema = {"user": "user", "item": "item", "time": {"column": "at", "unit": "s"}, "label": "click",
              "features": features, "histories": {"seen": {"features": ["item"], "max_length": 4}}}  # fmt: skip
    data = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet"), "schema": schema}
    with contextlib.chdir(folder):
        model = {"name": "dcn_v2", "mlp": [8], "cross_layers": 1, "embedding_dim": 4}
        run = lr.train({"name": "dcn", "data": data, "model": model, "fit": {"epochs": 1, "lr": 0.05}}, quiet=True)
        lr.export(run, "dcn.bundle", explore={"name": "thompson", "dropout": 0.2})
        popular = lr.train({"name": "pop", "data": data, "model": {"name": "popularity"}}, quiet=True)
        lr.export(popular, "pop.bundle")
    return Shop(folder, data)


def test_a_bundle_has_the_explorer_beside_the_ranker(shop: Shop) -> None:
    bundle = Bundle.open(shop.folder / "dcn.bundle")
    explorer = bundle.manifest.explorer
    assert explorer is not None
    assert (explorer.name, explorer.task, explorer.settings["dropout"]) == ("thompson", "label", 0.2)
    assert set(bundle.manifest.programs) == {"score", "explore"}
    golden = bundle.golden[0]
    assert golden.seed is not None
    assert np.abs(np.array(golden.exploration) - golden.scores).max() > 0
    assert bundle.manifest.parity["golden"]["worst"] < 1e-5
    with contextlib.closing(Service(bundle)) as service:
        assert service.check() < 1e-4
    other = msgspec.structs.replace(golden, exploration=[one + 0.01 for one in golden.exploration])
    bundle.golden[0] = other
    with contextlib.closing(Service(bundle)) as service, pytest.raises(BundleError, match=r"scores differ by 0\.01"):
        service.check()


def test_a_page_explores_one_position_and_keeps_the_scores(shop: Shop) -> None:
    below = {"column": "shown", "count": 1200}
    with shop.open() as plain, shop.open(name="other", explore=explore(share=1, below=below)) as pages:
        assert pages.stages[-2:] == ["explore", "top"]
        items = set[int]()
        for user in range(20):
            before, page = plain.recommend(user, 20), pages.recommend(user, K)
            keys = [item.id for item in before]
            assert page.explore is not None
            drawn = page.explore["item"]
            items.add(drawn)
            rest = [key for key in keys if key != drawn]
            assert [item.id for item in page] == [*rest[: SLOT - 1], drawn, *rest[SLOT - 1 : K - 1]]
            scores = {item.id: item.score for item in before}
            assert [item.score for item in page] == [scores[item.id] for item in page]
            assert {item.id for item in page if "explore" in item.scores} <= set(NEW)
        assert len(items) > 3
        assert items <= set(NEW)


def test_a_seed_repeats_a_page(shop: Shop) -> None:
    with shop.open(explore=explore(share=1)) as pages:
        page = pages.recommend(3, K)
        assert page.explore is not None
        seed = page.explore["seed"]
        others = {pages.recommend(3, K).explore["item"] for _ in range(30)}  # type: ignore[index]
        assert len(others) > 1
        assert all(pages.recommend(3, K, seed=seed).items == page.items for _ in range(3))
        assert pages.trace(3, K, seed=seed).page == [item.id for item in page]
        with pytest.raises(RequestError, match="seed: -1"):
            pages.recommend(3, K, seed=-1)
    with shop.open(explore=explore(share=1, seed=7)) as pages:
        first, second = (pages.recommend(3, K, at="2026-01-01T00:00:00Z") for _ in range(2))
        later = pages.recommend(3, K, at="2026-01-01T00:00:01Z")
        assert first.explore == second.explore != later.explore


def test_quotas_hold_on_an_explored_page(shop: Shop) -> None:
    mix = {"quotas": [{"attribute": "kind", "at_most": 2}]}
    with shop.open(mix=mix, explore=explore(share=1, candidates=30, temperature=50)) as pages:
        outside = 0
        for user in range(40):
            trace = pages.trace(user, K)
            assert len(trace.page) == K
            kinds = [key % 3 for key in trace.page]
            assert max(map(kinds.count, kinds)) <= 2
            before = trace.stage_keys["mix"]
            drawn = trace.page[SLOT - 1]
            if drawn not in before:
                outside += 1
                assert trace.find(drawn)[-2]["result"] == "explored"
        assert outside > 10


def test_the_log_of_explored_pages_estimates_another_policy(shop: Shop) -> None:
    below, fair = {"column": "shown", "count": 1200}, 0.3
    own = explore(below=below, control=fair, temperature=1.0, seed=1)
    log = {"folder": "impressions", "flush_seconds": 60}
    requests = [(user, 1_800_000_000 + round_ * 86_400) for round_ in range(6) for user in range(USERS)]
    with shop.open() as plain, shop.open(True, name="logged", explore=own, log=log) as pages:
        expected = {user: [item.id for item in plain.recommend(user, K, at=requests[-1][1])] for user in range(USERS)}
        answers = {answer.request: answer for answer in (pages.recommend(user, K, at=at) for user, at in requests)}
        replayed = pages.recommend(0, K, seed=5)
    table = pq.read_table(shop.folder / "impressions").to_pandas()
    replay = table[table["request"] == replayed.request]
    assert replay["propensity"].isna().all() or replay["bucket"].iloc[0] == "control"
    table = table[table["request"] != replayed.request]
    assert len(table) == K * len(requests)
    for request, rows in table.groupby("request"):
        answer = answers[str(request)]
        assert answer.explore is not None
        assert rows["item"].tolist() == [item.id for item in answer]
        assert (
            set(rows["bucket"])
            == {assign_bucket(int(rows["user"].iloc[0]), fair, "explore")}
            == {answer.explore["bucket"]}
        )
        assert rows["item"][rows["explored"]].tolist() == [answer.explore["item"]][: rows["explored"].sum()]
        assert (rows["propensity"] > 0).all()
        assert rows["propensity"].iloc[0] == 1
    control = table["bucket"] == "control"
    assert (table[control]["propensity"] == 1).all()
    assert table[control]["seed"].isna().all()
    share = table[~control].groupby("request")["explored"].any().mean()
    assert share == pytest.approx(0.5, abs=0.07)
    own_rows = table[~control]
    plain_item = [expected[user][position - 1] for user, position in zip(own_rows["user"], own_rows["position"])]
    reward = {item: 0.2 if item in NEW else 2.0 for item in range(ITEMS)}
    own_rows = own_rows.assign(reward=own_rows["item"].map(reward), target=(own_rows["item"] == plain_item) * 1.0)
    users = own_rows["user"].unique()
    slot = own_rows[own_rows["position"] == SLOT]
    assert slot["reward"].mean() < 1.0
    for rows, positions in ((own_rows, slice(None)), (slot, slice(SLOT - 1, SLOT))):
        estimate = lr.estimate_policy(rows, reward="reward", user="user", min_effective=20)
        truth = np.mean([reward[item] for user in users for item in expected[user][positions]])
        for name in ("ips", "snips"):
            value = estimate.estimates[name].value
            assert value.low <= truth <= value.high
    # A policy that always explores shows an item with its weight in the draw, and all weights of a page sum up to 1.
    drawn = ((slot["propensity"] - 0.5 * slot["target"]) / 0.5).clip(0, 1)
    ratio = drawn / slot["propensity"]
    assert ratio.std() > 0.5
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / np.sqrt(len(slot))


def test_an_answer_has_its_schema_and_a_plain_pipeline_stays_as_it_was(shop: Shop, tmp_path: Path) -> None:
    body = orjson.dumps({"user": 3, "k": K})
    with contextlib.closing(Service(shop.write(explore=explore()))) as service:
        answer = msgspec.json.decode(service.answer(body, "/recommend"), type=response_schemas.RecommendResponse)
        assert isinstance(answer.explore, response_schemas.ExploreResponse)
        assert service.get_stages("/rank").stages[-1].name == "rank"
    log = {"folder": str(tmp_path), "flush_seconds": 60}
    with shop.open(True, log=log) as pages:
        assert pages.recommend(3, K).explore is None
    row = pq.read_table(tmp_path).to_pylist()[0]
    assert row["propensity"] is None
    assert not {"bucket", "seed", "explored"} & set(row)


def test_a_late_stage_leaves_the_page(shop: Shop, tmp_path: Path) -> None:
    log = {"folder": str(tmp_path), "flush_seconds": 60}
    with shop.open() as plain, shop.open(True, explore=explore(share=1, deadline_ms=1e-6), log=log) as pages:
        page = pages.recommend(3, K)
        assert (page.fallbacks, page.items[0].id) == (("explore",), plain.recommend(3, K)[0].id)
        assert page.explore == {"bucket": "explore", "seed": None, "item": None}
        assert [stage.late for stage in pages.trace(3, K).stages][-2:] == [True, False]
    assert pq.read_table(tmp_path)["propensity"].to_pylist() == [1] * K
    with shop.open(recall={"pop": {"bundle": "pop.bundle", "deadline_ms": 1e-6}}, explore=explore(position=1)) as pages:
        assert len(pages.recommend(3, K)) == 0  # all sources are late


def test_the_check_reports_all_faults(shop: Shop) -> None:
    own = explore(bundle="plain.bundle", position=30, below={"column": "show", "count": 3})
    with contextlib.chdir(shop.folder):
        lr.export("runs/pop", "plain.bundle", overwrite=True)
    path = shop.write("faults", explore=own, mix={"slots": [{"position": 31, "source": "pop"}]})
    with pytest.raises(ConfigError, match=r"plain\.bundle is a bundle of a retriever"):
        lr.check(path)
    path = shop.write(
        "faults", explore={**own, "bundle": "dcn.bundle"}, mix={"slots": [{"position": 31, "source": "pop"}]}
    )
    with pytest.raises(ConfigError) as caught:
        lr.check(path)
    text = str(caught.value)
    assert "explore.position: 30 is behind all 20 candidates" in text
    assert "explore.position: 30 moves the fixed position 31 (mix.slots.0)" in text
    assert "explore.below.column: no column 'show' of the item table; did you mean 'shown'?" in text
    path = shop.write("faults", explore=explore(below={"column": "kind", "count": 3}))
    with pytest.raises(ConfigError, match="kind has the type string; expected numbers"):
        lr.check(path)
    path = shop.write("faults", explore=explore(below={"column": "item", "count": 3}))
    with pytest.raises(ConfigError, match="item is the key of the items; with numbers: shown"):
        lr.check(path)
    path = shop.write("faults", rank=None, explore=explore())
    path.write_text(path.read_text().replace("rank: null\n", ""))
    with pytest.raises(ConfigError, match=r"\n  explore\.bundle: is required without"):
        lr.check(path)


def test_settings_of_an_explorer_are_checked(shop: Shop) -> None:
    with contextlib.chdir(shop.folder):
        for settings, message in {
            "name": ({"name": "agee"}, "no explorer 'agee'; did you mean 'age'"),
            "key": ({"name": "ucb", "drop": 0.1}, "drop"),
            "task": ({"name": "ucb", "task": "buy"}, "DCNV2 learns no 'buy'"),
            "runs": ({"name": "ensemble", "runs": ["runs/pop"]}, "runs/pop is no ranker"),
        }.values():
            with pytest.raises(ConfigError, match=message):
                lr.export("runs/dcn", "other.bundle", explore=settings)
        assert main(["export", "runs/dcn", "other.bundle", "--explore", "name=ucb", "draws=0"]) == 2
        with pytest.raises(ConfigError, match="popularity is no ranker"):
            lr.export("runs/pop", "other.bundle", explore={"name": "ucb"})


def test_a_gate_is_fitted_to_the_training_rows(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list[Any]()

    def build(model: Any, log: Any, own: Any, size: int) -> Any:
        rows.append(own)
        return loaders.build_loader(model, log, own, size)

    monkeypatch.setattr(exports, "build_loader", build)
    run = open_run(shop.folder / "runs" / "dcn")
    with contextlib.chdir(shop.folder):
        log, model = run.log(), run.model()
        explorer = exports._build_explorer(run, log, model, {"name": "age", "strength": 0.01})
        assert isinstance(explorer, Age)
        assert explorer.gate is not None
        assert np.array_equal(rows, [log.rows_of("train")])
        plain = exports._build_explorer(run, log, model, {"name": "age", "gate": False})
        both = exports._build_explorer(run, log, model, {"name": "ensemble", "runs": ["runs/dcn"]})
    assert isinstance(plain, Age)
    assert plain.gate is None
    assert len(rows) == 1
    inputs = list_inputs(model.fields, histories=False)
    with pytest.raises(BundleError, match="states and an explorer"):
        build_programs(model, inputs, True, explorer)
    assert isinstance(both, Ensemble)
    assert len(both.members) == 2


def test_counts_are_those_of_the_catalog_at_the_request(shop: Shop, tmp_path: Path) -> None:
    for name in ("dcn", "pop"):
        shutil.copytree(shop.folder / f"{name}.bundle", tmp_path / f"{name}.bundle")
    own = Shop(tmp_path, shop.data)
    below = {"column": "shown", "count": 1200}
    body = orjson.dumps({"user": 3, "k": K})
    with contextlib.closing(Service(own.write(explore=explore(share=1, temperature=9, below=below)))) as service:

        def draw() -> set[int | None]:
            return {orjson.loads(service.answer(body, "/recommend"))["explore"]["item"] for _ in range(30)}

        first = draw()
        assert len(first) > 1
        assert first <= set(NEW)
        last, *others = sorted(first, key=str)
        changes = [{"item": item, "shown": 1200} for item in NEW if item != last]
        service.change_items(orjson.dumps({"items": changes}))
        assert draw() == {last}
        service.change_items(
            orjson.dumps({"items": [{"item": last, "shown": 1200}, {"item": others[0], "shown": None}]})
        )
        assert draw() == {others[0]}


def test_pages_without_a_log_are_scored_only_when_they_explore(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    score = ExplorationScorer.__call__

    def count(self: ExplorationScorer, candidates: Any, query: Any, seed: int) -> Any:
        calls.append(len(candidates))
        return score(self, candidates, query, seed)

    monkeypatch.setattr(ExplorationScorer, "__call__", count)
    users = range(40)
    with shop.open(explore=explore(candidates=3)) as pages:
        explored = [pages.recommend(user, K).explore["item"] is not None for user in users]  # type: ignore[index]
    assert calls == [3] * sum(explored)
    assert 5 < sum(explored) < 35
    calls.clear()
    with shop.open(explore=explore(candidates=3), log=str(shop.folder / "other")) as pages:
        bucket = [pages.recommend(user, K).explore for user in users]
    assert len(calls) == len(bucket) == len(users)
    calls.clear()
    with shop.open(explore=explore(control=1.0), log=str(shop.folder / "other")) as pages:
        assert {pages.recommend(user, K).explore["bucket"] for user in users} == {"control"}  # type: ignore[index]
        assert pages.recommend(0, 1).explore["item"] is None  # type: ignore[index]
    assert calls == []


def test_an_explorer_of_a_task_that_no_score_reads_is_refused() -> None:
    outputs = [Output(name, "FP32", [-1]) for name in ("score", "task.label", "task.buy", "task.like")]
    manifest = SimpleNamespace(programs={"score": ProgramFacts("score.onnx", [], outputs)})
    headers: Any = {"rank.bundle": SimpleNamespace(manifest=manifest)}
    recall = {"pop": {"bundle": "pop.bundle"}}
    for task, formula, refused in (
        ("buy", "label * like", True),
        ("buy", "label * buy", False),
        ("like", "score", False),
    ):
        rank = {"bundle": "mmoe.bundle", "score": formula}
        config = PipelineConfig.model_validate({"recall": recall, "rank": rank, "explore": explore()})
        faults = list(_list_task_faults(config, headers, task))
        assert len(faults) == refused
        assert not refused or "explores buy, which rank.score does not read (label, like)" in faults[0]


def test_an_evaluation_leaves_exploration_out_and_says_so(shop: Shop, tmp_path: Path) -> None:
    with contextlib.chdir(shop.folder):
        own = explore(share=1)
        plain, explored = (
            evaluate_pipeline(shop.write(name, **content), "runs/dcn", "test", k=K, n_resamples=5, quiet=True)
            for name, content in {"plain": {}, "exploring": {"explore": own}}.items()
        )
    assert list(plain.stages) == list(explored.stages)
    assert "explore" not in explored.stages
    np.testing.assert_array_equal(plain.stages["top"].values["hr@5"], explored.stages["top"].values["hr@5"])
    sentence = "explore: left out, so that all lists are those of pages that do not explore"
    assert sentence in explored.format().splitlines()
    assert "explore" not in plain.protocol
    folders = [one.save(tmp_path / one.pipeline) for one in (plain, explored)]
    assert json.loads((folders[1] / "results.json").read_text())["protocol"]["explore"] == sentence.partition(": ")[2]
    (warning,) = compare_pipelines(folders, n_resamples=5).warnings
    assert warning == sentence.replace("explore: left", "exploring: explore is left")
