"""Changes of items that wait for another process or a disk, while rankings are answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import shop
from in_process import InProcess, read_error

from longrec.errors import StoreError
from longrec.exporting import catalog_changes
from longrec.exporting.catalog_changes import NAME, ChangesLock
from longrec.serve.app import App
from longrec.serve.limits import Limits
from longrec.serve.live_catalog import change_items, open_catalog
from longrec.serve.service import Service

WITHDRAW = {"items": [{"item_id": "i1", "withdrawn": True}]}


@pytest.fixture
def http(full: shop.Shop, tmp_path: Path) -> Iterator[InProcess]:
    app = App(Service(shutil.copytree(full.bundle, tmp_path / "bundle")), limits=Limits(queue=2))
    with InProcess(app) as http:
        yield http
    app.close()


def test_rankings_continue_while_another_process_changes_items(http: InProcess, full: shop.Shop) -> None:
    lock, request = ChangesLock(http.app.service.served.catalog.folder), orjson.dumps(full.golden[0].request)
    lock.acquire()

    async def send_all() -> list[Any]:
        changes = [asyncio.create_task(http.call("POST", "/items", orjson.dumps(WITHDRAW), {})) for _ in range(3)]
        rankings = [await http.call("POST", "/rank", request, {}) for _ in range(3)]
        assert sum(one.done() for one in changes) == 1  # it is refused, since two wait
        lock.close()
        return [*rankings, *(await asyncio.gather(*changes))]

    *rankings, first, second, refused = http.run(send_all())
    assert {one.status for one in rankings} == {200}
    assert [first.json()["withdrawn"], second.json()["withdrawn"]] == [1, 1]
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert "2 changes wait already" in read_error(refused)["found"]


def test_requests_read_a_change_before_its_own_request_continues(http: InProcess, full: shop.Shop) -> None:
    catalog = http.app.service.served.catalog
    steps = http.app.service.change_items_in_steps(orjson.dumps(WITHDRAW))
    with contextlib.closing(steps):
        for step in steps:
            if not callable(step):
                assert step == {"changes": 1, "items": len(catalog), "withdrawn": 1}
                break
            assert catalog.withdrawn is None
            step()
            assert http.post("/rank", full.golden[0].request).status == 200  # it reads a file that was written
    assert catalog.withdrawn is not None
    assert catalog.withdrawn.sum() == 1


def test_a_lock_that_stays_is_an_error_with_a_time(http: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_changes, "LOCK_SECONDS", 0.05)
    bundle = http.app.service.bundle.path
    with contextlib.closing(ChangesLock(http.app.service.served.catalog.folder)) as lock:
        lock.acquire()
        answer = http.post("/items", WITHDRAW)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert read_error(answer)["found"] == "another process has changed items for 0.05 s"
        with pytest.raises(StoreError, match=r"bundle\.catalog: another process has changed items"):
            change_items([open_catalog(bundle)], WITHDRAW["items"])
    assert http.post("/items", WITHDRAW).json()["withdrawn"] == 1


def test_a_full_disk_leaves_the_items_as_they_are(http: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        answer = http.post("/items", WITHDRAW)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert read_error(answer)["found"].startswith("no space left")
    catalog = http.app.service.served.catalog
    assert catalog.is_as_exported
    assert not (catalog.folder / NAME).exists()
    assert http.post("/items", WITHDRAW).json()["withdrawn"] == 1  # the lock is free
