"""Serving of a generator: lists equal those of the model, of items that may be served now, in time."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import generators
import msgspec
import numpy as np
import orjson
import pytest
import retrievers
import torch
import yaml
from generators import GeneratorShop
from numpy.typing import NDArray

import longrec as lr
from longrec.errors import RequestError
from longrec.exporting.bundle import Bundle, write_manifest
from longrec.exporting.generator_programs import describe_generator
from longrec.exporting.item_columns import read_item_columns
from longrec.exporting.offline import build_golden_retrieval
from longrec.exporting.write import CatalogOptions, export
from longrec.features.batch import Targets
from longrec.models.unirec import UniRec
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.deadline import Deadline, Late
from longrec.pipeline.stage import Query
from longrec.serve.open_api import build_infer_example
from longrec.serve.open_model import OpenModel
from longrec.serve.retrieve_stage import RetrieveStage
from longrec.serve.service import Service, replay

ROWS = range(4, 530, 47)


@pytest.fixture(scope="module")
def shop() -> GeneratorShop:
    return generators.make()


@pytest.fixture
def service(shop: GeneratorShop, tmp_path: Path) -> Any:
    """A service of a copy of the bundle, whose items may change."""
    shutil.copytree(shop.bundle, tmp_path / "unirec.bundle")
    with contextlib.closing(Service(tmp_path / "unirec.bundle")) as own:
        yield own


def recommend(service: Service, request: dict[str, Any], **change: Any) -> dict[int, float]:
    answer = orjson.loads(service.answer(orjson.dumps({**request, **change}), "/recommend"))
    return {item["id"]: item["score"] for item in answer["items"]}


def change(service: Service, *items: dict[str, Any]) -> None:
    service.change_items(orjson.dumps({"items": list(items)}))


def close(expected: NDArray[np.float32]) -> Any:
    return pytest.approx(expected.tolist(), abs=1e-5)


def test_the_bundle_has_one_program_per_token(shop: GeneratorShop) -> None:
    manifest = Bundle.open(shop.bundle).manifest
    assert list(manifest.programs) == ["encode", "step.1", "step.2", "step.3"]
    assert manifest.kind == "retriever"
    assert manifest.generator is not None
    assert manifest.generator.path == ["group", "code_1", "code_2"]
    assert [entry.name for entry in manifest.programs["step.3"].inputs][-2:] == ["t.group", "t.code_1"]
    assert max(manifest.parity["shapes"].values()) < 1e-5
    assert manifest.parity["golden"]["worst"] < 1e-5
    rows = manifest.programs["encode"].outputs
    assert [output.name for output in rows] == ["m.keys", "m.start", "m.aggregate"]


def test_a_served_list_is_that_of_the_model(shop: GeneratorShop) -> None:
    """A batch of all requests together generates it too."""
    trie = shop.trie
    with lr.client(shop.bundle) as client:
        for row in ROWS:
            keys, scores = shop.generate(row, 7)
            with torch.no_grad():
                batch = shop.model.generate(shop.batch(row), trie, 7)
            assert [shop.log.items.key(number + 1) for number in batch.items[0].tolist()] == keys
            answer = client.recommend(**shop.request(row, 7))
            assert [item.id for item in answer] == keys
            assert [item.score for item in answer] == close(scores)
            unseen = shop.find_unseen(row)
            keys, scores = shop.generate(row, 7, unseen)
            answer = client.recommend(**shop.request(row, 7, exclude_seen=True))
            assert [item.id for item in answer] == keys
            assert all(unseen[shop.log.items.keys.find(key, "item")] for key in keys)


@pytest.mark.parametrize("rule", [{"renormalize": True}, {"smoothing": 0.2}, {"renormalize": True, "smoothing": 0.4}])
def test_the_rule_for_the_children_of_a_beam_is_that_of_the_model(
    shop: GeneratorShop, tmp_path: Path, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of a rule differ from log-probabilities. The programs of the bundle stay the same."""
    folder, settings = tmp_path / "unirec.bundle", shop.model.config.model_dump()
    shutil.copytree(shop.bundle, folder)
    manifest = Bundle.open(folder).manifest
    monkeypatch.setattr(shop.model, "config", UniRec.Config(**{**settings, **rule}))
    write_manifest(folder, msgspec.structs.replace(manifest, generator=describe_generator(shop.model)))
    with lr.client(folder) as client:
        for row in ROWS[:4]:
            keys, scores = shop.generate(row, 7)
            answer = client.recommend(**shop.request(row, 7))
            assert [item.id for item in answer] == keys
            assert [item.score for item in answer] == close(scores)
            assert np.abs(scores - score_by_teacher_forcing(shop, row, keys)).max() > 0.01


