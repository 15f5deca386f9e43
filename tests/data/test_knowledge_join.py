from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.errors import DataError
from longrec.features.fitted_schema import FittedSchema
from longrec.features.vocabulary import compute_key_numbers
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore, SideVectors

START = 1_600_000_000_000
N = 40
PUBLISHED = [START + 9_000, START + 20_000, START + 30_500]
Rows = list[tuple[str, int, int]]


def table(text: bool = True) -> pa.Table:
    random = np.random.default_rng(0)
    users = random.integers(0, 5, N)
    return pa.table(
        {
            "user": [f"u{user}" for user in users] if text else users,
            "item": random.integers(100, 106, N),
            "t": START + np.arange(N) * 1_000,
            "click": np.arange(N) % 2,
        }
    )


def schema(folder: Path) -> dict[str, Any]:
    return {
        "user": "user",
        "item": "item",
        "time": {"column": "t", "unit": "ms"},
        "label": "click",
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id"},
            "who": {"kind": "embedding", "from": str(folder), "side": "user"},
            "what": {"kind": "embedding", "from": str(folder), "side": "item"},
        },
    }


def number(text: str) -> int:
    return int(compute_key_numbers(pa.array([text]))[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions; version v knows users u0.. and all items but 100 + v; vectors say who, what and which version."""
    store_folder = tmp_path_factory.mktemp("knowledge") / "v1"
    info = KnowledgeInfo({"user": 2, "item": 3}, "ms", {"user": "text", "item": "int64"}, codec="fp16")
    with KnowledgeStore.create(store_folder, info) as store:
        for version, published in enumerate(PUBLISHED):
            users = list(range(2 + version))
            items = [item for item in range(100, 106) if item != 100 + version]
            k_u = np.array([[user, version] for user in users], np.float32)
            k_v = np.array([[item, version, 1] for item in items], np.float32)
            keys = np.array([number(f"u{user}") for user in users])
            store.publish(published, published, SideVectors(keys, k_u), SideVectors(np.array(items), k_v))
    return store_folder


@pytest.fixture(scope="module")
def log(folder: Path, prepared: Callable[..., Log]) -> Log:
    return prepared(table(), schema(folder))


def test_every_row_reads_what_was_available_of_it(log: Log) -> None:
    """Against plain loops: the newest version published strictly before the moment, nothing else."""
    rows = np.random.default_rng(3).permutation(N)
    batch = gather(log, rows)
    who, what = batch.features["who"].numpy(), batch.features["what"].numpy()
    for at, row in enumerate(rows):
        timestamp = int(log.timestamps[row])
        user = log.users.key(int(log.user(np.array([row]))[0]))
        item = log.items.key(int(log.events.columns["item"][row]))
        version = sum(published < timestamp for published in PUBLISHED) - 1
        available = version >= 0 and int(user[1:]) < 2 + version
        assert who[at].tolist() == ([1, int(user[1:]), version] if available else [0, 0, 0])
        available = version >= 0 and item != 100 + version
        assert what[at].tolist() == ([1, item, version, 1] if available else [0, 0, 0, 0])
    assert {tuple(row) for row in who[who[:, 0] == 0]} == {(0, 0, 0)}


def test_7_version_consistency_of_both_features(log: Log) -> None:
    batch = gather(log, np.arange(N))
    who, what = batch.features["who"].numpy(), batch.features["what"].numpy()
    both = (who[:, 0] > 0) & (what[:, 0] > 0)
    assert both.sum() > 10
    assert len(set(who[both, 2])) == 3
    assert np.array_equal(who[both, 2], what[both, 2])


def test_the_fields_hold_the_width_and_the_presence_flag(log: Log, tmp_path: Path) -> None:
    fields = {field.name: field for field in log.fields().features}
    assert (fields["who"].kind, fields["who"].width, fields["who"].side) == ("embedding", 3, "user")
    assert (fields["what"].kind, fields["what"].width, fields["what"].side) == ("embedding", 4, "item")
    log.fitted.save(tmp_path)
    assert FittedSchema.load(tmp_path).fields() == log.fields()


def test_a_log_without_any_knowledge(folder: Path, prepared: Callable[..., Log]) -> None:
    strangers = table().set_column(0, "user", pa.array([f"x{row % 4}" for row in range(N)]))
    batch = gather(prepared(strangers, schema(folder)), np.arange(N))
    assert not batch.features["who"].any()
    assert batch.features["what"][:, 0].any()


def test_9_shuffled_and_random_controls(log: Log) -> None:
    """Shuffled: everybody reads somebody else, the same one always; random: noise. Both keep the rest as it was."""
    feature = log.knowledge["what"]
    items = np.repeat(np.arange(7), 3)  # row 0 is nobody
    timestamps = np.tile(np.array(PUBLISHED) + 1, 7)
    plain = feature.values(items, timestamps).reshape(7, 3, 4)
    shuffled = feature.control("shuffled", seed=2).values(items, timestamps).reshape(7, 3, 4)
    assert not shuffled[0].any()
    for version in range(3):
        assert sorted(shuffled[1:, version].tolist()) == sorted(plain[1:, version].tolist())
    assert (shuffled[1:, :, 1] != plain[1:, :, 1]).mean() > 0.5
    for item in range(1, 7):
        assert len({value for value in shuffled[item, :, 1] if value}) == 1
    noise = feature.control("random").values(items, timestamps).reshape(7, 3, 4)
    assert np.array_equal(noise[:, :, 0], plain[:, :, 0])
    assert not np.isin(noise[plain[:, :, 0] > 0][:, 1], plain[:, :, 1]).any()
    assert np.array_equal(feature.values(items, timestamps).reshape(7, 3, 4), plain)


def test_knowledge_of_another_log_is_refused(folder: Path, prepared: Callable[..., Log], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"features.who: knowledge with user keys of type text; expected int64"):
        prepared(table(text=False), schema(folder))
    info = KnowledgeInfo({"user": 2, "item": 3}, "step", {"user": "text", "item": "int64"})
    KnowledgeStore.create(tmp_path / "v1", info).close()
    with pytest.raises(DataError, match="knowledge with timestamps in step; expected ms"):
        prepared(table(), schema(tmp_path / "v1"))
