"""Knowledge of the user and of every candidate, of the version that is available to a request."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import token_shop
import torch

from longrec.data.log import Log
from longrec.data.requests import build_impression
from longrec.errors import BundleError
from longrec.exporting.bundle import Bundle
from longrec.exporting.golden import Sample
from longrec.exporting.offline import build_golden_request
from longrec.exporting.write import ExternalStores, export
from longrec.features.vocabulary import compute_key_numbers
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.serve.golden_scores import score_golden
from longrec.serve.knowledge_features import KnowledgeFeatures
from longrec.serve.service import Service, replay
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore, SideVectors

DAY, START = token_shop.DAY, token_shop.START
MODEL: dict[str, Any] = {
    "name": "keep_plug",
    "base": {"name": "deepfm", "embedding_dim": 4, "mlp": [8], "init_std": 0.5},
    "zero_init": False,
}


@dataclass(frozen=True)
class Shop:
    log: Log
    model: Ranker
    bundle: Path

    def golden(self, row: int) -> Any:
        log = self.log
        sample = Sample(**build_impression(log, row, np.arange(1, 9)))
        return build_golden_request(self.model, log.fitted, log.users, log.items, sample)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Two versions: the second, of the ninth day, lacks half of the users and items."""
    folder = tmp_path_factory.mktemp("knowing")
    store_folder, random = folder / "knowledge" / "v1", np.random.default_rng(0)
    users = compute_key_numbers(pa.array([f"u{n}" for n in range(token_shop.USERS)]))
    items = compute_key_numbers(pa.array(list(range(100, 100 + token_shop.ITEMS))))
    info = KnowledgeInfo({"user": 5, "item": 3}, "ms", {"user": "text", "item": "int64"})
    with KnowledgeStore.create(store_folder, info) as store:
        for number, (day, step) in enumerate(((3, 1), (9, 2))):
            some = [keys[::step] for keys in (users, items)]
            matrices = [SideVectors(keys, random.standard_normal((len(keys), width)).astype(np.float32) + number)
                     for keys, width in zip(some, (5, 3))]  # fmt: skip
            store.publish(START + day * DAY, START + day * DAY + 500, *matrices)
    about = {
        f"about_{side}": {"kind": "embedding", "from": str(store_folder), "side": side} for side in ("user", "item")
    }
    schema = {**token_shop.SCHEMA, "features": {**token_shop.SCHEMA["features"], **about}, "histories": {}}
    log = token_shop.open_log(folder / "log", token_shop.events(), schema)
    torch.manual_seed(2)
    model = build(MODEL, log.fields()).eval()
    assert isinstance(model, Ranker)
    prepared_shop = Shop(log, model, folder / "shop.bundle")
    requests = [prepared_shop.golden(int(row)) for row in log.rows_of("test")[::20]]
    external_stores = ExternalStores(knowledge={name: feature.store for name, feature in log.knowledge.items()})
    export(
        model, log.folder, prepared_shop.bundle, requests, replay, fitted=log.fitted, external_stores=external_stores
    )
    return prepared_shop


def test_impressions_score_online_as_offline(shop: Shop) -> None:
    service = Service(shop.bundle)
    assert service.check() < 1e-6
    rows = np.flatnonzero(shop.log.events.times > START + 2 * DAY)[::13]
    wanted = [shop.golden(int(row)) for row in rows]
    for one, scores in zip(wanted, score_golden(service, wanted)):
        assert np.abs(one.expected - scores).max() < 1e-6
    service.close()


def test_knowledge_that_leaks_is_refused(shop: Shop, tmp_path: Path) -> None:
    bundle = Bundle.open(shop.bundle)
    folder = tmp_path / "leaky"
    shutil.copytree(bundle.resolve_store(bundle.manifest.knowledge["about_user"]), folder)
    manifest = json.loads((folder / "knowledge.json").read_text())
    (folder / "knowledge.json").write_text(json.dumps({**manifest, "leak": "it saw its labels"}))
    manifest = SimpleNamespace(knowledge={"about_user": str(folder)})
    changed_bundle: Any = SimpleNamespace(
        manifest=manifest, resolve_store=str, fitted=bundle.fitted, items=bundle.items
    )
    with pytest.raises(
        BundleError, match=r"features.about_user: .*it discloses data that was not available: it leaks \(it saw"
    ):
        KnowledgeFeatures(changed_bundle)


def test_what_two_features_share_is_copied_once(shop: Shop) -> None:
    manifest = Bundle.open(shop.bundle).manifest
    assert manifest.knowledge == dict.fromkeys(("about_user", "about_item"), "knowledge/about_user")
    assert {entry.name: entry.shape for entry in manifest.inputs if entry.width} == {
        "f.about_user": [1, 6],
        "f.about_item": [-1, 4],
    }


def test_a_request_reads_the_version_published_before_it(shop: Shop) -> None:
    service = Service(shop.bundle)

    def rank(at: int, user: str, items: list[int], **more: Any) -> dict[int, float]:
        context = {"place": "top", "price": 2.0}
        request = {"user": user, "candidates": items, "at": START + at, "context": context, **more}
        answer = orjson.loads(service.answer(orjson.dumps(request)))
        return {item["id"]: item["score"] for item in answer["items"]}

    before, after = rank(9 * DAY + 500, "u1", [101, 102]), rank(9 * DAY + 501, "u1", [101, 102])
    assert before != after
    # the second version lacks u1 and 101: nothing is returned, not the vectors of an older version
    nobody = rank(0, "u1", [101])
    assert after[101] == pytest.approx(nobody[101], abs=1e-6)
    assert before[101] != pytest.approx(nobody[101], abs=1e-4)
    strange = rank(9 * DAY + 501, "u1", [101, 999], allow_unknown=True)
    assert strange[101] == pytest.approx(after[101], abs=1e-6)
    service.close()