def test_programs_answer_tensors(shop: GeneratorShop) -> None:
    with contextlib.closing(Service(shop.bundle)) as service:
        assert service.programs.names == [f"unirec.{name}" for name in ("encode", "step.1", "step.2", "step.3")]
        for name in service.programs.names:
            example = orjson.dumps(build_infer_example(service.programs.inputs(name)))
            outputs = orjson.loads(service.programs.infer(name, example).content)["outputs"]
            assert np.isfinite([value for output in outputs for value in output["data"]]).all()
        assert outputs[0]["shape"] == [2, shop.model.sizes[2]]


def test_a_long_list_has_every_item_with_codes_once(shop: GeneratorShop) -> None:
    with lr.client(shop.bundle) as client:
        answer = client.recommend(**shop.request(3, 1_000))
    assert sorted(item.id for item in answer) == list(range(generators.ITEMS - generators.WITHOUT))
    assert [item.score for item in answer] == sorted((item.score for item in answer), reverse=True)


def score_by_teacher_forcing(shop: GeneratorShop, row: int, keys: list[int]) -> NDArray[np.float32]:
    """Return the log-probabilities that training gives the paths of items."""
    numbers = torch.tensor([shop.log.items.keys.find(key, "item") for key in keys])
    batch, columns = shop.batch(row), shop.catalog
    one = torch.zeros(len(keys), dtype=torch.int64)
    targets = Targets(
        one,
        torch.arange(len(keys)),
        numbers + 1,
        0,
        len(shop.log.items) - 1,
        per_position=False,
        requests={name: column[one] for name, column in batch.requests.items()},  # type: ignore[index]
    )
    chosen = {name: column.index_select(0, numbers) for name, column in columns.items()}
    with torch.no_grad():
        own = replace(batch, requests=batch.requests, candidates=chosen, targets=targets)
        scores: NDArray[np.float32] = shop.model.log_probabilities(own).sum(1).numpy()
    return scores


def test_a_thousand_lists_have_servable_items_once_with_scores_of_teacher_forcing(shop: GeneratorShop) -> None:
    servable, lists = {shop.log.items.key(number + 1) for number in shop.trie.items.tolist()}, 0
    with contextlib.closing(Service(shop.bundle)) as service:
        for row in range(len(shop.log)):
            request = shop.request(row, 6)
            own = request["context"]["surface"]
            for surface in ("home", "search"):
                answer = service.answer(orjson.dumps({**request, "context": {"surface": surface}}), "/recommend")
                items = orjson.loads(answer)["items"]
                keys = [item["id"] for item in items]
                assert len(set(keys)) == len(keys) == 6
                assert set(keys) <= servable
                lists += 1
                if surface == own and row % 9 == 0:
                    assert [item["score"] for item in items] == close(score_by_teacher_forcing(shop, row, keys))
    assert lists > 1_000


def test_exact_search_returns_the_best_of_all_paths(shop: GeneratorShop) -> None:
    bundle = Bundle.open(shop.bundle)
    assert bundle.manifest.generator is not None
    facts = msgspec.structs.replace(bundle.manifest.generator, beam_width=None)
    exact = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, generator=facts))
    model = shop.model
    config = model.config
    with contextlib.closing(Service(exact)) as service:
        for row in (7, 50):
            served = recommend(service, shop.request(row, 9))
            try:
                model.config = config.model_copy(update={"search": "exact"})
                with torch.no_grad():
                    scores = model.score_catalog(shop.batch(row), shop.catalog)[0].numpy()
            finally:
                model.config = config
            assert list(served.values()) == close(np.sort(scores)[::-1][:9])


def test_items_change_at_once(shop: GeneratorShop, service: Service) -> None:
    request = shop.request(11, 5)
    before = recommend(service, request)
    best, columns = next(iter(before)), _read_columns(shop)
    raw = {name: columns[name][best].as_py() for name in ("group", "code_1", "code_2")}
    change(service, {"item": 900, **raw})  # a new item with the codes of the best one
    assert recommend(service, request)[900] == pytest.approx(before[best], abs=1e-6)
    with contextlib.closing(Service(service.path)) as again:
        assert 900 in recommend(again, request)
    change(service, {"item": best, "withdrawn": True})
    assert 900 in recommend(service, request)
    assert best not in recommend(service, request, k=1_000)
    change(service, {"item": 900, "code_1": None}, {"item": best, "withdrawn": False})
    assert recommend(service, request) == pytest.approx(before)
    change(service, {"item": generators.ITEMS - 1, **raw})  # an item that had no codes
    assert generators.ITEMS - 1 in recommend(service, request)
    assert len(recommend(service, request, k=1_000)) == generators.ITEMS - generators.WITHOUT + 1


