from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore, SideVectors

INFO = KnowledgeInfo(
    {"user": 3, "item": 2}, "ms", {"user": "int64", "item": "int64"}, codec="fp32", source={"run": "a"}
)
KEYS = np.array([7, 8, 9], np.int64)


def build_side(keys: list[int], width: int, value: float) -> SideVectors:
    """Return vectors that hold ``value`` and, as last number, the key."""
    vectors = np.full((len(keys), width), value, np.float32)
    vectors[:, -1] = keys
    return SideVectors(np.array(keys, np.int64), vectors, [0.0] * width, [1.0] * width)


def publish(store: KnowledgeStore, at: int, value: float, users: list[int], items: list[int]) -> None:
    store.publish(at, at, build_side(users, 3, value), build_side(items, 2, value))


@pytest.fixture
def store(tmp_path: Path) -> KnowledgeStore:
    knowledge = KnowledgeStore.create(tmp_path / "v1", INFO)
    publish(knowledge, 100, 1.0, [7, 8], [1, 2])
    publish(knowledge, 200, 2.0, [7, 9], [1, 2, 3])
    return knowledge


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def test_7_version_consistency_is_strictly_before_the_request(store: KnowledgeStore) -> None:
    timestamps = numbers(0, 100, 101, 200, 201, 10**12)
    assert store.find_versions(timestamps).tolist() == [-1, -1, 0, 0, 1, 1]


def test_7_version_consistency_of_both_sides(store: KnowledgeStore) -> None:
    """All vectors of a request are of one version. A missing vector is not replaced by an older one."""
    for timestamp, value, there in ((150, 1.0, [1, 1, 0]), (250, 2.0, [1, 0, 1])):
        version = store.find_versions(numbers(timestamp))
        users = store.look_up("user", KEYS, version)
        items = store.look_up("item", numbers(1, 2, 3), version)
        assert users[:, 0].tolist() == there
        assert set(users[users[:, 0] > 0, 1]) == {value} == set(items[items[:, 0] > 0, 1])
        assert users[users[:, 0] > 0, 3].tolist() == KEYS[np.array(there) > 0].tolist()
        assert not users[users[:, 0] == 0].any()  # user 8 has a vector of version 0, and none in version 1
    assert not store.look_up("user", KEYS, numbers(-1)).any()


def test_7_version_consistency_while_a_version_is_being_written(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that ends between the two sides leaves the previous version complete, and so is the next one."""
    append = KnowledgeStore._append

    def dies(self: KnowledgeStore, side: Any, *rest: Any) -> None:
        if side == "item":
            raise KeyboardInterrupt
        append(self, side, *rest)

    monkeypatch.setattr(KnowledgeStore, "_append", dies)
    with pytest.raises(KeyboardInterrupt):
        publish(store, 300, 3.0, [7, 8, 9], [1, 2, 3])
    monkeypatch.undo()
    store.close()
    with KnowledgeStore.open(store.folder, writable=True) as again:
        assert again.find_versions(numbers(1_000)).tolist() == [1]
        assert again.look_up("user", KEYS, numbers(1, 1, 1))[:, 0].tolist() == [1, 0, 1]
        publish(again, 310, 4.0, [8], [1])
        version = again.find_versions(numbers(1_000))
        users, items = again.look_up("user", KEYS, version), again.look_up("item", numbers(1, 2), version)
        assert users[:, :2].tolist() == [[0, 0], [1, 4], [0, 0]]  # nothing of the unfinished version
        assert items[:, :2].tolist() == [[1, 4], [0, 0]]


def test_each_row_reads_its_own_version(store: KnowledgeStore) -> None:
    users = store.look_up("user", numbers(7, 7, 7, 8), numbers(1, 0, -1, 0))
    assert users[:, :2].tolist() == [[1, 2], [1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_vectors_come_back_as_the_codec_keeps_them(tmp_path: Path, codec: str) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((50, 3)).astype(np.float32)
    info = KnowledgeInfo({"user": 3, "item": 2}, "step", {"user": "text", "item": "int64"}, codec=codec)
    with KnowledgeStore.create(tmp_path / "v1", info) as knowledge:
        keys = random.permutation(1_000)[:50]
        knowledge.publish(5, 9, SideVectors(keys, vectors), build_side([1], 2, 1))
        lookup = knowledge.look_up("user", keys, numbers(0))
    near = {"fp32": 0, "fp16": 2**-11 * 4, "int8": 4 / 254}[codec]
    np.testing.assert_allclose(lookup[:, 1:], vectors, rtol=0, atol=near)
    with KnowledgeStore.open(tmp_path / "v1") as again:
        assert again.info == knowledge.info
        assert again.info.versions[0].trained_before == 5
        assert np.array_equal(again.look_up("user", keys, numbers(0)), lookup)


def test_the_visibility_delay_keeps_its_stored_name(tmp_path: Path) -> None:
    with KnowledgeStore.create(tmp_path / "v1", replace(INFO, visibility_delay=3)):
        stored = json.loads((tmp_path / "v1" / "knowledge.json").read_text())
    assert (stored["lag"], "visibility_delay" in stored) == (3, False)
    with KnowledgeStore.open(tmp_path / "v1") as again:
        assert again.info.visibility_delay == 3


def test_a_reader_sees_a_version_after_refresh(store: KnowledgeStore) -> None:
    with KnowledgeStore.open(store.folder) as reader:
        publish(store, 300, 3.0, [8], [2])
        assert reader.find_versions(numbers(500)).tolist() == [1]
        assert reader.look_up("user", KEYS, numbers(1))[:, 0].tolist() == [1, 0, 1]
        reader.refresh()
        assert reader.find_versions(numbers(500)).tolist() == [2]
        assert reader.look_up("user", KEYS, numbers(2))[:, :2].tolist() == [[0, 0], [1, 3], [0, 0]]


def test_invalid_versions_and_folders_are_refused(store: KnowledgeStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a version published at 200, after version 1 of 200"):
        publish(store, 200, 1.0, [7], [1])
    with pytest.raises(StoreError, match="a timestamp from 400 on"):
        store.publish(400, 300, build_side([7], 3, 1), build_side([1], 2, 1))
    with pytest.raises(StoreError, match="the folder is not empty"):
        KnowledgeStore.create(store.folder, INFO)
    with pytest.raises(StoreError, match=r"no readable knowledge.json"):
        KnowledgeStore.open(tmp_path / "nowhere")
    manifest = store.folder / "knowledge.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": "longrec-knowledge-9"}))
    with pytest.raises(StoreError, match="expected longrec-knowledge-1"):
        KnowledgeStore.open(store.folder)
    del content["widths"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="not readable"):
        KnowledgeStore.open(store.folder)
