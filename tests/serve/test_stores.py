"""Tests of a service whose stores are on a server that may hang."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import token_shop
from in_process import InProcess

from longrec.serve.app import App
from longrec.serve.limits import Limits
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.serve.stores import TRIAL_SECONDS

STORE, DEADLINE = 0.3, 2.0
CONTEXT = {"place": "side", "price": 2.25}
REQUEST = {"user": "u1", "candidates": [100, 101, 110], "context": CONTEXT}


class Proxy:
    """Proxy of a server that can hold all bytes back."""

    def __init__(self, host: str, port: int) -> None:
        self._target, self._listening = (host, port), socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.flows, self._ends = threading.Event(), threading.Event()
        self.flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._ends.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            other = {client: server, server: client}
            while not self._ends.is_set():
                ready, _, _ = select.select(list(other), [], [], 0.1)
                for one in ready:
                    self.flows.wait()
                    try:
                        data = one.recv(65_536)
                        other[one].sendall(data)
                    except OSError:
                        return
                    if not data:
                        return

    def close(self) -> None:
        """End all connections."""
        self._ends.set()
        self.flows.set()
        self._listening.close()


@pytest.fixture(scope="module")
def shop() -> token_shop.TokenShop:
    return token_shop.shop()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    address = urlsplit(redis_url)
    proxy = Proxy(str(address.hostname), address.port or 6379)
    yield proxy
    proxy.close()


@pytest.fixture
def http(
    shop: token_shop.TokenShop, redis_url: str, proxy: Proxy, request: pytest.FixtureRequest
) -> Iterator[InProcess]:
    name = f"hanging-{abs(hash(request.node.name)):x}"
    token_shop.copy_tokens(shop.tokens, f"{redis_url}/{name}")
    path = urlsplit(redis_url).path
    there = f"redis://127.0.0.1:{proxy.port}{path}"
    service = Service(shop.bundle, Settings({"tokens": f"{there}/{name}"}, str(shop.source), f"{there}/{name}-state"))
    app = App(service, limits=Limits(store=STORE, deadline=DEADLINE))
    with InProcess(app) as http:
        yield http
        proxy.flows.set()
    app.close()


def test_answers_equal_those_of_a_folder(http: InProcess, shop: token_shop.TokenShop) -> None:
    local = Service(shop.bundle)
    for user in ("u1", "u2", "u7"):
        request = {**REQUEST, "user": user}
        answer = http.post("/rank", request)
        assert answer.status == 200
        assert answer.json()["items"] == orjson.loads(local.answer(orjson.dumps(request)))["items"]
    local.close()
    assert http.post("/rank", {**REQUEST, "user": "nobody"}).status == 404
    assert http.get("/v2/health/ready").status == 200


def test_a_store_that_hangs_stops_only_who_reads_it(http: InProcess, proxy: Proxy) -> None:
    before = http.post("/rank", REQUEST).json()["items"]
    proxy.flows.clear()

    async def send_all() -> tuple[Any, list[float]]:
        began = time.perf_counter()
        hanging = asyncio.create_task(http.call("POST", "/rank", orjson.dumps(REQUEST), {}))
        waits = []
        while not hanging.done():
            start = time.perf_counter()
            assert (await http.call("GET", "/health", b"", {})).status == 200
            waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.01)
        return (await hanging, time.perf_counter() - began), waits

    (answer, seconds), waits = http.run(send_all())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert seconds < DEADLINE
    assert len(waits) > 5
    assert max(waits) < STORE
    start = time.perf_counter()
    answer = http.post("/rank", REQUEST)  # at once, until the next trial
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert time.perf_counter() - start < STORE / 2
    assert http.get("/v2/health/ready").status == 503
    assert 'longrec_shed_total{reason="store",route="/rank"} 1.0' in http.get("/metrics").content.decode()
    proxy.flows.set()
    time.sleep(TRIAL_SECONDS)
    assert http.get("/v2/health/ready").status == 200
    assert http.post("/rank", REQUEST).json()["items"] == before


def test_a_request_does_not_wait_beyond_its_own_deadline(http: InProcess, proxy: Proxy) -> None:
    proxy.flows.clear()
    start = time.perf_counter()
    answer = http.post("/rank", REQUEST, x_request_timeout_ms="100")
    assert answer.status == 503
    assert "deadline" in answer.json()["error"]["found"]
    assert time.perf_counter() - start < STORE


def test_a_short_deadline_stops_no_other_request(http: InProcess) -> None:
    """A store that responds counts as gone for nobody, however little time one request has."""
    for _ in range(5):
        assert http.post("/rank", REQUEST, x_request_timeout_ms="1").status in (200, 503)
        assert http.post("/rank", REQUEST).status == 200


def test_an_event_at_a_store_that_hangs_is_recorded_by_the_next_try(http: InProcess, proxy: Proxy) -> None:
    event = {"user": "u1", "item": 100, "at": token_shop.START + 40 * token_shop.DAY, "context": CONTEXT}
    event["at"] = http.post("/events", {**event, "item": 101}).json()["at"]  # the format of the log
    proxy.flows.clear()
    assert http.post("/events", event).status == 503
    proxy.flows.set()
    time.sleep(TRIAL_SECONDS)
    answer = http.post("/events", event)
    assert answer.status == 200, answer.content
    assert http.post("/events", event).json()["replaced"] is True
    assert http.post("/rank", {**REQUEST, "at": event["at"]}).status == 200


def test_reload_is_refused_while_events_are_recorded(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    app = App(Service(shop.bundle, Settings(events=str(shop.source), state=str(tmp_path / "state"))))
    with InProcess(app) as http:
        answer = http.post("/reload")
    app.close()
    assert answer.status == 409
    assert "records events" in answer.json()["error"]["found"]
