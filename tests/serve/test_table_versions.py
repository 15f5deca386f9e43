"""A bundle stores versions of users and items. The server reads the newest strictly before the request's timestamp."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.errors import BundleError
from longrec.exporting import bundle as bundles
from longrec.exporting.bundle import FORMAT, Bundle, read_manifest
from longrec.exporting.catalog import build_catalog_tensors
from longrec.exporting.write import export
from longrec.exports import build_offline_request
from longrec.features.schema import Schema
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.serve.request_json import decode_request
from longrec.serve.service import Service, replay

START, HOUR = 1_600_000_000_000, 3_600_000
USERS, ITEMS, ROUNDS = 5, 8, 6
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": "at",
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "brand": {"kind": "id", "side": "item"},
        "ctr": {"kind": "numeric", "side": "item", "scale": "standard"},
        "sold": {"kind": "bucketized", "side": "item", "quantiles": 4, "column": "ctr"},
        "tags": {"kind": "multi_id", "side": "item", "weights": "tag_weights"},
        "shape": {"kind": "numeric", "side": "item", "width": 2},
        "loyal": {"kind": "bucketized", "side": "user", "edges": [1, 2, 3]},
        "likes": {"kind": "multi_id", "side": "user", "separator": "|"},
    },
    "histories": {"seen": {"features": ["item", "brand", "sold", "tags", "time_gap"], "max_length": 6}},
}


def write_log(folder: Path) -> None:
    """Write impressions a millisecond before, at and after the timestamps of versions, and in between."""
    random = np.random.default_rng(0)
    items: list[dict[str, Any]] = []
    timestamps: list[int] = []
    for item in range(1, ITEMS):  # item 0 has no version
        for turn in range(int(random.integers(1, ROUNDS))):
            since = START + int(random.integers(0, 100)) * HOUR + turn
            tags = random.integers(0, 6, int(random.integers(0, 3))).tolist()
            version = {
                "item": item,
                "since": since,
                "brand": f"b{random.integers(0, 9)}",
                "ctr": float(random.random()),
            }
            version |= {"tags": tags, "tag_weights": [float(n + 1) for n in tags], "shape": random.random(2).tolist()}
            items.append(version)
            timestamps += [since - 1, since, since + 1]
    users = [
        {
            "user": f"u{n % (USERS - 1)}",
            "since": START + n * 7 * HOUR,
            "loyal": float(n % 5),
            "likes": f"a{n % 3}|b{n % 4}",
        }
        for n in range(14)
    ]
    timestamps += [user["since"] + shift for user in users for shift in (-1, 0, 1)]
    timestamps += (START - HOUR + random.integers(0, 100 * HOUR, 100)).tolist()
    count = len(timestamps)
    log = {
        "user": [f"u{n}" for n in random.integers(0, USERS, count)],
        "item": random.integers(0, ITEMS, count).tolist(),
        "at": timestamps,
        "click": random.integers(0, 2, count).tolist(),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    for name, rows in (("items", items), ("users", users)):
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        since = pa.array(columns["since"], pa.timestamp("ms", "UTC") if name == "items" else pa.int64())
        pq.write_table(pa.table({**columns, "since": since}), folder / f"{name}.parquet")


class Shop:
    def __init__(self, folder: Path) -> None:
        write_log(folder)
        sources = {name: {"files": str(folder / f"{name}.parquet"), "as_of": "since"} for name in ("items", "users")}
        config_dict = {"log": str(folder / "log.parquet"), **sources, "folder": str(folder / "prepared"), "threads": 1}
        self.log = Log.open(prepare(DataConfig.model_validate(config_dict), Schema.model_validate(SCHEMA)))
        torch.manual_seed(0)
        settings = {"name": "din", "attention": [8], "mlp": [8], "embedding_dim": 4, "init_std": 0.5}
        model = build(settings, self.log.fields())
        assert isinstance(model, Ranker)
        self.model, self.bundle = model.eval(), folder / "shop.bundle"
        golden = [build_offline_request(self.log, self.model, row, range(1, ITEMS + 1)) for row in (3, 50, 120)]
        self.manifest = export(self.model, self.log.folder, self.bundle, golden, replay)

    def offline(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            scores: np.ndarray[Any, Any] = torch.sigmoid(self.model(gather(self.log, rows))).numpy()
        return scores


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("versions"))


def score_items(service: Service, user: Any, items: list[Any], at: Any) -> dict[Any, float]:
    body = orjson.dumps({"user": user, "candidates": items, "at": at, "context": {}, "allow_unknown": True})
    ranked = service.rank(decode_request(body)).pipeline_result.candidates
    return dict(zip(ranked.keys.tolist(), ranked.score.tolist()))


def test_online_equals_offline_around_every_version(shop: Shop) -> None:
    log, service = shop.log, Service(shop.bundle)
    assert service.check() < 1e-6
    rows = np.arange(len(log))
    offline, users = shop.offline(rows), log.user(rows)
    worst = 0.0
    for row in rows.tolist():
        item = log.items.key(int(log.events.columns["item"][row]))
        at = format_time(int(log.timestamps[row]))
        worst = max(worst, abs(score_items(service, log.users.key(int(users[row])), [item], at)[item] - offline[row]))
    assert worst < 1e-6


def format_time(timestamp: int) -> str:
    return f"{np.datetime64(timestamp, 'ms')}Z"


def test_a_version_counts_from_the_millisecond_after_its_timestamp(shop: Shop) -> None:
    service, versions = Service(shop.bundle), shop.log.items.versions
    assert versions is not None
    for item in np.flatnonzero(np.diff(versions.offsets)).tolist():
        for since in versions.times[versions.offsets[item] : versions.offsets[item + 1]].tolist():
            key = shop.log.items.key(item)  # a new user has no history, so only versions differ
            scores = [
                score_items(service, "nobody", [key], format_time(since + shift))[key] for shift in (-1, 0, 1, 999)
            ]
            assert scores[0] == scores[1] != scores[2] == scores[3]


def test_the_catalog_of_a_retriever_has_the_newest_versions(shop: Shop) -> None:
    items = shop.log.items
    assert items.versions is not None
    catalog = build_catalog_tensors(shop.log.fitted, items)
    newest = np.where(np.diff(items.versions.offsets) > 0, items.versions.offsets[1:], 0)[1:]
    for name, column in items.dated.items():
        if isinstance(column, np.ndarray):
            np.testing.assert_allclose(catalog[f"f.{name}"], column[newest], rtol=1e-6)
    whole = build_catalog_tensors(shop.log.fitted, items, 1, 4), build_catalog_tensors(shop.log.fitted, items, 4)
    for name, tensor in catalog.items():
        if not name.endswith("offsets"):
            assert np.array_equal(np.concatenate([half[name] for half in whole]), tensor)


def test_a_bundle_has_the_versions(shop: Shop, full: Any, tmp_path: Path) -> None:
    assert read_manifest(shop.bundle).format == FORMAT
    assert "items/versions/times.npy" in shop.manifest.files
    assert shop.manifest.counts["items"] == ITEMS
    assert Bundle.open(shop.bundle).items.versions is not None
    assert set(json.loads((full.bundle / "items" / "table.json").read_text())) == {"columns"}
    other = tmp_path / "other.bundle"
    shutil.copytree(shop.bundle, other)
    content = re.sub(FORMAT.encode(), b"longrec-bundle-4", (other / bundles.MANIFEST).read_bytes())
    (other / bundles.MANIFEST).write_bytes(content)
    (other / bundles.DIGEST).write_bytes(bundles.format_digest(content))
    with pytest.raises(BundleError, match="format 'longrec-bundle-4'"):
        Bundle.open(other)
