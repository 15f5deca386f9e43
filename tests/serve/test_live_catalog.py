"""Changes of a catalog: a bundle with changes answers as a bundle of the changed items would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import orjson
import pyarrow as pa
import pytest
import retrievers
import shop
import torch
from numpy.typing import NDArray

from longrec.errors import BundleError, DataError
from longrec.exporting.bundle import Bundle
from longrec.exporting.catalog import read_catalog
from longrec.exporting.catalog_changes import NAME, CatalogChanges
from longrec.exporting.catalog_table import build_change_reader
from longrec.exporting.offline import build_golden_request, build_request_batch
from longrec.features.batch import Jagged
from longrec.features.entity_table import EntityTable
from longrec.features.entity_versions import Versions
from longrec.features.feature_encoders import Lists
from longrec.index.build import measure_recall
from longrec.models.core.kinds import VectorRetriever
from longrec.serve.live_catalog import LiveCatalog, change_items, open_catalog
from longrec.serve.service import Service
from longrec.serve.settings import Settings

NEW = {"price": 3.5, "genres": ["b", "zz"], "actors": [4, 5], "fame": [1.0, 2.0], "year": 2031}
CHANGES: list[list[dict[str, Any]]] = [
    [{"item_id": "n1", **NEW}, {"item_id": "i3", "withdrawn": True}],
    [{"item_id": "i5", "price": 99.0, "genres": []}, {"item_id": "n2", **NEW, "price": None, "actors": [], "fame": []}],
    [{"item_id": "n1", "genres": ["a"]}, {"item_id": "i3", "withdrawn": False}, {"item_id": "i8", "withdrawn": True}],
    [{"item_id": "i8", "year": 1900}, {"item_id": "n2", "withdrawn": True}, {"item_id": "i5", "price": 1.25}],
    [{"item_id": f"m{number}", **NEW, "actors": [number, number * number + 20]} for number in range(8)],
]


@pytest.fixture
def copies(tmp_path: Path, full: shop.Shop) -> Path:
    """Return a folder with copies of bundles, so that changes beside them belong to one test."""
    sources = [full.bundle, retrievers.vectors().bundle, retrievers.lists().bundle, retrievers.counts().bundle]
    for source in sources:
        shutil.copytree(source, tmp_path / source.name)
    return tmp_path


class Expected:
    """The definition: raw columns of all items, changed one after the other, and encoded anew."""

    def __init__(self, own: shop.Shop) -> None:
        self.shop = own
        self.rows: dict[str, dict[str, Any]] = {row["item_id"]: row for row in own.things.to_pylist()}
        self.withdrawn: set[str] = set()

    def apply(self, changes: list[dict[str, Any]]) -> None:
        for change in changes:
            key, columns = change["item_id"], {k: v for k, v in change.items() if k not in ("item_id", "withdrawn")}
            self.rows[key] = {**self.rows.get(key, {"item_id": key}), **columns}
            if "withdrawn" in change:
                (self.withdrawn.add if change["withdrawn"] else self.withdrawn.discard)(key)

    def encode(self) -> EntityTable:
        columns = pa.Table.from_pylist(list(self.rows.values()), self.shop.things.schema)
        arrays = {name: columns[name].combine_chunks() for name in columns.column_names}
        return shop._make_table(self.shop.fitted, "item", arrays["item_id"], arrays)

    def search(self, retrieval: retrievers.RetrievalShop, row: int) -> list[tuple[str, float]]:
        """Return all items that may be retrieved, best first, with their scores by torch."""
        items, model, own = self.encode(), retrieval.model, self.shop
        assert isinstance(model, VectorRetriever)
        catalog = read_catalog(items)
        columns = {name: to_tensor(catalog[name]) for name in own.fitted.list_features("item")}
        # History rows of the log are those of the items of the bundle, which come first in both tables.
        changed = shop.Shop(**{**vars(own), "items": items})
        batch = build_request_batch(own.fitted, own.users, items, changed.sample(row, np.array([1])))
        with torch.no_grad():
            scores = model.score_catalog(batch, columns)[0].numpy()
        keys = list(self.rows)
        order = np.argsort(-scores, kind="stable").tolist()
        return [(keys[at], float(scores[at])) for at in order if keys[at] not in self.withdrawn]


def to_tensor(column: NDArray[Any] | Lists) -> Any:
    if isinstance(column, Lists):
        weights = None if column.weights is None else torch.from_numpy(column.weights)
        return Jagged(torch.from_numpy(column.values), torch.from_numpy(column.offsets), weights)
    return torch.from_numpy(column)


def recommend(service: Service, request: Mapping[str, Any], **change: Any) -> list[tuple[str, float]]:
    answer = orjson.loads(service.answer(orjson.dumps({**request, **change}), "/recommend"))
    return [(item["id"], item["score"]) for item in answer["items"]]


@contextlib.contextmanager
def serving(path: Path, **settings: Any) -> Iterator[Service]:
    with contextlib.closing(Service(path, Settings(**settings))) as service:
        yield service


def test_lists_are_tuned_again_after_many_changes_and_once_per_revision(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, random = open_catalog(copies / "lists.bundle"), np.random.default_rng(2)
    before, index = catalog.bundle.manifest.index, catalog.index
    assert before is not None
    assert index is not None
    assert index.lists is not None
    actors = [random.integers(0, 99, 6).tolist() for _ in range(12)]
    few, many = ([{**NEW, "item_id": f"m{at}", "actors": actors[at], "fame": [4.0] * 6} for at in own]
                 for own in (range(3), range(3, 12)))  # fmt: skip
    change_items([catalog], few)
    assert (catalog.index_facts, index.lists.nprobe) == (before, before.nprobe)
    assert not (catalog.folder / "index.json").exists()
    change_items([catalog], many)
    tuned, requests = catalog.index_facts, np.load(copies / "lists.bundle" / "requests.npy")
    assert tuned is not None
    best = [np.sort(index.search(request, 5, exact=True)[0]) for request in requests[::2]]
    recalls = [measure_recall(index.lists, index.base, requests[::2], best, n) for n in (before.nprobe, tuned.nprobe)]
    assert recalls[0] < before.recall_target <= recalls[1]
    assert (index.lists.nprobe, index.lists.nprobe_half, tuned.items) == (tuned.nprobe, tuned.nprobe_half, 52)
    content = json.loads((catalog.folder / "index.json").read_text())
    assert [content[name] for name in ("nprobe", "nprobe_half", "recall")] == [
        tuned.nprobe, tuned.nprobe_half, tuned.recall,
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("longrec.exporting.tuned_lists.tune_again", None)  # another process does not measure
        again = open_catalog(copies / "lists.bundle")
    assert again.index is not None
    assert again.index.lists is not None
    assert (again.index.lists.nprobe, again.index_facts) == (tuned.nprobe, replace(tuned, seconds=ANY))
    change_items([again], [{"item_id": "m0", "price": 7.0}])  # a later revision is measured when it is opened
    later = open_catalog(copies / "lists.bundle")
    assert json.loads((catalog.folder / "index.json").read_text())["revision"] == later.changes.revision == 3
    (catalog.folder / "index.json").write_text("{")
    assert open_catalog(copies / "lists.bundle").index_facts == replace(later.index_facts, seconds=ANY)
    assert json.loads((catalog.folder / "index.json").read_text())["revision"] == 3


@pytest.mark.parametrize("kind", ["mean1", "lists"])
def test_every_change_is_as_a_new_index(copies: Path, full: shop.Shop, kind: str) -> None:
    retrieval = retrievers.vectors() if kind == "mean1" else retrievers.lists()
    expected = Expected(full)
    with serving(copies / f"{kind}.bundle") as service:
        catalog = service.served.catalog
        assert catalog.index is not None
        if kind == "lists":
            assert catalog.index.lists is not None
            catalog.index.lists.nprobe = catalog.index.lists.count
        for changes in CHANGES:
            change_items([catalog], changes)
            expected.apply(changes)
            for row in (7, 250):
                request = retrieval.retrieve(row, 1_000, False).request
                best = expected.search(retrieval, row)
                for k in (3, 1_000):
                    actual = recommend(service, request, k=k)
                    assert [key for key, _ in actual] == [key for key, _ in best[:k]]
                    np.testing.assert_allclose([s for _, s in actual], [s for _, s in best[:k]], rtol=1e-4, atol=1e-4)
        assert catalog.index.is_exact or len(catalog.index.lists) == 40 + 10  # type: ignore[arg-type]
        assert catalog.table.columns is not None
        raw = {row["item_id"]: row for row in catalog.table.columns.to_pylist()}
        assert raw == expected.rows
    with serving(copies / f"{kind}.bundle") as again:  # of another process
        assert [key for key, _ in recommend(again, request, k=1_000)] == [key for key, _ in best]
        if kind == "mean1":
            assert [key for key, _ in recommend(again, request, k=5)] == [key for key, _ in best[:5]]
        assert again.check() < 1e-5


def test_a_ranker_ranks_added_and_changed_items(copies: Path, full: shop.Shop) -> None:
    expected = Expected(full)
    with serving(copies / "bundle", recall=str(copies / "mean1.bundle")) as service:
        (retriever,) = (model for model in service.models if model is not service.served)
        for changes in CHANGES:
            counts = change_items([service.served.catalog, retriever.catalog], changes)
            expected.apply(changes)
        assert counts == {"changes": 8, "items": 50, "withdrawn": 2}
        items = expected.encode()
        changed = shop.Shop(**{**vars(full), "items": items})
        rows = items.rows(pa.array(["n1", "i5", "i0", "m3"]), "items").astype(np.int64)
        for row in (7, 250):
            one = build_golden_request(full.model, full.fitted, full.users, items, changed.sample(row, rows))
            answer = orjson.loads(service.answer(orjson.dumps(one.request)))
            scores = {item["id"]: item["score"] for item in answer["items"]}
            np.testing.assert_allclose([scores[key] for key in one.request["candidates"]], one.scores, atol=1e-5)
        request = {**retrievers.vectors().golden[1].request, "k": 1_000, "exclude_seen": False}
        items_of = {key for key, _ in recommend(service, request)}
        assert items_of == set(expected.rows) - expected.withdrawn
        assert service.check() < 1e-5


def test_a_retriever_that_counts_has_the_changes_too(copies: Path) -> None:
    request = {**retrievers.counts().golden[0].request, "k": 100, "exclude_seen": False}
    with serving(copies / "count.bundle") as service:
        before = dict(recommend(service, request))
        change_items([service.served.catalog], [{"film": 77}, {"film": 3, "withdrawn": True}])
        after = dict(recommend(service, request))
        unseen = float(retrievers.counts().model.counts[1])  # type: ignore[index]
        assert after == {key: score for key, score in before.items() if key != 3} | {77: unseen}


def test_changes_are_kept_once_and_seen_by_every_process(copies: Path) -> None:
    first, second = (open_catalog(copies / "mean1.bundle") for _ in range(2))
    assert first.is_as_exported
    change_items([first], CHANGES[0])
    content = (first.folder / NAME).read_bytes()
    assert json.loads(content)["revision"] == 1
    change_items([first], CHANGES[0])
    assert (first.folder / NAME).read_bytes() == content
    assert len(second) == 40
    assert second.refresh()
    assert not second.refresh()
    assert (len(second), second.changes) == (41, first.changes)
    change_items([second], CHANGES[1])
    change_items([first], CHANGES[2])  # reads the changes of the other process before
    assert list(first.changes.items) == ["n1", "i3", "i5", "n2", "i8"]
    assert first.changes.items["n1"].columns["genres"] == ["a"]
    (first.folder / NAME).unlink()
    assert first.refresh()
    assert (len(first), first.withdrawn, first.is_as_exported) == (40, None, True)


def test_a_failed_write_leaves_the_former_changes(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog(copies / "mean1.bundle")
    change_items([catalog], CHANGES[0])

    def fail(source: Any, target: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        change_items([catalog], CHANGES[1])
    assert len(catalog) == 41
    assert len(open_catalog(copies / "mean1.bundle")) == 41


FAULTS = [
    ({"price": 3.0}, "items: change 1: no 'item_id'; expected the key of an item, text, as in the log"),
    ({"item_id": 7}, "items: change 1: item_id as int, 7"),
    ({"item_id": "i1", "prise": 3}, "change 1, item 'i1': the unknown column 'prise' (did you mean 'price'?)"),
    ({"item_id": "i1", "withdrawn": 1}, "change 1, item 'i1': withdrawn: 1; expected true or false"),
    ({"item_id": "new", "price": 3.0}, "item 'new': a new item without genres, actors, fame"),
    ({"item_id": "new", "withdrawn": True}, "item 'new': an unknown item that is withdrawn"),
    ({"item_id": "i1", "price": "cheap"}, "items: item 'i1', column 'price': 'cheap' (text); expected a value of type"),
    ({"item_id": "i1", "year": 3.5}, "items: item 'i1', column 'year': 3.5"),
    ({"item_id": "i1", "year": True}, "items: item 'i1', column 'year': True"),
    ({"item_id": "i1", "actors": [1, 2], "fame": [1.0]}, "items: item 'i1', column 'actors': weights"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_change_that_does_not_fit_is_refused(copies: Path, change: dict[str, Any], message: str) -> None:
    catalogs = [open_catalog(copies / name) for name in ("bundle", "mean1.bundle")]
    with pytest.raises(DataError) as caught:
        change_items(catalogs, [change, {"item_id": "i2", "withdrawn": True}])
    assert message in str(caught.value)
    assert caught.value.expected
    assert all(catalog.is_as_exported and not (catalog.folder / NAME).exists() for catalog in catalogs)


def test_a_catalog_that_cannot_change_is_refused(copies: Path, full: shop.Shop) -> None:
    catalog = open_catalog(copies / "mean1.bundle")
    change_items([catalog], CHANGES[0])
    shutil.move(catalog.folder, copies / "bundle.catalog")
    with pytest.raises(BundleError, match="the changes of another bundle"):
        open_catalog(copies / "bundle")
    bundle = Bundle.open(copies / "mean1.bundle")
    bundle.items.versions = Versions(np.zeros(2, np.int64), np.zeros(0, np.int64))
    with pytest.raises(BundleError, match=r"an item table with versions \(as_of\)"):
        build_change_reader(bundle, None)


def test_without_raw_columns_a_feature_needs_all_of_its_columns(copies: Path) -> None:
    source = Bundle.open(copies / "bundle")
    programs = open_catalog(copies / "bundle")._programs
    catalog = LiveCatalog(source, programs, lambda items: None)
    catalog._columns = None
    with pytest.raises(DataError, match="item 'i1': no fame"):
        catalog.prepare([{"item_id": "i1", "actors": [3]}])
    with pytest.raises(DataError, match="the unknown column 'year'"):
        catalog.prepare([{"item_id": "i1", "year": 3}])
    merged = catalog.prepare([{"item_id": "i1", "actors": [3], "fame": [0.5]}])
    assert isinstance(merged, CatalogChanges)
    assert merged.revision == 1
