"""A pipeline of several bundles: in process, over HTTP, traced, and against its stages computed one by one."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pipelines
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import retrievers
import shop
import torch
from torch import Tensor, nn

import longrec as lr
from longrec.cli import main
from longrec.errors import ConfigError, RequestError
from longrec.exporting.bundle import Bundle
from longrec.exporting.offline import build_golden_list, build_ragged_batch
from longrec.exporting.write import export
from longrec.features.batch import Batch
from longrec.models.core.registry import build
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.mmr import mmr
from longrec.pipeline.trace import REASONS
from longrec.serve.client import client
from longrec.serve.request_json import decode_recommend_request
from longrec.serve.server import run_server
from longrec.serve.service import Service, replay


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lr.Pipeline]:
    with lr.open_pipeline(pipelines.write(tmp_path_factory.mktemp("films"))) as opened:
        yield opened


@contextlib.contextmanager
def open_with(folder: Path, **changes: Any) -> Iterator[lr.Pipeline]:
    with lr.open_pipeline(pipelines.write(folder, **changes)) as opened:
        yield opened


def list_ids(answer: Any) -> list[Any]:
    return [item.id for item in answer]


def test_every_stage_computes_what_its_bundle_alone_computes(films: lr.Pipeline) -> None:
    request = pipelines.request()
    keys = films.list_stage_keys(**request)
    paths = pipelines.bundles()
    for name, count in (("mean", 12), ("three", 9)):
        own = {**request, "k": count, "context": retrievers.vectors().golden[1].request["context"]}
        with client(paths[name]) as alone:
            assert keys[f"recall.{name}"] == list_ids(alone.recommend(**own))
    queues, merged = [list(keys["recall.mean"]), list(keys["recall.three"])], list[Any]()
    while any(queues):
        merged += [queue.pop(0) for queue in queues if queue]
    assert keys["merge"] == list(dict.fromkeys(merged))[:14]
    with client(paths["din"]) as ranker:
        context = {name: request["context"][name] for name in shop.full().golden[0].request["context"]}
        ranked = ranker.rank(request["user"], keys["merge"], request["at"], context)
    assert keys["rank"] == list_ids(ranked)[:10]
    assert len(keys["rerank.mmr"]) == 6
    answer = films.recommend(**request)
    assert list_ids(answer) == keys["top"] == keys["rerank.mmr"][:4]
    scores = {item.id: item.score for item in ranked}
    assert [item.score for item in answer] == pytest.approx([scores[item.id] for item in answer])
    for item in answer:
        assert set(item.scores) == {f"recall.{name}" for name in item.via.split("+")} | {"merge", "rank"}


def test_the_list_of_mmr_is_that_of_the_vectors_of_its_source(films: lr.Pipeline) -> None:
    trace = films.trace(**pipelines.request())
    before = trace.stages[4].before
    bundle = Bundle.open(pipelines.bundles()["mean"])
    rows = [bundle.items.keys.find(key, "item") for key in before.keys.tolist()]
    order = mmr(before.scores["rank"], np.load(bundle.path / "index.npy")[rows], 6, 0.5)
    assert trace.stage_keys["rerank.mmr"] == before.keys[order].tolist()


def test_a_trace_explains_every_item(films: lr.Pipeline) -> None:
    request = pipelines.request()
    trace = films.trace(**request)
    assert trace.page == list_ids(films.recommend(**request))
    assert list(trace.stage_keys) == films.stages
    sources = {name: set(trace.stage_keys[f"recall.{name}"]) for name in ("mean", "three")}
    assert trace.count_items() == len(sources["mean"] | sources["three"])
    second = trace.stages[1]
    assert set(second.dropped["duplicate"]) == sources["mean"] & sources["three"]
    with client(pipelines.bundles()["mean"]) as alone:
        own = {**request, "context": retrievers.vectors().golden[1].request["context"]}
        every = list_ids(alone.recommend(**own | {"k": 12, "exclude_seen": False}))
        unseen = list_ids(alone.recommend(**own | {"k": 40}))
    assert set(trace.stages[0].dropped["seen"]) == set(every) - set(unseen)
    for stage in trace.stages[2:]:
        dropped = [key for keys in stage.dropped.values() for key in keys]
        assert sorted([*stage.after.keys.tolist(), *dropped]) == sorted(stage.before.keys.tolist())
        assert set(stage.dropped) <= set(REASONS)
    for item in {*sources["mean"], *every, "nobody"}:
        steps, text = trace.find(item), trace.format_item(item)
        if item in trace.page:
            assert steps[-1]["rank"] == trace.page.index(item) + 1
            assert f"at position {trace.page.index(item) + 1} of the page" in text
        else:
            assert steps[-1]["result"] != "kept"
            assert "dropped by" in text or "no source retrieved it" in text
    assert max(map(len, trace.format().splitlines())) <= 100
    assert json.loads(json.dumps(trace.to_dict()))["page"] == trace.page
    with pytest.raises(RequestError, match="the unknown user 5"):
        films.trace(**{**request, "user": 5})


def test_a_pipeline_answers_over_http_as_in_process(films: lr.Pipeline, tmp_path: Path) -> None:
    path = pipelines.write(tmp_path, log={"folder": "shown", "flush_seconds": 60})
    request = pipelines.request()
    with run_server(path, workers=2) as url, client(url) as shop_client:
        answer, own = shop_client.recommend(**request), films.recommend(**request)
        assert [(item.id, item.via) for item in answer] == [(item.id, item.via) for item in own]
        assert (answer.fallbacks, answer.at, len(answer.request or "")) == ((), own.at, 24)
        golden = shop.full().golden[0].request
        assert len(shop_client.rank(**golden)) == len(golden["candidates"])
        assert shop_client.health()["model"] == "films"
        changed = shop_client._call("POST", "/items", b'{"items": []}')  # type: ignore[attr-defined]
        assert orjson.loads(changed) == {"changes": 0, "items": 40, "withdrawn": 0}
        example = orjson.loads(shop_client._call("GET", "/example"))  # type: ignore[attr-defined]
        others = shop_client.recommend(**example)
    logged = pq.read_table(tmp_path / "shown").to_pylist()  # written when the workers end
    expected = [(one.request, item.id) for one in (answer, others) for item in one]
    assert sorted((row["request"], row["item"]) for row in logged) == sorted(expected)


def test_a_service_of_a_pipeline_opens_each_bundle_once_and_checks_it(tmp_path: Path) -> None:
    path = pipelines.bundles()["din"]
    file = pipelines.write(tmp_path, prerank={"bundle": path, "count": 11}, rank={"bundle": path})
    with contextlib.closing(Service(file)) as service:
        assert len(service.models) == 3
        assert service.check() < 1e-4
        body = orjson.dumps(pipelines.request())
        query = decode_recommend_request(body).build_query(1_600_000_010_000, True, service._columns)
        result = service.get_stages("/recommend")(Candidates.of([], "request"), query)
        assert len(query.memo) == 3, "two stages of one bundle encode the request once"
        assert [len(result.candidates), *result.candidates.scores] == [
            4, "recall.mean", "recall.three", "merge", "prerank", "rank",
        ]  # fmt: skip


# ---- rules of the page -------------------------------------------------------------------------------------------


def read_genres() -> dict[str, list[str]]:
    """The genres of every item, decoded from the table of the shop."""
    own = shop.full()
    column, keys = own.items.columns["genres"], own.fitted.encoders["genres"].keys.values  # type: ignore[union-attr]
    values = [
        [keys[int(v) - 2].as_py() for v in column.values[a:b]] for a, b in zip(column.offsets, column.offsets[1:])
    ]  # type: ignore[union-attr]
    return {own.items.key(row): values[row] for row in range(1, len(own.items))}


def test_quotas_slots_and_spacing_hold(tmp_path: Path) -> None:
    genres, request = read_genres(), pipelines.request(k=6, exclude_seen=False)
    mix = {
        "quotas": [{"attribute": "genres", "value": "a", "at_most": 2}, {"source": "three", "at_least": 5}],
        "slots": [{"position": 2, "attribute": "genres", "value": "b"}],
    }
    with open_with(tmp_path, mix=mix, rerank=None, rank=None) as films:
        trace = films.trace(**request)
        page = films.recommend(**request)
    assert len(page) == 6
    assert sum("a" in genres[str(item.id)] for item in page) <= 2
    assert sum("three" in item.via for item in page) >= 5
    assert "b" in genres[str(page[1].id)]
    assert "quota" in trace.stages[-2].dropped
    rerank = [{"method": "spacing", "attribute": "genres"}, {"method": "dpp", "attribute": "genres", "count": 5}]
    with open_with(tmp_path, rerank=rerank) as films:
        keys = films.list_stage_keys(**pipelines.request())
        assert sorted(keys["rerank.spacing"]) == sorted(keys["rank"])
        first = [genres[key][0] if genres[key] else None for key in keys["rerank.spacing"]]
        assert all(a is None or a != b for a, b in zip(first[:4], first[1:4]))
        assert len(keys["rerank.dpp"]) == 5


def test_frequency_caps_count_what_was_shown_and_the_history(tmp_path: Path) -> None:
    request = pipelines.request(exclude_seen=False)
    at = 1_600_000_060_000
    shown = {"caps": [{"at_most": 2, "within": "1h"}]}
    path = pipelines.write(tmp_path, mix=shown, log="shown")
    with lr.open_pipeline(path, keep_log=True) as films:
        pages = [list_ids(films.recommend(**request | {"at": at + second})) for second in (0, 1_000, 2_000)]
        assert pages[0] == pages[1]
        assert not set(pages[0]) & set(pages[2])
        assert list_ids(films.recommend(**request | {"at": at})) == pages[0], "later answers do not count"
        trace = films.trace(**request | {"at": at + 2_000})
        assert set(trace.stages[-2].dropped["cap"]) >= set(pages[0])
    with lr.open_pipeline(path, keep_log=True) as films:  # the log is read again
        assert list_ids(films.recommend(**request | {"at": at + 3_000})) == pages[2]
        later = request | {"at": at + 7_200_000}
        page = list_ids(films.recommend(**later))
        assert page == films.list_stage_keys(**later)["rerank.mmr"][:4], "nor do old ones"
        assert set(page) & set(pages[0])
    own = shop.full()
    user = own.users.rows(pa.array([request["user"]]), "user")[0]
    rows = range(int(own.segment.offsets[user]), int(own.segment.offsets[user + 1]))
    times = own.segment.times
    recent = {own.items.key(int(own.segment.columns["item"][row])) for row in rows if at - 30_000 <= times[row] < at}
    caps = {"caps": [{"at_most": 1, "within": "30s", "counted": "events"}]}
    with open_with(tmp_path, mix=caps, rank=None, rerank=None) as films:
        keys = films.list_stage_keys(**request | {"at": at, "k": 40})
    assert keys["mix"] == [key for key in keys["merge"] if key not in recent]
    assert set(keys["merge"]) & recent


def test_a_condition_and_a_changed_item_hold_in_every_source(tmp_path: Path) -> None:
    copies = {name: str(tmp_path / f"{name}.bundle") for name in ("mean", "three", "din")}
    for name, path in copies.items():
        shutil.copytree(pipelines.bundles()[name], path)
    changes = {
        "recall": {name: {"bundle": copies[name], "count": 25} for name in ("mean", "three")},
        "rank": {"bundle": copies["din"]},
        "rerank": None,
        "filter": {"seen": False, "where": "year >= 2000"},
        "merge": None,
    }
    request = pipelines.request(exclude_seen=None)
    with open_with(tmp_path, **changes) as films:
        trace = films.trace(**request)
        every = set(trace.stage_keys["recall.mean"]) | set(trace.stage_keys["recall.three"])
        assert every <= {f"i{number}" for number in range(20, 40)}
        plain = list_ids(films.recommend(**request | {"exclude_seen": True}))
        assert set(trace.stages[0].dropped) == {"filter"}
        best = trace.page[0]
        new = {"item_id": "new", "year": 2020, "price": 1.5, "genres": ["a"], "actors": [], "fame": []}
        body = orjson.dumps({"items": [{"item_id": best, "withdrawn": True}, new]})
        assert films._service.change_items(body)["withdrawn"] == 1
        after = films.list_stage_keys(**request)
        assert best not in after["rank"]
        assert plain != after["top"]
        with pytest.raises(RequestError) as caught:
            films._service.change_items(orjson.dumps({"items": [{"item_id": "x", "yaer": 2020}]}))
        assert caught.value.status == 422
        with lr.open_pipeline(tmp_path / "films.yaml") as other:
            body = orjson.dumps({"items": [{"item_id": best, "withdrawn": False}]})
            assert other._service.change_items(body)["withdrawn"] == 0
            page = list_ids(other.recommend(**request))
        assert best in page
        assert list_ids(films.recommend(**request)) == page, "an opened pipeline reads the changes of others"


# ---- deadlines ---------------------------------------------------------------------------------------------------


def test_late_stages_are_left_out_and_the_answer_says_so(tmp_path: Path) -> None:
    late = 1e-6
    paths = pipelines.bundles()
    rank = {"bundle": paths["din"], "count": 5, "deadline_ms": late}
    with open_with(tmp_path, rank=rank, rerank=[]) as films:
        request = pipelines.request()
        answer, keys = films.recommend(**request), films.list_stage_keys(**request)
        assert answer.fallbacks == ("rank",)
        assert keys["rank"] == keys["merge"][:5]
        assert all("rank" not in item.scores for item in answer)
        assert "late: the order before it stays" in films.trace(**request).format()
    recall = {"mean": {"bundle": paths["mean"], "count": 12},
              "three": {"bundle": paths["three"], "count": 9, "deadline_ms": late}}  # fmt: skip
    with open_with(tmp_path, recall=recall) as films:
        answer = films.recommend(**request)
        assert (answer.fallbacks, {item.via for item in answer}) == (("recall.three",), {"mean"})
    recall = {name: {**source, "deadline_ms": late} for name, source in recall.items()}
    with open_with(tmp_path, recall=recall) as films:
        answer = films.recommend(**request)
        assert (len(answer), answer.fallbacks) == (0, ("recall.mean", "recall.three"))


# ---- checks ------------------------------------------------------------------------------------------------------


def test_a_check_lists_what_is_wrong_with_the_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = pipelines.bundles()
    good = pipelines.write(tmp_path)
    assert main(["check", str(good)]) == 0
    assert "no faults in pipeline films" in capsys.readouterr().out
    assert lr.check(good, ["merge.count=7"])["config"]["merge"]["count"] == 7
    wrong = {
        "recall": {"none": "nothing.bundle", "mean": paths["mean"], "count": str(retrievers.counts().bundle)},
        "rank": {"bundle": paths["mean"]},
        "rerank": [],
    }
    assert main(["check", str(pipelines.write(tmp_path, **wrong))]) == 2
    text = capsys.readouterr().err
    for fault in (
        "recall.none.bundle: nothing.bundle: no such folder",
        f"rank.bundle: {paths['mean']} is a bundle of a retriever; expected one of a ranker",
        "recall.count.bundle: keys of users as text; expected integers, as in recall.mean.bundle",
        "recall.count.bundle: keys of items as integers; expected text",
        "recall.count.bundle: times as steps; expected timestamps",
    ):
        assert fault in text, text
    wrong = {
        "filter": {"where": "yeer > 3"},
        "rank": {"bundle": paths["din"], "score": "lable * 2"},
        "rerank": [{"method": "mmr", "attribute": "genre"}],
        "mix": {
            "quotas": [{"attribute": "genres", "value": "z", "at_most": 1}],
            "caps": [{"at_most": 1, "within": "1d"}],
        },
    }
    with pytest.raises(ConfigError) as caught:
        lr.open_pipeline(pipelines.write(tmp_path, **wrong))
    text = str(caught.value)
    for fault in (
        "filter.where: 'yeer > 3': no column 'yeer', did you mean 'year'? (of recall.mean.bundle)",
        "rank.score: no score named 'lable'; did you mean 'label'?",
        "rerank.0.attribute: no feature of the item named 'genre'",
        "did you mean 'genres'?",
        "mix.quotas.0.value: the value 'z'; expected a value of the item table",
        "mix.caps.0: counts shown items and needs log",
    ):
        assert fault in text, text
    with pytest.raises(ConfigError, match="is a pipeline and no config of a training"):
        lr.train(good)
    with pytest.raises(ConfigError, match="is a bundle and no pipeline"):
        lr.open_pipeline(paths["mean"])


def test_the_command_prints_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = str(pipelines.write(tmp_path)), tmp_path / "films.svg"
    request = pipelines.request()
    arguments = ["trace", path, "--user", str(request["user"]), "--at", request["at"], "--k", "3"]
    assert main([*arguments, "--picture", str(picture), "--context", "device=d1"]) == 0
    text = capsys.readouterr().out
    assert "films for user" in text
    assert "rerank.mmr" in text
    drawing = picture.read_text()
    assert drawing.count('rx="6"') == 6
    assert "recall.three" in drawing
    assert main([*arguments, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in result["stages"]][-1] == "top"
    assert main([*arguments, "--item", str(result["page"][0])]) == 0
    assert "at position 1 of the page" in capsys.readouterr().out
    assert main(["trace", path, "--user", "ann"]) == 2
    assert "the keys of the log are whole numbers" in capsys.readouterr().err


# ---- several tasks -----------------------------------------------------------------------------------------------


class TwoTasks(shop.PlainRanker):
    """A ranker of two labels."""

    def __init__(self, config: shop.PlainConfig, fields: Any) -> None:
        super().__init__(config, fields)
        self.targets = ("buy",)
        self.buy = nn.Linear(config.width, 1)

    def logits(self, batch: Batch) -> Tensor:
        h = torch.stack(list(self.embeddings(batch).features.values())).sum(0).tanh()
        return torch.cat([self.out(h), self.buy(h)], 1)

    def forward(self, batch: Batch) -> Tensor:
        return self.ranking_logit(self.logits(batch))


@functools.cache
def two_tasks() -> shop.Shop:
    rng, count = np.random.default_rng(2), 30
    events = {
        "name": pa.array([f"n{n}" for n in rng.integers(0, 5, count)]),
        "film": pa.array(rng.integers(1, 9, count)),
        "step": pa.array(np.arange(count)),
        "click": pa.array(rng.integers(0, 2, count)),
        "place": pa.array(rng.integers(0, 6, count)),
    }
    people, things = {"name": pa.array([f"n{n}" for n in range(5)])}, {"film": pa.array(np.arange(1, 9))}
    folder = shop._make_folder()
    return shop.make(folder, shop.STEPS, events, people, things, lambda fields: TwoTasks(shop.PlainConfig(), fields))


@functools.cache
def prm() -> Path:
    """Export an untrained re-ranker of lists over the shop of steps."""
    own = shop.steps()
    torch.manual_seed(4)
    settings = {"name": "prm", "base": {"name": "lr"}, "blocks": 1, "width": 8, "hidden": 8}
    model = build(settings, own.fitted.fields()).eval()
    samples = [own.sample(row, np.arange(1, size)) for row, size in ((3, 9), (20, 5), (50, 3))]
    golden = [build_golden_list(model, own.fitted, own.users, own.items, sample) for sample in samples]
    folder = shop._make_folder() / "prm.bundle"
    export(model, own.log, folder, golden, replay, name="prm", source={"run": "prm"})
    return folder


def test_a_trained_reranker_sees_the_whole_list(tmp_path: Path) -> None:
    rerank = [{"method": "model", "bundle": str(prm()), "count": 4}]
    recall = {"count": {"bundle": str(retrievers.counts().bundle), "count": 6}}
    golden = shop.steps().golden[0].request
    request = {name: golden[name] for name in ("user", "at", "context")} | {"exclude_seen": False, "k": 3}
    with open_with(tmp_path, recall=recall, merge=None, rank=None, rerank=rerank) as films:
        assert films.stages == ["recall.count", "rerank.model", "top"]
        keys, answer = films.list_stage_keys(**request), films.recommend(**request)
    with client(prm()) as alone:
        ranked = alone.rank(request["user"], keys["recall.count"], request["at"], request["context"])
    assert (len(ranked), keys["rerank.model"]) == (6, list_ids(ranked)[:4])
    assert [item.scores["rerank.model"] for item in answer] == pytest.approx([item.score for item in ranked[:3]])
    wrong = [{**rerank[0], "bundle": pipelines.bundles()["din"]}]
    with pytest.raises(ConfigError, match="is a bundle of a ranker; expected one of a reranker"):
        lr.open_pipeline(pipelines.write(tmp_path, rerank=wrong))


def test_a_formula_joins_the_tasks_of_a_ranker(tmp_path: Path) -> None:
    own = two_tasks()
    bundle = Bundle.open(own.bundle)
    outputs = [output.name for output in bundle.manifest.programs["score"].outputs]
    assert outputs == ["score", "task.label", "task.buy"]
    content = {
        "recall": {"count": {"bundle": str(retrievers.counts().bundle), "count": 8}},
        "rank": {"bundle": str(own.bundle), "score": "label * buy ** 0.5 + 0 * score"},
        "merge": None, "rerank": None,
    }  # fmt: skip
    path = pipelines.write(tmp_path, **content)
    golden = own.golden[0].request
    request = {"user": golden["user"], "at": golden["at"], "context": golden["context"], "exclude_seen": False, "k": 8}
    with lr.open_pipeline(path) as films:
        assert films.stages == ["recall.count", "rank", "top"]
        answer = films.recommend(**request)
    sample = own.sample(int(np.flatnonzero(own.segment.times == golden["at"])[0]), np.arange(1, 9))
    with torch.no_grad():
        logits = own.model.logits(build_ragged_batch(own.fitted, own.users, own.items, sample))
        label, buy = torch.sigmoid(logits).numpy().T
    expected = dict(zip(range(1, 9), label * buy**0.5))
    assert [item.score for item in answer] == pytest.approx([expected[int(item.id)] for item in answer], abs=1e-5)
    with client(own.bundle) as alone:  # /rank is as before
        scores = {item.id: item.score for item in alone.rank(**golden)}
    assert [scores[key] for key in golden["candidates"]] == pytest.approx(own.golden[0].scores, abs=1e-5)