def test_an_unknown_user_gets_the_list_of_no_history(shop: GeneratorShop) -> None:
    with lr.client(shop.bundle) as client:
        request = {**shop.request(4, 6), "user": 999_999}
        with pytest.raises(RequestError, match="unknown user"):
            client.recommend(**request)
        answer = client.recommend(**request, allow_unknown=True)
    first = next(row for row in range(len(shop.log)) if not len(shop.sample(row).histories["seen"]["item"]))
    batch = shop.batch(first)
    surface = shop.batch(4).requests["surface"]
    own = replace(batch, requests={**batch.requests, "surface": surface})
    with torch.no_grad():
        expected = shop.model.generate(own, shop.trie, 6)
    assert [item.score for item in answer] == close(expected.scores[0])


def test_a_late_search_leaves_no_items(shop: GeneratorShop, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = RetrieveStage(OpenModel(Bundle.open(shop.bundle)), name="recall.unirec", deadline=3_600.0)
    request, empty = shop.request(20, 5), Candidates.of([], "request")

    def make_query() -> Query:
        own = {name: request[name] for name in ("user", "context", "k", "exclude_seen")}
        return Query(timestamp=shop.sample(20).timestamp, **own)

    assert len(stage(empty, make_query())) == 5
    generator, calls = stage._generator, list[int]()
    assert generator is not None
    plain = generator._score_tokens

    def score_slowly(memory: Any, prefix: Any) -> Any:
        calls.append(len(prefix))
        if len(prefix) == 1:
            stage._deadline = 1e-9  # the time is over while the second step runs
        return plain(memory, prefix)

    monkeypatch.setattr(generator, "_score_tokens", score_slowly)
    with pytest.raises(Late):
        stage(empty, make_query())
    assert calls == [0, 1]
    stage._deadline, late = 3_600.0, make_query()
    assert len(Deadline(stage, 3_600.0)(empty, late)) == 0
    assert late.fallbacks == ["recall.unirec"]


@pytest.fixture(scope="module")
def pipeline(shop: GeneratorShop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the generator and a counting rule, with a filter."""
    folder = tmp_path_factory.mktemp("pipeline")
    count = retrievers.CountRetriever(retrievers.Strict(), shop.log.fields(), "item").eval()
    count.counts[:] = torch.arange(len(count.counts)) % 7
    sample, log = shop.sample(40), shop.log
    golden = [build_golden_retrieval(count, log.fitted, log.users, log.items, sample, 5)]
    columns = CatalogOptions(_read_columns(shop))
    export(count, log.folder, folder / "count.bundle", golden, replay, name="count", catalog=columns)
    content = {
        "name": "both",
        "recall": {
            "unirec": {"bundle": str(shop.bundle), "count": 12, "deadline_ms": 3_600_000},
            "count": {"bundle": "count.bundle", "count": 5},
        },
        "filter": {"where": "code_1 <> 3", "seen": True},
    }
    (folder / "both.yaml").write_text(yaml.safe_dump(content))
    return folder / "both.yaml"


def _read_columns(shop: GeneratorShop) -> Any:
    return read_item_columns(shop.bundle)


def test_a_generator_is_a_source_of_a_pipeline(shop: GeneratorShop, pipeline: Path) -> None:
    columns = _read_columns(shop)
    met = np.array([code is not None and code != 3 for code in columns["code_1"].to_pylist()])
    with lr.open_pipeline(pipeline) as both:
        for row in ROWS[:4]:
            keys, _ = shop.generate(row, 12, met & shop.find_unseen(row))
            request = shop.request(row, 4, exclude_seen=True)
            listed = both.list_stage_keys(**request)
            assert listed["recall.unirec"] == keys
            assert len(listed["recall.count"]) == 5
            assert set(both.trace(**request).stages[0].dropped) <= {"seen", "filter"}
            assert any("unirec" in item.via.split("+") for item in both.recommend(**request))
